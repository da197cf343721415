"""Rows about sweeps: whole commands against the same runs elsewhere, what a run costs beside sampling, finding again."""

import contextlib
import functools
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.rows_whole import environment, in_process, need_hydra
from benchmarks.timing import Options, Row, seconds

_NETWORK = ("data=yacht", "network.width=10", "network.depth=1", "network.activation=tanh")
# Settings of its own, whatever is tuned for yacht: steps that its posterior bears from the network's own start.
_SGLD = (*_NETWORK, "inference=sgld", "inference.step_size=1e-7", "inference.before=[]")
_COMMAND = "import sys; from bdlbench.cli.main import main; sys.exit(main())"

NUMPYRO = """
import functools, sys
import numpyro
numpyro.set_host_device_count(2)
import jax
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS
from bdlbench.data.fetch import files_at
from bdlbench.data.uci import uci
from bdlbench.model import likelihoods, priors
from bdlbench.model.bnn import bnn
from bdlbench.networks.mlp import MLP

splits, steps = int(sys.argv[1]), int(sys.argv[2])
model = functools.partial(
    bnn,
    network=functools.partial(MLP, width=10, depth=1, activation="tanh"),
    prior=priors.fan_in(weight_scale=1.0, bias_scale=1.0),
    likelihood=likelihoods.gaussian("regression", 1, noise=dist.LogNormal(-1.0, 1.0)),
)
for split in range(splits):
    data = uci(
        files=files_at(),
        name="yacht", split=split, split_kind="standard", deduplicate=False, validation_fraction=0.0, n_train=None
    ).train
    kernel = NUTS(model, target_accept_prob=0.9, max_tree_depth=7)
    mcmc = MCMC(
        kernel, num_warmup=steps, num_samples=steps, num_chains=2, chain_method="parallel", progress_bar=False
    )
    mcmc.run(jax.random.key(split), data.x, data.y)
    jax.block_until_ready(mcmc.get_samples())
"""
"""The same model, data, budget and devices, by hand. It stores nothing and predicts nothing."""


def nuts_splits(options: Options) -> list[Row]:
    """20 splits of yacht with NUTS: one command against 20 ``MCMC`` runs in one process, compilation included."""
    need_hydra()
    splits, steps = (2, 10) if options.quick else (20, 200)
    schedule = f"inference.schedule={{num_chains: 2, num_warmup: {steps}, num_samples: {steps}}}"
    sampler = ("inference=nuts", "inference.max_tree_depth=7", "inference.before=[]", schedule)
    with tempfile.TemporaryDirectory() as folder:
        sweep = (*_NETWORK, *sampler, f"data.split=range({splits})")
        cold = _command(folder, "a", sweep)
        warm = _command(folder, "b", sweep)
        env = {name: value for name, value in environment().items() if name != "JAX_COMPILATION_CACHE_DIR"}
        theirs = cost_of_process(["-c", NUMPYRO, str(splits), str(steps)], env)
    detail = {"cold": cold._asdict(), "warm": warm._asdict(), "numpyro": theirs._asdict()}
    what = f"{splits} splits of yacht, NUTS 2 x ({steps} + {steps}): whole command, seconds a second of NumPyro's MCMC"
    elsewhere = f"{theirs.wall:.0f} s of {splits} MCMC.run in one process, each compiled anew"
    return [
        Row(f"{what}, compilation cache empty", "x", [cold.wall / theirs.wall], 0.25, elsewhere, detail),
        Row(f"{what}, compilation cache warm", "x", [warm.wall / theirs.wall], None, elsewhere, detail),
    ]


