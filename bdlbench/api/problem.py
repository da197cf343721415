"""Make a job from a caller's presets, options, objects and arrays, as a command makes one from a configuration."""

import dataclasses
import functools
import inspect
import itertools
import json
import numbers as number_types
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from bdlbench.api.inputs import (
    Inputs,
    Targets,
    classes_of,
    fit_inputs,
    numeric_targets,
    target_array,
    task_of,
)
from bdlbench.api.options import PARTS, Options
from bdlbench.data.dataset import Dataset, Scaler, make_dataset
from bdlbench.errors import ConfigError
from bdlbench.model.kept import Fixed
from bdlbench.model.trees import Unpacked
from bdlbench.options import coerce, parameters
from bdlbench.runs import configuration
from bdlbench.runs.job import Job, declared, make_stages, name_of_target
from bdlbench.sampling.programs import Program
from bdlbench.types import Precision, Schedule, Stage, Target

SCHEDULE = Schedule._fields
REGRESSION = ("gaussian", "gaussian_fixed", "gaussian_uniform_noise", "heteroscedastic")
BNN = "bdlbench.model.bnn.bnn"
DEFAULTS = {"network": "mlp", "prior": "fan_in", "likelihood": "auto"}
_NUMBERED: dict[int, tuple[Any, int]] = {}
_COUNT = itertools.count()


def _token(thing: Any) -> int:
    """A number that stands for an object in the key of a program. The object is kept, so that its id is not reused.

    An NNX module that is handed over as an instance gets a new number each time, since its weights, at which chains
    start, may have changed.
    """
    from flax import linen

    thing = thing[0] if isinstance(thing, tuple) else thing
    thing = thing.module if isinstance(thing, _Instance) and isinstance(thing.module, linen.Module) else thing
    if id(thing) not in _NUMBERED:
        _NUMBERED[id(thing)] = (thing, next(_COUNT))
    return _NUMBERED[id(thing)][1]


@dataclasses.dataclass(frozen=True, eq=False)
class Parts:
    """The model and the method as the caller gave them.

    Attributes
    ----------
    nodes : dict
        The sections (network, prior, likelihood, inference) that were given as configurations or presets.
    objects : dict
        The parts that were given as objects: Flax modules or factories, NumPyro models, functions.
    temperature : float
    labels : dict
        Names of the parts for a reader.
    """

    nodes: dict[str, Any]
    objects: dict[str, Any]
    temperature: float
    labels: dict[str, str]
    precision: Precision = "float32"
    """The floating-point precision of the computation."""
    fixed: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """Weights that have no posterior and stay at these values, by the names of their sites."""

    @property
    def has_network(self) -> bool:
        """Whether the model is a network with prior and likelihood, and not a NumPyro model of the caller's."""
        return "model" not in self.objects and self.nodes["model"]["_target_"] == BNN


def make_parts(
    *,
    network: Any,
    model: Any,
    prior: Any,
    likelihood: Any,
    temperature: float,
    inference: Any,
    options: Options,
    precision: Precision = "float32",
) -> Parts:
    """Sort the model and the method of a caller into configurations and objects, and check them.

    Raises
    ------
    ConfigError
        If a preset or an option does not exist, or a part is neither a preset, a mapping nor an object of the right
        kind.
    """
    nodes: dict[str, Any] = {}
    objects: dict[str, Any] = {}
    labels: dict[str, str] = {}
    if model is not None:
        if network is not None:
            raise ConfigError("network and model are both given: give a network with prior and likelihood, or a model.")
        for name, value in (("prior", prior), ("likelihood", likelihood)):
            if value is not None:
                raise ConfigError(f"{name} belongs to a network, but a NumPyro model has its own: leave it out.")
        if not callable(model):
            raise ConfigError(f"model is a {type(model).__name__}, but must be a NumPyro function (x, y=None).")
        _check_model(model)
        for name in PARTS:
            if given := options.parts[name]:
                raise ConfigError(
                    f"{name}.{min(given)} belongs to a network, but a NumPyro model has its own: bind its options with "
                    "functools.partial."
                )
        objects["model"] = model
        labels["model"] = _name(model)
    else:
        for name, value in (("network", network), ("prior", prior), ("likelihood", likelihood)):
            _place(name, DEFAULTS[name] if value is None else value, options.parts[name], nodes, objects, labels)
        if "network" in objects:
            objects["network"] = _network(objects["network"])
        nodes["model"] = configuration.preset("model", "bnn")
    _inference(inference, options.method, nodes, objects, labels)
    value = coerce("temperature", temperature, float)
    return Parts(configuration.coerced(nodes, ""), objects, value, labels, checked_precision(precision))


