"""Mirrors: what is in them is known to the byte, and what is not is told before anything is computed."""

import json
import shutil
from pathlib import Path

import pytest

from mrpo_ds.errors import ConfigError, DataError
from mrpo_ds.leaderboard.cards import CARD, DATA_FILES
from mrpo_ds.leaderboard.local_files import mirror_local_files
from mrpo_ds.leaderboard.mirror import DataSet, merged, new_or_old, open_mirror
from mrpo_ds.leaderboard.prefetch import download, wanted_files
from tests.support import free_port, make_task_files

ARC = DataSet("allenai/ai2_arc", ("ARC-Easy",))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("local")
    make_task_files(root / "rows")
    assert mirror_local_files(str(root / "rows"), str(root / "mirror")) == 0
    return root / "mirror"


def read(path: Path) -> list[dict]:
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path).to_pylist()


def test_local_files_become_data_sets_in_hub_layout(made):
    mirror = open_mirror(made)
    assert set(mirror.sources) == {"allenai/ai2_arc", "openai/gsm8k", "cais/mmlu", "hails/bigbench", "SaylorTwift/bbh"}
    assert len(mirror.sources["cais/mmlu"]["configs"]) == 57
    rows = read(made / "allenai/ai2_arc/ARC-Easy/test-00000-of-00001.parquet")
    assert rows[0].keys() == {"id", "question", "choices", "answerKey"}
    assert len(rows) == 20
    assert mirror.notes == ["made of local files with subsets of the rows: not the figures of the benchmarks"]


def test_rows_that_serve_as_examples_are_not_evaluated(made):
    test, train = (
        read(made / f"allenai/ai2_arc/ARC-Easy/{split}-00000-of-00001.parquet") for split in ("test", "train")
    )
    assert len(train) == 100
    assert not {row["id"] for row in test} & {row["id"] for row in train}


def test_big_bench_hard_rows_get_the_layout_of_big_bench(made):
    (row, *_) = read(made / "hails/bigbench/sports_understanding_zero_shot/default-00000-of-00001.parquet")
    assert row["inputs"].endswith("\nA:")
    assert row["multiple_choice_targets"] == ["yes", "no"]
    assert row["multiple_choice_scores"] == [int(choice == row["targets"][0]) for choice in ("yes", "no")]


def test_a_row_with_another_answer_is_refused(tmp_path):
    make_task_files(tmp_path / "rows")
    (tmp_path / "rows/bbh/sports_understanding.jsonl").write_text(
        '{"input": "x", "target": "maybe"}\n', encoding="utf-8"
    )
    with pytest.raises(DataError, match="'maybe' is none of yes, no"):
        mirror_local_files(str(tmp_path / "rows"), str(tmp_path / "mirror"))


def test_a_folder_without_known_files(tmp_path):
    with pytest.raises(ConfigError, match="has none of the files that are known"):
        mirror_local_files(str(tmp_path), str(tmp_path / "mirror"))
    with pytest.raises(ConfigError, match="which is no folder"):
        mirror_local_files(str(tmp_path / "none"), str(tmp_path / "mirror"))


def test_what_is_there_passes_and_what_is_not_is_named(made):
    mirror = open_mirror(made)
    mirror.check([ARC, DataSet("cais/mmlu", ("anatomy",))])
    with pytest.raises(
        ConfigError, match=r"has no data set 'Rowan/hellaswag'; it has: .*eval-prefetch --suite NAME --to"
    ):
        mirror.check([DataSet("Rowan/hellaswag", (None,))])
    with pytest.raises(ConfigError, match="has no configuration ARC-Medium of 'allenai/ai2_arc'"):
        mirror.check([DataSet("allenai/ai2_arc", ("ARC-Easy", "ARC-Medium"))])


def test_a_damaged_file_is_found_and_named(tmp_path):
    make_task_files(tmp_path / "rows")
    mirror_local_files(str(tmp_path / "rows"), str(tmp_path / "mirror"))
    file = tmp_path / "mirror/allenai/ai2_arc/ARC-Easy/test-00000-of-00001.parquet"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match="is damaged: .*ARC-Easy/test.* has changed"):
        open_mirror(tmp_path / "mirror").check([ARC])
    open_mirror(tmp_path / "mirror").check([DataSet("openai/gsm8k", ("main",))])  # the others can be used


def test_the_digest_is_of_these_data_sets_alone(tmp_path):
    make_task_files(tmp_path / "rows")
    mirror_local_files(str(tmp_path / "rows"), str(tmp_path / "mirror"))
    before = open_mirror(tmp_path / "mirror")
    gsm8k = tmp_path / "rows/gsm8k/test.jsonl"
    gsm8k.write_text(gsm8k.read_text(encoding="utf-8").replace("pens", "pins"), encoding="utf-8")
    mirror_local_files(str(tmp_path / "rows"), str(tmp_path / "mirror"))
    after = open_mirror(tmp_path / "mirror")
    assert before.digest([ARC]) == after.digest([ARC])
    assert before.digest([DataSet("openai/gsm8k", ("main",))]) != after.digest([DataSet("openai/gsm8k", ("main",))])


