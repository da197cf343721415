"""The command line in processes of its own, to be killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
SMALL = ["data=cosine_gap", "data.n_cluster=20", "data.n_test=6", "network.width=4", "metrics=[lppd,rmse]"]
QUICK = [*SMALL, "progress=lines", "store.checkpoint_seconds=0.2"]
PATIENCE = 600.0
"""Seconds after which a process is taken to hang."""


def start(*overrides: str) -> subprocess.Popen:
    """``bdlbench <overrides>``."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "bdlbench.cli.main", *overrides]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> tuple[int, str]:
    """Exit code and standard error."""
    _, errors = process.communicate(timeout=PATIENCE)
    return process.returncode, errors


def command(*overrides: str) -> tuple[int, str]:
    """Run to the end."""
    return finish(start(*overrides))


def wait_for(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    """Until it holds; fails if the process ends before."""
    until = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, f"the process ended early: {process.communicate()[1][-2000:]}"
        assert time.monotonic() < until, "nothing happens"
        time.sleep(0.02)


def checkpoints(store: Path) -> list[Path]:
    """Checkpoints of the store's unfinished runs."""
    return sorted(store.glob("*/checkpoint/state.npz"))


def killed_until_done(
    overrides: list[str], store: Path, seconds: float, kills: int, rng: np.random.Generator
) -> tuple[int, int]:
    """Start a command, kill -9 it, and again; in the end let it finish.

    The first kill comes as soon as there is a checkpoint, so that the next attempt has one to go on from; each further
    one at a moment uniform over ``seconds``. Returns the kills that found the process alive, and how often it went on
    from a checkpoint.
    """
    landed = continued = 0
    for attempt in range(4 * kills + 1):
        process = start(*overrides, f"store.path={store}", "limits.attempts=null")
        if attempt == 0:
            wait_for(lambda: bool(checkpoints(store)), process)
            process.kill()
        elif landed < kills and attempt < 4 * kills:
            try:
                process.wait(rng.uniform(0, seconds))
            except subprocess.TimeoutExpired:
                process.kill()
        code, errors = finish(process)
        continued += "continues from its checkpoint" in errors
        assert code in (0, -signal.SIGKILL), errors
        if code == 0:
            break
        landed += 1
    return landed, continued
