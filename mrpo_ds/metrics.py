"""Sums over the prompts of a step, kept on the device, reduced once over the policy's ranks."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mrpo_ds.data.micro import MicroBatch
from mrpo_ds.distributed.collectives import gather_objects, sum_over_ranks
from mrpo_ds.errors import NonFiniteError
from mrpo_ds.types import Example, LossOutput, ResponseLogps


@dataclass
class Totals:
    """Adds micro-batches up; means() gives global means over the true prompts, never rank 0's share."""

    reference_names: list[str]
    _sums: dict[str, Tensor] = field(default_factory=dict)
    _losses: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def add(self, output: LossOutput, logps: ResponseLogps, micro: MicroBatch) -> None:
        """Add one micro-batch. Uncounted filler adds zeros, so that every rank knows every name."""
        weight = (output.valid & micro.counted).float()  # [b]
        values = prompt_metrics(output, logps, self.reference_names)
        values["prompts"] = torch.ones_like(weight)
        for name, value in values.items():
            # where, not a product: an invalid prompt may hold NaN, and NaN times 0 is NaN
            share = torch.where(weight > 0, value.double(), 0.0).sum()
            self._sums[name] = self._sums.get(name, torch.zeros_like(share)) + share
        dropped = (~output.valid & micro.counted).float().sum()
        self._sums["dropped"] = self._sums.get("dropped", torch.zeros_like(dropped)) + dropped
        self._losses.append((micro.prompts, torch.where(weight > 0, output.losses.detach().float(), 0.0)))

    def means(self) -> dict[str, float]:
        """Global means by metric name, plus the counts 'prompts' and 'dropped'. One all-reduce."""
        names = sorted(self._sums)
        sums = sum_over_ranks(torch.stack([self._sums[name].double() for name in names]))
        values = dict(zip(names, sums.tolist(), strict=True))
        count = max(values["prompts"], 1.0)
        return {name: value if name in ("prompts", "dropped") else value / count for name, value in values.items()}

    def raise_if_not_finite(self, means: dict[str, float], step: int, examples: list[Example]) -> None:
        """Raise NonFiniteError on every rank, with the rows that did it, when the global loss is not finite."""
        if torch.isfinite(torch.tensor(means["loss"])):
            return
        mine = [
            f"{examples[int(prompt)].id} ({examples[int(prompt)].source}): loss {float(loss)}"
            for prompts, losses in self._losses
            for prompt, loss in zip(prompts, losses, strict=True)
            if not torch.isfinite(loss)
        ]
        rows = [row for rank_rows in gather_objects(mine) for row in rank_rows]
        raise NonFiniteError(
            f"the loss of step {step} is not finite; the weights were not updated. Rows: {'; '.join(rows[:5])}"
            + (f" and {len(rows) - 5} more." if len(rows) > 5 else ".")
            + " A lower train.learning_rate or train.max_grad_norm, or removing the rows, may help."
        )


def raise_if_gradient_not_finite(grad_norm: float, step: int) -> None:
    """Raise NonFiniteError, on every rank alike, for a global gradient norm that is not finite.

    DeepSpeed leaves the weights alone then and says nothing: unsaid, a run of skipped steps would look like training.
    """
    if not math.isfinite(grad_norm):
        raise NonFiniteError(
            f"the gradient of step {step} is not finite, though its loss is; the weights were not updated. A lower "
            "train.learning_rate, or removing rows with extreme log-probs, may help."
        )


def prompt_metrics(output: LossOutput, logps: ResponseLogps, reference_names: list[str]) -> dict[str, Tensor]:
    """Per-prompt values [b] under the field's usual names; chosen is the best response, rejected the last present."""
    chosen_rewards, rejected_rewards = best_and_last(output.rewards, logps.present)
    chosen, rejected = best_and_last(logps.policy.detach(), logps.present)
    values = {
        "loss": output.losses.detach(),
        "rewards/chosen": chosen_rewards,
        "rewards/rejected": rejected_rewards,
        "rewards/margins": chosen_rewards - rejected_rewards,
        "rewards/accuracies": chosen_rewards > rejected_rewards,
        "rewards/ties": chosen_rewards == rejected_rewards,
        "logps/chosen": chosen,
        "logps/rejected": rejected,
        "logps/accuracies": chosen > rejected,
    }
    for k, name in enumerate(reference_names):
        reference_chosen, reference_rejected = best_and_last(logps.reference[k], logps.present)
        values[f"ref/{name}/logps/chosen"] = reference_chosen
        values[f"ref/{name}/logps/rejected"] = reference_rejected
        values[f"ref/{name}/margin"] = reference_chosen - reference_rejected
        values[f"ref/{name}/accuracy"] = reference_chosen > reference_rejected
    for stat, value in output.stats.items():
        if value.dim() == 1:
            values[stat] = value
        else:
            values.update({f"ref/{name}/{stat}": value[k] for k, name in enumerate(reference_names)})
    return values


def best_and_last(values: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """[b, R] -> the first and the last present column, [b] each."""
    last = present.sum(1, keepdim=True) - 1
    return values[:, 0], values.gather(1, last)[:, 0]
