"""The console: quiet until told to speak, one line an event, a bar or lines for progress, and no error of its own."""

import errno
import fcntl
import io
import os
import re
import struct
import sys
import termios

import pytest

import mrpo_ds.console
from mrpo_ds.console import log, progress


class FullDisk(io.StringIO):
    """A stderr that is a file on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class TestConsole:
    def test_a_process_is_quiet_until_it_is_told_to_speak(self, capsys: pytest.CaptureFixture[str]) -> None:
        log("hello")
        with progress(2, "train", "steps") as work:
            work.update(2)
        assert capsys.readouterr() == ("", "")

    def test_a_message_is_one_line(self, console: None, capsys: pytest.CaptureFixture[str]) -> None:
        log("two\nlines")
        captured = capsys.readouterr()
        assert captured.out == ""
        assert re.fullmatch(r"mrpo-ds \| \d\d:\d\d:\d\d \| two lines\n", captured.err)

    def test_a_full_disk_behind_stderr_stops_nothing(self, console: None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stderr", FullDisk())
        log("lost")


class TestProgress:
    def test_a_log_file_gets_a_line_at_each_tenth(self, console: None, capsys: pytest.CaptureFixture[str]) -> None:
        with progress(1000, "train", "steps") as work:
            for _ in range(1000):
                work.update(note="loss 0.69")
        text = capsys.readouterr().err
        assert "\r" not in text and "\x1b" not in text
        assert len(text.splitlines()) == 10
        assert "| train: 100/1000 steps (10%), 00:00 elapsed, 00:00 left, loss 0.69" in text.splitlines()[0]
        assert "train: 1000/1000 steps (100%)" in text.splitlines()[-1]

    def test_a_log_file_gets_a_line_after_a_long_silence(
        self, console: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(mrpo_ds.console, "LINE_SECONDS", 0.0)
        with progress(1000, "train", "steps", done=500) as work:
            work.update()
        assert "train: 501/1000 steps (50%)" in capsys.readouterr().err

    def test_nothing_to_do_is_not_an_error(self, console: None) -> None:
        with progress(0, "score", "rows") as work:
            work.update(0)

    @pytest.mark.parametrize("columns", [80, 0])
    def test_a_terminal_gets_a_bar_and_whole_lines(
        self, console: None, monkeypatch: pytest.MonkeyPatch, columns: int
    ) -> None:
        reader, writer = os.openpty()
        fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
        with open(writer, "w", buffering=1) as terminal, open(reader, "rb", buffering=0) as screen:
            monkeypatch.setattr(sys, "stderr", terminal)
            with progress(4, "load", "shards") as work:
                work.update(1)
                log("in between")
                work.update(3)
            terminal.write("the end\n")
            text = ""
            while "the end" not in text:  # a terminal hands over what it has so far
                text += screen.read(100_000).decode(errors="replace")
        assert re.search(r"[\r\n]mrpo-ds \| \S+ \| in between\r\n", text)
        assert ("load: 100%" in text) == (columns > 0)  # a bar
        assert ("load: 4/4 shards (100%)" in text) == (columns == 0)  # a line, where a bar would have no room
