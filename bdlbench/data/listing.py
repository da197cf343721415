"""The list of the data sets, which is read from the comments at the beginning of their yamls."""

from pathlib import Path
from typing import NamedTuple

import bdlbench
from bdlbench.errors import ConfigError


class Entry(NamedTuple):
    """One data set as its yaml describes it: ``n`` is the number of rows, ``d`` that of features or their shape.

    ``headline`` is the metric by which methods are compared on it, empty if that is LPPD.
    """

    name: str
    n: str
    d: str
    task: str
    licence: str
    source: str
    note: str = ""
    headline: str = ""


def folder() -> Path:
    """The folder of the yamls, inside an installed package or beside the package in a checkout."""
    package = Path(bdlbench.__file__).parent
    for candidate in (package / "conf" / "data", package.parent / "conf" / "data"):
        if candidate.is_dir():
            return candidate
    raise ConfigError(f"conf/data was not found beside {package}: install bdlbench again.")


def catalogue(path: Path | None = None) -> tuple[Entry, ...]:
    """One :class:`Entry` for each yaml in ``path``, sorted by name. None is the folder of the project's own yamls.

    Raises
    ------
    ConfigError
        If a yaml lacks one of the lines ``# n: ...``, ``# d:``, ``# task:``, ``# licence:``, ``# source:``.
    """
    return tuple(_entry(yaml) for yaml in sorted((path or folder()).glob("*.yaml")))


def _entry(yaml: Path) -> Entry:
    head: dict[str, str] = {}
    for line in yaml.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        key, _, value = line[1:].partition(":")
        head[key.strip()] = value.strip()
    missing = [key for key in Entry._fields[1:-2] if not head.get(key)]
    if missing:
        raise ConfigError(f"{yaml} says nothing of {', '.join(missing)}: head it with lines such as '# n: 442'.")
    return Entry(yaml.stem, *(head.get(key, "") for key in Entry._fields[1:]))
