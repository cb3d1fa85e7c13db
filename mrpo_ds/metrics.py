"""Sums over the prompts of a step, kept on the device, reduced once over the policy's ranks."""

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mrpo_ds.data.micro import MicroBatch
from mrpo_ds.distributed.collectives import sum_over_ranks
from mrpo_ds.ops.ranking import rank, without_unscored
from mrpo_ds.types import LossOutput, ResponseLogps

Metric = tuple[Tensor, Tensor]
"""[b] values and [b] bool, for which prompts they mean something."""

COUNTS = ("prompts", "dropped")
"""Metrics that are sums and not means."""


@dataclass(frozen=True)
class SeenPrompt:
    """One prompt of a step, as numbers."""

    prompt: int
    """Position in the global batch."""
    loss: float
    policy: list[float]
    """[R] log-probs, nats."""
    weights: list[float]
    """[K] of the references, for losses that weigh them."""


@dataclass
class Totals:
    """Adds micro-batches up; means() gives global means over the true prompts, never rank 0's share."""

    reference_names: list[str]
    chosen: int
    """Column of the chosen response; see Needs."""
    _sums: dict[str, Tensor] = field(default_factory=dict)
    """By metric: [2] the sum and how many prompts it is over."""
    _seen: list[tuple[MicroBatch, Tensor, Tensor, Tensor | None]] = field(default_factory=list)
    """Per micro-batch [b] losses, [b, R] log-probs of the policy, [K, b] weights of the references."""
    _token_weight: float = 0.0

    def add(self, output: LossOutput, logps: ResponseLogps, micro: MicroBatch) -> None:
        """Add one micro-batch. Uncounted filler adds zeros, so that every rank knows every name."""
        used = output.valid & micro.counted  # [b]
        values = prompt_metrics(output, logps, self.reference_names, self.chosen)
        values["prompts"] = (torch.ones_like(output.losses), used)
        for name, (value, applies) in values.items():
            mask = used & applies
            # where, not a product: an invalid prompt may hold NaN, and NaN times 0 is NaN
            self._add(name, value.detach().double().where(mask, 0.0).sum(), mask.sum())
        self._add("dropped", (~output.valid & micro.counted).sum(), used.sum())
        losses = output.losses.detach()
        if output.per_token is not None:
            self._token_weight = output.per_token.weight
            sums = output.per_token.losses.detach()
            self._add("nll_loss", sums.double().where(used, 0.0).sum(), output.per_token.tokens.where(used, 0.0).sum())
            losses = losses + sums
        losses = losses.float().where(used, 0.0)
        self._seen.append((micro, losses, logps.policy.detach(), output.stats.get("weight")))

    def means(self) -> dict[str, float]:
        """Global means by metric name, NaN where no prompt has it, plus the counts. One all-reduce.

        loss is the loss of the step: the mean over prompts plus the weighted mean over tokens (nll_loss), if any.
        """
        names = sorted(self._sums)
        sums = sum_over_ranks(torch.stack([self._sums[name] for name in names]))
        table = dict(zip(names, sums.tolist(), strict=True))
        means = {name: total / count if count else math.nan for name, (total, count) in table.items()}
        means |= {name: table[name][0] for name in COUNTS}
        if not means["prompts"]:
            means["loss"] = 0.0  # every row was dropped: nothing was trained on
        elif "nll_loss" in means:
            means["loss"] += self._token_weight * means["nll_loss"]
        if math.isnan(means["rewards/margins"]):  # single responses: no prompt has both kinds
            means["rewards/margins"] = means["rewards/chosen"] - means["rewards/rejected"]
        return means

    def _add(self, name: str, total: Tensor, count: Tensor) -> None:
        pair = torch.stack([total.double(), count.double()])
        self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def seen(self) -> list[SeenPrompt]:
        """This rank's prompts. Many transfers from the device: for a step that has failed."""
        return [
            SeenPrompt(
                prompt=int(micro.prompts[row]),
                loss=float(losses[row]),
                policy=policy[row].tolist(),
                weights=[] if weights is None else weights[:, row].tolist(),
            )
            for micro, losses, policy, weights in self._seen
            for row in range(len(losses))
            if micro.counted[row]
        ]


