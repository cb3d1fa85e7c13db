"""MPPO: length-averaged probabilities of n responses, compared directly (Xie et al., COLING 2025, eq. 6-13).

    p_i = exp(m_i),  m_i = l_i / T_i,  N = n - 1 others than the best, D = the argument of -log sigmoid
    point_ce      -(s log p + (1 - s) log(1 - p)) per response       eq. 6, s the score in [0, 1]
    point_mse     (s - p)^2 per response                             eq. 7, whose printed minus sign is a slip
    pair_single   D = p_1 - p_j, one j                               eq. 8
    pair_mns      sum over j of -log sigmoid(p_1 - p_j)              eq. 9
    pair_mnm      D = N p_1 - sum_j p_j                              eq. 10
    pair_mcs      sum over all pairs of -log sigmoid(p_i - p_j)      eq. 11
    pair_mcm      D = sum over all pairs of p_i - p_j                eq. 12
    list_mle      -sum_i [p_i - log sum_{j >= i} exp p_j]            eq. 13

There is neither a reference nor a beta, so nothing holds the likelihoods up: watch rewards/chosen, which is p_1. With
two responses all pair and list variants are the same. Tied pairs are left out; where the best are tied, the first of
them is the best.

anchor: virtual puts MRPO's virtual reference back: p_i becomes exp(m_i) - exp(v_i / T_i), how much likelier per token
the policy makes a response than the references do (reference-anchored MPPO; no paper has it). It stays between -1 and
1, and with K = 1 and the policy at RefM1 every D is 0.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mrpo_ds.errors import require, require_choice
from mrpo_ds.losses._parts import CERTAIN, compare, log1mexp, mean_logps
from mrpo_ds.losses._virtual import VirtualReferenceOptions, virtual_logps
from mrpo_ds.ops.ranking import Ranking, pick, rank, without_unscored
from mrpo_ds.ops.rows import SafeRows, safe_rows, without_references
from mrpo_ds.types import LossOutput, Needs, ResponseLogps

POINT = ("point_ce", "point_mse")
RANKED = ("pair_single", "pair_mns", "pair_mnm", "pair_mcs", "pair_mcm", "list_mle")


@dataclass(frozen=True, kw_only=True)
class Config(VirtualReferenceOptions):
    """Options of MPPO. Those of the virtual reference count with anchor: virtual only."""

    variant: str = "pair_mnm"
    """point_ce | point_mse | pair_single | pair_mns | pair_mnm (the paper's best) | pair_mcs | pair_mcm | list_mle."""
    score_scale: float = 10.0
    """Point variants: scores are divided by this, which must bring them into 0 to 1; > 0. UltraFeedback's go to 10."""
    negative: str = "random"
    """pair_single: random: one of the responses below the best, drawn anew each epoch. worst: the last."""
    combinations: str = "all"
    """pair_mcs: all pairs, or one: a pair drawn at random for each prompt and step."""
    anchor: str = "none"
    """none: no reference, the paper. virtual: relative to the virtual reference; not for point variants."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("loss.variant", self.variant, POINT + RANKED)
        require(0 < self.score_scale < float("inf"), "loss.score_scale", self.score_scale, "> 0")
        require_choice("loss.negative", self.negative, ("random", "worst"))
        require_choice("loss.combinations", self.combinations, ("all", "one"))
        require_choice("loss.anchor", self.anchor, ("none", "virtual"))
        bounded = self.anchor == "none" or self.variant in RANKED
        require(bounded, "loss.anchor", self.anchor, f"none for loss.variant={self.variant}: a score is no difference")


def needs(config: Config) -> Needs:
    """Scored responses for point variants, ranked lists or pairs for the others; references for an anchor."""
    if config.variant in POINT:
        return Needs(views=("point", "ranked"), score_range=(0.0, config.score_scale))
    anchored = config.anchor == "virtual"
    draws = (config.variant, config.negative) == ("pair_single", "random")
    draws |= (config.variant, config.combinations) == ("pair_mcs", "one")
    exactly = config.exactly if anchored else None
    return Needs(
        views=("ranked", "pair"),
        references=int(anchored),
        exactly=exactly,
        draws=draws,
        drops_nonfinite=config.drops_nonfinite,
    )


def loss(logps: ResponseLogps, config: Config) -> LossOutput:
    """One MPPO loss per prompt, in float32 at least.

    Args:
        logps: a batch with any R and K; scores for point variants, draws where needs says so. A response without a
            score
            is left out where others have one.
        config: see Config.

    Returns:
        losses [B], for point variants the mean over a prompt's responses; rewards [B, R] = p; valid is False, too,
        where all scores are tied or, for point variants, missing. stats [B]: score_ties, and with an anchor those of
        virtual_logps.
    """
    scored = without_unscored(logps if config.anchor == "virtual" else without_references(logps))
    point = config.variant in POINT
    rows = safe_rows(scored, mask_references=config.masks_references, fewest=1 if point else 2)
    if point:
        return _pointwise(rows, scored.scores, config)
    ranking = rank(rows.present, scored.scores)
    valid = rows.valid & ranking.comparable
    values, stats = mean_logps(rows).exp(), {"score_ties": ranking.tied}
    if config.anchor == "virtual":
        offset, virtual_stats = virtual_logps(rows, config)
        values = values - ((rows.reference[0] + offset) / rows.lengths).exp()
        stats |= virtual_stats
    losses = _ranked(values.where(rows.present, 0.0), ranking, logps.draws, config)
    return LossOutput(
        losses=losses.where(valid, 0.0),
        rewards=values.detach().where(valid.unsqueeze(-1) & rows.present, 0.0),
        valid=valid,
        stats={name: value.where(valid, 0.0) for name, value in stats.items()},
    )


def _pointwise(rows: SafeRows, scores: Tensor | None, config: Config) -> LossOutput:
    means = mean_logps(rows)  # [B, R]
    if scores is None:
        scores = torch.full_like(means, torch.nan)
    valid = rows.valid & (scores.isfinite() | ~rows.present).all(-1)
    present = rows.present & valid.unsqueeze(-1)
    targets = (scores.to(means.dtype) / config.score_scale).where(present, 0.0)
    if config.variant == "point_ce":
        each = -(targets * means + (1 - targets) * log1mexp(means.clamp(max=CERTAIN)))
    else:
        each = (targets - means.exp()).square()
    return LossOutput(
        losses=each.where(present, 0.0).sum(-1) / present.sum(-1).clamp(min=1),
        rewards=means.exp().detach().where(present, 0.0),
        valid=valid,
    )


def _ranked(values: Tensor, ranking: Ranking, draws: Tensor | None, config: Config) -> Tensor:
    """[B] losses from p [B, R]; what they are where nothing is comparable does not matter."""
    if config.variant == "list_mle":
        return _list_mle(values, ranking)
    if config.variant == "pair_mcm":
        return compare((ranking.wins * values).sum(-1))
    differences = values.unsqueeze(2) - values.unsqueeze(1)  # [B, R, R] p_i - p_j
    if config.variant == "pair_mcs":
        return compare(differences).where(_combinations(ranking, draws, config), 0.0).sum((1, 2))
    best = ranking.order[:, :1]  # [B, 1]
    others = ranking.better.take_along_dim(best.unsqueeze(-1), dim=1).squeeze(1)  # [B, R] strictly below the best
    against_best = differences.take_along_dim(best.unsqueeze(-1), dim=1).squeeze(1)  # [B, R] p_1 - p_j
    if config.variant == "pair_mnm":
        return compare(against_best.where(others, 0.0).sum(-1))
    if config.variant == "pair_single":
        others = _single(others, ranking, draws, config)
    return compare(against_best).where(others, 0.0).sum(-1)


def _combinations(ranking: Ranking, draws: Tensor | None, config: Config) -> Tensor:
    if config.combinations == "all":
        return ranking.better
    assert draws is not None, "mppo with combinations: one needs draws"
    return pick(ranking.better.flatten(1), draws).view_as(ranking.better)


def _single(others: Tensor, ranking: Ranking, draws: Tensor | None, config: Config) -> Tensor:
    if config.negative == "random":
        assert draws is not None, "mppo with negative: random needs draws"
        return pick(others, draws)
    last = ranking.order.gather(1, (ranking.count - 1).clamp(min=0).unsqueeze(-1))
    return others & torch.zeros_like(others).scatter(1, last, True)


def _list_mle(values: Tensor, ranking: Ranking) -> Tensor:
    """-sum_i [p_(i) - lse(p_(i), .., p_(n))] over the present responses in their order."""
    ordered = values.gather(1, ranking.order)
    places = torch.arange(values.shape[1], device=values.device)
    present = places < ranking.count.unsqueeze(-1)
    below = ordered.masked_fill(~present, -torch.inf).flip(1).logcumsumexp(1).flip(1)  # [B, R]
    return (below.where(present, 0.0) - ordered.where(present, 0.0)).sum(-1)