def test_what_another_suite_adds_to_a_data_set_leaves_finished_cells_valid(tmp_path):
    make_task_files(tmp_path / "rows")
    easy, hard = (tmp_path / f"rows/arc/{name}.jsonl" for name in ("ARC-Easy.validation", "ARC-Challenge.validation"))
    mirror_local_files(str(tmp_path / "rows"), str(tmp_path / "mirror"))
    before = open_mirror(tmp_path / "mirror").digest([ARC])
    shutil.copy(easy, hard)
    mirror_local_files(str(tmp_path / "rows"), str(tmp_path / "mirror"))
    after = open_mirror(tmp_path / "mirror")
    assert after.sources["allenai/ai2_arc"]["configs"] == ["ARC-Challenge", "ARC-Easy"]
    assert after.digest([ARC]) == before
    easy.write_text(easy.read_text(encoding="utf-8").replace("colour", "color"), encoding="utf-8")
    mirror_local_files(str(tmp_path / "rows"), str(tmp_path / "mirror"))
    assert open_mirror(tmp_path / "mirror").digest([ARC]) != before


def test_a_configuration_whose_splits_are_swapped_has_another_digest(tmp_path):
    make_task_files(tmp_path / "rows")
    mirror_local_files(str(tmp_path / "rows"), str(tmp_path / "mirror"))
    before = open_mirror(tmp_path / "mirror").digest([ARC])
    card = tmp_path / "mirror/allenai/ai2_arc/README.md"
    swapped = card.read_text(encoding="utf-8").replace("split: test", "split: other").replace("train", "test")
    card.write_text(swapped, encoding="utf-8")
    assert open_mirror(tmp_path / "mirror").digest([ARC]) != before


def test_no_mirror_says_how_to_make_one(tmp_path):
    with pytest.raises(ConfigError, match="there is no mirror in .*mrpo-ds eval-prefetch"):
        open_mirror(tmp_path)
    (tmp_path / "mirror.json").write_text('{"format": 7}', encoding="utf-8")
    with pytest.raises(ConfigError, match="its format is 7"):
        open_mirror(tmp_path)


def test_downloads_own_books_are_no_part_of_it(tmp_path):
    mirror = new_or_old(tmp_path / "new")
    for name in ("a/b/.cache/huggingface/x.metadata", "a/b/README.md", "a/b/c/test.parquet"):
        (mirror.directory / name).parent.mkdir(parents=True, exist_ok=True)
        (mirror.directory / name).write_text("x", encoding="utf-8")
    mirror.take_in(DataSet("a/b", ("c",)), {"commit": "0123"})
    assert set(open_mirror(tmp_path / "new").files) == {"a/b/README.md", "a/b/c/test.parquet"}
    record = json.loads((tmp_path / "new/mirror.json").read_text(encoding="utf-8"))
    assert record["data_sets"] == {"a/b": {"configs": ["c"], "commit": "0123"}}


def test_needs_are_merged():
    needs = [DataSet("b", ("y",)), DataSet("a", (None,)), DataSet("b", ("x",)), DataSet("b", ("y",))]
    assert merged(needs) == [DataSet("a", (None,)), DataSet("b", ("y", "x"))]


CARDS = {
    "splits": (
        "configs:\n- config_name: a\n  data_files:\n  - split: test\n    path: a/test-*\n"
        "- config_name: b\n  data_files:\n  - split: test\n    path: [b/1.parquet, b/2.parquet]\n"
        "- config_name: c\n  data_files: c/*.csv\n",
        ["a/test-*", "b/1.parquet", "b/2.parquet"],
    ),
    "mapping": ("configs:\n- config_name: b\n  data_dir: data\n  data_files: {test: x.jsonl}\n", ["data/x.jsonl"]),
    "none": ("license: mit\n", list(DATA_FILES)),
}


@pytest.mark.parametrize("name", CARDS)
def test_only_the_files_of_the_wanted_configurations_are_downloaded(tmp_path, name):
    card, wanted = CARDS[name]
    (tmp_path / CARD).write_text(f"---\n{card}---\n# A data set\n", encoding="utf-8")
    assert wanted_files(tmp_path, DataSet("o/n", ("b",))) == [CARD, *wanted]


def test_without_a_card_all_data_files_are_downloaded(tmp_path):
    assert wanted_files(tmp_path, DataSet("o/n", (None,))) == [CARD, *DATA_FILES]


def test_without_a_network_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(
        ConfigError, match=r"data set 'o/n' cannot be downloaded to .*\. This needs a network, and room"
    ):
        download(DataSet("o/n", ("b",)), new_or_old(tmp_path))


def test_a_mirror_that_cannot_be_written_is_one_line(tmp_path):
    mirror = new_or_old(tmp_path / "new")
    (tmp_path / "new/mirror.json.tmp").mkdir()  # nobody, not even root, can write there
    (tmp_path / "new/mirror.json").mkdir()
    with pytest.raises(ConfigError, match=r"mirror\.json' cannot be written: .*; make room or give leave"):
        mirror.take_in(DataSet("a/b", ("c",)), {"commit": "0123"})
