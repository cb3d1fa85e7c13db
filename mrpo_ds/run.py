"""One process of a run, from the launcher's variables to its end; and the launcher, when there is none."""

import json
import os
import signal
import socket
import subprocess
import sys
import traceback
import warnings
from pathlib import Path

from mrpo_ds.accelerator import announce_cpu
from mrpo_ds.check import check_run
from mrpo_ds.checkpoint import find_resume, read_state
from mrpo_ds.config.schema import Config
from mrpo_ds.distributed.heartbeat import Heartbeat
from mrpo_ds.distributed.launch import Launch, read_launch
from mrpo_ds.distributed.topology import build_topology, check_world_size
from mrpo_ds.distributed.worlds import Rendezvous, leave, open_rendezvous, split
from mrpo_ds.errors import ConfigError, MrpoError, ReferenceError
from mrpo_ds.material import prepare
from mrpo_ds.tracking import configure_console, log

RUN_AGAIN = 75
"""Exit code: stopped, with a checkpoint to go on from."""
CHECKED = "MRPO_DS_CHECKED"
"""Set for the processes of a launcher that we start after a check of our own."""


def train(config: Config, config_path: str, overrides: list[str], resume: str) -> int:
    """The train command, inside or outside a launcher. Returns the exit code."""
    announce_cpu()
    launch = read_launch(os.environ)
    if launch is None:
        configure_console(True)
        check_run(config, resume)
        return _start_launcher(config, ["train", config_path, *overrides, "--resume", resume])
    configure_console(launch.rank == 0)
    topology = build_topology(config)
    check_world_size(topology, launch.world_size)
    return _run_process(config, launch, resume)


def _run_process(config: Config, launch: Launch, resume: str) -> int:
    rendezvous = open_rendezvous(launch, config.topology.timeout_seconds)
    checkpoint = _agree(config, launch, rendezvous, resume)
    world = split(build_topology(config), rendezvous, config.topology.share_gpus)
    heartbeat = Heartbeat(world, config.topology.timeout_seconds, lambda: _failure_code(config))
    heartbeat.start()
    # DeepSpeed calls collectives by names that newer torch versions deprecate: nothing that our users could mend.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed.c10d_logger")
    # Imported here: deepspeed takes seconds, and none of the messages above should wait for it.
    from mrpo_ds.roles import run_policy, run_reference

    try:
        heartbeat.phase("read the data")
        material = prepare(config)
        if world.role.is_policy:
            run_policy(material, world, checkpoint, heartbeat.phase)
        else:
            first_step = read_state(checkpoint)["step"] if checkpoint else 0
            run_reference(material, world, first_step, heartbeat.phase)
        heartbeat.done()
        leave()
    except ReferenceError as error:
        heartbeat.end_after_broken_bridge(str(error))
    except MrpoError as error:
        heartbeat.end_because(str(error), error.exit_code)
    except Exception as error:  # a defect: show where, but do not leave the other ranks waiting
        traceback.print_exc()
        heartbeat.end_because(f"{type(error).__name__}: {error}")
    return 0


def _agree(config: Config, launch: Launch, rendezvous: Rendezvous, resume: str) -> Path | None:
    """Global rank 0 checks the run and chooses the checkpoint; the others wait for its word.

    Raises what the check raises on rank 0, and a ConfigError elsewhere.
    """
    store = rendezvous.store
    if launch.rank != 0:
        word = json.loads(store.get("agreed"))
        if word["error"]:
            raise ConfigError("global rank 0 refused the run; its message says why.")
        return Path(word["checkpoint"]) if word["checkpoint"] else None
    try:
        if CHECKED not in os.environ:
            check_run(config, resume)
        checkpoint = find_resume(Path(config.output_dir), resume)
    except MrpoError:
        store.set("agreed", json.dumps({"error": True, "checkpoint": None}))
        raise
    store.set("agreed", json.dumps({"error": False, "checkpoint": str(checkpoint) if checkpoint else None}))
    if checkpoint:
        log(f"resuming from {checkpoint}")
    return checkpoint


def _start_launcher(config: Config, arguments: list[str]) -> int:
    """Run this command under the deepspeed launcher on this machine, with as many processes as there are ranks."""
    ranks = build_topology(config).world_size
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", str(ranks), "--log_level", "error"]
    command += ["--master_addr", "127.0.0.1", "--master_port", str(_free_port()), "--module", "mrpo_ds", *arguments]
    environment = dict(os.environ)
    environment[CHECKED] = "1"
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // ranks)))
    environment.setdefault("TOKENIZERS_PARALLELISM", "false")
    log(f"starting {ranks} processes with the deepspeed launcher ({build_topology(config).describe()})")
    # A session of its own: the launcher is itself two processes, and a signal must reach both.
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: os.killpg(process.pid, received))
    code = process.wait()
    return code if code in (0, 1, 2, RUN_AGAIN) else _failure_code(config)


def _failure_code(config: Config) -> int:
    """75 when the run has a checkpoint to go on from, 1 otherwise."""
    return RUN_AGAIN if find_resume(Path(config.output_dir), "auto") else 1


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
