"""Sweeps through a real SLURM and a real Ray on this machine: the same bits as here, and nothing lost.

    python tests/cluster/check.py [slurm] [ray]

Installs what it needs (Debian's SLURM, as root), starts it on loopback, and takes it down again.
"""

import hashlib
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from slurm_on_loopback import Slurm

from bdlbench.store import Store

ROOT = Path(__file__).parents[2]
DATA = [
    "data=cosine_gap",
    "data.n_cluster=10",
    "data.n_test=8",
    "network.width=4",
    "metrics=[lppd,rmse]",
    "progress=lines",
]
SCHEDULE = "{num_chains: 2, num_warmup: %d, num_samples: 4, thinning: 1, batch_size: %s}"
SWEEP = ["inference=sgld,hmc", "data.seed=range(4)", "inference.schedule=" + SCHEDULE % (30, "null")]
LONG = ["inference=sgld", "seed=1,2", "inference.schedule=" + SCHEDULE % (500_000_000, 8)]
MEDIUM = ["inference=sgld", "seed=1,2", "inference.schedule=" + SCHEDULE % (3_000_000, 8)]
COMPUTES, CONTINUES = " warm-up ", "continues from its checkpoint"
STARTED: list[subprocess.Popen[str]] = []
PRESETS = {
    "slurm": ["hydra/launcher=lanes_slurm", "hydra.launcher.slurm.poll_s=1", "hydra.launcher.slurm.cpus_per_task=1",
              "hydra.launcher.slurm.partition=loopback", "hydra.launcher.slurm.timeout_min=20"],
    "ray": ["hydra/launcher=lanes_ray", "hydra.launcher.ray.max_retries=0"],
}  # fmt: skip


def start(store: Path, *overrides: str) -> subprocess.Popen[str]:
    """The command, in a terminal's place."""
    command = [sys.executable, "-m", "bdlbench.cli.main", "-m", *DATA, f"store.path={store}", *overrides]
    STARTED.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    return STARTED[-1]


def ended(process: subprocess.Popen[str], code: int) -> str:
    """What it printed, if it ends as it should."""
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == code, f"exit code {process.returncode}, not {code}:\n{printed}"
    return printed


def results(store: Path) -> dict[str, tuple[str, str]]:
    """Status of each run and a checksum of its draws, whose metadata hold the time."""
    found = {}
    for name in Store(store).finished():
        draws = hashlib.sha256()
        with zipfile.ZipFile(store / name / "posterior.zarr.zip") as archive:
            for entry in sorted(archive.namelist()):
                draws.update(b"" if entry.endswith("zarr.json") else archive.read(entry))
        found[name] = Store(store).record(name)["status"], draws.hexdigest()
    return found


@dataclass(frozen=True)
class Workers:
    """Where an executor's workers are found: whose descendants, by what of their command line, and their logs."""

    above: Callable[[subprocess.Popen[str]], psutil.Process]
    named: Callable[[str], bool]
    log: Callable[[Path, psutil.Process], str]

    @contextmanager
    def one(self, process: subprocess.Popen[str], store: Path, says: str) -> Iterator[psutil.Process]:
        """The process that computes, once its log says so."""
        for _ in range(1500):
            assert process.poll() is None, process.communicate()[0]
            for found in self.above(process).children(recursive=True):
                with suppress(psutil.NoSuchProcess, FileNotFoundError):
                    if self.named(" ".join(found.cmdline())) and says in self.log(store, found):
                        yield found
                        return
            time.sleep(0.2)
        raise AssertionError(f"no worker said {says!r}")


def check(name: str, folder: Path, workers: Workers) -> None:
    """The checks that every executor has to pass."""
    preset = PRESETS[name]
    ended(start(folder / name, *SWEEP, *preset), 0)
    expected = results(folder / "local")
    assert len(expected) == 8 and {status for status, _ in expected.values()} == {"complete"}
    assert results(folder / name) == expected, f"{name}: other bits than here"
    print(f"{name}: 8 runs, the same bits as in one process", flush=True)

    process = start(folder / f"{name}-killed", *LONG, *preset)
    with workers.one(process, folder / f"{name}-killed", COMPUTES) as victim:
        victim.kill()
    printed = ended(process, 1)
    assert "0 complete, 2 failed" in printed, printed
    print(f"{name}: a killed worker is told of, exit code 1", flush=True)

    store = Store(folder / f"{name}-interrupted")
    for says in (COMPUTES, CONTINUES):
        process = start(store.path, *LONG, *preset)
        with workers.one(process, store.path, says) as victim:
            process.send_signal(signal.SIGINT)
            printed = ended(process, 130)
            victim.wait(60)
        assert not store.finished(), printed
        assert [store.has_checkpoint(one) for one in store.unfinished()] == [True, True], printed
    print(f"{name}: an interrupt has checkpoints written, from which the same command goes on", flush=True)


def check_slurm(folder: Path) -> None:
    """Beside the checks of every executor: a preempted job is requeued and goes on."""
    with Slurm(folder / "daemons") as slurm:

        def is_worker(line: str) -> bool:
            return "submitit.core._submit" in line and "srun" not in line and str(folder) in line

        def log(store: Path, _: psutil.Process | None = None) -> str:
            return "".join(path.read_text() for path in (store / ".slurm").glob("*_log.err"))

        # slurmd's steps are children of init, not of slurmd
        workers = Workers(lambda _: psutil.Process(1), is_worker, log)
        check("slurm", folder, workers)
        store = folder / "preempted"
        process = start(store, *MEDIUM, *PRESETS["slurm"])
        with workers.one(process, store, COMPUTES) as job:
            slurm.ask("scancel", "--signal=USR2", job.environ()["SLURM_JOB_ID"])
            job.wait(60)
        ended(process, 0)
        assert CONTINUES in log(store), log(store)
        assert [status for status, _ in results(store).values()] == ["complete"] * 2
        print("slurm: a preempted job is requeued, goes on from its checkpoint and ends", flush=True)


def check_ray(folder: Path) -> None:
    """The checks of every executor."""

    def log(_: Path, found: psutil.Process) -> str:
        return Path(f"/proc/{found.pid}/fd/2").read_text()

    check("ray", folder, Workers(lambda p: psutil.Process(p.pid), lambda line: line.startswith("ray::call"), log))


if __name__ == "__main__":
    wanted = sys.argv[1:] or ["slurm", "ray"]
    with tempfile.TemporaryDirectory() as scratch:
        try:
            ended(start(Path(scratch) / "local", *SWEEP), 0)
            for executor in wanted:
                {"slurm": check_slurm, "ray": check_ray}[executor](Path(scratch))
        finally:
            for left in STARTED:
                left.kill()
    print(f"{len(wanted)} passed, 0 failed")
