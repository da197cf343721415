"""Estimate before compilation how many jobs fit into memory together, and explain errors of missing memory."""

import contextlib
import math
import os
import re
import resource
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdlbench.metrics.evaluate import needs_each_draw
from bdlbench.runs.job import Job
from bdlbench.sampling import lanes
from bdlbench.sampling.devices import computing_in
from bdlbench.sampling.predictions import TOGETHER, describe
from bdlbench.sampling.programs import Lane, Shared, StagePrograms, size_of
from bdlbench.store.arrays import BUFFER_BYTES
from bdlbench.types import no_finalize

SAFETY = 0.6
"""The fraction of the free memory that is used. The rest is for fragmentation and for other processes."""
GRADIENTS = 4
"""The temporary arrays of a step, as a multiple of those of one gradient. They hold rows that are gathered in advance,
proposals and copies."""
STATES = 4
"""The temporary arrays of a step, as a multiple of the method's state. The moments and updates of an optimiser are as
large as the weights."""
LOOK = 256
"""Largest number of draws of a chain between two looks, with the padding of the last block of predictions."""
COMPONENTS = 2010
"""Doubles a test row that a running predictive mixture keeps, at most: two for each of 1,000 components, and moments.

A metric that needs the densities of single draws adds one for each component.
"""


REMEDY = "fewer chains, a smaller network, batch_size or data set, or a machine with more memory"


