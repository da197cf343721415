"""Jobs: make a job from a configuration, name its run and its target, and check it before anything is compiled."""

import dataclasses
import functools
import hashlib
import json
import math
import os
import typing
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bdlbench.baselines.base import Baseline
from bdlbench.data.dataset import Dataset, default_dtype
from bdlbench.errors import ConfigError
from bdlbench.inference import schedules
from bdlbench.options import coerce, parameters
from bdlbench.runs import observed, stages, tuned, warm_start
from bdlbench.runs.configuration import (
    ROWS_INTERACT,
    STAGE_KEYS,
    TARGET_SECTIONS,
    call,
    check_optimizers,
    check_options,
    checked_schedule,
    coerced,
    fill,
    identity_of,
    names_baseline,
    refuse_missing,
    split,
    target_of,
    without_auto,
)
from bdlbench.runs.start import with_init
from bdlbench.sampling.devices import computing_in
from bdlbench.sampling.programs import Numbers, Program
from bdlbench.types import Data, Method, Precision, Schedule, Stage, Target

RESULT_VERSION = 3
"""A part of the identity of every run. It is increased when the same configuration gives different results."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A run to be computed. Its configuration is checked and its data are loaded, but nothing is compiled.

    Attributes
    ----------
    id : str
        The id of the run, ``<data>-<inference>-s<seed>-<hash>``.
    target_id : str
        The hash of the posterior, see :func:`name_of_target`; empty for a baseline, which has none.
    config, labels : mapping
        The resolved configuration, and the chosen option of each group.
    program : Program
    numbers : mapping
        The floats of the program by their dotted paths.
    seed : int
    dataset : Dataset
    metrics : mapping
        Metrics by name.
    parent : Parent or None
        The stored run from which this run starts.
    baseline : Baseline or None
        What is fitted in place of a chain. Its program has no stages.
    """

    id: str
    target_id: str
    config: Mapping[str, Any]
    labels: Mapping[str, str]
    program: Program
    numbers: Mapping[str, float]
    seed: int
    dataset: Dataset
    metrics: Mapping[str, Callable[..., Any]]
    parent: warm_start.Parent | None = None
    baseline: Baseline | None = None

    @property
    def num_chains(self) -> int:
        """The number of chains, which is the same in all stages; 1 for a baseline."""
        return 1 if self.baseline else self.program.stages[-1].schedule.num_chains

    @property
    def independent(self) -> bool:
        """Whether the draws of a chain are independent, because they are drawn from a fitted distribution."""
        return self.baseline is None and self.program.stages[-1].schedule.thinning == 0

    @property
    def precision(self) -> Precision:
        """The floating-point precision of the run's computations."""
        return precision_of(self.config)


def precision_of(config: Mapping[str, Any]) -> Precision:
    """The precision that a configuration asks for. Configurations older than this option mean float32."""
    return typing.cast(Precision, config.get("precision", "float32"))


def make_job(config: Mapping[str, Any], labels: Mapping[str, str], dataset: Dataset | None = None) -> Job:
    """Make a job: load the data, split program from numbers and name the run. :func:`check_job` checks it further.

    If ``dataset`` is given, it replaces the one that the configuration names.

    Raises
    ------
    ConfigError
        If an option is missing or does not fit. Nothing is compiled or written before.
    """
    refuse_missing(config)
    if config["inference"].get("init") is not None and config.get("warm_start") is not None:
        raise ConfigError("inference.init and warm_start both say where chains start: give one of them.")
    if not names_baseline(config["inference"]):
        config = {**config, "inference": with_init(config["inference"])}
    check_options(config)
    tuned.check_tuned_for(config)
    with computing_in(precision_of(config)):
        return _make_job(config, labels, dataset)


def _make_job(config: Mapping[str, Any], labels: Mapping[str, str], dataset: Dataset | None) -> Job:
    config = {**coerced(config, ""), "temperature": coerce("temperature", config["temperature"], float)}
    dataset = load_data(config) if dataset is None else dataset
    baseline = None
    if names_baseline(config["inference"]):
        baseline, config, labels = _baseline(config, labels)
    config, parent = warm_start.resolve(config, dataset.checksum)
    program_half, numbers = split(config)
    numbers["temperature"] = config["temperature"]
    program = make_program(program_half, numbers, dataset)
    target_id = "" if baseline else name_of_target(program_half, numbers, dataset)
    metrics = make_metrics(config["metrics"])
    identity = {
        "version": RESULT_VERSION,
        "program": program.key,
        "numbers": numbers,
        "seed": config["seed"],
        "data": dataset.checksum,
        "diagnosed_rows": config["store"]["predictive_rows"],
    }
    if parent is not None:
        identity["warm_start"] = parent.id
    if precision_of(config) != "float32":  # the default has no entry, so that runs keep the ids they had without it
        identity["precision"] = config["precision"]
    digest = short_hash(json.dumps(identity, sort_keys=True))
    name = "-".join(labels.get(part, part) for part in ("data", "inference"))
    run_id = f"{name}-s{config['seed']}-{digest}"
    return Job(run_id, target_id, config, labels, program, numbers, config["seed"], dataset, metrics, parent, baseline)


