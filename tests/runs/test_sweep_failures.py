"""Failures are results: each kind leaves a record with its reason, the rest of the sweep is done, the exit code tells."""

import subprocess
import sys

import pytest
from presets import mostly

from bdlbench.runs import configuration, group, sweep
from bdlbench.runs import group as group_module
from bdlbench.runs.outcome import Outcome
from bdlbench.store import Store

SMALL = ["data=cosine_gap", "data.n_cluster=10", "data.n_test=8", "network.width=4", "progress=lines", "metrics=[lppd]"]
SGLD = [
    "inference=sgld",
    "inference.schedule={num_chains: 2, num_warmup: 5, num_samples: 10, thinning: 2, batch_size: 8}",
]


@pytest.mark.slow
def test_an_exception_nan_and_memory_each_leave_their_record(store_path, monkeypatch):
    """Of four lanes of one program one is fine, one diverges, one meets an error and one runs out of memory."""
    original = group._run_lanes

    def lanes(part, *args, **options):
        seeds = {job.seed for job in part.jobs}
        if 2 in seeds:
            raise ZeroDivisionError("no such chance")
        if 3 in seeds:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 5368709120 bytes.")
        return original(part, *args, **options)

    monkeypatch.setattr(group_module, "_run_lanes", lanes)
    sizes = {0: "1e-4", 1: "1e6", 2: "1e-4", 3: "1e-4"}
    made = [
        configuration.compose(
            [*SMALL, *SGLD, f"store.path={store_path}", f"seed={seed}", f"inference.step_size={size}"]
        )
        for seed, size in sizes.items()
    ]
    outcome = Outcome()
    records = sweep.run_sweep([(*each, "") for each in made], outcome, max_lanes=256)
    assert [record["status"] for record in records] == ["complete", "diverged", "failed", "failed"]
    assert records[0]["reason"] is None
    assert "non-finite in 2 of 2 chains" in records[1]["reason"]
    assert records[2]["reason"] == "ZeroDivisionError: no such chance"
    assert records[3]["reason"].startswith("out of memory: 5 GB were asked for at once, ")
    for record, error in ((records[2], "ZeroDivisionError"), (records[3], "RESOURCE_EXHAUSTED")):
        assert "Traceback (most recent call last)" in record["traceback"] and error in record["traceback"]
    assert outcome.exit_code == 1
    first, *rest = outcome.closing()
    assert first == "1 complete, 3 failed or diverged, 0 refused"
    assert rest == [f"  {record['id']}: {record['status']}: {record['reason']}" for record in records[1:]]
    for record in records[1:]:
        assert Store(store_path).record(record["id"])["reason"] == record["reason"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    mostly(["lanes", "basic", "joblib", "lanes hydra.sweeper.max_batch_size=1", "optuna"], "lanes", "optuna"),
)
def test_a_command_ends_with_what_failed(launcher, store_path):
    """Whatever the launcher, and though no progress is shown: what became of the runs, and why those that failed did.

    Of four runs one diverges, its steps far too long, and two are refused.
    """
    if launcher in ("joblib", "optuna"):
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    chosen = f"hydra/launcher={launcher}".split()
    sweep = ["seed=0,-1", "inference.step_size=1e-4,1e6"]
    if launcher == "optuna":
        chosen = ["hydra/sweeper=optuna", "hydra/launcher=joblib", "hydra.sweeper.n_trials=1"]
        chosen += [
            "hydra.sweeper.sampler={_target_: optuna.samplers.RandomSampler}",
            "hydra.sweeper.metric=metrics.lppd",
        ]
        chosen += ["hydra.sweeper.mean_over={seed: '0,-1', inference.step_size: '1e-4,1e6'}"]
        sweep = ["temperature=interval(1.0,1.5)"]
    options = [*SMALL, *SGLD, "progress=off", f"store.path={store_path}"]
    done = subprocess.run(
        [sys.executable, "-m", "bdlbench.cli.main", "-m", *options, *chosen, *sweep], capture_output=True, text=True
    )
    assert done.returncode == 1
    said = done.stderr.splitlines()
    assert "1 complete, 1 failed or diverged, 2 refused" in said
    (failed,) = [record for record in Store(store_path).runs().to_dict("records") if record["status"] != "complete"]
    assert f"  {failed['id']}: diverged: {failed['reason']}" in said
    assert done.stderr.count("Error: seed=-1 must be a whole number") == 2


def test_many_failures_are_counted():
    outcome = Outcome()
    outcome.records = [{"id": f"r{i}", "status": "failed", "reason": "no"} for i in range(25)]
    lines = outcome.closing()
    assert len(lines) == 22 and lines[-1].startswith("  and 5 more: bdlbench-results list --status")
    outcome.records = outcome.records[:1]
    assert outcome.closing() == ["  r0: failed: no"]