class Footprint(NamedTuple):
    """The memory that jobs of one program and one data shape need, in bytes.

    Attributes
    ----------
    lane : int
        Bytes that one lane keeps on its device between two blocks: state, draws, statistics and a block of predictions.
    working : int
        Temporary arrays of one lane during a step, ``finalize`` or a prediction. On a CPU the lanes of a device are
        computed one after another and share them. Under ``vmap`` each lane has its own.
    dataset : int
        The rows of one data set. Each device has a copy of each data set that its lanes use.
    host : int
        Bytes that the host holds for one lane: draws, named sites and predictions between two looks, and arrays that
        wait to be written.
    chains : int
        The number of lanes of a job.
    num_datasets : int
        The number of different data sets of all jobs.
    dim : int
        D, the number of weights.
    """

    lane: int
    working: int
    dataset: int
    host: int
    chains: int
    num_datasets: int
    dim: int

    def on_device(self, num_jobs: int) -> int:
        """Return the bytes that ``num_jobs`` jobs need on the device with the most lanes."""
        here = -(-num_jobs * self.chains // jax.device_count())
        at_once = 1 if lanes.sequential() else here
        return here * self.lane + at_once * self.working + min(num_jobs, self.num_datasets) * self.dataset

    def on_host(self, num_jobs: int) -> int:
        """Return the bytes that ``num_jobs`` jobs need on the host, including those of its CPU devices."""
        devices = jax.device_count() * self.on_device(num_jobs) if jax.default_backend() == "cpu" else 0
        rows = min(num_jobs, self.num_datasets) * self.dataset
        return devices + rows + num_jobs * self.chains * self.host


def jobs_that_fit(jobs: Sequence[Job], share: float = 1.0) -> int:
    """Return how many of these jobs fit into memory together as lanes of one program; at least 1.

    Parameters
    ----------
    jobs : sequence of Job
        Jobs with the same program and the same data shapes.
    share : float
        The fraction of this machine's free memory that they may use: 1/n if n processes run at the same time.
    """
    if len(jobs) < 2:
        return 1
    if jobs[0].baseline:  # baselines are fitted one after another
        return len(jobs)
    try:
        need = footprint(jobs)
    except Exception:  # a program that cannot be traced fails in the run itself, and the record says why
        return len(jobs)
    device, host = SAFETY * share * device_room(), SAFETY * share * host_room()

    def fits(count: int) -> bool:
        return need.on_device(count) <= device and need.on_host(count) <= host

    low, high = 1, len(jobs)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def footprint(jobs: Sequence[Job]) -> Footprint:
    """Estimate from shapes alone: everything is traced for one lane and nothing is computed."""
    with computing_in(jobs[0].precision):
        return _footprint(jobs)


def _footprint(jobs: Sequence[Job]) -> Footprint:
    job = jobs[0]
    data = job.dataset
    sets = [rows for rows in (data.test, *data.shifted.values(), *data.ood.values()) if rows is not None]
    held = None if data.validation is None else (_shape(data.validation.x), _shape(data.validation.y))
    shared = Shared(_shape(data.train.x), _shape(data.train.y), held)
    real = jnp.float64 if jax.config.jax_enable_x64 else jnp.float32
    number = jax.ShapeDtypeStruct((1,), real)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    lane = Lane(
        keys, jax.ShapeDtypeStruct((1,), jnp.int32), dict.fromkeys(job.numbers, number),
        jax.ShapeDtypeStruct((1,), jnp.bool_),
    )  # fmt: skip
    one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), lane)
    resident, working = 0, 0
    gradients: dict[int | None, int] = {}
    for index in range(len(job.program.stages)):
        stage = StagePrograms(job.program, index, shared, lane)
        state, draw = max(size_of(shapes) for shapes in stage.states), size_of(stage.draw_shape)
        particles = math.prod(stage.draw_shape.shape[:-1])
        kept = stage.capacity * (draw + 64) if stage.schedule.num_samples else 0  # 64 bytes: about 16 statistics
        batch = stage.schedule.batch_size
        if batch not in gradients:
            gradients[batch] = _gradient_bytes(stage, shared, one)
        finalize = 0
        if stage.method.finalize is not no_finalize:
            finalize = _peak(jax.make_jaxpr(stage.finalize)(shared, one, stage.states[0]).jaxpr)
        resident = max(resident, 2 * state + kept)  # the state before a block and the state after it
        working = max(working, GRADIENTS * gradients[batch] * particles + STATES * state, finalize)
    predictions = [_prediction_bytes(job, shared, one, stage.dim, rows) for rows in sets]
    predicted, largest = sum(kept for kept, _ in predictions), max((peak for _, peak in predictions), default=0)
    look = min(LOOK, job.program.stages[-1].schedule.num_samples) * particles
    sites = 2 * draw // particles
    per_row = COMPONENTS + 1000 * needs_each_draw(job.metrics)
    mixture = sum(8 * per_row * len(rows.y) for rows in sets) // job.num_chains
    # Arrays that wait to be written: at most one buffer for all chains of a run.
    every = job.program.stages[-1].schedule.num_samples * particles * (draw // particles + sites + predicted)
    waiting = min(every, BUFFER_BYTES // job.num_chains)
    return Footprint(
        lane=resident + TOGETHER * predicted,
        working=max(working, TOGETHER * largest),
        dataset=size_of(shared) + sum(rows.x.nbytes + rows.y.nbytes for rows in sets),
        # There are two copies of draws, sites and predictions while the parts of a look are concatenated.
        host=2 * look * (draw // particles + sites + predicted) + mixture + waiting,
        chains=job.num_chains,
        num_datasets=len({job.dataset.checksum for job in jobs}),
        dim=stage.dim,
    )


def _shape(rows: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, *rows.shape), jax.dtypes.canonicalize_dtype(rows.dtype))


def _gradient_bytes(stage: StagePrograms, shared: Shared, lane: Lane) -> int:
    """Return the bytes of the temporary arrays of one gradient on the rows of a step."""

    def gradient(shared: Shared, lane: Lane, theta: Any) -> Any:
        target, _, data = stage.build(shared, lane)
        count = stage.schedule.batch_size
        rows = data if count is None else data._replace(x=data.x[:count], y=data.y[:count])
        return target.value_and_grad(theta, rows)

    theta = jax.ShapeDtypeStruct((stage.dim,), stage.draw_shape.dtype)
    return _peak(jax.make_jaxpr(gradient)(shared, lane, theta).jaxpr)


def _prediction_bytes(job: Job, shared: Shared, lane: Lane, dim: int, rows: Any) -> tuple[int, int]:
    """Return the bytes of the predictions of one draw, and those of the temporary arrays for them."""
    assert job.dataset.task != "density"  # make_program refuses it
    task = job.dataset.task

    def one(shared: Shared, lane: Lane, theta: Any, x: Any, y: Any) -> Any:
        data = shared.rows(lane.dataset)
        target = job.program.make_target(lane.numbers, data.x, data.y)
        return describe(target.predictive(theta, x), y, lane.key, task)

    theta = jax.ShapeDtypeStruct((dim,), jax.dtypes.canonicalize_dtype(float))
    x, y = (jax.ShapeDtypeStruct(a.shape, jax.dtypes.canonicalize_dtype(a.dtype)) for a in (rows.x, rows.y))
    traced = jax.make_jaxpr(one)(shared, lane, theta, x, y).jaxpr
    return sum(_bytes_of(value) for value in traced.outvars), _peak(traced)


def _peak(jaxpr: Any) -> int:
    """Return the largest number of bytes in use at one time if a program is computed equation by equation.

    A value is in use from the equation that computes it to the last equation that reads it. Arguments are not counted.
    The result is an upper bound for a compiler that fuses operations.
    """
    last: dict[Any, int] = {}
    for line, equation in enumerate(jaxpr.eqns):
        for value in equation.invars:
            if not hasattr(value, "val"):  # a literal
                last[value] = line
    for value in jaxpr.outvars:
        if not hasattr(value, "val"):
            last[value] = len(jaxpr.eqns)
    alive, peak = 0, 0
    made: set[Any] = set()
    for line, equation in enumerate(jaxpr.eqns):
        inner = max((_peak(part) for part in _programs_in(equation.params)), default=0)
        alive += sum(_bytes_of(value) for value in equation.outvars)
        made.update(equation.outvars)
        peak = max(peak, alive + inner)
        done = {v for v in equation.invars if not hasattr(v, "val") and v in made and last[v] == line}
        done |= {v for v in equation.outvars if v not in last}
        alive -= sum(_bytes_of(value) for value in done)
    return peak


def _programs_in(params: Any) -> Iterator[Any]:
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            inner = getattr(part, "jaxpr", part)
            if hasattr(inner, "eqns"):
                yield inner


def _bytes_of(value: Any) -> int:
    shape, dtype = getattr(value.aval, "shape", ()), getattr(value.aval, "dtype", None)
    return math.prod(shape) * getattr(dtype, "itemsize", 8)


# ---- jobs that can never fit


class NeverFits(MemoryError):
    """A job needs more memory than the machine has, even if nothing else runs there."""


def refuse(
    job: Job, stages: Sequence[StagePrograms], data_bytes: int, num_lanes: int, *, keeps_draws: bool = False
) -> None:
    """Refuse a job before it starts if a proven lower bound of what it needs is above what the machine has.

    The bound counts what is in memory at the same time in any case: for each lane its state and the slots for its
    draws, and a copy of the data on each device. Temporaries are left out, since a compiler may need less of them.

    Parameters
    ----------
    job : Job
        One of the jobs, which share program and shapes.
    stages : sequence of StagePrograms
    data_bytes : int
        Bytes of the rows on one device.
    num_lanes : int
        Number of lanes of all jobs.
    keeps_draws : bool
        Whether all draws stay in memory instead of being written to a store.

    Raises
    ------
    NeverFits
        Unless ``limits.memory=off``. The message is one sentence with the need, the limit and the remedy.
    """
    if job.config.get("limits", {}).get("memory", "on") in ("off", False):
        return

    def lane(stage: StagePrograms) -> int:
        kept = stage.capacity * size_of(stage.draw_shape) if stage.schedule.num_samples else 0
        return max(size_of(shapes) for shapes in stage.states) + kept

    each = max(lane(stage) for stage in stages)
    on_device = -(-num_lanes // jax.device_count()) * each + data_bytes
    cpu = jax.default_backend() == "cpu"
    last = stages[-1]
    draws = num_lanes * last.schedule.num_samples * size_of(last.draw_shape) if keeps_draws else 0
    on_host = draws + (num_lanes * each + jax.device_count() * data_bytes if cpu else 0)
    limits = [(on_host, host_limit()), *([] if cpu else [(on_device, device_limit())])]
    for need, limit in limits:
        if need > limit:
            raise NeverFits(
                f"out of memory before it started: {num_lanes} chains x {last.dim:,} weights and the data need at least "
                f"{in_bytes(need)}, and there are {in_bytes(limit)} in all: use {REMEDY}, or limits.memory=off to try it "
                "all the same."
            )


# ---- memory of the machine


def device_limit() -> float:
    """Bytes of the smallest accelerator; infinite if it does not report them."""
    told = [device.memory_stats() for device in jax.local_devices()]
    return min((float(s["bytes_limit"]) for s in told if s and "bytes_limit" in s), default=math.inf)


def device_room() -> float:
    """Return the free bytes of the accelerator with the least free memory.

    The result is infinite on a CPU, and for a device that does not report its memory.
    """
    if jax.default_backend() == "cpu":
        return math.inf
    told = [device.memory_stats() for device in jax.local_devices()]
    return min(
        (float(s["bytes_limit"] - s["bytes_in_use"]) for s in told if s and "bytes_limit" in s), default=math.inf
    )


def host_room() -> float:
    """Return the bytes that this process can still allocate.

    This is the smallest of the free memory, the rest of the control group's limit and the rest of the process's limit.
    """
    return max(0.0, min(_free(), _control_group(), _own_limit()))


def host_limit() -> float:
    """Bytes that this process could have if it were alone: memory and swap, the control group's and its own limit."""
    own = resource.getrlimit(resource.RLIMIT_AS)[0]
    groups = min((limit for limit, _ in _control_groups()), default=math.inf)
    return min(_whole(), groups, math.inf if own == resource.RLIM_INFINITY else float(own))


def _meminfo(*names: str, path: Path = Path("/proc/meminfo")) -> list[float]:
    """Entries of ``/proc/meminfo`` in bytes; nothing on another system than Linux."""
    with contextlib.suppress(OSError):
        lines = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
        return [1024.0 * int(lines[name].split()[0]) for name in names if name in lines]
    return []


def _whole(meminfo: Path = Path("/proc/meminfo")) -> float:
    found = _meminfo("MemTotal", "SwapTotal", path=meminfo)
    return sum(found) if found else float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _free(meminfo: Path = Path("/proc/meminfo")) -> float:
    for available in _meminfo("MemAvailable", path=meminfo):
        return available
    # macOS counts no available memory: half of what is built in.
    return 0.5 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _control_group(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """Bytes that the limits of the process's control groups leave. Schedulers and containers set these limits."""
    return min((limit - used for limit, used in _control_groups(root, own)), default=math.inf)


def _control_groups(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> Iterator[tuple[float, float]]:
    """Limit and use, without the files that can be dropped, of each control group above the process that has a limit.

    In version 2 all controllers share one tree, whose line begins with ``0::``. In version 1 memory has its own tree,
    with other names of files.
    """
    lines = own.read_text().splitlines() if own.is_file() else []
    for _, controllers, name in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if controllers == "":
            top, (limit, used, cache) = root, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = root / "memory"
            limit, used, cache = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        folder = top / name.strip("/")
        while True:
            with contextlib.suppress(OSError, ValueError):  # "max" is no number
                dropped = re.search(rf"^{cache} (\d+)$", (folder / "memory.stat").read_text(), re.M)
                taken = int((folder / used).read_text()) - (int(dropped[1]) if dropped else 0)
                yield float((folder / limit).read_text()), float(taken)
            if folder == top:
                break
            folder = folder.parent


def _own_limit() -> float:
    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    if soft == resource.RLIM_INFINITY:
        return math.inf
    with contextlib.suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        return float(soft - pages * os.sysconf("SC_PAGE_SIZE"))
    return float(soft)


# ---- errors


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that host or device memory ran out."""
    return isinstance(error, MemoryError) or bool(
        re.search(r"RESOURCE_EXHAUSTED|[Oo]ut of memory|std::bad_alloc|Unable to allocate", str(error))
    )


def reason(error: BaseException, jobs: Sequence[Job]) -> str:
    """One sentence for the record with the requested memory, the available memory, the need of a job and the remedy."""
    if isinstance(error, NeverFits):
        return str(error)
    asked = re.search(r"(\d+) ?bytes", str(error).replace(",", ""))
    room = min(device_room(), host_room())
    parts = [f"{in_bytes(int(asked[1]))} were asked for at once" if asked else "", f"{in_bytes(room)} are free"]
    with contextlib.suppress(Exception):  # making this sentence must not fail when memory is short
        need = footprint(jobs[:1])
        about = max(need.on_device(1), need.on_host(1))
        chains = "1 chain" if need.chains == 1 else f"{need.chains} chains"
        parts.append(f"a job of {chains} x {need.dim:,} weights needs about {in_bytes(about)}")
    what = ", ".join(part for part in parts if part)
    return f"out of memory: {what}: use {REMEDY}."


def in_bytes(number: float) -> str:
    """Return a number of bytes with a unit, such as "3.2 GB". 1 GB is 2**30 bytes here."""
    for unit, size in (("TB", 2**40), ("GB", 2**30), ("MB", 2**20)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{max(0, int(number)) // 1024} kB" if np.isfinite(number) else "an unknown number of bytes"