def prompt_metrics(
    output: LossOutput, logps: ResponseLogps, reference_names: list[str], chosen: int = 0
) -> dict[str, Metric]:
    """Per-prompt values under the field's usual names, the same for every objective.

    chosen is the best response (TPO: the one after the gold one), rejected the last present. A prompt with a single
    response has only one of the two: chosen if its score is > 0 or missing. Lists also have top1 (the best response has
    the largest reward), pair_accuracies and pair_margins (over all strictly ordered pairs); ties of scores do not
    count.
    """
    sides = _Sides.of(logps, chosen)
    values = sides.named("rewards/", output.rewards) | sides.named("logps/", logps.policy.detach())
    values = {name: value for name, value in values.items() if name not in ("logps/margins", "logps/ties")}
    values |= _list_metrics(output.rewards, logps, chosen)
    values["loss"] = (output.losses, torch.ones_like(output.valid))
    for k, name in enumerate(reference_names):
        of_reference = sides.named("", logps.reference[k])
        values[f"ref/{name}/logps/chosen"] = of_reference["chosen"]
        values[f"ref/{name}/logps/rejected"] = of_reference["rejected"]
        values[f"ref/{name}/margin"] = of_reference["margins"]
        values[f"ref/{name}/accuracy"] = of_reference["accuracies"]
    everyone = torch.ones_like(output.valid)
    for stat, value in output.stats.items():
        if value.dim() == 1:
            values[stat] = (value, everyone)
        else:
            values.update({f"ref/{name}/{stat}": (value[k], everyone) for k, name in enumerate(reference_names)})
    return values


@dataclass(frozen=True)
class _Sides:
    """Where the chosen and the rejected response of each prompt are, and which prompts have them."""

    best: Tensor
    """[b] column."""
    last: Tensor
    """[b] column."""
    has_chosen: Tensor
    has_rejected: Tensor

    @classmethod
    def of(cls, logps: ResponseLogps, chosen: int) -> "_Sides":
        count = logps.present.sum(1)
        columns = torch.arange(logps.present.shape[1], device=count.device).expand(logps.present.shape)
        last = columns.where(logps.present, -1).amax(1).clamp(min=0)
        best = torch.full_like(last, chosen).where(count > 1, last)
        paired = count > 1
        single = logps.scores if logps.scores is not None else torch.full_like(logps.lengths, math.nan)
        desirable = ~(single.gather(1, last.unsqueeze(1))[:, 0] <= 0)  # NaN is not <= 0
        return cls(best, last, paired | desirable, paired | ~desirable)

    def named(self, prefix: str, values: Tensor) -> dict[str, Metric]:
        """[b, R] -> chosen, rejected and how the two compare."""
        chosen = values.gather(1, self.best.unsqueeze(1))[:, 0]
        rejected = values.gather(1, self.last.unsqueeze(1))[:, 0]
        both = self.has_chosen & self.has_rejected
        return {
            f"{prefix}chosen": (chosen, self.has_chosen),
            f"{prefix}rejected": (rejected, self.has_rejected),
            f"{prefix}margins": (chosen - rejected, both),
            f"{prefix}accuracies": (chosen > rejected, both),
            f"{prefix}ties": (chosen == rejected, both),
        }


def _list_metrics(rewards: Tensor, logps: ResponseLogps, chosen: int) -> dict[str, Metric]:
    """Over the responses from the chosen one on: is the best on top, and how are the ordered pairs ranked."""
    columns = torch.arange(logps.present.shape[1], device=rewards.device)
    scored = without_unscored(replace(logps, present=logps.present & (columns >= chosen)))
    ranking = rank(scored.present, scored.scores)
    difference = rewards.unsqueeze(2) - rewards.unsqueeze(1)  # [b, R, R]
    pairs = ranking.better.sum((1, 2))
    right = (difference > 0) & ranking.better
    best = ranking.order[:, :1].unsqueeze(-1)  # [b, 1, 1]
    missed = (ranking.better & ~right).take_along_dim(best, dim=1)
    margins = difference.where(ranking.better, 0.0).sum((1, 2)) / pairs.clamp(min=1)
    return {
        "rewards/top1": (~missed.any(-1)[:, 0], ranking.comparable),
        "rewards/pair_accuracies": (right.sum((1, 2)) / pairs.clamp(min=1), ranking.comparable),
        "rewards/pair_margins": (margins, ranking.comparable),
    }
