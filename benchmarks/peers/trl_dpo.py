"""TRL's side of bench_step: its DPOTrainer on given token ids. Runs in TRL's virtual environment.

    python benchmarks/peers/trl_dpo.py TASK.json

The task names the model, the pairs as token ids, the sizes and where to write: see bench_step.peer_task.
"""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
import trl


class Clock(transformers.TrainerCallback):  # type: ignore[misc]
    """Seconds of every optimizer step. Fetching its rows comes before, and is not counted."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        synchronize()
        self._started = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        synchronize()
        self.seconds.append(time.perf_counter() - self._started)


def main(task: dict[str, Any]) -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    clock = Clock()
    with tempfile.TemporaryDirectory() as output_dir:
        trainer = trl.DPOTrainer(
            model=load(task),
            ref_model=load(task),
            args=settings(task, output_dir),
            processing_class=transformers.AutoTokenizer.from_pretrained(task["model"]),
            train_dataset=datasets.Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
            callbacks=[clock],
        )
        pairs = json.loads(Path(task["pairs"]).read_text(encoding="utf-8"))
        trainer.train_dataset = datasets.Dataset.from_list(pairs)  # in place of one row that it has tokenized
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    found = {
        "losses": [entry["loss"] for entry in logged],
        "chosen": [entry["logps/chosen"] for entry in logged],
        "seconds": clock.seconds,
        "memory_gib": peak_memory_gib(),
        "versions": {module.__name__: module.__version__ for module in (trl, transformers, torch)},
    }
    Path(task["out"]).write_text(json.dumps(found), encoding="utf-8")


def settings(task: dict[str, Any], output_dir: str) -> trl.DPOConfig:
    """The same optimization as ours; what TRL can switch off is off."""
    return trl.DPOConfig(
        output_dir=output_dir,
        max_steps=task["steps"],
        per_device_train_batch_size=task["per_device"],
        gradient_accumulation_steps=task["pairs_a_step"] // task["per_device"],
        train_sampling_strategy="sequential",
        learning_rate=task["learning_rate"],
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        max_length=task["max_length"],
        beta=task["beta"],
        bf16=task["dtype"] == "bf16",
        use_cpu=task["device"] == "cpu",
        gradient_checkpointing=task["gradient_checkpointing"],
        use_liger_kernel=task["liger"],
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def load(task: dict[str, Any]) -> Any:
    """The model in the task's precision: with bf16 its weights too, which is TRL's quickest."""
    dtype = torch.bfloat16 if task["dtype"] == "bf16" else torch.float32
    return transformers.AutoModelForCausalLM.from_pretrained(task["model"], dtype=dtype, attn_implementation="sdpa")


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory_gib() -> float:
    """Peak GPU memory where there is a GPU, else peak resident memory, as ours is taken."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
