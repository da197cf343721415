"""``bdlbench-results tail``: show how far a run is, from its folder, also while another process writes it."""

import argparse
import json
import sys
import time
import zipfile
from typing import Any

import numpy as np
import yaml

from bdlbench.errors import ConfigError
from bdlbench.report.escaping import printable
from bdlbench.store import Store
from bdlbench.store.errors import StoreError
from bdlbench.store.files import open_regular, read_regular
from bdlbench.store.records import decode_line


def tail(arguments: argparse.Namespace) -> None:
    """Print the state of a run and its last looks.

    With ``--follow``, print further looks as they are written, until no process writes the run any more.

    Raises
    ------
    ConfigError
        If the store has no such run, or ``--lines`` is less than 1.
    """
    if arguments.lines < 1:
        raise ConfigError(f"--lines: {arguments.lines} is no number of looks; use 1 or more.")
    store = Store(arguments.store)
    id = store.find(arguments.id, unfinished=True)
    print(_state(store, id))
    looks = _looks(store, id)
    shown = max(0, len(looks) - arguments.lines)
    while True:
        for look in looks[shown:]:
            print(_look(look))
        shown = len(looks)
        over = store.holder(id) is None
        sys.stdout.flush()
        if over or not arguments.follow:
            break
        time.sleep(arguments.every)
        looks = _looks(store, id)
        shown = min(shown, len(looks))  # a run that continues from its checkpoint removes the lines after it
    if arguments.follow:
        for look in _looks(store, id)[shown:]:
            print(_look(look))
        print(_state(store, id))


def _state(store: Store, id: str) -> str:
    """Return one line: the status of a finished run, or which process writes it, and its last look."""
    by = store.holder(id)
    if by is None and id in store.finished():
        record = store.record(id)
        return printable(f"{id}: {record['status']}" + (f": {record['reason']}" if record.get("reason") else ""))
    state = f"running ({by})" if by else "interrupted; the same command continues it"
    return printable(f"{id}: {state}; {last_look(store, id)}")


def last_look(store: Store, id: str) -> str:
    """Return the phase, the draws so far and planned, the gradients and the seconds at the last look at a run."""
    looks = _looks(store, id)
    if not looks:
        return f"not looked at yet ({_checkpoint(store, id) or 'setting up, compiling or warming up'})"
    last = looks[-1]
    planned = ""
    if last["phase"] == "sample":
        schedule = _inference(store, id).get("schedule", {})
        if "num_chains" in schedule and "num_samples" in schedule:
            planned = f" of {schedule['num_chains'] * schedule['num_samples']:,}"
    phase = {"warmup": "warm-up", "sample": "sampling"}.get(last["phase"], last["phase"])
    return f"{phase}, {last['num_draws']:,}{planned} draws, {last['num_grads']:,.0f} gradients, {last['seconds']:.1f} s"


def _inference(store: Store, id: str) -> dict[str, Any]:
    path = store.path / id / "config.yaml"
    try:
        inference = yaml.safe_load(read_regular(path).decode()).get("inference", {})
        if isinstance(inference, dict):
            return inference
        error: Exception | str = "inference is no group"
    except (OSError, ValueError, AttributeError, RecursionError, yaml.YAMLError) as found:
        error = found
    reason = printable(str(error)).splitlines()[0]
    raise StoreError(f"The configuration '{path}' cannot be read ({reason}); delete its run and run it again.")


def _checkpoint(store: Store, id: str) -> str | None:
    """Return the position of the last checkpoint as text, or None if there is none.

    An example is ``warm-up step 1,200 of 30,000 at the last checkpoint``. The file is described in
    :class:`bdlbench.sampling.position.Position`, which is not imported here because that would import JAX.
    """
    try:
        path = store.path / id / "checkpoint" / "state.npz"
        with open_regular(path) as stored, np.load(stored, allow_pickle=False) as arrays:
            stage, cycle, phase, done, _ = json.loads(str(arrays["array/position/place"]))
    except (OSError, StoreError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # the run itself reports the damage
    inference = _inference(store, id)
    stages = [*(inference.get("before") or []), inference]
    own = stages[stage] if stage < len(stages) else {}
    cycles = own.get("num_cycles") or 1
    where = f"stage {stage + 1} of {len(stages)}, " * (len(stages) > 1)
    where += f"cycle {cycle + 1} of {cycles}, " * (cycles > 1)
    planned = own.get("schedule", {}).get("num_warmup" if phase == "warmup" else "num_samples")
    whole = f" of {planned // cycles:,}" if planned else ""
    unit = "warm-up step" if phase == "warmup" else "draw"
    return f"{where}{unit} {done:,}{whole} at the last checkpoint"


def _looks(store: Store, id: str) -> list[dict[str, Any]]:
    try:
        text = read_regular(store.path / id / "curve.jsonl")
    except FileNotFoundError:
        return []
    try:
        return [decode_line(line) for line in text.split(b"\n")[:-1]]
    except ValueError as error:
        raise StoreError(f"The curve of run {id} is damaged ({error}); delete its run and run it again.") from error


def _look(look: dict[str, Any]) -> str:
    price = f"{look['phase']:<7} {look['num_draws']:>8,} draws {look['num_grads']:>12,.0f} gradients"
    rest = [f"{name} {in_text(value)}" for name, value in look.items()][4:]
    return printable("  ".join([f"{price} {look['seconds']:>8.1f} s", *rest]))


def in_text(value: Any) -> str:
    """Return a value of a record as the text of a table cell: floats with six digits, a dash for a missing value."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return "–"
    if isinstance(value, float):
        return f"{value:.6g}"
    return printable(json.dumps(value) if isinstance(value, list | dict | bool) else str(value))
