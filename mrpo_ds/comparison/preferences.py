"""mrpo-ds eval-preferences: how well models tell chosen from rejected responses, on any number of eval sets.

Every model is scored as a reference is, over the ranks and through the reference store, so nothing is scored twice
and a killed evaluation goes on where it was. Then the measures of measures.py, and intervals over documents.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from mrpo_ds.comparison.measures import COMPARED_VIEWS, Yardstick
from mrpo_ds.comparison.results import RESULTS_FOLDER, preference_table, write_result
from mrpo_ds.comparison.statistics import Bootstrap, bootstrap_means, estimate_of, percentile_interval
from mrpo_ds.comparison.subjects import Sets, Subject, scored_references, sets_of, subjects_of
from mrpo_ds.comparison.tables import to_markdown, write_tables
from mrpo_ds.config.schema import Config
from mrpo_ds.console import log
from mrpo_ds.data.plan import Batch
from mrpo_ds.distributed.topology import build_topology
from mrpo_ds.errors import ConfigError, require
from mrpo_ds.material import Material, rows_of
from mrpo_ds.models import fingerprint, resolve_dtype
from mrpo_ds.reference.scoring import Scored
from mrpo_ds.run import ScoreJob, score_rows
from mrpo_ds.types import Example, ResponseLogps


@dataclass(frozen=True)
class Asked:
    """What the command line asks for besides the run."""

    models: Sequence[str] | None = None
    """See subjects_of; None for the run's own model."""
    files: Sequence[str] | None = None
    """See sets_of."""
    adapters: Sequence[str] | None = None
    out: str | None = None
    """Where results go; None for eval/ in the run directory."""
    bootstrap: Bootstrap = field(default_factory=Bootstrap)


def eval_preferences(config: Config, arguments: list[str], asked: Asked) -> int:
    """Measure models, write one JSON per model and set, and a table. Returns the exit code.

    Args:
        config: the run: its objective, references and policy are the yardstick.
        arguments: the command line, for the ranks that are started.
        asked: what is measured.

    Raises ConfigError, DataError, ReferenceError.
    """
    require(asked.bootstrap.resamples >= 1, "--resamples", asked.bootstrap.resamples, ">= 1")
    require(asked.bootstrap.seed >= 0, "--seed", asked.bootstrap.seed, ">= 0")
    out = _out_of(config, asked.out)
    subjects = subjects_of(config, asked.models)
    sets = sets_of(config, asked.files, asked.adapters)
    view = config.data.eval_view if config.data.eval_view in COMPARED_VIEWS else "pair"
    yardstick = Yardstick(config.loss, tuple(one.name for one in config.references), view)
    scoring, answers = scored_references(config, subjects)
    # Each model is scored by all ranks, as many as the run has, so none of them has a rank of its own.
    topology = replace(config.topology, policy=build_topology(config).world_size, placement="stored")
    data = replace(config.data, eval_view=view)
    asks = replace(config, references=scoring, data=data, topology=topology)
    evaluation = _Evaluation(config, yardstick, subjects, sets, answers, asked.bootstrap, out)
    return score_rows(asks, arguments, ScoreJob(dict(sets), evaluation.keep, finish=evaluation.finish))


def _out_of(config: Config, given: str | None) -> Path:
    if given is not None:
        return Path(given)
    run = Path(config.output_dir)
    if not (run / "config.yaml").is_file():  # train refuses a directory with anything in it
        raise ConfigError(
            f"--out is missing, and output_dir {str(run)!r} is no run yet; allowed: --out DIR, or the configuration of "
            "a run that has been trained (its results go to its eval/)."
        )
    return run / "eval"


