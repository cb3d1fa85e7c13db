"""Scoring against transformers itself, one row at a time; and what loading refuses, switches off and decides."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel, LlamaForCausalLM

from mrpo_ds.config.schema import ModelConfig, ReferenceConfig
from mrpo_ds.data.batching import Layout
from mrpo_ds.data.rendering import Encoded
from mrpo_ds.errors import ConfigError
from mrpo_ds.models import (
    SequenceScorer,
    check_attention,
    load_model_config,
    load_scorer,
    load_tokenizer,
    pad_id,
    resolve_dtype,
    score,
)
from tests.families import FAMILIES, VOCABULARY, plain_logp
from tests.support import make_model

PAIRS = [(3, 5), (17, 20), (1, 1), (30, 2), (9, 31), (5, 12)]
"""(prompt, response) tokens of the rows; some are longer than the sliding window, most need padding."""


@pytest.fixture(scope="module", params=FAMILIES, ids=str)
def model(request):
    return FAMILIES[request.param]()


@pytest.fixture(scope="module")
def rows():
    generator = torch.Generator().manual_seed(1)
    return [
        Encoded(torch.randint(3, VOCABULARY, (prompt + response,), generator=generator).tolist(), prompt)
        for prompt, response in PAIRS
    ]


LAYOUTS = {"padded": Layout(0, packed=False), "packed": Layout(0), "one row": Layout(0, single_row=True)}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_batch_scores_as_plain_transformers_does_row_by_row(model, rows, layout):
    with torch.no_grad():
        batch = score(SequenceScorer(model), layout.collate([[row] for row in rows]))
        alone = torch.stack([plain_logp(model, row) for row in rows])
    assert batch.dtype == torch.float32
    torch.testing.assert_close(batch.double(), alone, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("filler", [0, 299])
def test_what_fills_the_padding_never_matters(model, rows, filler, packed):
    with torch.no_grad():
        scorer = SequenceScorer(model)
        given, other = (Layout(pad_id, packed).collate([[row] for row in rows]) for pad_id in (filler, 7))
        assert torch.equal(score(scorer, given), score(scorer, other))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_gradients_are_those_of_plain_transformers(model, rows, layout):
    """Also of the tied weight, which gets one share from the embedding and one from the head."""
    score(SequenceScorer(model), layout.collate([[row] for row in rows])).sum().backward()
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    sum(plain_logp(model, row) for row in rows).backward()
    for name, parameter in model.named_parameters():
        scale = parameter.grad.abs().max().item()
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-3, atol=1e-4 * scale, msg=name)
    model.zero_grad()


def test_a_model_without_a_head_is_refused():
    bert = BertModel(BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16))
    with pytest.raises(ConfigError, match="BertModel has no language-model head"):
        SequenceScorer(bert)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A model on disk whose configuration asks for dropout."""
    path = make_model(tmp_path_factory.mktemp("models") / "llama")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.5}))
    return path


def policy(path, **options):
    return ModelConfig(path=str(path), **options)


def some_rows():
    return Layout(0).collate([[Encoded(list(range(5, 40)), 10)], [Encoded(list(range(7, 30)), 4)]])


def test_a_policy_trains_without_dropout_and_a_reference_is_frozen(directory):
    trained = load_scorer(policy(directory), torch.float32, trainable=True)
    frozen = load_scorer(ReferenceConfig(name="r", path=str(directory)), torch.float32, trainable=False)
    assert trained.training and all(parameter.requires_grad for parameter in trained.model.parameters())
    assert not frozen.training and not any(parameter.requires_grad for parameter in frozen.model.parameters())
    values = [score(trained, some_rows()), score(trained, some_rows()), score(frozen, some_rows())]
    torch.testing.assert_close(values[0], values[1], rtol=0, atol=0)
    torch.testing.assert_close(values[0], values[2], rtol=1e-6, atol=1e-6)


def test_gradient_checkpointing_changes_no_gradient(directory):
    gradients = []
    for checkpointing in (False, True):
        config = policy(directory, gradient_checkpointing=checkpointing)
        scorer = load_scorer(config, torch.float32, trainable=True)
        flags = {
            module.gradient_checkpointing for module in scorer.modules() if hasattr(module, "gradient_checkpointing")
        }
        assert flags == {checkpointing}
        score(scorer, some_rows()).sum().backward()
        gradients.append([parameter.grad for parameter in scorer.model.parameters()])
    for without, with_it in zip(*gradients, strict=True):
        torch.testing.assert_close(without, with_it)


