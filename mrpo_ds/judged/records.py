"""The records of judged evaluations: what is asked, how it is answered, and what a model said."""

from dataclasses import dataclass, field

from mrpo_ds.errors import require
from mrpo_ds.types import Message


@dataclass(frozen=True)
class Question:
    """A prompt of a benchmark, of one turn or of several that are asked one after the other."""

    id: str
    """Unique in its benchmark, and the same in every run."""
    turns: tuple[str, ...]
    """The user's messages in their order, at least one. The model answers each before it sees the next."""
    category: str = ""
    """Of the benchmark, such as "writing"; it may decide the temperature."""
    reference: tuple[str, ...] = ()
    """A right answer to each turn, which the judge is shown; () where there is none."""
    history: tuple[Message, ...] = ()
    """What was said before turns[0]; ends with an assistant's turn (HH-RLHF's prompts with earlier turns)."""


@dataclass(frozen=True)
class Generation:
    """How answers are made."""

    max_new_tokens: int
    """Of each turn, >= 1; an answer that reaches it is cut, and marked so."""
    temperature: float = 0.0
    """>= 0; 0 takes the likeliest token, without sampling."""
    temperature_by_category: dict[str, float] = field(default_factory=dict)
    """Instead of temperature for questions of a category."""
    system: str | None = None
    """System message before every conversation; None for none."""
    seed: int = 0
    """Of sampling, >= 0; the draws of a question depend on it and on the question's id alone."""
    batch_size: int = 8
    """Questions that are answered at once, >= 1; no part of what decides whether an answer may be used again."""

    def __post_init__(self) -> None:
        for key, low in (("max_new_tokens", 1), ("seed", 0), ("batch_size", 1)):
            require(getattr(self, key) >= low, f"generation.{key}", getattr(self, key), f">= {low}")
        for key, value in {"temperature": self.temperature, **self.temperature_by_category}.items():
            require(0 <= value < float("inf"), f"generation: temperature of {key!r}", value, "a number >= 0")

    def temperature_of(self, question: Question) -> float:
        """The temperature at which a question is answered."""
        return self.temperature_by_category.get(question.category, self.temperature)


@dataclass(frozen=True)
class Answer:
    """What a model said to a question."""

    question: str
    """Question.id."""
    turns: tuple[str, ...]
    """An answer to each turn of the question, as text without special tokens."""
    tokens: tuple[int, ...] = ()
    """New tokens of each turn; () where the file of answers does not say."""
    finished: tuple[bool, ...] = ()
    """Per turn: whether the model ended it by itself, and not max_new_tokens; () where unknown."""
