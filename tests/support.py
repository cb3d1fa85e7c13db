"""Tiny real models, tokenizers and data made in the test; helpers that run real processes."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import yaml
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Llama4ForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

NOBODY = 65534
ROOT = Path(__file__).resolve().parents[1]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = [
    "What is the capital of France? Paris is the capital of France.",
    "Write a short poem about the sea and the wind in winter.",
    "Two plus two is four, and three times three is nine.",
    "I am sorry, I cannot help with that, but here is another idea.",
]


def make_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Preference rows with varied lengths; the chosen answer is the one that names its number."""
    names = ["red", "green", "blue", "white", "black", "amber", "violet"]
    rows = []
    for index in range(count):
        name = names[(index + seed) % len(names)]
        rows.append(
            {
                "prompt": f"Question {index + seed}: which colour comes after {name}" + " please" * (index % 5) + "?",
                "chosen": f"After {name} comes {names[(index + seed + 1) % len(names)]}"
                + ", I believe" * (index % 3)
                + ".",
                "rejected": "I do not know" + " at all" * ((index + seed) % 4) + ".",
            }
        )
    return rows


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def bpe_tokenizer(vocab_size: int = 400, chat: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, with a ChatML template unless chat is false."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    if chat:
        fast.chat_template = CHATML
    return fast


def digit_tokenizer() -> PreTrainedTokenizerFast:
    """Another family: bytes cut into single characters, with a BOS, no chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("."), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<bos>", "<eos>", "<pad>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")


def make_model(directory: Path, family: str = "llama", seed: int = 0, scale: float = 0.3) -> Path:
    """Save a two-layer model with its tokenizer. scale widens the weights, so that log-probs differ visibly."""
    torch.manual_seed(seed)
    tokenizer = digit_tokenizer() if family == "gemma3" else bpe_tokenizer()
    common: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": scale,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if family == "gemma3":
        config = Gemma3TextConfig(**common, head_dim=8, sliding_window=16, final_logit_softcapping=20.0)
        model: Any = Gemma3ForCausalLM(config)
    elif family == "mamba":  # a state space: it has no attention, and knows of no positions
        names = ("vocab_size", "hidden_size", "num_hidden_layers", "initializer_range", "eos_token_id", "pad_token_id")
        model = MambaForCausalLM(MambaConfig(**{name: common[name] for name in names}, state_size=4))
    elif family == "llama4":  # one of its layers attends within chunks
        experts = {"num_local_experts": 2, "head_dim": 8, "intermediate_size_mlp": 64}
        kinds = ["chunked_attention", "full_attention"]
        model = Llama4ForCausalLM(Llama4TextConfig(**common, **experts, attention_chunk_size=16, layer_types=kinds))
    elif family == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**common, tie_word_embeddings=False))
    else:
        model = LlamaForCausalLM(LlamaConfig(**common, tie_word_embeddings=True))
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def base_config(root: Path, references: int = 2) -> dict[str, Any]:
    """A complete tiny run below root: models, data and settings. RefM1 is the policy's own start."""
    families = ["llama", "gemma3", "qwen2"]
    paths = [root / "models" / family for family in families]
    for seed, (family, path) in enumerate(zip(families, paths, strict=True)):
        if not path.exists():
            make_model(path, family, seed)
    data = root / "data"
    data.mkdir(parents=True, exist_ok=True)
    train, held_out = data / "train.jsonl", data / "eval.jsonl"
    if not train.exists():
        write_jsonl(train, make_rows(40))
        write_jsonl(held_out, make_rows(10, seed=100))
    return {
        "model": {"path": str(paths[0]), "dtype": "fp32", "gradient_checkpointing": False},
        "references": [
            {"name": f"ref{index + 1}", "path": str(paths[index]), "dtype": "fp32"} for index in range(references)
        ],
        "topology": {"policy": 1, "timeout_seconds": 60},
        "loss": {"name": "mrpo", "beta": 0.1} if references else {"name": "dpo"},
        "data": {
            "train": [{"source": str(train)}],
            "eval": [{"source": str(held_out)}],
            "max_length": 256,
        },
        "train": {"batch_size": 8, "micro_batch_size": 4, "max_steps": 4, "learning_rate": 1e-3, "epochs": 9},
        "deepspeed": str(ROOT / "ds_configs" / "zero3.json"),
        "checkpoint": {"every_steps": 0},
        "evaluate": {"every_steps": 0, "samples": {"held_out": 0}},
        "tracking": {"plots": False, "wandb": {"mode": "disabled"}},
        "output_dir": str(root / "run"),
    }


def make_task_files(root: Path) -> None:
    """Files for `mrpo-ds eval-mirror` with rows written here: ARC-easy, GSM8K, MMLU's 57 subjects, sports of BBH."""
    from importlib.metadata import distribution

    folder = Path(str(distribution("lm_eval").locate_file("lm_eval"))) / "tasks" / "mmlu" / "default"
    subjects = [path.stem.removeprefix("mmlu_") for path in sorted(folder.glob("mmlu_*.yaml"))]
    words = ["red", "green", "blue", "white", "black", "amber", "violet"]
    arc, mmlu = [], []
    for index in range(120):
        texts = [words[(index + step) % 7] for step in (1, 3, 4, 6)]
        question = f"Which colour is number {index}, after {words[index % 7]}?"
        choices = {"text": texts, "label": ["A", "B", "C", "D"]}
        arc.append({"id": f"q{index}", "question": question, "choices": choices, "answerKey": "ABCD"[index % 4]})
    for split, count in (("dev", 5), ("test", 3)):
        for place, subject in enumerate(subjects):
            for index in range(count):
                row = {"question": f"{split} question {index} of {subject}", "subject": subject}
                mmlu.append((split, {**row, "choices": ["one", "two", "three", "four"], "answer": (index + place) % 4}))
    maths = [
        {"question": f"Ann has {n} pens and buys {n}. How many?", "answer": f"{n} + {n} = {2 * n}\n#### {2 * n}"}
        for n in range(2, 30)
    ]
    sports = [
        {"input": f"Is it plausible that {word} scored?", "target": "yes" if "e" in word else "no"} for word in words
    ]
    files = {
        "arc/ARC-Easy.validation": arc,
        "gsm8k/test": maths[:14],
        "gsm8k/train_fewshot": maths[14:],
        "mmlu/dev": [row for split, row in mmlu if split == "dev"],
        "mmlu/test": [row for split, row in mmlu if split == "test"],
        "bbh/sports_understanding": sports,
    }
    for name, rows in files.items():
        path = root / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(path, rows)


def write_config(path: Path, config: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def need(available: bool, what: str) -> None:
    """Skip the test when something of the machine is missing; in CI, where everything is made, fail instead."""
    if available:
        return
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(f"CI must have {what}")
    pytest.skip(f"needs {what}")


@contextmanager
def world_of_one() -> Iterator[None]:
    """A gloo process group of this process alone, without a socket, for what asks for its world's size."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def unprivileged() -> Iterator[None]:
    """Without the rights of root, who may read and write anywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def command_environment(**environment: str) -> dict[str, str]:
    """The environment of a real command: one thread a process, no launcher's variables."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT), **environment}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        if name not in environment:
            env.pop(name, None)
    return env


def command(arguments: list[str], timeout: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a real command line of the project with this interpreter, one thread a process."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=command_environment(**environment),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def mrpo_ds(*arguments: str, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `mrpo-ds ...`."""
    return command(["-m", "mrpo_ds", *arguments], timeout, **environment)


def read_metrics(run_dir: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / name).read_text(encoding="utf-8").splitlines()]


def without_clock(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a metrics file without what the clock and the machine decide: the rest must repeat to the bit."""
    ends = ("wait_seconds", "score_seconds", "tokens_per_second", "stored_fraction", "idle_fraction", "memory_gib")
    ends = tuple(f"/{end}" for end in ends)
    return [
        {name: value for name, value in row.items() if not name.startswith("perf/") and not name.endswith(ends)}
        for row in rows
    ]
