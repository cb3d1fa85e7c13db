"""What a trace on the meta device counts, against arithmetic and against the same code on real tensors."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, MambaConfig

from mrpo_ds.config.schema import ModelConfig
from mrpo_ds.errors import ConfigError
from mrpo_ds.flops import forward_flops, layer_flops, model_shape, training_flops
from mrpo_ds.models import SequenceScorer
from mrpo_ds.plan.memory import live_peak
from mrpo_ds.plan.trace import ForwardShape, meta_model, trace_forward
from mrpo_ds.types import Work

SMALL = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LLAMA = LlamaConfig(**SMALL, tie_word_embeddings=True)
SHAPE = ForwardShape(rows=2, width=24, scored=10)
WORK = Work(((0, 24), (0, 24)), 10)


def meta(config=LLAMA, dtype=torch.float32, checkpointing=False, attention="sdpa"):
    return meta_model(config, dtype, ModelConfig(path="", gradient_checkpointing=checkpointing, attention=attention))


def matmuls_of(shape, work, forwards):
    """Without attention, which is counted apart, and with the logits that backward makes again."""
    return (
        forwards * 2 * shape.layer_parameters * work.tokens + (forwards + 1) * 2 * shape.vocabulary * shape.hidden * 10
    )


def test_matmuls_are_those_of_the_arithmetic():
    model = meta()
    shape = model_shape(model.scorer.model)
    assert trace_forward(model, SHAPE, train=True).matmul_flops == matmuls_of(shape, WORK, 3)
    forward = trace_forward(model, SHAPE, train=False)
    pairs = 2 * 24 * 24
    assert forward.attention_flops == 2 * 4 * 32 * pairs
    causal = sum(4 * 32 * 2 * (24 * 25 // 2) for _ in range(2))
    assert forward.matmul_flops == forward_flops(shape, WORK) - causal


def test_checkpointing_computes_the_layers_again_and_keeps_less():
    plain, again = trace_forward(meta(), SHAPE, True), trace_forward(meta(checkpointing=True), SHAPE, True)
    shape = model_shape(meta().scorer.model)
    more = again.matmul_flops - plain.matmul_flops
    # A layer is computed again up to the last tensor that backward needs: not its last matmul.
    assert more == 2 * (shape.layer_parameters - 2 * 32 * 64) * 48
    assert again.attention_flops == pytest.approx(plain.attention_flops * 18 / 14)
    assert live_peak(again) < live_peak(plain)


def test_the_peak_is_what_real_tensors_need():
    """The real model on real tensors, its storages counted as they come and go."""
    model = meta(attention="eager")
    real = SequenceScorer(AutoModelForCausalLM.from_config(LLAMA, attn_implementation="eager")).train()
    traced = trace_forward(model, SHAPE, True)
    with FlopCounterMode(display=False) as counter:
        segments = torch.zeros(2, 2, 24, dtype=torch.int32)
        places = torch.arange(24).repeat(2, 1)
        chosen = torch.arange(10)
        real(places, places, None, segments, chosen, chosen).sum().backward()
    missed = 2 * 10 * 300 * 32  # the counter does not know addmm_, the gradient of the head
    assert traced.matmul_flops == counter.get_total_flops() + missed


def test_every_storage_that_is_made_goes():
    trace = trace_forward(meta(checkpointing=True), SHAPE, True)
    alive = set()
    for number, size in trace.events:
        alive ^= {number}
        assert (number in alive) == (size > 0)
    assert not alive and 0 < trace.backward_from < len(trace.events)


def test_scores_of_eager_attention_are_held_and_those_of_fused_are_not():
    wide = ForwardShape(1, 512, 10)
    scores = 4 * 512 * 512 * 4
    fused, eager = (live_peak(trace_forward(meta(attention=form), wide, False)) for form in ("sdpa", "eager"))
    assert eager - fused > scores / 2


def test_other_families_are_traced_by_their_own_code():
    gemma = Gemma3TextConfig(**SMALL, head_dim=8, sliding_window=16, final_logit_softcapping=20.0)
    model = meta(gemma)
    assert trace_forward(model, SHAPE, True).matmul_flops == matmuls_of(model_shape(model.scorer.model), WORK, 3)
    names = ("vocab_size", "hidden_size", "num_hidden_layers")
    mamba = MambaConfig(**{name: SMALL[name] for name in names}, state_size=4)
    with pytest.raises(ConfigError, match="attention=sdpa does not suit 'somewhere/mamba': MambaForCausalLM does not"):
        meta_model(mamba, torch.float32, ModelConfig(path="somewhere/mamba"))


def test_layers_alone_are_the_forward_without_the_head():
    shape = model_shape(meta().scorer.model)
    assert forward_flops(shape, WORK) - layer_flops(shape, WORK) == 2 * 300 * 32 * 10
    assert training_flops(shape, WORK) == 3 * forward_flops(shape, WORK)
