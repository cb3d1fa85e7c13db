"""Our side: the real train_step, Objective, PolicyBatcher and ColocatedReferences, with SGD instead of DeepSpeed.

python ours.py MODEL MATERIAL CASE...     writes MATERIAL/ours.json
"""

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from cases import BATCH, CASES, MAX_LENGTH, ROWS, STEPS, Case
from material import ROWS_FILE
from torch import Tensor

from mrpo_ds.config.load import load_config
from mrpo_ds.config.schema import Config
from mrpo_ds.data.micro import PolicyBatch, PolicyBatcher
from mrpo_ds.data.plan import Batch
from mrpo_ds.material import POLICY, Material, prepare
from mrpo_ds.models import SequenceScorer, load_scorer, score
from mrpo_ds.objective import Objective, ScoredBatch
from mrpo_ds.ops.attention import visible
from mrpo_ds.reference.colocated import ColocatedReferences
from mrpo_ds.reference.scoring import ReferenceScorer
from mrpo_ds.train import Update, asked_of_references, train_step
from mrpo_ds.types import SequenceBatch

CPU = torch.device("cpu")
MICRO_BATCHES = 2
"""Forwards that each step is cut into, by a limit on prompts. TRL makes one; no loss may notice."""


class SgdEngine:
    """mrpo_ds.engine.Engine on one process, without DeepSpeed, clipping, momentum or decay."""

    device = CPU

    def __init__(self, scorer: SequenceScorer) -> None:
        self.scorer = scorer
        self.optimizer = torch.optim.SGD(scorer.parameters(), lr=0.0)

    def forward(self, batch: SequenceBatch) -> Tensor:
        return score(self.scorer, batch)

    def score(self, batch: SequenceBatch) -> Tensor:
        with torch.no_grad():
            return score(self.scorer, batch)

    def backward(self, loss: Tensor, last: bool) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self, learning_rate: float) -> float:
        norm = torch.nn.utils.clip_grad_norm_(self.scorer.parameters(), float("inf"))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(norm)


def main(model: str, directory: Path, names: list[str]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=0, world_size=1)
    runs = {}
    for name in names:
        rate = CASES[name].rate(model)
        assert rate is not None, f"{name} is for the tiny model"
        runs[name] = train(CASES[name], rate, directory)
        print(f"ours  {name:24s}", " ".join(f"{loss:.6f}" for loss in runs[name]), flush=True)
    versions = {module.__name__: module.__version__ for module in (transformers, torch)}
    (directory / "ours.json").write_text(json.dumps({"versions": versions, "runs": runs}), encoding="utf-8")


def train(case: Case, learning_rate: float, directory: Path) -> list[float]:
    """The losses of STEPS plain SGD steps, each from before its update."""
    config = make_config(case, directory)
    material = prepare(config)
    batches = in_file_order(config)
    engine = SgdEngine(load_scorer(config.model, torch.float32, trainable=True))
    objective = Objective.from_config(config)
    batcher = make_batcher(material)
    answers = make_references(material).stream(asked_of_references(batches, objective.needs))
    expected = json.loads((directory / "rows.json").read_text(encoding="utf-8"))
    losses = []
    for batch in batches:
        reference = next(answers)
        mismatched = None
        if objective.needs.baseline == "mismatched":
            mismatched = ScoredBatch(batcher.build(batch.mismatched()), next(answers))
        scored = ScoredBatch(batcher.build(batch), reference, mismatched)
        check_tokens(scored.batch, expected)
        assert len(scored.batch.micros) == MICRO_BATCHES
        losses.append(train_step(engine, objective, scored, Update(batch.step + 1, learning_rate, ranks=1))["loss"])
    return losses


def make_config(case: Case, directory: Path) -> Config:
    """The case as a configuration of a run, through our own loader."""
    prompts = examples_per_row(case.view) * BATCH
    tree: dict[str, Any] = {
        "model": {"path": str(directory / "policy"), "dtype": "fp32", "gradient_checkpointing": False},
        "topology": {"placement": "colocated"},
        "loss": case.ours,
        "data": {
            "train": [{"source": str(ROWS_FILE), "adapter": "ranked", "limit": ROWS}],
            "view": case.view,
            "max_length": MAX_LENGTH,
        },
        "train": {"batch_size": prompts, "micro_batch_size": prompts // MICRO_BATCHES, "max_steps": STEPS},
        "output_dir": str(directory / "never-written"),
    }
    if case.reference:
        tree["references"] = [{"name": "start", "path": str(directory / "reference"), "dtype": "fp32"}]
    path = directory / "run.yaml"
    path.write_text(json.dumps(tree), encoding="utf-8")  # JSON is YAML
    return load_config(str(path))


def examples_per_row(view: str) -> int:
    return 2 if view == "unpaired" else 1


def in_file_order(config: Config) -> list[Batch]:
    """Our runs shuffle; here the rows come as in the file, again and again."""
    size, examples = config.train.batch_size, ROWS * examples_per_row(config.data.view)
    return [
        Batch("train", step, tuple((step * size + offset) % examples for offset in range(size)))
        for step in range(STEPS)
    ]


def make_batcher(material: Material) -> PolicyBatcher:
    """As few forwards as our limits allow: TRL's side accumulates as many."""
    layout = material.speakers[POLICY].layout(material.config.model)
    return replace(material.batcher(layout, rank=0, size=1, device=CPU), alike=1)


def make_references(material: Material) -> ColocatedReferences:
    scorers = [
        ReferenceScorer(
            name=reference.name,
            forward=torch.no_grad()(partial(score, load_scorer(reference, torch.float32, trainable=False))),
            encodings=material.speakers[reference.name].encodings,
            layout=material.speakers[reference.name].layout(reference),
            batch_tokens=reference.batch_tokens,
            rank=0,
            size=1,
            device=CPU,
        )
        for reference in material.config.references
    ]
    return ColocatedReferences(scorers, material.speakers[POLICY].encodings, CPU)


def check_tokens(batch: PolicyBatch, rows: list[dict[str, Any]]) -> None:
    """Stop unless every sequence that is trained on is one of the material's, which TRL's side checks as well."""
    known = {tuple(row["prompt_ids"]): len(row["prompt_ids"]) - 1 for row in rows}  # ORPO scores prompts too
    known |= {(*row["prompt_ids"], *ids): len(ids) for row in rows for ids in row["response_ids"]}
    for micro in batch.micros:
        sequences = micro.sequences
        assert sequences.segments is not None
        seen = visible(sequences.segments, sequences.position_ids, None)
        numbers = sequences.places // sequences.table[1]
        for number, count in enumerate(numbers.bincount().tolist()):
            last = int((numbers == number).nonzero().max())
            row, column = divmod(int(sequences.predictors[last]), sequences.input_ids.shape[1])
            ids = [*sequences.input_ids[row][seen[row, column]].tolist(), int(sequences.targets[last])]
            assert known.get(tuple(ids)) == count, "tokens that TRL does not see"


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
