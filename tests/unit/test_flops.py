"""Operations counted by hand, and against torch's own counter on real models."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Qwen2Config,
    Qwen2MoeConfig,
)

from mrpo_ds.accounting import Accounting
from mrpo_ds.flops import (
    LayerShape,
    ModelShape,
    attended,
    forward_flops,
    model_shape,
    recomputed_flops,
    training_flops,
)
from mrpo_ds.peaks import peak_tflops
from mrpo_ds.types import Work

SMALL = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
ATTENTION = 32 * 32 + 2 * 32 * 16 + 32 * 32  # queries, keys and values (2 heads of 8), output
MLP = 3 * 32 * 64
WORK = Work(spans=((0, 10), (6, 4)), scored=7)
"""A prompt of 6 with a response of 4, and a second response of 4 that shares the prompt."""


def shape_of(config):
    with torch.device("meta"):
        return model_shape(AutoModelForCausalLM.from_config(config, attn_implementation="eager"))


def test_a_llama_by_hand():
    shape = shape_of(LlamaConfig(**SMALL))
    assert shape == ModelShape(2 * (ATTENTION + MLP), 100, 32, (LayerShape(32, None),) * 2)
    pairs = 10 * 11 // 2 + (7 + 8 + 9 + 10)
    forward = 2 * 2 * (ATTENTION + MLP) * 14 + 2 * 4 * 32 * pairs + 2 * 100 * 32 * 7
    assert forward_flops(shape, WORK) == forward
    assert training_flops(shape, WORK) == 3 * forward
    assert recomputed_flops(shape, WORK, checkpointing=False) == 2 * 100 * 32 * 7
    assert recomputed_flops(shape, WORK, checkpointing=True) == forward


def test_a_head_of_its_own_is_no_part_of_the_layers():
    tied, untied = (shape_of(LlamaConfig(**SMALL, tie_word_embeddings=tied)) for tied in (True, False))
    assert tied == untied


def test_biases_and_norms_do_not_count_and_a_head_width_of_its_own_does():
    assert shape_of(Qwen2Config(**SMALL)).layer_parameters == 2 * (ATTENTION + MLP)
    wide = shape_of(GemmaConfig(**SMALL, head_dim=16))
    assert wide.layer_parameters == 2 * (2 * 32 * 64 + 2 * 32 * 32 + MLP)
    assert wide.layers == (LayerShape(64, None),) * 2


@pytest.mark.parametrize(
    ("span", "window", "pairs"),
    [
        ((0, 6), 4, 1 + 2 + 3 + 4 + 4 + 4),
        ((3, 3), 4, 4 + 4 + 4),
        ((2, 2), 4, 3 + 4),
        ((9, 5), 4, 20),
        ((0, 3), 4, 6),
        ((0, 6), None, 21),
        ((5, 1), 1, 1),
    ],
)
def test_a_sliding_window_bounds_what_a_token_sees(span, window, pairs):
    assert attended(Work((span,), 0), window) == pairs


def test_windows_by_family():
    every = shape_of(MistralConfig(**SMALL, sliding_window=5))
    assert every.layers == (LayerShape(32, 5),) * 2
    some = shape_of(
        Gemma3TextConfig(**SMALL, head_dim=8, sliding_window=5, layer_types=["sliding_attention", "full_attention"])
    )
    assert some.layers == (LayerShape(32, 5), LayerShape(32, None))
    pairs = (15 + 5 * 5) + 4 * 5 + 55 + 34  # the window of 5, then everything
    assert forward_flops(some, WORK) == 2 * some.layer_parameters * 14 + 4 * 32 * pairs + 2 * 100 * 32 * 7
    assert (
        shape_of(Qwen2Config(**SMALL, sliding_window=5, use_sliding_window=False)).layers == (LayerShape(32, None),) * 2
    )


def test_of_experts_only_the_active_ones_count():
    mixtral = shape_of(MixtralConfig(**SMALL, num_local_experts=8, num_experts_per_tok=2, sliding_window=None))
    router = 32 * 8
    assert mixtral.layer_parameters == 2 * (ATTENTION + router + 2 * MLP)
    config = Qwen2MoeConfig(
        **SMALL, num_experts=4, num_experts_per_tok=1, moe_intermediate_size=16, shared_expert_intermediate_size=24
    )
    routed, shared = 3 * 32 * 16, 3 * 32 * 24 + 32  # the shared expert is weighted by a gate of its own
    assert shape_of(config).layer_parameters == 2 * (ATTENTION + 32 * 4 + routed + shared)


def test_keys_wider_than_values():
    config = DeepseekV3Config(
        **{**SMALL, "num_key_value_heads": 4}, kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=8,
        v_head_dim=6, first_k_dense_replace=2, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1,
    )  # fmt: skip
    assert shape_of(config).layers[0].attention_width == 4 * (12 + 6) // 2


@pytest.mark.parametrize("tied", [True, False])
def test_a_real_model_computes_what_is_counted(tied):
    """Eager attention computes the whole square of a row; everything else is the same to the operation."""
    config = LlamaConfig(**SMALL, tie_word_embeddings=tied)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    shape, tokens = model_shape(model), 12
    work = Work(((0, tokens),), scored=tokens)
    unseen = sum(4 * layer.attention_width * (tokens**2 - attended(work, layer.window)) for layer in shape.layers)
    with FlopCounterMode(display=False) as counter:
        logits = model(input_ids=torch.arange(tokens).unsqueeze(0), use_cache=False).logits
    assert counter.get_total_flops() == forward_flops(shape, work) + unseen
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    assert counter.get_total_flops() + backward.get_total_flops() == training_flops(shape, work) + 3 * unseen


def test_the_metrics_of_a_step():
    shape = ModelShape(1000, 50, 8, (LayerShape(8, None),))
    forward = 2 * 1000 * 14 + 4 * 8 * 89 + 2 * 50 * 8 * 7
    metrics = Accounting(shape, checkpointing=False, ranks=2, peak_tflops=1e-6).metrics(WORK, [], seconds=0.5)
    assert metrics["perf/model_tflops_per_second"] == pytest.approx(6 * forward / 1e12)
    assert metrics["perf/mfu"] == pytest.approx(6 * forward / 1e12 / 2e-6)
    assert metrics["perf/recompute_fraction"] == pytest.approx(5600 / (3 * forward + 5600))
    again = Accounting(shape, checkpointing=True, ranks=2, peak_tflops=None).metrics(WORK, [WORK], seconds=0.5)
    assert "perf/mfu" not in again
    assert again["perf/model_tflops_per_second"] == pytest.approx(8 * forward / 1e12)
    assert again["perf/recompute_fraction"] == pytest.approx(1 / 5)


@pytest.mark.parametrize(
    ("name", "bf16", "tf32", "fp32"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4, 494.7, 66.9),
        ("NVIDIA H100 PCIe", 756.0, 378.0, 51.0),
        ("NVIDIA H200", 989.4, 494.7, 66.9),
        ("NVIDIA A100-SXM4-80GB", 312.0, 156.0, 19.5),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", None, None, None),
        ("NVIDIA GeForce RTX 4090", None, None, None),
        ("NVIDIA A1000", None, None, None),
    ],
)
def test_peaks_are_those_of_the_data_sheets(name, bf16, tf32, fp32):
    assert peak_tflops(name, torch.bfloat16, tf32=False) == bf16
    assert peak_tflops(name, torch.float32, tf32=True) == tf32
    assert peak_tflops(name, torch.float32, tf32=False) == fp32


def test_a_sharded_model_is_counted_by_its_true_shapes():
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL))
    whole = model_shape(model)
    true = {id(parameter): tuple(parameter.shape) for parameter in model.parameters()}
    for parameter in model.parameters():
        parameter.data = torch.empty(0)
    assert model_shape(model, lambda parameter: true[id(parameter)]) == whole
