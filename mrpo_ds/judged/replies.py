"""What the server of a judge answers: a judgment, and the tokens that it took."""

import json
import math
from dataclasses import dataclass, field
from typing import Any

SHOWN = 300
"""Characters of a server's words in a message."""


@dataclass(frozen=True)
class Usage:
    """Tokens of an attempt as its server counts them."""

    input_tokens: int | None = None
    """None where it does not."""
    output_tokens: int | None = None
    """Thoughts among them. None where it does not."""


@dataclass(frozen=True)
class Reply:
    """What a judge said."""

    text: str
    finish: str | None
    """finish_reason: stop, length, content_filter, ..."""
    served: str | None
    """The model that the server says has answered."""
    usage: Usage
    top: dict[str, float] = field(default_factory=dict)
    """Of the first token: text -> log-prob, nats, where they were asked for."""
    attempts: int = 1
    seconds: float = 0.0
    """Of the attempt that succeeded."""


class NoReply(Exception):
    """A 200 that has no judgment in it."""


def read_reply(body: bytes) -> Reply:
    """A chat completion from the bytes of a 200. Raises NoReply for anything else."""
    try:
        answer = json.loads(body)
        choice = answer["choices"][0]
        text = choice["message"]["content"]
        if not isinstance(text, str | None):
            raise TypeError("content is no text")
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise NoReply(f"something that is no chat completion: {words(decoded(body))}") from error
    usage = answer.get("usage") if isinstance(answer.get("usage"), dict) else {}
    return Reply(
        text=text or "",
        finish=_text_or_none(choice.get("finish_reason")),
        served=_text_or_none(answer.get("model")),
        usage=Usage(_count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))),
        top=_first_token(choice),
    )


def _first_token(choice: dict[str, Any]) -> dict[str, float]:
    """Log-probs of the candidates for the first token; the likelier of two that differ in blanks."""
    try:
        candidates = choice["logprobs"]["content"][0]["top_logprobs"]
        found: dict[str, float] = {}
        for one in candidates:
            name = str(one["token"]).strip()
            if math.isfinite(value := float(one["logprob"])):
                found[name] = max(found.get(name, value), value)
        return found
    except (KeyError, IndexError, TypeError, ValueError):
        return {}


def server_words(body: bytes) -> str:
    """The message of an OpenAI-like error, or the beginning of whatever it is."""
    try:
        error = json.loads(body)["error"]
        return words(str(error["message"] if isinstance(error, dict) else error))
    except (ValueError, KeyError, TypeError):
        return words(decoded(body)) or "(nothing)"


def decoded(body: bytes) -> str:
    """The beginning of a body as text."""
    return body[: 4 * SHOWN].decode("utf-8", "replace")


def words(text: str) -> str:
    """A server's words as a line of at most SHOWN characters."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}..."


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _text_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) else None
