"""`mrpo-ds ...` without its imports: a server imports what a run imports, once, and forks a process for each rank.

Most of the ten seconds of a tiny run are the imports of torch, transformers and deepspeed. A run here is the command's
own main(), with the same arguments, one process per rank, and the variables that a launcher such as torchrun sets; or
one process without them, as a command is typed.
"""

import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
IMPORTED = [
    "mrpo_ds.roles",
    "mrpo_ds.check",
    "deepspeed.runtime.zero.muon.muon_optimizer",  # deepspeed.initialize imports it, and torch's compiler with it
    "transformers.models.llama.modeling_llama",
    "transformers.models.gemma3.modeling_gemma3",
    "transformers.models.qwen2.modeling_qwen2",
]


class Finished(subprocess.CompletedProcess[str]):
    """A command that has ended."""

    def __init__(self, arguments: list[str], ends: list[tuple[int, float]], stdout: str, stderr: str) -> None:
        self.codes = [code for code, _ in ends]
        """Exit code of each rank; negative: the signal that killed it."""
        self.ended = [when for _, when in ends]
        """When each rank ended, in seconds of time.time()."""
        super().__init__(arguments, next((code for code in self.codes if code), 0), stdout, stderr)


class Warm:
    """Called like tests.support.mrpo_ds, from any thread; as many servers as there are calls at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._servers: list[subprocess.Popen[str]] = []
        self._idle: list[subprocess.Popen[str]] = []

    def __call__(
        self, *arguments: str, timeout: float = 300, own: Sequence[dict[str, str]] = (), **environment: str
    ) -> Finished:
        """Run `mrpo-ds train CONFIG ...` on as many ranks as its topology asks for. stderr is all that they wrote.

        own: what each rank has in its environment besides, if anything.
        """
        from mrpo_ds.config.load import load_config
        from mrpo_ds.distributed.topology import build_topology
        from tests.support import free_port

        config = Path(arguments[1])
        ranks = build_topology(load_config(str(config), [word for word in arguments[2:] if "=" in word])).world_size
        shared = environment | {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        environments = [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
        if own:
            environments = [one | more for one, more in zip(environments, own, strict=True)]
        output = config.with_suffix(".out")
        output.unlink(missing_ok=True)
        ends = self._ask(arguments, environments, timeout, output, output)
        return Finished(list(arguments), ends, "", output.read_text(encoding="utf-8"))

    def alone(self, *arguments: str, timeout: float = 300, **environment: str) -> Finished:
        """Run `mrpo-ds ...` in one process that no launcher has started."""
        with tempfile.TemporaryDirectory() as directory:
            stdout, stderr = Path(directory) / "stdout", Path(directory) / "stderr"
            ends = self._ask(arguments, [environment], timeout, stdout, stderr)
            said = [path.read_text(encoding="utf-8") for path in (stdout, stderr)]
        return Finished(list(arguments), ends, *said)

    def close(self) -> None:
        """End the servers."""
        for server in self._servers:
            server.communicate()

    def _ask(
        self, arguments: tuple[str, ...], environments: list[dict[str, str]], timeout: float, stdout: Path, stderr: Path
    ) -> list[tuple[int, float]]:
        """Exit code and time of the end of a process for each environment."""
        request = {
            "arguments": arguments,
            "environments": environments,
            "seconds": int(timeout),
            "streams": [str(stdout), str(stderr)],
        }
        server = self._take()
        assert server.stdin is not None and server.stdout is not None
        print(json.dumps(request), file=server.stdin, flush=True)
        ends: list[tuple[int, float]] = json.loads(server.stdout.readline())
        with self._lock:
            self._idle.append(server)
        return ends

    def _take(self) -> "subprocess.Popen[str]":
        """A server that nobody uses."""
        from tests.support import command_environment

        with self._lock:
            if self._idle:
                return self._idle.pop()
            server = subprocess.Popen(
                [sys.executable, "-m", "tests.warm"],
                cwd=ROOT,
                env=command_environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            self._servers.append(server)
            return server


def serve() -> None:
    """Answer each request, a line of JSON, with the exit codes of its processes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an import prints is no answer
    for module in IMPORTED:
        import_module(module)
    gc.freeze()  # or the first collection of every child visits, and so copies, all that was imported
    for line in sys.stdin:
        request = json.loads(line)
        children = []
        for environment in request["environments"]:
            child = os.fork()
            if child == 0:
                _become(request, environment)
            children.append(child)
        ends = _wait(set(children))
        print(json.dumps([ends[child] for child in children]), file=answers, flush=True)


def _wait(running: set[int]) -> dict[int, tuple[int, float]]:
    """Exit code and time of the end of every process. One that was stopped is killed when all others have ended."""
    ends: dict[int, tuple[int, float]] = {}
    stopped: set[int] = set()
    while running:
        child, status = os.waitpid(-1, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            stopped.add(child)
        else:
            ends[child] = os.waitstatus_to_exitcode(status), time.time()
            running.discard(child)
            stopped.discard(child)
        if running == stopped:
            for one in running:
                os.kill(one, signal.SIGKILL)
            stopped = set()
    return ends


def _become(request: dict[str, Any], environment: dict[str, str]) -> None:
    """Be one process of the command, to its end."""
    from mrpo_ds.cli import main
    from tests import short_of_memory
    from tests.faults import inject

    signal.alarm(request["seconds"])  # a rank that hangs is killed, and its exit code says so
    for stream, path in zip((1, 2), request["streams"], strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    os.environ.update(environment)
    inject.arm()
    short_of_memory.arm()
    sys.exit(main(request["arguments"]))


if __name__ == "__main__":
    serve()
