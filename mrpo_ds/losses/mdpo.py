"""MDPO: one comparison over n ranked responses (multi-response DPO, "Augmented Ranking", eq. 16; pairwise: eq. 8).

    s_i = l_i - v_i,    w_i = (n - 2i + 1) / (n - 1),    loss = -log sigmoid(beta * sum_i w_i s_i)

i = 1 is the best response. The paper prints ratios pi / pi_ref where its derivation has their logarithms; with the
logarithm n = 2 is DPO. Equal scores share their weight: w_i = (strictly worse - strictly better) / (n - 1), which is
the formula when there are none, sums to 0 and does not depend on the order of the file.

The paper has one reference, v = r^1. With K references v is MRPO's virtual reference over the n responses
(multi-reference MDPO): neither paper has it. K = 1 is MDPO, n = 2 is MRPO.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mrpo_ds.errors import require_choice
from mrpo_ds.losses._parts import compare, require_beta
from mrpo_ds.losses._virtual import VirtualReferenceOptions, virtual_logps
from mrpo_ds.ops.ranking import Ranking, rank, without_unscored
from mrpo_ds.ops.rows import safe_rows
from mrpo_ds.types import LossOutput, Needs, ResponseLogps


@dataclass(frozen=True, kw_only=True)
class Config(VirtualReferenceOptions):
    """Options of MDPO."""

    beta: float = 0.1
    """Strength of the pull towards the reference, per nat, > 0. The paper does not give its own."""
    pairs: str = "none"
    """none: one comparison of the whole list, eq. 16. adjacent: an ordinary DPO loss for each response and the next,
    eq. 8.
    all: for every two. top_vs_rest: for the best and each other. Tied pairs are left out."""
    reduce: str = "mean"
    """mean | sum of a prompt's pair losses; without pairs there is one."""
    weight_rounding: str = "exact"
    """exact. two_decimals: 0.33 for 1/3, as the paper prints for n = 4."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_beta(self.beta)
        require_choice("loss.pairs", self.pairs, ("none", "adjacent", "all", "top_vs_rest"))
        require_choice("loss.reduce", self.reduce, ("mean", "sum"))
        require_choice("loss.weight_rounding", self.weight_rounding, ("exact", "two_decimals"))


def needs(config: Config) -> Needs:
    """Ranked lists or pairs, and any number of references."""
    return Needs(views=("ranked", "pair"), references=1, exactly=config.exactly, drops_nonfinite=config.drops_nonfinite)


def loss(logps: ResponseLogps, config: Config) -> LossOutput:
    """One MDPO loss per prompt, in float32 at least.

    Args:
        logps: a batch with R >= 2 and K >= 1. A response without a score is left out where others have one.
        config: see Config; K must be what needs says.

    Returns:
        losses [B]; rewards [B, R] = beta * (l - v); valid is False, too, where all scores are tied. stats: those of
        virtual_logps, and [B] score_ties, the share of a prompt's pairs that are tied.
    """
    scored = without_unscored(logps)
    rows = safe_rows(scored, mask_references=config.masks_references)
    ranking = rank(rows.present, scored.scores)
    valid = rows.valid & ranking.comparable
    offset, stats = virtual_logps(rows, config)
    rewards = config.beta * (rows.policy - rows.reference[0] - offset)  # [B, R] beta * s
    losses = _listwise(rewards, ranking, config) if config.pairs == "none" else _pairwise(rewards, ranking, config)
    stats["score_ties"] = ranking.tied
    return LossOutput(
        losses=losses.where(valid, 0.0),
        rewards=rewards.detach().where(valid.unsqueeze(-1), 0.0),
        valid=valid,
        stats={name: value.where(valid, 0.0) for name, value in stats.items()},
    )


def list_weights(ranking: Ranking, rounding: str) -> Tensor:
    """[B, R] w_i, float64: sums to 0 over the responses of a prompt, 0 for absent ones."""
    weights = ranking.wins / (ranking.count - 1).clamp(min=1).unsqueeze(-1).double()
    return (weights * 100).round() / 100 if rounding == "two_decimals" else weights


def _listwise(rewards: Tensor, ranking: Ranking, config: Config) -> Tensor:
    weights = list_weights(ranking, config.weight_rounding).to(rewards.dtype)
    return compare((weights * rewards).sum(-1))


def _pairwise(rewards: Tensor, ranking: Ranking, config: Config) -> Tensor:
    chosen = _pairs(ranking, config.pairs)  # [B, R, R]
    each = compare(rewards.unsqueeze(2) - rewards.unsqueeze(1))  # [B, R, R] loss if the first is the better one
    total = each.where(chosen, 0.0).sum((1, 2))
    return total / chosen.sum((1, 2)).clamp(min=1) if config.reduce == "mean" else total


def _pairs(ranking: Ranking, kind: str) -> Tensor:
    """[B, R, R] bool, which strictly ordered pairs are compared."""
    if kind == "all":
        return ranking.better
    following = torch.zeros_like(ranking.better)
    batch = torch.arange(len(following), device=following.device).unsqueeze(-1)
    if kind == "adjacent":
        following[batch, ranking.order[:, :-1], ranking.order[:, 1:]] = True
    else:
        following[batch, ranking.order[:, :1]] = True
    return ranking.better & following
