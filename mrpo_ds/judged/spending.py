"""What judgments cost, and the cap: a call is made only if its dearest outcome still fits."""

from dataclasses import dataclass

from mrpo_ds.judged.endpoint import Reply
from mrpo_ds.judged.judge import Judge
from mrpo_ds.judged.prompts import Call

TOKENS_PER_CHARACTER = 0.5
"""Of a prompt, at least, whatever a server has counted so far: twice what English takes."""


@dataclass
class Spending:
    """Spend so far and what calls that are under way may add. Not for several threads at once."""

    judge: Judge
    cap: float | None
    """USD, or None."""
    spent: float = 0.0
    """USD, earlier runs of the folder among it."""
    reserved: float = 0.0
    """USD, the dearest outcome of calls under way."""
    per_character: float = TOKENS_PER_CHARACTER
    """Input tokens that a character of a prompt may take: the most so far."""

    def estimate(self, call: Call) -> float:
        """The most that a call can cost, in USD: its prompt as the dearest so far, and an answer of max_tokens."""
        return self.judge.usd(self.per_character * _characters(call), self.judge.max_tokens)

    def fits(self, call: Call) -> bool:
        """Whether the cap holds whatever the call comes to."""
        return self.cap is None or self.spent + self.reserved + self.estimate(call) <= self.cap

    def begin(self, call: Call) -> float:
        """Reserve a call's estimate, and return it for end()."""
        estimate = self.estimate(call)
        self.reserved += estimate
        return estimate

    def end(self, estimate: float, call: Call, reply: Reply | None) -> float:
        """Give back an estimate. Returns what the call has cost: the estimate where the server counts no tokens."""
        self.reserved -= estimate
        if reply is None:
            return 0.0
        if reply.input_tokens is None or reply.output_tokens is None:
            cost = estimate
        else:
            cost = self.judge.usd(reply.input_tokens, reply.output_tokens)
            self.per_character = max(self.per_character, reply.input_tokens / max(1, _characters(call)))
        self.spent += cost
        return cost

    def lose(self, call: Call) -> float:
        """Count an attempt that may have been billed. Returns what that was at most."""
        cost = self.estimate(call)
        self.spent += cost
        return cost


def _characters(call: Call) -> int:
    return sum(len(message.content) for message in call.messages)
