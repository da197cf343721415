"""Kills, busy runs, full disks: the store holds whole runs or none."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from bdlbench.store import RunBusy, RunExists, Store, StoreError
from bdlbench.store.errors import FolderGone
from bdlbench.store.files import FolderLock
from bdlbench.store.records import SCHEMA, own_checksum

ROOT = Path(__file__).parents[2]
PRELUDE = """
import os, signal, sys
import numpy as np
from bdlbench.store import Store, StoreError
from conftest import CONFIG, record_of
store = Store(sys.argv[1])
def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def python(script: str, *arguments: object) -> subprocess.Popen:
    """Start a Python that knows the store."""
    command = [sys.executable, "-c", PRELUDE + textwrap.dedent(script), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, Path(__file__).parent)))}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_concurrent_writers_lose_nothing(tmp_path):
    """8 processes write 20 runs each, 5 of them the same in all: as many records as ids, each whole."""
    script = """
        from bdlbench.store import RunExists
        me = int(sys.argv[2])
        for i in range(20):
            id = f"shared-{i}" if i < 5 else f"own-{me}-{i}"
            try:
                with store.writer(id, CONFIG, on_busy=lambda message: None) as writer:
                    writer.append_curve({"draws": i})
                    writer.finish(record_of(metrics={"lppd": float(i)}))
            except RunExists:
                assert i < 5
    """
    processes = [python(script, tmp_path, me) for me in range(8)]
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    store = Store(tmp_path)
    frame = store.runs()
    assert len(frame) == frame["id"].nunique() == 5 + 8 * 15
    assert all(store.verify(id) == [] for id in frame["id"])
    assert store.unfinished() == []


KILLS = {
    "before any draw": "writer.write = kill",
    "between blocks": "after = kill",
    "while a checkpoint is put in place": "os.replace = kill; checkpoint = True",
    "before the record is put in place": "replace_at_finish = kill",
    "while the record is synced": "fsync_at_finish = kill",
}


@pytest.mark.parametrize("where", KILLS, ids=str)
def test_a_kill_leaves_no_half_run(tmp_path, where, config, record_of):
    """After kill -9 at any point the run does not count, its lock is free and running it again makes it whole."""
    script = f"""
        after = replace_at_finish = fsync_at_finish = None
        checkpoint = False
        with store.writer("run", CONFIG) as writer:
            writer.allocate("posterior", "w", (1, 4), "float32", ("chain", "draw"), chunk_draws=2)
            {KILLS[where]}
            writer.write("posterior", "w", 0, np.ones((1, 2), "float32"))
            if after: after()
            if checkpoint: writer.checkpoint({{"t": np.array(2)}})
            writer.write("posterior", "w", 2, np.ones((1, 2), "float32"))
            if replace_at_finish:
                os.replace = lambda a, b: kill() if str(b).endswith("run.json") else None
            if fsync_at_finish: os.fsync = kill
            writer.finish(record_of())
    """
    process = python(script, tmp_path)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, errors
    store = Store(tmp_path)
    assert not store.has("run") and len(store.runs()) == 0 and store.unfinished() == ["run"]
    with store.writer("run", config) as writer:
        assert {path.name for path in (tmp_path / "run").iterdir()} == {
            ".lock",
            ".attempt",
            "config.yaml",
            "curve.jsonl",
        }
        writer.finish(record_of())
    assert store.has("run") and store.verify("run") == []


def test_a_kill_after_the_record_is_a_finished_run(tmp_path, config):
    """The checkpoint is deleted after the record: a kill in between leaves both, and the run counts."""
    script = """
        import shutil
        with store.writer("run", CONFIG) as writer:
            writer.checkpoint({"t": np.array(2)})
            shutil.rmtree = kill
            writer.finish(record_of())
    """
    process = python(script, tmp_path)
    process.communicate(timeout=60)
    store = Store(tmp_path)
    assert store.has("run") and store.verify("run") == []
    assert (tmp_path / "run/checkpoint").exists()
    with pytest.raises(RunExists), store.writer("run", config, resume=True):
        pass
    assert not (tmp_path / "run/checkpoint").exists()


