"""A server on loopback that answers what a test says: for what no model would answer by itself."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from mrpo_ds.judged.judge import Judge

COMPLETION = {
    "model": "judge-2024",
    "choices": [{"message": {"content": "[[7]]"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 11, "completion_tokens": 3},
}
Answer = tuple[int, bytes, dict[str, str]]


def ok(value: object = COMPLETION) -> Answer:
    return 200, json.dumps(value).encode(), {}


@contextmanager
def serving(*answers: Answer, seconds_a_byte: float = 0.0) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that gives these answers in turn, the last for ever. Yields its base_url and the bodies that came."""
    seen: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append({"path": self.path, "key": self.headers.get("Authorization"), "body": body})
            status, content, headers = answers[min(len(seen), len(answers)) - 1]
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
