"""Sweeps through other executors: the same bits as in one process, and a record of every run that a worker lost."""

import dataclasses
import shutil
from pathlib import Path

import archives
import pytest
from presets import mostly

from bdlbench.runs import record as record_module
from bdlbench.runs.configuration import compose
from bdlbench.runs.executors import make_executor
from bdlbench.runs.executors.base import Lost
from bdlbench.runs.executors.local import Local
from bdlbench.runs.group import finished
from bdlbench.runs.job import make_job
from bdlbench.runs.outcome import Outcome
from bdlbench.runs.sweep import Plan, run_parcel, run_sweep
from bdlbench.store import Store

SMALL = [
    "data=cosine_gap",
    "data.n_cluster=10",
    "data.n_test=8",
    "network.width=4",
    "metrics=[lppd,rmse]",
    "progress=off",
]
MAP = [*SMALL, "inference=map", "inference.schedule={num_chains: 2, num_warmup: 20, num_samples: 1, thinning: 0}"]
HMC = [*SMALL, "inference=hmc", "inference.schedule={num_chains: 2, num_warmup: 5, num_samples: 5, thinning: 1}"]


def jobs(store, *more, method=MAP, seeds=(0, 1)):
    """The composed jobs of a small sweep over seeds."""
    asked = [[*method, *more, f"seed={seed}", f"store.path={store}"] for seed in seeds]
    return [(*compose(one), " ".join(one)) for one in asked]


def chunks(store, record):
    """The stored draws of a run, chunk by chunk. The metadata are left out, because they contain the time."""
    found = archives.chunks(Path(store) / record["id"])
    assert found
    return found


class Elsewhere:
    """An executor that gives a prescribed answer for each batch; ``None`` runs the batch as a worker would."""

    elsewhere, has_log = True, False

    def __init__(self, *answers, slots=1):
        self.answers, self.slots, self.sizes, self.memory_share = answers, slots, [], 1.0

    def execute(self, work, tasks, *, folder, begin):
        self.folder = folder
        for index, task in enumerate(tasks):
            self.sizes.append(len(task.jobs))
            begin(index)
            answer = self.answers[index]
            yield index, (work(task) if answer is None else answer)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("processes", {"num_workers": 2, "cores_per_worker": None, "gpus": []}),
        (
            "slurm",
            {"cluster": "local", "partition": None, "timeout_min": 5, "gpus_per_node": None, "cpus_per_task": None}
            | {"mem_gb": None, "array_parallelism": 1, "signal_delay_s": 30, "max_num_timeout": 1, "setup": None}
            | {"additional": None, "poll_s": 0.2},
        ),
    ],
)
def test_an_executor_gives_the_bits_of_one_process(name, options, tmp_path):
    """Metrics and the stored draws are those of the local executor: lanes are taken one by one on a CPU,
    so neither their company nor the number of cores touches a bit."""
    outcome = Outcome()
    here = run_sweep(jobs(tmp_path / "here", method=HMC), Outcome(), max_lanes=8)
    there = run_sweep(jobs(tmp_path / name, method=HMC), outcome, max_lanes=8, executor=make_executor(name, options))
    assert outcome.exit_code == 0, [record["reason"] for record in outcome.records]
    assert [record["seed"] for record in there] == [0, 1]
    for one, other in zip(here, there, strict=True):
        assert one["id"] == other["id"]
        assert one["metrics"] == other["metrics"]
        assert chunks(tmp_path / "here", one) == chunks(tmp_path / name, other)
    assert Store(tmp_path / name).finished() == sorted(record["id"] for record in there)


@pytest.mark.slow
def test_a_lost_batch_leaves_a_failure_for_each_of_its_runs(store_path):
    """The other batch is done, and the exit code is 1. The same command then runs only the failed runs."""
    outcome = Outcome()
    executor = Elsewhere(Lost("the worker process died (SIGKILL)"), None, slots=2)
    lost, done = run_sweep(jobs(store_path), outcome, max_lanes=8, executor=executor)
    assert executor.sizes == [1, 1]
    assert outcome.exit_code == 1 and not outcome.errors
    assert lost["status"] == "failed" and lost["reason"] == "Lost: the worker process died (SIGKILL)"
    assert done["status"] == "complete"
    store = Store(store_path)
    assert store.record(lost["id"]) == lost
    again = run_sweep(jobs(store_path), Outcome(), max_lanes=8, executor=Elsewhere(None))
    assert [record["status"] for record in again] == ["complete", "complete"]
    assert again[1] == done


