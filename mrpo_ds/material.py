"""What every role computes for itself from the configuration: tokenizers, renderers, examples, the batches."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

import torch

from mrpo_ds.config.load import to_dict
from mrpo_ds.config.schema import Config, SourceConfig
from mrpo_ds.console import log, progress
from mrpo_ds.data.accounts import FitReport
from mrpo_ds.data.batching import Layout
from mrpo_ds.data.encodings import SplitEncodings
from mrpo_ds.data.identity import renderer_key
from mrpo_ds.data.lazy import Lazy
from mrpo_ds.data.micro import PolicyBatcher
from mrpo_ds.data.plan import MISMATCHED, Batches, Splits, eval_batches, train_batches
from mrpo_ds.data.prepare import Prepared, Watch, prepare_encodings, prepare_mismatched, prepare_split
from mrpo_ds.data.rendering import Renderer
from mrpo_ds.errors import DataError, require
from mrpo_ds.losses import needs as needs_of
from mrpo_ds.models import (
    AnyModelConfig,
    fingerprint,
    load_tokenizer,
    pad_id,
    resolve_dtype,
    tokenizer_fingerprint,
)
from mrpo_ds.types import Example, Needs

POLICY = "policy"
Item = TypeVar("Item")


@dataclass(frozen=True)
class Speaker:
    """One model's way of reading: its tokenizer and renderer, and what it reads."""

    tokenizer: Any
    renderer: Renderer
    encodings: SplitEncodings = field(default_factory=dict)
    """Its token ids of every example, by split."""
    fits: Mapping[str, FitReport] = field(default_factory=dict)
    """How it reads each split."""

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence of all splits."""
        return max((fit.longest for fit in self.fits.values()), default=0)

    def layout(self, model: AnyModelConfig) -> Layout:
        """How its sequences lie in a forward, unless preflight finds that this model cannot pack or share."""
        single_row = model.attention.startswith(("flash_attention", "flex_attention"))
        return Layout(pad_id(self.tokenizer), model.packing, single_row, model.packing and model.prefix_sharing)


@dataclass(frozen=True)
class Material:
    """The examples as text, and how each model reads them."""

    config: Config
    splits: Splits
    prepared: dict[str, Prepared]
    """Per split that has rows: what was read, dropped and cut."""
    speakers: dict[str, Speaker]
    """By 'policy' or reference name."""
    needs: Needs
    """What the objective asks for."""

    def share(self, number: int, count: int) -> "Material":
        """Part number (from 0) of count parts of the rows of every split, each as long as the others or a row longer.

        Raises ConfigError when there are more parts than training rows.
        """
        rows = len(self.splits["train"])
        require(count <= rows, "--shard", f"{number}/{count}", f"at most {rows} parts, as many as training rows")

        def part(items: Sequence[Item]) -> Sequence[Item]:
            begin, end = (len(items) * place // count for place in (number, number + 1))
            return Lazy(end - begin, lambda index: items[begin + index])

        speakers = {
            name: replace(one, encodings={split: part(ids) for split, ids in one.encodings.items()})
            for name, one in self.speakers.items()
        }
        splits = {split: part(examples) for split, examples in self.splits.items()}
        return replace(self, splits=splits, speakers=speakers)

    def identity(self) -> dict[str, str]:
        """What must be the same on every host: name -> a digest."""
        rows = {f"the rows of data.{split}": rows_of(one) for split, one in sorted(self.prepared.items())}
        return rows | {f"the token ids of {name}": renderer_key(one.renderer) for name, one in self.speakers.items()}

    def batcher(self, layout: Layout, rank: int, size: int, device: torch.device) -> PolicyBatcher:
        """What makes the forwards of one of the policy's `size` ranks."""
        encodings, limits = self.speakers[POLICY].encodings, self.config.train
        return PolicyBatcher(self.splits, encodings, layout, limits, self.needs, rank, size, device)

    def largest_examples(self) -> tuple[int, int]:
        """Training rows of which one is the policy's largest: with its prompt before each response, or only once."""
        fit = self.speakers[POLICY].fits["train"]
        return fit.heaviest, fit.wordiest

    def eval_batches(self) -> Batches:
        """The held-out batches, in order."""
        return eval_batches(len(self.splits["eval"]), self.config.train.batch_size)

    def train_batches(self, first_step: int) -> Batches:
        """The training batches from the 0-based first_step on, in order."""
        return train_batches(len(self.splits["train"]), self.config.train, first_step)


