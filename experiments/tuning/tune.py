"""Find settings for every method on every data set, by rules that never look at a test row.

The trials are added to trials.csv, and the files of conf/tuned are written from it.

    python -m experiments.tuning.tune [--only DATA METHOD] [--store PATH] [--quick]

Finished trials are found in the store: a run that was stopped goes on where it was.
"""

import argparse
import dataclasses
import json
import sys
import time
from typing import Any

from bdlbench.runs import tuned
from bdlbench.runs.configuration import conf_dir
from bdlbench.runs.outcome import Outcome
from bdlbench.runs.sweep import run_sweep
from bdlbench.sampling.devices import setup_jax
from bdlbench.store import Store
from experiments.tuning import scores, spaces, trials, write
from experiments.tuning.trials import Trial


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
    """Run the trials of one method on one data set, choose, and keep both; returns what happened."""
    node = spaces.space(data, method)
    if "refused" in node:
        return f"refused: {node['refused']}"
    store, rule = Store(path), node["rule"]
    schedule = {**node.get("schedule", {}), **node.get("trial", {})}
    known = exact = None
    if rule in ("mixing", "distance"):
        exact = reference(path, data, quick)
        if exact is None or exact["status"] != "complete":
            return "the reference is not complete: nothing is tried"
        known = scores.moments(store, exact["id"])
    tried = fresh(data, method)
    found = [scores.score(store, r, known) for r in run_trials(path, data, method, tried, schedule, quick)]
    chosen = scores.choose(rule, found)
    lines = [f"{named(each)}: {scores.sentence(rule, s)}" for each, s in zip(tried, found, strict=True)]
    for index, line in enumerate(lines):
        print(f"  {'*' if index == chosen else ' '} {line}", flush=True)
    best = "nothing, since no trial is complete" if chosen is None else named(tried[chosen])
    if quick:
        return f"quick: would choose {best}"
    trials.append(search(data, method, tried, found, chosen, exact))
    own = [row for row in trials.read() if (row.data, row.method) == (data, method)]
    changed = write.write(own, conf_dir() / "tuned")
    return "; ".join([f"chose {best}", *changed])


def fresh(data: str, method: str) -> list[spaces.Options]:
    """The trials without those that repeat another one under other words, as the preset spelled out."""
    plain = spaces.preset(method)
    distinct: dict[str, spaces.Options] = {}
    for each in spaces.trials(data, method):
        distinct.setdefault(json.dumps(spaces.applied(plain, each), sort_keys=True), each)
    return list(distinct.values())


def named(options: spaces.Options) -> str:
    """A trial's options in a few words."""
    short = []
    for path, value in options.items():
        name = path.removeprefix("schedule.").replace("before.0.", "MAP ").replace("optimizer.", "")
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        short.append(f"{name} {format(value, 'g') if is_number else json.dumps(value)}")
    return ", ".join(short) or "preset"


def search(
    data: str, method: str, tried: list[spaces.Options], found: list[scores.Score], chosen: int | None, exact: Any
) -> list[Trial]:
    """The trials of one search as rows of trials.csv, which gives the search its number."""
    node = spaces.space(data, method)
    first = Trial(
        data=data,
        method=method,
        search=0,
        trial=0,
        rule=node["rule"],
        setting={},
        shared=spaces.shared(data, method),
        shortened=node.get("trial", {}),
        status="",
        reference_rhat=None if exact is None else exact["metrics"]["rhat_max"],
        search_num_grads=sum(s.grads for s in found),
        **tuned.described(*spaces.base(data, method, {})),
    )
    rows = []
    for index, (options, s) in enumerate(zip(tried, found, strict=True)):
        numbers = s._asdict()
        numbers["num_grads"] = numbers.pop("grads")
        numbers["ess_per_million_grads"] = 1e6 * s.ess / s.grads if s.ess is not None and s.grads else None
        rows.append(dataclasses.replace(first, trial=index, setting=options, chosen=index == chosen, **numbers))
    return rows


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], help="data sets and methods, in the order in which to do them")
    parser.add_argument("--store", default="results/tuning", help="where trials are kept")
    parser.add_argument("--quick", action="store_true", help="seconds a method; keeps no trial, writes no file")
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
