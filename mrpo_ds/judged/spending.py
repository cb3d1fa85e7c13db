"""What judgments cost, and the cap: an attempt is made only if its dearest outcome still fits."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mrpo_ds.judged.judge import Judge
from mrpo_ds.judged.prompts import Call
from mrpo_ds.judged.replies import Usage

TEMPLATE_TOKENS = 1024
"""What a server may add to a prompt: the marks of its chat template, and a system message that comes with it."""


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
    extra_input: int = TEMPLATE_TOKENS
    """Tokens of a prompt beyond one for each byte of it in UTF-8, which no tokenizer passes: the most so far."""
    extra_output: int = 0
    """Tokens of a judgment beyond max_tokens, as of thoughts that a server counts beside it: the most so far."""

    def count(self, record: Mapping[str, Any]) -> None:
        """Count a line of the folder's judgments: what it has cost, and what its server counted."""
        usd = record.get("usd")
        if record.get("judge") == self.judge.model and not record.get("same_request"):
            counted = record.get("usage") or {}
            usage = Usage(counted.get("input_tokens"), counted.get("output_tokens"))
            size = _bytes(message["content"] for message in record.get("prompt") or ())
            longest = record.get("max_tokens") or self.judge.max_tokens
            if usd is None:  # bought before the judge's file had prices
                usd = self._usd(_filled(usage, size + self.extra_input, longest + self.extra_output))
            if "lost" not in record:
                self._learn(usage, size, longest)
        self.spent += usd or 0.0

    def most(self, call: Call, usage: Usage) -> Usage:
        """The most tokens that an attempt takes, where usage does not say how many it took."""
        longest = self.judge.max_tokens + self.extra_output
        return _filled(usage, _bytes_of(call) + self.extra_input, longest)

    def estimate(self, call: Call) -> float:
        """The most that an attempt can cost, in USD."""
        return self._usd(self.most(call, Usage()))

    def fits(self, call: Call) -> bool:
        """Whether the cap holds whatever another call comes to."""
        return self.cap is None or self.spent + self.reserved + self.estimate(call) <= self.cap

    def holds(self) -> bool:
        """Whether the cap holds whatever the next attempts of all calls under way come to."""
        return self.cap is None or self.spent + self.reserved <= self.cap

    def begin(self, call: Call) -> float:
        """Reserve a call's estimate, and return it for end()."""
        estimate = self.estimate(call)
        self.reserved += estimate
        return estimate

    def end(self, estimate: float, call: Call, usage: Usage | None) -> float:
        """Give back an estimate. Returns what the call's last attempt has cost; None: nothing, or lose() has it."""
        self.reserved -= estimate
        return 0.0 if usage is None else self._spend(call, usage)

    def lose(self, call: Call, usage: Usage) -> float:
        """Count an attempt that may have been billed and brought nothing; the call's estimate stays reserved.

        Returns what that was at most. The next attempt may be made only if the cap still holds().
        """
        return self._spend(call, usage)

    def _spend(self, call: Call, usage: Usage) -> float:
        cost = self._usd(self.most(call, usage))
        self._learn(usage, _bytes_of(call), self.judge.max_tokens)
        self.spent += cost
        return cost

    def _learn(self, usage: Usage, size: int, longest: int) -> None:
        if usage.input_tokens is not None:
            self.extra_input = max(self.extra_input, usage.input_tokens - size)
        if usage.output_tokens is not None:
            self.extra_output = max(self.extra_output, usage.output_tokens - longest)

    def _usd(self, usage: Usage) -> float:
        return self.judge.usd(usage.input_tokens or 0, usage.output_tokens or 0)


def _filled(usage: Usage, most_input: int, most_output: int) -> Usage:
    return Usage(
        most_input if usage.input_tokens is None else usage.input_tokens,
        most_output if usage.output_tokens is None else usage.output_tokens,
    )


def _bytes_of(call: Call) -> int:
    return _bytes(message.content for message in call.messages)


def _bytes(texts: Iterable[str]) -> int:
    return sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
