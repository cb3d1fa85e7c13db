"""A judge on this machine: OpenAI's chat completions over real HTTP, with a real model of transformers behind them.

A small model hardly follows a format. So the server may be given verdicts: it lets the model write a few words of its
own, and then the verdict that the model finds likeliest after them. Nothing of what it says is made up here.

By hand, until stdin ends: python -m tests.judge_server MODEL '[[A]]' '[[B]]' '[[tie]]'
"""

import hashlib
import json
import select
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

FAULTS = ("429", "500", "503", "hang", "html", "nonsense", "silence", "cut", "drop")
"""429 with Retry-After; 500, 503; no answer at all; a 200 that is a web page; a 200 that is JSON and no completion; a
completion without a word; half of an answer; a connection that ends before one."""


def key_of(body: dict[str, Any]) -> str:
    """Digest of what is asked without the longest answer, as the records of judgments have it."""
    asked = {name: value for name, value in body.items() if name not in ("max_tokens", "max_completion_tokens")}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Seen:
    """A request for a completion that has come."""

    number: int
    """From 0, over all."""
    tries: int
    """How often the same was asked before."""
    key: str
    body: dict[str, Any]

    @property
    def text(self) -> str:
        """Its last message."""
        return str(self.body["messages"][-1]["content"])


@dataclass
class JudgeServer:
    """What runs. plan may be changed at any time."""

    url: str = ""
    """The base_url of a client."""
    plan: Callable[[Seen], str] = lambda seen: ""
    """What goes wrong with a request: one of FAULTS, or "" for nothing."""
    seen: list[Seen] = field(default_factory=list)
    """Requests for completions with a right key, in the order in which they came."""
    answered: "Counter[str]" = field(default_factory=Counter)
    """How often the model has judged what a key stands for, and the answer was sent."""
    refused: int = 0
    """Requests with a wrong key."""
    most_at_once: int = 0
    """Requests that were under way at the same time."""
    retry_after: str = "0.05"
    """What 429 says in its header."""

    def forget(self) -> None:
        """Count from 0 again."""
        self.seen, self.refused, self.most_at_once = [], 0, 0
        self.answered = Counter()


class Model:
    """A model that judges, one request at a time."""

    def __init__(self, path: Path, verdicts: Sequence[str], words: int) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.name = path.name
        self._tokenizer = AutoTokenizer.from_pretrained(path)
        self._model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self._verdicts = list(verdicts)
        self._words = words
        self._lock = threading.Lock()
        self._closed = False

    def close(self) -> None:
        """Wait for the request under way; whatever comes after it is not answered."""
        with self._lock:
            self._closed = True

    def complete(self, body: dict[str, Any], is_gone: Callable[[], bool]) -> dict[str, Any]:
        """A chat completion. Raises ConnectionAbortedError when nobody waits for it any more."""
        with self._lock, torch.no_grad():
            if self._closed or is_gone():
                raise ConnectionAbortedError
            prompt = self._tokenizer.apply_chat_template(
                body["messages"], add_generation_prompt=True, return_dict=False
            )
            most = int(body.get("max_tokens") or body.get("max_completion_tokens") or 16)
            state, new, tops, ended = self._write(prompt, min(most, self._words), float(body.get("temperature") or 0.0))
            text = self._tokenizer.decode(new, skip_special_tokens=True)
            cut = not ended and len(new) == most
            if self._verdicts and not cut:
                text += f" {self._likeliest(state, prompt, text)}"
                new = self._ids(text)
        choice: dict[str, Any] = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": "length" if cut else "stop",
        }
        if body.get("logprobs"):
            choice["logprobs"] = {"content": [self._named(top, int(body.get("top_logprobs", 0))) for top in tops]}
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(new), "total_tokens": len(prompt) + len(new)}
        head = {"id": "chatcmpl-0", "object": "chat.completion", "created": int(time.time()), "model": self.name}
        return {**head, "choices": [choice], "usage": usage}

    def _write(
        self, prompt: list[int], most: int, temperature: float
    ) -> tuple[Any, list[int], list[torch.Tensor], bool]:
        """(cache, new ids, log-probs [V] of each, whether the model ended): the likeliest tokens, or drawn ones."""
        new: list[int] = []
        tops: list[torch.Tensor] = []
        state, ids = None, prompt
        while len(new) < most:
            out = self._model(torch.tensor([ids]), past_key_values=state, use_cache=True)
            state = out.past_key_values
            logps = torch.log_softmax(out.logits[0, -1].float(), dim=-1)
            warm = torch.softmax(logps / temperature, dim=-1) if temperature else None
            ids = [int(logps.argmax()) if warm is None else int(torch.multinomial(warm, 1))]
            tops.append(logps)
            if ids[0] == self._tokenizer.eos_token_id:
                return state, new, tops, True
            new += ids
        return state, new, tops, False

    def _likeliest(self, state: Any, prompt: list[int], text: str) -> str:
        """The verdict with the highest log-prob after the words and a blank. state: a cache with the prompt in it."""
        scores = []
        shared = len(self._ids(text))
        for verdict in self._verdicts:
            ids = self._ids(f"{text} {verdict}")
            state.crop(len(prompt) - 1 - state.get_seq_length())  # all but the prompt's last token goes on
            logits = self._model(torch.tensor([[prompt[-1], *ids]]), past_key_values=state).logits[0, :-1]
            logps = torch.log_softmax(logits.float(), dim=-1)[torch.arange(len(ids)), torch.tensor(ids)]
            scores.append(float(logps[shared:].sum()))
        return self._verdicts[max(range(len(scores)), key=scores.__getitem__)]

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False).input_ids)

    def _named(self, logps: torch.Tensor, count: int) -> dict[str, Any]:
        values, places = logps.topk(max(1, count))
        named = [
            {"token": self._tokenizer.decode([place]), "logprob": value}
            for value, place in zip(values.tolist(), places.tolist(), strict=True)
        ]
        return {**named[0], "top_logprobs": named[:count]}


