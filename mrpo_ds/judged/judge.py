"""The judge: an endpoint that speaks OpenAI's chat completions, described by a YAML that has no secret in it."""

import hashlib
import json
import os
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from mrpo_ds.config.load import load_record
from mrpo_ds.config.schema import MISSING
from mrpo_ds.errors import ConfigError, require, require_choice
from mrpo_ds.judged.prompts import Call

LOOPBACK = ("localhost", "127.0.0.1", "::1")
TOP_LOGPROBS = 20


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Whom to ask, how, and what it costs."""

    base_url: str = MISSING
    """With the version, such as https://api.openai.com/v1; /chat/completions is added."""
    model: str = MISSING
    """As the server calls it."""
    api_key_env: str | None = None
    """Name of the environment variable that has the key, never the key; null for a server that wants none."""
    temperature: float | None = 0.0
    """>= 0; null leaves it out of the request, for models that refuse it."""
    max_tokens: int = 2048
    """Longest judgment, >= 1 token."""
    max_tokens_field: str = "max_tokens"
    """What the request calls that: max_tokens | max_completion_tokens."""
    logprobs: bool = False
    """Ask for the probabilities of the first token, and weigh the verdicts with them: labels of one token only."""
    timeout_seconds: float = 120.0
    """Of one attempt, from connecting to the last byte, > 0."""
    retries: int = 5
    """Further attempts after 429, 5xx, timeouts and lost connections, >= 0."""
    backoff_seconds: float = 1.0
    """Before the first of them, doubled each time up to max_wait_seconds, > 0; Retry-After is honoured."""
    max_wait_seconds: float = 120.0
    """Longest pause between attempts, > 0; a server that asks for a longer one is not waited for."""
    concurrency: int = 8
    """Calls at a time, >= 1."""
    usd_per_million_input: float | None = None
    """USD for a million tokens of prompts, >= 0, or null: unknown."""
    usd_per_million_output: float | None = None
    allow_plain_http: bool = False
    """Send the key over http:// to another host than this one."""

    def __post_init__(self) -> None:
        for key in ("max_tokens", "concurrency"):
            require(getattr(self, key) >= 1, key, getattr(self, key), ">= 1")
        for key in ("timeout_seconds", "backoff_seconds", "max_wait_seconds"):
            require(0 < getattr(self, key) < float("inf"), key, getattr(self, key), "a number > 0")
        require(self.retries >= 0, "retries", self.retries, ">= 0")
        require(self.temperature is None or self.temperature >= 0, "temperature", self.temperature, ">= 0, or null")
        require_choice("max_tokens_field", self.max_tokens_field, ("max_tokens", "max_completion_tokens"))
        prices = (self.usd_per_million_input, self.usd_per_million_output)
        require(all(price is None or price >= 0 for price in prices), "usd_per_million", prices, ">= 0, or null")
        require((prices[0] is None) == (prices[1] is None), "usd_per_million", prices, "both prices, or neither")
        self._check_address()

    def _check_address(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.username or parts.password or parts.query:
            raise ConfigError("base_url has a user, a password or a query in it; give a key by api_key_env instead.")
        require(
            parts.scheme in ("http", "https") and bool(parts.hostname), "base_url", self.base_url, "http(s)://host..."
        )
        name = self.api_key_env
        if name is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):  # it may be the key: not repeated
            raise ConfigError(
                "api_key_env is no name of an environment variable. Never write a key into a file: put it into a "
                "variable, such as OPENAI_API_KEY, and name that."
            )
        safe = parts.scheme == "https" or self.is_local or self.allow_plain_http
        require(
            name is None or safe,
            "base_url",
            self.base_url,
            "https:// with a key, or allow_plain_http: true",
        )

    @property
    def is_local(self) -> bool:
        """Whether the server is on this host."""
        return urlsplit(self.base_url).hostname in LOOPBACK

    @property
    def has_prices(self) -> bool:
        """Whether spend can be reckoned."""
        return self.usd_per_million_input is not None

    def usd(self, input_tokens: float, output_tokens: float) -> float:
        """What so many tokens cost; 0 without prices."""
        if self.usd_per_million_input is None or self.usd_per_million_output is None:
            return 0.0
        return (input_tokens * self.usd_per_million_input + output_tokens * self.usd_per_million_output) / 1e6

    def request(self, call: Call) -> dict[str, Any]:
        """The body that is sent: all that a judgment depends on, besides the server."""
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": message.role, "content": message.content} for message in call.messages],
            self.max_tokens_field: self.max_tokens,
        }
        if self.temperature is not None:
            body["temperature"] = self.temperature
        if self.logprobs:
            body |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        return body

    def key(self, call: Call) -> str:
        """Digest of the request: the same question is never asked twice.

        Without max_tokens, which changes no judgment but those that it has cut.
        """
        body = self.request(call)
        del body[self.max_tokens_field]
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()

    def secret(self) -> str | None:
        """The key. Raises ConfigError when its variable is not set."""
        if self.api_key_env is None:
            return None
        value = os.environ.get(self.api_key_env, "").strip()
        if not value:
            raise ConfigError(f"api_key_env is {self.api_key_env!r}, but that variable is not set; export it first.")
        if not value.isascii() or not value.isprintable():
            raise ConfigError(
                f"api_key_env is {self.api_key_env!r}, but what that variable has is no key: it has line ends, control "
                "characters or letters beyond ASCII."
            )
        return value


def load_judge(path: str) -> Judge:
    """A judge from its YAML. Raises ConfigError with the file, the key and what is allowed."""
    try:
        return load_record(Judge, path, "judge file", "eval/judged/judge.yaml")
    except ConfigError as error:
        where = "" if path in str(error) else f"judge {path!r}: "
        raise ConfigError(f"{where}{error}") from error
