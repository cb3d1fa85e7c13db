"""One call of a judge over HTTP: attempts, pauses between them, and what a server may answer instead of a judgment."""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

import httpx

from mrpo_ds.judged.judge import Judge
from mrpo_ds.judged.prompts import Call
from mrpo_ds.judged.replies import NoReply, Reply, Usage, read_reply, server_words, words

TOO_MANY = 429
TIMED_OUT = 408
OF_ONE_CALL = (400, 413, 422)
"""Refusals that may be about this prompt alone: too long, or against a policy of the server."""
MOST_BYTES = 1 << 24
"""Of an answer: a judgment is some kilobytes."""


class CallFailed(Exception):
    """A call that brought no judgment."""

    def __init__(self, message: str, fatal: bool = False) -> None:
        """fatal: the next call would fail in the same way."""
        super().__init__(message)
        self.fatal = fatal


class _Transient(Exception):
    """An attempt that failed and may be repeated."""

    def __init__(self, message: str, wait: float | None = None, billed: bool = False) -> None:
        super().__init__(message)
        self.wait = wait
        self.billed = billed


Lost = Callable[[Call, str, Usage, bool], None]
"""Is told of an attempt that may have been billed though no judgment came: the call, why, the tokens as far as they are
known, and whether it was the call's last attempt."""


class Endpoint:
    """A judge that can be asked from several threads."""

    def __init__(self, judge: Judge, stopped: threading.Event, lost: Lost) -> None:
        """Open nothing yet.

        Args:
            judge: whom to ask. Raises ConfigError when its key is not set.
            stopped: ends pauses between attempts.
            lost: is told of attempts that may have been billed in vain; it may set stopped.
        """
        self._judge = judge
        self._stopped = stopped
        self._lost = lost
        self._secret = judge.secret()
        headers = {"Authorization": f"Bearer {self._secret}"} if self._secret else {}
        # A proxy of the environment is for the world outside: it must not get what is meant for this host.
        self._client = httpx.Client(
            trust_env=not judge.is_local,
            headers=headers,
            timeout=httpx.Timeout(judge.timeout_seconds),
            limits=httpx.Limits(max_connections=None),
        )
        self._url = judge.base_url.rstrip("/") + "/chat/completions"

    def close(self) -> None:
        """Close connections."""
        self._client.close()

    def ask(self, call: Call) -> Reply:
        """The judge's words. Raises CallFailed."""
        judge = self._judge
        message = ""
        for attempt in range(judge.retries + 1):
            try:
                return self._attempt(call, attempt + 1)
            except _Transient as error:
                message = str(error)
                if error.billed:
                    self._lost(call, message, Usage(), attempt == judge.retries)
                if attempt == judge.retries:
                    break
                pause = judge.backoff_seconds * 2**attempt * random.uniform(0.5, 1.0)
                pause = min(pause, judge.max_wait_seconds)
                if error.wait is not None:
                    if error.wait > judge.max_wait_seconds:
                        message += f", and asks to wait {error.wait:.0f} s (max_wait_seconds is "
                        raise CallFailed(f"{message}{judge.max_wait_seconds:g})", fatal=True) from error
                    pause = max(pause, error.wait)
                if self._stopped.wait(pause):
                    raise CallFailed(f"stopped between attempts; the last one: {message}") from error
        raise CallFailed(f"{message} (after {judge.retries + 1} attempts)")

    def _attempt(self, call: Call, number: int) -> Reply:
        started = time.monotonic()
        limit = self._judge.timeout_seconds
        try:
            with self._client.stream("POST", self._url, json=self._judge.request(call)) as response:
                received = bytearray()
                for chunk in response.iter_bytes():
                    received += chunk
                    if time.monotonic() - started > limit:
                        raise httpx.ReadTimeout("the answer came too slowly")
                    if len(received) > MOST_BYTES:
                        raise CallFailed(
                            f"{self._url} answered more than {MOST_BYTES} bytes; is it a judge?", fatal=True
                        )
        except (httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise _Transient(f"{self._url} could not be reached within {limit:g} s") from error
        except httpx.TimeoutException as error:
            raise _Transient(f"{self._url} did not answer within timeout_seconds, {limit:g} s", billed=True) from error
        except httpx.ConnectError as error:
            raise _Transient(f"{self._url} cannot be reached: {error}") from error
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise _Transient(f"{self._url} broke the connection: {words(str(error))}", billed=True) from error
        except (httpx.InvalidURL, UnicodeError) as error:
            raise CallFailed(f"{self._url} is no address: {error}", fatal=True) from error
        seconds = time.monotonic() - started
        self._check_status(response, bytes(received))
        try:
            return replace(read_reply(bytes(received)), attempts=number, seconds=seconds)
        except NoReply as error:
            raise CallFailed(f"{self._url} answered {error}") from error

    def _check_status(self, response: httpx.Response, body: bytes) -> None:
        status = response.status_code
        if status == httpx.codes.OK:
            return
        said = f"{self._url} answered {status} {response.reason_phrase}: {self._hidden(server_words(body))}"
        if status in (TOO_MANY, TIMED_OUT) or status >= 500:
            raise _Transient(said, retry_after(response.headers.get("Retry-After")))
        raise CallFailed(said, fatal=status not in OF_ONE_CALL)

    def _hidden(self, text: str) -> str:
        """The text without the key, which a server may repeat."""
        return text.replace(self._secret, "***") if self._secret else text


def retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks to wait: a number or a date; None without one that can be read."""
    if value is None:
        return None
    try:
        return max(0.0, float(value)) if value.strip().lower() not in ("nan", "inf") else None
    except ValueError:
        pass
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
    return max(0.0, (moment - datetime.now(timezone.utc)).total_seconds())
