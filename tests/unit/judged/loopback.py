"""A server on loopback that answers what a test says: for what no model would answer by itself."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from mrpo_ds.judged.asking import Asked, ask_all
from mrpo_ds.judged.judge import Judge
from mrpo_ds.judged.judgments import Judgments
from mrpo_ds.judged.prompts import Call, Case
from mrpo_ds.judged.spending import TEMPLATE_TOKENS
from mrpo_ds.types import Message

COMPLETION = {
    "model": "judge-2024",
    "choices": [{"message": {"content": "[[7]]"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 11, "completion_tokens": 3},
}
Answer = tuple[int, bytes, dict[str, str]]
Choice = Callable[[str], Answer]
"""The answer to a prompt, by its last message."""


def ok(value: object = COMPLETION) -> Answer:
    return 200, json.dumps(value).encode(), {}


@contextmanager
def serving(*answers: Answer | Choice, seconds_a_byte: float = 0.0) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that gives these answers in turn, the last for ever.

    Yields its base_url and what came: path, key, body, and at_once, how many were under way then, itself among them.
    """
    seen: list[dict[str, Any]] = []
    lock = threading.Lock()
    at_once = [0]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            came = {"path": self.path, "key": self.headers.get("Authorization"), "body": body}
            with lock:
                at_once[0] += 1
                seen.append({**came, "at_once": at_once[0]})
                answer = answers[min(len(seen), len(answers)) - 1]
            try:
                self._answer(answer, body)
            finally:  # before the connection is closed, and so before the client can ask again
                with lock:
                    at_once[0] -= 1

        def _answer(self, answer: Answer | Choice, body: dict[str, Any]) -> None:
            status, content, headers = answer(body["messages"][-1]["content"]) if callable(answer) else answer
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if not seconds_a_byte:
                self.wfile.write(content)
                return
            for byte in content:
                try:
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                except OSError:
                    return
                time.sleep(seconds_a_byte)

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", seen
    finally:
        server.shutdown()
        server.server_close()


def judge_at(url: str, **options: Any) -> Judge:
    """A judge that soon asks again."""
    return Judge(
        **{"base_url": url, "model": "j", "backoff_seconds": 0.01, "retries": 2, "timeout_seconds": 5, **options}
    )


PRICES = {"usd_per_million_input": 1000.0, "usd_per_million_output": 10_000.0, "max_tokens": 10}
"""A judgment of loopback.COMPLETION costs 0.011 + 0.03 USD."""
COST = 0.041
PROMPT = (21 + TEMPLATE_TOKENS) * 1e-3
"""The most that a prompt of calls() costs."""


def calls(count: int, model: str = "m") -> list[Call]:
    return [Call(Case(model, str(n), 1), (Message("user", f"Question {n}: how good?"),)) for n in range(count)]


def spent(out: Path) -> float:
    """USD, by the lines of a folder."""
    return sum(record["usd"] or 0 for record in Judgments(out).lines)


def ask(
    out: Path, judge: Judge, asked: list[Call], cap: float | None = None, **options: Any
) -> tuple[Asked, Judgments]:
    kept = Judgments(out)
    return ask_all(judge, asked, None, kept, cap, **options), kept