def test_resume_goes_back_to_the_checkpoint(store, config, record_of):
    """Draws and curve after the checkpoint are written again; the end is that of the undisturbed run."""
    values = np.random.default_rng(1).normal(size=(2, 8, 3)).astype("float32")

    def allocate(writer):
        writer.allocate("posterior", "w", values.shape, "float32", ("chain", "draw", "w_dim_0"), chunk_draws=2)

    def blocks(writer, start, stop):
        for draw in range(start, stop, 2):
            writer.write("posterior", "w", draw, values[:, draw : draw + 2])
            writer.append_curve({"draws": draw})

    with store.writer("whole", config) as writer:
        allocate(writer)
        blocks(writer, 0, 8)
        whole = writer.finish(record_of())
    with pytest.raises(KeyboardInterrupt), store.writer("run", config) as writer:
        allocate(writer)
        blocks(writer, 0, 4)
        state = {"t": np.array(4), "key": np.array([1, 2], "uint32"), "file": np.array([True])}
        writer.checkpoint(state)
        blocks(writer, 4, 6)
        raise KeyboardInterrupt
    assert not store.has("run")
    with store.writer("run", config, resume=True) as writer:
        loaded = writer.load_checkpoint()
        assert loaded is not None and loaded.keys() == state.keys()
        for name, value in state.items():
            assert loaded[name].dtype == value.dtype
            np.testing.assert_array_equal(loaded[name], value)
        allocate(writer)
        blocks(writer, int(loaded["t"]), 8)
        record = writer.finish(record_of())
    assert record["files"]["curve.jsonl"] == whole["files"]["curve.jsonl"]
    np.testing.assert_array_equal(store.posterior("run")["posterior"]["w"].values, values)
    assert not (store.path / "run/checkpoint").exists()


def test_resume_then_fail_keeps_what_was_drawn(store, config, record_of):
    """A resumed run that fails before it draws again keeps the draws of its checkpoint."""
    with store.writer("run", config) as writer:
        writer.allocate("posterior", "w", (1, 8), "float32", ("chain", "draw"))
        writer.write("posterior", "w", 0, np.ones((1, 3), "float32"))
        writer.checkpoint({"t": np.array(3)})
    with store.writer("run", config, resume=True) as writer:
        writer.load_checkpoint()
        writer.finish(record_of(status="failed", reason="out of memory"))
    assert store.posterior("run")["posterior"].sizes["draw"] == 3


@pytest.mark.parametrize("damage", [lambda b: b[:-40], lambda b: b[:200] + bytes([b[200] ^ 1]) + b[201:]])
def test_a_damaged_checkpoint_starts_over(store, damage, config, record_of):
    """Truncated or flipped: found by the archive's CRC, set aside with a warning, and the run begins anew."""
    with store.writer("run", config) as writer:
        writer.append_curve({"draws": 1})
        writer.checkpoint({"theta": np.arange(50.0)})
    path = store.path / "run/checkpoint/state.npz"
    path.write_bytes(damage(path.read_bytes()))
    with store.writer("run", config, resume=True) as writer:
        with pytest.warns(UserWarning, match="is damaged .* starts over"):
            assert writer.load_checkpoint() is None
        assert (store.path / "run/curve.jsonl").read_bytes() == b""
        assert path.with_suffix(".damaged").exists()
        writer.finish(record_of())
    assert store.verify("run") == []


def test_checkpoints_hold_native_arrays_alone(store, config):
    """Arrays that npz would store as bytes or as a pickle are refused."""
    import ml_dtypes

    with store.writer("run", config) as writer:
        assert writer.load_checkpoint() is None
        for bad in (np.zeros(2, ml_dtypes.bfloat16), np.array([{}])):
            with pytest.raises(TypeError, match="theta has dtype"):
                writer.checkpoint({"theta": bad})


def test_a_busy_run_is_refused_or_waited_for(store, config, record_of):
    """While one process writes, a second one gets its name. A process that waits then finds the finished run."""
    messages: list[str] = []
    found: list[Exception] = []

    def second():
        try:
            with store.writer("run", config, on_busy=messages.append):
                pass
        except RunExists as error:
            found.append(error)

    with store.writer("run", config) as writer:
        with pytest.raises(RunBusy, match=f"run is being written by process {os.getpid()} on "):
            store.writer("run", config).__enter__()
        waiting = threading.Thread(target=second)
        waiting.start()
        while not messages:
            time.sleep(0.01)
        writer.finish(record_of())
    waiting.join(timeout=10)
    assert len(messages) == 1 and "waiting" in messages[0]
    assert len(found) == 1


