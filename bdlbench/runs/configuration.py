"""Read configurations: compose and check them, split them into program and numbers, and instantiate their factories.

A configuration has two parts. Names, whole numbers and booleans change the structure of the computation. They form the
*program*, which is compiled once. Floats only change values. They are the *numbers*, arguments of the compiled program.
Therefore a sweep over splits, seeds and step sizes compiles once, and the code of a method needs nothing for it.
"""

import dataclasses
import difflib
import functools
import math
import re
import sys
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bdlbench import options
from bdlbench.baselines.base import is_baseline
from bdlbench.errors import ConfigError
from bdlbench.options import at_least, non_negative, positive, static_names
from bdlbench.runs.outcome import no_entry
from bdlbench.runs.start import with_init
from bdlbench.types import Schedule

TARGET_SECTIONS = ("model", "network", "prior", "likelihood")
"""The sections of a configuration that define the posterior, together with the temperature and the training rows."""
PROGRAM_SECTIONS = (*TARGET_SECTIONS, "inference")
LABELS = ("data", "model", "network", "prior", "likelihood", "inference")
MOVED: dict[str, str] = {}
"""The new ``_target_`` of each factory that has moved, by its old one, so that stored configurations can be loaded.

It is empty, because no factory that a configuration of this package names has moved so far.
"""
STAGE_KEYS = ("schedule", "start", "before", "init")
"""Keys of an inference configuration that are not its factory's parameters."""

ROWS_INTERACT = "rows_interact"
"""Key of a network or a model by which it declares that its outputs at a row depend on other rows."""


def conf_dir() -> Path:
    """Return the folder ``conf``: inside the package if it is installed, beside the package in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "conf"
    return inside if inside.exists() else package.parent / "conf"


@dataclasses.dataclass(frozen=True)
class Number:
    """The placeholder of a float in a program. ``path`` is its dotted path in the configuration."""

    path: str


def compose(overrides: list[str] | None = None) -> tuple[dict[str, Any], dict[str, str]]:
    """Compose a configuration as the command line does.

    Returns
    -------
    config : dict
        The resolved configuration.
    labels : dict
        The chosen option of each group in ``LABELS``.
    """
    with hydra.initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
        config = hydra.compose("config", overrides=overrides or [], return_hydra_config=True)
        check_tuned(overrides or [], GlobalHydra.instance().config_loader().get_group_options("tuned"))
    choices = dict(config.hydra.runtime.choices)
    return resolve(without_hydra(config)), labels_of(choices)


def preset(group: str, name: str, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Read one option of a configuration group from its file, without its defaults list and without Hydra.

    Parameters
    ----------
    group, name : str
        The file is ``conf/<group>/<name>.yaml``.
    options : mapping, optional
        Values to set, by their dotted path in the group, such as ``schedule.num_samples``. A mapping is merged with the
        mapping in the file.

    Raises
    ------
    ConfigError
        If the group has no option of this name, or a value cannot be stored in a configuration.
    """
    file = conf_dir() / group / f"{name}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in (conf_dir() / group).glob("*.yaml")))
        raise ConfigError(f"{group}={name!r} is unknown: choose one of {known}.")
    loaded = typing.cast(DictConfig, OmegaConf.load(file))
    node = OmegaConf.masked_copy(loaded, [str(key) for key in loaded if key != "defaults"])
    return with_options(group, node, options or {})


