"""A real headless Chromium, driven over its own pipe with the DevTools protocol: no port, no further package."""

import base64
import json
import os
import select
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe"),
)
TIMEOUT_SECONDS = 120.0
Message = dict[str, Any]


class Tab:
    """One tab, and all that it has said and asked for since it was opened."""

    def __init__(self, commands: int, answers: int) -> None:
        self.complaints: list[str] = []
        """Errors and warnings of the console, exceptions, and what the page's own policy has refused."""
        self.requests: list[str] = []
        """Addresses of everything that was loaded."""
        self._commands, self._answers = commands, answers
        self._rest, self._number, self._session = b"", 0, ""
        self._events: list[Message] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def open(self, path: Path, width: int, height: int = 900, dark: bool = False) -> None:
        """Load a file as a screen of this size shows it, and wait until it is drawn."""
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        self._events.clear()
        self._call("Page.navigate", url=path.resolve().as_uri())
        self._wait(lambda: any(event["method"] == "Page.loadEventFired" for event in self._events))
        self.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page; promises are awaited."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def move(self, x: float, y: float) -> None:
        """Point at a place of the window."""
        self._call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def press(self, key: str) -> None:
        """Press and release a key, as in KeyboardEvent.key."""
        for kind in ("keyDown", "keyUp"):
            self._call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def screenshot(self, path: Path, whole: bool = True) -> None:
        """Write what is seen, or the whole page, as a PNG."""
        answer = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))

    def _call(self, method: str, **parameters: Any) -> Message:
        self._number += 1
        number, found = self._number, list[Message]()
        call: Message = {"id": number, "method": method, "params": parameters}
        if self._session:
            call["sessionId"] = self._session
        os.write(self._commands, json.dumps(call).encode() + b"\0")
        self._wait(lambda: bool(found), lambda message: message.get("id") == number and found.append(message))
        assert "error" not in found[0], f"{method}: {found[0]['error']}"
        return dict(found[0]["result"])

    def _wait(self, done: Callable[[], bool], take: Callable[[Message], object] = lambda message: None) -> None:
        until = time.monotonic() + TIMEOUT_SECONDS
        while not done():
            left = until - time.monotonic()
            assert left > 0 and select.select([self._answers], [], [], left)[0], "Chromium does not answer"
            data = os.read(self._answers, 1 << 20)
            assert data, "Chromium has gone"
            *parts, self._rest = (self._rest + data).split(b"\0")
            for part in parts:
                message = json.loads(part)
                take(message)
                if "method" in message:
                    self._note(message)

    def _note(self, event: Message) -> None:
        self._events.append(event)
        method, said = event["method"], event["params"]
        if method == "Network.requestWillBeSent":
            self.requests.append(said["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(said["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and said["type"] in ("error", "warning", "assert"):
            self.complaints.append(json.dumps(said["args"]))
        elif method == "Log.entryAdded" and said["entry"]["level"] in ("error", "warning"):
            self.complaints.append(said["entry"]["text"])


@contextmanager
def browser_tab(profile: Path) -> Iterator[Tab]:
    """A tab of a Chromium of its own, with a new profile in a directory."""
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()

    def place() -> None:  # Chromium reads commands from descriptor 3 and answers on 4
        spare = os.dup(theirs_out)
        os.dup2(theirs_in, 3)
        os.dup2(spare, 4)
        os.set_inheritable(3, True)  # dup2 does not see to it where both were the same
        os.set_inheritable(4, True)

    command = ["chromium", *ARGUMENTS, f"--user-data-dir={profile}"]
    with (profile.parent / f"{profile.name}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=place, close_fds=False)
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            yield Tab(ours_out, ours_in)
        finally:
            os.close(ours_out)  # Chromium ends when the pipe does
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            os.close(ours_in)
