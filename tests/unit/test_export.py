"""What export will write, before and after: names and shapes of the input, files as transformers reads them."""

import json
from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from mrpo_ds import export
from mrpo_ds.config.schema import ModelConfig
from mrpo_ds.errors import ConfigError
from mrpo_ds.export import check_names, checkpoint_shapes, export_model, exported_shapes
from mrpo_ds.models import load_scorer, load_tokenizer
from tests.support import make_model


def shape_of(parameter):
    return tuple(parameter.shape)


@pytest.fixture(params=["llama", "gemma3", "qwen2"])
def source(request, tmp_path):
    return make_model(tmp_path / "in" / request.param, request.param)


def loaded(path):
    return load_scorer(ModelConfig(path=str(path)), torch.float32, trainable=True).model


def write(path, target):
    model = loaded(path)
    shapes = exported_shapes(model, shape_of)
    tokenizer = load_tokenizer(ModelConfig(path=str(path)))
    export_model(model, tokenizer, shapes, target, lambda parameters: nullcontext(), True)
    return model


def test_names_and_shapes_are_those_of_the_input(source):
    model = loaded(source)
    shapes = exported_shapes(model, shape_of)
    assert shapes == checkpoint_shapes(str(source))  # a tied head stands once
    check_names(str(source), shapes, model)


def test_an_unchanged_model_comes_out_as_it_went_in(source, tmp_path):
    write(source, tmp_path / "out")
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {path.name for path in source.iterdir()} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert not list(tmp_path.glob(".*"))


def test_several_files_load_as_one_model(source, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "SHARD_BYTES", 20_000)
    model = write(source, tmp_path / "out")
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert checkpoint_shapes(str(tmp_path / "out")) == checkpoint_shapes(str(source))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model.eval()(ids).logits)


def test_an_older_export_is_replaced_as_a_whole(source, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model-00001-of-00009.safetensors").write_text("old")
    write(source, tmp_path / "out")
    assert not (tmp_path / "out" / "model-00001-of-00009.safetensors").exists()


def test_the_index_says_which_file_has_which_tensor(source, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "SHARD_BYTES", 20_000)
    write(source, tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    for name, file in index["weight_map"].items():
        assert name in load_file(tmp_path / "out" / file)


def test_sampling_settings_that_transformers_would_not_save_do_not_cost_the_export(tmp_path):
    """Llama 2 and others ship a temperature with do_sample off; save_pretrained refuses that, after the training."""
    path = make_model(tmp_path / "llama")
    settings = {"do_sample": False, "temperature": 0.6, "top_p": 0.9, "eos_token_id": 2}
    (path / "generation_config.json").write_text(json.dumps(settings))
    write(path, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert {key: written.get(key) for key in ("temperature", "top_p", "eos_token_id")} == {
        "temperature": 0.6,
        "top_p": 0.9,
        "eos_token_id": 2,
    }


def test_an_architecture_whose_weights_are_fused_on_loading_is_refused_before_training(tmp_path):
    """Mixtral's experts are many tensors on disk and one in memory: written as they are, nothing could load them."""
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    MixtralForCausalLM(MixtralConfig(vocab_size=100, num_local_experts=2, **shape)).save_pretrained(tmp_path)
    model = loaded(tmp_path)
    with pytest.raises(ConfigError, match=r"would not match the checkpoint .* only references can be of it"):
        check_names(str(tmp_path), exported_shapes(model, shape_of), model)
