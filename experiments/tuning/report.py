"""What has been tuned: the state of every pair of a data set and a method, or the trials of some pairs.

python -m experiments.tuning.report [DATA or METHOD ...]

Without names it tells, pair by pair, whether settings were found, and which trials of the spaces have not been run.
With names it lists the trials of the pairs that they choose.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import yaml

from bdlbench.runs.outcome import shipped_options
from experiments.tuning import spaces, trials, tune, write
from experiments.tuning.scores import Score, sentence
from experiments.tuning.trials import Trial

EXCEPTIONS = yaml.safe_load(Path(__file__).with_name("exceptions.yaml").read_text(encoding="utf-8"))
Searches = Mapping[tuple[str, str], list[Trial]]


def state(data: str, method: str, searches: Searches) -> str:
    """Whether a pair has been tuned, in a few words."""
    if f"{data}_{method}" in EXCEPTIONS:
        return f"not tuned, because {EXCEPTIONS[f'{data}_{method}']}"
    search = searches.get((data, method))
    if search is None:
        return "not tuned" if method in spaces.METHODS else "not tuned: spaces.yaml has no space for this method"
    if not any(trial.chosen for trial in search):
        said = "no trial was complete"
    else:
        said = "the preset was best" if write.content(search) is None else "tuned"
    return said + untried(data, method, search)


def untried(data: str, method: str, search: list[Trial]) -> str:
    """How many trials of the space, as it is now, the search did not have; nothing where it had all."""
    if search[0].rule == trials.BY_HAND:
        return ", by hand"
    had = {json.dumps(trial.setting, sort_keys=True) for trial in search}
    new = [options for options in tune.fresh(data, method) if json.dumps(options, sort_keys=True) not in had]
    return f", but {len(new)} trials of its space have not been run" if new else ""


def coverage(searches: Searches) -> dict[tuple[str, str], str]:
    """The state of every pair of the spaces' data sets and the methods that there are, then of other pairs."""
    pairs = [(data, method) for data in spaces.DATA for method in shipped_options("inference")]
    return {pair: state(*pair, searches) for pair in dict.fromkeys([*pairs, *searches])}


def numbers(trial: Trial) -> str:
    """What came out of a trial, in a few words."""
    known = (trial.lppd, trial.rhat, trial.ess, trial.elbo, trial.distance, trial.mean_off, trial.sd_ratio)
    words = [sentence(trial.rule, Score(trial.status, 0.0, *known))]
    if trial.rule == "mixing" and trial.ess_per_million_grads is not None:
        words.append(f"{trial.ess_per_million_grads:.0f} a million gradients")
    return ", ".join(words) + (f" ({trial.note})" if trial.note else "")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="data sets and methods, any number of each")
    names = set(parser.parse_args(argv).names)
    searches = trials.in_force(trials.read())
    known = {name for pair in searches for name in pair}
    if names - known:
        parser.error(f"there are no trials of {', '.join(sorted(names - known))}")
    if not names:
        for (data, method), said in coverage(searches).items():
            print(f"{data} {method}: {said}")
        return 0
    data_sets, methods = ({pair[place] for pair in searches} & names for place in (0, 1))
    for (data, method), search in searches.items():
        if (not data_sets or data in data_sets) and (not methods or method in methods):
            price = search[0].search_num_grads
            print(f"{data} {method}, rule {search[0].rule}" + ("" if price is None else f", {price:,} gradients"))
            for trial in search:
                print(f"  {'*' if trial.chosen else ' '} {tune.named(trial.setting)}: {numbers(trial)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
