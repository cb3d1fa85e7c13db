"""One model on one task, document by document: of the benchmark sweep, of eval-preferences, or of a judge."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mrpo_ds.comparison.statistics import Estimate, Values, estimate_of
from mrpo_ds.errors import ConfigError, DataError
from mrpo_ds.leaderboard.scores import Score as Part
from mrpo_ds.leaderboard.scores import mean_by_size, plain_mean

CELL_KEYS = ("model", "model_path", "task", "shots", "metric", "filter", "value", "n", "samples", "seed", "limit")
SAMPLE_KEYS = ("doc_id", "prompt_hash", "target_hash", "value")
SETTINGS = (
    "shots",
    "metric",
    "filter",
    "group_mean",
    "seed",
    "limit",
    "batch_size",
    "dtype",
    "chat_template",
    "versions",
    "task_versions",
)
"""Of a cell: what must be equal before two of them are compared."""
INNER_SETTINGS = ("max_new_tokens", "data", "device")
"""The same of its `settings`, which also say which model it is."""
SHOWN = ("accuracy", "margin")
"""Measures of eval-preferences that are compared."""
PREFERENCES = ("objective", "logps", "vref")
BENCHMARKS, OF_PREFERENCES, JUDGED = KINDS = ("benchmarks", "preferences", "judged")
"""Where a score comes from; scores of two kinds never share a table."""


@dataclass(frozen=True)
class Score:
    """One model's result on one task."""

    task: str
    """With its metric: the heading under which it is compared."""
    place: str
    """Where it was read, for messages."""
    settings: Mapping[str, Any]
    """What must be equal in two results that are compared."""
    value: float
    """The task's own number."""
    stderr: float | None
    documents: Mapping[str, float]
    """Document -> its value, finite."""
    hashes: Mapping[str, str]
    """Document -> digests of its prompt and its target."""
    measure: str
    """The metric, or the measure of eval-preferences."""
    percent: bool
    """A share, shown times 100."""
    kind: str
    """benchmarks: of the sweep. preferences: of eval-preferences. judged: of judge."""
    group_mean: str | None = None
    """Of a group: plain, each subtask counts alike | by_size, each document does. None of a single task."""

    @property
    def is_mean(self) -> bool:
        """Whether its value is the mean of its documents' values, by group_mean; not of instructions, or of turns."""
        return bool(self.documents) and math.isclose(
            self.value, over_documents([self]).mean, rel_tol=1e-6, abs_tol=1e-9
        )


def from_cell(cell: Mapping[str, Any], place: str) -> Score:
    """A cell of the sweep: one model and one task. Raises DataError when it lacks a key."""
    for key in CELL_KEYS:
        if key not in cell:
            raise DataError(f"{place} has no {key!r}: it is no result of `mrpo-ds eval`; remove it.")
    for sample in cell["samples"]:
        if missing := [key for key in SAMPLE_KEYS if key not in sample]:
            raise DataError(f"{place} has a document without {missing[0]!r}; remove the file and evaluate again.")
    if not isinstance(cell["value"], int | float) or not math.isfinite(cell["value"]):
        raise DataError(f"{place}: value is {cell['value']!r}; allowed: a number. Remove the file and evaluate again.")
    group_mean = cell.get("group_mean")
    documents, hashes = {}, {}
    for sample in cell["samples"]:
        key = str(sample["doc_id"])
        if key in hashes or (group_mean is not None and not _leaf(key)):
            raise DataError(
                f"{place} has a document {key!r}; allowed: each once, in a group as subtask/number. Remove the file "
                "and evaluate again."
            )
        if sample["value"] is not None:  # a number that was not finite
            documents[key] = float(sample["value"])
        hashes[key] = f"{sample['prompt_hash']} {sample['target_hash']}"
    suffix = "" if cell["filter"] in (None, "none") else f" {cell['filter']}"
    mean = ", by size" if group_mean == "by_size" else ""  # the other mean of a group is another number
    shots = "" if cell["shots"] is None else f", {cell['shots']}-shot"
    stderr = cell.get("stderr")
    return Score(
        task=f"{cell['task']} ({cell['metric']}{suffix}{mean}{shots})",
        place=place,
        settings=_settings(cell),
        value=float(cell["value"]),
        stderr=float(stderr) if isinstance(stderr, int | float) else None,
        documents=documents,
        hashes=hashes,
        measure=str(cell["metric"]),
        percent=True,
        kind=BENCHMARKS,
        group_mean=group_mean,
    )


