"""The metric by which methods are compared on a data set unless the user names another."""

from collections.abc import Mapping, Sequence
from typing import Any

from bdlbench.data import catalogue
from bdlbench.errors import ConfigError

DEFAULT = "lppd"
"""The headline of a data set whose yaml declares none."""


def headline(records: Sequence[Mapping[str, Any]]) -> str:
    """The headline metric of the data sets of some runs: the line ``# headline:`` of their yamls, or LPPD.

    Where a target takes few values a density score can be gamed by narrow peaks at them, so that such a set declares CRPS.

    Raises
    ------
    ConfigError
        If the data sets have different headline metrics.
    """
    declared = {entry.name: entry.headline for entry in catalogue() if entry.headline}
    found: dict[str, set[str]] = {}
    for record in records:
        data = str(record["labels"].get("data"))
        found.setdefault(declared.get(data, DEFAULT), set()).add(data)
    if len(found) > 1:
        sets = "; ".join(f"{metric} for {', '.join(sorted(names))}" for metric, names in sorted(found.items()))
        raise ConfigError(
            f"--metric: the data sets have different headline metrics ({sets}): name one, or use --filter data=..."
        )
    return next(iter(found), DEFAULT)
