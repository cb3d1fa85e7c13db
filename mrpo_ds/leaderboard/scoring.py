"""One model and one task through lm-eval, in this process, with everything said that changes a score."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from mrpo_ds.errors import ConfigError
from mrpo_ds.leaderboard.candidates import load_whole
from mrpo_ds.leaderboard.tasks import SEEDS, Loaded
from mrpo_ds.memory import freed_is_kept

BOOTSTRAP = 1000
"""Resamples for the standard errors of metrics that have no formula; means have one."""
TRUNCATED = ("Combined length", "Left truncation applied")
"""How lm-eval's warnings begin when it cuts a prompt."""


def load_lm(path: str, dtype: str, batch_size: int, device: str, report: Callable[[float], None]) -> Any:
    """A model for lm-eval. Raises ConfigError when it cannot be loaded whole.

    Args:
        path: a directory or a Hub id.
        dtype: checkpoint | bf16 | fp32.
        batch_size: requests a forward, the same for every model of a table.
        device: "cpu", or "cuda": the worker sees one GPU.
        report: told the part that is done of what the model is asked, 0 to 1.
    """
    import torch
    from lm_eval.models import huggingface

    from mrpo_ds.config.schema import ModelConfig
    from mrpo_ds.models import load_tokenizer

    kinds: dict[str, Any] = {"checkpoint": "auto", "bf16": torch.bfloat16, "fp32": torch.float32}
    model = load_whole(path, dtype=kinds[dtype]).to(device)
    tokenizer = load_tokenizer(ModelConfig(path=path))
    huggingface.tqdm = _meter(report)  # its bar is for a terminal; the sweep draws one for all workers
    # In bf16 the log-softmax ties answers that are not tied, and moves with the batch size.
    return huggingface.HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, softmax_dtype="float32")


def evaluate(lm: Any, loaded: Loaded, job: dict[str, Any]) -> dict[str, Any]:
    """Score one task, or one group, with a model. Raises ConfigError for a score of another number of shots.

    Args:
        lm: of load_lm.
        loaded: of load_tasks.
        job: shots, limit, max_new_tokens, chat_template as in a suite and on the command line.

    Returns:
        The computed part of a cell: "computed", "samples", and what was found on the way.
    """
    from lm_eval import simple_evaluate

    started = time.monotonic()
    longest = job["max_new_tokens"]
    generates = any(leaf.get_config("output_type") == "generate_until" for leaf in loaded.leaves)
    keeping = freed_is_kept(lm.device) if generates else nullcontext()
    with _counting_truncated() as truncated, keeping:
        result = simple_evaluate(
            model=lm,
            tasks=loaded.tasks,
            task_manager=loaded.manager,  # or it reads the YAMLs of all tasks there are, each time
            num_fewshot=job["shots"],
            limit=job["limit"],
            gen_kwargs=None if longest is None else {"max_gen_toks": longest},
            apply_chat_template=job["chat_template"],
            fewshot_as_multiturn=job["chat_template"],
            log_samples=True,
            bootstrap_iters=BOOTSTRAP,
            **SEEDS,
        )
    assert result is not None
    leaves = sorted(result["configs"])
    for leaf in leaves:
        if job["shots"] is not None and result["n-shot"][leaf] != job["shots"]:
            raise ConfigError(f"{leaf} was run with {result['n-shot'][leaf]} shots instead of {job['shots']}.")
    return {
        "computed": {leaf: _scores(result["results"][leaf]) for leaf in leaves},
        "samples": [row for leaf in leaves for row in _samples(leaf, result["samples"][leaf], len(leaves) > 1)],
        "task_versions": {leaf: result["versions"].get(leaf) for leaf in leaves},
        "documents": {leaf: dict(result["n-samples"][leaf]) for leaf in leaves},
        "truncated_requests": truncated[0],
        "max_length": lm.max_length,
        "bos_token": getattr(lm.tokenizer, "bos_token", None),
        "seconds": round(time.monotonic() - started, 3),
    }


def _scores(metrics: dict[str, Any]) -> dict[str, Any]:
    """{"n", "scores"} of a leaf from lm-eval's flat mapping, where a missing standard error is the string N/A."""
    scores = {}
    for key, value in metrics.items():
        metric, comma, filter_name = key.partition(",")
        if comma and not metric.endswith("_stderr"):
            scores[key] = [_number(value), _number(metrics.get(f"{metric}_stderr,{filter_name}"))]
    return {"n": int(metrics["sample_len"]), "scores": scores}


def _samples(leaf: str, rows: list[dict[str, Any]], is_group: bool) -> Iterator[dict[str, Any]]:
    """A row for every document; lm-eval has one for every document and filter."""
    documents: dict[int, dict[str, Any]] = {}
    for row in rows:
        number = int(row["doc_id"])
        sample = documents.setdefault(
            number,
            {
                "doc_id": f"{leaf}/{number}" if is_group else number,
                "prompt_hash": row["prompt_hash"],
                "target_hash": row["target_hash"],
                "scores": {},
            },
        )
        for metric in row["metrics"]:
            sample["scores"][f"{metric},{row['filter']}"] = _number(row[metric])
    return (documents[number] for number in sorted(documents))


def _number(value: Any) -> float | None:
    """A finite number of whatever a metric says; the mean of a list; None for the rest."""
    if isinstance(value, list | tuple):
        parts = [_number(part) for part in value]
        known = [part for part in parts if part is not None]
        return sum(known) / len(known) if known and len(known) == len(parts) else None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _meter(report: Callable[[float], None]) -> type:
    """What stands in for tqdm in lm-eval's model."""

    class Meter:
        def __init__(self, iterable: Any = None, total: int | None = None, **_: Any) -> None:
            self._iterable = iterable
            self._total = total if total is not None or iterable is None else len(iterable)
            self._done = 0

        def __iter__(self) -> Iterator[Any]:
            for item in self._iterable:
                yield item
                self.update()

        def update(self, count: int = 1) -> None:
            self._done += count
            if self._total:
                report(min(1.0, self._done / self._total))

        def close(self) -> None:
            """Nothing is drawn."""

    return Meter


@contextmanager
def _counting_truncated() -> Iterator[list[int]]:
    """Count the warnings of cut prompts, [count], instead of writing one for each request."""
    count = [0]

    class Counter(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            is_one = record.getMessage().startswith(TRUNCATED)
            count[0] += is_one
            return not is_one

    logger, counter = logging.getLogger("lm_eval.models.huggingface"), Counter()
    logger.addFilter(counter)
    try:
        yield count
    finally:
        logger.removeFilter(counter)
