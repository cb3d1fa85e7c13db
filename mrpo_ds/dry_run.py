"""The longest micro-batch, before the first step: what does not fit is found in the first minute."""

import socket
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from mrpo_ds.config.schema import Config
from mrpo_ds.console import log
from mrpo_ds.data.micro import MicroBatch
from mrpo_ds.distributed.collectives import gather_over_ranks
from mrpo_ds.engine import DeepSpeedEngine
from mrpo_ds.errors import ConfigError
from mrpo_ds.memory import available_bytes, describe_memory, forget_peak, peak_memory_gib, ran_out

OFFLOAD = "ds_configs/zero3_offload_optimizer.json"


def is_wanted(config: Config, device: torch.device) -> bool:
    """train.dry_run; left open, on GPUs only: on CPUs it takes as long as a good part of a step."""
    asked = config.train.dry_run
    return device.type == "cuda" if asked is None else asked


def dry_run(config: Config, engine: DeepSpeedEngine, micro: MicroBatch, rank: int) -> None:
    """Forward and backward of a micro-batch, beside what a step makes; then forget its gradient. Changes no number.

    Raises ConfigError on a rank that runs out of memory, with what to lower. The other ranks may then be waiting for it
    in a collective that never ends: the heartbeat ends them with the same message, as whenever a rank fails.
    """
    started = time.perf_counter()
    try:
        _rehearse(engine, micro)
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        ways = "; ".join(ways_to_shrink(config, micro, engine.device))
        raise ConfigError(
            f"out of memory in the dry run of {describe(micro)}, with AdamW's moments (policy rank {rank} on "
            f"{socket.gethostname()}: {describe_memory()}). Lower, in this order, until it fits: {ways}."
        ) from error
    measured = torch.tensor([time.perf_counter() - started, peak_memory_gib()], device=engine.device)
    seconds, peak = gather_over_ranks(measured).amax(0).tolist()
    forget_peak()
    log(f"dry run: {describe(micro)} took {seconds:.1f} s and at most {peak:.2f} GiB on a rank")


def ways_to_shrink(config: Config, micro: MicroBatch, device: torch.device) -> list[str]:
    """What can still be lowered, the cheapest first."""
    model = config.model
    ways = [f"train.micro_batch_tokens to less than {micro.sequences.input_ids.numel()}"]
    if len(micro.prompts) == 1:
        ways = [f"data.max_length={config.data.max_length}, since this is one prompt with its responses"]
    if not model.gradient_checkpointing:
        ways.append("set model.gradient_checkpointing=true")
    if device.type == "cuda" and not model.activation_offload:  # on CPUs there is no other memory to go to
        ways.append("set model.activation_offload=true")
    if device.type == "cuda" and "offload" not in config.deepspeed:
        ways.append(f"set deepspeed={OFFLOAD}")
    return [*ways, f"more ranks than topology.policy={config.topology.policy}"]


def describe(micro: MicroBatch) -> str:
    """A micro-batch's size, for messages."""
    rows, width = micro.sequences.input_ids.shape
    return (
        f"the longest micro-batch ({rows * width} token places: {micro.sequences.table[0]} sequences of "
        f"{len(micro.prompts)} prompts, {rows} rows)"
    )


def _rehearse(engine: DeepSpeedEngine, micro: MicroBatch) -> None:
    moments, gradient = engine.room_for_step()
    held = _take(moments)
    engine.backward(engine.forward(micro.sequences).sum(), last=True)
    held += _take(gradient)
    engine.clear()


def _take(sizes: Sequence[Tensor]) -> list[Tensor]:
    """Memory as large as these tensors, where they are, really taken. Raises MemoryError when the host has less."""
    on_host = sum(tensor.nbytes for tensor in sizes if tensor.device.type == "cpu")
    if on_host > available_bytes():  # the system would promise more than it has, and kill later
        raise MemoryError(f"{on_host} bytes are more than this host has left")
    return [torch.empty_like(tensor).zero_() for tensor in sizes]
