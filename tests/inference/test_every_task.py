"""Every file of conf/inference on every kind of task: it runs, or is refused in one sentence before compilation.

All pairs are built and traced; a run of each preset, on the tasks in turn, goes all the way to its record.
"""

import zlib
from typing import Any

import numpy as np
import pytest
from laws import declared
from presets import FIRST, PRESETS, by_family

from bdlbench.runs import configuration
from bdlbench.runs.configuration import conf_dir
from bdlbench.runs.group import run_config
from bdlbench.runs.job import check_job, make_job
from bdlbench.types import ConfigError

REGRESSION = {"lppd", "lppd_gaussian", "rmse", "crps", "coverage_90", "interval_width_90"}
CLASSES = {"lppd", "accuracy", "brier"}
ROWS = 40
TASKS = {
    "learned noise": ("y", ["likelihood=gaussian"], REGRESSION),
    "heteroscedastic": ("y", ["likelihood=heteroscedastic"], REGRESSION),
    "two classes": ("two", [], CLASSES),
    "ten classes": ("ten", [], CLASSES),
    "eight schools": (None, ["model=eight_schools", "data=eight_schools"], set()),
    "robust regression": ("y", ["model=eight_schools"], {"lppd", "rmse"}),
}
"""The target's column, what else makes the task, and what its record must have; the last is a user's own model.

Counts are none of them: targets of regression are standardised, which leaves nothing for a Poisson model."""
MODELS = {"robust regression": "student"}
USERS = ("eight schools", "robust regression")
FAST = ("hmc", "svi")
MINIBATCHES = [p for p in PRESETS if "batch_size: 32" in (conf_dir() / "inference" / f"{p}.yaml").read_text()]
REFUSED = {
    **declared("refuses"),
    # Batches are looked at before the method is made, so that their sentence comes first.
    **{(name, "eight schools"): "batch_size=4 does not fit this model" for name in MINIBATCHES},
}
"""Pairs that make no sense, and a piece of the sentence that says why: of minibatches, and of what a family's file declares."""
TINY = {
    "num_warmup": 8, "num_samples": 8, "thinning": 2, "num_particles": 4, "rank": 2, "collect_after": 0,
    "collect_every": 2, "num_cycles": 2, "num_moves": 1, "validate_every": 4,
}  # fmt: skip
"""At most so much of each."""


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same 40 rows with a target for each task."""
    folder = tmp_path_factory.mktemp("rows")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((ROWS, 3)).astype(np.float32)
    y = x.sum(1) + 0.1 * rng.standard_normal(ROWS)
    targets = {"y": y, "two": (y > 0).astype(int), "ten": np.arange(ROWS) % 10}
    for name, target in targets.items():
        np.savez(folder / f"{name}.npz", x=x, y=target)
    return folder


def composed(archives: Any, preset: str, task: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The configuration of a preset with a very short schedule on a task."""
    target, options, _ = TASKS[task]
    if target is not None:
        kind = "classification" if target in ("two", "ten") else "regression"
        options = ["data=npz", f"data.path={archives}/{target}.npz", f"data.task={kind}", *options]
    if task not in USERS:
        options = [*options, "network.width=3"]
    made, labels = configuration.compose([*options, f"inference={preset}", "progress=off"])
    if task in MODELS:
        made["model"] = {"_target_": f"models_of_users.{MODELS[task]}", "scale": 1.0}
    stages = [made["inference"], *made["inference"]["before"]]
    for stage in stages:
        for node in (stage, stage["schedule"]):
            for key, most in TINY.items():
                if isinstance(node.get(key), int) and node[key] > most:
                    node[key] = most
        if stage["schedule"].get("batch_size"):
            stage["schedule"]["batch_size"] = 4
    made["inference"]["schedule"]["num_chains"] = 2
    return made, labels


def refusal(made: dict[str, Any], labels: dict[str, str]) -> str | None:
    """The message that refuses a configuration before anything is compiled; None if it is accepted."""
    try:
        check_job(make_job(made, labels))
    except ConfigError as error:
        return str(error)
    return None


@pytest.mark.slow
@pytest.mark.parametrize("preset", by_family(PRESETS, *FIRST))
def test_a_preset_fits_a_task_or_says_why_not(preset, archives):
    """Each preset is built and traced on each task. It is refused exactly if the table says so."""
    for task in TASKS:
        wanted, said = REFUSED.get((preset, task)), refusal(*composed(archives, preset, task))
        assert (said is None) == (wanted is None), (task, said)
        if said is not None and wanted is not None:
            assert wanted in said and "\n" not in said, (task, said)


def turn(preset: str) -> str:
    """The task on which a preset is run.

    It depends only on the preset's name, and skips tasks that refuse the preset.
    """
    names = list(TASKS)
    first = zlib.crc32(preset.encode())
    return next(t for t in (names[(first + i) % len(names)] for i in range(len(names))) if (preset, t) not in REFUSED)


def test_every_task_has_a_preset_of_each_kind():
    """Every task is chosen for some preset, also for one with minibatches."""
    assert {turn(preset) for preset in PRESETS} == set(TASKS)
    assert {turn(preset) for preset in MINIBATCHES} == set(TASKS) - {"eight schools"}


@pytest.mark.slow
@pytest.mark.parametrize("preset", by_family(PRESETS, *FAST))
def test_a_preset_runs_to_its_record(preset, archives, store_path):
    """The run is complete and has the task's metrics, which are finite. No step diverges in this short run."""
    task = turn(preset)
    made, labels = composed(archives, preset, task)
    made["store"]["path"] = str(store_path)
    record = run_config(made, labels)
    assert record["status"] == "complete", record["reason"]
    assert record["num_nonfinite"] == 0
    found = record["metrics"]
    assert TASKS[task][2] <= {name for name, value in found.items() if value is not None}, found
    for name in TASKS[task][2]:
        assert np.isfinite(found[name]), (name, found)
    assert sum(record["num_grads"].values()) > 0
