"""A run that is killed and started again ends with the bits of one that was not, wherever it was killed."""

import functools
import json
import re
import shutil
import zlib
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
from presets import PRESETS, assert_same, by_family, mostly, outcome, shortened

from bdlbench.runs import checkpoint, configuration
from bdlbench.runs.group import run, run_config, run_group
from bdlbench.runs.job import make_job
from bdlbench.runs.member import PHASES, Member
from bdlbench.runs.progress import Silent
from bdlbench.runs.tally import Tally
from bdlbench.sampling import loop
from bdlbench.sampling.clock import Clock
from bdlbench.sampling.position import Position
from bdlbench.store import Store

SMALL = [
    "data=cosine_gap",
    "data.n_cluster=20",
    "data.n_test=6",
    "network.width=3",
    "progress=off",
    "metrics=[lppd,rmse]",
]


MOST = 3
"""Kills of one run: each further one costs a second of tracing and tells no more."""


class Killed(BaseException):
    """An exception in place of kill -9, which nothing catches."""


class Notes(Silent):
    """A progress display that keeps the messages for the user."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, message: str) -> None:
        self.said.append(message)


class Killer:
    """Checkpoints after some blocks and kills after others, both at random, ``most`` times; keeps count."""

    def __init__(
        self, monkeypatch, seed: int, keep: float = 0.4, kill: float = 0.2, jobs: int = 1, most: int = 1000
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.kills, self.kill, self.keep, self.jobs, self.most = 0, kill, keep, jobs, most
        self.calls = 0
        self.places: list[tuple] = []
        self.write = checkpoint.Checkpoints.write
        monkeypatch.setattr(checkpoint.Checkpoints, "due", lambda _: True)
        monkeypatch.setattr(checkpoint.Checkpoints, "write", lambda *args: self(*args))
        # blocks of single steps, so that there are as many places as steps
        monkeypatch.setattr(loop, "run", functools.partial(loop.run, block_seconds=0.0))

    def __call__(self, checkpoints, members, position, pending) -> None:
        if self.rng.random() < self.keep:
            self.places.append((*position().place, len(pending)))
            if self.jobs > 1:  # the kill falls between the checkpoints of two runs
                members = members[: self.rng.integers(1, self.jobs + 1)]
            self.write(checkpoints, members, position, pending)
        self.calls += 1
        overdue = self.calls >= 8 and bool(self.places) and not self.kills  # no seed is without a kill
        if self.kills < self.most and (self.rng.random() < self.kill or overdue):
            self.kills += 1
            raise Killed


def in_pieces(overrides: list[str]) -> dict:
    """Start a run again after each kill, and return its record."""
    composed = configuration.compose(overrides)
    while True:
        try:
            return run_config(*composed)
        except Killed:
            continue


@pytest.mark.slow
@pytest.mark.parametrize("preset", by_family(PRESETS, "nuts", "sgld", "svi"))
def test_every_method_continues_from_the_end_of_any_block(preset, tmp_path, monkeypatch):
    """Law 7: blocks of single steps, checkpoints and kills after random ones of them, and one run in long blocks."""
    overrides = [*SMALL, *shortened(preset, warmup=16, samples=8, before=6)]
    whole = run([*overrides, f"store.path={tmp_path}/whole"])
    killer = Killer(monkeypatch, seed=zlib.crc32(preset.encode()), kill=0.12, most=MOST)
    pieces = in_pieces([*overrides, f"store.path={tmp_path}/pieces"])
    assert killer.kills and killer.places, "this seed kills nothing"
    assert_same(outcome(Store(tmp_path / "whole"), whole["id"]), outcome(Store(tmp_path / "pieces"), pieces["id"]))
    assert Store(tmp_path / "pieces").verify(pieces["id"]) == []
    assert all(seconds >= 0 for seconds in pieces["seconds"].values())


def jobs_of(path, *more: str, seeds: Sequence[int] = (0, 1, 2)):
    return [make_job(*configuration.compose([*SMALL, f"store.path={path}", *more, f"seed={s}"])) for s in seeds]


def same_groups(one, other):
    """Two stores of equal runs."""
    first, second = Store(one), Store(other)
    assert first.finished() == second.finished()
    for run_id in first.finished():
        assert_same(outcome(first, run_id), outcome(second, run_id))


SVI = shortened("svi", warmup=10, samples=12, before=3)


@pytest.mark.slow
def test_a_group_whose_runs_were_left_at_different_places(tmp_path, monkeypatch):
    """Kills between the checkpoints of three lanes' runs: each goes on from its own, with those left at the same."""
    store = Store(tmp_path / "whole")
    run_group(jobs_of(store.path, *SVI), store, Silent())
    pieces = Store(tmp_path / "pieces")
    killer = Killer(monkeypatch, seed=5, keep=0.5, kill=0.15, jobs=3)
    parts: list[int] = []
    split = checkpoint.parts

    def counted(*args):
        found = split(*args)
        parts.append(len(found))
        return found

    monkeypatch.setattr(checkpoint, "parts", counted)
    for attempt in range(400):
        try:
            jobs = jobs_of(pieces.path, *SVI)
            # the first attempts know of two of the runs only: later one is new, the others are resumed
            run_group(jobs if attempt > 1 else jobs[:2], pieces, Silent(), alone=False)
            if attempt > 1:
                break
        except Killed:
            continue
    assert killer.kills > 3
    assert max(parts) > 1, "the runs were always left at the same place"
    same_groups(store.path, pieces.path)


