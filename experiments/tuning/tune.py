"""Find settings for every method on every data set, by rules that never look at a test row; write conf/tuned.

    python -m experiments.tuning.tune [--only DATA METHOD] [--store PATH] [--quick]

Finished trials are found in the store: a run that was stopped goes on where it was.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from bdlbench.runs.configuration import conf_dir
from bdlbench.runs.outcome import Outcome
from bdlbench.runs.sweep import run_sweep
from bdlbench.sampling.devices import setup_jax
from bdlbench.store import Store
from experiments.tuning import scores, spaces

FOUND = "Found by experiments/tuning"
"""How a file begins that may be written again."""
RULES = {
    "mixing": f"the most ESS in function space a gradient, R-hat at most {scores.GOOD_RHAT} (else the smallest R-hat)",
    "distance": "the smallest distance of the function's mean and sd from NUTS's, in NUTS's sd",
    "elbo": "the highest ELBO",
    "lppd": "the highest LPPD",
}


def run_trials(
    path: str, data: str, method: str, options: list[spaces.Options], schedule: Any, quick: bool
) -> list[Any]:
    """Records of trials with these options; None where one is refused."""
    base, labels = spaces.base(data, method, shortened(schedule) if quick else schedule)
    composed = []
    for each in options:
        inference = spaces.applied(base["inference"], spaces.fixed(data, method) | each)
        config = {**base, "inference": inference, "store": {**base["store"], "path": path}}
        composed.append((config, labels, f"{data} {method} {each}"))
    outcome = Outcome()
    found = run_sweep(composed, outcome, max_lanes=64)
    for error in outcome.errors:
        print(f"  {error}", flush=True)
    return list(found)


def shortened(schedule: dict[str, Any]) -> dict[str, Any]:
    """For ``--quick``: the same code in seconds."""
    return {**schedule, "num_warmup": 40, "num_samples": 8} if schedule else {}


def reference(path: str, data: str, quick: bool) -> dict[str, Any] | None:
    """Record of the long NUTS run on the same rows."""
    options = dict(spaces.SPACES["data"][data]["reference"])
    schedule = options.pop("schedule")
    return run_trials(path, data, "nuts", [options], schedule, quick)[0]


def tune(path: str, data: str, method: str, quick: bool) -> str:
    """Run the rounds of one method on one data set, choose, and write the file; returns what happened."""
    node = spaces.space(data, method)
    if "refused" in node:
        return f"refused: {node['refused']}"
    store, rule = Store(path), node["rule"]
    schedule = {**node.get("schedule", {}), **node.get("trial", {})}
    known = exact = None
    if rule in ("mixing", "distance"):
        exact = reference(path, data, quick)
        if exact is None or exact["status"] != "complete":
            return "the reference is not complete: no file"
        known = scores.moments(store, exact["id"])
    tried = fresh(data, method)
    found = [scores.score(store, r, known) for r in run_trials(path, data, method, tried, schedule, quick)]
    chosen = scores.choose(rule, found)
    lines = [f"{named(each)}: {scores.sentence(rule, s)}" for each, s in zip(tried, found, strict=True)]
    for index, line in enumerate(lines):
        print(f"  {'*' if index == chosen else ' '} {line}", flush=True)
    if chosen is None:
        return "no trial is complete: no file"
    if quick:
        return f"quick: would choose {named(tried[chosen])}"
    lines[chosen] += ": chosen"
    total = sum(s.grads for s in found if s.grads is not None)
    return write(data, method, tried[chosen], header(data, method, lines, total, exact))


def fresh(data: str, method: str) -> list[spaces.Options]:
    """The trials without those that repeat another one under other words, as the preset spelled out."""
    plain = spaces.base(data, method, {})[0]["inference"]
    distinct: dict[str, spaces.Options] = {}
    for each in spaces.trials(data, method):
        distinct.setdefault(json.dumps(spaces.applied(plain, each), sort_keys=True), each)
    return list(distinct.values())


def named(options: spaces.Options) -> str:
    """A trial's options in a few words."""
    short = []
    for path, value in options.items():
        name = path.removeprefix("schedule.").replace("before.0.", "MAP ").replace("optimizer.", "")
        short.append(f"{name} {str(value).lower() if isinstance(value, bool) else format(value, 'g')}")
    return ", ".join(short) or "preset"


