"""Llama-shaped models with random weights and a real tokenizer, made where a benchmark runs."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import SMOLLM2

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")


@dataclass(frozen=True)
class Shape:
    """Of a model."""

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    tied: bool = True


SHAPES = {
    "tiny": Shape(49152, 32, 64, 2, 2, 1),
    "8m": Shape(49152, 128, 384, 8, 4, 2),
    "30m": Shape(49152, 384, 1024, 8, 6, 2),
    "135m": Shape(49152, 576, 1536, 30, 9, 3),  # SmolLM2-135M
    "360m": Shape(49152, 960, 2560, 32, 15, 5),  # SmolLM2-360M
    "1b": Shape(128256, 2048, 8192, 16, 32, 8),  # Llama 3.2 1B
}


def save_synthetic(name: str, directory: Path, tokenizer: Path = SMOLLM2, seed: int = 0, dtype: str = "fp32") -> Path:
    """Save a model of a shape, with the tokenizer of another, into a new directory. dtype: of its weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    shape = SHAPES[name]
    special = _special_ids(tokenizer)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=8192,
        rope_theta=100000.0,
        tie_word_embeddings=shape.tied,
        **special,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config).to(torch.bfloat16 if dtype == "bf16" else torch.float32)
    model.save_pretrained(directory)
    for file in TOKENIZER_FILES:
        if (tokenizer / file).exists():
            shutil.copy(tokenizer / file, directory / file)
    return directory


def parameters(path: Path) -> dict[str, int]:
    """Numbers of a model that arithmetic is counted from: all parameters, and the size of its shape."""
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    return {
        "parameters": sum(_sizes(path)),
        "vocabulary": config["vocab_size"],
        "hidden": config["hidden_size"],
        "layers": config["num_hidden_layers"],
    }


def _sizes(path: Path) -> list[int]:
    """Numbers in each tensor of the safetensors of a directory, from their headers."""
    sizes = []
    for file in path.glob("*.safetensors"):
        with file.open("rb") as opened:
            header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        for name, tensor in header.items():
            if name != "__metadata__":
                size = 1
                for length in tensor["shape"]:
                    size *= length
                sizes.append(size)
    return sizes


def _special_ids(tokenizer: Path) -> dict[str, Any]:
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    return {name: getattr(loaded, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
