"""The records that travel between the parts.

Shape legend, used in every file of this project:
    B  prompts of a batch            R  responses per prompt, best first (absent ones are padding)
    K  reference models              P  data-parallel policy ranks
    N  sequences (rows of a forward) S  tokens of the longest sequence
    T  response tokens of a batch    V  vocabulary        D  hidden width
Log-probs are natural logarithms (nats), summed over the tokens of a response unless a name says otherwise.
"""

from dataclasses import dataclass, field

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
    """N padded sequences (prompt then response) for one forward."""

    input_ids: Tensor
    """[N, S] int64, padded on the right."""
    attention_mask: Tensor
    """[N, S] int64, 1 on real tokens."""
    response_mask: Tensor
    """[N, S] bool, True on the tokens that are scored: the response and its closing token, never the prompt."""

    def to(self, device: torch.device) -> "SequenceBatch":
        """The batch on a device."""
        return SequenceBatch(self.input_ids.to(device), self.attention_mask.to(device), self.response_mask.to(device))


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
    """[B, R] scores of the responses, or None."""


@dataclass(frozen=True)
class LossOutput:
    """What a loss returns."""

    losses: Tensor
    """[B] one loss per prompt, with gradient; 0 (still in the graph) where valid is False."""
    rewards: Tensor
    """[B, R] implicit rewards, detached."""
    valid: Tensor
    """[B] bool; False for prompts that cannot be used (a non-finite reference). It depends on the references,
    lengths and presence alone, never on the policy, so that the denominator is known before the forward."""
    stats: dict[str, Tensor] = field(default_factory=dict)
    """Further per-prompt values, detached: [B] is logged under its name, [K, B] as ref/<reference>/<name>."""