def checked_precision(precision: Any) -> Precision:
    """The precision that a caller asks for.

    Raises
    ------
    ConfigError
        If it is neither float32 nor float64.
    """
    name = getattr(precision, "__name__", str(precision))  # np.float64 and jnp.float64 are meant as their names
    if name not in ("float32", "float64"):
        raise ConfigError(f"precision={precision!r} is unknown: use float32 or float64.")
    return "float64" if name == "float64" else "float32"


def _place(
    name: str,
    value: Any,
    options: Mapping[str, Any],
    nodes: dict[str, Any],
    objects: dict[str, Any],
    labels: dict[str, str],
) -> None:
    given = {path: plain(f"{name}.{path}", option) for path, option in options.items()}
    if isinstance(value, str):
        nodes[name], labels[name] = configuration.preset(name, value, given), value
    elif isinstance(value, Mapping):
        if "_target_" not in value:
            raise ConfigError(f"{name} is a mapping without _target_: give {name}._target_ and its options.")
        nodes[name] = configuration.with_options(name, dict(value), given)
        labels[name] = str(value["_target_"]).rsplit(".", 1)[-1]
    elif name == "network" or callable(value) or (name == "prior" and hasattr(value, "event_dim")):
        if given:
            raise ConfigError(
                f"{name}.{min(given)} is an option of a preset, but {name} is your own: bind it with functools.partial."
            )
        objects[name], labels[name] = value, _name(value)
    else:
        wanted = "a distribution or a function of a weight's name and shape" if name == "prior" else "a function"
        raise ConfigError(f"{name} is a {type(value).__name__}: give a preset's name, a mapping, or {wanted}.")


def _name(thing: Any) -> str:
    while isinstance(thing, functools.partial):
        thing = thing.func
    return getattr(thing, "__name__", type(thing).__name__)


def _network(network: Any) -> Callable[..., Any]:
    """A factory of the module. A class or function is returned as it is; of an instance, a factory that returns it."""
    from flax import linen, nnx

    if isinstance(network, linen.Module | nnx.Module):
        return _Instance(network)
    if not callable(network):
        raise ConfigError(f"network is a {type(network).__name__}, but must be a Flax module, its class or a factory.")
    needed = [
        name
        for name, p in parameters(network).items()
        if p.default is p.empty
        and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        and name not in ("in_features", "out_features", "rngs")
        and not (inspect.isclass(network) and issubclass(network, linen.Module) and name in ("parent", "name"))
    ]
    if needed:
        raise ConfigError(
            f"network: {_name(network)} needs {needed[0]}, which a fit does not know: bind it with "
            f"functools.partial({_name(network)}, {needed[0]}=...)."
        )
    return network


