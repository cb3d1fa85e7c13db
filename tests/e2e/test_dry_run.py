"""A dry run before the first step: it changes no number, and a lack of memory ends the run with advice."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.conftest import Runs
from tests.short_of_memory import VARIABLE
from tests.support import ROOT, base_config, bpe_tokenizer, without_clock, write_config
from tests.warm import Finished, Warm

ENOUGH, TOO_LITTLE = "4096", "48"
"""MiB from the dry run on. A forward and backward of the wide model below takes some 300."""


def config_of(root: Path, dry_run: bool | None, **train: Any) -> dict[str, Any]:
    values = base_config(root, references=0)
    values["topology"]["policy"] = 2
    values["loss"] = {"name": "simpo"}
    values["train"] |= {"max_steps": 3, "micro_batch_size": None, "dry_run": dry_run, **train}
    return values | {"checkpoint": {"every_steps": 2}}


@pytest.mark.parametrize("offloaded", [False, True], ids=["torch's AdamW", "DeepSpeed's"])
def test_a_dry_run_changes_no_bit(warm_runs: Runs, offloaded: bool) -> None:
    name = "zero3_offload" if offloaded else "zero3"
    sharding = {"deepspeed": str(ROOT / "ds_configs" / f"{name}.json")}
    config = config_of(warm_runs.root, True) | sharding
    config["model"]["activation_offload"] = True
    with_it = warm_runs.train(f"with, {name}", config)
    without = warm_runs.train(f"without, {name}", config_of(warm_runs.root, None) | sharding)
    assert "dry run: the longest micro-batch (" in with_it.process.stderr
    assert with_it.process.stderr.count("model.activation_offload has no effect here: on a CPU") == 1
    assert "dry run" not in without.process.stderr, "by itself on GPUs only"
    assert without_clock(with_it.metrics) == without_clock(without.metrics)
    assert len({row["loss"] for row in with_it.metrics}) == 3
    weights = [(run.directory / "model" / "model.safetensors").read_bytes() for run in (with_it, without)]
    assert weights[0] == weights[1]
    resumed = warm_runs.train(
        f"resumed, {name}", config_of(warm_runs.root, True) | sharding, "--resume",
        str(without.directory / "checkpoints" / "step-00000002"),
    )  # fmt: skip
    assert "dry run: the longest" in resumed.process.stderr
    assert without_clock(resumed.metrics)[-1] == without_clock(without.metrics)[-1]


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llama of 4 layers, 256 wide: a token's activations are some 0.1 MiB."""
    path = tmp_path_factory.mktemp("wide")
    torch.manual_seed(0)
    tokenizer = bpe_tokenizer()
    shape = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=512, **shape)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def train_within(warm: Warm, config: Path, limits: tuple[str, str]) -> Finished:
    """Two ranks, each with its limit."""
    return warm("train", str(config), timeout=120, own=[{VARIABLE: limit} for limit in limits])


@pytest.mark.parametrize("limits", [(TOO_LITTLE, TOO_LITTLE), (ENOUGH, TOO_LITTLE), (TOO_LITTLE, ENOUGH)], ids=str)
def test_what_does_not_fit_ends_every_rank_with_what_to_lower(
    tmp_path: Path, warm: Warm, wide_model: Path, limits: tuple[str, str]
) -> None:
    values = config_of(tmp_path, True, batch_size=40)
    values["model"]["path"] = str(wide_model)
    config = write_config(tmp_path / "run.yaml", values | {"output_dir": str(tmp_path / "run")})
    run = train_within(warm, config, limits)
    assert run.codes == [2, 2] and "Traceback" not in run.stderr
    (said,) = [line for line in run.stderr.splitlines() if line.startswith("mrpo-ds: error: ")]
    assert "out of memory in the dry run of the longest micro-batch (" in said and "GiB used by this rank, 0.0" in said
    assert said.endswith(
        "Lower, in this order, until it fits: train.micro_batch_tokens to less than 1270; "
        "set model.gradient_checkpointing=true; more ranks than topology.policy=2."
    )
    failed = [rank for rank, limit in enumerate(limits) if limit == TOO_LITTLE]
    assert any(f"policy rank {rank}" in said for rank in failed)


def test_with_enough_memory_the_same_run_trains(tmp_path: Path, warm: Warm, wide_model: Path) -> None:
    values = config_of(tmp_path, True, batch_size=40, max_steps=1)
    values["model"]["path"] = str(wide_model)
    config = write_config(tmp_path / "run.yaml", values | {"output_dir": str(tmp_path / "run")})
    assert train_within(warm, config, (ENOUGH, ENOUGH)).codes == [0, 0]