def prepare(
    config: Config, only: str | None = None, sets: Mapping[str, Sequence[SourceConfig]] | None = None
) -> Material:
    """Load tokenizers and data, or find the data as they were prepared before; and at once show how that goes on.

    Touches no model weights and no process group. The same on every rank.

    Args:
        config: the run.
        only: the name of a reference if, of all references, only its token ids are wanted; POLICY for none of them.
        sets: what is read instead of data.train and data.eval, by name, as held-out rows that nothing is trained on.

    Raises ConfigError for a model path or tokenizer that cannot be used, DataError for rows.
    """
    data = config.data
    models: dict[str, AnyModelConfig] = {POLICY: config.model}
    models |= {reference.name: reference for reference in config.references if only in (None, reference.name)}
    renderers = {}
    tokenizers = {name: load_tokenizer(model) for name, model in models.items()}
    for name, model in models.items():
        renderers[name] = Renderer(tokenizers[name], name, model.chat_template, data.score_eos, data.score_turns)
    policy = renderers[POLICY]
    needs = needs_of(config.loss.name, config.loss.options)
    _check_turns(config, needs)
    watch = Watch(progress, log)
    wanted = [("train", data.train, data.view), ("eval", data.eval, data.eval_view)]
    if sets is not None:
        wanted = [(name, list(sources), data.eval_view) for name, sources in sets.items()]
    prepared = {
        split: prepare_split(sources, replace(data, view=view), policy, split, watch)
        for split, sources, view in wanted
        if sources or split == "train"
    }
    for one in prepared.values() if sets is None else ():
        _check_scores(one.examples, needs.score_range, config.loss.name)
    kept = dict(prepared)
    if needs.baseline == "mismatched" and sets is None:
        for split, one in prepared.items():
            kept[split + MISMATCHED] = prepare_mismatched(one, data, policy, watch)
    speakers = {}
    for name, renderer in renderers.items():
        read = {split: prepare_encodings(one, policy, renderer, data, watch) for split, one in kept.items()}
        encodings = {split: ids for split, (ids, _) in read.items()}
        fits = {split: fit for split, (_, fit) in read.items()}
        speakers[name] = Speaker(tokenizers[name], renderer, encodings, fits)
    splits: Splits = {"eval": [], **{split: one.examples for split, one in kept.items()}}
    return Material(config, splits, prepared, speakers, needs)


def _check_turns(config: Config, needs: Needs) -> None:
    """Raise ConfigError when earlier turns would be scored twice, or be most of KTO's mismatched rows."""
    whole = needs.prompt or needs.baseline == "mismatched"
    require(
        not whole or config.data.score_turns == "last",
        "data.score_turns",
        config.data.score_turns,
        f"last, because loss.name={config.loss.name} with these options "
        + ("scores the whole prompts already" if needs.prompt else "also scores answers to other prompts"),
    )


def _check_scores(examples: Sequence[Example], allowed: tuple[float, float] | None, loss: str) -> None:
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


_FREE = ("micro_batch_", "max_seconds", "max_skipped_steps", "dry_run")
"""Settings of train that a resumed run may change."""


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
        settings[f"{key}.tokenizer"] = tokenizer_fingerprint(model)
        settings[f"{key}.chat_template"] = model.chat_template
    plain = to_dict(config)
    settings |= {f"loss.{key}": value for key, value in plain["loss"].items()}
    settings |= {f"train.{key}": value for key, value in plain["train"].items() if not key.startswith(_FREE)}
    settings["data.score_eos"] = config.data.score_eos
    settings["data.score_turns"] = config.data.score_turns
    for split, one in sorted(material.prepared.items()):
        settings[f"rows of data.{split}"] = rows_of(one)
    return cast(dict[str, Any], json.loads(json.dumps(settings)))


def rows_of(prepared: Prepared) -> str:
    """The rows of a split in words that no other rows have: how many, and a digest of what they say."""
    return f"{len(prepared.examples)} rows, SHA-256 {prepared.digest}"
