"""What is said of a step whose numbers are not finite: which model began, in which rows, and everybody's numbers there.

Runs on every rank of the policy alike, after the failure: what it costs does not matter.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict

from torch import Tensor

from mrpo_ds.distributed.collectives import gather_objects
from mrpo_ds.errors import NonFiniteError
from mrpo_ds.metrics import SeenPrompt, Totals
from mrpo_ds.objective import Objective, ScoredBatch
from mrpo_ds.types import Example, SequenceBatch

MOST_ROWS = 64
"""Rows of a failure file."""
MOST_CHARACTERS = 200
"""Of each text in it."""
Record = dict[str, object]
LOWER = (
    "A lower train.learning_rate or train.max_grad_norm, or removing the rows, may help; train.max_skipped_steps lets "
    "a run leave such steps out."
)


def explain_numbers(
    scored: ScoredBatch,
    objective: Objective,
    totals: Totals,
    broken: list[int],
    score: Callable[[SequenceBatch], Tensor],
    step: int,
    metrics: dict[str, float],
) -> NonFiniteError:
    """The error for a step whose loss, or a reference's log-prob, is not finite. Every rank of the policy must call it.

    Args:
        scored: the step's batch.
        objective: names the references.
        totals: this rank's part of the step.
        broken: Counts.broken.
        score: the engine's.
        step: 1-based.
        metrics: means of the step.
    """
    seen = _gather(totals)
    names = objective.reference_names
    candidates = sorted({*broken, *(one.prompt for one in seen.values() if _is_bad(one, scored))})
    policy = {} if broken else _alone(scored, candidates[:MOST_ROWS], score)
    blamed = {prompt: _blame(scored, prompt, policy.get(prompt, seen[prompt].policy), names) for prompt in candidates}
    # What stands beside a NaN in a row of a forward is NaN too: rows whose models are all fine alone did not begin it.
    began = [prompt for prompt in candidates if blamed[prompt] != "loss"] or candidates
    first = min(began, key=lambda prompt: _ORDER.index(blamed[prompt].split(" ")[0]), default=None)
    rows: list[Record] = []
    for prompt in began[:MOST_ROWS]:
        row = _text(scored.batch.examples[prompt]) | {"not_finite": blamed[prompt]}
        rows.append(row | _numbers(scored, seen[prompt], policy.get(prompt), names))
    culprit = "loss" if first is None else blamed[first]
    record = _record(step, culprit, metrics, len(began), rows)
    where = "" if first is None else f" of {_place(scored.batch.examples[first])}"
    others = f" ({len(began)} such rows)" if len(began) > 1 else ""
    return NonFiniteError(_message(step, culprit, where, others), record, {**metrics, "grad_norm": math.nan})


def explain_gradient(scored: ScoredBatch, step: int, metrics: dict[str, float]) -> NonFiniteError:
    """The error for a step whose gradient is not finite although its loss is. metrics have grad_norm."""
    examples = scored.batch.examples
    rows = [_text(example) for example in examples[:MOST_ROWS]]
    message = (
        f"the gradient of step {step} is not finite, though its loss is {metrics['loss']:.6g}; the weights were not "
        f"updated. {LOWER}"
    )
    return NonFiniteError(message, _record(step, "gradient", metrics, len(examples), rows), metrics)


_ORDER = ("reference", "policy", "loss")
"""In which order a step meets them."""


def _message(step: int, culprit: str, where: str, others: str) -> str:
    kept = "the weights were not updated."
    if culprit == "policy":
        return f"the policy's log-probs{where}{others} are not finite at step {step}; {kept} {LOWER}"
    if culprit == "loss":
        return f"the loss{where}{others} is not finite at step {step}, though every log-prob is; {kept} {LOWER}"
    mend = (
        "Mend or replace that model, or remove the rows; some losses can leave them out (loss.nonfinite), and "
        "train.max_skipped_steps lets a run leave such steps out."
    )
    return f"the log-probs of {culprit}{where}{others} are not finite at step {step}; {kept} {mend}"


def _record(step: int, culprit: str, metrics: dict[str, float], count: int, rows: list[Record]) -> Record:
    return {
        "step": step,
        "not_finite": culprit,
        "loss": _sayable(metrics["loss"]),
        "grad_norm": _sayable(metrics.get("grad_norm")),
        "num_rows": count,
        "rows": rows,
    }


def _gather(totals: Totals) -> dict[int, SeenPrompt]:
    """Every prompt of the step, from all ranks."""
    parts = gather_objects([json.dumps(asdict(one)) for one in totals.seen()])
    found = [SeenPrompt(**json.loads(text)) for part in parts for text in part]
    return {one.prompt: one for one in found}


def _is_bad(seen: SeenPrompt, scored: ScoredBatch) -> bool:
    return not math.isfinite(seen.loss) or not _finite_at(seen.policy, scored, seen.prompt)


def _finite_at(values: list[float], scored: ScoredBatch, prompt: int) -> bool:
    """Whether the values of the responses that a prompt has are finite."""
    present = scored.batch.present[prompt].tolist()
    return all(math.isfinite(value) for value, there in zip(values, present, strict=True) if there)


def _alone(scored: ScoredBatch, prompts: list[int], score: Callable[[SequenceBatch], Tensor]) -> dict[int, list[float]]:
    """The policy's [R] log-probs of each of the prompts in a forward of its own; every rank computes them all."""
    found = {}
    for prompt in prompts:
        micro = scored.batch.alone(prompt)
        found[prompt] = scored.logps(micro, score(micro.sequences)).policy[0].tolist()
    return found


def _blame(scored: ScoredBatch, prompt: int, policy: list[float], names: list[str]) -> str:
    """reference NAME, policy or loss: the first that is not finite for a prompt."""
    for batch in (scored, scored.mismatched):
        if batch is None:
            continue
        present = batch.batch.present[prompt]
        for name, values in zip(names, batch.reference.logps[:, prompt], strict=True):
            if not values[present].isfinite().all():
                return f"reference {name}"
    return "loss" if _finite_at(policy, scored, prompt) else "policy"


def _text(example: Example) -> Record:
    return {
        "id": example.id,
        "source": example.source,
        "prompt": _shorten(example.prompt[-1].content),
        "responses": [_shorten(text) for text in example.responses],
    }


def _numbers(scored: ScoredBatch, seen: SeenPrompt, alone: list[float] | None, names: list[str]) -> Record:
    """What every model said about a prompt, nats."""
    reference = scored.reference
    said = zip(names, reference.logps[:, seen.prompt].tolist(), reference.lengths[:, seen.prompt].tolist(), strict=True)
    numbers: Record = {
        "loss": _sayable(seen.loss),
        "policy_logps": _sayable(seen.policy if alone is None else alone),
        "policy_lengths": scored.batch.lengths[seen.prompt].tolist(),
        "references": {name: {"logps": _sayable(logps), "lengths": lengths} for name, logps, lengths in said},
    }
    if seen.weights:
        numbers["weights"] = dict(zip(names, map(_sayable, seen.weights), strict=True))
    if scored.mismatched is not None:
        others = scored.mismatched.reference.logps[:, seen.prompt].tolist()
        numbers["mismatched"] = {name: _sayable(logps) for name, logps in zip(names, others, strict=True)}
    return numbers


def _sayable(value: object) -> object:
    """Numbers as they are, and the names of those that JSON has none for."""
    if isinstance(value, list):
        return [_sayable(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _place(example: Example) -> str:
    return f"{example.id} ({example.source})"


def _shorten(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}... ({len(text)} characters)"
