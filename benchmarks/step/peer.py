"""TRL's side of compare.py: its DPOTrainer on given token ids. Runs in TRL's virtual environment.

python peer.py MODEL DIRECTORY BATCH PER_DEVICE STEPS MAX_LENGTH     reads pairs.json there and writes peer.json
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
    """Seconds of every optimizer step, data loading included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._started = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.perf_counter() - self._started)


def main(model: str, directory: Path, batch: int, per_device: int, steps: int, max_length: int) -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    pairs = json.loads((directory / "pairs.json").read_text(encoding="utf-8"))
    clock = Clock()
    with tempfile.TemporaryDirectory() as output_dir:
        options = trl.DPOConfig(
            output_dir=output_dir,
            max_steps=steps,
            per_device_train_batch_size=per_device,
            gradient_accumulation_steps=batch // per_device,
            train_sampling_strategy="sequential",
            learning_rate=1e-6,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=1.0,
            max_length=max_length,
            beta=0.1,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = trl.DPOTrainer(
            model=load(model),
            ref_model=load(model),
            args=options,
            processing_class=transformers.AutoTokenizer.from_pretrained(model),
            train_dataset=datasets.Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
            callbacks=[clock],
        )
        trainer.train_dataset = datasets.Dataset.from_list(pairs)  # in place of one row that it has tokenized
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    found = {
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "seconds": clock.seconds,
        "memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "versions": {module.__name__: module.__version__ for module in (trl, transformers, torch)},
    }
    (directory / "peer.json").write_text(json.dumps(found), encoding="utf-8")


def load(path: str) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="sdpa")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:]))
