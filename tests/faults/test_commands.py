"""The command line with signals, two processes at once, a full disk and damaged files."""

import contextlib
import functools
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from commands import QUICK, ROOT, checkpoints, command, finish, start, wait_for
from presets import assert_same, outcome, shortened

from bdlbench.runs.executors.processes import GRACE, WATCH
from bdlbench.store import Store

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]
LONG = [
    *QUICK,
    *(option for option in shortened("sgld", 20_000, 10_000, 0) if "thinning" not in option),
    "inference.schedule.thinning=30",
]
"""Some seconds, most of them between two draws: what waits in memory is written at checkpoints and in the end."""
SHORT = [*QUICK, *shortened("sgld", 200, 20, 0)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The outcomes of the runs with seeds 0, 1 and 2 without interruption."""
    path = tmp_path_factory.mktemp("undisturbed")
    code, errors = command("-m", *LONG, f"store.path={path}", "seed=0,1,2", "hydra.launcher.max_lanes=2")
    assert code == 0, errors
    return {run_id: outcome(Store(path), run_id) for run_id in Store(path).finished()}


def compare(undisturbed, path):
    """Assert that every run of a store has the bits of the undisturbed run."""
    store = Store(path)
    assert store.finished()
    for run_id in store.finished():
        assert_same(undisturbed[run_id], outcome(store, run_id))
        assert store.verify(run_id) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_signal_ends_a_command_in_good_order(number, undisturbed, tmp_path):
    """It prints one sentence, exits with 128 + signal and leaves a new checkpoint. The same command then continues."""
    process = start(*LONG, f"store.path={tmp_path}", "store.checkpoint_seconds=1e6")
    wait_for(lambda: any(curve.stat().st_size for curve in tmp_path.glob("*/curve.jsonl")), process)  # has draws
    process.send_signal(number)
    code, errors = finish(process)
    assert code == 128 + number, errors
    assert errors.splitlines()[-1] == "bdlbench: stopped; the same command continues"
    assert "Traceback" not in errors
    assert len(checkpoints(tmp_path)) == 1
    code, errors = command(*LONG, f"store.path={tmp_path}")
    assert code == 0, errors
    assert "continues from its checkpoint" in errors
    compare(undisturbed, tmp_path)


def hears(process):
    """Whether the kernel says that the process has a handler for SIGTERM."""
    (caught,) = re.findall(r"SigCgt:\s*([0-9a-f]+)", Path(f"/proc/{process.pid}/status").read_text())
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_no_signal_is_ever_lost(number, tmp_path):
    """At evenly spaced moments of a command's first seconds: while it imports, composes, compiles and samples.

    The run itself would last for hours, so a command that ends has heard the signal; none that it survives would end
    within the time that a hanging process is given.
    """
    for place in range(12):
        process = start(*LONG, f"store.path={tmp_path}/{place}", "inference.schedule.num_warmup=2000000000")
        wait_for(functools.partial(hears, process), process)  # until then Python itself is still beginning
        time.sleep(0.8 * place)
        process.send_signal(number)
        code, errors = finish(process)
        assert code == 128 + number, (place, code, errors)
        assert errors.splitlines()[-1] == "bdlbench: stopped; the same command continues"
        assert "Traceback" not in errors, (place, errors)


def test_ctrl_c_at_the_end_prints_no_traceback(tmp_path):
    """At moments around the end of a command: in its last sentences, its ``finally`` blocks and the interpreter's exit.

    It ends as the run does, or in good order, or dies of the signal where nobody can catch it any more.
    """
    run = [*SHORT, f"store.path={tmp_path}"]
    assert command(*run)[0] == 0
    for place in range(12):
        process = start(*run)
        assert process.stderr is not None
        said = [process.stderr.readline()]  # found in the store
        time.sleep(0.02 * place)
        process.send_signal(signal.SIGINT)
        code, errors = finish(process)
        assert code in (0, 130, -signal.SIGINT), (place, code, errors)
        assert "Traceback" not in errors and "found in the store" in said[0], (place, said, errors)


@pytest.mark.parametrize("entry", ["results", "references"])
def test_ctrl_c_while_a_short_command_imports_prints_no_traceback(entry, tmp_path):
    """It ends before the signal, in good order, or dies of it."""
    line = f"import sys; from bdlbench.cli import main; print('up', flush=True); sys.exit(main.{entry}())"
    for place in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", line, "list", *(["--store", str(tmp_path)] if entry == "results" else [])],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        time.sleep(0.15 * place)
        process.send_signal(signal.SIGINT)
        errors = process.communicate()[1]
        # Before the first line of the function Python's own handler is still there.
        assert process.returncode in (0, 1, 2, 130, -signal.SIGINT), (place, errors)
        assert place == 0 or "Traceback" not in errors, (place, errors)


def test_a_second_signal_ends_it_at_once(tmp_path):
    """A second signal before the first has taken effect kills the process."""
    process = start(*LONG, f"store.path={tmp_path}", "inference.schedule.num_warmup=100000000")
    wait_for(lambda: bool(checkpoints(tmp_path)), process)
    os.kill(process.pid, signal.SIGSTOP)  # both are there when it wakes up
    os.kill(process.pid, signal.SIGTERM)
    os.kill(process.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGCONT)
    code, _ = finish(process)
    assert code in (-signal.SIGTERM, -signal.SIGINT, 143, 130)
    assert Store(tmp_path).finished() == []


def test_a_signal_stops_the_whole_sweep(undisturbed, tmp_path):
    """Runs in progress have checkpoints and later runs have not begun. The same command then continues."""
    sweep = ["-m", *LONG, f"store.path={tmp_path}", "seed=0,1,2", "hydra.launcher.max_lanes=2"]
    process = start(*sweep)
    wait_for(lambda: any(curve.stat().st_size for curve in tmp_path.glob("*/curve.jsonl")), process)  # has draws
    process.send_signal(signal.SIGTERM)
    code, errors = finish(process)
    assert code == 143, errors
    assert len(Store(tmp_path).finished()) < 3
    code, errors = command(*sweep)
    assert code == 0, errors
    compare(undisturbed, tmp_path)


def workers(process):
    """The worker processes of a command."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended since
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            if parent == process.pid and b"popen_loky" in (status.parent / "cmdline").read_bytes():
                found.append(status.parent)
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc to find the worker processes in")
def test_workers_end_with_a_killed_command(tmp_path):
    """kill -9 of a command with worker processes: they write checkpoints of this moment, though none is due, and are
    gone within the time that a worker has that is told to stop; the same command finds no run held and continues."""
    sweep = ["-m", *QUICK, *shortened("sgld", 200, 5_000_000, 0), f"store.path={tmp_path}", "seed=0,1"]
    sweep += [
        "store.checkpoint_seconds=1e6",
        "hydra/launcher=lanes_processes",
        "hydra.launcher.processes.num_workers=2",
    ]
    process = start(*sweep)
    wait_for(lambda: len(list(tmp_path.glob("*/posterior.zarr/posterior"))) == 2, process)
    orphans = workers(process)
    assert len(orphans) == 2
    assert not checkpoints(tmp_path)
    process.kill()
    until = time.monotonic() + WATCH + GRACE + 10.0
    while any(worker.exists() for worker in orphans) and time.monotonic() < until:
        time.sleep(0.1)
    left = [int(worker.name) for worker in orphans if worker.exists()]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, "workers go on without their command"
    finish(process)
    store = Store(tmp_path)
    assert store.finished() == []
    assert [store.holder(run_id) for run_id in store.unfinished()] == [None, None]
    assert len(checkpoints(tmp_path)) == 2
    process = start(*sweep)
    assert process.stderr is not None
    said: list[str] = []
    while sum("continues from its checkpoint" in line for line in said) < 2:
        said.append(process.stderr.readline())
        assert said[-1], said
    assert not any("is being written" in line for line in said)
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 143


def test_two_processes_start_the_same_run(undisturbed, tmp_path):
    """One process runs. The other one says that it waits and finds the finished run. Both exit with 0."""
    first = start(*LONG, f"store.path={tmp_path}")
    wait_for(lambda: bool(list(tmp_path.glob("*/config.yaml"))), first)
    first.send_signal(signal.SIGSTOP)  # for as long as the other takes to come by
    second = start(*LONG, f"store.path={tmp_path}")
    assert second.stderr is not None
    said = second.stderr.readline()
    first.send_signal(signal.SIGCONT)
    assert re.search(r"is being written by process \d+ on .*; waiting for it to end", said)
    ended = [finish(first), finish(second)]
    assert [code for code, _ in ended] == [0, 0], ended
    assert "warm-up" not in ended[1][1]
    compare(undisturbed, tmp_path)


def test_eight_writers_leave_800_whole_records(tmp_path):
    """8 processes write 100 runs each into one store. There are exactly 800 records, and all checksums fit."""
    script = """
        import sys
        import numpy as np
        from bdlbench.store import Store
        store, me = Store(sys.argv[1]), int(sys.argv[2])
        record = {"status": "complete", "labels": {}, "seconds": {}, "num_grads": {}, "device": "", "versions": {},
                  "warnings": []}
        for i in range(100):
            with store.writer(f"run-{me}-{i}", {"seed": i}) as writer:
                writer.allocate("posterior", "w", (2, 4), "float32", ("chain", "draw"))
                writer.write("posterior", "w", 0, np.full((2, 4), me * 100 + i, "float32"))
                writer.append_curve({"num_draws": 4})
                writer.finish({**record, "metrics": {"lppd": float(me * 100 + i)}})
    """
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    run = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    processes = [subprocess.Popen([*run, str(me)], env=env, stderr=subprocess.PIPE, text=True) for me in range(8)]
    for process in processes:
        code, errors = finish(process)
        assert code == 0, errors
    store = Store(tmp_path)
    frame = store.runs()
    assert sorted(frame["lppd"]) == list(range(800))
    assert [store.verify(run_id) for run_id in store.finished()] == [[]] * 800
    assert store.unfinished() == []


@pytest.fixture
def small_disk(tmp_path):
    """A function that mounts or resizes a tmpfs of this many KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = False

    def mount(kib: int) -> Path:
        nonlocal mounted
        options = f"{'remount,' if mounted else ''}size={kib}k"
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "none", str(place)], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
        mounted = True
        return place

    yield mount
    if mounted:
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_ends_in_one_sentence_and_nothing_is_lost(undisturbed, small_disk):
    """A finished run stays complete. The other run keeps its last checkpoint, and continues when there is space."""
    path = small_disk(100_000)
    assert command(*SHORT, f"store.path={path}")[0] == 0
    store = Store(path)
    (done,) = store.finished()
    process = start(*LONG, f"store.path={path}")
    wait_for(lambda: bool(checkpoints(path)), process)
    process.send_signal(signal.SIGSTOP)
    disk = os.statvfs(path)
    small_disk((disk.f_blocks - disk.f_bfree) * disk.f_frsize // 1024 + 64)
    process.send_signal(signal.SIGCONT)
    code, errors = finish(process)
    assert code == 1, errors
    assert "Traceback" not in errors
    assert re.search(r"^Error: store\.path: no room left to write .* run again\.$", errors, re.M), errors
    assert store.finished() == [done]
    assert store.verify(done) == []
    assert len(checkpoints(path)) == 1
    small_disk(100_000)
    code, errors = command(*LONG, f"store.path={path}")
    assert code == 0, errors
    assert "continues from its checkpoint" in errors
    (run_id,) = set(store.finished()) - {done}
    assert_same(undisturbed[run_id], outcome(store, run_id))


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]


FILES = (
    "config.yaml",
    "curve.jsonl",
    "run.json",
    "posterior.zarr.zip",
)


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], flipped], ids=["truncated", "flipped"])
def test_a_damaged_run_is_set_aside_and_repeated(damage, tmp_path):
    """For every kind of file, the same command finds the damage, reports it and makes the run again."""
    assert command(*SHORT, f"store.path={tmp_path}")[0] == 0
    store = Store(tmp_path)
    (run_id,) = store.finished()
    expected = outcome(store, run_id)
    for number, name in enumerate(FILES, 1):
        file = tmp_path / run_id / name
        file.write_bytes(damage(file.read_bytes()))
        code, errors = command(*SHORT, f"store.path={tmp_path}")
        assert code == 0, errors
        assert "Traceback" not in errors
        assert len(list((tmp_path / ".set_aside").iterdir())) == number, name
        assert f"{run_id}: set aside, to be run again: " in errors, name
        assert_same(expected, outcome(store, run_id))
        assert store.verify(run_id) == []
    assert json.loads((tmp_path / run_id / "run.json").read_text())["status"] == "complete"


@pytest.mark.parametrize(
    "name", ["checkpoint/state.npz", "curve.jsonl", "posterior.zarr/log_likelihood_test/y/c/0/0/0"]
)
def test_an_interrupted_run_with_damaged_files_starts_over(name, undisturbed, tmp_path):
    """The files that a checkpoint needs are checked before the run continues from it."""
    process = start(*LONG, f"store.path={tmp_path}")
    wait_for(lambda: any(curve.stat().st_size for curve in tmp_path.glob("*/curve.jsonl")), process)  # has draws
    process.send_signal(signal.SIGTERM)
    code, errors = finish(process)
    assert code == 143, errors
    assert len(checkpoints(tmp_path)) == 1, "the run was over before it was told to stop"
    (file,) = tmp_path.glob(f"*/{name}")
    file.write_bytes(flipped(file.read_bytes()))
    code, errors = command(*LONG, f"store.path={tmp_path}")
    assert code == 0, errors
    assert "starts over" in errors
    compare(undisturbed, tmp_path)
