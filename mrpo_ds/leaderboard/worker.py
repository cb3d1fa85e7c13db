"""A process that scores on one device: it reads jobs, a line of JSON each, and answers in lines of JSON.

Single-process on purpose: lm-eval's own data parallelism changes the prompts with the number of processes. It keeps the
model of the last job, ends as soon as its parent does, and puts a cell in its place before it says so.
"""

import contextlib
import json
import os
import queue
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, TextIO

from mrpo_ds.errors import MrpoError
from mrpo_ds.leaderboard.cells import Cells, view
from mrpo_ds.leaderboard.scores import ScoreError
from mrpo_ds.leaderboard.suites import SuiteTask, load_suite

REPORT_SECONDS, REPORT_PART = 0.5, 0.005
"""Least time between two reports of progress, and the part of a cell that is told before. A batch ends all at once."""


class Worker:
    """What is kept between jobs, and the jobs."""

    def __init__(self, device: str, answers: TextIO) -> None:
        self._device = device
        self._answers = answers
        self._loaded: tuple[str, Any] | None = None
        self._reported = 0.0
        self._part = 0.0

    def work(self, job: dict[str, Any]) -> dict[str, Any]:
        """Do a job. What goes wrong with it is an answer too."""
        try:
            return {"kind": "done", **getattr(self, f"_{job['kind']}")(job)}
        except MrpoError as error:
            return {"kind": "refused", "message": str(error), "data": error.__class__.__name__ == "DataError"}
        except BaseException as error:  # of the model, the data, the device, the disk: the other cells go on
            first = next((line for line in str(error).splitlines() if line.strip()), "")
            message = f"{type(error).__name__}: {first}" if first else type(error).__name__
            if "out of memory" in str(error).lower():
                message += "; a lower --batch-size needs less"
            return {"kind": "failed", "message": message, "trace": traceback.format_exc()}

    def answer(self, answer: dict[str, Any]) -> None:
        """Send a line."""
        print(json.dumps(answer), file=self._answers, flush=True)

    def _resolve(self, job: dict[str, Any]) -> dict[str, Any]:
        from mrpo_ds.leaderboard.tasks import as_record, check_imports, resolve_suite

        resolved = resolve_suite(load_suite(job["suite"]))
        check_imports(resolved)
        return {"resolved": [as_record(one) for one in resolved]}

    def _load(self, job: dict[str, Any]) -> dict[str, Any]:
        """Load the data of a name of a suite, and say how many documents each of its tasks has."""
        from mrpo_ds.leaderboard.tasks import from_record, load_tasks

        return {"documents": load_tasks(from_record(job["resolved"]), job["overrides"]).documents}

    def _evaluate(self, job: dict[str, Any]) -> dict[str, Any]:
        from mrpo_ds.leaderboard.scoring import evaluate
        from mrpo_ds.leaderboard.tasks import SEEDS, from_record, load_tasks

        started = time.time()
        loaded = load_tasks(from_record(job["resolved"]), job["overrides"])  # before the minutes a large model takes
        found = evaluate(self._model(job), loaded, job)
        cell = {
            **job["head"],
            "lm_eval_task": job["resolved"]["task"],
            "seed": SEEDS["fewshot_random_seed"],
            "seeds": SEEDS,
            **found,
        }
        columns = [SuiteTask(**column) for column in job["columns"]]
        try:
            views = [view(cell, column) for column in columns]
        except ScoreError as error:
            raise RuntimeError(f"no usable score: {error}") from error
        cells = Cells(Path(job["out"]))
        for column, one in zip(columns, views, strict=True):
            cells.write(one, job["head"]["model"], column.title)
        self._note(job, started)
        values = {one["task"]: one["value"] for one in views}
        return {"seconds": found["seconds"], "values": values, "truncated": found["truncated_requests"]}

    def _model(self, job: dict[str, Any]) -> Any:
        from mrpo_ds.leaderboard.scoring import load_lm

        path = job["head"]["model_path"]
        if self._loaded is None or self._loaded[0] != path:
            self._loaded = None  # gone before the next one comes
            _free()
            self._loaded = (path, load_lm(path, job["dtype"], job["batch_size"], self._device, self._progress))
        return self._loaded[1]

    def _progress(self, part: float) -> None:
        now = time.monotonic()
        if now - self._reported >= REPORT_SECONDS or abs(part - self._part) >= REPORT_PART:
            self._reported, self._part = now, part
            self.answer({"kind": "progress", "part": part})

    def _note(self, job: dict[str, Any], started: float) -> None:
        """A line in the journal for every call that was computed."""
        row = {
            "model": job["head"]["model"],
            "task": job["resolved"]["task"],
            "columns": [column["name"] or column["task"] for column in job["columns"]],
            "started": round(started, 3),
            "seconds": round(time.time() - started, 3),
            "device": self._device,
            "pid": os.getpid(),
        }
        # The cell is there, and counts; a full disk costs its line.
        with contextlib.suppress(OSError), (Path(job["out"]) / "journal.jsonl").open("a", encoding="utf-8") as journal:
            journal.write(json.dumps(row) + "\n")


def _free() -> None:
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _read_jobs(jobs: "queue.Queue[dict[str, Any]]") -> None:
    """Hand on the parent's jobs; without a parent nobody wants the answers."""
    for line in sys.stdin:
        jobs.put(json.loads(line))
    os._exit(0)


def main(device: str) -> None:
    """Answer jobs until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    jobs: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_read_jobs, args=(jobs,), daemon=True).start()
    from mrpo_ds.accelerator import announce_cpu

    announce_cpu()
    worker = Worker(device, answers)
    while True:
        worker.answer(worker.work(jobs.get()))


if __name__ == "__main__":
    main(sys.argv[1])
