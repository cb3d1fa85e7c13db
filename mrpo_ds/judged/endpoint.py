"""One call of a judge over HTTP: attempts, pauses between them, and what a server may answer instead of a judgment."""

import json
import random
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from urllib.parse import quote

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
SHORTEST_KEY = 8
"""Characters. A shorter one is no secret but a word that a server of one's own wants, and may stand in a judgment."""


class CallFailed(Exception):
    """A call that brought no judgment."""

    def __init__(self, message: str, fatal: bool = False, alone: bool = False) -> None:
        """fatal: the next call would fail in the same way. alone: it may be about this prompt and no other."""
        super().__init__(message)
        self.fatal = fatal
        self.alone = alone


class _Failed(Exception):
    """An attempt that brought no judgment."""

    def __init__(
        self,
        message: str,
        again: bool = False,
        wait: float | None = None,
        billed: Usage | None = None,
        fatal: bool = False,
        alone: bool = False,
    ) -> None:
        """again: it may be repeated, after wait seconds. billed: what it may have cost; None: nothing."""
        super().__init__(message)
        self.again = again
        self.wait = wait
        self.billed = billed
        self.fatal = fatal
        self.alone = alone


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
        message = ""
        for attempt in range(self._judge.retries + 1):
            try:
                return self._attempt(call, attempt + 1)
            except _Failed as error:
                message = self._hidden(str(error))
                last = attempt == self._judge.retries or not error.again
                if error.billed is not None:
                    self._lost(call, message, error.billed, last)
                if not error.again:
                    raise CallFailed(message, error.fatal, error.alone) from error
                if not last:
                    self._pause(attempt, error.wait, message)
        raise CallFailed(f"{message} (after {self._judge.retries + 1} attempts)")

    def _pause(self, attempt: int, wait: float | None, message: str) -> None:
        """Wait before the next attempt. Raises CallFailed where that is too long, or the work is stopped."""
        judge = self._judge
        pause = min(judge.backoff_seconds * 2**attempt * random.uniform(0.5, 1.0), judge.max_wait_seconds)
        if wait is not None:
            if wait > judge.max_wait_seconds:
                limit = f"max_wait_seconds is {judge.max_wait_seconds:g}"
                raise CallFailed(f"{message}, and asks to wait {wait:.0f} s ({limit})", fatal=True)
            pause = max(pause, wait)
        if self._stopped.wait(pause):
            raise CallFailed(f"stopped between attempts; the last one: {message}")

    def _attempt(self, call: Call, number: int) -> Reply:
        started = time.monotonic()
        response, body = self._send(call, started)
        seconds = time.monotonic() - started
        wait = retry_after(response.headers.get("Retry-After"))
        status = response.status_code
        if status != httpx.codes.OK:
            raise _by_status(
                status, f"{self._url} answered {status} {response.reason_phrase}: {server_words(body)}", wait
            )
        try:
            return replace(read_reply(body), attempts=number, seconds=seconds)
        except NoReply as error:
            said = f"{self._url} answered {error}"
            if error.status is not None:
                raise _by_status(error.status, said, wait, error.billed) from error
            raise _Failed(said, billed=error.billed, alone=error.billed is not None) from error

    def _send(self, call: Call, started: float) -> tuple[httpx.Response, bytes]:
        """What came, without the key. Raises _Failed where nothing did."""
        limit = self._judge.timeout_seconds
        try:
            with self._client.stream("POST", self._url, json=self._judge.request(call)) as response:
                received = bytearray()
                for chunk in response.iter_bytes():
                    received += chunk
                    if time.monotonic() - started > limit:
                        raise httpx.ReadTimeout("the answer came too slowly")
                    if len(received) > MOST_BYTES:
                        raise _Failed(f"{self._url} answered more than {MOST_BYTES} bytes; is it a judge?", fatal=True)
        except (httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise _Failed(f"{self._url} could not be reached within {limit:g} s", again=True) from error
        except httpx.TimeoutException as error:
            said = f"{self._url} did not answer within timeout_seconds, {limit:g} s"
            raise _Failed(said, again=True, billed=Usage()) from error
        except httpx.ConnectError as error:
            raise _Failed(f"{self._url} cannot be reached: {error}", again=True) from error
        except (httpx.TransportError, httpx.DecodingError) as error:
            said = f"{self._url} broke the connection: {words(self._hidden(str(error)))}"
            raise _Failed(said, again=True, billed=Usage()) from error
        except (httpx.InvalidURL, UnicodeError) as error:
            raise _Failed(f"{self._url} is no address: {error}", fatal=True) from error
        if response.status_code == httpx.codes.OK and len(self._secret or "") < SHORTEST_KEY:
            return response, bytes(received)
        # Here, before anything is cut: half a key is no longer found. Latin-1 keeps every byte.
        return response, self._hidden(received.decode("latin-1")).encode("latin-1")

    def _hidden(self, text: str) -> str:
        """The text without the key, which a server may repeat: as it is, as JSON writes it, or as an address does."""
        if self._secret:
            in_json = json.dumps(self._secret)[1:-1]
            for form in (in_json.replace("/", "\\/"), in_json, quote(self._secret, safe=""), self._secret):
                text = text.replace(form, "***")
        return text


def _by_status(status: int, said: str, wait: float | None, billed: Usage | None = None) -> _Failed:
    """What a status that is no success means."""
    if status in (TOO_MANY, TIMED_OUT) or status >= 500:
        return _Failed(said, again=True, wait=wait, billed=billed)
    alone = status in OF_ONE_CALL
    return _Failed(said, billed=billed, fatal=not alone, alone=alone)


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
