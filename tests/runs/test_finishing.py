"""The end of a run: an error in the scores or files of one run affects only that run, and a stop loses nothing."""

import errno
import shutil
import signal

import numpy as np
import pytest
import zarr.storage

from bdlbench.runs import configuration, group, sweep
from bdlbench.runs.group import run_config
from bdlbench.runs.outcome import Outcome
from bdlbench.runs.storage import Storage
from bdlbench.runs.tally import Tally
from bdlbench.signals import Stopped, _Word
from bdlbench.store import Store
from bdlbench.store.arrays import PosteriorArrays

SMALL = [
    "data=cosine_gap", "data.n_cluster=10", "data.n_test=8", "network.width=4", "progress=off", "metrics=[lppd]",
    "inference=sgld",
    "inference.schedule={num_chains: 2, num_warmup: 5, num_samples: 10, thinning: 2, batch_size: 8}",
]  # fmt: skip


def jobs(store_path, seeds=(0, 1, 2, 3)):
    return [(*configuration.compose([*SMALL, f"store.path={store_path}", f"seed={seed}"]), "") for seed in seeds]


def broken(owner, name, monkeypatch, error, fails):
    """Make a method raise an error if ``fails(self)`` is true. Return the list of calls that did not raise."""
    original, calls = getattr(owner, name), []

    def call(self, *args, **options):
        if fails(self):
            raise error
        calls.append(self)
        return original(self, *args, **options)

    monkeypatch.setattr(owner, name, call)
    return calls


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "reason"), [(OSError(errno.EIO, "Input/output error"), "OSError"), (ValueError("bad"), "ValueError: bad")]
)
def test_draws_that_cannot_be_stored_cost_their_own_run_only(error, reason, store_path, monkeypatch):
    """The record has the reason and no draws. No other run is sampled again."""
    sampled = broken(Storage, "observed", monkeypatch, error, lambda _: False)
    broken(PosteriorArrays, "close", monkeypatch, error, lambda arrays: "-s1-" in str(arrays.path) and arrays.written)
    records = sweep.run_sweep(jobs(store_path), Outcome(), max_lanes=8)
    assert [r["status"] for r in records] == ["complete", "failed", "complete", "complete"]
    assert records[1]["reason"].startswith(reason) and "Traceback" in records[1]["traceback"]
    assert len(sampled) == 4
    store = Store(store_path)
    assert store.record(records[1]["id"])["reason"] == records[1]["reason"]
    assert not (store.path / records[1]["id"] / "posterior.zarr.zip").exists()
    assert all(store.verify(record["id"]) == [] for record in records)


def test_a_run_whose_record_cannot_be_written_either_is_reported(store_path, monkeypatch):
    """The sweep ends and reports the run."""
    broken(PosteriorArrays, "close", monkeypatch, OSError(errno.EIO, "bad disk"), lambda a: "-s1-" in str(a.path))
    outcome = Outcome()
    records = sweep.run_sweep(jobs(store_path), outcome, max_lanes=8)
    assert [r["status"] for r in records] == ["complete", "failed", "complete", "complete"]
    assert "bad disk" in records[1]["reason"] and not Store(store_path).has(records[1]["id"])
    assert outcome.exit_code == 1


def test_a_fault_in_one_runs_diagnostics_is_its_own(store_path, monkeypatch):
    """The draws of the other runs are kept, and no run is sampled again."""
    sampled = broken(Storage, "observed", monkeypatch, ValueError(), lambda _: False)
    broken(Storage, "mixing", monkeypatch, ZeroDivisionError("odd"), lambda s: "-s2-" in s.writer.folder.name)
    records = sweep.run_sweep(jobs(store_path), Outcome(), max_lanes=8)
    assert [r["status"] for r in records] == ["complete", "complete", "failed", "complete"]
    assert records[2]["reason"] == "ZeroDivisionError: odd"
    assert len(sampled) == 4


