"""The models of a sweep: names, and checkpoints that would be scored with random weights."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from mrpo_ds.errors import ConfigError
from mrpo_ds.leaderboard.candidates import Candidate, check_candidate, describe_keys, find_candidates
from tests.support import make_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "tiny")


def test_a_path_names_itself_and_a_run_its_model(tmp_path, model):
    run = tmp_path / "runs" / "mrpo-1"
    shutil.copytree(model, run / "model")
    found = find_candidates([str(model), str(run), f"again={run / 'model'}", "org/name"])
    assert [one.name for one in found] == ["tiny", "mrpo-1", "again", "name"]
    assert [one.path for one in found] == [str(model), str(run / "model"), str(run / "model"), "org/name"]
    assert find_candidates([str(run / "model")])[0].name == "mrpo-1"


def test_a_directory_of_a_sweep_of_runs_is_a_path_with_a_name_that_does(tmp_path, model):
    run = tmp_path / "2-seed=0,learning_rate=1e-6"
    shutil.copytree(model, run / "model")
    for given in (str(run), str(run / "model"), f"2-seed_0_learning_rate_1e-6={run}"):
        assert find_candidates([given]) == [Candidate("2-seed_0_learning_rate_1e-6", str(run / "model"))]
    assert find_candidates([("mine", str(run))]) == [Candidate("mine", str(run / "model"))]


def test_a_path_with_an_equals_sign_that_is_not_there():
    with pytest.raises(ConfigError, match="There is no path 'runs/0-seed=0/model'"):
        find_candidates(["runs/0-seed=0/model"])


def test_two_of_one_name_need_names(model):
    with pytest.raises(ConfigError, match="the name of a model is 'tiny'; allowed: every name once. Give NAME=PATH to"):
        find_candidates([str(model), str(model)])


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "a b"])
def test_a_name_must_do_as_a_folder(model, name):
    with pytest.raises(ConfigError, match="allowed: letters, digits"):
        find_candidates([f"{name}={model}"])


def test_a_whole_model_passes(model):
    check_candidate(Candidate("tiny", str(model)))


Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]
BROKEN: dict[str, tuple[Change, str]] = {
    "a missing layer": (
        lambda weights: {name: weight for name, weight in weights.items() if "layers.1." not in name},
        "missing model.layers.1.input_layernorm.weight",
    ),
    "a wrapper's prefix": (
        lambda weights: {f"module.{name}": weight for name, weight in weights.items()},
        "unexpected module.model.embed_tokens.weight",
    ),
    "a part that ZeRO-3 left empty": (
        lambda weights: weights | {"model.norm.weight": weights["model.norm.weight"][:0].clone()},
        "mismatched model.norm.weight",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_checkpoint_that_is_not_whole_is_refused(tmp_path, model, name):
    change, told = BROKEN[name]
    broken = Path(shutil.copytree(model, tmp_path / "broken"))
    save_file(change(load_file(model / "model.safetensors")), broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match="is not whole") as caught:
        check_candidate(Candidate("broken", str(broken)))
    assert told in str(caught.value)
    assert "Export it again" in str(caught.value)


def test_a_torn_file_is_refused(tmp_path, model):
    broken = Path(shutil.copytree(model, tmp_path / "broken"))
    file = broken / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ConfigError, match="cannot load the model"):
        check_candidate(Candidate("broken", str(broken)))


def test_a_model_without_a_tokenizer_is_refused(tmp_path, model):
    bare = Path(shutil.copytree(model, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*")))
    with pytest.raises(ConfigError, match="no tokenizer for the model"):
        check_candidate(Candidate("bare", str(bare)))


@pytest.mark.parametrize("file", ["latest", "zero_to_fp32.py", "global_step10/mp_rank_00_model_states.pt"])
def test_a_raw_zero_checkpoint_is_refused_with_how_to_mend_it(tmp_path, file):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"raw ZeRO checkpoint.*--resume auto.*zero_to_fp32.py"):
        find_candidates([str(tmp_path)])


def test_an_unfinished_run_of_ours_is_refused(tmp_path):
    (tmp_path / "checkpoints" / "step-00000010").mkdir(parents=True)
    with pytest.raises(ConfigError, match="checkpoints to resume from and no model yet; finish the run"):
        find_candidates([str(tmp_path)])


def test_a_path_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        check_candidate(Candidate("x", str(tmp_path / "nowhere")))


def test_keys_are_counted_and_some_are_shown():
    info = {"missing_keys": {"a", "b", "c", "d", "e"}, "unexpected_keys": set(), "mismatched_keys": {("f", 1, 2)}}
    assert describe_keys(info) == "missing a, b, c and 2 more; mismatched f"
    assert describe_keys({}) == ""