def test_a_run_deleted_while_waited_for_is_written_anew(store, config, record_of):
    """The waiter does not end up with the lock of a folder that is no longer there."""
    messages: list[str] = []

    def second():
        with store.writer("run", config, on_busy=messages.append) as writer:
            writer.finish(record_of())

    with store.writer("run", config):
        waiting = threading.Thread(target=second)
        waiting.start()
        while not messages:
            time.sleep(0.01)
        os.rename(store.path / "run", store.path / ".gone")
    waiting.join(timeout=10)
    assert store.verify("run") == []


def test_a_finished_run_is_kept_unless_overwritten(store, make_run, config, record_of):
    """The second writer of a finished run is refused. With ``overwrite`` it replaces the record and every file."""
    make_run("run", metrics={"lppd": 1.0})
    with pytest.raises(RunExists), store.writer("run", config):
        pass
    (store.path / "run/leftover").write_text("")
    with store.writer("run", config, overwrite=True) as writer:
        assert store.record("run")["metrics"] == {"lppd": 1.0}
        writer.finish(record_of(metrics={"lppd": 2.0}))
    assert store.record("run")["metrics"] == {"lppd": 2.0}
    assert not (store.path / "run/leftover").exists()
    with store.writer("run", config, overwrite=True) as writer:
        writer.finish(record_of(status="failed", reason="out of memory"))
    assert store.record("run")["metrics"] == {"lppd": 2.0}
    assert list((store.path / ".rerun").iterdir()) == list((store.path / ".deleted").iterdir()) == []


@pytest.mark.parametrize("renames", [0, 1])
def test_a_rerun_that_is_killed_at_its_two_renames_is_not_lost(renames, tmp_path, config, record_of):
    """Before the first the old run counts, and the next command takes the new one; between the two the new one counts."""
    script = f"""
        from bdlbench.store import writer as module
        for value in (1.0, 2.0):
            with store.writer("run", CONFIG, overwrite=True) as writer:
                writer.checkpoint({{"t": np.array(2)}})
                if value == 2.0:
                    done, left = os.replace, [{renames}]
                    def replace(a, b):
                        if not str(b).endswith("run.json"):
                            kill() if left[0] == 0 else left.__setitem__(0, left[0] - 1)
                        done(a, b)
                    os.replace = replace
                writer.finish(record_of(metrics={{"lppd": value}}))
    """
    process = python(script, tmp_path)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, errors
    store = Store(tmp_path)
    if renames == 0:
        assert store.record("run")["metrics"] == {"lppd": 1.0}
        with pytest.raises(RunExists), store.writer("run", config, overwrite=True):
            pass
    assert [row["lppd"] for row in store.rows()] == [2.0]
    assert store.verify("run") == []


def test_a_rerun_continues_from_its_checkpoint(store, make_run, config, record_of):
    """A rerun is resumed like any other attempt. The old run counts until the rerun is finished."""
    make_run("run", metrics={"lppd": 1.0})
    with store.writer("run", config, resume=True, overwrite=True) as writer:
        writer.checkpoint({"t": np.array(4)})
    with store.writer("run", config, resume=True, overwrite=True) as writer:
        loaded = writer.load_checkpoint()
        assert loaded is not None and int(loaded["t"]) == 4
        assert store.has("run")
        writer.finish(record_of(metrics={"lppd": 2.0}))
    assert store.record("run")["metrics"] == {"lppd": 2.0} and store.verify("run") == []


def test_a_folder_that_is_removed_is_not_written_again(store, config, record_of):
    """Without it there is no lock: each way to write says so in one sentence, and makes no folder."""
    with store.writer("run", config) as writer:
        writer.allocate("posterior", "w", (1, 4), "float32", ("chain", "draw"))
        writer.write("posterior", "w", 0, np.ones((1, 2), "float32"))
        assert not writer.gone
        shutil.rmtree(store.path / "run")
        assert writer.gone
        for call in (
            lambda: writer.write("posterior", "w", 2, np.ones((1, 2), "float32")),
            lambda: writer.append_curve({"draws": 1}),
            lambda: writer.checkpoint({}),
            lambda: writer.finish(record_of()),
        ):
            with pytest.raises(FolderGone, match=r"^store.path: the folder '.*run' was removed while .*\.$"):
                call()
    assert not (store.path / "run").exists()