def _baseline(config: Mapping[str, Any], labels: Mapping[str, str]) -> tuple[Baseline, dict[str, Any], dict[str, str]]:
    """Make the baseline of a configuration, and leave out the sections of the model if it does not use them.

    A sweep over networks then has one run of it, and its record names no network.
    """
    name = labels.get("inference", "inference")
    if config.get("warm_start") is not None:
        raise ConfigError(
            f"warm_start={config['warm_start']}: {name} is a baseline, which starts from no draws: use null."
        )
    if config["temperature"] != 1:
        raise ConfigError(
            f"temperature={config['temperature']:g}: {name} is a baseline, which has no posterior to be tempered: use 1."
        )
    made = typing.cast(Baseline, call(config["inference"], "inference", partial=False))
    unused = () if made.uses_network else TARGET_SECTIONS
    kept = {key: value for key, value in config.items() if key not in unused}
    return made, kept, {key: value for key, value in labels.items() if key not in unused}


def name_of_target(program: Mapping[str, Any], numbers: Numbers, dataset: Dataset) -> str:
    """Return a hash of the posterior. It does not depend on the method, the seed or the precision of a run.

    It depends on the model, network, prior, likelihood and temperature, and on the training rows with their scaling.
    The likelihood ``auto`` is the same as the one that it stands for.
    """
    filled = {name: fill(program[name], numbers) for name in TARGET_SECTIONS if name in program}
    if "likelihood" in filled:
        filled["likelihood"] = without_auto(filled["likelihood"], dataset.task, "_target_")
    parts = {name: identity_of(node, name) for name, node in filled.items()}
    rest = {"temperature": numbers["temperature"], "task": dataset.task, "rows": dataset.rows_checksum}
    return short_hash(json.dumps(parts | rest, sort_keys=True))


def short_hash(text: str) -> str:
    """Return the first ten hexadecimal digits of the SHA-256 hash. 40 bits suffice for a million runs."""
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def make_metrics(options: Mapping[str, Mapping[str, Any]]) -> dict[str, Callable[..., Any]]:
    """Return the metrics by name, made from their configurations."""
    return {name: _metric(name, json.dumps(node, sort_keys=True)) for name, node in options.items()}


@functools.cache
def _metric(name: str, node: str) -> Callable[..., Any]:
    found = call(json.loads(node), f"metrics.{name}")
    # A partial made by Hydra checks its target again in each call, which takes longer than most metrics.
    return functools.partial(found.func, *found.args, **found.keywords)


def load_data(config: Mapping[str, Any]) -> Dataset:
    """Return the data set that the configuration chooses. The last few data sets are kept in memory."""
    node = _with_files(config["data"], config["paths"])
    # A changed file or another precision gives another data set.
    paths = [os.path.expanduser(v) for v in config["data"].values() if isinstance(v, str)]
    stats = [os.stat(path) for path in paths if os.path.isfile(path)]
    state = (str(default_dtype()), *((stat.st_mtime_ns, stat.st_size) for stat in stats))
    return _load_data(json.dumps(node, sort_keys=True), state)


def _with_files(node: Any, paths: Mapping[str, Any]) -> Any:
    """Return the node of a data set in which every factory that reads files gets the cache folder and the mirror."""
    if not isinstance(node, Mapping):
        return node
    out = {key: _with_files(value, paths) for key, value in node.items()}
    if "_target_" in out and "files" in parameters(target_of(out, "data")):
        out["files"] = {"_target_": "bdlbench.data.fetch.files_at", "cache": paths["data"], "mirror": paths["mirror"]}
    return out


@functools.lru_cache(maxsize=8)
def _load_data(node: str, state: tuple[Any, ...]) -> Dataset:
    return typing.cast(Dataset, call(json.loads(node), "data", partial=False))


