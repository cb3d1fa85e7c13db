"""The evaluation at the end of a training: the model's name, and the command that tries again."""

import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mrpo_ds.cli import _parser
from mrpo_ds.config.outputs import EvaluateConfig
from mrpo_ds.config.schema import Config, ModelConfig
from mrpo_ds.errors import ConfigError
from mrpo_ds.leaderboard import after_training
from mrpo_ds.leaderboard.candidates import Candidate, find_candidates
from mrpo_ds.leaderboard.options import Options
from tests.support import make_model


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Of a run in the directory that a sweep gives it, with a blank above."""
    run = tmp_path / "of mine" / "2-seed=0,learning_rate=1e-6"
    make_model(run / "model")
    asked: dict[str, Any] = {
        "suite_limit": 2,
        "suite_batch_size": 4,
        "suite_dtype": "fp32",
        "suite_chat_template": True,
    }
    evaluate = EvaluateConfig(suite="smoke", offline=str(tmp_path / "a mirror"), **asked)
    return Config(model=ModelConfig(path="base"), evaluate=evaluate, output_dir=str(run))


def test_a_run_of_a_sweep_is_evaluated(config: Config, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    asked: list[Options] = []

    def run_sweep(options: Options) -> int:
        asked.append(options)
        return 1

    monkeypatch.setattr(after_training, "run_sweep", run_sweep)
    assert after_training.evaluate_trained(config, 1) == 1
    model = Candidate("2-seed_0_learning_rate_1e-6", f"{config.output_dir}/model")
    assert find_candidates(asked[0].models) == [model]
    assert (asked[0].limit, asked[0].batch_size, asked[0].dtype, asked[0].chat_template) == (2, 4, "fp32", True)
    said = capsys.readouterr().err.rpartition("this evaluates it again: ")[2]
    again = vars(_parser().parse_args(shlex.split(said)[1:]))
    assert find_candidates(again["models"]) == [model]
    same = [name for name in again if name not in ("models", "devices", "run")]
    assert {name: again[name] for name in same} == {name: getattr(asked[0], name) for name in same}


def test_check_sees_what_the_evaluation_would_refuse(config: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no mirror in"):
        after_training.check_evaluation(config)
    shutil.rmtree(Path(config.output_dir) / "model")  # as before a run
    with pytest.raises(ConfigError, match="--suite is 'none'"):
        after_training.check_evaluation(replace(config, evaluate=EvaluateConfig(suite="none")))
    after_training.check_evaluation(replace(config, evaluate=EvaluateConfig()))
