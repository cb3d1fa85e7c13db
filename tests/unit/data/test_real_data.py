"""Published data sets, where they lie beside the repository: counts against the README that came with them."""

import re
from pathlib import Path

import pytest

from mrpo_ds.config.schema import DataConfig, SourceConfig
from mrpo_ds.data.dataset import check_fits, load_examples
from mrpo_ds.data.rendering import Renderer
from mrpo_ds.data.sources import read_rows

DATA = (Path(__file__).parents[3] / "../shared/data").resolve()

pytestmark = pytest.mark.skipif(not (DATA / "README.md").is_file(), reason="the public data is not beside the repo")

# file: (rows, reasons for rows that cannot be used). All were looked at by eye.
HH_RLHF = {
    "harmless-base.test.eval": (289, {"empty response": 2}),
    "harmless-base.test.fit": (1513, {"empty response": 1, "prompts differ": 5}),
    "helpful-base.test.eval": (300, {"empty response": 1, "prompts differ": 1}),
    "helpful-base.test.fit": (1530, {"prompts differ": 7}),
}
ULTRAFEEDBACK = {
    "eval": (156, {"identical responses": 1}),
    "train": (789, {"identical responses": 3, "empty response": 1}),
}
CASES = [("hh-rlhf", "hh_rlhf", name, *counts) for name, counts in HH_RLHF.items()]
CASES += [("ultrafeedback_binarized", "pairs", name, *counts) for name, counts in ULTRAFEEDBACK.items()]


@pytest.mark.parametrize(("folder", "adapter", "name", "rows", "dropped"), CASES)
def test_preference_files(
    folder: str, adapter: str, name: str, rows: int, dropped: dict[str, int], policy: Renderer, plain_unigram: Renderer
) -> None:
    source = SourceConfig(source=str(DATA / "preference" / folder / f"{name}.jsonl.gz"), adapter=adapter)
    config = DataConfig(max_length=100_000)  # and the default limit: at most 1 row of 100 cannot be used
    examples, report = load_examples([source], config, policy, "train")
    assert (report.rows, report.dropped, report.truncated_rows) == (rows, dropped, 0)
    assert all(len(example.responses) == 2 for example in examples)
    assert len({example.id for example in examples}) == len(examples)
    fits = check_fits(examples[:100], {"bytes": policy, "fallback": plain_unigram})
    assert [(fit.refused, fit.not_round_trip, fit.left_out) for fit in fits.values()] == [(0, 0, 0)] * 2


def test_every_file_has_the_rows_that_its_readme_says() -> None:
    counted = 0
    folder = ""
    for line in (DATA / "README.md").read_text(encoding="utf-8").splitlines():
        if heading := re.match(r"###.*\(`(.*/)`\)", line):
            folder = heading[1]
        if table_row := re.match(r"\| `(\S+\.jsonl(?:\.gz)?)` \| (\d+) \|", line):
            rows = list(read_rows(SourceConfig(source=str(DATA / folder / table_row[1]))))
            assert len(rows) == int(table_row[2]), table_row[1]
            assert rows[-1][0] == len(rows)
            counted += 1
    assert counted >= 60
