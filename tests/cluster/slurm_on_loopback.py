"""A SLURM of one node on this machine: munged, slurmctld and slurmd by hand, their files in a folder of their own."""

import os
import secrets
import shutil
import socket
import subprocess
import time
from pathlib import Path

PACKAGES = ["munge", "slurm-client", "slurmctld", "slurmd"]
CONF = """
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
# Containers have no cgroups of their own
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=2
KillWait=20
MinJobAge=60
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=loopback Nodes={host} Default=YES MaxTime=60 State=UP
"""


def install() -> None:
    """Debian's packages, where they are missing."""
    if all(shutil.which(name) for name in ("munged", "slurmctld", "slurmd", "sbatch")):
        return
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "update", "-qq"], check=True, env=quiet)
    subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES], check=True, env=quiet)


class Slurm:
    """Starts on entering and is gone on leaving; ``SLURM_CONF`` names its configuration meanwhile."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.daemons = folder, []
        self.host = socket.gethostname().split(".")[0]

    def __enter__(self) -> "Slurm":
        install()
        for name in ("state", "spool"):
            (self.folder / name).mkdir(parents=True)
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0)), two.bind(("127.0.0.1", 0))
            ports = [one.getsockname()[1], two.getsockname()[1]]
        conf = self.folder / "slurm.conf"
        conf.write_text(CONF.format(host=self.host, folder=self.folder, ports=ports, cpus=os.cpu_count()))
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        os.environ["SLURM_CONF"] = str(conf)
        try:
            munge = [f"--{name}-file={self.folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
            self._start("munged", "--foreground", "--force", f"--socket={self.folder}/munge.socket", *munge)
            self._until(lambda: (self.folder / "munge.socket").exists(), "munged")
            self._start("slurmctld", "-D", "-i", "-f", str(conf))
            self._until(lambda: "UP" in self.ask("scontrol", "ping"), "slurmctld")
            self._start("slurmd", "-D", "-N", self.host, "-f", str(conf))
            self._until(lambda: self.ask("sinfo", "--noheader", "--format=%t").strip() == "idle", "slurmd")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.ask("scancel", "--user=root")
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in reversed(self.daemons):
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
        del os.environ["SLURM_CONF"]

    def ask(self, *command: str) -> str:
        """What a command of SLURM's prints."""
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout

    def _start(self, name: str, *options: str) -> None:
        with open(self.folder / f"{name}.log", "ab") as log:
            path = shutil.which(name) or f"/usr/sbin/{name}"
            self.daemons.append(subprocess.Popen([path, *options], stdout=log, stderr=log))

    def _until(self, ready: object, what: str) -> None:
        for _ in range(120):
            if self.daemons[-1].poll() is not None:
                break
            if ready():
                return
            time.sleep(0.5)
        raise RuntimeError(f"{what} does not start: {(self.folder / f'{what}.log').read_text()[-2000:]}")