@pytest.mark.slow
def test_a_run_whose_folder_is_removed_ends_failed_and_its_neighbours_do_not(store_path, monkeypatch):
    """The run fails with one sentence and gets no new folder. The other runs write checkpoints and continue."""
    removed = []

    def due(self):
        if not removed:
            (folder,) = store_path.glob("*-s1-*")
            shutil.rmtree(folder)
            removed.append(folder)
        return True

    monkeypatch.setattr("bdlbench.runs.checkpoint.Checkpoints.due", due)
    sampled = broken(Storage, "observed", monkeypatch, ValueError(), lambda _: False)
    outcome = Outcome()
    records = sweep.run_sweep(jobs(store_path, (0, 1, 2)), outcome, max_lanes=8)
    assert [r["status"] for r in records] == ["complete", "failed", "complete"]
    assert records[1]["reason"].startswith(f"store.path: the folder '{removed[0]}' was removed while its run was being")
    assert len(sampled) == 3 and not removed[0].exists() and outcome.exit_code == 1


@pytest.mark.slow
def test_being_stopped_between_two_records_loses_no_draw(store_path, tmp_path, monkeypatch):
    """After a stop at the second of four records, two runs have records and two have checkpoints.

    No step is repeated.
    """
    whole = sweep.run_sweep(jobs(tmp_path / "whole"), Outcome(), max_lanes=8)
    original, done = group.finish_record, []

    def finished(*args, **options):
        done.append(original(*args, **options))
        if len(done) == 2:
            _Word.requested = signal.SIGTERM
        return done[-1]

    monkeypatch.setattr(group, "finish_record", finished)
    with pytest.raises(Stopped):
        sweep.run_sweep(jobs(store_path), Outcome(), max_lanes=8)
    _Word.requested = None
    store = Store(store_path)
    left = [record["id"] for record in whole if not store.has(record["id"])]
    assert len(left) == 2 and all(store.has_checkpoint(run_id) for run_id in left)
    counted = broken(Tally, "charge", monkeypatch, ValueError(), lambda _: False)
    records = sweep.run_sweep(jobs(store_path), Outcome(), max_lanes=8)
    assert not counted, "steps were repeated"
    assert [record["metrics"] for record in records] == [record["metrics"] for record in whole]
    assert all(store.verify(record["id"]) == [] for record in records)


PLACES = [
    place if place in (7, 22) else pytest.param(place, marks=pytest.mark.long if place % 3 else pytest.mark.slow)
    for place in range(36)
]
"""Two places run every time, every third with the slow tests, and the others with the long ones."""


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_a_failure_between_any_two_files_of_the_draws_can_be_continued(place, store_path, monkeypatch):
    """The disk is full after each number of Zarr files. The next command continues from a checkpoint and ends alike."""
    made, labels = jobs(store_path, seeds=(0,))[0][:2]
    made["store"]["checkpoint_seconds"] = 1e-9
    original, left = zarr.storage.LocalStore.set, [place]

    async def put(self, key, value, *args, **options):
        if left[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        left[0] -= 1
        return await original(self, key, value, *args, **options)

    whole = run_config({**made, "store": {**made["store"], "path": f"{store_path}/whole"}}, labels)
    with monkeypatch.context() as patch:
        patch.setattr(zarr.storage.LocalStore, "set", put)
        patch.setattr("bdlbench.runs.checkpoint.Checkpoints.due", lambda _: True)
        with pytest.raises(Exception, match="no room left"):
            run_config(made, labels)
    record = run_config(made, labels)
    assert record["status"] == "complete", record["reason"]
    one, other = (Store(p).posterior(record["id"]) for p in (store_path, f"{store_path}/whole"))
    for part in ("posterior", "sample_stats", "log_likelihood_test"):
        for name, values in other[part].variables.items():
            np.testing.assert_array_equal(one[part][name], values)
    assert whole["metrics"] == record["metrics"]