def sgld_jobs(options: Options) -> list[Row]:
    """20 splits x 3 step sizes of SGLD: as lanes, under Hydra's basic launcher, and in a process each."""
    need_hydra()
    splits, steps = (2, 20) if options.quick else (20, 2000)
    sizes = (1e-7, 2e-7, 4e-7)
    jobs = splits * len(sizes)
    schedule = _schedule(steps, max(20, steps // 10))
    swept = (f"data.split=range({splits})", f"inference.step_size={','.join(map(str, sizes))}")
    with tempfile.TemporaryDirectory() as folder:
        # Every side finds its programs in a warm cache; a process each would otherwise compile the same one 60 times.
        basic = ("hydra/launcher=basic", *_SGLD, schedule, *swept)
        _command(folder, "fill", (*_SGLD, schedule), multirun=False)
        _command(folder, "fill more", (*_SGLD, schedule, *swept))
        together = _command(folder, "lanes", (*_SGLD, schedule, *swept))
        in_turn = _command(folder, "basic", basic)
        some = 2 if options.quick else 4
        alone = [
            _command(folder, f"alone{i}", (*_SGLD, schedule, f"data.split={i}"), multirun=False) for i in range(some)
        ]
    apart = jobs * sum(cost.wall for cost in alone) / some
    sides = {"lanes": together, "basic": in_turn, **{f"process_{i}": cost for i, cost in enumerate(alone)}}
    detail = {name: cost._asdict() for name, cost in sides.items()}
    what = f"{jobs} SGLD jobs, 2 chains x {2 * steps:,} steps, cache warm: seconds as lanes a second"
    scaled = f"{apart:.0f} s, scaled from {some} processes measured one after another"
    return [
        Row(
            f"{what} under Hydra's basic launcher",
            "x",
            [together.wall / in_turn.wall],
            0.5,
            f"{in_turn.wall:.0f} s",
            detail,
        ),
        Row(f"{what} in a process each", "x", [together.wall / apart], 0.1, scaled, detail),
    ]


def growth(options: Options) -> list[Row]:
    """Seconds of a whole command against its number of jobs, each with an empty compilation cache."""
    need_hydra()
    counts, steps = ((1, 2, 4), 20) if options.quick else ((1, 10, 100), 2000)
    rows, took = [], {}
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            swept = (*_SGLD, _schedule(steps, max(20, steps // 10)), f"seed=range({count})")
            took[count] = _command(folder, "store", swept).wall
        what = f"sweep of {count} SGLD jobs, 2 chains x {2 * steps:,} steps: whole command, cache empty"
        rows.append(Row(what, "s", [took[count]], None, ""))
    few, some, many = counts
    slope = (took[many] - took[some]) / (many - some)
    first = (took[some] - took[few]) / (some - few)
    detail = {"first_slope_s": first, "slope_s": slope}
    rows.append(Row(f"a further job, from {some} to {many} jobs", "s", [slope], None, "", detail))
    return rows


def overhead(options: Options) -> list[Row]:
    """What the store, the record and progress take of a run in a sweep, measured in this process by their own calls."""
    need_hydra()
    from bdlbench.runs import configuration, progress, sweep
    from bdlbench.runs.outcome import Outcome
    from bdlbench.runs.storage import Storage
    from bdlbench.runs.tally import Tally
    from bdlbench.store.store import Store
    from bdlbench.store.writer import RunWriter

    jobs, steps = (3, 20) if options.quick else (20, 2000)
    beside: list[float] = []
    beyond: list[float] = []
    names: dict[Any, tuple[str, ...]] = {
        RunWriter: ("__enter__", "__exit__", "allocate", "write", "read_columns", "append_curve", "finish"),
        progress.Lines: ("start", "advance", "finish", "note", "group_begin", "group_end", "sweep_begin", "sweep_end"),
        Store: ("has", "record", "check_writable", "writer"),
        Storage: ("observed",),
        Tally: ("charge",),
    }
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        for turn in range(2 if options.quick else 4):
            made = [
                configuration.compose(
                    [*_SGLD, _schedule(steps, max(20, steps // 10)), f"seed={seed}", "progress=lines",
                     f"store.path={folder}/{turn}"]
                )
                for seed in range(jobs)
            ]  # fmt: skip
            with timed(names) as inside:
                start = time.perf_counter()
                records = sweep.run_sweep([(*each, "") for each in made], Outcome(), max_lanes=256)
                wall = time.perf_counter() - start
            if turn:  # the first compiles
                beside.append(inside() / jobs)
                computing = sum(r["seconds"][phase] for r in records if r for phase in ("compile", "warmup", "sample"))
                beyond.append((wall - computing) / jobs)
    return [
        Row(f"store, record and progress a run, of {jobs} in a sweep", "s", beside, 0.3, ""),
        Row("all that is not warm-up, sampling or compilation, a run", "s", beyond, None, "", {"jobs": jobs}),
    ]


def repeated(options: Options) -> list[Row]:
    """A finished sweep of 1,000 runs given again: the whole command, which finds them all."""
    need_hydra()
    from bdlbench.runs import configuration
    from bdlbench.runs.group import run_config
    from bdlbench.runs.job import make_job
    from bdlbench.store import Store

    splits, seeds = (2, 5) if options.quick else (20, 50)
    tiny = ("inference=map", "inference.schedule.num_warmup=2", "metrics=[lppd,rmse]", "progress=off")
    with tempfile.TemporaryDirectory() as folder:
        composed, labels = configuration.compose([*_NETWORK, *tiny, f"store.path={folder}/store"])
        whole = run_config(composed, labels)
        record = {name: value for name, value in whole.items() if name not in ("id", "schema", "config", "files")}
        store = Store(f"{folder}/store")
        for split in range(splits):
            for seed in range(seeds):
                one = {**composed, "seed": seed, "data": {**composed["data"], "split": split}}
                job = make_job(one, labels)
                if not store.has(job.id):
                    with store.writer(job.id, job.config) as writer:
                        writer.finish({**record, "seed": seed, "status": "complete", "reason": None})
        swept = (*_NETWORK, *tiny, f"data.split=range({splits})", f"seed=range({seeds})")
        again = functools.partial(_command, folder, "store", swept)
        before = _state(store)
        values = [again().wall for _ in range(1 if options.quick else 2)]
        if len(before) != splits * seeds or _state(store) != before:
            raise RuntimeError("the repeated sweep did not find all its runs: it is not what should be timed")
    what = f"a finished sweep of {splits * seeds:,} runs given again: whole command"
    return [Row(what, "s", values, 20.0, "stock Hydra composes 1,000 jobs in 197 s")]


def table(options: Options) -> list[Row]:
    """``Store.runs()`` over 10,000 records."""
    import pandas  # noqa: F401  # not what is timed

    from bdlbench.store import Store
    from bdlbench.store.records import encode

    count = 100 if options.quick else 10_000
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        record = _a_record(folder)
        for i in range(count):
            place = Path(folder) / f"{record['id']}{i}"
            place.mkdir()
            (place / "run.json").write_bytes(encode({**record, "id": place.name, "seed": i}))
        found: list[int] = []
        values = [seconds(lambda: found.append(len(store.runs()))) for _ in range(3)]
    if set(found) != {count + 1}:
        raise RuntimeError(f"{found} runs were listed, not {count + 1}")
    return [Row(f"Store.runs() over {count:,} records", "s", values, 2.0, "")]


def _a_record(folder: str) -> dict[str, Any]:
    """A record as a run leaves it, with all its metrics."""
    need_hydra()
    from bdlbench.runs.group import run

    short = ("inference=svi", "inference.schedule.num_warmup=5", "inference.schedule.num_samples=20")
    record = run(["data=diabetes", *short, "progress=off", f"store.path={folder}"])
    return {key: value for key, value in record.items() if key not in ("nonfinite", "record_sha256")}


def _schedule(num_warmup: int, num_samples: int) -> str:
    thinning = max(1, num_warmup // num_samples)
    return (
        f"inference.schedule={{num_chains: 2, num_warmup: {num_warmup}, num_samples: {num_samples}, "
        f"thinning: {thinning}, batch_size: 32}}"
    )


class Cost(NamedTuple):
    """Seconds of a process of its own: on the wall, and of all cores together, which other work disturbs less."""

    wall: float
    cores: float


def cost_of_process(arguments: list[str], env: dict[str, str]) -> Cost:
    before, start = os.times(), time.perf_counter()
    in_process(arguments, env)
    wall, after = time.perf_counter() - start, os.times()
    children = after.children_user + after.children_system - before.children_user - before.children_system
    return Cost(wall, children)


def _command(folder: str, store: str, overrides: tuple[str, ...], *, multirun: bool = True) -> Cost:
    """``bdlbench [-m] ...`` in a process of its own; the cache is the folder's."""
    env = environment() | {"JAX_COMPILATION_CACHE_DIR": f"{folder}/cache"}
    words = [*(["-m"] if multirun else []), *overrides, f"store.path={folder}/{store.replace(' ', '_')}"]
    return cost_of_process(["-c", _COMMAND, *words], env)


def _state(store: Any) -> dict[str, int]:
    """Ids of the finished runs and when each was written."""
    return {id: (store.path / id / "run.json").stat().st_mtime_ns for id in store.finished()}


@contextlib.contextmanager
def timed(names: Mapping[Any, tuple[str, ...]]) -> Iterator[Any]:
    """Seconds spent in these methods meanwhile, the outermost call of each nest alone."""
    total, depth = [0.0], [0]
    originals = {(owner, name): getattr(owner, name) for owner, methods in names.items() for name in methods}

    def wrap(method: Any) -> Any:
        @functools.wraps(method)
        def call(*args: Any, **options: Any) -> Any:
            depth[0] += 1
            start = time.perf_counter()
            try:
                return method(*args, **options)
            finally:
                depth[0] -= 1
                if not depth[0]:
                    total[0] += time.perf_counter() - start

        return call

    for (owner, name), method in originals.items():
        setattr(owner, name, wrap(method))
    try:
        yield lambda: total[0]
    finally:
        for (owner, name), method in originals.items():
            setattr(owner, name, method)
