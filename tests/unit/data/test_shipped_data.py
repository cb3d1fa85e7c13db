"""The rows in launch/data that the examples train on: usable in every view, with something to rank."""

from pathlib import Path
from typing import Any

import pytest

from mrpo_ds.config.schema import SourceConfig
from mrpo_ds.data.adapters import ranked
from mrpo_ds.data.sources import read_rows
from mrpo_ds.data.views import VIEWS, select_view

FOLDER = Path(__file__).parents[3] / "launch" / "data"


def read(name: str) -> list[dict[str, Any]]:
    return [row for _, row in read_rows(SourceConfig(source=str(FOLDER / name)))]


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("*.jsonl")))
def test_every_row_can_be_used_in_every_view(name: str, view: str) -> None:
    made = [select_view(ranked.adapt(row), view) for row in read(name)]
    assert made and not any(part.left_out for parts in made for part in parts)


def test_the_ranked_rows_have_four_responses_in_no_order() -> None:
    rows = read("ranked.jsonl")
    raws = [ranked.adapt(row) for row in rows]
    assert [len(raw.responses) for raw in raws] == [4] * 24
    assert all(raw.scores and 1 <= raw.scores[-1] < raw.scores[0] <= 10 for raw in raws)
    assert any(raw.scores and raw.scores[1] == raw.scores[2] for raw in raws)
    assert not any(tuple(row["responses"]) == raw.responses for row, raw in zip(rows, raws, strict=True))


def test_no_prompt_is_in_two_files() -> None:
    prompts = [row["prompt"] for path in FOLDER.glob("*.jsonl") for row in read(path.name)]
    assert len(set(prompts)) == len(prompts) == 24 + 40 + 120
