"""Failures are results: each kind leaves a record with its reason, the rest of the sweep is done, the exit code tells."""

from bdlbench import config, run, sweep
from bdlbench.outcome import Outcome
from bdlbench.store import Store

SMALL = ["data=cosine_gap", "data.n_cluster=10", "data.n_test=8", "network.width=4", "progress=lines", "metrics=[lppd]"]
SGLD = [
    "inference=sgld",
    "inference.schedule={num_chains: 2, num_warmup: 5, num_samples: 10, thinning: 2, batch_size: 8}",
]


def test_an_exception_nan_and_memory_each_leave_their_record(store_path, monkeypatch, capsys):
    """Of four lanes of one program one is fine, one diverges, one meets an error and one runs out of memory."""
    original = run._run_lanes

    def lanes(part, *args, **options):
        seeds = {job.seed for job in part.jobs}
        if 2 in seeds:
            raise ZeroDivisionError("no such chance")
        if 3 in seeds:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 5368709120 bytes.")
        return original(part, *args, **options)

    monkeypatch.setattr(run, "_run_lanes", lanes)
    sizes = {0: "1e-4", 1: "1e6", 2: "1e-4", 3: "1e-4"}
    made = [
        config.compose([*SMALL, *SGLD, f"store.path={store_path}", f"seed={seed}", f"inference.step_size={size}"])
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
    said = capsys.readouterr().err
    assert "1 complete, 3 failed or diverged, 0 refused" in said
    for record in records[1:]:
        assert f"  {record['id']}: {record['status']}: {record['reason']}" in said
        assert Store(store_path).record(record["id"])["reason"] == record["reason"]
