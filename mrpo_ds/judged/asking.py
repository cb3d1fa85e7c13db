"""Ask the judge what has not been asked, several calls at a time, and keep each judgment as it comes."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

from mrpo_ds.console import Progress, progress, warn
from mrpo_ds.errors import MrpoError, Stopped
from mrpo_ds.judged.endpoint import CallFailed, Endpoint
from mrpo_ds.judged.judge import Judge
from mrpo_ds.judged.judgments import Judgments, Record, supersedes
from mrpo_ds.judged.prompts import Call
from mrpo_ds.judged.replies import Reply, Usage
from mrpo_ds.judged.spending import Spending
from mrpo_ds.signals import first_signal

GIVE_UP = 3
"""Calls that fail one after the other, each after all its attempts: the judge is gone. A refusal of one prompt is no
sign of that where the judge has answered others in the same settings, or has refused that prompt before."""
LOOK_SECONDS = 0.2
Again = Callable[[Call, Record], bool]


class CapReached(MrpoError):
    """The next attempt might go beyond --max-cost."""


@dataclass(frozen=True)
class Asked:
    """How the asking went."""

    usd: float
    """Spent on the folder so far, earlier runs among it; 0 without prices."""
    new: int
    """Judgments that were made now."""
    cached: int
    """Judgments that were there."""
    failed: dict[str, str] = field(default_factory=dict)
    """Digests of the requests that brought no judgment -> why."""
    end: MrpoError | None = None
    """Why not all was asked."""


def ask_all(
    judge: Judge,
    calls: Sequence[Call],
    baseline: str | None,
    kept: Judgments,
    cap: float | None,
    again: Again = lambda call, record: False,
) -> Asked:
    """Ask every call that has no judgment, or one that was cut at a smaller max_tokens than the judge's.

    Args:
        judge: whom to ask. Raises ConfigError when its key is not set.
        calls: what to ask; of equal requests one is made.
        baseline: of pairs, for the records.
        kept: where judgments are and go.
        cap: the most that the folder's judgments may cost, USD, or None.
        again: which judgments are asked for once more, though they are there; those stay until others come.

    Returns:
        How it went; whatever ends it early is in `end`, so that what there is can be told first.
    """
    todo: dict[str, Call] = {}
    for call in calls:
        key = judge.key(call)
        record = kept.find(key)
        if record is None or _is_cut_short(record, judge) or again(call, record):
            todo.setdefault(key, call)
    distinct = len({judge.key(call) for call in calls})
    cached = distinct - len(todo)
    there = (kept.find(judge.key(call)) for call in calls)
    answers = any(record is not None and record.get("max_tokens") == judge.max_tokens for record in there)
    spending = Spending(judge, cap)
    for record in kept.lines:
        spending.count(record)
    work = _Work(judge, todo, baseline, kept, spending, answers)
    with progress(distinct, "judge", "judgments", cached) as bar, first_signal(work.stop):
        work.run(bar)
    try:
        for call in calls:
            kept.share(judge.key(call), call.case)
    except OSError as error:
        work.end = work.end or _unwritten(error)
    return Asked(work.spending.spent, work.new, cached, work.failed, work.end)


def _is_cut_short(record: Record, judge: Judge) -> bool:
    return record.get("finish_reason") == "length" and record.get("max_tokens", judge.max_tokens) < judge.max_tokens


def _unwritten(error: OSError) -> MrpoError:
    return MrpoError(f"judgments cannot be written: {error.strerror}; make room, and run the same command again")


class _Work:
    """The calls that are to be made. Everything but the asking itself happens under one lock."""

    def __init__(
        self,
        judge: Judge,
        todo: dict[str, Call],
        baseline: str | None,
        kept: Judgments,
        spending: Spending,
        answers: bool,
    ) -> None:
        """answers: whether the judge has answered calls of these settings before."""
        self.spending = spending
        self.new = 0
        self.failed: dict[str, str] = {}
        self.end: MrpoError | None = None
        self._judge = judge
        # What was refused before comes last, so that every command gets to what may be answered.
        self._pending = sorted(todo.items(), key=lambda item: item[0] in kept.refused)[::-1]
        self._baseline = baseline
        self._kept = kept
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self._under_way = 0
        self._in_a_row = 0
        self._answers = answers
        self._bar: Progress | None = None
        self._endpoint = Endpoint(judge, self._stopped, self._lost)

    def run(self, bar: Progress) -> None:
        """Work until all is asked or something ends it; calls under way are waited for and kept."""
        self._bar = bar
        count = max(1, min(self._judge.concurrency, len(self._pending)))
        threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(count)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            for thread in threads:
                thread.join(LOOK_SECONDS / count)
        self._endpoint.close()

    def stop(self, name: str) -> None:
        """A signal has come: let calls under way end, which are paid for."""
        # Without the lock, which the thread that is interrupted may hold.
        self.end = self.end or Stopped(f"stopped by {name}")
        self._stopped.set()
        warn(f"{name}: waiting for the calls under way; a second signal ends at once")

    def _serve(self) -> None:
        while (taken := self._take()) is not None:
            key, call, estimate = taken
            reply, failure = None, None
            try:
                reply = self._endpoint.ask(call)
            except CallFailed as error:
                failure = error
            except Exception as error:  # a thread that dies would leave the others waiting
                failure = CallFailed(f"{type(error).__name__}: {error}", fatal=True)
            with self._changed:
                self._under_way -= 1
                cost = self.spending.end(estimate, call, None if reply is None else reply.usage)
                if reply is not None:
                    self._keep(key, call, reply, cost)
                elif failure is not None:
                    self._fail(key, call, failure)
                self._changed.notify_all()

    def _take(self) -> tuple[str, Call, float] | None:
        """The next call, with its reserved estimate; waits where calls under way may leave room below the cap."""
        with self._changed:
            while self._pending and not self._stopped.is_set():
                key, call = self._pending[-1]
                if self.spending.fits(call):
                    self._pending.pop()
                    self._under_way += 1
                    return key, call, self.spending.begin(call)
                if not self._under_way:
                    self._stop(self._cap_reached(call))
                else:
                    self._changed.wait(LOOK_SECONDS)
            return None

    def _keep(self, key: str, call: Call, reply: Reply, cost: float) -> None:
        self._in_a_row = 0
        self._answers = True
        if not self._add(self._record(key, call, reply, cost)):
            return
        self.new += 1
        if self._bar is not None:
            self._bar.update(1, f"{self.spending.spent:.4f} USD" if self._judge.has_prices else "")

    def _fail(self, key: str, call: Call, failure: CallFailed) -> None:
        if self._stopped.is_set():
            return  # it was ended on purpose
        self.failed[key] = str(failure)
        if not (failure.alone and (self._answers or key in self._kept.refused)):
            self._in_a_row += 1
        case = call.case
        warn(f"no judgment of {case.model}, question {case.question}, turn {case.turn} {case.order}: {failure}")
        if failure.fatal:
            self._stop(MrpoError(f"the judge refuses: {failure}"))
        elif self._in_a_row >= GIVE_UP:
            self._stop(MrpoError(f"{GIVE_UP} calls in a row failed; the last: {failure}"))
        if failure.alone and key not in self._kept.refused:
            self._add({**self._head(key, call), "lost": str(failure), "usd": 0.0, "refused": True})

    def _stop(self, why: MrpoError) -> None:
        self.end = self.end or why
        self._stopped.set()

    def _lost(self, call: Call, why: str, usage: Usage, last: bool) -> None:
        """An attempt may have been billed, and no judgment came; the next one must fit below the cap like a call."""
        with self._changed:
            usage = self.spending.most(call, usage)
            cost = self.spending.lose(call, usage)
            lost = {"lost": why, "usage": asdict(usage), "usd": cost if self._judge.has_prices else None}
            self._add({**self._head(self._judge.key(call), call), **lost})
            if not last and not self.spending.holds():
                self._stop(self._cap_reached(call))

    def _add(self, record: Record) -> bool:
        """Keep a line, or stop where it cannot be written."""
        try:
            self._kept.add(record)
        except OSError as error:
            self._stop(_unwritten(error))
            return False
        return True

    def _cap_reached(self, call: Call) -> CapReached:
        spending = self.spending
        return CapReached(
            f"--max-cost {spending.cap:g} USD: {spending.spent:.4f} USD are spent, and the next call may cost "
            f"{spending.estimate(call):.4f}; give a higher --max-cost to go on"
        )

    def _head(self, key: str, call: Call) -> Record:
        case = call.case
        return {
            "key": key,
            "model": case.model,
            "baseline": self._baseline,
            "question": case.question,
            "turn": case.turn,
            "order": case.order,
            "judge": self._judge.model,
        }

    def _record(self, key: str, call: Call, reply: Reply, cost: float) -> Record:
        earlier = self._kept.find(key)
        return {
            **self._head(key, call),
            "supersedes": 0 if earlier is None else supersedes(earlier) + 1,
            "prompt": [{"role": message.role, "content": message.content} for message in call.messages],
            "judgment": reply.text,
            "finish_reason": reply.finish,
            "first_token": reply.top,
            "max_tokens": self._judge.max_tokens,
            "usage": asdict(reply.usage),
            "usd": cost if self._judge.has_prices else None,
            "served_model": reply.served,
            "attempts": reply.attempts,
            "seconds": round(reply.seconds, 3),
        }
