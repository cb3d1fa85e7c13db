"""What must hold before the first step; a violation stops the run with what differed."""

import math
from typing import Any

import torch
from torch import Tensor

from mrpo_ds.data.batching import collate
from mrpo_ds.data.rendering import Encoded, Renderer
from mrpo_ds.errors import ConfigError
from mrpo_ds.models import SequenceScorer
from mrpo_ds.types import Example

PREFLIGHT_TOKENS = 64
TOLERANCE_NATS = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Per token, between the selected log-probs and those from the model's own logits."""


def check_selected_logps(
    scorer: SequenceScorer, forward: Any, encoded: Encoded, pad_id: int, device: torch.device, name: str
) -> None:
    """Compare our log-probs of one row with those from the model's own logits (scale, soft cap, tied head, bias).

    forward is the engine's scoring call. Raises ConfigError naming the model and the two values.
    """
    row = _shorten(encoded)
    batch = collate([row], pad_id).to(device)
    ours = float(forward(batch)[0])
    with torch.no_grad():
        logits = scorer.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    own = float(_sum_of(logits[0], batch.input_ids[0], batch.response_mask[0]))
    scored = int(batch.response_mask.sum())
    if not math.isfinite(own):
        raise ConfigError(
            f"{name}: the model's own log-prob of a row of {scored} tokens is {own}; its weights are damaged, or its "
            "dtype is too narrow for it."
        )
    if not abs(ours - own) <= TOLERANCE_NATS.get(scorer.head.weight.dtype, 1e-3) * scored:
        raise ConfigError(
            f"{name}: our log-prob of a row of {scored} tokens is {ours:.6f}, but the model's own logits give "
            f"{own:.6f}. This architecture changes its logits in a way that is not supported."
        )


def first_row(examples: list[Example], renderer: Renderer) -> Encoded:
    """The row that preflight scores."""
    return renderer.encode(examples[0], 0)


def _shorten(encoded: Encoded) -> Encoded:
    """A row of at most PREFLIGHT_TOKENS: the end of the prompt and the beginning of the response."""
    prompt = max(1, min(encoded.prompt_length, PREFLIGHT_TOKENS // 2))
    start = encoded.prompt_length - prompt
    return Encoded(ids=encoded.ids[start : start + PREFLIGHT_TOKENS], prompt_length=prompt)


def _sum_of(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """[S, V] logits -> the summed log-prob of the masked tokens, in float32."""
    logps = logits[:-1].float().log_softmax(-1).gather(1, ids[1:, None])[:, 0]
    return logps[mask[1:]].sum()
