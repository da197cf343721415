"""The trials of every search as data: one row of ``trials.csv`` a trial. README.md says what each column holds."""

import csv
import dataclasses
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bdlbench.errors import ConfigError
from bdlbench.store.files import FolderLock, replace_file

FILE = Path(__file__).with_name("trials.csv")
BY_HAND = "by hand"
"""The rule of settings that somebody chose without the script."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """One trial of a search. A number is None where it is not known, or where the rule needs no such number."""

    data: str
    method: str
    search: int
    """Which search of this pair it belongs to; the last one is in force."""
    trial: int
    network: dict[str, Any]
    prior: dict[str, Any]
    likelihood: dict[str, Any]
    rule: str
    setting: dict[str, Any]
    """Options of inference in which this trial differs from the preset, by their dotted paths."""
    shared: dict[str, Any]
    """Options that all trials of the search and the chosen settings have."""
    shortened: dict[str, Any]
    """Options of the schedule in which the trials were shorter than the chosen settings."""
    status: str
    num_grads: float | None = None
    lppd: float | None = None
    elbo: float | None = None
    rhat: float | None = None
    ess: float | None = None
    ess_per_million_grads: float | None = None
    distance: float | None = None
    mean_off: float | None = None
    sd_ratio: float | None = None
    chosen: bool = False
    reference_rhat: float | None = None
    search_num_grads: float | None = None
    """Gradients of all trials of the search, also of those that failed."""
    note: str = ""


FIELDS = dataclasses.fields(Trial)
COLUMNS = tuple(field.name for field in FIELDS)


def encode(rows: Iterable[Trial]) -> bytes:
    """Rows as CSV, each cell as :func:`decode` reads it."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow([_text(getattr(row, name)) for name in COLUMNS])
    return out.getvalue().encode()


def _text(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value)


def decode(text: str) -> list[Trial]:
    """The rows of a CSV file.

    Raises
    ------
    ConfigError
        Where the columns are not those of :class:`Trial`.
    """
    reader = csv.DictReader(io.StringIO(text))
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise ConfigError(f"trials.csv has the columns {reader.fieldnames}: give it {', '.join(COLUMNS)}.")
    return [Trial(**{field.name: _value(field, row[field.name]) for field in FIELDS}) for row in reader]


def _value(field: "dataclasses.Field[Any]", text: str) -> Any:
    if field.type is str:
        return text
    return json.loads(text) if text else None


def read(file: Path = FILE) -> list[Trial]:
    """All rows, in the order in which they were added."""
    return decode(file.read_text(encoding="utf-8"))


def in_force(rows: Iterable[Trial]) -> dict[tuple[str, str], list[Trial]]:
    """The trials of the last search of each pair of data set and method."""
    found: dict[tuple[str, str], list[Trial]] = {}
    for row in rows:
        of_pair = found.setdefault((row.data, row.method), [])
        if of_pair and of_pair[0].search != row.search:
            of_pair.clear()
        of_pair.append(row)
    return found


def append(search: Sequence[Trial], file: Path = FILE) -> bool:
    """Add the trials of one search to the file; returns False where the pair's last search is the same already.

    A reader, or a crash at any moment, sees all of the search or nothing of it. Several processes may append to one
    file: each waits for the other. The number of the search is given here.
    """
    lock = FolderLock(file.parent)
    lock.acquire(on_busy=lambda message: None)
    try:
        rows = read(file)
        pair = search[0].data, search[0].method
        last = in_force(rows).get(pair, [])
        number = last[0].search if last else 0
        if encode(dataclasses.replace(row, search=number) for row in search) == encode(last):
            return False
        added = [dataclasses.replace(row, search=number + 1) for row in search]
        replace_file(file, lambda handle: handle.write(encode([*rows, *added])))
    finally:
        lock.release()
    return True
