"""Tiny models of many families, with what is peculiar to each, and their log-probs by plain transformers."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from mrpo_ds.data.rendering import Encoded

VOCABULARY = 300
WINDOW = 8
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**SHAPE, "num_key_value_heads": 2}
BOTH_KINDS = ["sliding_attention", "full_attention"]


def build(kind: str, attention: str = "sdpa", **options: Any) -> Any:
    """A model of random weights, the same every time."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **options)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # made as 0, where a forgotten bias would go unseen
            nn.init.normal_(parameter)
    return model


FAMILIES: dict[str, Callable[..., Any]] = {
    "llama, tied": partial(build, "llama", **GROUPED, tie_word_embeddings=True),
    "mistral, all layers slide": partial(build, "mistral", **GROUPED, head_dim=8, sliding_window=WINDOW),
    "qwen2, untied": partial(build, "qwen2", **GROUPED, tie_word_embeddings=False),
    "qwen2, one layer slides": partial(
        build, "qwen2", **GROUPED, use_sliding_window=True, sliding_window=WINDOW, layer_types=BOTH_KINDS
    ),
    "qwen3": partial(build, "qwen3", **GROUPED, head_dim=8),
    "gemma2, sliding window and two soft caps": partial(
        build,
        "gemma2",
        attention="eager",
        **GROUPED,
        head_dim=8,
        sliding_window=WINDOW,
        layer_types=BOTH_KINDS,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=5.0,
    ),
    "gemma3, sliding window and soft cap": partial(
        build,
        "gemma3_text",
        **GROUPED,
        head_dim=8,
        sliding_window=WINDOW,
        layer_types=BOTH_KINDS,
        final_logit_softcapping=5.0,
    ),
    "cohere, logit_scale": partial(build, "cohere", **GROUPED, logit_scale=0.25),
    "granite, logits_scaling": partial(build, "granite", **GROUPED, logits_scaling=4.0),
    "mixtral, experts": partial(build, "mixtral", **GROUPED, num_local_experts=4),
    "phi, bias on the head": partial(build, "phi", **SHAPE),
    "phi3, all layers slide": partial(build, "phi3", **GROUPED, sliding_window=WINDOW),
    "gpt_neox, parallel residual": partial(build, "gpt_neox", **SHAPE),
}


def plain_logp(model: Any, row: Encoded) -> Tensor:
    """[] the log-prob of a row's scored tokens, from the model's own logits, without batch or padding."""
    logps = model(input_ids=torch.tensor([row.ids])).logits[0].double().log_softmax(-1)
    scored = torch.tensor(row.scored())[1:]
    return logps[:-1].gather(1, torch.tensor(row.ids)[1:, None])[:, 0][scored].sum()
