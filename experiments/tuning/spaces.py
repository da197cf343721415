"""Search spaces read from ``spaces.yaml``: which trials a method has on a data set."""

import copy
import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from bdlbench.errors import ConfigError
from bdlbench.runs.configuration import compose

SPACES = yaml.safe_load(Path(__file__).with_name("spaces.yaml").read_text(encoding="utf-8"))
DATA, METHODS = tuple(SPACES["data"]), tuple(SPACES["methods"])
VALIDATION_FRACTION = 0.2
START_AT_MAP = {
    "_target_": "bdlbench.inference.point.maximum_a_posteriori",
    "optimizer": {"_target_": "optax.adam", "learning_rate": 0.01},
    "schedule": {"num_warmup": 1000, "num_samples": 0, "thinning": 0, "batch_size": None},
}
"""Each chain at a mode of its own, as SGLD with control variates has it."""
MOMENTUM = ("sghmc", "baoa", "sgnht", "cyclical_sghmc")
KEPT = 0.9
"""Share of the momentum that a step keeps."""
ALIASES = {"energy_variance": ("energy_variance_start", "energy_variance_end")}
Options = dict[str, Any]


def space(data: str, method: str) -> dict[str, Any]:
    """The space of a method on a data set, what is particular to that data set merged in."""
    node = dict(SPACES["methods"][method])
    particular = node.get(data, {})
    merged = {key: value for key, value in node.items() if key not in DATA} | particular
    if node.get("schedule") and particular.get("schedule"):
        merged["schedule"] = {**node["schedule"], **particular["schedule"]}
    if "schedule" in merged:
        merged["schedule"] = {key: _value(data, value) for key, value in merged["schedule"].items()}
    return merged


@functools.cache
def preset(method: str) -> dict[str, Any]:
    """The inference section of a method that is not tuned; a data set changes nothing in it."""
    return compose([f"inference={method}", "~tuned"])[0]["inference"]


def base(data: str, method: str, schedule: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The method's preset on the tuning rows of split 0, untuned, with options of its schedule."""
    overrides = [f"data={data}", f"inference={method}", "~tuned", "progress=off", "store.predictive_rows=100"]
    overrides += [f"inference.schedule.{key}={'null' if v is None else v}" for key, v in schedule.items()]
    config, labels = compose(overrides)
    config["data"] = {
        "_target_": "experiments.tuning.rows.held_out",
        "of": {**config["data"], "validation_fraction": VALIDATION_FRACTION},
    }
    return config, labels


def put(node: Any, path: str, value: Any) -> None:
    """Set an option that exists by its dotted path; lists have numbers."""
    *parents, last = path.split(".")
    for name in parents:
        node = node[int(name)] if isinstance(node, list) else node[name]
    if last not in node:
        raise ConfigError(f"experiments/tuning/spaces.yaml: inference has no {path}: give an option of its yaml.")
    node[last] = value


def applied(inference: Mapping[str, Any], options: Options) -> dict[str, Any]:
    """An inference section with options of a trial."""
    out = copy.deepcopy(dict(inference))
    for path, value in options.items():
        if path == "start_at_map":
            out["before"] = [copy.deepcopy(START_AT_MAP)]
            continue
        for name in ALIASES.get(path, (path,)):
            put(out, name, value)
    return out


def fixed(data: str, method: str) -> Options:
    """What all trials share beside the schedule."""
    node = space(data, method)
    out: Options = {"start_at_map": True} if node.get("start") == "map" else {}
    if "before.0.schedule" in node:
        out |= {f"before.0.schedule.{key}": value for key, value in node["before.0.schedule"].items()}
    return out


def shared(data: str, method: str) -> Options:
    """What all trials and the chosen settings share, the schedule of the latter included."""
    schedule = space(data, method).get("schedule", {})
    return fixed(data, method) | {f"schedule.{key}": value for key, value in schedule.items()}


def trials(data: str, method: str) -> Iterator[Options]:
    """The options of each trial: of the preset, {}, then of the grid."""
    node = dict(space(data, method)["grid"])
    multiples = node.pop("step", [None])
    yield {}
    for multiple, *values in itertools.product(multiples, *node.values()):
        options = {} if multiple is None else step_options(method, multiple * SPACES["data"][data]["step"])
        yield options | dict(zip(node, values, strict=True))


def _value(data: str, value: Any) -> Any:
    return SPACES["data"][data]["large_batch"] if value == "large" else value


def step_options(method: str, step: float) -> Options:
    """Options by which a stochastic-gradient method moves about as far as SGLD with this step.

    With momentum, h = sqrt(eps (1 - mu)) and friction (1 - mu) / h: h^2 / (1 - mu) = eps. RMSprop's preconditioner
    multiplies by about 30 where the mean gradient is of the order of 0.03.
    """
    if method in MOMENTUM:
        h = math.sqrt(step * (1 - KEPT))
        return {"step_size": _rounded(h), "friction": _rounded((1 - KEPT) / h)}
    return {"step_size": _rounded(step / 30 if method == "psgld" else step)}


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