def interrupted(path, *more: str, after: int, monkeypatch) -> str:
    """A run killed once a checkpoint was written with ``after`` draws done; its folder's name."""
    write = checkpoint.Checkpoints.write

    def stop(self, members, position, pending):
        write(self, members, position, pending)
        where = position()
        if where.phase == "sample" and where.done >= after:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpoints, "due", lambda _: True)
        patch.setattr(checkpoint.Checkpoints, "write", stop)
        patch.setattr(loop, "run", functools.partial(loop.run, block_seconds=0.0))
        with pytest.raises(Killed):
            run([*SMALL, *SVI, f"store.path={path}", *more])
    (run_id,) = Store(path).unfinished() or [folder.name for folder in (path / ".rerun").iterdir() if folder.is_dir()]
    return run_id


def resumed(path, *more: str) -> list[str]:
    """Run it again to its end, and return the messages."""
    notes = Notes()
    (job,) = jobs_of(path, *SVI, *more, seeds=[0])
    (record,) = run_group([job], Store(path), notes)
    assert record["status"] == "complete", record["reason"]
    return notes.said


def rewrite(file, change) -> None:
    """Change the arrays of a checkpoint and make its CRCs fit."""
    with np.load(file) as found:
        arrays = {name: found[name] for name in found.files}
    change(arrays)
    np.savez(file, **arrays)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lambda a: a.update({"array/header": np.array(str(a["array/header"]).replace('"jax": "', '"jax": "0'))}), "another version of jax"),
        (lambda a: a.update({"array/header": np.array(str(a["array/header"]).replace('"schema": 3', '"schema": 0'))}), "schema"),
        (lambda a: a.update({"array/position/leaf1": a["array/position/leaf1"][:, :-1]}), "starts over: its checkpoint"),
        (lambda a: a.pop("array/position/leaf1"), "starts over: its checkpoint"),
        (lambda a: a.pop("array/tally/facts"), "starts over: its checkpoint"),
    ],
    ids=["version", "schema", "shape", "leaf", "tally"],
)  # fmt: skip
def test_a_checkpoint_that_does_not_fit_is_not_used(fault, said, tmp_path, monkeypatch):
    """Another version, schema or shape: the run starts over, says so, and ends with the same bits."""
    run([*SMALL, *SVI, f"store.path={tmp_path}/whole"])
    run_id = interrupted(tmp_path / "pieces", after=6, monkeypatch=monkeypatch)
    rewrite(tmp_path / "pieces" / run_id / "checkpoint/state.npz", fault)
    notes = resumed(tmp_path / "pieces")
    assert any(said in note for note in notes), notes
    assert not any("continues" in note for note in notes)
    same_groups(tmp_path / "whole", tmp_path / "pieces")


def test_seconds_are_those_of_all_attempts(tmp_path, monkeypatch):
    """The record adds up what checkpoints say of earlier attempts, and no jump of the date matters."""
    jumps = iter(np.random.default_rng(0).normal(0, 1e9, 100_000))
    monkeypatch.setattr("time.time", lambda: float(next(jumps)))
    path = tmp_path / "pieces"
    run_id = interrupted(path, after=6, monkeypatch=monkeypatch)
    file = path / run_id / "checkpoint/state.npz"
    add = '"seconds": {"setup": 1000.0, "compile": 2000.0, "warmup": 3000.0, "sample": 4000.0, "predict": 5000.0}'

    def older(arrays):
        header = str(arrays["array/header"])
        assert all(seconds >= 0 for seconds in json.loads(header)["seconds"].values())
        arrays["array/header"] = np.array(re.sub(r'"seconds": \{[^}]*\}', add, header))

    rewrite(file, older)
    assert any("continues" in note for note in resumed(path))
    seconds = Store(path).record(run_id)["seconds"]
    for phase, before in zip(("setup", "compile", "warmup", "sample", "predict"), range(1000, 6000, 1000), strict=True):
        assert before <= seconds[phase] < before + 900
    curve = Store(path).curve(run_id)["seconds"]
    assert (np.diff(curve) >= 0).all()
    run([*SMALL, *SVI, f"store.path={tmp_path}/whole"])
    same_groups(tmp_path / "whole", path)