def with_options(group: str, node: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a section of a configuration, resolved, with values set by their dotted paths."""
    config = OmegaConf.create({group: node})
    for path, value in options.items():
        _check_entries(config, f"{group}.{path}")
        try:
            OmegaConf.update(config, f"{group}.{path}", value, merge=True)
        except (OmegaConfBaseException, AttributeError, TypeError, IndexError) as error:
            raise ConfigError(f"{group}.{path}={value!r} cannot be set: {_first_line(error)}.") from error
    found = typing.cast(dict[str, Any], resolve(config)[group])
    return with_init(found) if group == "inference" else found


def _check_entries(config: DictConfig, path: str) -> None:
    """Raise ConfigError if a dotted path names an entry that a list does not have."""
    node: Any = config
    parts = path.split(".")
    for i, key in enumerate(parts):
        if isinstance(node, ListConfig):
            if not (key.isascii() and key.isdigit() and int(key) < len(node)):
                raise ConfigError(no_entry(".".join(parts[:i]), key, len(node)))
            node = node[int(key)]
        elif isinstance(node, DictConfig):
            node = node.get(key)
        else:
            return


def default_metric_nodes() -> dict[str, Any]:
    """Return the section ``metrics`` of a run whose command chooses no metrics."""
    listed = typing.cast(DictConfig, OmegaConf.load(conf_dir() / "config.yaml")).defaults
    names = next(entry["metrics"] for entry in listed if "metrics" in entry)
    return {name: preset("metrics", name)[name] for name in names}


def default_metrics() -> dict[str, Callable[..., Any]]:
    """Return the metrics of a run whose command chooses none, as functions by name."""
    return {name: call(node, f"metrics.{name}") for name, node in default_metric_nodes().items()}


def composed(config: DictConfig) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the resolved configuration and the labels that Hydra has composed, from inside a Hydra application."""
    check_tuned(HydraConfig.get().overrides.task, GlobalHydra.instance().config_loader().get_group_options("tuned"))
    return resolve(config), labels_of(dict(HydraConfig.get().runtime.choices))


def without_hydra(config: DictConfig) -> DictConfig:
    """Return the configuration without Hydra's own section."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def resolve(config: DictConfig) -> dict[str, Any]:
    """Return the configuration as dicts and lists, with all interpolations resolved."""
    return typing.cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))


def labels_of(choices: Mapping[str, Any]) -> dict[str, str]:
    """Return the chosen option of each group in ``LABELS``, from Hydra's choices with their package suffixes."""
    short = {name.split("@")[0].strip("/"): value for name, value in choices.items()}
    return {name: str(short[name]) for name in LABELS if short.get(name) is not None}


def name_of_factory(section: str, target: str) -> str:
    """Return the name of a factory in the identity of a run. It does not change when a module of this package moves.

    For a factory of this package it is the section of the configuration and the name of the function, for example
    ``inference.sgld``. For any other factory it is the full path.
    """
    return f"{section}.{target.rsplit('.', 1)[-1]}" if target.startswith("bdlbench.") else target


def identity_of(node: Any, section: str) -> Any:
    """Return a configuration with factories named by :func:`name_of_factory`, and numbers replaced by their paths.

    The identity of a run is made from it.
    """
    if isinstance(node, Number):
        return {"number": node.path}
    if isinstance(node, Mapping):
        return {
            key: name_of_factory(section, value) if key == "_target_" else identity_of(value, section)
            for key, value in node.items()
        }
    return [identity_of(value, section) for value in node] if isinstance(node, list) else node


def coerced(node: Any, path: str) -> Any:
    """Return the configuration with the options of every factory checked and converted by :func:`checked`."""
    if isinstance(node, Mapping):
        node = checked(node, path) if "_target_" in node else node
        return {key: coerced(value, f"{path}.{key}" if path else key) for key, value in node.items()}
    return [coerced(value, f"{path}.{i}") for i, value in enumerate(node)] if isinstance(node, list) else node


def split(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, float]]:
    """Split a configuration into its program, in which a :class:`Number` replaces each float, and the floats by path.

    Floats that a factory declares with :func:`bdlbench.options.static` stay in the program.
    """
    numbers: dict[str, float] = {}

    def walk(node: Any, path: str, static: bool = False) -> Any:
        if isinstance(node, Mapping):
            kept: tuple[str, ...] = ()
            if "_target_" in node:
                kept = static_names(target_of(node, path))
            return {key: walk(value, f"{path}.{key}", key in kept) for key, value in node.items()}
        if isinstance(node, list):
            return [walk(value, f"{path}.{i}") for i, value in enumerate(node)]
        if isinstance(node, float) and not static:
            numbers[path] = node
            return Number(path)
        return node

    program = {name: walk(config[name], name) for name in PROGRAM_SECTIONS if config.get(name) is not None}
    return program, numbers


# ---- the only place where factories are instantiated


