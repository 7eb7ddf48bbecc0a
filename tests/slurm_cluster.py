"""A Slurm cluster of one node on the loopback interface, for tests: all its files are in one folder, all its processes
are children of the test."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue")
SEARCH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin"])  # where daemons are

# No cgroups, no accounting, no memory limits. config_overrides: the CPUs declared here, not those of the machine.
# NoInAddrAny: listen on the address of the node alone.
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
KillWait=2
MinJobAge=600
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def absent() -> str:
    """Which of the programs that a cluster consists of are not installed, in words; empty if all are."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=SEARCH) is None]
    return f"no Slurm: {', '.join(missing)} not found (Debian: slurm-wlm, munge)" if missing else ""


def _free_ports(n: int) -> list[int]:
    with ExitStack() as sockets:
        taken = [sockets.enter_context(socket.socket()) for _ in range(n)]
        for one in taken:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in taken]


class Cluster:
    """Its commands, run with its configuration. environment: what a process needs to use it."""

    def __init__(self, folder: Path) -> None:
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}

    def ask(self, *command: str) -> str:
        """The output of a Slurm command. Raises CalledProcessError if it fails."""
        environment = {**os.environ, **self.environment}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    def states(self) -> dict[str, str]:
        """{job id, with the index in its array: state} of all jobs, ended ones included."""
        lines = self.ask("squeue", "--all", "--array", "--noheader", "--states=all", "--format=%i %T").splitlines()
        return dict(line.split() for line in lines)


def wait_until(condition, what: str, seconds: float = 60.0):
    """What condition() returns once it is true. Raises TimeoutError, naming what was waited for."""
    until = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > until:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(0.25)
    return value


def _idle(cluster: Cluster) -> bool:
    with contextlib.suppress(subprocess.CalledProcessError):
        return "State=IDLE " in cluster.ask("scontrol", "--oneliner", "show", "node") + " "
    return False


def _cancel_all(cluster: Cluster) -> None:
    running = [job for job, state in cluster.states().items() if state in ("RUNNING", "PENDING", "COMPLETING")]
    if running:
        cluster.ask("scancel", "--signal=KILL", *{job.partition("_")[0] for job in running})
        cluster.ask("scancel", *{job.partition("_")[0] for job in running})
    wait_until(lambda: _idle(cluster), "end of the jobs")


@contextmanager
def started(folder: Path, cpus: int) -> Iterator[Cluster]:
    """A cluster that takes jobs, its files in `folder`, whose path must be short: one of them is a socket."""
    folder.chmod(0o755)  # the socket of munge must be reachable, its key must not be readable by others
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    controller_port, node_port = _free_ports(2)
    host = socket.gethostname().partition(".")[0]
    values = {"folder": folder, "host": host, "user": getpass.getuser(), "cpus": cpus}
    text = CONFIGURATION.format(**values, controller_port=controller_port, node_port=node_port)
    (folder / "slurm.conf").write_text(text, encoding="utf-8")
    cluster = Cluster(folder)
    files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    munge = ["munged", "--foreground", "--force", *(f"--{key}={folder}/munge.{end}" for key, end in files.items())]
    with ExitStack() as daemons:

        def start(*command: str) -> None:
            path = shutil.which(command[0], path=SEARCH)
            assert path is not None
            with (folder / f"{command[0]}.out").open("w") as output:
                process = subprocess.Popen(
                    [path, *command[1:]], stdout=output, stderr=output, env={**os.environ, **cluster.environment}
                )
            daemons.callback(process.wait)
            daemons.callback(process.terminate)

        start(*munge)
        wait_until((folder / "munge.socket").exists, "munged")
        start("slurmctld", "-D")
        start("slurmd", "-D", "-N", host)
        wait_until(lambda: _idle(cluster), "a node that takes jobs")
        try:
            yield cluster
        finally:
            _cancel_all(cluster)
