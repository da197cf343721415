"""The record of a run. It is strict JSON on disk, plain Python in memory, and one row of the table of runs."""

import hashlib
import json
import math
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bdlbench.store.errors import LaterSchema, StoreError

SCHEMA = 2
"""Version of the store's format, written into every record. A reader refuses records of a later version."""

STATUSES = ("complete", "diverged", "failed")
REQUIRED = ("status", "labels", "metrics", "seconds", "num_grads", "device", "versions", "warnings")
LABELS = ("data", "model", "network", "prior", "likelihood", "inference")
IDENTITY = ("id", "status", "reason", *LABELS, "seed", "split")
COST = ("tuning_num_grads", "lanes", "peak_memory_bytes", "device", "warnings", "not_assessed", "created")
PREFIXES = ("seconds_", "num_grads_", "fidelity_", "config.")

Record = dict[str, Any]
_SPELLED = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def encode(record: Mapping[str, Any]) -> bytes:
    """Encode a record as strict JSON (RFC 8259), with its own checksum at the end.

    JSON has no NaN and no infinity. Such a float becomes null, and ``nonfinite`` maps its JSON pointer (RFC 6901) to
    ``"NaN"``, ``"Infinity"`` or ``"-Infinity"``. A null that is not listed there was a None. ``record_sha256`` is the
    SHA-256 of all other fields, written as JSON in UTF-8 with sorted keys and without white space.

    Raises
    ------
    TypeError
        If a value is not a number, text, bool, None, path, array, list, tuple or mapping with text keys.
    """
    nonfinite: dict[str, str] = {}
    plain = {key: _plain(value, f"/{_escape(key)}", nonfinite) for key, value in record.items()}
    plain["nonfinite"] = nonfinite
    plain["record_sha256"] = own_checksum(plain)
    return (json.dumps(plain, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()


def decode(text: bytes, path: Path, *, check: bool = True) -> Record:
    """Decode a record from its JSON and put its non-finite floats back in their places.

    Raises
    ------
    StoreError
        If the text is not a record or its checksum does not fit (unless ``check`` is False).
    LaterSchema
        If its schema is later than this reader's.
    """
    try:
        record = json.loads(text)
        later = record["schema"] > SCHEMA
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(f"The record '{path}' is damaged ({error}); delete its run and run it again.") from error
    try:
        sound = not check or record.get("record_sha256") == own_checksum(record)
    except ValueError:  # it holds half of a surrogate pair, which no text in UTF-8 has
        sound = False
    if not sound:  # first, as the schema may be what broke
        raise StoreError(f"The record '{path}' does not fit its checksum; delete its run and run it again.")
    if later:
        raise LaterSchema(
            f"The record '{path}' has schema {record['schema']}, but this bdlbench reads {SCHEMA}; upgrade bdlbench."
        )
    try:
        _check_form(record)
        for pointer, spelled in record["nonfinite"].items():
            *parents, last = (part.replace("~1", "/").replace("~0", "~") for part in pointer[1:].split("/"))
            place: Any = record
            for key in parents:
                place = place[int(key)] if isinstance(place, list) else place[key]
            place[int(last) if isinstance(place, list) else last] = _SPELLED[spelled]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise StoreError(
            f"The record '{path}' has a field that bdlbench does not write ({error}); delete its run and run it again."
        ) from error
    return record


def _check_form(record: Record) -> None:
    """Raise an error if a field that every reader uses is missing or has another type than a run writes."""
    if record["status"] not in STATUSES:
        raise ValueError(f"status {record['status']}")
    if not isinstance(record["config"], dict) or not all(
        {"sha256", "bytes"} <= f.keys() for f in record["files"].values()
    ):
        raise TypeError("config or files")
    if not all(isinstance(text, str) for name in ("warnings", "not_assessed") for text in record.get(name) or ()):
        raise TypeError("warnings or not_assessed")
    if not all(value is None or isinstance(value, str | int) for value in record["labels"].values()):
        raise TypeError("labels")
    for name in ("metrics", "seconds", "num_grads"):
        for key, value in flatten(record[name]):
            if value and not (isinstance(value, int | float) and abs(value) <= sys.float_info.max):
                raise TypeError(f"{name}.{key} is no number")


def encode_line(values: Mapping[str, Any]) -> bytes:
    """One line of ``curve.jsonl``, encoded as in :func:`encode` but without a checksum.

    The values are numbers and text by name, not nested. ``nonfinite`` is there only if a float is not finite.
    """
    nonfinite: dict[str, str] = {}
    plain = {key: _plain(value, f"/{_escape(key)}", nonfinite) for key, value in values.items()}
    if nonfinite:
        plain["nonfinite"] = nonfinite
    return (json.dumps(plain, allow_nan=False, ensure_ascii=False) + "\n").encode()


def decode_line(line: bytes) -> dict[str, Any]:
    """The values of one line of ``curve.jsonl``.

    Raises
    ------
    ValueError
        If the line is not what a run writes.
    """
    try:
        values = json.loads(line)
        for pointer, spelled in values.pop("nonfinite", {}).items():
            values[pointer[1:].replace("~1", "/").replace("~0", "~")] = _SPELLED[spelled]
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(str(error)) from error
    return values


def own_checksum(record: Mapping[str, Any]) -> str:
    """SHA-256 of a record without its ``record_sha256``, as compact JSON with sorted keys."""
    rest = {key: value for key, value in record.items() if key != "record_sha256"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _escape(key: Any) -> str:
    if not isinstance(key, str):
        raise TypeError(f"A record's keys are text, not {key!r}.")
    return key.replace("~", "~0").replace("/", "~1")


def _plain(value: Any, pointer: str, nonfinite: dict[str, str]) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        nonfinite[pointer] = "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        return None
    if isinstance(value, Mapping):
        return {key: _plain(item, f"{pointer}/{_escape(key)}", nonfinite) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{pointer}/{index}", nonfinite) for index, item in enumerate(value)]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy and JAX arrays and scalars
        return _plain(value.tolist(), pointer, nonfinite)
    raise TypeError(f"A record cannot hold a {type(value).__name__} (at {pointer}).")


def validated(record: Mapping[str, Any], run_id: str, config: Mapping[str, Any]) -> Record:
    """Check a record, and add ``config`` and those of ``id``, ``schema`` and ``created`` that it does not have.

    Raises
    ------
    ValueError
        If a required field is missing, the status is unknown, a record that is not complete has no reason, the schema
        or the id is another one, or a metric has the name of another column of the table of runs.
    """
    missing = [name for name in REQUIRED if name not in record]
    if missing:
        raise ValueError(f"The record of run {run_id} lacks {', '.join(missing)}.")
    if record["status"] not in STATUSES:
        raise ValueError(f"Status '{record['status']}' of run {run_id} is none of {', '.join(STATUSES)}.")
    if record["status"] != "complete" and not record.get("reason"):
        raise ValueError(f"Run {run_id} is {record['status']}, but its record gives no reason.")
    if not 1 <= record.get("schema", SCHEMA) <= SCHEMA:  # an earlier one when a record is amended
        raise ValueError(f"The record of run {run_id} has schema {record['schema']}; this store writes {SCHEMA}.")
    if record.get("id", run_id) != run_id:
        raise ValueError(f"The record of '{record['id']}' cannot be stored as run '{run_id}'.")
    taken = {*IDENTITY, *COST}
    clashes = [name for name in record["metrics"] if name in taken or name.startswith(PREFIXES)]
    if clashes:
        raise ValueError(f"Metrics of run {run_id} have names of other columns: {', '.join(sorted(clashes))}.")
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return {"id": run_id, "schema": SCHEMA, "created": created, **record, "config": dict(config)}


def flatten(tree: Mapping[str, Any], prefix: str = "", separator: str = ".") -> Iterator[tuple[str, Any]]:
    """The leaves of a nested mapping, each with the keys that lead to it joined by ``separator``. A list is a leaf."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}{separator}", separator)
        else:
            yield f"{prefix}{key}", value


def row(record: Record, *, config: bool) -> dict[str, Any]:
    """A record as one row of the table of runs (see :meth:`bdlbench.store.Store.runs`)."""
    labels, settings = record["labels"], record["config"]
    data = settings.get("data")
    columns = {"id": record["id"], "status": record["status"], "reason": record.get("reason")}
    for name in LABELS:
        columns[name] = labels.get(name)
    columns["seed"] = labels.get("seed", settings.get("seed"))
    columns["split"] = labels.get("split", data.get("split") if isinstance(data, Mapping) else None)
    columns.update(flatten(record["metrics"], separator="_"))
    columns.update(flatten(record.get("fidelity") or {}, "fidelity_", "_"))
    columns.update(flatten(record["seconds"], "seconds_", "_"))
    columns.update(flatten(record["num_grads"], "num_grads_", "_"))
    for name in COST:
        columns[name] = record.get(name)
    if not isinstance(columns["created"], str):
        raise TypeError("created is no time")
    columns["warnings"] = len(record["warnings"])
    columns["not_assessed"] = len(record["not_assessed"]) if "not_assessed" in record else None
    if config:
        columns.update(flatten(settings, "config."))
    return columns
