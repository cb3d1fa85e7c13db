"""The two models of the quickstart: our numbers against plain transformers, and the memory they take."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mrpo_ds.config.load import load_config
from mrpo_ds.data.plan import Batch
from mrpo_ds.material import prepare
from mrpo_ds.models import load_scorer, score
from mrpo_ds.reference.scoring import ReferenceScorer
from tests.support import ROOT, command, need, world_of_one

pytestmark = pytest.mark.real_models

MODELS = ROOT / ".cache" / "models"
SMOLLM2, GEMMA = MODELS / "SmolLM2-135M-Instruct", MODELS / "gemma-3-270m"
HELD_OUT = ROOT / "launch" / "data" / "quickstart.heldout.jsonl"
ROWS = 6
NATS_PER_TOKEN = 1e-4
EXTRA_MIB = 1024

PEAK_OF_SCORING = """
import sys
from pathlib import Path
import torch, transformers
from mrpo_ds.config.schema import ReferenceConfig
from mrpo_ds.data.batching import Layout
from mrpo_ds.data.rendering import Encoded
from mrpo_ds.models import load_scorer, score

def mib(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024

before = mib("VmRSS")
scorer = load_scorer(ReferenceConfig(name="gemma", path=sys.argv[1]), torch.float32, trainable=False)
weights = sum(parameter.numel() * parameter.element_size() for parameter in scorer.model.parameters()) / 2**20
loaded = mib("VmHWM")
Path("/proc/self/clear_refs").write_text("5")  # start the high-water mark again, to see scoring apart from loading
ids = torch.randint(10, 250_000, (16, 512), generator=torch.Generator().manual_seed(0)).tolist()
rows = [Encoded(row, prompt_length=448) for row in ids]
with torch.no_grad():
    assert score(scorer, Layout(0).collate([[row] for row in rows])).isfinite().all()
print("MiB", before, weights, loaded, mib("VmHWM"))
"""
"""Sixteen rows of 512 tokens, 1024 of them scored: the head works in chunks, so the memory is that of any number."""


def need_models():
    """Both are made by `make models`."""
    for path in (SMOLLM2, GEMMA):
        need((path / "model.safetensors").is_file(), f"the model {path.name} (make models)")


@pytest.fixture(scope="module")
def material():
    need_models()
    overrides = [f"model.path={SMOLLM2}", f"references.0.path={SMOLLM2}", f"references.1.path={GEMMA}"]
    overrides += [f"data.{split}.0.source={HELD_OUT}" for split in ("train", "eval")]
    return prepare(load_config(str(ROOT / "launch" / "configs" / "quickstart.yaml"), overrides))


@pytest.fixture(scope="module", params=["smollm2", "gemma3"])
def scored(request, material):
    """(path of the model, what our path says of the first held-out rows)."""
    (config,) = (reference for reference in material.config.references if reference.name == request.param)
    speaker, cpu = material.speakers[config.name], torch.device("cpu")
    forward = torch.no_grad()(partial(score, load_scorer(config, torch.float32, trainable=False)))
    scorer = ReferenceScorer(config.name, forward, speaker.encodings, speaker.layout(config), 8192, 0, 1, cpu)
    with world_of_one():
        return Path(config.path), scorer.score(Batch("eval", 0, tuple(range(ROWS))))


def plain_score(model, tokenizer, prompt, response):
    """(log-prob, tokens) of an answer as a reader of the model cards would compute it, one row, no padding."""
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": prompt}]
        given = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    else:
        given = tokenizer(f"Human:\n{prompt}\n\nAssistant:\n").input_ids
        assert given[0] == tokenizer.bos_token_id
        end = tokenizer.eos_token_id
    answer = [*tokenizer(response, add_special_tokens=False).input_ids, end]
    with torch.no_grad():
        logps = model(torch.tensor([[*given, *answer]])).logits[0].double().log_softmax(-1)
    return float(logps[len(given) - 1 : -1].gather(1, torch.tensor(answer)[:, None]).sum()), len(answer)


def test_scores_are_those_of_plain_transformers(scored):
    path, ours = scored
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    worst = 0.0
    for b, line in enumerate(HELD_OUT.read_text(encoding="utf-8").splitlines()[:ROWS]):
        row = json.loads(line)
        for r, response in enumerate((row["responses"][0], row["responses"][-1])):
            logp, tokens = plain_score(model, tokenizer, row["prompt"], response)
            assert ours.lengths[b, r].item() == tokens
            worst = max(worst, abs(ours.logps[b, r].item() - logp) / tokens)
    print(f"{path.name}: at most {worst:.1e} nats per token from plain transformers")
    assert worst < NATS_PER_TOKEN


def test_real_models_find_good_prose_likely(scored):
    """A wrong template, shift or mask would show here: untrained text is above 10 nats per token."""
    _, ours = scored
    assert 1.0 < (-ours.logps / ours.lengths).mean().item() < 4.0


def test_scoring_a_vocabulary_of_262144_takes_little_more_than_the_weights():
    need_models()
    run = command(["-c", PEAK_OF_SCORING, str(GEMMA)])
    assert run.returncode == 0, run.stderr[-3000:]
    before, weights, loading, scoring = map(float, run.stdout.split("MiB")[1].split())
    print(
        f"gemma-3-270m, 8192 tokens, fp32: weights {weights:.0f} MiB; above them and the imports' {before:.0f} MiB at "
        f"most {loading - before - weights:.0f} MiB while loading, {scoring - before - weights:.0f} MiB while scoring"
    )
    assert max(loading, scoring) < before + weights + EXTRA_MIB
