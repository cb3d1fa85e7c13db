"""`mrpo-ds train` without its imports: a server imports what a run imports, once, and forks a process for each rank.

Most of the ten seconds of a tiny run are the imports of torch, transformers and deepspeed. A run here is the command's
own main(), with the same arguments, one process per rank, and the variables that a launcher such as torchrun sets.
"""

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
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
    """A run that has ended."""

    def __init__(self, arguments: list[str], ends: list[tuple[int, float]], output: str) -> None:
        self.codes = [code for code, _ in ends]
        """Exit code of each rank; negative: the signal that killed it."""
        self.ended = [when for _, when in ends]
        """When each rank ended, in seconds of time.time()."""
        super().__init__(arguments, next((code for code in self.codes if code), 0), "", output)


class Warm:
    """Called like tests.support.mrpo_ds, for `train` with a configuration; a server for each thread that calls."""

    def __init__(self) -> None:
        self._mine = threading.local()
        self._servers: list[subprocess.Popen[str]] = []

    def __call__(self, *arguments: str, timeout: float = 300, **environment: str) -> "Finished":
        """Run `mrpo-ds train CONFIG ...` on as many ranks as its topology asks for. stderr is all that they wrote."""
        from mrpo_ds.config.load import load_config
        from mrpo_ds.distributed.topology import build_topology
        from tests.support import free_port

        config = Path(arguments[1])
        ranks = build_topology(load_config(str(config), [word for word in arguments[2:] if "=" in word])).world_size
        shared = environment | {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        request: dict[str, Any] = {
            "arguments": arguments,
            "environments": [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)],
            "seconds": int(timeout),
            "output": str(config.with_suffix(".out")),
        }
        server = self._server()
        assert server.stdin is not None and server.stdout is not None
        print(json.dumps(request), file=server.stdin, flush=True)
        ends = json.loads(server.stdout.readline())
        return Finished(list(arguments), ends, Path(request["output"]).read_text(encoding="utf-8"))

    def close(self) -> None:
        """End the servers."""
        for server in self._servers:
            server.communicate()

    def _server(self) -> subprocess.Popen[str]:
        if not hasattr(self._mine, "server"):
            from tests.support import command_environment

            self._mine.server = subprocess.Popen(
                [sys.executable, "-m", "tests.warm"],
                cwd=ROOT,
                env=command_environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            self._servers.append(self._mine.server)
        return self._mine.server


def serve() -> None:
    """Answer each request, a line of JSON, with the exit codes of its processes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an import prints is no answer
    for module in IMPORTED:
        import_module(module)
    gc.freeze()  # or the first collection of every child visits, and so copies, all that was imported
    for line in sys.stdin:
        request = json.loads(line)
        Path(request["output"]).unlink(missing_ok=True)
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
    """Be one rank of the command, to the end of this process."""
    from mrpo_ds.cli import main
    from tests.faults.inject import arm

    signal.alarm(request["seconds"])  # a rank that hangs is killed, and its exit code says so
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.environ.update(environment)
    arm()
    sys.exit(main(request["arguments"]))


if __name__ == "__main__":
    serve()