@dataclass(frozen=True)
class _Evaluation:
    """Collects what models say, and measures it when all have spoken."""

    config: Config
    yardstick: Yardstick
    subjects: list[Subject]
    sets: Sets
    answers: dict[str, str]
    bootstrap: Bootstrap
    out: Path
    said: dict[tuple[str, str], list[Scored]] = field(default_factory=dict)
    """(model, set) -> its answers in the order of the rows."""

    def keep(self, name: str, batch: Batch, scored: Scored) -> None:
        """See Answered."""
        cpu = replace(scored, logps=scored.logps.cpu(), lengths=scored.lengths.cpu())
        self.said.setdefault((name, batch.split), []).append(cpu)

    def finish(self, material: Material) -> None:
        """Measure, write, and say the table on stdout."""
        results = [self._result(subject, name, material) for name in self.sets for subject in self.subjects]
        for result in results:
            write_result(self.out, result)
        table = preference_table(results)
        write_tables([table], self.out / RESULTS_FOLDER)
        print(to_markdown(table), flush=True)
        log(f"preference evaluation: {len(results)} results and table.* in {self.out / RESULTS_FOLDER}")

    def _result(self, subject: Subject, name: str, material: Material) -> dict[str, Any]:
        examples = [material.splits[name][index] for index in range(len(material.splits[name]))]
        measures = self.yardstick.measure(self._logps(subject, name, examples))
        table = torch.stack(list(measures.values()), 1).numpy()  # [n, M]
        resampled = bootstrap_means(table, self.bootstrap)
        metrics = {}
        for column, measure in enumerate(measures):
            values = table[:, column]
            values = values[values == values]
            if not len(values):
                continue
            estimate = estimate_of(values)
            low, high = percentile_interval(resampled[:, column], self.bootstrap.confidence)
            interval = {"low": low, "high": high}
            metrics[measure] = {"mean": estimate.mean, **interval, "stderr": estimate.stderr, "n": estimate.count}
        return {
            "model": subject.name,
            "kind": subject.kind,
            "set": name,
            **self._what_was_done(subject, name, material),
            "metrics": metrics,
            "documents": {
                "id": [one.id for one in examples],
                "prompt_hash": [_hash([[turn.role, turn.content] for turn in one.prompt]) for one in examples],
                "target_hash": [_hash(one.responses) for one in examples],
                "values": {measure: value.tolist() for measure, value in measures.items()},
            },
        }

    def _what_was_done(self, subject: Subject, name: str, material: Material) -> dict[str, Any]:
        """Everything that the numbers depend on."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        virtual = self.yardstick.virtual_options
        data = self.config.data
        reading = {key: getattr(data, key) for key in ("max_length", "score_eos", "score_turns")}
        return {
            "model_path": subject.config.path,
            "fingerprint": fingerprint(subject.config),
            "dtype": str(resolve_dtype(subject.config.dtype, device)).removeprefix("torch."),
            "device": device.type,
            "source": asdict(self.sets[name][0]),
            "rows": rows_of(material.prepared[name]),
            "dropped": material.prepared[name].report.rows - len(material.splits[name]),
            "reading": {**reading, "view": self.yardstick.view, "split_seed": data.split_seed},
            "loss": {"name": self.config.loss.name, **asdict(self.config.loss.options)},
            "references": {one.name: one.path for one in self.config.references},
            "beta": self.yardstick.beta,
            "virtual_reference": None if virtual is None else asdict(virtual),
            "bootstrap": {**asdict(self.bootstrap), "method": "percentile, documents resampled"},
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        }

    def _logps(self, subject: Subject, name: str, examples: Sequence[Example]) -> ResponseLogps:
        width = max(len(one.responses) for one in examples)
        present = torch.tensor([[r < len(one.responses) for r in range(width)] for one in examples])
        policy, lengths = self._of(subject.config.name, name, width)
        others = [self._of(reference, name, width) for reference in self.yardstick.references]
        empty = torch.zeros(0, len(examples), width)
        scores = [[*(one.scores or ()), *[torch.nan] * width][:width] for one in examples]
        return ResponseLogps(
            policy=policy,
            lengths=lengths,
            reference=torch.stack([logps for logps, _ in others]) if others else empty,
            reference_lengths=torch.stack([lengths for _, lengths in others]) if others else empty,
            present=present,
            scores=torch.tensor(scores, dtype=torch.float64),
        )

    def _of(self, name: str, split: str, width: int) -> tuple[Tensor, Tensor]:
        """[n, R] log-probs and lengths of one model's answers to a whole set."""
        said = self.said[self.answers[name], split]
        parts = [
            [torch.nn.functional.pad(values, (0, width - values.shape[1])) for values in (one.logps, one.lengths)]
            for one in said
        ]
        return torch.cat([logps for logps, _ in parts]), torch.cat([lengths for _, lengths in parts])


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]
