"""Several answers a prompt: columns `prompt`, `responses`; optional `scores` and `system`.

`prompt` is text or a list of messages, `responses` a list of texts, `scores` a list of numbers, larger is better.
Without scores the responses are best first already.
"""

from collections.abc import Mapping
from typing import Any

from mrpo_ds.data.adapters._raw import RawExample, RowError, read_prompt, read_score


def adapt(row: Mapping[str, Any]) -> RawExample:
    """All responses of a row, by descending score; equal scores keep the order of the file.

    Raises:
        RowError: the row cannot be used.
    """
    responses = row.get("responses")
    if not isinstance(responses, list) or not all(isinstance(text, str) for text in responses):
        raise RowError("missing response", "'responses' is not a list of texts")
    if row.get("scores") is None:
        return RawExample(read_prompt(row), tuple(responses))
    scores = row["scores"]
    if not isinstance(scores, list) or len(scores) != len(responses):
        raise RowError("bad score", f"'scores' is not a list of {len(responses)} numbers, one per response")
    values = [read_score(score, "scores") for score in scores]
    order = sorted(range(len(values)), key=lambda index: -values[index])  # sorted() is stable
    return RawExample(read_prompt(row), tuple(responses[i] for i in order), tuple(values[i] for i in order))