def call(node: Mapping[str, Any], path: str, *, partial: bool = True) -> Any:
    """Return a partial of a node's factory with its options, or with ``partial=False`` the result of the factory.

    Raises
    ------
    ConfigError
        If the factory raises one, or cannot be called with its options.
    """
    try:
        return instantiate({**moved(node), "_partial_": partial}, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        while cause is not None and not isinstance(cause, ConfigError):
            cause = cause.__cause__
        if cause is not None:
            raise cause from error
        raise ConfigError(f"{path}: {_first_line(error.__cause__ or error)}") from error


def fill(node: Any, numbers: Mapping[str, Any]) -> Any:
    """Replace each :class:`Number` of a node by its value."""
    if isinstance(node, Number):
        return numbers[node.path]
    if isinstance(node, Mapping):
        return {key: fill(value, numbers) for key, value in node.items()}
    return [fill(value, numbers) for value in node] if isinstance(node, list) else node


def moved(node: Any) -> Any:
    """Return the configuration with each old ``_target_`` replaced by its new one, see ``MOVED``."""
    if isinstance(node, Mapping):
        return {k: MOVED.get(v, v) if k == "_target_" and isinstance(v, str) else moved(v) for k, v in node.items()}
    return [moved(value) for value in node] if isinstance(node, list) else node


def target_of(node: Mapping[str, Any], path: str) -> Callable[..., Any]:
    """Import and return the factory that ``_target_`` names. Raises ConfigError if that fails."""
    try:
        return get_object(MOVED.get(node["_target_"], node["_target_"]))
    except (ImportError, ValueError, AttributeError) as error:
        first = str(node["_target_"]).split(".")[0]
        for mine in (Path(f"{first}.py"), Path(first) / "__init__.py"):
            found = getattr(sys.modules.get(first), "__file__", None)
            if mine.is_file() and first in sys.modules and (found is None or Path(found).resolve() != mine.resolve()):
                raise ConfigError(
                    f"{path}._target_={node['_target_']}: {mine} in the working folder has the name of an installed module, "
                    "which is found in its place: rename it."
                ) from error
        reason = _first_line(error).rstrip(":. ")
        raise ConfigError(
            f"{path}._target_={node['_target_']} names no factory ({reason}): check the name, or choose one with "
            f"{path.split('.')[0]}=<option>."
        ) from error


def checked(node: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Return a node with its values converted to the annotations of its factory, so that 1 and 1.0 give the same run.

    Raises
    ------
    ConfigError
        If an option is unknown to the factory, a required option is missing, or a value has the wrong type.
    """
    factory = target_of(node, path)
    staged = path.split(".")[0] == "inference" and not is_baseline(factory)
    reserved: tuple[str, ...] = STAGE_KEYS if staged else ()
    if path in ("network", "model") and ROWS_INTERACT in node:
        reserved = (ROWS_INTERACT,)
        if not isinstance(node[ROWS_INTERACT], bool):
            raise ConfigError(f"{path}.{ROWS_INTERACT}={node[ROWS_INTERACT]!r} must be true or false.")
    # The sections of a program are built for the model, and the places of files are known to the run.
    provided = PROGRAM_SECTIONS if path == "model" else ("files",) if path.split(".")[0] == "data" else ()
    return options.coerced(node, path, factory, reserved=reserved, provided=provided)


def names_baseline(inference: Any) -> bool:
    """Whether the section ``inference`` names a baseline, which has no schedule and no stages."""
    if not isinstance(inference, Mapping) or not isinstance(inference.get("_target_"), str):
        return False
    try:
        return is_baseline(target_of(inference, "inference"))
    except ConfigError:  # the caller says that the factory does not exist
        return False


def without_auto(likelihood: Mapping[str, Any], task: str, key: str) -> Mapping[str, Any]:
    """Return a likelihood in which ``auto`` is replaced by the one that it stands for.

    Parameters
    ----------
    likelihood : mapping
        Its options, and under ``key`` its name or the path of its factory.
    task : str
    key : str
    """
    name = likelihood.get(key)
    if name not in ("auto", "bdlbench.model.likelihoods.auto"):
        return likelihood
    module = name.removesuffix("auto")
    if task == "classification":  # it has no option
        return {key: f"{module}categorical"}
    return {**likelihood, key: f"{module}gaussian"}


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return " ".join(text.splitlines()[0].split())


# ---- checks of options that no factory checks

MOST_STEPS = 2**31 - 1
"""The largest number of steps of a stage, because the step index is a 32-bit number."""
MOST_CHAINS = 2**24
"""The largest number of chains. Arrays of one number a chain are made before the memory of a run is known."""
POSITIVE = ("learning_rate", "step_size", "init_value", "peak_value")
SHARES = ("momentum", "decay", "b1", "b2", "b3", "beta")
"""Decay rates of the running averages of optimisers, which must be in [0, 1)."""


def checked_schedule(node: Any, path: str, last: Schedule | None) -> Schedule:
    """Check a schedule and return it. ``last`` is the schedule of the last stage, whose chains an earlier stage has."""
    if not isinstance(node, Mapping):
        raise ConfigError(f"{path}={node!r} must be a schedule with {', '.join(Schedule._fields)}.")
    given = dict(node) if last is None else {"num_chains": last.num_chains, **node}
    unknown = set(given) - set(Schedule._fields)
    if unknown:
        raise ConfigError(f"{path}.{min(unknown)} is unknown: a schedule has {', '.join(Schedule._fields)}.")
    for name in ("num_chains", "num_warmup", "num_samples", "thinning"):
        least = 1 if name == "num_chains" or (name == "num_samples" and last is None) else 0
        value = given.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(f"{path}.{name}={value} must be a whole number, at least {least}.")
    if given["num_chains"] > MOST_CHAINS:
        raise ConfigError(f"{path}.num_chains={given['num_chains']} is more than {MOST_CHAINS:,}: take fewer chains.")
    size = given.get("batch_size")
    if size is not None and (not isinstance(size, int) or isinstance(size, bool)):
        raise ConfigError(f"{path}.batch_size={size} must be a whole number, or null for all rows.")
    if given.get("batching", "epoch") not in ("epoch", "iid"):
        raise ConfigError(f"{path}.batching={given['batching']!r} is unknown: use epoch or iid.")
    if (steps := given["num_warmup"] + given["num_samples"] * given["thinning"]) > MOST_STEPS:
        raise ConfigError(
            f"{path}.num_warmup + num_samples thinning = {steps} is more than {MOST_STEPS}, the largest number of steps: "
            "take fewer."
        )
    return Schedule(**given)


def check_optimizers(node: Any, path: str) -> None:
    """Raise ConfigError for a number that an optimiser or schedule of optax cannot use. optax itself does not check.

    Learning rates must be positive, decay rates of averages in [0, 1), weight decay and eps not negative, numbers of
    steps at least 1, and all other numbers finite.
    """
    if isinstance(node, list):
        for i, value in enumerate(node):
            check_optimizers(value, f"{path}.{i}")
    if not isinstance(node, Mapping):
        return
    ours = str(node.get("_target_", "")).startswith("optax.")
    for name, value in node.items():
        check_optimizers(value, f"{path}.{name}")
        if not ours or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if name in POSITIVE:
            positive(path, **{name: value})
        elif name in SHARES:
            if not 0 <= value < 1:
                raise ConfigError(f"{path}.{name}={value} must be at least 0 and below 1.")
        elif name in ("weight_decay", "eps"):
            non_negative(path, **{name: value})
        elif name.endswith("steps"):
            at_least(path, 1, **{name: value})
        elif not math.isfinite(value):
            raise ConfigError(f"{path}.{name}={value} must be finite.")


@functools.cache
def sections() -> dict[str, tuple[str, ...] | None]:
    """What a configuration has at its top: the options in conf/config.yaml, and the groups.

    Of a section that is no group, as ``store``, the names of its options; None for anything else.
    """
    main = typing.cast(DictConfig, OmegaConf.load(conf_dir() / "config.yaml"))
    own = {str(key): value for key, value in main.items() if key not in ("defaults", "hydra")}
    groups = sorted(path.name for path in conf_dir().iterdir() if path.is_dir() and path.name != "hydra")
    options = {key: tuple(map(str, v)) if isinstance(v, DictConfig) else None for key, v in own.items()}
    return {**options, **dict.fromkeys(groups)}


OPTIONAL = (
    *("network", "prior", "likelihood", "tuned", "experiment", "reference", "report", "limits"),
    *("precision", "warm_start", "tuned_for", "tuning_num_grads"),
)
"""Sections that a configuration may lack: a model may have no use for them, or a group may leave
nothing of its name. The others stand for their default, as in the records of earlier versions."""


def check_sections(config: Mapping[str, Any]) -> None:
    """Raise ConfigError if an option at the top level is unknown, or a required one is missing."""
    known = sections()
    for name, value in config.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else "leave it out."
            raise ConfigError(f"{name} is no section of a configuration and would be ignored: {hint}")
        options = known[name]
        if options is None:
            continue
        if not isinstance(value, Mapping):
            raise ConfigError(
                f"{name}={value!r} must hold the options {', '.join(options)}: give {name}.{options[0]}=..."
            )
        for option in value:
            if option not in options:
                near = difflib.get_close_matches(str(option), options, n=1)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(options)}."
                raise ConfigError(f"{name}.{option} is unknown and would be ignored: {hint}")
        if lacking := [option for option in options if option not in value and name not in OPTIONAL]:
            raise ConfigError(f"{name}.{lacking[0]} is missing: give it a value, or leave out ~{name}.{lacking[0]}.")
    for name in known:
        if name not in config and name not in OPTIONAL:
            raise ConfigError(f"{name} is missing: give it a value, or leave out ~{name}.")
    for name in ("data", "model", "inference", *(n for n in ("network", "prior", "likelihood") if n in config)):
        node = config[name]
        if node is not None and not (isinstance(node, Mapping) and isinstance(node.get("_target_"), str)):
            raise ConfigError(f"{name} has no factory: choose one with {name}=<option>, or give {name}._target_=...")
    given = config["inference"].get("schedule")
    if not isinstance(given, Mapping) and not names_baseline(config["inference"]):
        raise ConfigError(f"inference.schedule={given!r} must be a schedule with {', '.join(Schedule._fields)}.")
    path = config["store"]["path"]
    if not isinstance(path, str) or not path.strip():
        raise ConfigError(f"store.path={path!r} must be a folder: give a path such as results/store.")
    for name, place in config["paths"].items():
        if place is not None and not isinstance(place, str):
            raise ConfigError(f"paths.{name}={place!r} must be a path: give one in quotes, or null.")
    if not isinstance(config["metrics"], Mapping) or not config["metrics"]:
        raise ConfigError(f"metrics={config['metrics']!r} must name some: give them as metrics=[lppd,rmse].")
    for name, node in config["metrics"].items():
        if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
            raise ConfigError(
                f"metrics.{name}={node!r} must be a metric with _target_: give its name, metrics=[{name}]."
            )


def check_tuned(overrides: Iterable[str], names: Collection[str]) -> None:
    """Raise ConfigError if a command asks for tuned settings that do not exist. Hydra would continue without them."""
    for override in overrides:
        asked = re.fullmatch(r"\+{0,2}tuned=(.*)", override)
        for name in asked[1].split(",") if asked else ():
            name = name.strip("'\" ").removesuffix(".yaml")
            if name != "null" and name not in names:
                near = difflib.get_close_matches(name, names, n=3)
                hint = f"did you mean {' or '.join(near)}?" if near else "leave it out, or give tuned=null."
                raise ConfigError(f"tuned={name} does not exist: {hint}")


def check_options(config: Mapping[str, Any]) -> None:
    """Raise ConfigError if a top-level option has a wrong value. These options belong to no factory that checks them."""
    seed = config["seed"]
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise ConfigError(f"seed={seed!r} must be a whole number from 0 to 2^32 - 1.")
    if not isinstance(config["rerun"], bool):
        raise ConfigError(f"rerun={config['rerun']!r} must be true or false.")
    if (precision := config.get("precision", "float32")) not in ("float32", "float64"):
        raise ConfigError(f"precision={precision!r} is unknown: use float32 or float64.")
    if config["progress"] not in ("auto", "lines", "off"):
        raise ConfigError(f"progress={config['progress']!r} is unknown: use auto, lines or off.")
    check_limits(config.get("limits", {}))
    rows = config["store"]["predictive_rows"]
    if not isinstance(rows, int) or isinstance(rows, bool) or rows < 1:
        raise ConfigError(f"store.predictive_rows={rows!r} must be a whole number, at least 1.")
    seconds = config["store"]["checkpoint_seconds"]
    good = isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 <= seconds < math.inf
    if seconds is not None and not good:
        raise ConfigError(f"store.checkpoint_seconds={seconds!r} must be a number of seconds, or null for never.")


def refuse_missing(node: Any, path: str = "") -> None:
    """Raise ConfigError if a required value is missing, that is, still ``???``."""
    items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        name = f"{path}.{key}" if path else str(key)
        if value == "???":
            raise ConfigError(f"{name} is required: give {name}=... on the command line.")
        refuse_missing(value, name)


def check_limits(limits: Mapping[str, Any]) -> None:
    """Raise ConfigError unless the options of ``limits`` have values that exist."""
    if limits.get("memory", True) not in (True, False, "on", "off"):
        raise ConfigError(f"limits.memory={limits['memory']!r} is unknown: use on or off.")
    most = limits.get("attempts")
    if most is not None and (not isinstance(most, int) or isinstance(most, bool) or most < 1):
        raise ConfigError(f"limits.attempts={most!r} must be a whole number, at least 1, or null for any number.")
