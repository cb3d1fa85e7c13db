"""One process of a run, from the launcher's variables to its end; and the launcher, when there is none."""

import json
import os
import secrets
import socket
import sys
import warnings
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path

from mrpo_ds import logs
from mrpo_ds.accelerator import announce_cpu
from mrpo_ds.check import check_models, check_run
from mrpo_ds.checkpoint import check_resume, find_resume, list_checkpoints, read_state
from mrpo_ds.config.schema import Config
from mrpo_ds.console import configure_console, log
from mrpo_ds.distributed.heartbeat import Heartbeat
from mrpo_ds.distributed.interface import address_of
from mrpo_ds.distributed.launch import Launch, read_launch
from mrpo_ds.distributed.topology import Role, Topology, build_topology, check_world_size
from mrpo_ds.distributed.trust import TOKEN
from mrpo_ds.distributed.watch import Limits
from mrpo_ds.distributed.worlds import Rendezvous, World, leave, open_rendezvous, split
from mrpo_ds.errors import RUN_AGAIN, ConfigError, DataError, MrpoError, ReferenceError, require
from mrpo_ds.material import Material, prepare
from mrpo_ds.session import run_ranks

CHECKED = "MRPO_DS_CHECKED"
"""Set for the ranks that we start ourselves, after a check."""


def train(config: Config, config_path: str, overrides: list[str], resume: str) -> int:
    """The train command, inside or outside a launcher. Returns the exit code."""
    announce_cpu()
    launch = read_launch(os.environ)
    if launch is None:
        configure_console(True)
        check_run(config, resume)
        return _start_ranks(config, ["train", config_path, *overrides, "--resume", resume])
    configure_console(launch.rank == 0)
    topology = build_topology(config)
    check_world_size(topology, launch.world_size)
    return _run_process(config, launch, resume)


def score(config: Config, config_path: str, overrides: list[str]) -> int:
    """The score command, inside a launcher (any number of processes) or outside. Returns the exit code."""
    announce_cpu()
    launch = read_launch(os.environ)
    configure_console(launch is None or launch.rank == 0)
    require(len(config.references) > 0, "references", [], "at least one reference to score with")
    if launch is None:
        check_models(config)
        prepare(config)
        return _start_ranks(config, ["score", config_path, *overrides])
    # Every process takes a share of every reference's rows, so all of them are one role.
    topology = replace(config.topology, policy=launch.world_size, placement="stored", store_missing="score")
    return _run_process(replace(config, topology=topology), launch, None)


def _run_process(config: Config, launch: Launch, resume: str | None) -> int:
    """One rank of a run; resume is None for the score command, which has no checkpoints."""
    timeout = config.topology.timeout_seconds
    topology = build_topology(config)
    rendezvous = open_rendezvous(launch, timeout, config.topology.interface)
    limits = Limits(timeout, asdict(config.topology.deadlines))
    heartbeat = Heartbeat(topology, rendezvous, limits, lambda: _failure_code(config), Path(config.output_dir))
    heartbeat.start()
    try:
        heartbeat.phase("check")
        checkpoint = None if resume is None else _agree(config, launch, rendezvous, resume)
    except MrpoError:
        heartbeat.done()  # every rank knows of the refusal from the store, and the command line prints it
        raise
    except Exception as error:
        heartbeat.end_because(error)
    try:
        _open_log(config, topology, launch, checkpoint)  # a run that is refused makes nothing
        heartbeat.phase("read the data")
        # Before the worlds: a node that has to prepare its data for hours keeps nobody waiting in a collective.
        material = prepare(config, only=_reads_for(config, topology.role_of(launch.rank)))
        _agree_on_data(material, topology, rendezvous)
        world = split(topology, rendezvous, config.topology.share_gpus)
        _run_role(material, world, checkpoint, heartbeat, scores=resume is None)
        leave()
    except Exception as error:  # whatever it is, do not leave the other ranks waiting
        heartbeat.end_because(error)
    heartbeat.done()
    return 0


def _open_log(config: Config, topology: Topology, launch: Launch, checkpoint: Path | None) -> None:
    """Write to logs/rank-N.log from now on; only global rank 0 goes on printing what libraries say."""
    role = topology.role_of(launch.rank)
    who = f"{role.name} rank {launch.rank - role.first} (global rank {launch.rank})"
    begins = f"goes on from {checkpoint}" if checkpoint else "begins"
    where = f"{who} of {launch.world_size}, host {socket.gethostname()}, process {os.getpid()}"
    logs.open_log(Path(config.output_dir), launch.rank, who, f"{where} {begins}", alone=launch.rank != 0)