def from_preferences(result: Mapping[str, Any], place: str) -> list[Score]:
    """A result of eval-preferences, one score per measure that runs are compared by."""
    documents = result["documents"]
    hashes = dict(
        zip(
            documents["id"],
            map(" ".join, zip(documents["prompt_hash"], documents["target_hash"], strict=True)),
            strict=True,
        )
    )
    scores = []
    # Another virtual reference is another measure: numbers against it get a column of their own.
    virtual = json.dumps([result["virtual_reference"], result["references"]], sort_keys=True).encode()
    titles = {"vref": f"vref@{hashlib.sha256(virtual).hexdigest()[:4]}"}
    for prefix in PREFERENCES:
        for kind in SHOWN:
            measure = result["metrics"].get(f"{prefix}/{kind}")
            if measure is None:
                continue
            values = zip(documents["id"], documents["values"][f"{prefix}/{kind}"], strict=True)
            scores.append(
                Score(
                    task=f"{result['set']}: {titles.get(prefix, prefix)}/{kind}",
                    place=place,
                    settings={"rows": result["rows"], **result["reading"]},
                    value=float(measure["mean"]),
                    stderr=measure["stderr"],
                    documents={name: float(value) for name, value in values if value is not None},
                    hashes=hashes,
                    measure=f"{prefix}/{kind}",
                    percent=kind == "accuracy",
                    kind=OF_PREFERENCES,
                )
            )
    return scores


def check_comparable(one: Score, other: Score) -> None:
    """Raise ConfigError, with everything that differs, unless both are about the same documents in the same way."""
    differs = [
        f"{key} is {one.settings.get(key)!r} and {other.settings.get(key)!r}"
        for key in dict.fromkeys([*one.settings, *other.settings])
        if one.settings.get(key) != other.settings.get(key)
    ]
    missing = [key for key in one.documents if key not in other.documents]
    missing += [key for key in other.documents if key not in one.documents]
    if missing:
        differs.append(f"{len(missing)} documents are in one of them only (first: {missing[0]})")
    both = [key for key in one.documents if key in other.documents]
    changed = [key for key in both if one.hashes[key] != other.hashes[key]]
    if changed:
        differs.append(f"{len(changed)} of {len(both)} documents have another prompt or target (first: {changed[0]})")
    if differs:
        raise ConfigError(
            f"{one.task} of {one.place} and {other.place} cannot be compared: {'; '.join(differs)}. Evaluate both "
            "again in the same way, or leave one of the runs out."
        )


def estimated(scores: Sequence[Score]) -> Estimate:
    """A method's value, averaged over its seeds, and its error over documents: a single seed's is the task's own.

    The error of several seeds is that of their documents' means; None where the value is no mean of documents.
    """
    value = sum(score.value for score in scores) / len(scores)
    stderr = scores[0].stderr
    if len(scores) > 1:
        stderr = over_documents(scores).stderr if all(score.is_mean for score in scores) else None
    return Estimate(value, stderr, len(scores[0].documents))


def paired(ours: Sequence[Score], theirs: Sequence[Score]) -> Estimate | None:
    """Difference on the same documents between two methods, each averaged over its seeds.

    None where the documents have no values of their own, as those of a metric over a whole corpus.

    All scores must be comparable. The error is over documents: how the difference would vary with other ones. What
    makes a document easy for both cancels, so it is mostly far below that of two separate means.
    """
    return over_documents(ours, theirs) if ours[0].documents else None


def over_documents(ours: Sequence[Score], theirs: Sequence[Score] = ()) -> Estimate:
    """Mean over documents, averaged over seeds, minus that of others on the same ones; its error.

    A group's is made of its subtasks as its value is (group_mean): where each counts alike, a subject of 10 documents
    weighs as much as one of 1,000, and the error is the root of the sum of the squared ones, over their number.
    """
    keys = list(ours[0].documents)
    values = _mean_documents(ours, keys) - (_mean_documents(theirs, keys) if theirs else 0.0)
    group_mean = ours[0].group_mean
    if group_mean is None:
        return estimate_of(values)
    leaves: dict[str, list[float]] = {}
    for key, value in zip(keys, values.tolist(), strict=True):
        leaves.setdefault(_leaf(key), []).append(value)
    parts = [Part(one.mean, one.stderr, one.count) for one in map(estimate_of, leaves.values())]
    whole = plain_mean(parts) if group_mean == "plain" else mean_by_size(parts)
    return Estimate(whole.value, whole.stderr, whole.n)


def _mean_documents(scores: Sequence[Score], keys: Sequence[str]) -> Values:
    """[n] per document its value, averaged over the seeds of one method, in the order of keys."""
    values: Values = np.array([[score.documents[key] for key in keys] for score in scores]).mean(0)
    return values


def _leaf(document: str) -> str:
    """The subtask of a group's document, 'leaf/number'; '' of a single task's."""
    return document.rpartition("/")[0]


def _settings(cell: Mapping[str, Any]) -> dict[str, Any]:
    """What must be equal of two cells; mappings (versions) key by key."""
    inner = cell.get("settings", {})
    found: dict[str, Any] = {}
    for key, value in [(key, cell.get(key)) for key in SETTINGS] + [(key, inner.get(key)) for key in INNER_SETTINGS]:
        if isinstance(value, Mapping):
            found |= {f"{key}.{name}": item for name, item in value.items()}
        else:
            found[key] = value
    return found
