"""What became of the rows of a split, and how each model reads them: counts that add up over parts of the data."""

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

Account = TypeVar("Account", bound="_Account")


@dataclass
class _Account:
    """Fields are numbers, texts (the first that is not empty counts), or dictionaries of either."""

    _greatest = frozenset[str]()
    """Fields of which the larger one counts; other numbers are added."""

    def add(self, other: "_Account") -> None:
        """Take in what a later part of the data counted."""
        for one in fields(self):
            setattr(self, one.name, self._sum(one.name, getattr(self, one.name), getattr(other, one.name)))

    def _sum(self, name: str, mine: Any, theirs: Any) -> Any:
        if isinstance(mine, dict):
            return mine | {
                key: self._sum(name, mine[key], value) if key in mine else value for key, value in theirs.items()
            }
        if isinstance(mine, str):
            return mine or theirs
        return max(mine, theirs) if name in self._greatest else mine + theirs

    def as_dict(self) -> dict[str, Any]:
        """All counts, ready for JSON."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    @classmethod
    def from_dict(cls: type[Account], values: dict[str, Any]) -> Account:
        """What as_dict said."""
        return cls(**values)


@dataclass
class DataReport(_Account):
    """What became of the rows of a split."""

    _greatest = frozenset({"responses_per_prompt"})

    rows: int = 0
    """Rows read."""
    kept: int = 0
    """Rows that became examples, some views making several of one row."""
    examples: int = 0
    """Examples made of them."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Rows that cannot be used, by reason."""
    first_dropped: dict[str, str] = field(default_factory=dict)
    """The first such row of each reason, as "file row N: what is wrong"."""
    duplicates: int = 0
    """Kept rows with the prompt and the responses of an earlier one. They are trained on as often as they are there."""
    repeated_prompts: int = 0
    """Kept rows with the prompt of an earlier one."""
    responses: int = 0
    """Responses of the kept rows, those that were left out and those that the view does not take included."""
    left_out_responses: dict[str, int] = field(default_factory=dict)
    """Responses of kept rows that cannot be used, by reason."""
    truncated_rows: int = 0
    """Kept rows with at least one response that is cut, or whose closing token does not fit."""
    truncated_responses: int = 0
    """Such responses."""
    first_truncated: str = ""
    """The first of these rows, as "file row N", or ""."""
    responses_per_prompt: int = 0
    """The most responses of any example."""


@dataclass
class FitReport(_Account):
    """How the examples of a split look to one model: sizes, and rows that it reads otherwise than they are written."""

    _greatest = frozenset({"longest", "most_tokens", "most_text"})

    rows: int = 0
    """Examples that the model was shown."""
    tokens: int = 0
    """Tokens of all sequences, each with its prompt."""
    longest: int = 0
    """Tokens of the longest sequence, prompt and response."""
    most_tokens: int = 0
    """Tokens of all sequences of one example, each with its prompt: the most of any."""
    heaviest: int = 0
    """The first example with so many, counted from 0 over those that the model was shown."""
    most_text: int = 0
    """Tokens of one example, its prompt once and its responses: the most of any."""
    wordiest: int = 0
    """The first example with so many."""
    prompt_tokens: dict[int, int] = field(default_factory=dict)
    """How many examples have a prompt of so many tokens."""
    response_tokens: dict[int, int] = field(default_factory=dict)
    """How many responses have so many tokens, closing token included."""
    not_round_trip: int = 0
    """Rows with a response whose token ids say another text."""
    special_in_text: int = 0
    """Rows whose text turns into special tokens."""
    left_out: int = 0
    """Rows of whose prompt the chat template drops or rewrites a part."""
    folded_system: int = 0
    """Rows whose system message stands in the first user turn, because the chat template has no such role."""
    refused: int = 0
    """Rows that the chat template refuses; they count in nothing else."""
    first: dict[str, str] = field(default_factory=dict)
    """The first row of each of these five counts, by the count's name."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "FitReport":
        """What as_dict said; JSON has made texts of the lengths."""
        histograms = {
            name: {int(n): count for n, count in values[name].items()} for name in ("prompt_tokens", "response_tokens")
        }
        return cls(**(values | histograms))

    def count(self, prompt_tokens: int, response_tokens: list[int]) -> None:
        """Take in one example's lengths."""
        text = prompt_tokens + sum(response_tokens)
        tokens = text + (len(response_tokens) - 1) * prompt_tokens
        if tokens > self.most_tokens:
            self.heaviest, self.most_tokens = self.rows, tokens
        if text > self.most_text:
            self.wordiest, self.most_text = self.rows, text
        self.rows += 1
        self.longest = max(self.longest, prompt_tokens + max(response_tokens))
        self.tokens += tokens
        _count(self.prompt_tokens, [prompt_tokens])
        _count(self.response_tokens, response_tokens)

    def add(self, other: _Account) -> None:
        """Take in what a later part of the data counted, whose examples come after those of this one."""
        assert isinstance(other, FitReport)
        heaviest = self.heaviest if self.most_tokens >= other.most_tokens else self.rows + other.heaviest
        wordiest = self.wordiest if self.most_text >= other.most_text else self.rows + other.wordiest
        super().add(other)
        self.heaviest, self.wordiest = heaviest, wordiest

    def find(self, name: str, source: str) -> None:
        """Count one odd row under the name of one of the counts."""
        setattr(self, name, getattr(self, name) + 1)
        self.first.setdefault(name, source)


def _count(histogram: dict[int, int], lengths: list[int]) -> None:
    for length, count in Counter(lengths).items():
        histogram[length] = histogram.get(length, 0) + count