def make_program(program: Mapping[str, Any], numbers: Numbers, dataset: Dataset) -> Program:
    """Make the program, whose target and methods are functions of the numbers and can be traced.

    Raises
    ------
    ConfigError
        If the data set has no training rows, or a stage is not configured correctly.
    """
    if dataset.task == "density":
        raise ConfigError(
            f"data '{dataset.name}' has no rows to learn from: choose a regression or classification set."
        )
    inference = program["inference"]
    all_stages = () if names_baseline(inference) else make_stages(inference, numbers)
    key = {
        "program": {name: identity_of(node, name) for name, node in program.items()},
        "task": dataset.task,
        "outputs": dataset.num_outputs,
        "stages": [s.schedule for s in all_stages],
    }
    return Program(
        key=json.dumps(key, sort_keys=True),
        make_target=functools.partial(build_target, program, dataset.task, dataset.num_outputs),
        stages=all_stages,
        start=inference.get("start", "network"),
    )


def make_stages(inference: Mapping[str, Any], numbers: Numbers) -> tuple[Stage, ...]:
    """Check the section ``inference`` and return its stages: those in ``before``, then the method itself."""
    start = inference.get("start", "network")
    if start not in ("prior", "network"):
        raise ConfigError(f"inference.start={start!r} is unknown: use prior or network.")
    earlier = inference.get("before") or []
    if not isinstance(earlier, list) or not all(isinstance(node, Mapping) and "_target_" in node for node in earlier):
        raise ConfigError("inference.before must be a list of stages, each with _target_ and schedule, or [].")
    last = checked_schedule(fill(inference["schedule"], numbers), "inference.schedule", None)
    before = [
        make_stage(node, path, checked_schedule(fill(node.get("schedule"), numbers), f"{path}.schedule", last))
        for path, node in ((f"inference.before.{i}", node) for i, node in enumerate(earlier))
    ]
    return (*before, make_stage(inference, "inference", last))


def build_target(program: Mapping[str, Any], task: Any, num_outputs: int, numbers: Numbers, x: Any, y: Any) -> Target:
    """Make the target of a program for training rows ``x`` and ``y``. During tracing the numbers are tracers."""
    # Importing Flax and NumPyro takes a second, and only a model needs them.
    from bdlbench.model.target import make_target

    node = fill(program["model"], numbers)
    needs = parameters(target_of(node, "model"))
    parts: dict[str, Any] = {}
    for name in ("network", "prior", "likelihood"):
        if name in needs:
            if name not in program:
                raise ConfigError(f"{name} is missing, but the model needs it: choose one with {name}=<option>.")
            parts[name] = declared(fill(program[name], numbers), name)
    if "prior" in parts:
        parts["prior"] = parts["prior"]()
    if "likelihood" in parts:
        parts["likelihood"] = parts["likelihood"](task, num_outputs)
    model = functools.partial(declared(node, "model"), **parts)
    return make_target(model, x, y, numbers["temperature"])


def declared(node: Mapping[str, Any], path: str) -> Any:
    """The result of :func:`call` for a node, with the attribute ``rows_interact`` if the node declares it."""
    made = call({key: value for key, value in node.items() if key != ROWS_INTERACT}, path)
    if node.get(ROWS_INTERACT):
        made.rows_interact = True
    return made


def make_stage(node: Mapping[str, Any], path: str, schedule: Schedule) -> Stage:
    """Make a stage. Its factory instantiates the method from the configuration each time the stage is traced."""
    hyper = {key: value for key, value in node.items() if key not in STAGE_KEYS}

    def factory(target: Target, schedule: Schedule, numbers: Numbers) -> Method:
        return call(fill(hyper, numbers), path)(target, schedule)

    return Stage(node["_target_"].rsplit(".", 1)[-1], factory, schedule)


# The combinations of program, numbers and shapes that have been checked, so that a sweep over splits checks one of
# them.
_CHECKED: set[Any] = set()


def check_job(job: Job) -> Job:
    """Build the program once with the numbers themselves, so that factories can check ranges and shapes can fail.

    Returns
    -------
    Job
        The job with the rows as the model sees them; see :func:`seen`.

    Raises
    ------
    ConfigError
        If something does not fit, before anything is compiled for the run or written. The message is one sentence.
    """
    with computing_in(job.precision):
        return _check_baseline(job, job.baseline) if job.baseline else _check_job(job)


