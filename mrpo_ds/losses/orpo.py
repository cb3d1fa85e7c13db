"""ORPO: odds ratio preference optimization, without any reference (Hong et al., arXiv:2403.07691, eq. 6-7).

    odds(y) = p / (1 - p), p = exp(m),    loss = NLL(y_w) - lam * log sigmoid(log odds(y_w) - log odds(y_l))

m is the policy's mean log-prob per token. The NLL is a mean over tokens: of the chosen responses (the default here, as
in LLaMA-Factory), or of their prompts too (the authors' code by default, and TRL).
"""

from dataclasses import dataclass

from torch import Tensor

from mrpo_ds.errors import require_choice
from mrpo_ds.losses._parts import CERTAIN, compare, log1mexp, mean_logps, nll, pair, require_not_negative
from mrpo_ds.ops.rows import safe_rows, without_references
from mrpo_ds.types import LossOutput, Needs, ResponseLogps


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of ORPO."""

    lam: float = 0.1
    """Weight of the odds ratio, >= 0. (The paper's lambda; TRL calls it beta.)"""
    nll: str = "response"
    """response: NLL over the tokens of the chosen response. full: over its prompt's as well."""

    def __post_init__(self) -> None:
        require_not_negative("lam", self.lam)
        require_choice("loss.nll", self.nll, ("response", "full"))


def needs(config: Config) -> Needs:
    """Pairs; the prompts' log-probs for nll: full."""
    return Needs(views=("pair",), prompt=config.nll == "full")


def loss(logps: ResponseLogps, config: Config) -> LossOutput:
    """One ORPO loss per pair, in float32 at least.

    Args:
        logps: a batch with R = 2 and any K, also 0; with prompts if nll is full.
        config: see Config.

    Returns:
        losses [B] = the odds ratio part; per_token: the NLL; rewards [B, 2] = lam * m. stats [B]: log_odds_ratio.
    """
    rows = safe_rows(without_references(logps))
    means = mean_logps(rows)  # [B, 2]
    chosen, rejected = pair(log_odds(means))
    summed, lengths = rows.policy[:, 0], rows.lengths[:, 0]
    if config.nll == "full":
        assert logps.prompt is not None and logps.prompt_lengths is not None, "orpo with nll: full needs the prompts"
        summed = summed + logps.prompt.to(summed.dtype)
        lengths = lengths + logps.prompt_lengths.to(lengths.dtype)
    _, per_token = nll(summed, lengths, rows.valid, 1.0, "token_mean")
    return LossOutput(
        losses=(config.lam * compare(chosen - rejected)).where(rows.valid, 0.0),
        rewards=config.lam * means.detach(),
        valid=rows.valid,
        stats={"log_odds_ratio": (chosen - rejected).detach().where(rows.valid, 0.0)},
        per_token=per_token,
    )


def log_odds(means: Tensor) -> Tensor:
    """log(p / (1 - p)) of p = exp(mean log-prob); a certain response counts as one with a mean of -1e-6."""
    return means - log1mexp(means.clamp(max=CERTAIN))
