"""Write conf/tuned from the trials: a file for each pair whose chosen settings differ from the method's preset.

python -m experiments.tuning.write
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from bdlbench.runs.configuration import conf_dir
from bdlbench.runs.tuned import PARTS
from experiments.tuning import spaces, trials
from experiments.tuning.trials import Trial


def difference(found: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a section in which it differs from another one with the same keys; a list is taken as a whole."""
    out: dict[str, Any] = {}
    for key, value in found.items():
        if value == base[key]:
            continue
        nested = isinstance(value, Mapping) and isinstance(base[key], Mapping) and set(value) == set(base[key])
        out[key] = difference(value, base[key]) if nested else value
    return out


def settings(trial: Trial) -> dict[str, Any]:
    """What a trial would change in its method's preset, as a tuned file holds it."""
    base = spaces.preset(trial.method)
    return difference(spaces.applied(base, trial.shared | trial.setting), base)


def content(search: Sequence[Trial]) -> str | None:
    """The tuned file of a search; None where nothing was chosen, or where the preset was."""
    trial = next((trial for trial in search if trial.chosen), None)
    changed = {} if trial is None else settings(trial)
    if trial is None or not changed:
        return None
    price = trial.search_num_grads
    body = {
        "tuned_for": {part: getattr(trial, part) for part in PARTS},
        "tuning_num_grads": price,
        "inference": changed,
    }
    return (
        "# @package _global_\n"
        f"# Settings of {trial.method} for {trial.data}, chosen from {len(search)} trials (rule: {trial.rule}).\n"
        "# Written by experiments/tuning/write.py from trials.csv: change the trials, not this file.\n"
        f"{yaml.safe_dump(body, sort_keys=False, default_flow_style=None, width=118)}"
    )


def files(rows: Iterable[Trial]) -> dict[str, str | None]:
    """The text of each pair's file by its name; None where the pair is to have no file."""
    return {f"{data}_{method}.yaml": content(search) for (data, method), search in trials.in_force(rows).items()}


def write(rows: Iterable[Trial], folder: Path) -> list[str]:
    """Bring the files of a folder to what the trials say; files of other pairs stay. Returns what has changed."""
    changed = []
    for name, text in files(rows).items():
        file = folder / name
        before = file.read_text(encoding="utf-8") if file.exists() else None
        if text == before:
            continue
        if text is None:
            file.unlink()
        else:
            file.write_text(text, encoding="utf-8")
        changed.append(f"{'removed' if text is None else 'wrote'} {name}")
    return changed


def main() -> int:
    for line in write(trials.read(), conf_dir() / "tuned") or ["nothing to change"]:
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
