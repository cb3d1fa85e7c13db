"""How many floating-point operations a step asks for: arithmetic on a model's shape and on mrpo_ds.types.Work.

A multiply-add is two operations. Matmuls and attention are counted; norms, activations and the optimizer, which move
bytes rather than compute, are not, as everywhere where MFU is quoted (PaLM, arXiv:2204.02311 appendix B). Attention
counts the pairs that a token may see, not the square that a kernel may compute. The language-model head counts once
for every token that reaches it, never per sequence, and tokens that padding or filler add count nowhere.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from mrpo_ds.types import Work

Shape = tuple[int, ...]
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
"""How transformers' configurations name the number of experts of a layer."""


@dataclass(frozen=True)
class LayerShape:
    """The attention of one layer."""

    attention_width: int
    """Query heads x head width; 0 for a layer without attention."""
    window: int | None
    """The most tokens that a token sees, itself included, or None for all before it."""


@dataclass(frozen=True)
class ModelShape:
    """What the arithmetic of a causal language model depends on."""

    layer_parameters: int
    """Weights that each token is multiplied by in the layers; of experts only the active share. No embeddings."""
    vocabulary: int
    hidden: int
    layers: tuple[LayerShape, ...]


def model_shape(model: Any, shape_of: Callable[[Any], Shape] = lambda parameter: tuple(parameter.shape)) -> ModelShape:
    """The shape of a transformers causal language model, real or on the meta device.

    shape_of says a parameter's true shape, where it is sharded.
    """
    config = model.config.get_text_config()
    shares = _expert_share(config)
    embeddings = {id(one.weight) for one in model.modules() if isinstance(one, nn.Embedding)}
    body = model.base_model
    # Llama 4's text model calls itself its base; models of images and text have the layers for text in a part of it.
    body = getattr(body, "language_model", getattr(model, "model", body) if body is model else body)
    active = 0.0
    for name, parameter in body.named_parameters():
        shape = shape_of(parameter)
        if id(parameter) in embeddings or len(shape) < 2:
            continue
        count = 1
        for size in shape:
            count *= size
        active += count * (shares if "experts." in name and "shared" not in name else 1.0)
    vocabulary, hidden = shape_of(model.get_output_embeddings().weight)
    return ModelShape(round(active), vocabulary, hidden, _layers(config))


def attended(work: Work, window: int | None) -> int:
    """Pairs (token, token that it sees) of one layer: the sum of min(position + 1, window) over all tokens."""
    return sum(_seen_up_to(first + length, window) - _seen_up_to(first, window) for first, length in work.spans)


def layer_flops(shape: ModelShape, work: Work) -> int:
    """Operations of a forward through all layers, the head left out."""
    pairs = {window: attended(work, window) for window in {layer.window for layer in shape.layers}}
    # Scores (query x key) and their product with the values: two multiply-adds per pair and unit of width.
    attention = sum(4 * layer.attention_width * pairs[layer.window] for layer in shape.layers)
    return 2 * shape.layer_parameters * work.tokens + attention


def head_flops(shape: ModelShape, work: Work) -> int:
    """Operations of the logits of the scored tokens."""
    return 2 * shape.vocabulary * shape.hidden * work.scored


def forward_flops(shape: ModelShape, work: Work) -> int:
    """Operations of one forward."""
    return layer_flops(shape, work) + head_flops(shape, work)


def training_flops(shape: ModelShape, work: Work) -> int:
    """Model FLOPs of forward and backward: backward multiplies twice where forward does once."""
    return 3 * forward_flops(shape, work)


def recomputed_flops(shape: ModelShape, work: Work, checkpointing: bool) -> int:
    """Operations that backward does again: the logits always (ops/logps.py), the layers with gradient checkpointing."""
    return head_flops(shape, work) + (layer_flops(shape, work) if checkpointing else 0)


def _seen_up_to(tokens: int, window: int | None) -> int:
    """The sum of min(position + 1, window) over the first tokens of a sequence."""
    if window is None or tokens <= window:
        return tokens * (tokens + 1) // 2
    return window * (window + 1) // 2 + (tokens - window) * window


def _expert_share(config: Any) -> float:
    """The share of a layer's experts that a token passes through; 1 where the configuration does not say."""
    total = next((getattr(config, name) for name in EXPERTS if getattr(config, name, None)), None)
    active = getattr(config, "num_experts_per_tok", None)
    return active / total if active and total else 1.0


def _layers(config: Any) -> tuple[LayerShape, ...]:
    width, count = _attention_width(config), int(config.num_hidden_layers)
    window: int | None = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        used = window if getattr(config, "use_sliding_window", True) else None
        return (LayerShape(width, used),) * count
    return tuple(
        LayerShape(width if "attention" in kind and "linear" not in kind else 0, window if "sliding" in kind else None)
        for kind in kinds
    )


def _attention_width(config: Any) -> int:
    heads: int = getattr(config, "num_attention_heads", None) or 0
    if getattr(config, "qk_head_dim", None) and getattr(config, "v_head_dim", None):  # keys wider than values (MLA)
        return heads * int(config.qk_head_dim + config.v_head_dim) // 2
    return heads * int(getattr(config, "head_dim", None) or config.hidden_size // max(heads, 1))
