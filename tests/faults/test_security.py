"""Whom a run trusts: pickles and code of models, its own servers, their peers, and where secrets may not go."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mrpo_ds.config.schema import ModelConfig, ReferenceConfig
from mrpo_ds.errors import ConfigError
from mrpo_ds.models import fingerprint, load_model_config, load_scorer, load_tokenizer
from tests.conftest import Runs
from tests.support import base_config, make_model, mrpo_ds, write_config

# ---- models ----------------------------------------------------------------------------------------------------------


class Bomb:
    """Pickled, it is a call: unpickled without care, it leaves a file behind."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def pickled(source: Path, target: Path) -> Path:
    """A copy of a model with its weights in pytorch_model.bin."""
    shutil.copytree(source, target)
    torch.save(load_file(target / "model.safetensors"), target / "pytorch_model.bin")
    (target / "model.safetensors").unlink()
    return target


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("security") / "model")


@pytest.mark.parametrize("key", ["model", "references[r]"])
def test_pickled_weights_are_refused_with_the_key_that_allows_them(tmp_path: Path, model: Path, key: str) -> None:
    path = str(pickled(model, tmp_path / "pickled"))
    config = ModelConfig(path=path) if key == "model" else ReferenceConfig(name="r", path=path)
    with pytest.raises(
        ConfigError, match=r"no \*\.safetensors.*can hold code.*set " + key.replace("[", r"\[")
    ) as caught:
        load_model_config(config)
    assert f"{key}.allow_pickle=true" in str(caught.value)
    with pytest.raises(ConfigError, match="cannot load the model at"):
        load_scorer(config, torch.float32, trainable=False)


def test_pickled_weights_are_the_same_when_they_are_allowed(tmp_path: Path, model: Path) -> None:
    config = ModelConfig(path=str(pickled(model, tmp_path / "pickled")), allow_pickle=True)
    load_model_config(config)
    ours, theirs = (load_scorer(c, torch.float32, True).state_dict() for c in (config, ModelConfig(path=str(model))))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items()) and len(ours) == len(theirs)
    before = fingerprint(config)
    tensors = torch.load(tmp_path / "pickled" / "pytorch_model.bin", weights_only=True)
    tensors["model.norm.weight"] += 1
    torch.save(tensors, tmp_path / "pickled" / "pytorch_model.bin")
    assert fingerprint(config) != before


def test_a_pickle_that_calls_something_is_refused_even_then(tmp_path: Path, model: Path) -> None:
    target = pickled(model, tmp_path / "pickled")
    torch.save({"model.norm.weight": Bomb(tmp_path / "executed")}, target / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="cannot load the model at"):
        load_scorer(ModelConfig(path=str(target), allow_pickle=True), torch.float32, trainable=True)
    assert not (tmp_path / "executed").exists()


def with_code(source: Path, target: Path) -> Path:
    """A copy of a model that is of a class of its own, in a Python file beside it, which leaves a mark when it runs."""
    shutil.copytree(source, target)
    values = json.loads((target / "config.json").read_text())
    values |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnForCausalLM"}}
    (target / "config.json").write_text(json.dumps(values))
    (target / "own.py").write_text(
        "from pathlib import Path\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        f"Path({str(target.parent / 'executed')!r}).touch()\n"
        "class Own(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = Own\n"
    )
    return target


def test_code_of_a_model_runs_only_when_it_is_trusted(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(with_code(model, tmp_path / "with_code"))
    reference = ReferenceConfig(name="r", path=path)
    for load in (load_model_config, lambda config: load_scorer(config, torch.float32, False)):
        with pytest.raises(
            ConfigError, match=r"set references\[r\]\.trust_remote_code=true to run it, with all rights"
        ):
            load(reference)
    assert not (tmp_path / "executed").exists()
    trusting = ModelConfig(path=path, trust_remote_code=True)
    assert type(load_model_config(trusting)).__name__ == "Own"
    assert type(load_scorer(trusting, torch.float32, True).model).__name__ == "OwnForCausalLM"
    load_tokenizer(trusting)
    before = fingerprint(trusting)
    (tmp_path / "with_code" / "own.py").write_text("# other code")
    assert fingerprint(trusting) != before


def test_a_run_with_a_pickled_policy_and_a_reference_with_code(warm_runs: Runs) -> None:
    config = base_config(warm_runs.root, references=1)
    start = Path(config["model"]["path"])
    config["model"] |= {"path": str(pickled(start, warm_runs.root / "pickled")), "allow_pickle": True}
    path = str(with_code(start, warm_runs.root / "with_code"))
    config["references"][0] |= {"path": path, "trust_remote_code": True}
    run = warm_runs.train("trusting", config)
    assert [row["step"] for row in run.metrics] == [1, 2, 3, 4] and (run.directory / "model").is_dir()
    config["references"][0]["trust_remote_code"] = False
    refused = mrpo_ds("check", str(write_config(warm_runs.root / "refused.yaml", config)))
    assert refused.returncode == 2 and "references[ref1].trust_remote_code=true" in refused.stderr
