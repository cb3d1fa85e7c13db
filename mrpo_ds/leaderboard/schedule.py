"""Who computes what next: the longest cells first, and on a worker those of the model that it has loaded."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby, product
from types import FrameType
from typing import Any

from mrpo_ds.console import log, progress, warn
from mrpo_ds.errors import Stopped
from mrpo_ds.leaderboard.candidates import Candidate
from mrpo_ds.leaderboard.cells import Cells
from mrpo_ds.leaderboard.pool import Worker
from mrpo_ds.leaderboard.suites import SuiteTask
from mrpo_ds.signals import handled

LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class Unit:
    """A call of lm-eval: a model, a task, and the columns that come of it."""

    model: Candidate
    columns: list[SuiteTask]
    job: dict[str, Any]
    """What the worker is told."""
    cost: int
    """See expected_cost."""

    @property
    def names(self) -> list[str]:
        """The cells, for messages."""
        return [f"{self.model.name}/{column.title}" for column in self.columns]


def share_out(units: list[Unit], parts: int) -> list[list[Unit]]:
    """The units of each shard: everyone who asks computes the same shares, as even as the longest units allow.

    The longest first, each to the shard with the least cost; of units that cost alike, and so may change places, a
    shard takes those of models that it has.
    """
    shares: list[list[Unit]] = [[] for _ in range(parts)]
    loads = [0] * parts
    for cost, alike in groupby(sorted(units, key=lambda unit: -unit.cost), key=lambda unit: unit.cost):
        waiting = list(alike)
        places = []
        for _ in waiting:
            places.append(loads.index(min(loads)))
            loads[places[-1]] += cost
        while waiting:
            unit, place = max(product(waiting, places), key=lambda pair: _cost_of(pair[0].model, shares[pair[1]]))
            shares[place].append(unit)
            waiting.remove(unit)
            places.remove(place)
    return shares


def _cost_of(model: Candidate, units: list[Unit]) -> int:
    return sum(unit.cost for unit in units if unit.model == model)


class Schedule:
    """The cells that are to be computed, on one worker or many."""

    def __init__(self, units: list[Unit], cells: Cells) -> None:
        self._pending = list(units)
        self._total = max(1, sum(unit.cost for unit in units))
        self._count = sum(len(unit.columns) for unit in units)
        self._cells = cells
        self._guard = threading.Lock()
        self._done = 0.0
        self._finished = 0
        self._running: dict[int, float] = {}
        """Of each worker's cell, by the worker's id: the cost that is behind it."""
        self._failed: dict[str, str] = {}
        self._stopped: str | None = None

    def run(self, workers: list[Worker]) -> dict[str, str]:
        """Compute all. Returns what went wrong, by cell. Raises Stopped when a signal ends it; finished cells stay."""
        if not self._pending:
            return {}
        threads = [threading.Thread(target=self._serve, args=(worker,), daemon=True) for worker in workers]
        with self._stopped_by_signals(workers), progress(self._total, "sweep", "ktokens") as bar:
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                for thread in threads:
                    thread.join(LOOK_SECONDS / len(threads))
                with self._guard:
                    done, note = self._progress(), f"{self._finished} of {self._count} cells"
                if done > bar.done:
                    bar.update(done - bar.done, note)
        if self._stopped is not None:
            raise Stopped(
                f"{self._stopped}; {self._finished} cells were added, and all finished ones are kept: run the same "
                "command again"
            )
        return self._failed

    def _progress(self) -> int:
        return min(self._total, int(self._done + sum(self._running.values())))

    def _serve(self, worker: Worker) -> None:
        while (unit := self.take(worker.model)) is not None:
            answer = worker.ask(unit.job, partial(self._report, worker, unit.cost))
            with self._guard:
                self._running.pop(id(worker), None)
                if self._stopped is not None:
                    return
                self._done += unit.cost
                if answer["kind"] == "done":
                    self._finished += len(unit.columns)
            self._tell(unit, answer)

    def _report(self, worker: Worker, cost: int, part: float) -> None:
        with self._guard:
            self._running[id(worker)] = part * cost

    def take(self, loaded: str | None) -> Unit | None:
        """The next cell for a worker: the longest of its model, or else of the model with the most left to do."""
        with self._guard:
            if not self._pending or self._stopped is not None:
                return None
            left: dict[str, int] = {}
            for unit in self._pending:
                left[unit.model.path] = left.get(unit.model.path, 0) + unit.cost
            path = loaded if loaded in left else max(left, key=lambda name: left[name])
            unit = max((unit for unit in self._pending if unit.model.path == path), key=lambda one: one.cost)
            self._pending.remove(unit)
            return unit

    def _tell(self, unit: Unit, answer: dict[str, Any]) -> None:
        if answer["kind"] == "done":
            shown = ", ".join(f"{title} {100 * value:.2f}" for title, value in answer["values"].items())
            log(f"{unit.model.name}: {shown} ({answer['seconds']:.1f} s)")
            if answer["truncated"]:
                warn(f"warning: {answer['truncated']} prompts of {unit.names[0]} were longer than the model takes")
            return
        message = answer["message"]
        for column, name in zip(unit.columns, unit.names, strict=True):
            self._cells.note_failure(unit.model.name, column.title, f"{message}\n{answer.get('trace', '')}")
            with self._guard:
                self._failed[name] = message
        warn(f"failed: {', '.join(unit.names)}: {message}")

    @contextmanager
    def _stopped_by_signals(self, workers: list[Worker]) -> Iterator[None]:
        def stop(number: int, _: FrameType | None) -> None:
            self._stopped = self._stopped or f"stopped by {signal.Signals(number).name}"
            for worker in workers:
                worker.kill()

        with handled(stop):
            yield