@pytest.mark.slow
@pytest.mark.parametrize("preset", mostly(["sgld", "nuts", "svi"], "sgld"))
def test_a_warm_started_run_continues(preset, tmp_path, monkeypatch):
    """The run continues from its checkpoint, not from its parent's draws. The cost of the parent is counted once."""
    parent = run([*SMALL, *shortened("map", warmup=20, samples=1, before=0), f"store.path={tmp_path}/whole"])
    shutil.copytree(tmp_path / "whole", tmp_path / "pieces")
    overrides = [*SMALL, *shortened(preset, warmup=8, samples=8, before=6), f"warm_start={parent['id']}"]
    whole = run([*overrides, f"store.path={tmp_path}/whole"])
    killer = Killer(monkeypatch, seed=zlib.crc32(preset.encode()), kill=0.12, most=MOST)
    places: list[tuple] = []
    begin = loop.run

    def noted(*args, resume=None, **options):
        if resume is not None:
            places.append(resume.place)
        return begin(*args, resume=resume, **options)

    monkeypatch.setattr(loop, "run", noted)
    pieces = in_pieces([*overrides, f"store.path={tmp_path}/pieces"])
    assert killer.kills and places, "this seed continues nothing"
    assert pieces["warm_start"] == whole["warm_start"] is not None
    same_groups(tmp_path / "whole", tmp_path / "pieces")


@pytest.mark.slow
def test_rerun_starts_over(tmp_path, monkeypatch):
    """An explicit repetition uses no checkpoint of the run; one that was killed is continued by the same command."""
    run_id = interrupted(tmp_path, after=6, monkeypatch=monkeypatch)
    assert not any("continues" in note for note in resumed(tmp_path, "rerun=true"))
    assert Store(tmp_path).has(run_id)
    assert interrupted(tmp_path, "rerun=true", after=6, monkeypatch=monkeypatch) == run_id
    assert Store(tmp_path).has(run_id), "the run is there until its repetition is complete"
    assert any("continues" in note for note in resumed(tmp_path, "rerun=true"))
    assert Store(tmp_path).has(run_id)


def test_without_checkpoints_nothing_is_kept(tmp_path, monkeypatch):
    """With store.checkpoint_seconds=null no checkpoint is written. The option is not part of the id."""
    run_id = interrupted(tmp_path, "store.checkpoint_seconds=null", after=6, monkeypatch=monkeypatch)
    assert not (tmp_path / run_id / "checkpoint").exists()
    assert not any("continues" in note for note in resumed(tmp_path))
    assert Store(tmp_path).finished() == [run_id]


def test_checkpoints_keep_their_distance():
    """Due by a clock that is handed in; expensive ones come less often, so that they take 2 % at most."""
    time = [0.0]
    where = Position(0, 0, "warmup", 1, (), np.zeros(1, int), None)
    one = checkpoint.Checkpoints(Clock(), 1, 30.0, now=lambda: time[0])
    found = []
    for second in range(100):
        time[0] = float(second)
        if one.due():
            found.append(second)
            one.write([], lambda: where, [])  # no runs: takes no time
    assert found == [30, 60, 90]

    class Slow:
        """The storage and the writer of a run whose checkpoint takes two seconds to write."""

        allocated: dict = {}
        gone = False

        @property
        def writer(self):
            return self

        def checkpoint(self, arrays):
            time[0] += 2.0

    tally = Tally(1, [], gaussian=True)
    member = Member(None, slice(0, 1), tally, Slow(), dict.fromkeys(PHASES, 0.0))
    time, taken = [0.0], 0
    slow = checkpoint.Checkpoints(Clock(), 1, 30.0, now=lambda: time[0])
    while time[0] < 1000:
        time[0] += 1.0
        if slow.due():
            slow.write([member], lambda: where, [])
            taken += 1
    assert taken == 10  # after 30 s, then every 100 s and what it takes
    assert checkpoint.Checkpoints(Clock(), 1, None).due() is False


def test_a_checkpoint_counts_its_runs_share_of_the_seconds():
    """A third of the group's, though only one of the three runs is left to be finished."""
    kept: list[dict] = []
    storage = SimpleNamespace(allocated={}, writer=SimpleNamespace(checkpoint=kept.append, gone=False))
    before = dict.fromkeys(PHASES, 1.0)
    member = Member(None, slice(0, 1), Tally(1, [], gaussian=True), storage, before)
    clock = Clock()
    clock.seconds["sample"] = 30.0
    where = Position(0, 0, "sample", 1, (), np.zeros(1, int), None)
    checkpoint.Checkpoints(clock, 3, 30.0).write([member], lambda: where, [])
    header = json.loads(str(kept[0]["header"]))
    assert header["seconds"] == before | {"sample": 11.0}
