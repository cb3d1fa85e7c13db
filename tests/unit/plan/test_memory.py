"""Bytes of a rank by hand, and what the parts follow from."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig

from mrpo_ds.config.schema import ModelConfig
from mrpo_ds.plan.machine import load_machine
from mrpo_ds.plan.memory import (
    GIB,
    Part,
    RoleMemory,
    Sharding,
    gathered,
    live_peak,
    policy_memory,
    reference_memory,
    resident_bytes,
)
from mrpo_ds.plan.trace import ForwardShape, Trace, meta_model, trace_forward
from tests.support import ROOT

GPU = load_machine(str(ROOT / "launch/machines/h100x8.yaml"))
CPU = load_machine(str(ROOT / "launch/machines/cpu2.yaml"))
FORWARDS = [ForwardShape(1, 64, 32), ForwardShape(1, 48, 16)]


def model(dtype=torch.bfloat16, checkpointing=False):
    config = LlamaConfig(
        vocab_size=1000, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    )
    return meta_model(config, dtype, ModelConfig(path="", gradient_checkpointing=checkpointing))


def parts_of(role):
    return {part.name: part.bytes for part in role.parts}


@pytest.mark.parametrize(("dtype", "weight"), [(torch.bfloat16, 2), (torch.float32, 4)])
@pytest.mark.parametrize("ranks", [1, 4])
def test_the_states_of_zero_3(dtype, weight, ranks):
    meta = model(dtype)
    numbers = sum(meta.sizes)
    assert numbers == 2 * 1000 * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 128 + 2 * 64) + 64
    parts = parts_of(policy_memory(meta, FORWARDS, ranks, Sharding(), GPU))
    share = numbers // ranks  # every size is a multiple of 4
    assert parts["weights"] == weight * share
    assert parts["fp32 masters"] == parts["fp32 gradients"] == 4 * share
    assert parts["AdamW moments"] == 8 * share
    assert parts["reduce bucket"] == 4 * numbers
    assert parts.get("gathered weights", 0) == (weight * numbers if ranks > 1 else 0)
    assert parts["baseline"] == 1.0 * GIB


def test_an_odd_parameter_is_padded_on_every_rank():
    meta = model()
    share = sum(-(-size // 3) for size in meta.sizes)
    assert (
        parts_of(policy_memory(meta, FORWARDS, 3, Sharding(), GPU))["fp32 masters"]
        == 4 * share
        > 4 / 3 * sum(meta.sizes)
    )


def test_the_optimizer_steps_over_one_sub_group_at_a_time():
    meta = model(torch.float32)
    transient = parts_of(policy_memory(meta, FORWARDS, 1, Sharding(), GPU))["forward and backward"]
    big = replace(Sharding(), sub_group=1e9)
    above = parts_of(policy_memory(meta, FORWARDS, 1, big, GPU))["optimizer step, above that"]
    assert above == max(0, 4 * sum(meta.sizes) - transient)
    small = replace(Sharding(), sub_group=1000)
    assert parts_of(policy_memory(meta, FORWARDS, 1, small, GPU))["optimizer step, above that"] == 0


def test_a_small_bucket_bounds_what_it_holds():
    parts = parts_of(policy_memory(model(), FORWARDS, 1, Sharding(reduce_bucket=1000), GPU))
    assert parts["reduce bucket"] == 4000


@pytest.mark.parametrize(
    ("numbers", "reuse", "prefetch", "live"),
    [(1e8, 1e9, 5e7, 1e8), (7e9, 1e9, 5e7, 5.5e8), (7e9, 0, 5e7, 5e7)],
)
def test_gathered_weights_are_those_whose_next_use_is_near(numbers, reuse, prefetch, live):
    assert gathered(numbers, Sharding(reuse=reuse, prefetch=prefetch)) == live


def test_the_presets_are_read():
    plain, offload = (
        Sharding.read(json.loads((ROOT / f"ds_configs/{name}.json").read_text())) for name in ("zero3", "zero3_offload")
    )
    assert plain == Sharding(reuse=1e9, prefetch=5e7, reduce_bucket=5e7)
    assert offload == Sharding(reuse=3e8, prefetch=5e7, reduce_bucket=5e7, offload_weights=True, offload_optimizer=True)


def test_offloading_moves_the_states_to_the_host():
    meta = model()
    role = policy_memory(meta, FORWARDS, 1, Sharding(offload_weights=True, offload_optimizer=True), GPU)
    assert role.host_gib * GIB == 18 * sum(meta.sizes)
    assert parts_of(role)["gathered weights"] == 2 * sum(meta.sizes)
    assert role.gib * GIB == sum(part.bytes for part in role.parts) - 18 * sum(meta.sizes)
    on_cpu = policy_memory(meta, FORWARDS, 1, Sharding(offload_optimizer=True), CPU)
    assert on_cpu.host_gib == 0  # there is only one memory


def test_the_largest_forward_counts_on_a_gpu():
    meta = model()
    parts = parts_of(policy_memory(meta, FORWARDS, 1, Sharding(), GPU))
    assert parts["forward and backward"] == live_peak(trace_forward(meta, FORWARDS[0], True))
    less = parts_of(policy_memory(model(checkpointing=True), FORWARDS, 1, Sharding(), GPU))
    assert less["forward and backward"] < parts["forward and backward"]


def test_the_step_flattens_the_gradient_where_the_forward_was():
    meta = model(torch.float32)
    share = sum(meta.sizes)
    parts = parts_of(policy_memory(meta, FORWARDS, 1, Sharding(), CPU))
    heap, mapped = resident_bytes(meta, [trace_forward(meta, shape, True) for shape in (*FORWARDS, FORWARDS[0])], 1)
    assert parts["optimizer step, above that"] == max(0, 4 * share - mapped)
    assert parts["forward and backward"] == heap + mapped


def test_a_reference_only_runs_forward():
    meta = model()
    whole = parts_of(reference_memory(meta, "llama", FORWARDS, 2, False, GPU))
    assert whole["weights"] == 2 * sum(meta.sizes) and "gathered weights" not in whole
    assert whole["forward"] == live_peak(trace_forward(meta, FORWARDS[0], False))
    sharded = parts_of(reference_memory(meta, "llama", FORWARDS, 2, True, GPU))
    assert sharded["weights"] == sum(meta.sizes)
    assert sharded["gathered weights"] == 2 * sum(meta.sizes)


def test_live_bytes_by_hand():
    assert live_peak(Trace(events=[(0, 10), (1, 5), (0, 0), (2, 8), (1, 0), (2, 0)])) == 15
    assert live_peak(Trace(events=[(0, 10), (0, 0), (1, 30), (1, 0)])) == 30


def test_a_role_adds_up():
    role = RoleMemory("policy", 2, [Part("a", GIB), Part("b", 2 * GIB), Part("c", 4 * GIB, on_host=True)])
    assert (role.gib, role.host_gib) == (3.0, 4.0)
    assert replace(role, parts=[]).gib == 0
