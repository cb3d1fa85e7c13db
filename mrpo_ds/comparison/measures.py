"""What a model's log-probs of held-out responses say about its preferences, document by document. Pure torch.

A document is a prompt with its responses. Every measure is one number per document: `accuracy` is 1 where the chosen
response is strictly ahead, `ties` 1 where the two are equal, `margin` by how much the chosen one is ahead.

    objective/...        rewards of the run's own objective
    logps/...            the model's summed log-probs themselves, nats: no reference is needed
    against/<ref>/...    beta * (log pi - log pi^k) against one reference
    vref/...             beta * (log pi - v) against the virtual reference of all of them
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from mrpo_ds.config.schema import LossConfig
from mrpo_ds.losses import load
from mrpo_ds.losses import needs as needs_of
from mrpo_ds.metrics import prompt_metrics
from mrpo_ds.types import LossOutput, ResponseLogps

KINDS = {"accuracy": "accuracies", "ties": "ties", "margin": "margins"}
"""Measure -> how metrics of training call it."""
VIRTUAL = "mrpo"
"""The objective whose rewards are against the virtual reference."""
USUAL_BETA = 0.1
COMPARED_VIEWS = ("pair", "triple", "ranked")
"""Views of the data whose documents have a chosen and a rejected response."""


@dataclass(frozen=True)
class Yardstick:
    """What models are measured with: the objective's rewards, and references."""

    loss: LossConfig
    references: tuple[str, ...]
    view: str
    """pair | triple | ranked."""

    @property
    def has_objective(self) -> bool:
        """Whether the objective compares documents of this view."""
        return self.view in needs_of(self.loss.name, self.loss.options).views

    @property
    def chosen(self) -> int:
        """Column of the chosen response."""
        return needs_of(self.loss.name, self.loss.options).chosen if self.has_objective else int(self.view == "triple")

    @property
    def beta(self) -> float:
        """Of rewards against references: the objective's where it has one of that meaning, else 0.1."""
        asks = needs_of(self.loss.name, self.loss.options).references > 0
        return float(self.loss.options.beta) if asks and hasattr(self.loss.options, "beta") else USUAL_BETA

    @property
    def virtual_options(self) -> Any:
        """MRPO's options for the virtual reference: the objective's where it has them, else the defaults.

        None where there is no such reference: without references, or for lists that are not pairs.
        """
        if not self.references or self.view != "pair":
            return None
        options_class, _ = load(VIRTUAL)
        mine = self.loss.options
        shared = [one.name for one in fields(options_class) if hasattr(mine, "ctro") and hasattr(mine, one.name)]
        return options_class(**{name: getattr(mine, name) for name in shared} | {"beta": self.beta})

    def measure(self, logps: ResponseLogps) -> dict[str, Tensor]:
        """[B] float64 per measure; NaN where a document has none, as where a reference's log-prob is not finite.

        Args:
            logps: of B documents; `reference` [K, B, R] in the order of `references`.
        """
        everyone = torch.ones(len(logps.policy), dtype=torch.bool)
        found: dict[str, Tensor] = {}
        if self.has_objective:
            found |= self._of_rewards("objective", logps, self._objective(logps))
        found |= self._of_rewards("logps", logps, _rewards(logps.policy, everyone))
        for k, name in enumerate(self.references):
            rewards = self.beta * (logps.policy.double() - logps.reference[k].double())
            found |= self._of_rewards(f"against/{name}", logps, _rewards(rewards, logps.reference[k].isfinite().all(1)))
        options = self.virtual_options
        if options is not None:
            _, loss = load(VIRTUAL)
            found |= self._of_rewards("vref", logps, loss(logps, options))
        return found

    def _objective(self, logps: ResponseLogps) -> LossOutput:
        """The objective's output for its rewards, which depend neither on a baseline, draws nor the prompt."""
        _, loss = load(self.loss.name)
        documents, responses = logps.policy.shape
        whole = replace(
            logps,
            baseline=torch.zeros(responses),
            draws=torch.zeros(documents),
            prompt=torch.zeros(documents),
            prompt_lengths=torch.zeros(documents),
        )
        return loss(whole, self.loss.options)

    def _of_rewards(self, prefix: str, logps: ResponseLogps, output: LossOutput) -> dict[str, Tensor]:
        metrics = prompt_metrics(output, logps, [], self.chosen)
        named = {}
        for name, theirs in KINDS.items():
            value, applies = metrics[f"rewards/{theirs}"]
            named[f"{prefix}/{name}"] = value.double().where(applies & output.valid, torch.nan)
        return named


def _rewards(rewards: Tensor, valid: Tensor) -> LossOutput:
    """Rewards [B, R] as what a loss would return."""
    return LossOutput(torch.zeros(len(rewards)), rewards, valid)