def _check_baseline(job: Job, baseline: Baseline) -> Job:
    """Raise ConfigError if a baseline does not fit the data, before anything is fitted or written."""
    train, task, name = job.dataset.train, job.dataset.task, job.labels.get("inference", "inference")
    if task not in baseline.tasks:
        raise ConfigError(
            f"inference={name} is for {' or '.join(baseline.tasks)}, and data '{job.dataset.name}' is a {task}: "
            "choose another method or data set."
        )
    if train.y.ndim > 1:
        raise ConfigError(
            f"inference={name} predicts one target, and data '{job.dataset.name}' has {train.y.shape[1]}: choose one."
        )
    baseline.check(len(train.y), math.prod(train.x.shape[1:]), task)
    if not baseline.uses_network:
        return job
    import jax

    def build() -> Any:
        x, y = jax.numpy.asarray(train.x), jax.numpy.asarray(train.y)
        target = job.program.make_target(job.numbers, x, y)
        if target.needs_key:
            raise ConfigError(
                f"inference={name} needs a log likelihood that is the same number each time: use another model."
            )
        return target.log_density(jax.numpy.zeros(target.dim), Data(x, y, len(train.y)))

    jax.eval_shape(build)
    observed.check_values(job.program, job.numbers, job.dataset)
    return seen(job)


def _check_representable(numbers: Numbers) -> None:
    """Raise ConfigError for a number that would become infinite or zero in the precision of the run."""
    kind = np.finfo(default_dtype())
    smallest, largest = float(kind.tiny), float(kind.max)
    for path, value in numbers.items():
        if value != 0 and math.isfinite(value) and not smallest <= abs(value) <= largest:
            raise ConfigError(
                f"{path}={value:g} cannot be held in {kind.dtype}, which reaches from {smallest:.3g} to {largest:.3g}: "
                "give a number in this range."
            )


def _check_job(job: Job) -> Job:
    import jax
    import jax.numpy as jnp

    if not 0 < job.numbers["temperature"] < math.inf:
        raise ConfigError(
            f"temperature={job.numbers['temperature']} must be a positive finite number: use 1 for the Bayesian posterior."
        )
    check_optimizers(job.config["inference"], "inference")
    _check_representable(job.numbers)
    nodes = stages.nodes(job.config["inference"])
    size = len(job.dataset.train.y)

    parts = job.dataset.train, job.dataset.validation

    def build() -> Any:
        x, y = jnp.asarray(job.dataset.train.x), jnp.asarray(job.dataset.train.y)
        data = Data(x, y, size, None if parts[1] is None else (jnp.asarray(parts[1].x), jnp.asarray(parts[1].y)))
        target = job.program.make_target(job.numbers, data.x, data.y)
        observed.remember(job.program, job.dataset, target)
        if target.needs_key:
            data = data._replace(key=jax.random.key(0))
        for i, (path, stage) in enumerate(zip(nodes, job.program.stages, strict=True)):
            if target.factor_reads_rows and stage.schedule.batch_size is not None:
                raise ConfigError(
                    f"{path}.schedule.batch_size={stage.schedule.batch_size}: a numpyro.factor of the model reads the rows, "
                    "and its value on a batch does not estimate that on all rows: set batch_size to null, or observe y "
                    "with the term as the log_prob of a distribution."
                )
            with stages.named(path):
                stages.check(stage, target, data, job.numbers, first=i == 0, parent=job.parent)
        # Another number of rows shows whether a shape of the model is fixed.
        try:
            job.program.make_target(job.numbers, jnp.concatenate([x, x[:1]]), jnp.concatenate([y, y[:1]]))
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"model: it cannot be evaluated on {size + 1} rows in place of {size}: take all shapes from x, and put "
                "what belongs to rows into x."
            ) from error
        return target.log_density(jnp.zeros(target.dim), data)

    shapes = tuple(
        None if part is None else (part.x.shape, part.x.dtype.str, part.y.shape, part.y.dtype.str) for part in parts
    )
    key = job.program.key, tuple(sorted(job.numbers.items())), shapes, job.parent is None, job.precision
    if key not in _CHECKED:
        for (path, node), stage in zip(nodes.items(), job.program.stages, strict=True):
            schedules.check_learning_rates(node, path, stage.schedule, functools.partial(call, partial=False))
        jax.eval_shape(build)
        _CHECKED.add(key)
    observed.check_values(job.program, job.numbers, job.dataset)
    job = seen(job)
    warm_start.thetas([job])
    return job


def seen(job: Job) -> Job:
    """The job with its rows as its model sees them: rows that a mask hides are not scored, and the model's notes."""
    if job.baseline and not job.baseline.uses_network:
        return job
    with computing_in(job.precision):
        return dataclasses.replace(job, dataset=observed.as_seen(job.program, job.numbers, job.dataset))
