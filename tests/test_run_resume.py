"""A run that is killed and started again ends with the bits of one that was not, wherever it was killed."""

import functools
import zlib
from collections.abc import Sequence

import numpy as np
import pytest
from presets import PRESETS, assert_same, outcome, shortened

from bdlbench import config, resume
from bdlbench.progress import Silent
from bdlbench.run import run
from bdlbench.sampling import loop
from bdlbench.store import Store

SMALL = [
    "data=cosine_gap",
    "data.n_cluster=20",
    "data.n_test=6",
    "network.width=3",
    "progress=off",
    "metrics=[lppd,rmse]",
]


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


class Notes(Silent):
    """Keeps what a user would have read."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, message: str) -> None:
        self.said.append(message)


class Killer:
    """Checkpoints after some blocks and kills after others, both at random; keeps count."""

    def __init__(self, monkeypatch, seed: int, checkpoint: float = 0.4, kill: float = 0.2, jobs: int = 1) -> None:
        self.rng = np.random.default_rng(seed)
        self.kills, self.kill, self.checkpoint, self.jobs = 0, kill, checkpoint, jobs
        self.places: list[tuple] = []
        self.write = resume.Checkpoints.write
        monkeypatch.setattr(resume.Checkpoints, "due", lambda _: True)
        monkeypatch.setattr(resume.Checkpoints, "write", lambda *args: self(*args))
        # blocks of single steps, so that there are as many places as steps
        monkeypatch.setattr(loop, "run", functools.partial(loop.run, block_seconds=0.0))

    def __call__(self, checkpoints, where, pending) -> None:
        if self.rng.random() < self.checkpoint:
            self.places.append((*where.place, len(pending)))
            if self.jobs > 1:  # the kill falls between the checkpoints of two runs
                checkpoints.recorders = checkpoints.recorders[: self.rng.integers(1, self.jobs + 1)]
            self.write(checkpoints, where, pending)
        if self.rng.random() < self.kill or self.jobs > 1:
            self.kills += 1
            raise Killed


@pytest.mark.parametrize("preset", PRESETS)
def test_every_method_continues_from_the_end_of_any_block(preset, tmp_path, monkeypatch):
    """Law 7: blocks of single steps, checkpoints and kills after random ones of them, and one run in long blocks."""
    overrides = [*SMALL, *shortened(preset, warmup=16, samples=8, before=6)]
    whole = run([*overrides, f"store.path={tmp_path}/whole"])
    killer = Killer(monkeypatch, seed=zlib.crc32(preset.encode()))
    for _ in range(1000):
        try:
            pieces = run([*overrides, f"store.path={tmp_path}/pieces"])
            break
        except Killed:
            continue
    assert killer.kills and killer.places, "this seed kills nothing"
    assert_same(outcome(Store(tmp_path / "whole"), whole["id"]), outcome(Store(tmp_path / "pieces"), pieces["id"]))
    assert Store(tmp_path / "pieces").verify(pieces["id"]) == []
    assert all(seconds >= 0 for seconds in pieces["seconds"].values())


def jobs_of(path, *more: str, seeds: Sequence[int] = (0, 1, 2)):
    return [config.make_job(*config.compose([*SMALL, f"store.path={path}", *more, f"seed={s}"])) for s in seeds]
