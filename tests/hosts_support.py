"""Two hosts on this one: network namespaces with names, addresses and ssh servers of their own, joined by a cable."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.support import ROOT, command_environment, need

ADDRESSES = ("192.0.2.1", "192.0.2.2")
"""Of the block that is kept for documentation: no network has them."""
NAMES = ("left", "right")
SSH_PORT = 2222
MASTER_PORT = "29600"
"""Fixed, as a namespace has all ports for itself."""
TOOLS = {"ip": "iproute2", "ssh": "openssh-client", "ssh-keygen": "openssh-client", "sshd": "openssh-server"}
START_SECONDS = 60.0
PRIVILEGE_SEPARATION = Path("/run/sshd")
SSHD = """
Port {port}
ListenAddress {address}
HostKey {directory}/host_key
AuthorizedKeysFile {directory}/key.pub
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
StrictModes no
PidFile none
ClientAliveInterval 2
ClientAliveCountMax 2
"""
SSH = """
Host {hosts}
    User root
    Port {port}
    IdentityFile {directory}/key
    IdentitiesOnly yes
    UserKnownHostsFile {directory}/known_hosts
    GlobalKnownHostsFile none
    BatchMode yes
    LogLevel ERROR
    ServerAliveInterval 2
    ServerAliveCountMax 3
"""


@dataclass(frozen=True)
class Host:
    """A network namespace with an ssh server in it."""

    name: str
    """Its host name, which its processes see."""
    namespace: str
    cable: str
    """The name of its end."""
    address: str

    def processes(self) -> list[int]:
        """The processes in it, ssh server included."""
        return [int(pid) for pid in _do("ip", "netns", "pids", self.namespace).split()]


@dataclass(frozen=True)
class TwoHosts:
    """left and right. What runs on them goes when the context is left."""

    directory: Path
    hosts: tuple[Host, Host]

    def plug(self, end: str) -> None:
        """'down': pull the cable out; 'up': put it back. right's end, so that left can still talk to itself."""
        _do("ip", "-n", self.hosts[1].namespace, "link", "set", self.hosts[1].cable, end)

    def deepspeed(self, slots: tuple[int, int], output: Path, *arguments: str) -> subprocess.Popen[bytes]:
        """Start the deepspeed launcher on left for both hosts; stdout and stderr of all ranks go to output."""
        hostfile = self.directory / "hostfile"
        lines = [f"{host.address} slots={count}\n" for host, count in zip(self.hosts, slots, strict=True)]
        hostfile.write_text("".join(lines), encoding="utf-8")
        environment = command_environment(PDSH_SSH_ARGS_APPEND=f"-F {self.directory}/ssh_config")
        # The launcher hands PYTHONPATH on by itself, and whatever else this file says.
        names = ("OMP_NUM_THREADS", "DS_ACCELERATOR", "MRPO_DS_CACHE", "PATH")
        handed = self.directory / "environment"
        handed.write_text("".join(f"{name}={environment[name]}\n" for name in names), encoding="utf-8")
        command = ["ip", "netns", "exec", self.hosts[0].namespace, sys.executable, "-m", "deepspeed.launcher.runner"]
        command += ["--hostfile", str(hostfile), "--launcher", "pdsh", "--no_ssh_check"]
        command += ["--master_addr", ADDRESSES[0], "--master_port", MASTER_PORT]
        with output.open("wb") as console:
            return subprocess.Popen(
                [*command, "--module", "mrpo_ds", *arguments],
                cwd=ROOT,
                env=environment | {"DS_ENV_FILE": str(handed)},
                stdout=console,
                stderr=subprocess.STDOUT,
            )


@contextmanager
def two_hosts(directory: Path) -> Iterator[TwoHosts]:
    """Two hosts that reach each other and nothing else; skipped where their tools are missing or we are not root."""
    need(os.geteuid() == 0, "root, to make network namespaces")
    for tool, package in TOOLS.items():
        need(_which(tool) is not None, f"{tool} (apt-get install {package})")
    need(_which("pdsh") is not None, "pdsh (apt-get install pdsh)")
    number = os.getpid()
    first, second = (
        Host(name, f"mrpo-{number}-{name}", f"v{number}{name[0]}", address)
        for name, address in zip(NAMES, ADDRESSES, strict=True)
    )
    with ExitStack() as stack:
        for host in (first, second):
            made = subprocess.run(["ip", "netns", "add", host.namespace], capture_output=True, text=True)
            need(made.returncode == 0, f"leave to make network namespaces ({made.stderr.strip()})")
            stack.callback(_remove, host)
        _join(first, second)
        _make_keys(directory)
        if not PRIVILEGE_SEPARATION.exists():
            PRIVILEGE_SEPARATION.mkdir(mode=0o755)
            stack.callback(PRIVILEGE_SEPARATION.rmdir)
        for host in (first, second):
            stack.callback(_end, _start_sshd(host, directory))
        for host in (first, second):
            _wait_for_ssh(first, host, directory)
        yield TwoHosts(directory, (first, second))


def _which(tool: str) -> str | None:
    return shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _do(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


def _join(first: Host, second: Host) -> None:
    ends = ["name", first.cable, "netns", first.namespace], ["name", second.cable, "netns", second.namespace]
    _do("ip", "link", "add", *ends[0], "type", "veth", "peer", *ends[1])
    for host in (first, second):
        _do("ip", "-n", host.namespace, "address", "add", f"{host.address}/24", "dev", host.cable)
        for interface in ("lo", host.cable):
            _do("ip", "-n", host.namespace, "link", "set", interface, "up")


def _make_keys(directory: Path) -> None:
    for name in ("key", "host_key"):
        _do("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(directory / name))
    host_key = (directory / "host_key.pub").read_text(encoding="utf-8").strip()
    known = "".join(f"[{address}]:{SSH_PORT} {host_key}\n" for address in ADDRESSES)
    (directory / "known_hosts").write_text(known, encoding="utf-8")
    text = SSH.format(hosts=" ".join(ADDRESSES), port=SSH_PORT, directory=directory)
    (directory / "ssh_config").write_text(text, encoding="utf-8")


def _start_sshd(host: Host, directory: Path) -> subprocess.Popen[bytes]:
    configuration = directory / f"sshd_{host.name}"
    configuration.write_text(SSHD.format(port=SSH_PORT, address=host.address, directory=directory), encoding="utf-8")
    script = f"hostname {host.name} && exec {_which('sshd')} -D -e -f {configuration}"
    command = ["ip", "netns", "exec", host.namespace, "unshare", "--uts", "sh", "-c", script]
    with (directory / f"sshd_{host.name}.log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def _wait_for_ssh(first: Host, host: Host, directory: Path) -> None:
    command = ["ip", "netns", "exec", first.namespace, "ssh", "-F", f"{directory}/ssh_config", host.address, "hostname"]
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        done = subprocess.run(command, capture_output=True, text=True, timeout=START_SECONDS)
        if done.stdout.strip() == host.name:
            return
        time.sleep(0.1)
    log = (directory / f"sshd_{host.name}.log").read_text(encoding="utf-8")
    raise AssertionError(f"no ssh from left to {host.name}: {done.stderr}\n{log}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _remove(host: Host) -> None:
    """End what still runs in a namespace, which is ours alone, and remove it; its end of the cable goes with it."""
    left = [psutil.Process(pid) for pid in host.processes() if psutil.pid_exists(pid)]
    for process in left:
        process.kill()
    psutil.wait_procs(left, timeout=10)
    _do("ip", "netns", "del", host.namespace)
