"""The table of the sets, read from the comments at the head of their yamls."""

from pathlib import Path
from typing import NamedTuple

import bdlbench
from bdlbench.errors import ConfigError


class Entry(NamedTuple):
    """One set: ``n`` rows, ``d`` input features (or their shape), as its yaml states them."""

    name: str
    n: str
    d: str
    task: str
    licence: str
    source: str
    note: str = ""


def folder() -> Path:
    """Where the yamls lie: within an installed package, or beside the package in a checkout."""
    package = Path(bdlbench.__file__).parent
    for candidate in (package / "conf" / "data", package.parent / "conf" / "data"):
        if candidate.is_dir():
            return candidate
    raise ConfigError(f"conf/data was not found beside {package}: install bdlbench again.")


def catalogue(path: Path | None = None) -> tuple[Entry, ...]:
    """One :class:`Entry` a yaml of ``path`` (None: the project's own), by name.

    Raises
    ------
    ConfigError
        A yaml lacks one of the lines ``# n: ...``, ``# d:``, ``# task:``, ``# licence:``, ``# source:``.
    """
    return tuple(_entry(yaml) for yaml in sorted((path or folder()).glob("*.yaml")))


def _entry(yaml: Path) -> Entry:
    head: dict[str, str] = {}
    for line in yaml.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        key, _, value = line[1:].partition(":")
        head[key.strip()] = value.strip()
    missing = [key for key in Entry._fields[1:-1] if not head.get(key)]
    if missing:
        raise ConfigError(f"{yaml} says nothing of {', '.join(missing)}: head it with lines such as '# n: 442'.")
    return Entry(yaml.stem, *(head.get(key, "") for key in Entry._fields[1:]))
