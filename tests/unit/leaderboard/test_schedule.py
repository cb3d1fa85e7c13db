"""Who computes what next, and what becomes of a worker that dies."""

import os
import signal
from pathlib import Path

import pytest

from mrpo_ds.leaderboard.candidates import Candidate
from mrpo_ds.leaderboard.cells import Cells
from mrpo_ds.leaderboard.cost import expected_cost
from mrpo_ds.leaderboard.pool import Worker
from mrpo_ds.leaderboard.schedule import Schedule, Unit, share_out
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


def names_of(shares: list[list[Unit]]) -> list[list[str]]:
    return [sorted(name for one in share for name in one.names) for share in shares]


def test_as_many_shards_as_models_have_a_model_each():
    """By every fourth cell, the first shard would have the long task of all models: 280 of 400."""
    units = [unit(model, task, 70 if task == "t0" else 10) for model in "abcd" for task in ("t0", "t1", "t2", "t3")]
    shares = share_out(units, 4)
    assert [sum(one.cost for one in share) for share in shares] == [100, 100, 100, 100]
    assert names_of(shares) == [[f"{model}/t{number}" for number in range(4)] for model in "abcd"]


def test_shares_are_even_and_the_same_for_everyone_who_asks():
    units = [unit(model, task, cost) for model in "abc" for task, cost in (("x", 9), ("y", 7), ("z", 5))]
    shares = share_out(units, 2)
    assert sorted(sum(one.cost for one in share) for share in shares) == [30, 33]
    assert sorted(name for share in names_of(shares) for name in share) == sorted(one.names[0] for one in units)
    assert share_out(list(units), 2) == shares
    assert [len(share) for share in share_out(units[:2], 3)] == [1, 1, 0]


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


def test_cells_of_a_worker_that_cannot_start_have_failed(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")  # where the folder of the log should be
    units = [unit("a", "x", 5), unit("a", "y", 9)]
    for one in units:
        one.job["kind"] = "evaluate"
    failed = Schedule(units, Cells(tmp_path / "out")).run([Worker("cpu", tmp_path / "file" / "log", offline=True)])
    assert sorted(failed) == ["a/x", "a/y"]
    assert "the worker on cpu could not do it: " in failed["a/x"] and str(tmp_path / "file") in failed["a/x"]
    assert "Traceback" in Cells(tmp_path / "out").failure("a", "y").read_text(encoding="utf-8")


def test_an_answer_that_is_none_is_a_failure(tmp_path, monkeypatch):
    stand_in = tmp_path / "python"
    stand_in.write_text("#!/bin/sh\nread job\necho this is no answer\nread job\n", encoding="utf-8")
    stand_in.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(stand_in))
    answer = Worker("cpu", tmp_path / "log", offline=True).ask({"kind": "evaluate"})
    assert answer["kind"] == "failed" and "JSONDecodeError" in answer["message"]