def test_what_a_lost_worker_had_finished_is_kept(store_path):
    """If a worker dies in the second half of its batch, the first half has its records."""

    class Dies(Elsewhere):
        def execute(self, work, tasks, *, folder, begin):
            (task,) = tasks
            begin(0)
            run_parcel(dataclasses.replace(task, jobs=task.jobs[:1]))
            yield 0, Lost("node down")

    first, second = run_sweep(jobs(store_path), Outcome(), max_lanes=8, executor=Dies())
    assert first["status"] == "complete"
    assert second["status"] == "failed"


def test_a_lost_run_with_a_checkpoint_can_go_on(store_path):
    """No failed record is stored, because it would delete the checkpoint."""
    composed = jobs(store_path, seeds=(0,))
    job = make_job(*composed[0][:2])
    store = Store(store_path)
    with store.writer(job.id, job.config) as writer:
        writer.checkpoint({})
    outcome = Outcome()
    (record,) = run_sweep(composed, outcome, max_lanes=8, executor=Elsewhere(Lost("preempted")))
    assert record["status"] == "failed" and outcome.exit_code == 1
    assert store.has_checkpoint(job.id)
    assert finished(store, job.id) is None and not store.has(job.id)


@pytest.mark.parametrize("mode", mostly(["lines", "off"], "lines"))
def test_notes_of_a_worker_reach_the_user(mode, store_path, capsys):
    """Messages of workers are shown unless the progress is off.

    Their progress is not shown: they share the terminal.
    """
    composed = jobs(store_path, f"progress={mode}")
    for config, labels, _ in composed:
        job = make_job(config, labels)
        with Store(store_path).writer(job.id, job.config) as writer:
            writer.checkpoint({})
    run_sweep(composed, Outcome(), max_lanes=8, executor=Elsewhere(None, None, slots=2))
    said = capsys.readouterr().err
    assert said.count("starts over: its checkpoint cannot be used") == (2 if mode == "lines" else 0)
    assert " steps" not in said and "warm-up" not in said


def test_a_lost_repetition_keeps_the_old_record(store_path):
    """With ``rerun=true`` and a worker that never started, the complete record stays and the exit code is 1."""
    (done,) = run_sweep(jobs(store_path, seeds=(0,)), Outcome(), max_lanes=8)
    path = store_path / done["id"] / "run.json"
    before = path.read_bytes()
    outcome = Outcome()
    run_sweep(
        jobs(store_path, "rerun=true", seeds=(0,)), outcome, max_lanes=8, executor=Elsewhere(Lost("never started"))
    )
    assert outcome.exit_code == 1
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "created", mostly(["1999-01-01T00:00:00+00:00", "2999-01-01T00:00:00+00:00"], "1999-01-01T00:00:00+00:00")
)
def test_what_a_lost_repetition_had_finished_is_kept(created, store_path, monkeypatch):
    """A record is new if its content has changed. The clocks of the machines do not matter."""
    (done,) = run_sweep(jobs(store_path, seeds=(0,)), Outcome(), max_lanes=8)
    common = record_module.common_fields
    monkeypatch.setattr(record_module, "common_fields", lambda *of: common(*of) | {"created": created})

    class Dies(Elsewhere):
        def execute(self, work, tasks, *, folder, begin):
            work(tasks[0])
            yield 0, Lost("node down")

    outcome = Outcome()
    again = jobs(store_path, "rerun=true", seeds=(0,))
    (record,) = run_sweep(again, outcome, max_lanes=8, executor=Dies())
    assert outcome.exit_code == 0 and record["status"] == "complete"
    assert record["created"] == created != done["created"]


def test_batches_are_cut_for_the_executor(store_path):
    """Seven jobs of two chains on three slots: a batch has at most ``max_lanes`` lanes, and each slot gets a batch."""
    from bdlbench.runs.progress import Silent

    plan = Plan(jobs(store_path, seeds=range(7)), Outcome(), Silent())

    def sizes(executor, max_lanes):
        work = plan.batches(executor, max_lanes)
        assert [index for batch in work for index, _ in batch.members] == list(range(7))
        return [len(batch.members) for batch in work]

    assert sizes(Local(), 256) == [7]
    assert sizes(Local(), 8) == [4, 3]
    assert sizes(Elsewhere(slots=1), 256) == [7]
    assert sizes(Elsewhere(slots=3), 256) == [2, 2, 3]
    assert sizes(Elsewhere(slots=3), 2) == [1] * 7
    assert sizes(Elsewhere(slots=99), 256) == [1] * 7


def test_logs_go_to_a_folder_that_is_no_run(store_path):
    """The executor's folder is a hidden folder in the store."""
    executor = Elsewhere(None)
    (record,) = run_sweep(jobs(store_path, seeds=(0,)), Outcome(), max_lanes=8, executor=executor)
    executor.folder.mkdir()
    assert executor.folder.parent == store_path
    assert Store(store_path).finished() == [record["id"]] and not Store(store_path).unfinished()
    shutil.rmtree(executor.folder)
