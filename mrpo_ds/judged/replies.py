"""What the server of a judge answers: a judgment, and the tokens that it took."""

import json
import math
import re
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

    def __init__(self, message: str, billed: Usage | None, status: int | None = None) -> None:
        """billed: what it may have cost; None: nothing. status: what the server should have answered instead of 200."""
        super().__init__(message)
        self.billed = billed
        self.status = status


def read_reply(body: bytes) -> Reply:
    """A chat completion from the bytes of a 200. Raises NoReply for anything else.

    A completion without words, as of a judge whose thoughts took all of max_tokens, is one: it is paid for.
    """
    answer = _object(body)
    choice = _first(answer.get("choices"))
    usage = _usage(answer.get("usage"))
    billed = usage if choice or usage != Usage() else None
    error = answer.get("error") or choice.get("error")
    if error:
        message = error.get("message", error) if isinstance(error, dict) else error
        raise NoReply(f"200, and in it an error: {words(str(message))}", billed, _status(error))
    text = _text(choice.get("message"))
    if text is None:
        raise NoReply(f"something that is no chat completion: {words(decoded(body))}", billed)
    return Reply(
        text=text,
        finish=_text_or_none(choice.get("finish_reason")),
        served=_text_or_none(answer.get("model")),
        usage=usage,
        top=_first_token(choice),
    )


def _object(body: bytes) -> dict[str, Any]:
    """The JSON object of a body, or an empty one."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}


def _first(choices: Any) -> dict[str, Any]:
    choice = choices[0] if isinstance(choices, list) and choices else {}
    return choice if isinstance(choice, dict) else {}


def _text(message: Any) -> str | None:
    """What a message says: its text, or the parts that are text and no thoughts; None where it is no message."""
    if not isinstance(message, dict):
        return None
    content = message.get("content")
    if not isinstance(content, list):
        return content if isinstance(content, str) else "" if content is None else None
    if not all(isinstance(part, dict) for part in content):
        return None
    texts = [part.get("text") for part in content if part.get("type") == "text"]
    return "".join(texts) if all(isinstance(text, str) for text in texts) else None


def _usage(counted: Any) -> Usage:
    """Some servers count thoughts in total_tokens alone."""
    if not isinstance(counted, dict):
        return Usage()
    read, written = _count(counted.get("prompt_tokens")), _count(counted.get("completion_tokens"))
    total = _count(counted.get("total_tokens"))
    if read is not None and total is not None:
        written = max(written or 0, total - read)
    return Usage(read, written)


def _status(error: Any) -> int | None:
    """The HTTP status that an error names as its code, or None."""
    code = error.get("code") if isinstance(error, dict) else None
    code = int(code) if isinstance(code, str) and re.fullmatch("[45][0-9][0-9]", code) else code
    return code if isinstance(code, int) and 400 <= code < 600 else None


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