def test_deaths_without_progress_are_counted(tmp_path, config):
    """A kill counts, an error does not, and a kill after a new checkpoint begins the count again."""
    script = """
        def attempt(then, checkpoint=False):
            if (pid := os.fork()) == 0:
                try:
                    with store.writer("run", CONFIG, resume=True) as writer:
                        if checkpoint:
                            writer.checkpoint({"t": np.array(2)})
                        then()
                finally:
                    os._exit(0)
            os.waitpid(pid, 0)
            print(store.deaths("run"))
        attempt(kill)
        attempt(kill)
        attempt(kill)
        attempt(kill, checkpoint=True)
        attempt(kill)
        attempt(lambda: 1 / 0)
        attempt(kill)
    """
    process = python(script, tmp_path)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert out.split() == ["1", "2", "3", "0", "1", "0", "1"]
    with Store(tmp_path).writer("run", config, resume=True):
        assert Store(tmp_path).deaths("run") == 0  # somebody writes it


def test_what_lies_beside_a_finished_record_is_swept_when_it_is_found(store, make_run):
    """The checkpoint that a kill after the record left, unless somebody holds the run's lock."""
    make_run("run")
    left = store.path / "run" / "checkpoint" / "state.npz"
    left.parent.mkdir()
    left.write_bytes(b"old")
    lock = FolderLock(store.path / "run")
    lock.acquire()
    assert store.sound_record("run") is not None and left.exists()
    lock.release()
    assert store.sound_record("run") is not None and not left.parent.exists()


def test_a_writer_is_used_inside_its_block(store, config, record_of):
    """After finish, and outside of the context, writing raises an error."""
    with store.writer("run", config) as writer:
        writer.finish(record_of())
        with pytest.raises(RuntimeError, match="inside its 'with' block"):
            writer.append_curve({})
    with pytest.raises(RuntimeError, match="inside its 'with' block"):
        writer.finish(record_of())


def small_run(store, config, record_of):
    """A finished run with a file of every kind."""
    with store.writer("run", config) as writer:
        writer.allocate("posterior", "w", (2, 4), "float32", ("chain", "draw"))
        writer.write("posterior", "w", 0, np.random.default_rng(0).normal(size=(2, 4)).astype("float32"))
        writer.append_curve({"num_draws": 4})
        return writer.finish(record_of())


DAMAGES = {
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-5]),
    "flipped": lambda file: file.write_bytes(
        file.read_bytes()[:-9] + bytes([file.read_bytes()[-9] ^ 1]) + file.read_bytes()[-8:]
    ),
    "lost": lambda file: file.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["run.json", "config.yaml", "curve.jsonl", "posterior.zarr.zip"])
def test_a_damaged_run_is_as_if_it_had_never_been(name, damage, store, config, record_of):
    """Looked up, it is set aside with a reason, once; a run without its record simply does not count."""
    record = small_run(store, config, record_of)
    assert store.sound_record("run") == record
    notes: list[str] = []
    DAMAGES[damage](store.path / "run" / name)
    assert store.sound_record("run", notes.append) is None
    if name == "run.json" and damage == "lost":
        assert notes == [] and store.unfinished() == ["run"]
        return
    assert len(notes) == 1 and notes[0].startswith("run: set aside, to be run again: ")
    assert store.finished() == store.unfinished() == []
    assert len(list((store.path / ".set_aside").iterdir())) == 1
    assert store.sound_record("run", notes.append) is None and len(notes) == 1


def test_looking_up_reads_only_so_much(store, config, record_of, monkeypatch):
    """Beyond the limit sizes alone are compared: a flipped bit is left to ``verify``, a lost byte is not."""
    small_run(store, config, record_of)
    monkeypatch.setattr("bdlbench.store.store.VERIFIED_BYTES", 0)
    file = store.path / "run/posterior.zarr.zip"
    DAMAGES["flipped"](file)
    assert store.sound_record("run") is not None
    assert len(store.verify("run")) == 1
    DAMAGES["truncated"](file)
    assert store.sound_record("run") is None


