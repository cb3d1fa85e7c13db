"""Which models and rows eval-preferences takes from a configuration and its command line."""

from dataclasses import replace
from pathlib import Path

import pytest

from mrpo_ds.comparison.subjects import scored_references, sets_of, subjects_of
from mrpo_ds.config.schema import Config, DataConfig, ModelConfig, ReferenceConfig, SourceConfig
from mrpo_ds.errors import ConfigError
from tests.unit.comparison.directories import make_run

CONFIG = Config(
    model=ModelConfig(path="org/base", dtype="fp32"),
    references=[
        ReferenceConfig(name="one", path="org/base", dtype="fp32", batch_tokens=7),
        ReferenceConfig(name="two", path="org/other"),
    ],
    data=DataConfig(eval=[SourceConfig(source="a/held.jsonl"), SourceConfig(source="b/held.jsonl")]),
    output_dir="nowhere/run",
)


def model_at(path: Path) -> str:
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    return str(path)


def test_base_and_references_are_always_there_and_each_model_scores_once(tmp_path: Path) -> None:
    run = make_run(tmp_path / "mrpo-1")
    model_at(run / "model")
    plain = model_at(tmp_path / "plain")
    subjects = subjects_of(CONFIG, [str(run), f"mine={plain}", "org/hub"])
    assert [(one.name, one.kind, one.config.path) for one in subjects] == [
        ("base", "base", "org/base"),  # which is the first reference too
        ("two", "reference", "org/other"),
        ("mrpo-1", "model", str(run / "model")),
        ("mine", "model", plain),
        ("hub", "model", "org/hub"),
    ]
    assert {one.config.dtype for one in subjects if one.kind != "reference"} == {"fp32"}
    scoring, answers = scored_references(CONFIG, subjects)
    assert [one.name for one in scoring] == ["one", "two", "model.mrpo-1", "model.mine", "model.hub"]
    assert answers["model.base"] == "one" and answers["two"] == "two" and answers["model.mine"] == "model.mine"


def test_a_base_in_another_dtype_is_another_model() -> None:
    config = replace(CONFIG, model=ModelConfig(path="org/base", dtype="bf16"))
    subjects = subjects_of(config, None)
    assert [one.name for one in subjects] == ["base", "one", "two"]
    assert scored_references(config, subjects)[1]["model.base"] == "model.base"


def test_without_models_the_runs_own_is_measured(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    model_at(run / "model")
    assert [one.name for one in subjects_of(replace(CONFIG, output_dir=str(run)), None)] == ["base", "two", "run"]


def test_a_run_of_a_sweep_has_a_name_made_of_its_directory(tmp_path: Path) -> None:
    run = make_run(tmp_path / "2-seed=0,learning_rate=1e-6")
    model_at(run / "model")
    for config, given in ((replace(CONFIG, output_dir=str(run)), None), (CONFIG, [str(run)])):
        subject = subjects_of(config, given)[-1]
        assert (subject.name, subject.config.path) == ("2-seed_0_learning_rate_1e-6", str(run / "model"))


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "checkpoints" / "step-00000001").mkdir(parents=True)
    with pytest.raises(ConfigError, match="has no model yet; allowed: a finished run"):
        subjects_of(CONFIG, [str(run)])
    with pytest.raises(ConfigError, match="is no model: it has no config.json; .* A checkpoint is exported by ending"):
        subjects_of(CONFIG, [str(run / "checkpoints" / "step-00000001")])
    with pytest.raises(ConfigError, match="the name of a model is 'base'; allowed: every name once. Give"):
        subjects_of(CONFIG, [f"base={model_at(tmp_path / 'x')}"])
    with pytest.raises(ConfigError, match="the name of a model is 'a b'; allowed: letters.*: --models name=path"):
        subjects_of(CONFIG, [f"a b={model_at(tmp_path / 'y')}"])


def test_sets_are_the_sources_of_data_eval_or_files() -> None:
    assert {name: one[0].source for name, one in sets_of(CONFIG, None, None).items()} == {
        "held": "a/held.jsonl", "held#2": "b/held.jsonl",
    }  # fmt: skip
    sets = sets_of(CONFIG, ["x.jsonl", "y.parquet"], ["hh_rlhf"])
    assert [(name, one[0].adapter) for name, one in sets.items()] == [("x", "hh_rlhf"), ("y", "hh_rlhf")]
    sets = sets_of(CONFIG, ["x.jsonl", "y.parquet"], ["hh_rlhf", "ranked"])
    assert [one[0].adapter for one in sets.values()] == ["hh_rlhf", "ranked"]
    assert sets_of(CONFIG, ["x.jsonl"], None)["x"][0].adapter is None


def test_sets_that_cannot_be_meant_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"--adapter is \['a', 'b'\]; allowed: one name, or one for each of the 3"):
        sets_of(CONFIG, ["1", "2", "3"], ["a", "b"])
    with pytest.raises(ConfigError, match="--adapter is .*; allowed: only beside --data"):
        sets_of(CONFIG, None, ["pairs"])
    with pytest.raises(ConfigError, match=r"data.eval is \[\]; .* Give data.eval in the configuration, or --data FILE"):
        sets_of(replace(CONFIG, data=DataConfig()), None, None)
