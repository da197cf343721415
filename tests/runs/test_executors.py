"""Executors alone: what they return, and what happens to tasks whose process dies, fails or is stopped.

Functions are defined inside the tests, so that they are pickled by value: a worker cannot import a test's module.
"""

import inspect
import os
import pickle
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from bdlbench.errors import ConfigError
from bdlbench.runs.configuration import conf_dir
from bdlbench.runs.executors import EXECUTORS, make_executor
from bdlbench.runs.executors.base import Executor, Lost, required, use_cores
from bdlbench.runs.executors.processes import Processes, part
from bdlbench.runs.executors.slurm import Slurm, Task

LANES = yaml.safe_load((conf_dir() / "hydra" / "launcher" / "lanes.yaml").read_text())


def executor(name, **options):
    """An executor with the options of its preset."""
    return make_executor(name, LANES.get(name, {}) | options)


@pytest.mark.parametrize("name", EXECUTORS)
def test_a_preset_has_all_options_of_its_executor(name):
    """The keys of the yaml are the executor's keyword-only parameters, and none of these has a default."""
    made = executor(name)
    assert isinstance(made, Executor)
    parameters = inspect.signature(type(made)).parameters.values() if name != "local" else ()
    assert {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} == set(LANES.get(name, {}))
    assert all(p.default is p.empty for p in parameters)


