"""On one GPU: every role shares it, bf16 trains, and float32 numbers are those of the CPU."""

import math
from functools import partial

import pytest
import torch
from transformers import AutoModelForCausalLM

from mrpo_ds.config.schema import ReferenceConfig
from mrpo_ds.data.batching import Layout
from mrpo_ds.data.rendering import Encoded
from mrpo_ds.models import load_scorer, resolve_dtype, score
from mrpo_ds.ops.logps import selected_logps
from mrpo_ds.preflight import check_selected_logps, unfit_for_packing
from tests.support import base_config, make_model, mrpo_ds, read_metrics, write_config

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

ON_GPU = {"DS_ACCELERATOR": "cuda"}
ON_CPU = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
STEPS = 6


def gpu():
    return torch.device("cuda", 0)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("gpu")


@pytest.fixture(scope="module")
def train(root):
    """(name, environment, dtype, placement, loss) -> the run's directory; the quickstart's roles on one GPU."""
    done = {}

    def run(name, environment, dtype="fp32", placement="served", loss="mrpo"):
        if name not in done:
            config = base_config(root)
            for model in (config["model"], *config["references"]):
                model["dtype"] = dtype
            config["loss"] = {"name": loss, "beta": 0.1}
            config["topology"] |= {"policy": 1, "placement": placement, "share_gpus": True}
            config["train"] |= {"max_steps": STEPS, "learning_rate": 1e-4}
            config["output_dir"] = str(root / name)
            path = write_config(root / f"{name}.yaml", config)
            process = mrpo_ds("train", str(path), **environment)
            assert process.returncode == 0, process.stderr[-4000:]
            done[name] = root / name, process.stderr
        return done[name]

    return run


def column(directory, name):
    return [row[name] for row in read_metrics(directory)]


def test_all_roles_share_one_gpu_in_bf16(train):
    directory, console = train("bf16", ON_GPU, dtype="auto")
    assert "in bfloat16 on 1 x cuda" in console
    rows = read_metrics(directory)
    assert len(rows) == STEPS and all(math.isfinite(value) for row in rows for value in row.values())
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[0]["perf/memory_gib"] > 0
    model = AutoModelForCausalLM.from_pretrained(directory / "model", dtype="auto")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_bf16_stays_near_float32(train):
    narrow, wide = train("bf16", ON_GPU, dtype="auto")[0], train("gpu", ON_GPU)[0]
    for reference in ("ref1", "ref2"):
        name = f"ref/{reference}/logps/chosen"
        assert column(narrow, name) == pytest.approx(column(wide, name), rel=0.05)


def test_dpo_starts_at_ln_2_in_bf16(train):
    """The policy under DeepSpeed and the reference beside it round alike, or the first margin is noise."""
    directory, _ = train("dpo", ON_GPU, dtype="bf16", loss="dpo")
    assert column(directory, "loss")[0] == pytest.approx(math.log(2), abs=5e-2)


def test_float32_numbers_are_those_of_the_cpu(train):
    ours, theirs = train("gpu", ON_GPU)[0], train("cpu", ON_CPU)[0]
    assert column(ours, "loss")[0] == pytest.approx(column(theirs, "loss")[0], abs=1e-4)
    assert column(ours, "loss") == pytest.approx(column(theirs, "loss"), abs=2e-3)
    assert column(ours, "grad_norm") == pytest.approx(column(theirs, "grad_norm"), rel=2e-2)
    for name in ("logps/chosen", "ref/ref1/logps/chosen", "ref/ref2/logps/rejected", "vref/logps/chosen"):
        assert column(ours, name) == pytest.approx(column(theirs, name), rel=1e-4)
    assert column(ours, "num_tokens") == column(theirs, "num_tokens")


def test_colocated_and_served_agree_on_the_gpu(train):
    ours, theirs = train("gpu", ON_GPU)[0], train("colocated", ON_GPU, placement="colocated")[0]
    assert column(ours, "loss") == pytest.approx(column(theirs, "loss"), abs=1e-4)
    name = "ref/ref2/logps/chosen"
    assert column(ours, name) == pytest.approx(column(theirs, name), rel=1e-6)


@pytest.fixture(params=["llama", "gemma3", "qwen2"])
def family(request, root):
    path = root / "models" / request.param
    return path if path.exists() else make_model(path, request.param)


ROWS = [Encoded([5 + (7 * index + row) % 200 for index in range(20 + 9 * row)], 6 + row) for row in range(5)]


@pytest.mark.parametrize("packed", [True, False])
def test_scores_are_those_of_the_cpu(family, packed):
    scorer = load_scorer(ReferenceConfig(name="r", path=str(family)), torch.float32, trainable=False)
    batch = Layout(0, packed).collate([[row] for row in ROWS])
    with torch.no_grad():
        on_cpu = score(scorer, batch)
        on_gpu = score(scorer.to(gpu()), batch.to(gpu()))
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-5, atol=1e-3)


def test_preflight_passes_in_bf16(family):
    assert resolve_dtype("auto", gpu()) == torch.bfloat16
    config = ReferenceConfig(name="r", path=str(family))
    scorer = load_scorer(config, torch.bfloat16, trainable=False).to(gpu())
    check_selected_logps(scorer, torch.no_grad()(partial(score, scorer)), ROWS[-1], gpu(), "reference r")
    assert unfit_for_packing(scorer, torch.no_grad()(partial(score, scorer)), ROWS[-1], gpu()) == ""


def test_no_tensor_of_tokens_by_vocabulary_is_ever_held():
    """4096 tokens of a vocabulary of 150 000 would be 2.3 GiB of logits, and as much of their gradient."""
    tokens, vocabulary, width = 4096, 150_000, 128
    hidden = torch.randn(tokens, width, device=gpu(), dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(vocabulary, width, device=gpu(), dtype=torch.bfloat16).mul_(0.1).requires_grad_()
    targets = torch.randint(vocabulary, (tokens,), device=gpu())
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    selected_logps(hidden, weight, targets).sum().backward()
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before < 2**30
    assert hidden.grad.isfinite().all() and weight.grad.isfinite().all()
