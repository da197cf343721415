"""Warn if tuned settings are used with another network, prior or likelihood than those they were tuned for.

In a file of ``conf/tuned``, ``tuned_for`` names the network, prior and likelihood with which the settings were found, and
``tuning_num_grads`` is the number of gradient evaluations of the search. Both are written to the record. They do not
change what a run computes, so that they are not part of its id.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from bdlbench.errors import ConfigError
from bdlbench.runs.configuration import without_auto

PARTS = ("network", "prior", "likelihood")
NONE = "none"
"""The name that stands for a part that the model does not have."""


def described(config: Mapping[str, Any], labels: Mapping[str, str]) -> dict[str, Any]:
    """Return the network, prior and likelihood of a composed configuration in the form of ``tuned_for``.

    Each part is a mapping with its options and ``name``, the chosen option of its group. The name of a nested part,
    such as the prior of the noise, is the last component of its ``_target_``.
    """
    return {part: _described(config.get(part), labels.get(part)) for part in PARTS}


def _described(node: Mapping[str, Any] | None, label: str | None = None) -> dict[str, Any]:
    if node is None:
        return {"name": label or NONE}
    name = label or str(node.get("_target_", NONE)).rsplit(".", 1)[-1]
    options = {key: value for key, value in node.items() if key != "_target_"}
    nested = {key: _described(value) for key, value in options.items() if isinstance(value, Mapping)}
    return {"name": name, **options, **nested}


def check_tuned_for(config: Mapping[str, Any]) -> None:
    """Raise ConfigError unless ``tuned_for`` and ``tuning_num_grads`` have the right type."""
    wanted, price = config.get("tuned_for"), config.get("tuning_num_grads")
    good = isinstance(wanted, Mapping) and all(
        part in PARTS and isinstance(value, Mapping) and isinstance(value.get("name"), str)
        for part, value in wanted.items()
    )
    if wanted is not None and not good:
        raise ConfigError(
            f"tuned_for={wanted!r} must be null, or hold network, prior and likelihood, each with its name and options."
        )
    number = isinstance(price, int | float) and not isinstance(price, bool) and 0 <= price < math.inf
    if price is not None and not number:
        raise ConfigError(f"tuning_num_grads={price!r} must be a number of gradients, zero or more, or null.")


def warnings(config: Mapping[str, Any], labels: Mapping[str, str], task: str) -> list[str]:
    """Return one warning if the run's network, prior or likelihood differs from ``tuned_for``, otherwise none.

    Parts and options that ``tuned_for`` does not name are not compared. The likelihood ``auto`` is compared as the one
    that it stands for.
    """
    own = described(config, labels)
    pairs = [
        pair
        for part, wanted in (config.get("tuned_for") or {}).items()
        for pair in _differing(part, without_auto(wanted, task, "name"), without_auto(own[part], task, "name"))
    ]
    if not pairs:
        return []
    theirs, ours = (" and ".join(side) for side in zip(*pairs, strict=True))
    return [f"the settings were tuned for {theirs}, not for {ours}"]


def _differing(path: str, wanted: Any, own: Any) -> Iterator[tuple[str, str]]:
    """Yield each difference as a pair of texts ``path=value``, the tuned one and the run's own.

    If the names of a part differ, its options are not compared.
    """
    if not isinstance(wanted, Mapping) or not isinstance(own, Mapping):
        if wanted != own:
            yield f"{path}={_short(wanted)}", f"{path}={_short(own)}"
    elif wanted.get("name") != own.get("name"):
        yield f"{path}={_short(wanted)}", f"{path}={_short(own)}"
    else:
        for key, value in wanted.items():
            yield from _differing(f"{path}.{key}", value, own.get(key))


def _short(value: Any) -> str:
    return str(value.get("name", NONE)) if isinstance(value, Mapping) else str(value)