class _Instance:
    """A factory that returns the module with which it was made."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __call__(self) -> Any:
        return self.module


def _check_model(model: Callable[..., Any]) -> None:
    known = parameters(model)
    free = [p for p in known.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [p.name for p in known.values() if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    if needed:
        raise ConfigError(f"model needs {needed[0]}: bind it with functools.partial(model, {needed[0]}=...).")
    if len(free) < 2:
        raise ConfigError("model takes no y: define it as model(x, y=None), and observe y with obs=y.")


def _inference(
    inference: Any, options: Mapping[str, Any], nodes: dict[str, Any], objects: dict[str, Any], labels: dict[str, str]
) -> None:
    given = {
        f"schedule.{name}" if name in SCHEDULE else name: plain(f"inference.{name}", v) for name, v in options.items()
    }
    if isinstance(inference, str):
        plainly = configuration.preset("inference", inference)
        if configuration.names_baseline(plainly):
            raise ConfigError(
                f"inference={inference!r} is a baseline without a posterior, which only the command bdlbench runs: choose "
                "another method, or use scikit-learn."
            )
        nodes["inference"] = configuration.with_options("inference", plainly, given)
        labels["inference"] = inference
    elif isinstance(inference, Mapping):
        if "_target_" not in inference or "schedule" not in inference:
            raise ConfigError("inference is a mapping without _target_ or schedule: give both, or a preset's name.")
        nodes["inference"] = configuration.with_options("inference", plain("inference", inference), given)
        labels["inference"] = str(inference["_target_"]).rsplit(".", 1)[-1]
    elif callable(inference):
        schedule = {
            name.removeprefix("schedule."): value for name, value in given.items() if name.startswith("schedule.")
        }
        other = set(given) - {f"schedule.{name}" for name in schedule}
        if other:
            raise ConfigError(
                f"inference.{min(other)} is an option of your own method: bind it with functools.partial."
            )
        lacking = [name for name in ("num_chains", "num_warmup", "num_samples", "thinning") if name not in schedule]
        if lacking:
            raise ConfigError(f"inference is your own method, whose schedule needs {lacking[0]}: give {lacking[0]}=...")
        objects["inference"] = inference, configuration.checked_schedule(schedule, "inference.schedule", None)
        labels["inference"] = _name(inference)
    else:
        raise ConfigError(f"inference is a {type(inference).__name__}: give a preset's name, a mapping or a factory.")


def plain(path: str, value: Any) -> Any:
    """Convert an option to plain data; NumPy numbers become Python numbers.

    Raises
    ------
    ConfigError
        For an object, which a configuration cannot hold.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, number_types.Integral):
        return int(value)
    if isinstance(value, number_types.Real):
        return float(value)
    if isinstance(value, Mapping):
        return {str(key): plain(f"{path}.{key}", item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(f"{path}.{i}", item) for i, item in enumerate(value)]
    raise ConfigError(
        f"{path} is a {type(value).__name__}, but options are plain values: give a mapping with _target_ and its options."
    )


# ---- rows


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Training rows in the caller's units, with the form of their inputs and targets."""

    x: np.ndarray
    y: np.ndarray
    inputs: Inputs
    targets: Targets
    notes: tuple[str, ...] = ()

    def dataset(self) -> Dataset:
        """The rows as the model sees them, in the caller's order. All of them are training rows."""
        inputs, targets = self.inputs, self.targets
        x = self.x if inputs.keep is None else self.x[:, inputs.keep]
        x = x if inputs.scaler is None else inputs.scaler.standardise(x)
        y = self.y if targets.scaler is None else targets.scaler.standardise(self.y)
        made = make_dataset(
            name="rows",
            task=targets.task,
            train=(x, y),
            standardize=False,
            x_scaler=inputs.scaler,
            num_classes=None if targets.classes is None else len(targets.classes),
            class_names=() if targets.classes is None else tuple(map(str, targets.classes.tolist())),
            feature_names=inputs.seen_names,
            target_name=targets.name,
            notes=self.notes,
        )
        if targets.scaler is None:
            return made
        return dataclasses.replace(made, y_scaler=targets.scaler)


def make_rows(parts: Parts, x: Any, y: Any, *, standardize: bool) -> Rows:
    """Check a caller's training rows, and find their form and scaling.

    Raises
    ------
    ConfigError
        If the rows do not fit each other or the model. The message says in one sentence what is wrong.
    """
    if not isinstance(standardize, bool):
        raise ConfigError(f"standardize={standardize!r} must be True or False.")
    network = parts.objects.get("network")
    sized = "network" in parts.nodes or (network is not None and "in_features" in parameters(network))
    if x is None:
        raise ConfigError("x is missing: give the inputs, one row a target.")
    inputs, raw, notes = fit_inputs(x, standardize=standardize, drop_constant=parts.has_network and sized)
    labels = target_array(y)
    if len(labels) != len(raw):
        raise ConfigError(f"x has {len(raw)} rows but y has {len(labels)}: give one target a row.")
    name = str(getattr(y, "name", None) or "y")
    if _task(parts, inputs, raw, labels) == "classification":
        targets = Targets("classification", classes=classes_of(labels), name=name)
        return Rows(raw, targets.codes(labels), inputs, targets, notes)
    values = numeric_targets(labels)
    if (np.ptp(values, axis=0) == 0).any():
        raise ConfigError("y is constant over the training rows, so there is nothing to learn: check y.")
    scaler = None
    if standardize and (parts.has_network or _real_valued(parts, inputs, raw, values)):
        scaler = Scaler(values.mean(axis=0), values.std(axis=0))
    return Rows(raw, values, inputs, Targets("regression", scaler=scaler, shape=values.shape[1:], name=name), notes)


def _task(parts: Parts, inputs: Inputs, x: np.ndarray, y: np.ndarray) -> str:
    label = parts.labels.get("likelihood")
    if "likelihood" in parts.nodes and label == "categorical":
        return "classification"
    if "likelihood" in parts.nodes and label in REGRESSION:
        return "regression"
    if parts.has_network:
        return task_of(y)
    import numpyro.distributions as dist

    if y.dtype.kind in "bUSO" or str(y.dtype).startswith("str"):
        return "classification"
    p = _observed(parts, inputs, x, np.asarray(y, np.int32 if y.dtype.kind in "iu" else np.float32))
    kinds = (dist.CategoricalLogits, dist.CategoricalProbs, dist.BernoulliLogits, dist.BernoulliProbs)
    return "classification" if isinstance(p, kinds) else "regression"


def _real_valued(parts: Parts, inputs: Inputs, x: np.ndarray, y: np.ndarray) -> bool:
    """Whether a NumPyro model's y may be any real number, so that it may be standardised."""
    import numpyro.distributions as dist

    support = _observed(parts, inputs, x, y).support
    base = getattr(support, "base_constraint", support)
    return base is dist.constraints.real


def _observed(parts: Parts, inputs: Inputs, x: np.ndarray, y: np.ndarray) -> Any:
    """The distribution of y given theta of a NumPyro model, traced on abstract values."""
    import jax

    found: list[Any] = []
    seen = x if inputs.keep is None else x[:, inputs.keep]

    def look(x: Any, y: Any) -> None:
        target = _make_target(parts, inputs, "regression", 1, {"temperature": 1.0}, {}, x, y)
        p = target.predictive(jnp.zeros(target.dim), x)
        while hasattr(p, "base_dist") and type(p).__name__ in ("ExpandedDistribution", "Independent"):
            p = p.base_dist
        found.append(p)

    jax.eval_shape(look, jnp.asarray(seen, inputs.dtype(float)), jnp.asarray(y))
    return found[0]


# ---- the job


def make_job(parts: Parts, rows: Rows, seed: int) -> Job:
    """Make the job of a fit: the computation that a run from the command line would do with these rows."""
    if isinstance(seed, np.integer):
        seed = int(seed)
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise ConfigError(f"seed={seed!r} must be a whole number from 0 to 2^32 - 1.")
    dataset = rows.dataset()
    config = {**parts.nodes, "temperature": parts.temperature, "precision": parts.precision, "seed": seed}
    program_half, numbers = configuration.split(config)
    numbers["temperature"] = parts.temperature
    program = make_program(parts, program_half, numbers, rows.inputs, rows.targets)
    target_id = (
        name_of_target(program_half, numbers, dataset)
        if not parts.fixed and not set(parts.objects) - {"inference"}
        else ""
    )
    config.setdefault("inference", {"_target_": parts.labels["inference"]})
    name = f"{parts.labels['inference']} fit"
    return Job(name, target_id, config, parts.labels, program, numbers, seed, dataset, {})


def make_program(
    parts: Parts, nodes: Mapping[str, Any], numbers: Mapping[str, float], inputs: Inputs, targets: Targets
) -> Program:
    """Make the program of a fit.

    If all parts of the model are given by configurations, the key of the program is that of the same run on the command
    line, so that both use the same compiled code. Without a method the program has no stages and serves only
    predictions.
    """
    stages: tuple[Stage, ...] = ()
    start: Any = "network"
    if "inference" in parts.objects:
        factory, schedule = parts.objects["inference"]
        stages = (Stage(parts.labels["inference"], lambda target, schedule, _: factory(target, schedule), schedule),)
    elif "inference" in nodes:
        stages = make_stages(nodes["inference"], numbers)
        start = nodes["inference"].get("start", "network")
    task, outputs = targets.task, num_outputs(targets)
    key: dict[str, Any] = {
        "program": {name: configuration.identity_of(node, name) for name, node in nodes.items()},
        "task": task,
        "outputs": outputs,
        "stages": [s.schedule for s in stages],
    }
    if parts.objects:
        key["objects"] = {name: _token(thing) for name, thing in parts.objects.items()}
    if parts.fixed:
        key["fixed"] = _token(parts.fixed)
    if inputs.tree is not None:
        key["tree"] = repr(inputs.tree)

    def build(numbers: Mapping[str, Any], x: Any, y: Any) -> Target:
        return _make_target(parts, inputs, task, outputs, numbers, nodes, x, y)

    return Program(json.dumps(key, sort_keys=True), build, stages, start)


def num_outputs(targets: Targets) -> int:
    """The ``num_outputs`` of a likelihood: the number of classes, or of targets."""
    return (targets.shape[0] if targets.shape else 1) if targets.classes is None else len(targets.classes)


def _make_target(
    parts: Parts,
    inputs: Inputs,
    task: Any,
    outputs: int,
    numbers: Mapping[str, Any],
    nodes: Mapping[str, Any],
    x: Any,
    y: Any,
) -> Target:
    """Make the target. It is called while JAX traces, so that the numbers are tracers."""
    from bdlbench.model.target import make_target

    return make_target(build_model(parts, inputs, task, outputs, numbers, nodes), x, y, numbers["temperature"])


def build_model(
    parts: Parts, inputs: Inputs, task: Any, outputs: int, numbers: Mapping[str, Any], nodes: Mapping[str, Any]
) -> Callable[..., None]:
    """Make the NumPyro model ``(x, y=None)`` over packed rows."""
    call, fill = configuration.call, configuration.fill
    objects = parts.objects
    if "model" in objects:
        model = objects["model"]
    else:
        node = fill(nodes["model"], numbers)
        needs = parameters(configuration.target_of(node, "model"))
        given: dict[str, Any] = {}
        if "network" in needs:
            given["network"] = objects.get("network") or declared(fill(nodes["network"], numbers), "network")
        if "prior" in needs:
            prior = objects["prior"] if "prior" in objects else call(fill(nodes["prior"], numbers), "prior")()
            given["prior"] = _prior(prior)
        if "likelihood" in needs:
            factory = objects.get("likelihood") or call(fill(nodes["likelihood"], numbers), "likelihood")
            given["likelihood"] = factory(task, outputs)
        model = functools.partial(call(node, "model"), **given)
    if parts.fixed:
        model = Fixed(model, parts.fixed)
    if inputs.tree is None:
        return model
    return Unpacked(model, inputs.tree)


def _prior(prior: Any) -> Callable[..., Any]:
    import numpyro.distributions as dist

    return (lambda name, shape: prior) if isinstance(prior, dist.Distribution) else prior
