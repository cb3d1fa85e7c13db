"""What both sides are given: a policy, a reference, and rows as text and as our token ids. Runs in our environment.

The real model is the quickstart's policy, against itself as it starts. The tiny one has two layers, random weights and
a tokenizer trained on the rows; its policy is the reference after some language modelling on other rows, so that they
differ at step 0 already and KTO's z0 is above 0.
"""

import json
from pathlib import Path
from typing import Any

import torch
from cases import ROWS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from mrpo_ds.config.schema import ModelConfig
from mrpo_ds.data.rendering import Renderer
from mrpo_ds.models import load_tokenizer
from mrpo_ds.types import Message

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT / ".cache/models/SmolLM2-135M-Instruct"
ROWS_FILE = ROOT / "launch/data/quickstart.train.jsonl"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_material(model: str, directory: Path) -> Path:
    """Write policy/, reference/ and rows.json for 'tiny' or 'SmolLM2-135M-Instruct' into a new directory."""
    logging.disable_progress_bar()
    directory.mkdir(parents=True)
    if model == "tiny":
        _save_tiny(directory)
    else:
        for name in ("policy", "reference"):
            (directory / name).symlink_to(REAL)
    _save_rows(directory)
    return directory


def _save_tiny(directory: Path) -> None:
    tokenizer = _tiny_tokenizer()
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.1,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.save_pretrained(directory / "reference")
    _learn_language(model, tokenizer)
    model.save_pretrained(directory / "policy")
    for name in ("policy", "reference"):
        tokenizer.save_pretrained(directory / name)


def _learn_language(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03)
    for row in _read_rows()[ROWS : 2 * ROWS]:
        ids = tokenizer(" ".join(row["responses"]), return_tensors="pt").input_ids
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def _tiny_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train([str(ROWS_FILE)], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHATML,
    )


def _save_rows(directory: Path) -> None:
    tokenizer = load_tokenizer(ModelConfig(path=str(directory / "policy")))
    renderer = Renderer(tokenizer, "policy", "auto", True)
    rows = []
    for row in _read_rows()[:ROWS]:
        prompt_ids = renderer.prompt_ids([Message("user", row["prompt"])])
        rows.append(
            {
                "prompt": renderer.response_text(prompt_ids),
                "responses": row["responses"],
                "prompt_ids": prompt_ids,
                "response_ids": [renderer.response_ids(text, complete=True) for text in row["responses"]],
            }
        )
    (directory / "rows.json").write_text(json.dumps(rows), encoding="utf-8")


def _read_rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in ROWS_FILE.read_text(encoding="utf-8").splitlines()]
