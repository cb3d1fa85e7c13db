"""A real two-node Slurm on this host: controller and daemons of our own, in a directory and on ports of our own."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.support import ROOT, free_port, need

TOOLS = ("slurmctld", "slurmd", "munged", "srun", "sbatch", "scancel", "sinfo")
NODES = ("n1", "n2")
START_SECONDS = 60.0
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=30
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool/%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.%n.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd.%n.log
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={port_1} CPUs=4 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={port_2} CPUs=4 State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=30
PartitionName=urgent Nodes=n1,n2 MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
"""


@dataclass(frozen=True)
class Slurm:
    """A running cluster of the nodes n1 and n2."""

    directory: Path
    environment: dict[str, str]
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    """munged, slurmctld, and each node's slurmd under the node's name."""

    def lose(self, node: str) -> None:
        """Kill a node's slurmd and all of its jobs' processes, as when its power goes, and tell the controller.

        By itself the controller would notice after SlurmdTimeout, five minutes.
        """
        doomed = [psutil.Process(self.daemons[node].pid)]
        for process in psutil.process_iter():
            try:
                of = process.environ()
                if of.get("SLURMD_NODENAME") == node and of.get("SLURM_CONF") == self.environment["SLURM_CONF"]:
                    doomed += [process, *(one for one in process.parents() if one.name().startswith("slurmstepd"))]
            except psutil.Error:  # gone meanwhile
                continue
        for process in doomed:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.daemons[node].wait(10)
        done = self.run("scontrol", "update", f"nodename={node}", "state=down", "reason=lost")
        assert done.returncode == 0, done.stderr

    def restore(self, node: str) -> None:
        """Bring a lost node back."""
        command = _slurmd(self.directory / "slurm.conf", node)
        self.daemons[node] = _start(command, self.directory, self.environment)
        done = self.run("scontrol", "update", f"nodename={node}", "state=resume")
        assert done.returncode == 0, done.stderr

    def run(self, *command: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a Slurm command, or anything else, against this cluster."""
        return subprocess.run(
            command, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
        )

    def batch(self, script: str, *options: str, timeout: float = 180) -> tuple[int, str]:
        """Submit a script, wait for it, return its exit code and its output."""
        path = self.directory / "job.sh"
        path.write_text("#!/bin/bash\n" + script, encoding="utf-8")
        output = self.directory / "job.out"
        output.unlink(missing_ok=True)
        done = self.run("sbatch", "--wait", f"--output={output}", *options, str(path), timeout=timeout)
        return done.returncode, done.stderr + (output.read_text(encoding="utf-8") if output.exists() else "no output")


@contextmanager
def two_node_slurm(directory: Path) -> Iterator[Slurm]:
    """A cluster of two nodes of 4 processors each, whose partition urgent preempts the default one.

    Skipped where its daemons are not installed or we are not root.
    """
    for tool in TOOLS:
        need(shutil.which(tool) is not None, f"{tool} (apt-get install slurm-wlm munge)")
    need(os.geteuid() == 0, "root, to start Slurm's daemons")
    configuration = _prepare(directory)
    environment = {**os.environ, "SLURM_CONF": str(configuration)}
    for name in [name for name in environment if name.startswith(("SLURM_", "SBATCH_")) and name != "SLURM_CONF"]:
        del environment[name]
    slurm = Slurm(directory, environment)
    commands = {"munged": _munged(directory), "slurmctld": _slurmctld(configuration)}
    commands |= {node: _slurmd(configuration, node) for node in NODES}
    try:
        for name, command in commands.items():
            slurm.daemons[name] = _start(command, directory, environment)
        _wait_until_idle(slurm)
        yield slurm
    finally:
        if "slurmctld" in slurm.daemons:
            slurm.run("scancel", "--user=root", "--signal=KILL")
        _stop(list(slurm.daemons.values()))


def _prepare(directory: Path) -> Path:
    for name in ("state", "spool/n1", "spool/n2"):
        (directory / name).mkdir(parents=True)
    key = directory / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    text = CONFIGURATION.format(
        host=socket.gethostname(),
        directory=directory,
        controller_port=free_port(),
        port_1=free_port(),
        port_2=free_port(),
    )
    path = directory / "slurm.conf"
    path.write_text(text, encoding="utf-8")
    return path


def _munged(directory: Path) -> list[str]:
    files = {"socket": "socket", "key-file": "key", "log-file": "log", "pid-file": "pid", "seed-file": "seed"}
    # --force: the directory belongs to us and to nobody else, which munged finds odd for its socket
    return ["munged", "--foreground", "--force", *(f"--{o}={directory}/munge.{name}" for o, name in files.items())]


def _slurmctld(configuration: Path) -> list[str]:
    return ["slurmctld", "-D", "-c", "-f", str(configuration)]


def _slurmd(configuration: Path, node: str) -> list[str]:
    return ["slurmd", "-D", "-f", str(configuration), "-N", node]


def _start(command: list[str], directory: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    with (directory / f"{command[0]}.out").open("ab") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    if command[0] == "munged":  # the others talk to it from their first moment
        deadline = time.monotonic() + START_SECONDS
        while not (directory / "munge.socket").exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
    return process


def _wait_until_idle(slurm: Slurm) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and all(daemon.poll() is None for daemon in slurm.daemons.values()):
        states = slurm.run("sinfo", "--noheader", "--partition=all", "--Node", "--format=%N %T").stdout.split()
        if states == ["n1", "idle", "n2", "idle"]:
            return
        time.sleep(0.2)
    logs = "\n".join(f"{path.name}:\n{path.read_text()[-2000:]}" for path in sorted(slurm.directory.glob("*.[lo]*")))
    raise AssertionError(f"Slurm did not come up within {START_SECONDS:g} s:\n{logs}")


def _stop(daemons: list[subprocess.Popen[bytes]]) -> None:
    for daemon in reversed(daemons):
        daemon.terminate()
    for daemon in daemons:
        try:
            daemon.wait(10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
