"""One optimizer step on one screen, the policy's loop around it, and the reference's."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from textwrap import shorten
from typing import NoReturn

import torch

from mrpo_ds.accounting import Accounting
from mrpo_ds.budget import Budget
from mrpo_ds.checkpoint import Checkpoints, TrainState
from mrpo_ds.config.schema import Config
from mrpo_ds.console import log, progress
from mrpo_ds.data.micro import PolicyBatcher
from mrpo_ds.data.order import steps_per_epoch, total_steps
from mrpo_ds.data.plan import Batch, Batches
from mrpo_ds.distributed.bridge import BrokenBridge
from mrpo_ds.distributed.collectives import barrier, broadcast_from_leader
from mrpo_ds.distributed.orders import Orders
from mrpo_ds.engine import Engine, PolicyEngine
from mrpo_ds.errors import RUN_AGAIN, ConfigError, NonFiniteError, Stopped
from mrpo_ds.evaluation.preferences import evaluate_preferences
from mrpo_ds.failures import explain_gradient, explain_numbers
from mrpo_ds.learning_rate import learning_rate_at
from mrpo_ds.memory import peak_memory_gib
from mrpo_ds.metrics import Totals
from mrpo_ds.objective import Objective, ScoredBatch
from mrpo_ds.reference.client import ReferenceAnswer, ReferenceClient
from mrpo_ds.samples import Sampler
from mrpo_ds.tracking import Tracker, failure_file
from mrpo_ds.types import Needs

START_TOLERANCE = 0.02
"""Relative difference of mean log-probs that bf16 in differently padded batches explains; fp32 stays far below it."""
Report = Callable[[str, int], None]
"""Told (phase, step) whenever a process begins something that can take long."""


def train_step(engine: Engine, objective: Objective, scored: ScoredBatch, update: "Update") -> dict[str, float]:
    """One optimizer update from one global batch. Returns its metrics, the same on every rank.

    Raises NonFiniteError on every rank, before the weights move, when a number is not finite.
    """
    totals = Totals(objective.reference_names, objective.needs.chosen)
    counts = objective.counts(scored)  # the loss's denominators, over the whole step
    baseline = objective.baseline(engine.score, scored)
    micros = scored.batch.micros
    for micro in micros:
        rows = engine.forward(micro.sequences)  # [N] summed log-probs, never a [*, V] logits tensor
        logps, output = objective.apply(scored, micro, rows, baseline)
        loss = objective.total(output, micro, counts) * update.ranks  # the engine averages over ranks
        engine.backward(loss, last=micro is micros[-1])
        totals.add(output, logps, micro)
    metrics = {**totals.means(), "learning_rate": update.learning_rate}  # one all-reduce, before the weights move
    if counts.broken or not math.isfinite(metrics["loss"]):
        engine.clear()
        raise explain_numbers(scored, objective, totals, counts.broken, engine.score, update.step, metrics)
    metrics["grad_norm"] = engine.step(update.learning_rate)
    if not math.isfinite(metrics["grad_norm"]):
        raise explain_gradient(scored, update.step, metrics)
    return metrics


@dataclass(frozen=True)
class Update:
    """The scalars of one optimizer step."""

    step: int
    """1-based, as logged."""
    learning_rate: float
    ranks: int


@dataclass
class PolicyRun:
    """Everything the policy's loop works with, on one rank of the policy."""

    config: Config
    engine: PolicyEngine
    objective: Objective
    references: ReferenceClient
    batcher: PolicyBatcher
    checkpoints: Checkpoints
    tracker: Tracker | None
    """None on ranks other than the policy's first."""
    report: Report
    orders: Orders
    """Why to stop, on the policy's first rank; the others hear of it from that one."""
    budget: Budget | None
    """On the policy's first rank."""
    accounting: Accounting
    restorable: bool = True
    """Whether a checkpoint of this engine can be restored; if not, none is written."""
    state: TrainState = field(default_factory=TrainState)
    evals: dict[str, dict[str, float]] = field(default_factory=dict)
    """Held-out metrics before and after training, for the summary."""
    evaluated: set[int] = field(default_factory=set)
    """Steps whose evaluation the run that is resumed has already recorded; the same on every rank."""
    sampler: Sampler | None = None
    sampled: set[int] = field(default_factory=set)
    """As evaluated, for samples."""

    def run(self, eval_batches: Batches, train_batches: Batches) -> None:
        """Score the held-out rows once, then evaluate, train, checkpoint and evaluate to the end.

        Raises Stopped, with a checkpoint, when it is asked to stop or loses a reference; NonFiniteError with one too.
        """
        batches = chain(eval_batches, train_batches)
        answers = self.references.stream(asked_of_references(batches, self.objective.needs))
        held_out = self._held_out(eval_batches, answers)
        self.orders.take()
        try:
            self._train(held_out, train_batches, answers)
        except BrokenBridge as error:
            self._stop(str(error))
        except NonFiniteError:
            self._keep()
            raise

    def _train(self, held_out: "list[_Answered]", batches: Batches, answers: Iterator[ReferenceAnswer]) -> None:
        if self.state.step == 0:
            self.evals["before"] = self._evaluate(held_out)
        elif self._evaluation_due() and not self._is_recorded(held_out):  # stopped before it had been made
            self._evaluate(held_out)
        with progress(len(batches), "training", "step") as bar:
            for batch in batches:
                self._stop_if_due()
                self._step(batch, answers)
                self.checkpoints.poll()
                bar.update(1)
                if self._evaluation_due():
                    self._evaluate(held_out)
                if self._checkpoint_due():
                    self._save()
        self.evals["after"] = self._evaluate(held_out)
        self.report("checkpoint", self.state.step)
        self.checkpoints.finish()
        self.orders.open = self.checkpoints.newest != self.state.step  # once all is saved, a signal may end the export
        self._stop_if_asked()

    def _stop_if_due(self) -> None:
        """Raise Stopped, on every rank, when the first one has been asked to stop or runs out of time."""
        if self.budget:
            if self.checkpoints.seconds:
                self.budget.took("checkpoint", self.checkpoints.seconds)
            evaluates = self._due(self.config.evaluate.every_steps, self.state.step + 1)
            if over := self.budget.over(evaluates, 2 if self.checkpoints.pending else 1):
                self.orders.give(over)
        self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        asked = torch.tensor([self.orders.stop is not None], dtype=torch.float32, device=self.engine.device)
        if broadcast_from_leader(asked).item():
            self._stop("stopped by the policy's first rank")

    def _stop(self, why: str) -> NoReturn:
        self._keep()
        why = self.orders.stop.reason if self.orders.stop else why
        if self.tracker:
            self.tracker.stop(RUN_AGAIN)
        kept = f"step {self.checkpoints.newest} is saved" if self.checkpoints.newest else "no step is saved"
        if not self.restorable:
            kept = "no step is saved, since what this ds_config makes cannot be restored"
        raise Stopped(f"{why}; {kept}, run again with --resume auto")

    def _keep(self) -> None:
        """Save this step, if anything was trained, and wait until it is there."""
        if self.state.step and self.restorable:
            self._save()
            self.checkpoints.finish()

    def _held_out(self, batches: Batches, answers: Iterator[ReferenceAnswer]) -> "list[_Answered]":
        with progress(len(batches), "scoring held-out rows", "batch") as bar:
            kept = []
            for batch in batches:
                self.report("wait for references", self.state.step)
                kept.append(self._answered(batch, answers))
                bar.update(1)
        return kept

    def _answered(self, batch: Batch, answers: Iterator[ReferenceAnswer]) -> "_Answered":
        """A batch and, in the order of asked_of_references, what the references say about it."""
        mismatched = self.objective.needs.baseline == "mismatched"
        return _Answered(batch, next(answers), next(answers) if mismatched else None)

    def _scored(self, answered: "_Answered") -> ScoredBatch:
        batch, mismatched = answered.batch, None
        if answered.mismatched is not None:
            mismatched = ScoredBatch(self.batcher.build(batch.mismatched()), answered.mismatched)
        return ScoredBatch(self.batcher.build(batch), answered.reference, mismatched)

    def _step(self, batch: Batch, answers: Iterator[ReferenceAnswer]) -> None:
        started = time.perf_counter()
        step = batch.step + 1
        self.report("wait for references", step)
        scored = self._scored(self._answered(batch, answers))
        self.report("train", step)
        update = Update(step, learning_rate_at(batch.step, self.total_steps, self.config.train), self.batcher.size)
        try:
            metrics = train_step(self.engine, self.objective, scored, update)
            self.state = self.state.after(step, scored.batch.tokens)
        except NonFiniteError as error:
            metrics = self._leave_out(step, error)
        else:
            if batch.step == 0:
                self._check_start(metrics)
        metrics["skipped_steps"] = float(self.state.skipped)
        metrics["epoch"] = step / steps_per_epoch(self.num_train, self.config.train.batch_size)
        metrics["num_tokens"] = float(self.state.tokens)
        metrics |= self._performance(scored, time.perf_counter() - started)
        if self.budget:
            self.budget.took("step", time.perf_counter() - started)
        if self.tracker:
            self.tracker.log_step(step, metrics)

    def _performance(self, scored: ScoredBatch, seconds: float) -> dict[str, float]:
        """perf/* and the references' telemetry: seconds, tokens per second, operations."""
        reference = scored.reference
        values = {
            "perf/seconds_per_step": seconds,
            "perf/tokens_per_second": scored.batch.tokens / seconds,
            "perf/reference_wait_seconds": reference.wait_seconds,
            "perf/padding_fraction": scored.batch.padding,
            "perf/shared_fraction": scored.batch.shared,
            "perf/memory_gib": peak_memory_gib(),
        }
        baseline = {"none": None, "batch": scored, "mismatched": scored.mismatched}[self.objective.needs.baseline]
        values |= self.accounting.metrics(scored.batch.work, [baseline.batch.work] if baseline else [], seconds)
        for k, name in enumerate(self.objective.reference_names):
            values[f"ref/{name}/wait_seconds"] = reference.idle_seconds[k]
            values[f"ref/{name}/score_seconds"] = reference.score_seconds[k]
            values[f"ref/{name}/stored_fraction"] = reference.stored[k]
            values[f"ref/{name}/tokens_per_second"] = reference.tokens[k] / max(reference.score_seconds[k], 1e-9)
            spent = reference.idle_seconds[k] + reference.score_seconds[k]
            values[f"ref/{name}/idle_fraction"] = reference.idle_seconds[k] / max(spent, 1e-9)
            values[f"ref/{name}/memory_gib"] = reference.memory_gib[k]
        return values

    def _leave_out(self, step: int, error: NonFiniteError) -> dict[str, float]:
        """Record a step that has failed and count it as skipped. Returns its metrics; raises when none is left to skip.

        Every rank raises alike, with self.state that of the step before, which weights and optimizer still are.
        """
        file = failure_file(Path(self.config.output_dir), step)
        if self.tracker:
            self.tracker.log_failure(file, error.record)
        barrier()  # the first rank to raise ends all of them: not before the file is there
        limit = self.config.train.max_skipped_steps
        if self.state.skipped >= limit:
            spent = (
                f" {self.state.skipped} steps were skipped before (train.max_skipped_steps={limit})." if limit else ""
            )
            raise NonFiniteError(f"{error} {file} has the numbers.{spent}") from error
        self.state = self.state.after_skipped(step)
        log(f"warning: {error} {file} has the numbers. The step is skipped ({self.state.skipped} of at most {limit}).")
        return {**error.metrics}

    def _check_start(self, metrics: dict[str, float]) -> None:
        """The first step's log-probs are from before any update: RefM1 must be where the policy starts.

        Raises ConfigError when both come from one path and yet differ; says so when the paths differ.
        """
        if not self.config.references:
            return
        first, policy = self.config.references[0], self.config.model
        side = "chosen" if math.isfinite(metrics["logps/chosen"]) else "rejected"  # single responses may lack one
        theirs, ours = metrics[f"ref/{first.name}/logps/{side}"], metrics[f"logps/{side}"]
        if not math.isfinite(ours) or abs(theirs - ours) <= START_TOLERANCE * abs(ours):
            return
        message = (
            f"the policy's log-prob of the first batch is {ours:.3f} nats, that of RefM1 ({first.name}) {theirs:.3f}: "
            "RefM1 should be the model that the policy starts from"
        )
        if (first.path, first.revision, first.chat_template) == (policy.path, policy.revision, policy.chat_template):
            raise ConfigError(f"{message}, and both are loaded from {policy.path!r}; give both the same dtype.")
        log(f"warning: {message}; put it first in references, unless this is meant")

    def _evaluate(self, held_out: "list[_Answered]") -> dict[str, float]:
        started = time.perf_counter()
        metrics: dict[str, float] = {}
        if held_out:
            metrics = evaluate_preferences(self.engine, self.objective, self._one_by_one(held_out))
            if self.tracker and self.state.step not in self.evaluated:
                self.tracker.log_eval(self.state.step, metrics)
            log(f"step {self.state.step}: held-out {describe_preferences(metrics)}loss {metrics['loss']:.4f}")
        if self.sampler and self.state.step not in self.sampled:
            self._sample(self.sampler)
        if self.budget:
            self.budget.took("evaluate", time.perf_counter() - started)
        return metrics

    def _sample(self, sampler: Sampler) -> None:
        started = time.perf_counter()
        samples = sampler.sample(self._between_batches)
        if self.tracker:
            self.tracker.log_samples(self.state.step, samples)
        first = shorten(samples[0]["text"], 60, placeholder=" ...")
        seconds = time.perf_counter() - started
        log(f"step {self.state.step}: {len(samples)} samples in {seconds:.1f} s (samples.jsonl), the first: {first!r}")

    def _is_recorded(self, held_out: "list[_Answered]") -> bool:
        """Whether the run that is resumed has made this step's evaluation to its end."""
        step = self.state.step
        return (not held_out or step in self.evaluated) and (self.sampler is None or step in self.sampled)

    def _one_by_one(self, held_out: "list[_Answered]") -> Iterator[ScoredBatch]:
        for answered in held_out:
            self._between_batches()
            yield self._scored(answered)

    def _between_batches(self) -> None:
        self._stop_if_due()
        self.report("evaluate", self.state.step)

    def _save(self) -> None:
        self.report("checkpoint", self.state.step)
        if self.tracker:
            self.tracker.sync()
        self.checkpoints.begin(self.engine, self.state)

    def _due(self, every: int, step: int) -> bool:
        return every > 0 and step % every == 0 and step != self.total_steps

    def _evaluation_due(self) -> bool:
        return self._due(self.config.evaluate.every_steps, self.state.step)

    def _checkpoint_due(self) -> bool:
        every = self.config.checkpoint.every_steps
        return self._due(every, self.state.step) or (every > 0 and self.state.step == self.total_steps)

    @property
    def num_train(self) -> int:
        """Training prompts."""
        return len(self.batcher.splits["train"])

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run, those before a resume included."""
        train = self.config.train
        return total_steps(self.num_train, train.batch_size, train.epochs, train.max_steps)


@dataclass(frozen=True)
class _Answered:
    """A batch and what the references say about it; its tensors are made anew whenever it is used."""

    batch: Batch
    reference: ReferenceAnswer
    mismatched: ReferenceAnswer | None
    """About the same prompts with the responses of others, for objectives whose baseline is mismatched."""


def asked_of_references(batches: Iterable[Batch], needs: Needs) -> Iterator[Batch]:
    """What the references are asked, in order: each batch and, for a mismatched baseline, its mismatched twin."""
    for batch in batches:
        yield batch
        if needs.baseline == "mismatched":
            yield batch.mismatched()


def describe_preferences(metrics: dict[str, float]) -> str:
    """Accuracy and margin for a log line, each followed by ", ". What the data do not have is left out."""
    shown = {"accuracy": ("rewards/accuracies", "{:.3f}"), "margin": ("rewards/margins", "{:+.4f}")}
    known = {name: form.format(metrics[key]) for name, (key, form) in shown.items() if math.isfinite(metrics[key])}
    return "".join(f"{name} {value}, " for name, value in known.items())