@pytest.mark.parametrize("name", [name for name in EXECUTORS if name != "local"])
def test_a_preset_is_lanes_with_another_executor(name):
    """``hydra/launcher=lanes_<name>`` differs from ``lanes`` only in the executor."""
    preset = yaml.safe_load((conf_dir() / "hydra" / "launcher" / f"lanes_{name}.yaml").read_text())
    assert preset == {"defaults": ["lanes", "_self_"], "executor": name}


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("dask", {}, "executor='dask' is unknown: use local, processes, slurm, ray"),
        ("processes", {"num_workers": 0}, "hydra.launcher.processes.num_workers=0 must be at least 1"),
        ("processes", {"num_workers": 1.5}, "num_workers=1.5 must be a whole number"),
        ("processes", {"gpus": 2}, r"gpus=2 must be a list of devices such as \[0,1\]"),
        ("processes", {"threads": 2}, "hydra.launcher.processes.threads is unknown: the executor processes takes"),
        ("slurm", {"cluster": "pbs"}, "hydra.launcher.slurm.cluster='pbs' is unknown"),
        ("slurm", {"timeout_min": 0}, "timeout_min=0 must be at least 1"),
        ("slurm", {"setup": "module load cuda"}, "setup='module load cuda' must be a list of shell commands"),
        ("slurm", {"additional": ["qos"]}, "additional=.* must map options of sbatch"),
        ("slurm", {"poll_s": 0.0}, "poll_s=0.0 must be a positive finite number"),
        ("ray", {"num_gpus": -1.0}, "num_gpus=-1.0 must be zero or a positive finite number"),
        ("ray", {"resources": "a100"}, "resources='a100' must map Ray's resources"),
    ],
)
def test_options_are_refused_in_one_sentence(name, options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        executor(name, **options)


def test_a_missing_package_is_named_with_its_extra():
    with pytest.raises(ConfigError, match=r"no_such_executor is not installed: pip install 'bdlbench\[cluster\]'"):
        required("no_such_executor.part", "cluster")


def test_slurm_is_wanted_where_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="srun and sbatch"):
        list(executor("slurm", cluster="slurm").execute(len, [[]], folder=tmp_path / "jobs", begin=print))


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("things", [1, 2, 4, 5])
def test_shares_cover_everything_and_are_never_empty(workers, things):
    """If there are enough items, no two workers share one. Otherwise each worker has one."""
    shares = [part(range(things), worker, workers) for worker in range(workers)]
    assert {thing for share in shares for thing in share} == set(range(things))
    if things >= workers:
        assert sum(map(len, shares)) == things
    assert max(map(len, shares)) <= -(-things // workers)
    assert min(map(len, shares)) >= max(1, things // workers)


def test_gpus_are_shared_out_and_so_is_their_memory(monkeypatch):
    """Two workers on four GPUs have two each. Two workers on one GPU each get half the memory that JAX would take."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    four = executor("processes", num_workers=2)
    assert [four.share(i)[1]["CUDA_VISIBLE_DEVICES"] for i in range(2)] == ["4,5", "6,7"]
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION" not in four.share(0)[1]
    assert executor("processes").slots == 4
    one = executor("processes", num_workers=2, gpus=[3])
    assert [one.share(i)[1]["CUDA_VISIBLE_DEVICES"] for i in range(2)] == ["3", "3"]
    assert float(one.share(0)[1]["XLA_PYTHON_CLIENT_MEM_FRACTION"]) == pytest.approx(0.375)


def test_a_dead_worker_and_an_exception_stop_nobody_else():
    """Five tasks on two workers: one is killed, one raises, one is told to stop; the others return, also on the
    killed worker's successor."""

    def work(task):
        if task == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if task == "raise":
            raise LookupError("nothing there")
        if task == "stop":
            raise SystemExit(143)
        return [task, os.environ["OMP_NUM_THREADS"], os.environ["CUDA_VISIBLE_DEVICES"]]

    begun = []
    two = Processes(num_workers=2, cores_per_worker=1, gpus=[0, 1])
    found = dict(two.execute(work, ["die", "raise", "a", "b", "stop"], folder=Path("unused"), begin=begun.append))
    assert sorted(begun) == sorted(found) == [0, 1, 2, 3, 4]
    assert isinstance(found[0], Lost) and "SIGKILL" in str(found[0])
    assert isinstance(found[1], LookupError)
    assert found[2][:2] == ["a", "1"] and found[3][:2] == ["b", "1"]
    assert isinstance(found[4], Lost) and "stopped (SystemExit)" in str(found[4])
    assert {found[2][2], found[3][2]} <= {"0", "1"}


def test_closing_tells_a_worker_to_stop(tmp_path):
    """As after an interrupt, the worker first gets a signal, so that a run can write its checkpoint."""

    def work(task):
        if task == "quick":
            while not (tmp_path / "ready").exists():
                time.sleep(0.01)
            return []

        def checkpoint(number, frame):
            (tmp_path / "checkpoint").touch()
            raise KeyboardInterrupt

        signal.signal(signal.SIGTERM, checkpoint)
        (tmp_path / "ready").touch()
        time.sleep(600)
        return []

    results = Processes(num_workers=2, cores_per_worker=1, gpus=[]).execute(
        work, ["slow", "quick"], folder=tmp_path, begin=lambda index: None
    )
    assert next(results) == (1, [])
    results.close()
    assert (tmp_path / "checkpoint").exists()


def test_submitit_returns_and_tells_what_failed(tmp_path):
    """Of three jobs one returns, one raises and one is killed. Scripts and logs are kept."""

    def work(task):
        if task == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if task == "raise":
            raise LookupError("nothing there")
        return [task]

    options = {"cluster": "local", "poll_s": 0.2, "timeout_min": 5}
    found = dict(
        executor("slurm", **options).execute(work, ["a", "raise", "die"], folder=tmp_path, begin=lambda i: None)
    )
    assert found[0] == ["a"]
    assert isinstance(found[1], Lost) and "LookupError: nothing there" in str(found[1])
    assert isinstance(found[2], Lost) and "ended without a result" in str(found[2])
    assert list(tmp_path.glob("*_log.err"))


SQUEUE = """#!{python}
import sys
assert "--jobs=7" in sys.argv, sys.argv
print("7_0 RUNNING\\n7_1 NODE_FAIL")
"""


def test_the_queue_is_asked_once_for_all_jobs(tmp_path, monkeypatch):
    """States are read with squeue. A job that squeue does not know has ended, and no accounting is needed."""
    import submitit

    script = tmp_path / "squeue"
    script.write_text(SQUEUE.format(python=sys.executable))
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    jobs = {i: submitit.SlurmJob(tmp_path, f"7_{i}") for i in range(3)}
    assert executor("slurm")._states(jobs) == {0: "RUNNING", 1: "NODE_FAIL", 2: "FORGOTTEN"}
    script.write_text("#!/bin/sh\necho 'Unable to contact slurm controller' >&2\nexit 1\n")
    assert set(executor("slurm")._states(jobs).values()) == {"RUNNING"}


PREEMPTED = """
import os, signal, sys
from bdlbench.runs.executors.slurm import Task
from bdlbench.signals import deferred, on_signals
happened = []

def requeue(number, frame):
    happened.append("requeue")
    sys.exit(0)

def work(task):
    if not task:
        os.kill(os.getpid(), signal.SIGUSR2)
    with on_signals(), deferred() as stop:
        for name in task:
            os.kill(os.getpid(), getattr(signal, name))
        if stop.requested:
            happened.append("checkpoint")
        stop.check()

signal.signal(signal.SIGTERM, lambda *_: happened.append("ignored"))
signal.signal(signal.SIGUSR2, requeue)
try:
    Task(work, {signals}, None)()
finally:
    print(*happened)
"""


@pytest.mark.parametrize(
    ("signals", "expected"),
    [(["SIGUSR2"], "checkpoint requeue"), (["SIGTERM", "SIGUSR2"], "checkpoint requeue"), ([], "requeue")],
)
def test_a_preempted_job_writes_its_checkpoint_before_it_is_requeued(signals, expected):
    """submitit's signal reaches the run as SIGTERM, unless the scheduler has sent that first; only then is the job
    requeued. Before the run has begun, at once."""
    program = PREEMPTED.format(signals=signals)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == expected.split()


def test_a_requeued_job_is_the_same_call():
    again = Task(sorted, [2, 1], 3).checkpoint()
    assert again.function() == [1, 2]
    assert again.function.cores == 3


SBATCH = """#!/bin/sh
cp "$1" "{folder}/script"
echo Submitted batch job 7
"""


def test_every_option_reaches_sbatch(tmp_path, monkeypatch):
    """The script for a fake sbatch has a line for each option, and the setup before the command."""
    commands = tmp_path / "bin"
    commands.mkdir()
    queue = "#!/bin/sh\necho 7_0 FAILED; echo 7_1 FAILED\n"
    for name, text in {"sbatch": SBATCH.format(folder=tmp_path), "squeue": queue, "srun": "#!/bin/sh\n"}.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(commands), prepend=os.pathsep)
    monkeypatch.setattr("bdlbench.runs.executors.slurm.PATIENCE", 0.0)
    options = {"cluster": "slurm", "partition": "a100", "timeout_min": 77, "gpus_per_node": 2, "cpus_per_task": 4}
    options |= {"mem_gb": 8.0, "array_parallelism": 1, "signal_delay_s": 33, "max_num_timeout": 5, "poll_s": 0.01}
    options |= {"setup": ["module load cuda"], "additional": {"qos": "high", "constraint": "x86"}}
    assert set(options) == set(LANES["slurm"])
    made = executor("slurm", **options)
    assert isinstance(made, Slurm)
    found = dict(made.execute(len, [[], []], folder=tmp_path / "jobs", begin=lambda index: None))
    assert all(isinstance(lost, Lost) and "FAILED" in str(lost) for lost in found.values()) and len(found) == 2
    script = (tmp_path / "script").read_text()
    given = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", script, re.M))
    expected = {"job-name": "bdlbench", "partition": "a100", "time": "77", "gpus-per-node": "2", "cpus-per-task": "4"}
    expected |= {"mem": "8GB", "array": "0-1%1", "signal": "USR2@33", "qos": "high", "constraint": "x86"}
    assert {name: given.get(name) for name in expected} == expected
    assert script.index("\nmodule load cuda\n") < script.index("\nsrun ")
    submitted = [pickle.loads(path.read_bytes()) for path in (tmp_path / "jobs").glob("*submitted.pkl")]
    assert [job._timeout_countdown for job in submitted] == [5, 5]


def test_jax_is_held_to_fewer_cores(monkeypatch):
    """A flag limits JAX, unless the user has set one. There are always at least two devices."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for cores, flag in ((1, 2), (2, 2), (5, 5)):
        monkeypatch.setenv("XLA_FLAGS", "")
        use_cores(cores)
        assert os.environ["XLA_FLAGS"] == f"--xla_force_host_platform_device_count={flag}"
    use_cores(3)
    assert os.environ["XLA_FLAGS"].endswith("=5")
    monkeypatch.setenv("XLA_FLAGS", "")
    use_cores(8)
    assert os.environ["XLA_FLAGS"] == ""
