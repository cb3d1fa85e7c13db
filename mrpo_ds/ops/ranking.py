"""Who is better than whom among the responses of a prompt, with ties and missing scores.

Shapes as in mrpo_ds/types.py. Scores decide where a prompt has any; without, the order of the responses does (best
first). So permuting the responses of a scored prompt changes nothing.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mrpo_ds.types import ResponseLogps


@dataclass(frozen=True)
class Ranking:
    """The order of the responses of B prompts."""

    better: Tensor
    """[B, R, R] bool, True at (i, k) where response i is strictly better than k, both present."""
    order: Tensor
    """[B, R] int64, the columns from best to worst; ties in the order of the columns, absent ones last."""
    count: Tensor
    """[B] present responses."""

    @property
    def comparable(self) -> Tensor:
        """[B] bool, whether some response is strictly better than some other."""
        return self.better.any(-1).any(-1)

    @property
    def wins(self) -> Tensor:
        """[B, R] strictly worse responses minus strictly better ones; n - 2i + 1 for place i of n without ties."""
        return self.better.sum(2) - self.better.sum(1)

    @property
    def tied(self) -> Tensor:
        """[B] share of the pairs of present responses that are tied, 0 to 1."""
        pairs = self.count * (self.count - 1) / 2
        return 1 - self.better.sum((1, 2)) / pairs.clamp(min=1)


def without_unscored(logps: ResponseLogps) -> ResponseLogps:
    """The batch in which a response without a score is absent, in prompts where another one has a score."""
    if logps.scores is None:
        return logps
    scored = logps.scores.isfinite() & logps.present
    return replace(logps, present=torch.where(scored.any(-1, keepdim=True), scored, logps.present))


def rank(present: Tensor, scores: Tensor | None) -> Ranking:
    """The ranking of every prompt.

    Args:
        present: [B, R] bool; where a prompt has scores, its present responses must all have one (without_unscored).
        scores: [B, R], larger is better, NaN where there is none; or None.
    """
    columns = torch.arange(present.shape[1], device=present.device)
    keys = -columns.double().expand(present.shape)  # without scores, an earlier column is better
    if scores is not None:
        has_scores = (scores.isfinite() & present).any(-1, keepdim=True)
        keys = torch.where(has_scores, scores.double().nan_to_num(), keys)
    both = present.unsqueeze(2) & present.unsqueeze(1)
    better = (keys.unsqueeze(2) > keys.unsqueeze(1)) & both
    order = keys.masked_fill(~present, -torch.inf).argsort(dim=1, descending=True, stable=True)
    return Ranking(better, order, present.sum(-1))


def pick(mask: Tensor, draws: Tensor) -> Tensor:
    """One True of each row at random.

    Args:
        mask: [B, N] bool, the candidates.
        draws: [B] in [0, 1); the same draw picks the same candidate.

    Returns:
        [B, N] bool with one True per row, none where the mask has none.
    """
    place = (draws * mask.sum(-1)).long().unsqueeze(-1)  # from 0
    return mask & (mask.cumsum(-1) == place + 1)
