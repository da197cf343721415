"""Run the command line in separate processes, so that tests can kill them."""

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
"""Seconds after which a process counts as hanging."""


def start(*overrides: str) -> subprocess.Popen:
    """Start ``bdlbench <overrides>`` in a new process."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "bdlbench.cli.main", *overrides]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> tuple[int, str]:
    """Wait for the end of a process, and return its exit code and its standard error."""
    _, errors = process.communicate(timeout=PATIENCE)
    return process.returncode, errors


def command(*overrides: str) -> tuple[int, str]:
    """Run ``bdlbench <overrides>`` to its end, and return exit code and standard error."""
    return finish(start(*overrides))


def wait_for(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    """Wait until the condition holds. Fail if the process ends before that."""
    until = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, f"the process ended early: {process.communicate()[1][-2000:]}"
        assert time.monotonic() < until, "nothing happens"
        time.sleep(0.02)


def checkpoints(store: Path) -> list[Path]:
    """Return the checkpoints of the unfinished runs of a store."""
    return sorted(store.glob("*/checkpoint/state.npz"))


def killed_until_done(
    overrides: list[str], store: Path, seconds: float, kills: int, rng: np.random.Generator
) -> tuple[int, int]:
    """Start a command and kill it with SIGKILL repeatedly, and at last let it finish.

    The first kill happens as soon as there is a checkpoint, so that the next attempt can continue from it. The time of
    each further kill is uniform over ``seconds``. Return the number of kills that found the process alive, and the
    number of attempts that continued from a checkpoint.
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
