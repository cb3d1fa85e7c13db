"""What all roles compute alike: refusals before any data are read, and what must be the same on every host."""

from pathlib import Path
from typing import Any

import pytest

from mrpo_ds.cli import main
from mrpo_ds.config.load import load_config
from mrpo_ds.errors import ConfigError
from mrpo_ds.material import Material, prepare
from tests.support import base_config, write_config


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("material")


def material(root: Path, loss: dict[str, Any], only: str | None = None, **data: Any) -> Material:
    config = base_config(root, references=1)
    config["loss"] = loss
    config["data"] |= data
    return prepare(load_config(str(write_config(root / "config.yaml", config))), only)


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        ({"name": "sft", "train_on_prompt": True}, "with these options scores the whole prompts already"),
        ({"name": "orpo", "nll": "full"}, "with these options scores the whole prompts already"),
        ({"name": "kto"}, "with these options also scores answers to other prompts"),
    ],
)
def test_earlier_turns_are_not_scored_twice(root: Path, loss: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        material(root, loss, score_turns="all")
    assert str(caught.value) == (
        f"data.score_turns is 'all'; allowed: last, because loss.name={loss['name']} {reason}."
    )


@pytest.mark.parametrize("loss", [{"name": "sft"}, {"name": "dpo"}])
def test_earlier_turns_are_scored_where_that_makes_sense(root: Path, loss: dict[str, Any]) -> None:
    assert len(material(root, loss, score_turns="all").splits["train"]) == 40


def test_a_role_reads_for_itself_and_the_policy(root: Path) -> None:
    whole = material(root, {"name": "dpo"})
    assert list(whole.speakers) == ["policy", "ref1"]
    assert list(material(root, {"name": "dpo"}, only="policy").speakers) == ["policy"]
    assert material(root, {"name": "dpo"}, only="ref1").identity() == whole.identity()


def test_the_identity_is_that_of_rows_and_tokenizers(root: Path) -> None:
    ours = material(root, {"name": "dpo"}).identity()
    other = material(root, {"name": "dpo"}, max_length=80, max_truncated_fraction=1.0).identity()
    assert set(ours) == {
        "the rows of data.train",
        "the rows of data.eval",
        "the token ids of policy",
        "the token ids of ref1",
    }
    cut = {"the rows of data.train", "the rows of data.eval"}
    assert {name for name in ours if ours[name] != other[name]} == cut
    longer = material(root, {"name": "dpo"}, score_turns="all").identity()
    assert {name for name in ours if ours[name] != longer[name]} == {name for name in ours if "token ids" in name}


def test_the_shares_of_the_rows_are_all_rows_once(root: Path) -> None:
    whole = material(root, {"name": "dpo"})
    shares = [whole.share(number, 3) for number in range(3)]
    for split, count in (("train", 40), ("eval", 10)):
        parts = [[example.source for example in share.splits[split]] for share in shares]
        assert [len(part) for part in parts] == ([13, 13, 14] if count == 40 else [3, 3, 4])
        assert [source for part in parts for source in part] == [one.source for one in whole.splits[split]]
        for name, speaker in whole.speakers.items():
            ids = [row for share in shares for row in share.speakers[name].encodings[split]]
            assert ids == list(speaker.encodings[split])


def test_more_shares_than_training_rows(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"--shard is '2/41'; allowed: at most 40 parts, as many as training rows."):
        material(root, {"name": "dpo"}).share(2, 41)


@pytest.mark.parametrize("shard", ["3/3", "4/3", "1", "1/0", "a/b", "1/2/3", "-1/3"])
def test_what_is_no_shard(root: Path, shard: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_config(root / "shard.yaml", base_config(root, references=1))
    assert main(["score", str(path), f"--shard={shard}"]) == 2
    assert f"--shard is '{shard}'; allowed: I/N with 0 <= I < N, such as 0/4." in capsys.readouterr().err
