"""Write tables in READMEs again: ``python -m tools.readme [FILE ...]``, without names all of the project's.

The table of results in README.md is made from the store. READMEs of experiments hold blocks between a marker that names a
function, as ``<!-- experiments.driving.driving:reaction_table, written by `make readme` -->``, and ``<!-- end -->``. The
function returns the Markdown between them, and makes it from a file of results.
"""

import importlib
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bdlbench.errors import ConfigError
from bdlbench.report.tables import comparison_markdown
from bdlbench.runs import configuration
from bdlbench.runs.start import with_init
from bdlbench.store import Store, StoreError

METHODS = ("nuts", "svi", "sgld")
REFERENCE = "diabetes"
BEGIN = "<!-- results: written by `make readme` -->"
END = "<!-- end of results -->"

Record = Mapping[str, Any]


BLOCK = re.compile(r"(<!-- ([\w.]+):(\w+), written by `make readme` -->\n)(.*?)(<!-- end -->)", re.DOTALL)
"""A block that a function writes: its begin marker, module, function, content and end marker."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite the tables in READMEs; without arguments those of ``README.md`` and of all experiments that have blocks."""
    arguments = sys.argv[1:] if arguments is None else arguments
    code = 0
    for readme in [Path(name) for name in arguments] or [Path("README.md"), *with_blocks(Path("experiments"))]:
        text = readme.read_text(encoding="utf-8")
        try:
            if BLOCK.search(text):
                text = with_new_blocks(text)
            else:
                records = compared(Store(readme.parent / "results" / "store"))
                text = replaced(text, section(records), readme.name)
        except (ConfigError, StoreError) as error:
            print(f"Error: {error}", file=sys.stderr)
            code = 1
        else:
            readme.write_text(text, encoding="utf-8")
    return code


def with_blocks(folder: Path) -> list[Path]:
    """The READMEs of experiments that have blocks."""
    return [file for file in sorted(folder.glob("*/README.md")) if BLOCK.search(file.read_text(encoding="utf-8"))]


def with_new_blocks(text: str) -> str:
    """``text`` with the content of each block made again by the function that its marker names."""

    def made(found: re.Match[str]) -> str:
        begin, module, function, _, end = found.groups()
        content = getattr(importlib.import_module(module), function)()
        return f"{begin}\n{content}\n\n{end}"

    return BLOCK.sub(made, text)


def compared(store: Store) -> list[Record]:
    """The runs that ``make compare`` makes: one for each method, with the shipped settings.

    Parameters
    ----------
    store : Store

    Raises
    ------
    ConfigError
        If a run is missing.
    """
    wanted = {method: _shipped(method) for method in METHODS}
    found: dict[str, Record] = {}
    for row in store.rows():  # in order of creation, so that a later run replaces an earlier one
        if row["data"] == "diabetes" and row["inference"] in METHODS:
            record = store.record(row["id"])
            config = wanted[row["inference"]]
            if all(record["config"].get(name) == value for name, value in config.items()):
                found[row["inference"]] = record
    missing = [method for method in METHODS if method not in found]
    if missing:
        raise ConfigError(f"store.path: '{store.path}' lacks the diabetes run of {', '.join(missing)}: make compare.")
    return [found[method] for method in METHODS]


def _shipped(method: str) -> dict[str, Any]:
    """The parts of a run's configuration that decide what it computes."""
    config, _ = configuration.compose([f"reference={REFERENCE}", f"inference={method}"])
    parts = (*configuration.PROGRAM_SECTIONS, "data", "seed", "temperature", "precision")
    return {name: config[name] for name in parts} | {"inference": with_init(config["inference"])}


def section(records: Sequence[Record]) -> str:
    """The text between the markers: the table, and the device, versions and dates of its runs."""
    first = records[0]
    versions = ", ".join(f"{name} {first['versions'][name]}" for name in ("bdlbench", "jax", "numpyro"))
    made = sorted({record["created"][:10] for record in records})
    return f"{comparison_markdown(records)}\n<sub>{first['device']}; {versions}; {' to '.join(made)}.</sub>\n"


def replaced(text: str, content: str, name: str = "README.md") -> str:
    """``text`` with ``content`` between the two markers.

    Raises
    ------
    ConfigError
        Unless each marker occurs once and the begin marker comes first.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise ConfigError(f"{name}: the markers '{BEGIN}' and '{END}' must each stand there once, in this order.")
    return f"{before}{BEGIN}\n\n{content}\n{END}{after}"


if __name__ == "__main__":
    sys.exit(main())
