"""The records that travel between the parts.

Shape legend, used in every file of this project:
    B  prompts of a batch            R  responses per prompt, best first (absent ones are padding)
    K  reference models              P  data-parallel policy ranks
    N  sequences of a forward        M  its rows, of S tokens each
    T  response tokens of a batch    V  vocabulary        D  hidden width
Log-probs are natural logarithms (nats), summed over the tokens of a response unless a name says otherwise.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    """system, user or assistant."""
    content: str


@dataclass(frozen=True)
class Example:
    """A prompt and its responses, as text, before any tokenizer has seen it."""

    id: str
    """Stable name of the row, unique in its data set."""
    prompt: tuple[Message, ...]
    """The conversation up to the turn that is answered; ends with a user turn."""
    responses: tuple[str, ...]
    """The assistant's answers, best first. A pair has 2 (chosen, rejected), a triple 3 (gold, chosen, rejected)."""
    scores: tuple[float, ...] | None
    """One score per response, larger is better, or None when the data has only the order."""
    source: str
    """Where the row came from, for messages: file name and row."""
    complete: tuple[bool, ...] = ()
    """Per response: False when its text was cut to fit max_length, so that no end-of-turn is scored after it."""

    def is_complete(self, response: int) -> bool:
        """Whether a response's text was not cut."""
        return self.complete[response] if self.complete else True


@dataclass(frozen=True)
class SequenceBatch:
    """N sequences (prompt then response) in M rows for one forward."""

    input_ids: Tensor
    """[M, S] int64. A row holds one sequence, padded on the right, or several, one after the other."""
    position_ids: Tensor
    """[M, S] int64, from 0 in every sequence; a token that several share has one place."""
    attention_mask: Tensor | None
    """[M, S] int64, 1 on real tokens. None when rows hold several sequences: who sees whom is then said by segments, or
    where there are none, by position_ids."""
    segments: Tensor | None
    """[M, 2, S] int32, where sequences share what they begin with (mrpo_ds/ops/attention.py): each token's own segment
    and the one that its sequence shares."""
    predictors: Tensor
    """[T] int64 places in the flat [M * S] of the tokens before the T scored ones, which predict them."""
    targets: Tensor
    """[T] int64 the scored tokens."""
    places: Tensor
    """[T] int64 where each scored token stands in the flat table of `table`."""
    table: tuple[int, int]
    """N, and the most scored tokens of a sequence: a row of the table has one sequence's scored tokens."""

    def to(self, device: torch.device) -> "SequenceBatch":
        """The batch on a device."""
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)


@dataclass(frozen=True)
class Work:
    """What the forwards of some sequences compute, padding and filler left out: what arithmetic is counted from."""

    spans: tuple[tuple[int, int], ...]
    """(position of its first token, tokens) of each stretch of tokens that is computed. A token attends to the tokens
    of its sequence at positions up to its own. A prompt that several sequences share is one stretch."""
    scored: int
    """Tokens whose log-probs are taken: rows that reach the language-model head."""

    @property
    def tokens(self) -> int:
        """Tokens that are computed."""
        return sum(length for _, length in self.spans)


@dataclass(frozen=True)
class ResponseLogps:
    """Everything a loss may know: log-probs of B prompts' responses under the policy and K references."""

    policy: Tensor
    """[B, R] summed log-probs of the policy, nats, with gradient."""
    lengths: Tensor
    """[B, R] scored tokens under the policy's tokenizer."""
    reference: Tensor
    """[K, B, R] summed log-probs of the references, nats, no gradient. K may be 0."""
    reference_lengths: Tensor
    """[K, B, R] scored tokens under each reference's own tokenizer."""
    present: Tensor
    """[B, R] bool; False marks padding where a prompt has fewer than R responses."""
    scores: Tensor | None = None
    """[B, R] scores of the responses, larger is better; NaN where there is none. None: no prompt has any."""
    prompt: Tensor | None = None
    """[B] summed log-probs of the prompts under the policy, nats, with gradient; None unless Needs.prompt."""
    prompt_lengths: Tensor | None = None
    """[B] scored tokens of the prompts; None unless Needs.prompt."""
    baseline: Tensor | None = None
    """[R] mean log pi / pi^1 over the step's baseline rows, nats, no gradient; None unless Needs.baseline."""
    draws: Tensor | None = None
    """[B] one random number in [0, 1) per prompt, a pure function of (seed, step, prompt); None unless Needs.draws."""


@dataclass(frozen=True)
class TokenLoss:
    """A part of a loss that is averaged over the tokens of the whole optimizer step and not over its prompts."""

    losses: Tensor
    """[B] sums over tokens, nats, with gradient; 0 where not valid."""
    tokens: Tensor
    """[B] how many tokens each is a sum over, without gradient and never depending on the policy; 0 where not valid."""
    weight: float
    """What the mean is multiplied by in the loss."""


@dataclass(frozen=True)
class LossOutput:
    """What a loss returns.

    The loss of a step is sum(losses) / sum(valid) + weight * sum(per_token.losses) / sum(per_token.tokens).
    Both denominators count the whole step: all micro-batches of all ranks. So accumulation and sharding change nothing.
    """

    losses: Tensor
    """[B] one loss per prompt, with gradient; 0 (still in the graph) where valid is False."""
    rewards: Tensor
    """[B, R] implicit rewards, detached."""
    valid: Tensor
    """[B] bool; False for prompts that cannot be used (a non-finite reference). It depends on the references,
    lengths, presence and scores alone, never on the policy, so that the denominator is known before the forward."""
    stats: dict[str, Tensor] = field(default_factory=dict)
    """Further per-prompt values, detached: [B] is logged under its name, [K, B] as ref/<reference>/<name>."""
    per_token: TokenLoss | None = None
    """The token-mean part, for objectives that have one."""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What an objective, with its options, asks of the run around it."""

    views: tuple[str, ...]
    """Views of the data that it can be trained on (mrpo_ds/data/views.py), the usual one first."""
    references: int = 0
    """Fewest references."""
    exactly: tuple[int, str] | None = None
    """The only number of references that fits, and the option that says so; None for any number >= references."""
    chosen: int = 0
    """Column of the chosen response: 1 for triples, whose first is the gold one."""
    unused: tuple[int, ...] = ()
    """Columns that the policy need not score."""
    prompt: bool = False
    """The policy scores the prompts too (ResponseLogps.prompt)."""
    baseline: str = "none"
    """none | batch | mismatched: the rows over which ResponseLogps.baseline is a mean, scored without gradient before
    the step. batch: the step's own. mismatched: the step's prompts, each with the responses of another prompt."""
    draws: bool = False
    """A random number per prompt (ResponseLogps.draws)."""
    drops_nonfinite: bool = False
    """Rows with a NaN or infinity of a reference are dropped on purpose; otherwise one ends the step."""
    score_range: tuple[float, float] | None = None
    """Every response must have a score, in this closed range; None for any score or none."""
