"""What `mrpo-ds judge` has left in a folder, question by question, as scores that runs are compared by."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mrpo_ds.comparison.results import read_json
from mrpo_ds.comparison.scores import JUDGED, Score
from mrpo_ds.errors import DataError

RESULT_KEYS = ("benchmark", "protocol", "summary", "baseline", "models", "prompt_hashes", "settings")
ASKED = ("model", "temperature", "max_tokens", "logprobs")
"""Of a judge: what its judgments depend on. Where it is, what it costs and how often it is asked is its own affair."""
NO_PART = ("resamples", "judge", "benchmark")
"""Of the settings: what is no part of a score, or is compared in another form."""


def read_judged(folder: Path) -> list[tuple[dict[str, Any], Score]]:
    """(record with model and model_path, score) of every model judged in a folder, or in folders inside it.

    Raises DataError for a file that cannot be read, or lacks what a result has.
    """
    found = []
    for path in sorted({*folder.glob("results.json"), *folder.glob("*/results.json")}):
        results = read_json(path)
        if results.get("kind") != JUDGED:  # a sweep's own table
            continue
        if missing := [key for key in RESULT_KEYS if key not in results]:
            raise DataError(f"{path} has no {missing[0]!r}: it is no result of `mrpo-ds judge`; make it again.")
        for row in results["models"]:
            if row["judged"]:
                found.append((row, _score(results, row, f"{path} of {row['model']}")))
    return found


def _score(results: Mapping[str, Any], row: Mapping[str, Any], place: str) -> Score:
    is_scores = results["protocol"] == "scores"
    value, stderr, measure = row["mean" if is_scores else "win_rate"], row["stderr"], "score"
    if not is_scores:
        measure = f"win rate against {results['baseline'] or 'the baseline'}"
    if results["summary"] == "bradley_terry" and not is_scores:
        # Its error is no mean's: the interval is in results.json. Paired differences are of the games' outcomes.
        value, stderr, measure = row["bradley_terry"]["rate"], None, f"Bradley-Terry {measure}"
    return Score(
        task=f"{results['benchmark']} ({measure})",
        place=place,
        settings=_settings(results),
        value=float(value),
        stderr=stderr,
        documents={name: float(value) for name, value in row["questions"].items()},
        hashes={name: results["prompt_hashes"].get(name, "") for name in row["questions"]},
        measure=measure,
        percent=not is_scores,
        kind=JUDGED,
    )


def _settings(results: Mapping[str, Any]) -> dict[str, Any]:
    """What must be equal in two judged scores: the benchmark's file by its digest, judge, orders, questions."""
    settings = results["settings"]
    judge = settings["judge"]
    content = json.dumps(settings["benchmark"], sort_keys=True).encode()
    return {
        "benchmark file": hashlib.sha256(content).hexdigest()[:8],
        "judge name": "files of verdicts" if judge is None else judge["model"],
        "judge": None if judge is None else {key: judge[key] for key in ASKED},
        **{key: value for key, value in settings.items() if key not in NO_PART},
    }
