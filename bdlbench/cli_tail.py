"""``bdlbench-results tail``: how far a run is, read from its folder while another process writes it."""

import argparse
import json
import sys
import time
from typing import Any

import yaml

from bdlbench.errors import ConfigError
from bdlbench.store import Store
from bdlbench.store.records import decode_line


def tail(arguments: argparse.Namespace) -> None:
    """Print a run's state and its last looks; with ``--follow`` those to come, until nobody writes it any more."""
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
        shown = min(shown, len(looks))  # a run that went on from its checkpoint has taken lines back
    if arguments.follow:
        for look in _looks(store, id)[shown:]:
            print(_look(look))
        print(_state(store, id))


def _state(store: Store, id: str) -> str:
    """One line: whether it runs and by whom, its phase, and its draws of how many."""
    by = store.holder(id)
    if by is None and id in store.finished():
        record = store.record(id)
        return f"{id}: {record['status']}" + (f": {record['reason']}" if record.get("reason") else "")
    state = f"running ({by})" if by else "broken off; the same command goes on with it"
    return f"{id}: {state}; {last_look(store, id)}"


def last_look(store: Store, id: str) -> str:
    """Phase, draws of how many, gradients and seconds at the last look at the running posterior."""
    looks = _looks(store, id)
    if not looks:
        return "not looked at yet (setting up, compiling or warming up)"
    last = looks[-1]
    planned = ""
    if last["phase"] == "sample":
        text = (store.path / id / "config.yaml").read_text(encoding="utf-8")
        schedule = yaml.safe_load(text).get("inference", {}).get("schedule", {})
        if "num_chains" in schedule and "num_samples" in schedule:
            planned = f" of {schedule['num_chains'] * schedule['num_samples']:,}"
    phase = {"warmup": "warm-up", "sample": "sampling"}.get(last["phase"], last["phase"])
    return f"{phase}, {last['num_draws']:,}{planned} draws, {last['num_grads']:,.0f} gradients, {last['seconds']:.1f} s"


def _looks(store: Store, id: str) -> list[dict[str, Any]]:
    try:
        text = (store.path / id / "curve.jsonl").read_bytes()
    except FileNotFoundError:
        return []
    return [decode_line(line) for line in text.split(b"\n")[:-1]]


def _look(look: dict[str, Any]) -> str:
    price = f"{look['phase']:<7} {look['num_draws']:>8,} draws {look['num_grads']:>12,.0f} gradients"
    rest = [f"{name} {in_text(value)}" for name, value in look.items()][4:]
    return "  ".join([f"{price} {look['seconds']:>8.1f} s", *rest])


def in_text(value: Any) -> str:
    """A value of a record as a cell: six digits, a dash for what is missing."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return "–"
    if isinstance(value, float):
        return f"{value:.6g}"
    return json.dumps(value) if isinstance(value, list | dict | bool) else str(value)
