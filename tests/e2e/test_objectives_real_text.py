"""Objectives on published text with a real model: SmolLM2-135M-Instruct, ten steps each, the real command.

Not in `make test`, because each run takes minutes on two cores: `make test-real-text`. The data lie beside the
repository (../shared/data) under licences of their own and are not copied. Every run goes over the same few rows
twice, so that its loss has to fall; what it prints is the record (-s).
"""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import ROOT, mrpo_ds, need, read_metrics, write_config

pytestmark = [pytest.mark.real_text, pytest.mark.timeout(1500)]

DATA = (ROOT / "../shared/data/preference").resolve()
SMOLLM2 = ROOT / ".cache" / "models" / "SmolLM2-135M-Instruct"
ALPACA_EVAL = {"source": str(DATA / "alpaca_eval_ranked" / "ranked.jsonl.gz"), "adapter": "alpaca_eval", "limit": 10}
MT_BENCH = {"source": str(DATA / "mt_bench_ranked" / "ranked.jsonl.gz"), "adapter": "mt_bench", "limit": 10}
KTO_DEMO = {"source": str(DATA / "llama_factory" / "kto_en_demo.jsonl.gz"), "adapter": "kto", "limit": 28}
STEPS = 10
"""Two passes over the rows of a case."""
SHOWN = {
    "loss": "loss",
    "nll_loss": "nll",
    "kl": "kl",
    "rewards/margins": "margin",
    "rewards/accuracies": "accuracy",
    "rewards/pair_accuracies": "pair acc.",
    "rewards/pair_margins": "pair margin",
    "rewards/top1": "top1",
    "perf/seconds_per_step": "seconds",
}

# name: (objective, sources, prompts a step, data.max_length, responses that some prompt has)
CASES = {
    "mppo-alpaca_eval": ("mppo", [ALPACA_EVAL], 2, 256, 8),
    "mppo-mt_bench": ("mppo", [MT_BENCH], 2, 256, 9),
    "mdpo-alpaca_eval": ("mdpo", [ALPACA_EVAL], 2, 256, 8),
    "mdpo-mt_bench": ("mdpo", [MT_BENCH], 2, 256, 9),
    "tpo-both": ("tpo", [ALPACA_EVAL, MT_BENCH], 4, 256, 3),
    "kto-demo": ("kto", [KTO_DEMO], 4, 512, 1),
}


def settings(objective: str, sources: list[dict[str, Any]], batch_size: int, max_length: int) -> dict[str, Any]:
    """The shipped configuration of an objective, on other rows and for a few minutes."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "launch" / "configs" / f"{objective}.yaml").read_text())
    for model in (config["model"], *config.get("references", [])):
        model["path"] = str(SMOLLM2)
    config["data"] |= {"train": sources, "eval": [], "eval_view": "auto", "max_length": max_length}
    config["data"] |= {"max_dropped_fraction": 0.5, "max_truncated_fraction": 1.0}  # KTO's rows have long histories
    config["train"] |= {"batch_size": batch_size, "micro_batch_tokens": 3072, "epochs": 2, "max_steps": STEPS}
    config["train"] |= {"learning_rate": 5e-5, "warmup_ratio": 0.0, "scheduler": "constant"}
    config["tracking"] = {"plots": False, "wandb": {"mode": "disabled"}}
    return config | {"deepspeed": str(ROOT / "ds_configs" / "zero3.json")}


def table(rows: list[dict[str, Any]]) -> str:
    names = [name for name in SHOWN if name in rows[0]]
    lines = ["step  " + "  ".join(f"{SHOWN[name]:>11}" for name in names)]
    for row in rows:
        values = (" " * 11 if row[name] is None else f"{row[name]:>11.4f}" for name in names)
        lines.append(f"{row['step']:>4}  " + "  ".join(values))
    return "\n".join(lines)


@pytest.mark.parametrize("name", CASES)
def test_it_learns_a_few_rows_of_real_text(name: str, tmp_path: Path) -> None:
    objective, sources, batch_size, max_length, responses = CASES[name]
    for source in sources:
        need(Path(source["source"]).is_file(), f"the public data beside the repository ({source['source']})")
    need((SMOLLM2 / "model.safetensors").is_file(), f"the model {SMOLLM2.name} (make models)")
    config = settings(objective, sources, batch_size, max_length) | {"output_dir": str(tmp_path / "run")}
    run = mrpo_ds("train", str(write_config(tmp_path / "config.yaml", config)), timeout=1400, OMP_NUM_THREADS="2")
    assert run.returncode == 0, run.stderr[-4000:]
    said = [line for line in run.stderr.splitlines() if "| train:" in line or "| policy:" in line]
    rows = read_metrics(tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["data"]["train"]["responses_per_prompt"] == responses
    print(f"\n{name}\n" + "\n".join(said) + "\n" + table(rows))
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert all(row["dropped"] == 0 for row in rows)
    losses = [row["loss"] for row in rows]
    assert rows[-1]["epoch"] == 2.0 and sum(losses[STEPS // 2 :]) < sum(losses[: STEPS // 2])
