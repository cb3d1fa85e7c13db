"""The log of a rank: what lands in it, what still reaches the terminal, and that it never ends a run."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from mrpo_ds import logs
from tests.support import ROOT

STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \| policy rank 1 \(global rank 1\) \| "
SPEAK = """
    import logging, os, subprocess, warnings
    from mrpo_ds.console import log, warn
    log("only ours")
    warn("for a person")
    print("to stdout")
    warnings.warn("of Python", UserWarning)
    logging.getLogger("torch.something").warning("of torch")
    os.write(2, b"of C++\\n")
    subprocess.run(["echo", "of a child"])
    print("\\r 10%\\r 20%", file=sys.stderr)
    print("no end", end="")
"""
LIBRARIES = ["to stdout", "UserWarning: of Python", "of torch", "of C++", "of a child", " 20%", "no end"]


def run(directory: Path, body: str, alone: bool) -> tuple[str, str]:
    """(what the terminal got, the log) of a process that opens its log and then does something."""
    start = f"""
        import sys
        from pathlib import Path
        from mrpo_ds import logs
        from mrpo_ds.console import log
        log("early")
        logs.open_log(Path({str(directory)!r}), 1, "policy rank 1 (global rank 1)", "begins", alone={alone})
    """
    program = textwrap.dedent(start) + textwrap.dedent(body)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    path = directory / "logs" / "rank-1.log"
    return done.stdout, path.read_text() if path.exists() else ""


def messages(log: str) -> list[str]:
    """The lines without their beginnings; lines of C++ and of children have none."""
    return [re.sub(f"^{STAMP}", "", line) for line in log.splitlines()]


def test_a_quiet_rank_writes_all_to_its_file_and_what_a_person_must_know_to_the_terminal_too(tmp_path: Path) -> None:
    terminal, log = run(tmp_path, SPEAK, alone=True)
    assert re.fullmatch(r"mrpo-ds \| \d\d:\d\d:\d\d \| for a person\n", terminal)
    lines = messages(log)
    assert lines[:4] == ["--- begins ---", "early", "only ours", "for a person"]
    for text in LIBRARIES:
        assert sum(text in line for line in lines) == 1, (text, lines)
    stamped = [line for line in log.splitlines() if re.match(STAMP, line)]
    assert len(stamped) >= len(log.splitlines()) - 3  # C++, the child, and the source line of the warning at most


def test_rank_0_prints_as_before_and_its_file_has_messages_warnings_and_loggers(tmp_path: Path) -> None:
    terminal, log = run(tmp_path, SPEAK, alone=False)
    for text in ["for a person", *LIBRARIES]:
        assert terminal.count(text) == 1, (text, terminal)
    for text in ("early", "only ours", "for a person", "UserWarning: of Python", "WARNING torch.something: of torch"):
        assert log.count(text) == 1, (text, log)
    assert "of C++" not in log


@pytest.mark.parametrize("alone", [True, False])
def test_loggers_that_print_by_themselves_are_written_once(tmp_path: Path, alone: bool) -> None:
    body = """
        import logging
        for name in ("transformers", "DeepSpeed"):
            logger = logging.getLogger(name)
            logger.propagate = False
            logger.addHandler(logging.StreamHandler(sys.stdout))
            logging.getLogger(f"{name}.part").warning(f"of {name}")
    """
    terminal, log = run(tmp_path, body, alone)
    for name in ("transformers", "DeepSpeed"):
        assert log.count(f"of {name}") == 1
        assert terminal.count(f"of {name}") == (0 if alone else 1)


@pytest.mark.parametrize("alone", [True, False])
def test_an_error_that_nobody_catches_is_in_both(tmp_path: Path, alone: bool) -> None:
    body = """
        import threading
        thread = threading.Thread(target=lambda: {}["in a thread"])
        thread.start(); thread.join()
        {}["in the main thread"]
    """
    terminal, log = run(tmp_path, body, alone)
    for text in ("KeyError: 'in a thread'", "KeyError: 'in the main thread'"):
        assert terminal.count(text) == 1 and log.count(text) == 1


def test_where_a_crash_of_c_code_was_is_in_the_file(tmp_path: Path) -> None:
    _, log = run(tmp_path, "import ctypes; ctypes.string_at(0)", alone=True)
    assert "Fatal Python error: Segmentation fault" in log and "string_at" in log


def test_a_second_run_adds_to_the_file(tmp_path: Path) -> None:
    run(tmp_path, "log('first')", alone=True)
    _, log = run(tmp_path, "log('second')", alone=True)
    assert messages(log) == ["--- begins ---", "early", "first"] + ["--- begins ---", "early", "second"]


def test_a_file_that_cannot_be_written_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "logs").touch()  # a file where the folder should be
    terminal, log = run(tmp_path, "print('still here')", alone=True)
    said = f"policy rank 1 (global rank 1) has no log: {tmp_path}/logs/rank-1.log cannot be written ("
    assert terminal.count(said) == 1 and terminal.endswith("still here\n") and not log


def test_a_full_disk_is_said_once_and_ends_nothing(tmp_path: Path) -> None:
    body = """
        import resource, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
        for number in range(100):
            log(f"line {number}")
        print("by a library")
        sys.stdout.flush()
        from mrpo_ds.console import warn
        warn("the end")
    """
    terminal, log = run(tmp_path, body, alone=True)
    assert terminal.count("the log of policy rank 1 (global rank 1) cannot be written (File too large)") == 1
    assert terminal.splitlines()[-1].endswith("the end") and "Traceback" not in terminal
    assert len(log) == 200


def test_what_nobody_ever_writes_takes_no_memory_for_ever() -> None:
    for number in range(2000):
        logs.write(f"line {number}")
    assert len(logs._early) == 1000
    logs._early.clear()
