"""The lists of data sets on which settings are chosen and on which methods are judged."""

from pathlib import Path
from typing import NamedTuple

import yaml

from bdlbench.data.listing import folder
from bdlbench.errors import ConfigError


class Problems(NamedTuple):
    """Names of data sets. No data set is in both lists."""

    tuning: tuple[str, ...]
    judging: tuple[str, ...]


def problems(path: Path | None = None) -> Problems:
    """The two lists of ``conf/problems.yaml``, or of another file.

    Raises
    ------
    ConfigError
        If a list is missing or empty, a name is in both lists or twice in one, or ``conf/data`` does not have it.
    """
    path = path or folder().parent / "problems.yaml"
    held = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(held, dict) or set(held) != set(Problems._fields) or not all(held.values()):
        raise ConfigError(f"{path} must hold the lists tuning and judging: give each the names of data sets.")
    found = Problems(*(tuple(map(str, held[name])) for name in Problems._fields))
    every = [*found.tuning, *found.judging]
    known = {file.stem for file in folder().glob("*.yaml")}
    for name in every:
        if every.count(name) > 1:
            raise ConfigError(f"{path} has '{name}' twice: choose settings and judge methods on different data sets.")
        if name not in known:
            raise ConfigError(
                f"{path} has '{name}', which conf/data does not have: use a name of bdlbench-results data."
            )
    return found
