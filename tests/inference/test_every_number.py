"""Every number in every file of conf/inference refuses values that make no sense, in one sentence that names it."""

import copy
import functools
import math
from typing import Any

import pytest
import yaml
from laws import declared
from presets import BASELINES

from bdlbench.runs import configuration
from bdlbench.runs.configuration import STAGE_KEYS, conf_dir
from bdlbench.runs.job import check_job, make_job
from bdlbench.types import ConfigError

DATA = ["data=cosine_gap", "data.n_cluster=40", "data.n_test=4", "network.width=3"]
BAD = {"negative": -1, "negative float": -0.5, "zero": 0, "nan": math.nan, "inf": math.inf, "text": "three"}
BAD |= {"bool": True, "list": [1]}

Place = tuple[str | int, ...]


def numbers(node: Any, path: Place = (), owner: str = "") -> list[tuple[str, Place]]:
    """Yield each number of a configuration with its owner (a factory, or the schedule of one) and its path."""
    found = []
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    owner = node.get("_target_", owner) if isinstance(node, dict) else owner
    for key, value in items:
        if isinstance(value, dict | list):
            found += numbers(value, (*path, key), f"{owner}.schedule" if key == "schedule" else owner)
        elif value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            found.append((f"{owner}.{key}", (*path, key)))
    return found


def once() -> dict[str, tuple[str, Place]]:
    """Each number of each factory, from the first file that has it. Stages before another are separate places."""
    found: dict[str, tuple[str, Place]] = {}
    for path in sorted((conf_dir() / "inference").glob("*.yaml")):
        for name, place in numbers(yaml.safe_load(path.read_text())):
            found.setdefault(f"before {name}" if place[0] == "before" else name, (path.stem, place))
    return found


NUMBERS = once()
ZERO = {
    "weight_decay": "no decay",
    "momentum": "plain gradient descent",
    "num_restarts": "one start of an optimiser, at given numbers",
    "decay": "a constant step",
    "collect_after": "points from the first step on",
    "init_scale": "ChEES's particles begin at one point; everything else starts a width at it",
    "num_warmup": "a sampler without adaptation, a MAP that is the start",
    "thinning": "draws are read from a state that is a distribution",
}
"""What may be zero, and what that says. A family's file says where its factories differ: ``zero`` and ``not_zero``."""


def may_be_zero(name: str, place: Place, preset: str) -> bool:
    """Whether zero is a sensible value of this number of this factory."""
    owner, key = name.rsplit(".", 1)
    factory = owner.removesuffix(".schedule").rsplit(".", 1)[-1]
    if name.startswith("before ") and owner.endswith(".schedule"):
        # An ensemble that looks at validation rows must take the steps between two looks. A stage before the last
        # leaves no draws.
        return key != "batch_size" and (factory, key) != ("deep_ensemble", "num_warmup")
    if key == "thinning":  # chains whose draws are steps apart cannot have them none apart
        return of_preset(preset)["inference"]["schedule"]["thinning"] == 0
    if key in declared("not_zero").get(factory, ()):
        return False
    return key in ZERO or key in declared("zero").get(factory, ())


FIRST = min(preset for preset, _ in NUMBERS.values())


@functools.cache
def of_preset(preset: str) -> dict[str, Any]:
    """The composed configuration of a preset. The tests do not change it."""
    return configuration.compose([*DATA, f"inference={preset}"])[0]


def outcome(composed: dict[str, Any], place: Place, value: Any) -> str | None:
    """The message that refuses the value before anything is compiled; None if it is accepted."""
    composed = copy.deepcopy(composed)
    node = composed["inference"]
    for step in place[:-1]:
        node = node[step]
    node[place[-1]] = value
    try:
        check_job(make_job(composed, {}))
    except ConfigError as error:
        return str(error)
    return None


USUAL = ("negative", "zero", "nan", "text")
"""The other values are refused by the same checks: where slow tests run too."""


def cases() -> list[Any]:
    """The names of numbers with the values to test. Schedules share one check; zero is tested for each factory."""
    out = []
    for name, (preset, _) in NUMBERS.items():
        if name.rsplit(".", 1)[0].endswith(".schedule") and preset != FIRST:
            out.append(pytest.param(name, ("zero",), id=f"{name}-usual"))
            continue
        out.append(pytest.param(name, USUAL, id=f"{name}-usual"))
        rest = tuple(what for what in BAD if what not in USUAL)
        out.append(pytest.param(name, rest, id=f"{name}-all", marks=pytest.mark.slow))
    return out


@pytest.mark.slow
@pytest.mark.parametrize(("name", "values"), cases())
def test_what_is_no_number_is_refused_by_name(name, values):
    """Negative numbers, zero, NaN, infinity, text, truth values and lists are refused with the name of the option."""
    preset, place = NUMBERS[name]
    composed = of_preset(preset)
    for what in values:
        said = outcome(composed, place, BAD[what])
        if what == "zero" and may_be_zero(name, place, preset):
            assert said is None, said
            continue
        assert said is not None, f"{what} is accepted"
        assert str(place[-1]) in said and "\n" not in said, said


def test_an_optimizer_that_is_none_is_refused():
    """A number, a text or null in place of an optimiser is refused."""
    composed = of_preset("map")
    for value in (3, "adam", None, [1]):
        said = outcome(composed, ("optimizer",), value)
        assert said is not None
        assert said.startswith("inference.optimizer=") and "_target_" in said


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, "hot"])
def test_temperatures_that_are_none_are_refused(value):
    composed = copy.deepcopy(of_preset("map"))
    composed["temperature"] = value
    with pytest.raises(ConfigError, match="temperature"):
        check_job(make_job(composed, {}))


@pytest.mark.parametrize("preset", sorted({preset for preset, _ in NUMBERS.values()} - {*BASELINES}))
def test_batches_beyond_the_data_are_refused(preset):
    """For every method that takes steps, a batch that does not fit the rows or the method is refused."""
    composed = of_preset(preset)
    said = outcome(composed, ("schedule", "batch_size"), 81)
    assert said is not None
    assert "batch_size=81" in said


def test_more_steps_than_are_counted_are_refused():
    """Step indices have 32 bits, so a billion draws with a thousand steps each are refused."""
    composed = of_preset("chees")
    said = outcome(composed, ("schedule", "thinning"), 10**9)
    assert said is not None
    assert "inference.schedule.num_warmup + num_samples thinning" in said


def test_the_keys_of_a_stage_are_no_numbers():
    """Only hyperparameters and schedules are tested as numbers, not the other keys of a stage."""
    assert set(STAGE_KEYS) == {"schedule", "start", "before", "init"}
