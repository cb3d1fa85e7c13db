"""TRL's side: its own trainers on the rows and models that material.py made. Runs in TRL's virtual environment.

    python peer.py MODEL MATERIAL CASE...     writes MATERIAL/peer.json

Each trainer gets the rendered prompt and the responses as plain text, so that it tokenizes and collates for itself; it
closes a response with the EOS token, which is these models' end of turn. (Given messages instead, DPOTrainer would
also score the newline that the chat template writes after the end of turn, and CPOTrainer would add a second EOS.)
What its collator makes of them is then held against our token ids, batch by batch.
"""

import importlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
import trl
from cases import BATCH, CASES, MAX_LENGTH, ROWS, STEPS, Case

Row = dict[str, Any]
Sequence = tuple[tuple[int, ...], int]
"""Token ids of prompt and response, and how many of the last ones are scored."""


def main(model: str, material: Path, names: list[str]) -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    rows = json.loads((material / "rows.json").read_text(encoding="utf-8"))
    runs = {}
    for name in names:
        runs[name] = train(CASES[name], CASES[name].rate(model), rows, material)
        print(f"TRL   {name:24s}", " ".join(f"{loss:.6f}" for loss in runs[name]), flush=True)
    versions = {module.__name__: module.__version__ for module in (trl, transformers, torch)}
    (material / "peer.json").write_text(json.dumps({"versions": versions, "runs": runs}), encoding="utf-8")


def train(case: Case, learning_rate: float | None, rows: list[Row], material: Path) -> list[float]:
    """The losses of STEPS plain SGD steps, each from before its update."""
    module, _, prefix = case.trainer.partition(":")
    package = importlib.import_module(module)
    unpaired = prefix == "KTO"
    with tempfile.TemporaryDirectory() as output_dir:
        options = getattr(package, f"{prefix}Config")(
            output_dir=output_dir,
            max_steps=STEPS,
            per_device_train_batch_size=(2 * BATCH if unpaired else BATCH) // case.accumulate,
            gradient_accumulation_steps=case.accumulate,
            train_sampling_strategy="sequential",
            learning_rate=learning_rate,
            lr_scheduler_type="constant",
            optim="sgd",
            max_grad_norm=0.0,  # no clipping
            max_length=MAX_LENGTH,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **case.theirs,
        )
        trainer = getattr(package, f"{prefix}Trainer")(
            model=load(material / "policy"),
            args=options,
            processing_class=transformers.AutoTokenizer.from_pretrained(material / "policy"),
            train_dataset=datasets.Dataset.from_list(unpaired_rows(rows) if unpaired else paired_rows(rows, case.view)),
            **({"ref_model": load(material / "reference")} if case.reference else {}),
        )
        if unpaired and not case.own_mismatch:
            give_mismatch(trainer, rows)
        check_tokens(trainer, case, rows)
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def load(path: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="sdpa")


def paired_rows(rows: list[Row], view: str) -> list[Row]:
    """What DPO, CPO, ORPO and TPO trainers read; TPO's "reference" is the gold response."""
    keys = ("chosen", None, "rejected") if view == "pair" else ("reference", "chosen", "rejected")
    return [
        {"prompt": row["prompt"]} | {key: text for key, text in zip(keys, row["responses"], strict=True) if key}
        for row in rows
    ]


def unpaired_order() -> list[tuple[int, int]]:
    """(row, column) of the KTO trainer's rows: of every batch the chosen responses, then the rejected, last row first.

    The loss does not depend on the order, but TRL's mismatch does: it gives a row the completion before it. So ordered,
    that is the response of the same column to the batch's next prompt, as ours except at the end of a batch.
    """
    return [
        (start + offset, column)
        for start in range(0, ROWS, BATCH)
        for column in (0, -1)
        for offset in reversed(range(BATCH))
    ]


def unpaired_rows(rows: list[Row]) -> list[Row]:
    """What the KTO trainer reads."""
    return [
        {"prompt": rows[row]["prompt"], "completion": rows[row]["responses"][column], "label": column == 0}
        for row, column in unpaired_order()
    ]


def give_mismatch(trainer: Any, rows: list[Row]) -> None:
    """Replace the trainer's mismatched completions by ours: those of the file's next prompt."""
    ours = [rows[(row + 1) % ROWS]["response_ids"][column] for row, column in unpaired_order()]
    name = "KL_completion_ids"
    trainer.train_dataset = trainer.train_dataset.remove_columns(name).add_column(name, ours)


def check_tokens(trainer: Any, case: Case, rows: list[Row]) -> None:
    """Stop unless TRL's batches hold our token ids, all of them and no others, with the same tokens scored."""
    columns = (0, 1, 2) if case.view == "triple" else (0, -1)
    if case.theirs.get("tpo_alpha") == 0:
        columns = (1, 2)  # the gold response is not read
    batches = list(trainer.get_train_dataloader())
    size = BATCH // case.accumulate
    assert len(batches) == ROWS // size, f"{len(batches)} batches"
    for number, batch in enumerate(batches):
        mine = range(number * size, (number + 1) * size)
        ours = [sequence(rows[row], rows[row], column) for row in mine for column in columns]
        assert sorted(sequences(batch)) == sorted(ours), f"batch {number}: TRL made other tokens of the same rows"
        if "KL_input_ids" in batch:
            following = {row: mine[0] if case.own_mismatch and row == mine[-1] else (row + 1) % ROWS for row in mine}
            ours = [sequence(rows[row], rows[following[row]], column) for row in mine for column in columns]
            assert sorted(sequences(batch, "KL_")) == sorted(ours), f"batch {number}: other mismatched pairs"


def sequence(row: Row, answered: Row, column: int) -> Sequence:
    """Our ids of a row's prompt with a response of a row."""
    response = answered["response_ids"][column]
    return (*row["prompt_ids"], *response), len(response)


def sequences(batch: dict[str, torch.Tensor], prefix: str = "") -> list[Sequence]:
    """The sequences of a padded batch of any of the trainers, without the padding."""
    found = []
    for name in (prefix, "chosen_", "rejected_"):
        if f"{name}input_ids" not in batch:
            continue
        real = batch[f"{name}attention_mask"].bool()
        mask = batch.get(f"{name}completion_mask")
        scored = batch[f"{name}labels"] != -100 if mask is None else mask.bool()
        for row, ids in enumerate(batch[f"{name}input_ids"]):
            count = int(scored[row].sum())
            assert scored[row][real[row]][-count:].all(), "scored tokens are not the last ones"
            found.append((tuple(ids[real[row]].tolist()), count))
    return found


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
