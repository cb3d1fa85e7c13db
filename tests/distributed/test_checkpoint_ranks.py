"""Checkpoints of three real ranks, one of which cannot write, or is slow: all know, none waits in vain."""

import os
import resource
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mrpo_ds.checkpoint import Checkpoints, TrainState, find_damage
from mrpo_ds.distributed.launch import Launch
from mrpo_ds.distributed.topology import Topology
from mrpo_ds.distributed.worlds import leave, open_rendezvous, split
from mrpo_ds.errors import CheckpointError
from mrpo_ds.shards import Cut, Shapes, Tensors, share
from tests.distributed.harness import everyone_left, make_topology, run_ranks

NUMEL = 10_000
RANKS = 3


class ShareEngine:
    """A rank's share of one parameter that counts from the step on."""

    device = torch.device("cpu")

    def __init__(self, step: int, rank: int, before_reading: Callable[[], None] = lambda: None) -> None:
        mine = share(NUMEL, RANKS, rank)
        self.values = torch.arange(mine.start, mine.stop, dtype=torch.float32) + step
        self._before_reading = before_reading

    def shapes(self) -> Shapes:
        return {"weight": (NUMEL,)}

    def cut(self) -> Cut:
        return Cut(RANKS)

    def optimizer_steps(self) -> int:
        return 0

    def local_state(self) -> Tensors:
        self._before_reading()
        yield "fp32/weight", self.values

    def restore(self, read: Callable[[str, str], Tensor], optimizer_steps: int) -> None:
        self.values = read("fp32", "weight")


def polls_until_done(checkpoints: Checkpoints, at_poll: Callable[[int], None] = lambda poll: None) -> int:
    polls = 0
    while checkpoints.pending:
        at_poll(polls)
        checkpoints.poll()
        polls += 1
    return polls


def write_with_trouble(topology: Topology, launch: Launch, directory: Path) -> dict[str, Any]:
    """Step 1 is well, in 2 rank 1's disk is full, in 3 rank 2 is slow and then fails, in 4 a full disk ends the run."""
    rendezvous = open_rendezvous(launch, 30)
    world = split(topology, rendezvous, share_gpus=False)
    rank = world.rank
    checkpoints = Checkpoints(directory, keep=9, settings={}, is_main=world.is_leader)
    report: dict[str, Any] = {}
    checkpoints.begin(ShareEngine(1, rank), TrainState(1))
    polls_until_done(checkpoints)

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    short = (1000, limits[1]) if rank == 1 else limits
    resource.setrlimit(resource.RLIMIT_FSIZE, short)
    checkpoints.begin(ShareEngine(2, rank), TrainState(2))
    polls_until_done(checkpoints)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    slow = directory / ".step-00000003.partial" / "policy" / "rank-00002-of-00003.safetensors"
    pipe = rank == 2  # a pipe cannot be written to before somebody reads it, nor be synced
    checkpoints.begin(ShareEngine(3, rank, lambda: os.mkfifo(slow) if pipe else None), TrainState(3))
    reader = threading.Thread(target=lambda: slow.read_bytes())
    report["polls"] = polls_until_done(checkpoints, lambda poll: reader.start() if pipe and poll == 5 else None)
    report["failed"] = list(checkpoints.failed)

    strict = replace(checkpoints, on_failure="stop")
    resource.setrlimit(resource.RLIMIT_FSIZE, short)
    try:
        strict.begin(ShareEngine(4, rank), TrainState(4))
        strict.finish()
    except CheckpointError as error:
        report["stopped"] = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    engine = ShareEngine(0, rank)
    report["state"] = checkpoints.load(engine, directory / "step-00000001")
    report["right"] = torch.equal(engine.values, ShareEngine(1, rank).values)
    leave()
    everyone_left(topology, rendezvous.store, launch.rank)
    return report


def test_one_rank_in_trouble_costs_all_of_them_that_checkpoint_only(tmp_path: Path) -> None:
    reports = run_ranks(write_with_trouble, make_topology(RANKS), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert find_damage(tmp_path / "step-00000001") == ""
    for report in reports:
        assert report["failed"] == [2, 3]
        assert report["polls"] == reports[0]["polls"] > 5, "no rank waited for the slow one"
        assert "step-00000004 cannot be written ([Errno 27] File too large); earlier ones" in report["stopped"]
        assert report["state"] == TrainState(1) and report["right"]
