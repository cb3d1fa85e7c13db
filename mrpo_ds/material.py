"""What every role computes for itself from the configuration: tokenizers, renderers, examples, the batches."""

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from mrpo_ds.config.load import to_dict
from mrpo_ds.config.schema import Config
from mrpo_ds.data.dataset import DataReport, load_examples
from mrpo_ds.data.mismatched import mismatched
from mrpo_ds.data.plan import MISMATCHED, Batch, Splits, eval_batches, train_batches
from mrpo_ds.data.rendering import Renderer
from mrpo_ds.errors import DataError
from mrpo_ds.losses import needs as needs_of
from mrpo_ds.models import AnyModelConfig, fingerprint, load_tokenizer, pad_id, resolve_dtype
from mrpo_ds.types import Example, Needs

POLICY = "policy"


@dataclass(frozen=True)
class Speaker:
    """One model's way of reading: its tokenizer and renderer."""

    tokenizer: Any
    renderer: Renderer

    @property
    def pad_id(self) -> int:
        """Id that fills padding."""
        return pad_id(self.tokenizer)


@dataclass(frozen=True)
class Material:
    """The examples as text, and how each model reads them."""

    config: Config
    splits: Splits
    reports: dict[str, DataReport]
    """Per split: what was read, dropped and cut."""
    speakers: dict[str, Speaker]
    """By 'policy' or reference name."""
    needs: Needs
    """What the objective asks for."""

    def eval_batches(self) -> list[Batch]:
        """The held-out batches, in order."""
        return eval_batches(len(self.splits["eval"]), self.config.train.batch_size)

    def train_batches(self, first_step: int) -> list[Batch]:
        """The training batches from the 0-based first_step on, in order."""
        return train_batches(len(self.splits["train"]), self.config.train, first_step)


def prepare(config: Config) -> Material:
    """Load tokenizers and data. The same on every rank; touches no model weights and no process group.

    Raises ConfigError for a model path or tokenizer that cannot be used, DataError for rows.
    """
    score_eos = config.data.score_eos
    speakers = {POLICY: _speaker(config.model, POLICY, score_eos)}
    for reference in config.references:
        speakers[reference.name] = _speaker(reference, reference.name, score_eos)
    needs = needs_of(config.loss.name, config.loss.options)
    policy = speakers[POLICY].renderer
    splits: Splits = {}
    reports = {}
    for split, sources, view in (
        ("train", config.data.train, config.data.view),
        ("eval", config.data.eval, config.data.eval_view),
    ):
        splits[split] = []
        if sources:
            splits[split], reports[split] = load_examples(sources, replace(config.data, view=view), policy, split)
            _check_scores(splits[split], needs.score_range, config.loss.name)
        if splits[split] and needs.baseline == "mismatched":
            splits[split + MISMATCHED] = mismatched(splits[split], config.data.max_length, policy)
    return Material(config, splits, reports, speakers, needs)


def _check_scores(examples: list[Example], allowed: tuple[float, float] | None, loss: str) -> None:
    """Raise DataError for the first example with a response whose score the loss cannot use."""
    if allowed is None:
        return
    low, high = allowed
    for example in examples:
        scores = example.scores
        if scores is None or not all(low <= score <= high for score in scores):
            raise DataError(
                f"{example.source}: the scores are {'missing' if scores is None else list(scores)}; loss.name={loss} "
                f"needs a score from {low:g} to {high:g} for every response. Mend the rows, or set loss.score_scale."
            )


def run_settings(material: Material, device: torch.device) -> dict[str, Any]:
    """What must agree between the runs that share a checkpoint: full key -> plain value.

    What changes numbers in their last bits only may differ: sizes of micro-batches, attention, where files lie. Weights
    and rows count by content; models of the Hub by their id and revision.
    """
    config = material.config
    settings: dict[str, Any] = {}
    models: list[tuple[str, AnyModelConfig]] = [("model", config.model)]
    models += [(f"references[{index}]", reference) for index, reference in enumerate(config.references)]
    for key, model in models:
        settings[f"{key}.weights"] = fingerprint(model)
        settings[f"{key}.dtype"] = str(resolve_dtype(model.dtype, device)).removeprefix("torch.")
        settings[f"{key}.chat_template"] = model.chat_template
    plain = to_dict(config)
    settings |= {f"loss.{key}": value for key, value in plain["loss"].items()}
    settings |= {f"train.{key}": value for key, value in plain["train"].items() if not key.startswith("micro_batch_")}
    settings["data.score_eos"] = config.data.score_eos
    settings |= {f"rows of data.{split}": _digest(examples) for split, examples in sorted(material.splits.items())}
    return cast(dict[str, Any], json.loads(json.dumps(settings)))


def _digest(examples: list[Example]) -> str:
    digest = hashlib.sha256()
    for one in examples:
        digest.update(repr((one.prompt, one.responses, one.scores, one.complete)).encode())
    return f"{len(examples)} rows, SHA-256 {digest.hexdigest()}"


def _speaker(model: AnyModelConfig, name: str, score_eos: bool) -> Speaker:
    tokenizer = load_tokenizer(model)
    return Speaker(tokenizer, Renderer(tokenizer, name, model.chat_template, score_eos))
