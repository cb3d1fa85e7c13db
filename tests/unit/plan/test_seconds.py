"""Seconds by hand, on a machine with round numbers."""

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig

from mrpo_ds.config.schema import ModelConfig
from mrpo_ds.plan.machine import Machine, Tflops
from mrpo_ds.plan.seconds import (
    BRIDGE_SECONDS,
    Cost,
    bridge_seconds,
    collective_seconds,
    compute_seconds,
    cost_model,
    optimizer_seconds,
    reduce_seconds,
)
from mrpo_ds.plan.trace import ForwardShape, meta_model, trace_forward

MACHINE = Machine(
    name="round",
    kind="cpu",
    devices=4,
    devices_per_node=2,
    memory_gib=1.0,
    baseline_gib=0.0,
    tflops=Tflops(bf16=2.0, fp32=1.0),
    attention_efficiency=0.5,
    memory_gbs=10.0,
    elementwise_gbs=100.0,
    launch_us=1000.0,
    link_gbs=5.0,
    internode_gbs=1.0,
    disk_gbs=1.0,
)
COST = Cost(matmul_flops=3e12, attention_flops=1e12, moved_bytes=4e11, kernels=500)


@pytest.fixture(scope="module")
def meta():
    config = LlamaConfig(
        vocab_size=1000, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    )
    return meta_model(config, torch.bfloat16, ModelConfig(path="", gradient_checkpointing=False))


def test_a_cpu_does_one_thing_after_the_other():
    assert compute_seconds(COST, MACHINE, torch.float32) == pytest.approx(3 + 2 + 4 + 0.5)
    assert compute_seconds(COST, MACHINE, torch.bfloat16) == pytest.approx(1.5 + 1 + 4 + 0.5)


def test_a_gpu_is_told_of_the_next_operation_while_it_computes():
    gpu = replace(MACHINE, kind="gpu")
    assert compute_seconds(COST, gpu, torch.float32) == pytest.approx(9)
    assert compute_seconds(replace(COST, kernels=20_000), gpu, torch.float32) == pytest.approx(20)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("shape", [ForwardShape(1, 512, 100), ForwardShape(3, 200, 400)], ids=str)
def test_four_small_traces_tell_the_cost_of_a_large_forward(meta, train, shape):
    trace, cost = trace_forward(meta, shape, train), cost_model(meta, train)([shape])
    assert cost.matmul_flops == pytest.approx(trace.matmul_flops)
    assert cost.attention_flops == pytest.approx(trace.attention_flops)
    assert cost.moved_bytes == pytest.approx(trace.moved_bytes, rel=0.01)
    assert cost.kernels == pytest.approx(trace.kernels)


def test_several_forwards_cost_their_sum(meta):
    shapes = [ForwardShape(1, 64, 8), ForwardShape(2, 32, 8)]
    model = cost_model(meta, False)
    assert model(shapes) == model(shapes[:1]) + model(shapes[1:])
    assert model([]) == Cost()


def test_collectives_by_hand(meta):
    numbers = sum(meta.sizes)
    once = collective_seconds(meta, forwards=4, ranks=2, reuse=1e9, machine=MACHINE)
    assert once == pytest.approx(4 * numbers * (2 + 4) / 2 / 5e9)
    twice = collective_seconds(meta, forwards=4, ranks=2, reuse=0, machine=MACHINE)
    assert twice == pytest.approx(4 * numbers * (2 * 2 + 4) / 2 / 5e9)
    between_nodes = collective_seconds(meta, forwards=1, ranks=4, reuse=1e9, machine=MACHINE)
    assert between_nodes == pytest.approx(numbers * 6 * 3 / 4 / 1e9)
    assert collective_seconds(meta, forwards=4, ranks=1, reuse=1e9, machine=MACHINE) == 0


def test_gradients_and_optimizer_by_hand(meta):
    numbers = sum(meta.sizes)
    assert reduce_seconds(meta, 3, MACHINE) == pytest.approx(3 * 36 * numbers / 10e9)
    # Flatten 8, norm 12, clip 8, clear 4; the fused step 28; the new weights 4 + 2.
    assert optimizer_seconds(meta, 2, MACHINE) == pytest.approx(numbers / 2 * (32 + 28 + 6) / 10e9)


def test_the_bridge_carries_two_numbers_a_response():
    assert bridge_seconds(64, 2, 3, MACHINE) == pytest.approx(BRIDGE_SECONDS + 64 * 2 * 3 * 16 / 1e9)
