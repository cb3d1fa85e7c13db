"""One process of a run, from the launcher's variables to its end; and the launcher, when there is none."""

import json
import os
import secrets
import socket
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path

from mrpo_ds import logs
from mrpo_ds.accelerator import announce_cpu
from mrpo_ds.check import check_models, check_run
from mrpo_ds.checkpoint import check_resume, find_resume, list_checkpoints, read_state
from mrpo_ds.config.schema import Config, SourceConfig
from mrpo_ds.console import configure_console, log
from mrpo_ds.distributed.heartbeat import Heartbeat
from mrpo_ds.distributed.interface import address_of
from mrpo_ds.distributed.launch import Launch, read_launch
from mrpo_ds.distributed.placement import describe_nodes, is_scattered, place
from mrpo_ds.distributed.topology import Role, Topology, build_topology, check_world_size
from mrpo_ds.distributed.trust import TOKEN
from mrpo_ds.distributed.watch import Limits
from mrpo_ds.distributed.worlds import Rendezvous, World, leave, meet_nodes, open_rendezvous, split
from mrpo_ds.errors import RUN_AGAIN, ConfigError, DataError, MrpoError, ReferenceError, read_shard, require
from mrpo_ds.leaderboard.after_training import evaluate_trained
from mrpo_ds.material import Material, prepare
from mrpo_ds.reference.scoring import Answered
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
        code = _start_ranks(config, ["train", config_path, *overrides, "--resume", resume])
        return code or evaluate_trained(config, build_topology(config).world_size)
    configure_console(launch.rank == 0)
    topology = build_topology(config)
    check_world_size(topology, launch.world_size)
    code = _run_process(config, launch, resume)
    if launch.rank == 0 and CHECKED not in os.environ:  # or who has started us does it
        code = code or evaluate_trained(config, int(os.environ.get("LOCAL_WORLD_SIZE", launch.world_size)))
    return code


@dataclass(frozen=True)
class ScoreJob:
    """What is scored, and what becomes of it besides being stored."""

    sets: Mapping[str, Sequence[SourceConfig]] | None = None
    """What is read instead of data.train and data.eval, by name."""
    answered: Answered | None = None
    """Told what every reference says, on every rank."""
    part: tuple[int, int] | None = None
    """Only this part of the rows; see Material.share."""
    finish: Callable[[Material], None] | None = None
    """Called on global rank 0 when everything is scored."""


def score(config: Config, config_path: str, overrides: list[str], shard: str | None) -> int:
    """The score command, inside a launcher (any number of processes) or outside. Returns the exit code.

    shard: "I/N" for part I of N of the rows alone, 0 <= I < N; other processes fill the store with the others.
    """
    require(len(config.references) > 0, "references", [], "at least one reference to score with")
    job = ScoreJob(part=None if shard is None else read_shard(shard))
    return score_rows(config, ["score", config_path, *overrides, *([] if shard is None else ["--shard", shard])], job)


def score_rows(config: Config, arguments: list[str], job: ScoreJob) -> int:
    """Let every reference score rows, inside a launcher or outside. Returns the exit code.

    Args:
        config: a run, of which only references and data count.
        arguments: the command line that does this, for the ranks to start where there is no launcher.
        job: which rows, and who is told.
    """
    announce_cpu()
    launch = read_launch(os.environ)
    configure_console(launch is None or launch.rank == 0)
    if launch is None:
        check_models(config)
        prepare(config, sets=job.sets)
        return _start_ranks(config, arguments)
    # Every process takes a share of every reference's rows, so all of them are one role.
    topology = replace(config.topology, policy=launch.world_size, placement="stored", store_missing="score")
    return _run_process(replace(config, topology=topology), launch, None, job)


def _run_process(config: Config, launch: Launch, resume: str | None, job: ScoreJob | None = None) -> int:
    """One rank of a run, or of a job of scoring, which has no checkpoints and resume None."""
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
        heartbeat.phase("meet the nodes")
        topology = _place(topology, rendezvous)
        heartbeat.rename(topology)
        _open_log(config, topology, launch, checkpoint)  # a run that is refused makes nothing
        heartbeat.phase("read the data")
        # Before the worlds: a node that has to prepare its data for hours keeps nobody waiting in a collective.
        reads_for = _reads_for(config, topology.role_of(launch.rank))
        material = prepare(config, only=reads_for, sets=job.sets if job else None)
        _agree_on_data(material, topology, rendezvous)
        if job is not None and job.part is not None:
            material = material.share(*job.part)
        world = split(topology, rendezvous, config.topology.share_gpus)
        _run_role(material, world, checkpoint, heartbeat, job)
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


def _place(topology: Topology, rendezvous: Rendezvous) -> Topology:
    """The roles as the nodes of their ranks suggest."""
    nodes = meet_nodes(rendezvous)
    placed = place(topology, nodes)
    if len(set(nodes)) > 1:
        log(describe_nodes(placed, nodes))
    if is_scattered(nodes):
        log("warning: the launcher deals ranks out to the nodes in turn, so roles lie scattered; with srun: -m block")
    return placed


def _run_role(
    material: Material, world: World, checkpoint: Path | None, heartbeat: Heartbeat, job: ScoreJob | None
) -> None:
    # DeepSpeed calls collectives by names that newer torch versions deprecate: nothing that our users could mend.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed.c10d_logger")
    # Imported here: deepspeed takes seconds, and none of the messages above should wait for it.
    from mrpo_ds.roles import run_policy, run_reference, run_score

    if job is not None:
        run_score(material, world, heartbeat.phase, job.answered)
        if job.finish is not None and world.is_main:
            job.finish(material)
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