def _run_role(material: Material, world: World, checkpoint: Path | None, heartbeat: Heartbeat, scores: bool) -> None:
    # DeepSpeed calls collectives by names that newer torch versions deprecate: nothing that our users could mend.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed.c10d_logger")
    # Imported here: deepspeed takes seconds, and none of the messages above should wait for it.
    from mrpo_ds.roles import run_policy, run_reference, run_score

    if scores:
        run_score(material, world, heartbeat.phase)
    elif world.role.is_policy:
        run_policy(material, world, checkpoint, heartbeat.phase, heartbeat.orders)
    else:
        first_step = read_state(checkpoint)["step"] if checkpoint else 0
        run_reference(material, world, first_step, heartbeat.phase)


def _reads_for(config: Config, role: Role) -> str | None:
    """Whose token ids a rank needs besides the policy's; None for everybody's."""
    return role.name.removeprefix("ref/") if config.topology.placement == "served" else None


def _agree_on_data(material: Material, topology: Topology, rendezvous: Rendezvous) -> None:
    """Wait until every rank has its data, however long that takes, and see that all have the same.

    Raises DataError, on the rank that differs from global rank 0.
    """
    store, rank = rendezvous.store, rendezvous.launch.rank
    ours = material.identity()
    if rank == 0:
        store.set("data", json.dumps(ours))
    if store.add("prepared", 1) == topology.world_size:
        store.set("all prepared", "")
    try:
        store.wait(["all prepared"], timedelta(days=30))  # the heartbeat watches everybody
    except RuntimeError as error:
        raise ReferenceError("global rank 0, which keeps the store, left while the data were prepared") from error
    for name, theirs in json.loads(store.get("data")).items():
        if ours.get(name, theirs) != theirs:
            raise DataError(
                f"{name} on {socket.gethostname()} (global rank {rank}) are {ours[name]}, but on the host of global "
                f"rank 0 {theirs}. All hosts need the same files, revisions of Hub data sets and models, and "
                "versions of transformers and tokenizers"
            )


def _agree(config: Config, launch: Launch, rendezvous: Rendezvous, resume: str) -> Path | None:
    """Global rank 0 checks the run and chooses the checkpoint; the others wait for its word.

    Raises what the check raises on rank 0, and a ConfigError elsewhere.
    """
    store = rendezvous.store
    if launch.rank != 0:
        try:
            store.wait(["agreed"], timedelta(days=30))  # large data take long to check; the heartbeat watches rank 0
        except RuntimeError as error:
            raise ConfigError("global rank 0 left during the check; its message says why.") from error
        word = json.loads(store.get("agreed"))
        if word["error"]:
            raise ConfigError("global rank 0 refused the run; its message says why.")
        return Path(word["checkpoint"]) if word["checkpoint"] else None
    try:
        if CHECKED not in os.environ:
            check_run(config, resume)
        check_resume(Path(config.output_dir), resume)
        checkpoint = find_resume(Path(config.output_dir), resume)
    except MrpoError:
        store.set("agreed", json.dumps({"error": True, "checkpoint": None}))
        raise
    store.set("agreed", json.dumps({"error": False, "checkpoint": str(checkpoint) if checkpoint else None}))
    if checkpoint:
        log(f"resuming from {checkpoint}")
    return checkpoint


def _start_ranks(config: Config, arguments: list[str]) -> int:
    """Run this command on this machine as many times as there are ranks, and be their launcher."""
    ranks = build_topology(config).world_size
    interface = config.topology.interface
    environment = {
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // ranks)),
        "TOKENIZERS_PARALLELISM": "false",
        TOKEN: secrets.token_hex(16),
        **os.environ,
        "MASTER_ADDR": address_of(interface) if interface else "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        CHECKED: "1",
    }
    log(f"starting {ranks} processes on this machine ({build_topology(config).describe()})")
    code, told = run_ranks([sys.executable, "-u", "-m", "mrpo_ds", *arguments], environment, ranks)
    if code in (0, 1, 2, RUN_AGAIN):
        return code
    return RUN_AGAIN if told else _failure_code(config)


def _failure_code(config: Config) -> int:
    """75 when the run has a checkpoint to go on from, 1 otherwise."""
    return RUN_AGAIN if list_checkpoints(Path(config.output_dir) / "checkpoints") else 1


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
