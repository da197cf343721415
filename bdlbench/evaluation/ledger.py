r"""The parts of the squared bias of a run, found by successive interventions that share their random numbers.

Each intervention is added to those before it, so that the changes add up to the squared bias of the run: more draws, half
the step, the full batch, a start at draws of the reference, and the rest. Two runs that differ by one of them use the same
keys, so that most of the Monte Carlo error is the same in both and cancels in the difference. For a fitted distribution,
restarts take the place of all these interventions.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdlbench.errors import ConfigError
from bdlbench.metrics.fidelity import Bias, fidelity
from bdlbench.references import artefacts
from bdlbench.runs import against
from bdlbench.runs.arrangement import arrange
from bdlbench.runs.job import Job
from bdlbench.runs.stored_draws import load_job
from bdlbench.sampling import lanes
from bdlbench.sampling.clock import Clock
from bdlbench.sampling.devices import computing_in
from bdlbench.sampling.programs import Program
from bdlbench.sampling.sample import Sample, Sampler
from bdlbench.store import Store
from bdlbench.types import Array, Data, Info, Method, Schedule, Stage, Target

RESTARTS = 20
STEP_SIZE = "inference.step_size"


class Entry(NamedTuple):
    """One line of a ledger.

    Attributes
    ----------
    name : str
    bias : Bias or None
        Bias at the test points with this intervention and all before it; None if the intervention does not apply.
    change : float or None
        The amount by which the intervention reduces the squared bias.
    note : str
    """

    name: str
    bias: Bias | None
    change: float | None
    note: str = ""


class Ledger(NamedTuple):
    """The entries of a run, the first without an intervention; the changes and the rest add up to its squared bias."""

    reference: str
    certified: bool
    entries: list[Entry]
    rest: float
    num_grads: float


def ledger(
    store: Store, run_id: str, *, trust: bool = False, say: Callable[[str], object] = lambda text: None
) -> Ledger:
    """Repeat a stored run with one intervention after another, in memory.

    Parameters
    ----------
    store, run_id
        A finished run whose posterior is that of a reference.
    trust : bool
        See :func:`~bdlbench.runs.stored_draws.load_job`.
    say : callable
        Called with each entry when it is known.

    Raises
    ------
    ConfigError
        If the run has no reference, started from another run, or a chain diverges.
    """
    record = store.record(run_id)
    name, fault = against.reference_of(str(record.get("target_id")))
    if name is None:
        raise ConfigError(f"id: no reference has the posterior of run '{run_id}': choose one with `reference=<name>`.")
    if fault is not None:
        raise ConfigError(fault)
    if record.get("warm_start"):
        raise ConfigError(
            f"id: run '{run_id}' started from another run, which is not repeated: choose one that did not."
        )
    job = load_job(store, run_id, trust=trust)
    with computing_in(job.precision):
        return _ledger(job, name, say)


class _Setting(NamedTuple):
    """The changes of the last stage of a run."""

    num_samples: int
    keys: int
    """1: the step as it is; 2: with the noise of two keys; 0: as two steps of half the size."""
    full_batch: bool
    from_reference: bool


def _ledger(job: Job, name: str, say: Callable[[str], object]) -> Ledger:
    reference = artefacts.load(name)
    measure = _Measure(job, reference)
    if job.independent:
        return _of_restarts(job, measure, say)
    schedule = job.program.stages[-1].schedule
    can_halve = STEP_SIZE in job.numbers and _method(job).halves
    base = _Setting(2 * schedule.num_samples, 2 if can_halve else 1, False, False)
    setting, entries = base, [Entry("the run, repeated", None, None)]
    plan: list[tuple[str, dict[str, Any], str]] = [
        ("twice as many draws", {}, ""),
        (
            "half the step",
            {"keys": 0},
            "" if can_halve else "its step cannot be halved: it is adjusted, tuned, or a schedule",
        ),
        ("full batch", {"full_batch": True}, "" if schedule.batch_size else "it uses all rows in every step"),
        ("start at the reference", {"from_reference": True}, ""),
    ]
    price, last = 0.0, None
    for title, change, why_not in plan:
        if why_not:
            entries.append(Entry(title, None, None, f"not applicable: {why_not}"))
            say(f"{title}: {entries[-1].note}")
            continue
        setting = setting._replace(**change)
        sample = measure.sample(setting)
        price += float(sample.num_grads.sum())
        if last is None:
            last = measure.bias(sample, schedule.num_samples)
            entries[0] = Entry(entries[0].name, last, None)
        now = measure.bias(sample)
        entries.append(Entry(title, now, last.squared - now.squared))
        last = now
        say(f"{title}: squared bias {now.squared:.4g}")
    assert last is not None
    return Ledger(name, reference.certified, entries, last.squared, price)


def _of_restarts(job: Job, measure: "_Measure", say: Callable[[str], object]) -> Ledger:
    """Of a fitted distribution: the best of several restarts, each with the same number of chains."""
    found, price = [], 0.0
    for restart in range(RESTARTS):
        sample = measure.sample(None, seed=job.seed + restart)
        price += float(sample.num_grads.sum())
        found.append(measure.bias(sample))
        say(f"restart {restart + 1} of {RESTARTS}: squared bias {found[-1].squared:.4g}")
    best = min(found, key=lambda bias: bias.squared)
    entries = [
        Entry("the run, repeated", found[0], None),
        *(Entry(title, None, None, "not applicable: the draws are those of a fitted distribution")
          for title in ("twice as many draws", "half the step", "full batch", "start at the reference")),
        Entry(
            f"best of {RESTARTS} restarts", best, found[0].squared - best.squared,
            "an upper bound of what restarts remove, as the best is chosen by the reference",
        ),
    ]  # fmt: skip
    reference = measure.reference
    return Ledger(reference.problem.name, reference.certified, entries, best.squared, price)


def _method(job: Job) -> Method:
    """The method of the last stage, made with the numbers themselves."""
    stage, found = job.program.stages[-1], []

    def look() -> None:
        target = job.program.make_target(
            job.numbers, jnp.asarray(job.dataset.train.x), jnp.asarray(job.dataset.train.y)
        )
        found.append(stage.factory(target, stage.schedule, job.numbers))

    jax.eval_shape(look)
    return found[0]


class _Measure:
    """Repeats a job with a setting, and compares its draws with the reference."""

    def __init__(self, job: Job, reference: artefacts.Reference) -> None:
        self.job, self.reference = job, reference
        shared, lane, _, _ = arrange([job])
        task = job.dataset.task
        assert task != "density"  # no reference has this task
        self.predictor = against.predictor_at(reference, job, task, lanes.replicate(shared), lane, Clock())
        self.chosen, self.prepared = against.prepared(reference.problem.name)["test"]
        train, held = job.dataset.train, job.dataset.validation
        self.data = Data(train.x, train.y, len(train.y), None if held is None else (held.x, held.y))
        self.samplers: dict[_Setting | None, Sampler] = {}

    def sample(self, setting: _Setting | None, seed: int | None = None) -> Sample:
        """Draws of the job with this setting, or as it is (None)."""
        job = self.job
        if setting not in self.samplers:
            stages = job.program.stages
            if setting is not None:
                stages = (*(() if setting.from_reference else stages[:-1]), changed(stages[-1], setting))
            program = Program("ledger", job.program.make_target, stages, job.program.start)
            self.samplers[setting] = Sampler(program, job.num_chains, 1)
        theta = None
        if setting is not None and setting.from_reference:
            kept = self.reference.weights
            theta = kept[np.arange(job.num_chains) % len(kept)].astype(job.dataset.train.x.dtype)
        key = jax.random.key(job.seed if seed is None else seed)
        return self.samplers[setting](self.data, key, numbers=job.numbers, theta=theta)

    def bias(self, sample: Sample, num_draws: int | None = None) -> Bias:
        """The bias at the test points of the first draws of each chain, or of all draws."""
        draws = sample.draws[:, :num_draws]
        if not sample.ok.all() or not np.isfinite(draws).all():
            raise ConfigError("ledger: a chain is not finite with one of the interventions: use a smaller step size.")
        every = -(-draws.shape[0] * draws.shape[1] // against.MOST_DRAWS)
        values = against.values_at(
            self.reference, self.predictor, self.job.dataset.y_scaler, draws[:, ::every], sample.anchor
        )
        alone = self.job.independent and len(values) == 1
        return fidelity(values[..., self.chosen], self.prepared, independent=alone, joint=False).bias


def changed(stage: Stage, setting: _Setting) -> Stage:
    """A stage with another number of draws and batch, and its step as it is, with shared noise, or as two half steps."""
    schedule = stage.schedule._replace(num_samples=setting.num_samples)
    if setting.full_batch:
        schedule = schedule._replace(batch_size=None)

    def factory(target: Target, schedule: Schedule, numbers: Any) -> Method:
        if setting.keys == 1:
            return stage.factory(target, schedule, numbers)
        if setting.keys == 0:
            numbers = {**numbers, STEP_SIZE: numbers[STEP_SIZE] / 2}
        method = stage.factory(target, schedule, numbers)
        around = _whole if setting.keys == 2 else _halves
        warm = None if method.warm is None else around(method.warm)
        return method._replace(step=around(method.step), warm=warm)

    return Stage(stage.name, factory, schedule)


_Step = Callable[[Array, Array, Any, Data], tuple[Any, Info]]


def _whole(step: _Step) -> _Step:
    """A step with the noise of both of its halves."""

    def whole(key: Array, t: Array, state: Any, data: Data) -> tuple[Any, Info]:
        return step(jnp.stack([jax.random.fold_in(key, half) for half in range(2)]), t, state, data)

    return whole


def _halves(step: _Step) -> _Step:
    """Two steps, of half the size, on the batch of the whole step: what its noise adds is left to the full batch."""

    def halves(key: Array, t: Array, state: Any, data: Data) -> tuple[Any, Info]:
        state, first = step(jax.random.fold_in(key, 0), t, state, data)
        state, info = step(jax.random.fold_in(key, 1), t, state, data)
        return state, {**info, "num_grads": first["num_grads"] + info["num_grads"]}

    return halves
