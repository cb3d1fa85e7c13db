"""Who computes what next, and what becomes of a worker that dies."""

import os
import signal
from pathlib import Path

import pytest

from mrpo_ds.leaderboard.candidates import Candidate
from mrpo_ds.leaderboard.cells import Cells
from mrpo_ds.leaderboard.cost import expected_cost
from mrpo_ds.leaderboard.pool import Worker
from mrpo_ds.leaderboard.schedule import Schedule, Unit
from mrpo_ds.leaderboard.suites import SuiteTask


def unit(model: str, task: str, cost: int) -> Unit:
    return Unit(Candidate(model, f"/models/{model}"), [SuiteTask(task=task, metric="acc")], {}, cost)


def order(units: list[Unit], loaded: str | None, count: int) -> list[str]:
    """The first cells that one worker gets, which keeps the model of its last."""
    schedule = Schedule(units, Cells(Path("nowhere")))
    names = []
    for _ in range(count):
        taken = schedule.take(loaded)
        if taken is None:
            return names
        names += taken.names
        loaded = taken.model.path
    return names


def test_the_longest_first_and_a_model_to_its_end():
    units = [unit("a", "x", 5), unit("a", "y", 9), unit("b", "x", 50), unit("b", "y", 1)]
    assert order(units, None, 9) == ["b/x", "b/y", "a/y", "a/x"]
    assert order(units, "/models/a", 3) == ["a/y", "a/x", "b/x"]


def test_another_worker_takes_the_model_with_the_most_left():
    schedule = Schedule([unit("a", "x", 5), unit("a", "y", 9), unit("b", "x", 10)], Cells(Path("nowhere")))
    first, second = schedule.take(None), schedule.take(None)
    assert first is not None and second is not None
    assert [first.names, second.names] == [["a/y"], ["b/x"]]


def test_costs_grow_with_what_is_asked():
    assert expected_cost("mmlu", 57, 5, None, None) > expected_cost("mmlu", 57, 0, None, None)
    assert expected_cost("gsm8k", 1, 5, None, 16) < expected_cost("gsm8k", 1, 5, None, None)
    assert expected_cost("hellaswag", 1, 10, 8, None) < expected_cost("hellaswag", 1, 10, None, None)
    assert expected_cost("of my own", 1, 0, 1, None) == 1


@pytest.fixture
def worker(tmp_path):
    worker = Worker("cpu", tmp_path / "worker.log", offline=True)
    yield worker
    worker.close()


def test_a_worker_that_is_killed_is_named_and_the_next_job_gets_a_new_one(worker, tmp_path):
    refused = worker.ask({"kind": "resolve", "suite": "nonsense"})
    assert refused["kind"] == "refused"
    assert "--suite is 'nonsense'" in refused["message"]
    failed = worker.ask({"kind": "nothing that it can do"})
    assert failed["kind"] == "failed" and "Traceback" in failed["trace"]
    assert worker._process is not None
    os.kill(worker._process.pid, signal.SIGKILL)
    worker._process.wait()
    lost = worker.ask({"kind": "resolve", "suite": "nonsense"})
    assert lost["kind"] == "failed"
    assert "the worker ended by signal SIGKILL" in lost["message"] and str(tmp_path / "worker.log") in lost["message"]
    assert worker.ask({"kind": "resolve", "suite": "nonsense"})["kind"] == "refused"