def test_a_later_schema_is_never_set_aside(store, config, record_of):
    """Such a record is not damaged, so this version must not move it."""
    small_run(store, config, record_of)
    path = store.path / "run/run.json"
    whole = path.read_text()
    later = json.loads(whole) | {"schema": SCHEMA + 1}
    path.write_text(json.dumps(later | {"record_sha256": own_checksum(later)}))
    with pytest.raises(StoreError, match="upgrade bdlbench"):
        store.sound_record("run")
    assert path.exists()
    path.write_text(whole.replace(f'"schema": {SCHEMA}', f'"schema": {SCHEMA + 1}'))  # a flipped digit is damage
    assert store.sound_record("run") is None
    assert not path.exists()


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("posterior.zarr/posterior/w/c/0/0", "flipped"),
        ("posterior.zarr/posterior/w/c/0/0", "lost"),
        ("posterior.zarr/posterior/w/zarr.json", "truncated"),
        ("curve.jsonl", "truncated"),
        ("curve.jsonl", "flipped"),
    ],
)
def test_a_checkpoint_stands_on_sound_files_or_on_nothing(name, damage, store, config, record_of):
    """Draws or curve that have changed since: the run starts over rather than be built on them."""
    with store.writer("run", config) as writer:
        writer.allocate("posterior", "w", (2, 8), "float32", ("chain", "draw"), chunk_draws=2)
        writer.write("posterior", "w", 0, np.ones((2, 4), "float32"))
        writer.append_curve({"num_draws": 4})
        writer.checkpoint({"t": np.array(4)})
        writer.write("posterior", "w", 4, np.ones((2, 1), "float32"))  # after it, and of no concern to it
        writer.append_curve({"num_draws": 5})
    (store.path / "run/posterior.zarr/posterior/w/c/0/2").unlink(missing_ok=True)
    with store.writer("run", config, resume=True) as writer:
        loaded = writer.load_checkpoint()
        assert loaded is not None and int(loaded["t"]) == 4
    DAMAGES[damage](store.path / "run" / name)
    notes: list[str] = []
    with store.writer("run", config, resume=True) as writer:
        assert writer.load_checkpoint(notes.append) is None
        assert len(notes) == 1 and "starts over" in notes[0]
        assert not (store.path / "run/posterior.zarr").exists()
        writer.finish(record_of())
    assert store.verify("run") == []


def test_what_a_kill_left_half_written_is_cleared(store, config, record_of):
    """Temporary files of a rename that never came are no part of the finished run."""
    with store.writer("run", config) as writer:
        writer.allocate("posterior", "w", (2, 8), "float32", ("chain", "draw"))
        writer.write("posterior", "w", 0, np.ones((2, 4), "float32"))
        writer.checkpoint({"t": np.array(4)})
    left = [store.path / "run" / name for name in (".run.json.1.tmp", "checkpoint/.state.npz.1.tmp")]
    left.append(store.path / "run/posterior.zarr/posterior/w/c/0/0.5e3.partial")
    for file in left:
        file.write_bytes(b"half")
    with store.writer("run", config, resume=True) as writer:
        assert writer.load_checkpoint() is not None
        assert not any(file.exists() for file in left)
        writer.finish(record_of())


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX")
def test_a_full_disk_leaves_the_previous_state(tmp_path):
    """With the kernel refusing larger files, each kind of write fails with a clear error and what was there stays."""
    script = """
        import resource
        from bdlbench.store import arrays
        def limit(size):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        def fails(call, *arguments):
            limit(2000)
            try:
                call(*arguments)
            except StoreError as error:
                assert str(error).startswith("store.path: no room left"), error
            else:
                raise AssertionError("no error")
            finally:
                limit(resource.RLIM_INFINITY)
        state = {"theta": np.arange(10.0)}
        big = np.random.default_rng(0).normal(size=(1, 2000))
        with store.writer("run", CONFIG) as writer:
            writer.allocate("posterior", "w", (1, 2010), "float64", ("chain", "draw"), chunk_draws=10)
            writer.allocate("posterior", "v", (1, 2010), "float64", ("chain", "draw"))
            writer.write("posterior", "w", 0, np.ones((1, 10)))
            writer.write("posterior", "v", 0, np.ones((1, 10)))
            writer.checkpoint(state)
            writer.append_curve({"draws": 10})
            arrays.BUFFER_BYTES = 1000  # more than this is not kept waiting
            fails(writer.write, "posterior", "v", 10, big)
            fails(writer.append_curve, {"text": "x" * 4000})
            fails(writer.checkpoint, {"theta": np.arange(1000.0)})
            fails(writer.finish, record_of(traceback="x" * 4000))
            print(store.curve("run")["draws"].tolist(), store.has("run"), sorted(os.listdir(store.path / "run")))
        with store.writer("run", CONFIG, resume=True) as writer:
            print(writer.load_checkpoint()["theta"].tolist() == state["theta"].tolist())
            writer.finish(record_of())
        print(store.posterior("run")["posterior"]["v"].values.tolist() == [[1.0] * 10], store.verify("run"))
    """
    process = python(script, tmp_path)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert out.splitlines() == [
        "[10] False ['.attempt', '.lock', 'checkpoint', 'config.yaml', 'curve.jsonl', 'posterior.zarr']",
        "True",
        "True []",
    ]
