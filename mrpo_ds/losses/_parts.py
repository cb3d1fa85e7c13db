"""Small pieces that several objectives are made of. w is the chosen response, l the rejected one."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mrpo_ds.errors import require, require_choice
from mrpo_ds.ops.rows import SafeRows
from mrpo_ds.types import TokenLoss

CERTAIN = -1e-6
"""Largest mean log-prob that log(1 - p) is taken of, nats per token: at 0 it would be -infinity."""
NLL_REDUCTIONS = ("token_mean", "sum", "seq_mean")


def require_beta(beta: float) -> None:
    """Raise ConfigError unless 0 < beta < infinity."""
    require(0 < beta < math.inf, "loss.beta", beta, "> 0")


def require_not_negative(key: str, value: float) -> None:
    """Raise ConfigError unless 0 <= value < infinity."""
    require(0 <= value < math.inf, f"loss.{key}", value, ">= 0")


def require_comparison(kind: str, label_smoothing: float, kinds: tuple[str, ...]) -> None:
    """Raise ConfigError unless compare() can be called with these."""
    require_choice("loss.comparison", kind, kinds)
    require(0 <= label_smoothing < 0.5, "loss.label_smoothing", label_smoothing, "0 <= value < 0.5")
    only = "0 unless loss.comparison is sigmoid"
    require(label_smoothing == 0 or kind == "sigmoid", "loss.label_smoothing", label_smoothing, only)


def compare(margin: Tensor, kind: str = "sigmoid", label_smoothing: float = 0.0) -> Tensor:
    """The loss of a margin h, which is positive where the chosen response is ahead.

    sigmoid    -(1 - s) log sigmoid(h) - s log sigmoid(-h), with label smoothing s (s > 0 is cDPO)
    hinge      max(0, 1 - h)
    """
    if kind == "hinge":
        return F.relu(1 - margin)
    return -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)


def log1mexp(a: Tensor) -> Tensor:
    """log(1 - exp(a)) for a < 0, exact at both ends: expm1 near 0, log1p far from it."""
    near = a > -math.log(2)
    # where() passes 0 * inf = NaN back from the branch that was not taken, so each gets a harmless number there.
    return torch.where(
        near, torch.log(-torch.expm1(a.where(near, -1.0))), torch.log1p(-torch.exp(a.where(~near, -1.0)))
    )


def nll(
    logps: Tensor, lengths: Tensor, valid: Tensor, weight: float, reduction: str
) -> tuple[Tensor, TokenLoss | None]:
    """The negative log-likelihood of one response per prompt, times a weight.

    Args:
        logps: [B] summed log-probs, nats.
        lengths: [B] scored tokens, >= 1.
        valid: [B] bool, which prompts count.
        weight: >= 0; with 0 there is no such part.
        reduction: token_mean: over the tokens of the whole step. sum: per prompt. seq_mean: per prompt, over its
            tokens.

    Returns:
        ([B] what each prompt adds to its own loss, the token-mean part or None).
    """
    zero = torch.zeros_like(logps)
    if weight == 0:
        return zero, None
    if reduction == "token_mean":
        return zero, TokenLoss((-logps).where(valid, 0.0), lengths.detach().where(valid, 0.0), weight)
    return -weight * (logps if reduction == "sum" else logps / lengths), None


def pair(values: Tensor) -> tuple[Tensor, Tensor]:
    """[B, 2] -> chosen [B], rejected [B]."""
    chosen, rejected = values.unbind(-1)
    return chosen, rejected


def mean_logps(rows: SafeRows) -> Tensor:
    """[B, R] mean log-prob per scored token under the policy's tokenizer, nats, with gradient."""
    return rows.policy / rows.lengths