def header(data: str, method: str, lines: list[str], total: float, exact: Any) -> list[str]:
    """The comment of a tuned file."""
    node = spaces.space(data, method)
    out = [
        f"{method} on {data}, network 1 x 50 tanh. {FOUND} without test rows, on a fifth of split 0's",
        f"training rows held out: {RULES[node['rule']]}.",
    ]
    if exact is not None:
        rhat = exact["metrics"]["rhat_max"]
        disagree = "" if rhat <= scores.GOOD_RHAT else ": its own chains disagree, and it is no yardstick of exactness"
        out.append(f"NUTS on the same rows had R-hat {rhat:.2f}{disagree}.")
    if "trial" in node:
        length = ", ".join(f"{key} {value}" for key, value in node["trial"].items())
        out.append(f"Trials were shorter than what the settings ask for: {length}.")
    out.append(f"{len(lines)} trials, together {total:,.0f} gradients in full-data equivalents:")
    return out + [f"  {line}" for line in lines]


def write(data: str, method: str, options: spaces.Options, comment: list[str]) -> str:
    """Write conf/tuned/<data>_<method>.yaml unless a file that somebody made by hand is there."""
    file = Path(conf_dir()) / "tuned" / f"{data}_{method}.yaml"
    if file.exists() and FOUND not in file.read_text(encoding="utf-8"):
        return f"{file.name} was made by hand: kept"
    node = spaces.space(data, method)
    everything = spaces.fixed(data, method) | options
    plain, _ = spaces.base(data, method, {})
    inference = spaces.applied(plain["inference"], everything)
    changed: dict[str, Any] = {}
    for path in everything:
        for name in spaces.ALIASES.get(path, (path,)):
            parts = name.split(".")
            if path == "start_at_map" or parts[0] == "before":
                changed["before"] = inference["before"]  # lists are replaced whole
                continue
            at = changed
            for part in parts[:-1]:
                at = at.setdefault(part, {})
            value: Any = inference
            for part in parts:
                value = value[part]
            at[parts[-1]] = value
    schedule = {**node.get("schedule", {}), **changed.get("schedule", {})}
    kept = {key: value for key, value in schedule.items() if value != plain["inference"]["schedule"].get(key)}
    changed.pop("schedule", None)
    changed = {key: value for key, value in changed.items() if value != plain["inference"].get(key)}
    if kept:
        changed["schedule"] = kept
    text = "\n".join(["# @package _global_", *(f"# {line}" for line in comment)])
    body = yaml.safe_dump({"inference": changed}, sort_keys=False, default_flow_style=None, width=118)
    file.write_text(f"{text}\n{body}", encoding="utf-8")
    return f"wrote {file.name}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], help="data sets and methods, in the order in which to do them")
    parser.add_argument("--store", default="results/tuning", help="where trials are kept")
    parser.add_argument("--quick", action="store_true", help="seconds a method, writes no file")
    arguments = parser.parse_args(argv)
    data = [name for name in arguments.only if name in spaces.DATA] or spaces.DATA
    methods = [name for name in arguments.only if name in spaces.METHODS] or spaces.METHODS
    unknown = set(arguments.only) - {*spaces.DATA, *spaces.METHODS}
    if unknown:
        parser.error(f"--only: no space for {', '.join(sorted(unknown))}: see experiments/tuning/spaces.yaml")
    setup_jax()
    for name in data:
        for method in methods:
            started = time.perf_counter()
            print(f"{name} {method}", flush=True)
            said = tune(arguments.store, name, method, arguments.quick)
            print(f"  {said} ({time.perf_counter() - started:.0f} s)", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
