"""SFT: the negative log-likelihood of the best response, without any reference.

    loss = -(sum of the log-probs of the response's tokens) / (number of those tokens)

The mean is over the tokens of the whole optimizer step, as in Hugging Face's trainer with one large batch: neither
accumulation nor the number of ranks changes it.
"""

from dataclasses import dataclass

from mrpo_ds.errors import require_choice
from mrpo_ds.losses._parts import nll
from mrpo_ds.ops.rows import safe_rows, without_references
from mrpo_ds.types import LossOutput, Needs, ResponseLogps


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of SFT."""

    reduction: str = "token_mean"
    """token_mean: over the step's tokens. seq_mean: every response counts the same, however long."""
    train_on_prompt: bool = False
    """Score the tokens of the prompt too."""

    def __post_init__(self) -> None:
        require_choice("loss.reduction", self.reduction, ("token_mean", "seq_mean"))


def needs(config: Config) -> Needs:
    """The best response of each prompt; the prompts' log-probs for train_on_prompt."""
    return Needs(views=("best",), prompt=config.train_on_prompt)


def loss(logps: ResponseLogps, config: Config) -> LossOutput:
    """One NLL per prompt, in float32 at least.

    Args:
        logps: a batch whose first response is the one to learn, and any K, also 0; with prompts if train_on_prompt.
        config: see Config.

    Returns:
        losses [B] or per_token, by the reduction; rewards [B, R] = l, the summed log-probs; no stats.
    """
    rows = safe_rows(without_references(logps), fewest=1)
    summed, lengths = rows.policy[:, 0], rows.lengths[:, 0]
    if config.train_on_prompt:
        assert logps.prompt is not None and logps.prompt_lengths is not None, "sft with train_on_prompt needs prompts"
        summed = summed + logps.prompt.to(summed.dtype)
        lengths = lengths + logps.prompt_lengths.to(lengths.dtype)
    own, per_token = nll(summed, lengths, rows.valid, 1.0, config.reduction)
    return LossOutput(
        losses=own.where(rows.valid, 0.0),
        rewards=rows.policy.detach(),
        valid=rows.valid,
        per_token=per_token,
    )
