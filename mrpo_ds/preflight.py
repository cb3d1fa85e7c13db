"""What must hold before the first step; a violation stops the run with what differed."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from mrpo_ds.data.batching import Layout
from mrpo_ds.data.rendering import Encoded
from mrpo_ds.errors import ConfigError
from mrpo_ds.models import SequenceScorer, takes_positions
from mrpo_ds.types import SequenceBatch

Forward = Callable[[SequenceBatch], Tensor]
"""The engine's scoring call, without gradient: N sequences -> [N] summed log-probs."""

PREFLIGHT_TOKENS = 64
TOLERANCE_NATS = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Per token, between the selected log-probs and those from the model's own logits."""
FEWEST = 8
"""Tokens of the response with which sharing is tried."""
LEAK_SHARE = 0.01
"""Of that tolerance: how much a sequence's log-prob may change with its neighbour in a row. Mostly it does not at all,
but a mixture of experts computes together what goes to one expert."""


def check_selected_logps(
    scorer: SequenceScorer, forward: Forward, encoded: Encoded, device: torch.device, name: str
) -> None:
    """Compare our log-probs of one row with those from the model's own logits (scale, soft cap, tied head, bias).

    Raises ConfigError naming the model and the two values.
    """
    row = _shorten(encoded)
    batch = Layout(pad_id=0, packed=False).collate([[row]]).to(device)
    ours = float(forward(batch)[0])
    with torch.no_grad():
        logits = scorer.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    own = float(_sum_of(logits[0], batch.input_ids[0], row.prompt_length))
    if not math.isfinite(own):
        raise ConfigError(
            f"{name}: the model's own log-prob of a row of {row.num_scored} tokens is {own}; its weights are damaged, "
            "or its dtype is too narrow for it."
        )
    if not abs(ours - own) <= _tolerance(scorer) * row.num_scored:
        raise ConfigError(
            f"{name}: our log-prob of a row of {row.num_scored} tokens is {ours:.6f}, but the model's own logits give "
            f"{own:.6f}. This architecture changes its logits in a way that is not supported."
        )


def unfit_for_packing(scorer: SequenceScorer, forward: Forward, encoded: Encoded, device: torch.device) -> str:
    """Why sequences of this model cannot share a row, or "" if they can.

    A sequence must have the log-prob that it has alone, whatever stands before it in its row.
    """
    if not takes_positions(scorer.model):
        return f"{type(scorer.model).__name__} takes no position_ids"
    row = _shorten(encoded)
    neighbour = replace(row, ids=row.ids[::-1])
    layout = Layout(pad_id=0, single_row=True)
    values = []
    for sequences in ([row], [neighbour, row], [replace(row, ids=neighbour.ids[1:] + neighbour.ids[:1]), row]):
        values.append(float(forward(layout.collate([sequences]).to(device))[-1]))
    tolerance = _tolerance(scorer) * row.num_scored
    return _misfit(values, tolerance, "sequence", "the one before it in its row", "another in its row")


def unfit_for_sharing(
    scorer: SequenceScorer, forward: Forward, encoded: Encoded, device: torch.device, longest: int
) -> str:
    """Why responses of this model cannot share their prompt, or "" if they can.

    A response must have the log-prob that it has alone, whatever other response of its prompt stands before it. Where
    the run (longest, in tokens) has sequences longer than the model's window, that is tried on one longer than it.
    """
    family = type(scorer.model).__name__
    if isinstance(scorer.mask_plan, str):
        return f"{family}: {scorer.mask_plan}"
    windows = [window for window in scorer.mask_plan.windows.values() if window is not None]
    row = _shorten(encoded)
    if windows and min(windows) < longest:
        length = min(windows) + PREFLIGHT_TOKENS
        ids = (row.ids * (1 + length // len(row.ids)))[:length]
        row = Encoded(ids, length // 2)  # the response's end no longer sees the prompt's beginning
    if row.num_scored < FEWEST:  # a response's first token is predicted by the prompt: only the others see anything
        row = replace(row, ids=row.ids + (FEWEST * row.ids)[:FEWEST])
    prompt = row.ids[: row.prompt_length]
    others = row.ids[::-1] * 2  # never empty, and not the response even where that is a single token
    siblings = [replace(row, ids=[*prompt, *ids[: PREFLIGHT_TOKENS // 2]]) for ids in (others, others[1:])]
    shared = Layout(pad_id=0, single_row=True, shared=True)
    plain = replace(shared, shared=False)
    values = [float(forward(plain.collate([[row]]).to(device))[0])]
    values += [float(forward(shared.collate([[sibling, row]]).to(device))[1]) for sibling in siblings]
    tolerance = _tolerance(scorer) * row.num_scored
    why = _misfit(values, tolerance, "response", "the other response", "a shared prompt")
    return why and f"{family}: {why}"


def _misfit(values: list[float], tolerance: float, what: str, neighbour: str, place: str) -> str:
    """What is wrong with the log-probs of a sequence alone, beside one neighbour and beside another; "" if nothing."""
    alone, one, other = values
    if not abs(one - other) <= LEAK_SHARE * tolerance:
        return f"a {what}'s log-prob changes with {neighbour} ({one:.6f} or {other:.6f})"
    if not abs(alone - one) <= tolerance:
        return f"the log-prob of a {what} is {alone:.6f} alone and {one:.6f} behind {place}"
    return ""


def _tolerance(scorer: SequenceScorer) -> float:
    return TOLERANCE_NATS.get(scorer.head.weight.dtype, 1e-3)


def _shorten(encoded: Encoded) -> Encoded:
    """A row of at most PREFLIGHT_TOKENS: the end of the prompt and the beginning of the response."""
    prompt = max(1, min(encoded.prompt_length, PREFLIGHT_TOKENS // 2))
    start = encoded.prompt_length - prompt
    return Encoded(ids=encoded.ids[start : start + PREFLIGHT_TOKENS], prompt_length=prompt)


def _sum_of(logits: Tensor, ids: Tensor, prompt_length: int) -> Tensor:
    """[S, V] logits -> the summed log-prob of the tokens after the prompt, in float32."""
    logps = logits[:-1].float().log_softmax(-1).gather(1, ids[1:, None])[:, 0]
    return logps[prompt_length - 1 :].sum()