@contextmanager
def judge_server(
    path: Path, verdicts: Sequence[str] = (), words: int = 6, api_key: str | None = None
) -> Iterator[JudgeServer]:
    """Serve a model on a port of the system's choice, until the block ends; requests that hang are let go then.

    Args:
        path: a model with a chat template.
        verdicts: what the model chooses among at the end; none: it says what it says.
        words: tokens that it may write before.
        api_key: what clients must send as a bearer token.
    """
    model = Model(path, verdicts, words)
    server = JudgeServer()
    closing = threading.Event()
    lock = threading.Lock()
    under_way: set[BaseHTTPRequestHandler] = set()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if not self._is_authorized():
                return
            if self.path == "/v1/models":
                return self._send(200, {"object": "list", "data": [{"id": model.name, "object": "model"}]})
            return self._send(404, error_of("not found"))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not self._is_authorized():
                return
            if self.path != "/v1/chat/completions":
                return self._send(404, error_of("not found"))
            with lock:
                key = key_of(body)
                seen = Seen(len(server.seen), sum(one.key == key for one in server.seen), key, body)
                server.seen.append(seen)
                under_way.add(self)
                server.most_at_once = max(server.most_at_once, len(under_way))
            try:
                with suppress(ConnectionError):
                    self._answer(seen)
            finally:
                with lock:
                    under_way.discard(self)

        def _answer(self, seen: Seen) -> None:
            fault = server.plan(seen)
            assert fault in ("", *FAULTS), fault
            if fault == "429":
                return self._send(429, error_of("slow down"), {"Retry-After": server.retry_after})
            if fault in ("500", "503"):
                return self._send(int(fault), error_of("the server had a bad day"))
            if fault == "html":
                return self._send_bytes(200, b"<html>It works!</html>", {"Content-Type": "text/html"})
            if fault == "nonsense":
                return self._send(200, {"result": ["yes", None]})
            if fault in ("hang", "drop"):
                if fault == "hang":
                    closing.wait()
                self.close_connection = True
                return None
            completion = model.complete(seen.body, self._is_gone)
            if fault == "silence":
                completion["choices"][0]["message"]["content"] = None
            if fault == "cut":
                whole = json.dumps(completion).encode()
                return self._send_bytes(200, whole[: len(whole) // 2], {"Content-Length": str(len(whole))})
            with lock:
                server.answered[seen.key] += 1
            return self._send(200, completion)

        def _is_gone(self) -> bool:
            """Whether the client has closed its end, as one does that has waited too long."""
            readable, _, _ = select.select([self.connection], [], [], 0)
            return bool(readable) and self.connection.recv(1, socket.MSG_PEEK) == b""

        def _is_authorized(self) -> bool:
            if api_key is None or self.headers.get("Authorization") == f"Bearer {api_key}":
                return True
            with lock:
                server.refused += 1
            # Some servers repeat what they were given; a client must not pass that on.
            self._send(401, error_of(f"wrong key: {self.headers.get('Authorization')}"))
            return False

        def _send(self, code: int, value: object, headers: dict[str, str] | None = None) -> None:
            self._send_bytes(code, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

        def _send_bytes(self, code: int, body: bytes, headers: dict[str, str]) -> None:
            with lock:  # a client that has read the answer may ask again at once
                under_way.discard(self)
            self.send_response(code)
            for name, text in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, text)
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = int(headers.get("Content-Length", len(body))) != len(body)

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    try:
        yield server
    finally:
        closing.set()
        http.shutdown()
        model.close()
        http.server_close()


def error_of(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "error", "code": None}}


if __name__ == "__main__":
    with judge_server(Path(sys.argv[1]), sys.argv[2:]) as running:
        print(running.url, flush=True)
        sys.stdin.read()