def test_a_model_without_the_attention_that_is_asked_for_says_what_to_set(tmp_path):
    FAMILIES["gemma2, sliding window and two soft caps"]().save_pretrained(tmp_path)
    with pytest.raises(
        ConfigError, match=r"Gemma2ForCausalLM does not support .*; set model\.attention=eager, or flex"
    ):
        load_scorer(policy(tmp_path), torch.float32, trainable=True)
    load_scorer(policy(tmp_path, attention="eager"), torch.float32, trainable=True)


@pytest.mark.parametrize("attention", ["flex_attention", "flash_attention_2"])
def test_attentions_of_gpus_are_refused_on_a_cpu(attention):
    with pytest.raises(
        ConfigError, match=rf"references\[r\]\.attention is '{attention}'; allowed: sdpa \| eager on cpu"
    ):
        check_attention(ReferenceConfig(name="r", path="x", attention=attention), torch.device("cpu"))


def test_a_model_that_cannot_recompute_its_activations_says_which_setting_to_change(directory, monkeypatch):
    monkeypatch.setattr(LlamaForCausalLM, "supports_gradient_checkpointing", False)
    with pytest.raises(ConfigError, match=r"model\.gradient_checkpointing is True, but .* \(LlamaForCausalLM\) cannot"):
        load_scorer(policy(directory, gradient_checkpointing=True), torch.float32, trainable=True)


def test_the_dtype_that_was_asked_for_is_the_one_of_all_weights(directory):
    scorer = load_scorer(policy(directory), torch.bfloat16, trainable=True)
    assert {parameter.dtype for parameter in scorer.parameters()} == {torch.bfloat16}
    assert score(scorer, some_rows()).dtype == torch.float32  # the sums are never bf16


def test_pickled_weights_are_refused(directory, tmp_path):
    """A pickle can run code. Only safetensors are read."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((directory / name).read_bytes())
    torch.save(load_file(directory / "model.safetensors"), tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="cannot load the model at"):
        load_scorer(policy(tmp_path), torch.float32, trainable=True)


def test_code_of_a_model_is_never_run(directory, tmp_path):
    config = json.loads((directory / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    marker = tmp_path / "executed"
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    for load in (load_model_config, lambda c: load_scorer(c, torch.float32, True)):
        with pytest.raises(ConfigError):
            load(policy(tmp_path))
    assert not marker.exists()


@pytest.mark.parametrize("load", [load_model_config, load_tokenizer])
def test_a_path_that_is_missing_or_empty_is_named(load, tmp_path):
    with pytest.raises(ConfigError, match=r"model path '.*nowhere' does not exist; allowed: a directory"):
        load(policy(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=str(tmp_path)):
        load(policy(tmp_path))


def test_a_model_without_a_tokenizer_says_how_to_save_one(directory, tmp_path):
    (tmp_path / "config.json").write_bytes((directory / "config.json").read_bytes())
    with pytest.raises(ConfigError, match=r"no tokenizer for the model at .* tokenizer\.save_pretrained"):
        load_tokenizer(policy(tmp_path))


@pytest.mark.parametrize(
    "pad, eos, expected", [(7, 2, 7), (0, 2, 0), (None, 2, 2), (None, None, 0)], ids=["own", "zero", "eos", "neither"]
)
def test_pad_id(pad, eos, expected):
    assert pad_id(SimpleNamespace(pad_token_id=pad, eos_token_id=eos)) == expected


@pytest.mark.parametrize("native, expected", [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_is_bf16_where_its_products_are_native(monkeypatch, native, expected):
    monkeypatch.setattr("mrpo_ds.models._cpu_multiplies_bf16", lambda: native)
    assert resolve_dtype("auto", torch.device("cpu")) == expected
    assert resolve_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert resolve_dtype("fp32", torch.device("cuda")) == torch.float32
    assert resolve_dtype("bf16", torch.device("cpu")) == torch.bfloat16
