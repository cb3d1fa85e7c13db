"""The data report: numbers against others counted here, text and page against the models' own decoding."""

import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from mrpo_ds.check import check_run
from mrpo_ds.config.load import load_config
from mrpo_ds.console import configure_console
from mrpo_ds.data.accounts import FitReport
from mrpo_ds.errors import ConfigError, DataError
from mrpo_ds.material import POLICY, Material, prepare
from mrpo_ds.report import page
from mrpo_ds.report.markup import check_page_path
from mrpo_ds.report.page import write_page
from mrpo_ds.report.text import bins, check_fits, leaked, log_data_report, quantile, readers, used
from tests.page import Page, read_page
from tests.support import base_config, make_rows, write_config, write_jsonl

HOSTILE = "<script>alert('1')</script> &lt;b&gt; \"q\" \u202egnp.exe\u202c a\x00b\x1b[31m \u05d0\u05d1 \U0001f642"
BAD_ROWS = [{"prompt": "p", "chosen": "same", "rejected": "same"}, {"prompt": "p", "chosen": "yes", "rejected": " "}]
LIMITS = {POLICY: None, "ref1": None, "ref2": None}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data_report")


@pytest.fixture(scope="module")
def material_of(root: Path) -> Callable[..., Material]:
    """(training rows, held-out rows, further settings) -> the material of a run with two references."""

    def build(train: list[dict[str, Any]], held_out: list[dict[str, Any]], **settings: Any) -> Material:
        config = base_config(root)
        for name, rows in (("train", train), ("eval", held_out)):
            config["data"][name] = [{"source": str(write_jsonl(root / f"{name}-{len(train)}.jsonl", rows))}]
        config["data"] |= {"cache_dir": str(root / "cache"), "max_dropped_fraction": 1, "max_misread_fraction": 1}
        config["data"] |= settings.pop("data", {})
        return prepare(load_config(str(write_config(root / "config.yaml", config | settings))))

    return build


@pytest.fixture(scope="module")
def material(material_of: Callable[..., Material]) -> Material:
    """40 rows, one of them twice, 2 that cannot be used, 1 with a special token; 3 of 10 held-out ones are leaks."""
    train = make_rows(40)
    special = {"prompt": "What is <|im_end|> for?", "chosen": "It ends a turn.", "rejected": "Nothing."}
    held_out = [*make_rows(7, seed=100), *train[:3]]
    return material_of([*train, *BAD_ROWS, train[5], special], held_out)


@pytest.fixture
def lines_of(capsys: pytest.CaptureFixture[str]) -> Any:
    """(material, with_example) -> what is logged, without the clock."""

    def read(material: Material, with_example: bool = False) -> list[str]:
        configure_console(True)
        try:
            log_data_report(material, with_example)
        finally:
            configure_console(False)
        return [line.split(" | ", 2)[2] for line in capsys.readouterr().err.splitlines()]

    return read


def page_of(material: Material, path: Path) -> Page:
    write_page(material, path)
    return read_page(path.read_text(encoding="utf-8"))


def lengths_by_transformers(material: Material, name: str, split: str) -> tuple[Counter[int], Counter[int]]:
    """Prompt and response lengths, from the saved tokenizer and the texts of the examples alone."""
    paths = {POLICY: material.config.model.path} | {one.name: one.path for one in material.config.references}
    tokenizer = AutoTokenizer.from_pretrained(paths[name])
    prompts, responses = Counter[int](), Counter[int]()
    for example in material.splits[split]:
        turns = [{"role": turn.role, "content": turn.content} for turn in example.prompt]
        if tokenizer.chat_template:
            text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        else:
            text = f"Human:\n{example.prompt[0].content}\n\nAssistant:\n"
        prompts[len(tokenizer(text, add_special_tokens=False).input_ids)] += 1
        responses.update(len(tokenizer(one, add_special_tokens=False).input_ids) + 1 for one in example.responses)
    return prompts, responses


# ---- numbers ---------------------------------------------------------------------------------------------------------


@given(st.dictionaries(st.integers(0, 500), st.integers(1, 9), min_size=1), st.floats(0.01, 1))
def test_a_quantile_is_the_least_length_that_so_many_do_not_exceed(histogram, share):
    lengths = sorted(Counter(histogram).elements())
    found = quantile(histogram, share)
    assert found in histogram
    assert sum(length <= found for length in lengths) >= share * len(lengths)
    assert sum(length < found for length in lengths) < share * len(lengths)


@given(st.dictionaries(st.integers(0, 500), st.integers(1, 9), min_size=1), st.integers(1, 60))
def test_bins_have_everything_once_and_one_width(histogram, most):
    low, high = min(histogram), max(histogram)
    parts = bins(histogram, most, low, high)
    assert len(parts) <= most
    assert parts[0][0] == low
    assert parts[-1][0] <= high <= parts[-1][1]
    assert len({last - first for first, last, _ in parts}) == 1
    for first, last, count in parts:
        assert count == sum(number for length, number in histogram.items() if first <= length <= last)
    assert sum(count for *_, count in parts) == sum(histogram.values())


def test_what_padding_would_be():
    fit = FitReport(rows=1, tokens=30, longest=20, prompt_tokens={5: 1}, response_tokens={5: 1, 15: 1})
    assert used(fit, 40) == (30 / 2 / 40, 20 / 40, 1 - 30 / (2 * 20))
    assert used(FitReport(), 40) == (0.0, 0.0, 0.0)


def test_models_that_read_alike_are_reported_once(material):
    assert [reader.names for reader in readers(material)] == [(POLICY, "ref1"), ("ref2",)]


# ---- text ------------------------------------------------------------------------------------------------------------


def test_rows_are_accounted_for_with_the_first_of_each_reason(material, lines_of):
    lines = lines_of(material)
    source = material.config.data.train[0].source
    assert lines[0] == (
        "train: 42 of 44 rows; dropped: 1 x identical responses, 1 x empty response; responses cut: 0; "
        "repeated rows: 1, repeated prompts: 1"
    )
    assert lines[1].startswith(f"train: first dropped: identical responses: {source} row 41: ")
    assert f"; empty response: {source} row 42: " in lines[1]
    assert lines[2] == "eval: 10 of 10 rows; dropped: none; responses cut: 0"
    assert lines[3].startswith("warning: 3 of 10 different held-out prompts (30.00%) are in data.train too, so ")


def test_no_leak_no_warning(material_of, lines_of):
    clean = material_of(make_rows(20), make_rows(5, seed=300))
    assert leaked(clean) == ""
    assert not any("warning" in line for line in lines_of(clean))


@pytest.mark.parametrize(("name", "title"), [(POLICY, "policy, ref1"), ("ref2", "ref2")])
def test_lengths_are_those_that_transformers_counts(material, lines_of, name, title):
    lines = lines_of(material)
    for split in ("train", "eval"):
        counted = lengths_by_transformers(material, name, split)
        for what, histogram in zip(("prompts", "responses"), counted, strict=True):
            lengths = sorted(histogram.elements())
            # The least number of rows that is at least the share, in whole numbers.
            marks = [lengths[-(-share * len(lengths) // 100) - 1] for share in (50, 90, 99)]
            head = f"{title}: {split}: {what} 50% {marks[0]}, 90% {marks[1]}, 99% {marks[2]}, max {lengths[-1]} tokens;"
            (line,) = [line for line in lines if line.startswith(head)]
            assert re.search(rf"; {lengths[0]} \|[ \u2581-\u2588]{{1,24}}\| {lengths[-1]}$", line)


def test_odd_rows_are_counted_with_the_first(material, lines_of):
    (line,) = [line for line in lines_of(material) if line.startswith("policy, ref1: train: sequences")]
    source = material.config.data.train[0].source
    # 40 rows, 2 that are dropped, 1 repeated, then it.
    assert line.endswith(f"; 1 of 42 rows (2.38%) have special tokens in their text (first: {source} row 44)")
    (line,) = [line for line in lines_of(material) if line.startswith("ref2: train: sequences")]
    assert line.endswith("; all rows are read as they are written")


def test_a_log_grows_by_three_lines_a_model_and_split(material, lines_of):
    short, long = lines_of(material), lines_of(material, with_example=True)
    assert len(short) == 4 + 3 * 2 * 2
    assert long[: len(short)] == short
    assert long[len(short)].startswith("tokens are divided by")


def test_the_example_is_what_the_model_reads(material, lines_of):
    lines = lines_of(material, with_example=True)
    scored = [line for line in lines if ": scored, " in line]
    answer = material.splits["train"][0].responses[0]
    for line, closing in zip(scored, ("<|im_end|>", "<eos>"), strict=True):
        assert line.endswith(f"{{closing {closing}}}")
        *tokens, _ = line.split(" tokens: ")[1].split("\u2502")
        assert "".join(tokens).replace("\u00b7", " ") == answer
    assert any(line.startswith("policy, ref1: given, ") and "{<|im_start|>}\u2502" in line for line in lines)
    assert re.search(r" \.\.\. \d+ tokens \.\.\. ", "".join(lines))


def test_hostile_text_reaches_no_terminal(material_of, lines_of):
    rows = [{"prompt": f"{HOSTILE}\n", "chosen": HOSTILE, "rejected": "\n \u2028x"}, *make_rows(30)]
    lines = lines_of(material_of(rows, make_rows(3, seed=300)), with_example=True)
    assert not set("".join(lines)) & set("\x00\x1b\u202e\u202c\u2028\r")
    assert "\\x1b" in "".join(lines)


def test_artificial_splits_are_in_no_report_and_in_the_limits(material_of, lines_of, tmp_path):
    loss = {"name": "kto"}
    data = {"view": "unpaired"}
    made = material_of(make_rows(12), make_rows(4, seed=100), loss=loss, data=data)
    assert "train~mismatched" in made.splits
    assert not any("mismatched" in line for line in lines_of(made, with_example=True))
    page_of(made, tmp_path / "page.html")
    assert "mismatched" not in (tmp_path / "page.html").read_text(encoding="utf-8")
    speaker = made.speakers[POLICY]
    longer = replace(speaker, fits={**speaker.fits, "train~mismatched": FitReport(rows=1, longest=999)})
    made.speakers[POLICY] = longer
    with pytest.raises(
        ConfigError, match="policy: the longest row has 999 tokens, the model takes 998; lower data.max"
    ):
        check_fits(made, {**LIMITS, POLICY: 998})
    check_fits(made, {**LIMITS, POLICY: 999})


# ---- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fit", "says"),
    [
        (
            FitReport(rows=100, refused=1, first={"refused": "f row 3: no"}),
            "ref2 cannot read 1 rows, the first: f row 3",
        ),
        (
            FitReport(rows=100, not_round_trip=2, first={"special_in_text": "f row 1", "not_round_trip": "f row 9"}),
            r"ref2 does not read 2 of 1\d\d rows as written .* the first: f row 9\. Use chat_template",
        ),
        (FitReport(rows=100, left_out=2, first={"left_out": "f row 7"}), "leaves out text.; the first: f row 7"),
    ],
)
def test_rows_that_a_model_misreads_end_the_check(material, fit, says):
    data = replace(material.config.data, max_misread_fraction=0.01)
    speakers = dict(material.speakers)
    speakers["ref2"] = replace(speakers["ref2"], fits={"train": fit, "eval": speakers["ref2"].fits["eval"]})
    broken = replace(material, speakers=speakers, config=replace(material.config, data=data))
    with pytest.raises(DataError, match=says):
        check_fits(broken, LIMITS)
    check_fits(replace(broken, speakers=material.speakers), LIMITS)


# ---- page ------------------------------------------------------------------------------------------------------------


def test_the_page_shows_the_first_example_of_each_model_whole(material, tmp_path):
    page = page_of(material, tmp_path / "page.html")
    assert len(page.examples) == 4  # 2 readings of 2 responses
    wanted = []
    for name in (POLICY, "ref2"):
        wanted += [(material.speakers[name], encoded) for encoded in material.speakers[name].encodings["train"][0]]
    for tokens, (speaker, encoded) in zip(page.examples, wanted, strict=True):
        decoded = speaker.tokenizer.decode(encoded.ids, skip_special_tokens=False)
        assert "".join(token.text for token in tokens) == decoded
        ids = [int(number) for token in tokens for number in re.findall(r"\d+", token.title)]
        assert ids == encoded.ids
        marked = ["s" in token.classes for token in tokens for _ in re.findall(r"\d+", token.title)]
        assert marked == encoded.scored()
        assert ["e" in token.classes for token in tokens] == [False] * (len(tokens) - 1) + [True]
        grounds = [token.classes & {"a", "b"} for token in tokens]
        assert all(one != other for one, other in zip(grounds, grounds[1:], strict=False))


def test_the_page_counts_as_the_report_does(material, tmp_path):
    page = page_of(material, tmp_path / "page.html")
    assert ["rows read", "44", "10"] in page.cells
    assert ["rows kept", "42", "10"] in page.cells
    assert ["rows like an earlier one", "1", "0"] in page.cells
    assert any(cells[:3] == ["train", "dropped: identical responses", "1"] for cells in page.cells)
    assert "3 of 10 different held-out prompts" in page.text
    source = material.config.data.train[0].source
    assert ["train", "rows that have special tokens in their text", "1", "2.38%", f"{source} row 44"] in page.cells
    bars = [int(title.split(": ")[1]) for title in page.titles if re.match(r"\d+ (to \d+ )?tokens: ", title)]
    # Per reading: 42 prompts and 84 responses to train on, 10 and 20 held out.
    assert sum(bars) == 2 * (42 + 84 + 10 + 20)


def test_hostile_data_stay_text(material_of, tmp_path):
    rows = [{"prompt": f"\n{HOSTILE}\n", "chosen": HOSTILE, "rejected": "\n \u2028x\r\n"}, *make_rows(31)]
    made = material_of(rows, make_rows(3, seed=300))
    page = page_of(made, tmp_path / "page.html")
    raw = (tmp_path / "page.html").read_bytes().decode("utf-8")
    assert not set(raw) & set("\x00\x1b\u202e\u202c\u2028\r")
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("src", "href")]
    for tokens, encoded in zip(page.examples, made.speakers[POLICY].encodings["train"][0], strict=False):
        text = made.speakers[POLICY].tokenizer.decode(encoded.ids, skip_special_tokens=False)
        assert "".join(token.text for token in tokens) == text
    assert HOSTILE in "".join(token.text for token in page.examples[0])


def test_hostile_names_and_reasons_stay_text(material, tmp_path):
    one = material.prepared["train"]
    report = replace(one.report, dropped={"<b>": 1}, first_dropped={"<b>": "\udcff\n<i>&amp; row 1"})
    page = page_of(replace(material, prepared={"train": replace(one, report=report)}), tmp_path / "page.html")
    assert ["train", "dropped: <b>", "1", "U+DCFFU+000A<i>&amp; row 1"] in page.cells


def test_a_template_that_refuses_rows_leaves_no_example(material, tmp_path, lines_of):
    speakers = dict(material.speakers)
    fit = replace(speakers["ref2"].fits["train"], refused=1, first={"refused": "f row 1: no"})
    speakers["ref2"] = replace(speakers["ref2"], fits={**speakers["ref2"].fits, "train": fit})
    broken = replace(material, speakers=speakers)
    page = page_of(broken, tmp_path / "page.html")
    assert len(page.examples) == 2
    assert any(cells[1:3] == ["rows that are refused by the template", "1"] for cells in page.cells)
    assert "ref2: no example, because the template refuses rows" in lines_of(broken, with_example=True)


# ---- where the page is written ---------------------------------------------------------------------------------------


def test_an_old_page_is_replaced_as_a_whole_or_not_at_all(material, tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    check_page_path(path)
    write_page(material, path)
    first = path.read_text(encoding="utf-8")
    check_page_path(path)

    def breaks_off(_: Material) -> Any:
        yield "<!doctype html>"
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(page, "_page", breaks_off)
        with pytest.raises(ConfigError, match="page.html', which cannot be written .No space left on device.; choose"):
            write_page(material, path)
    assert path.read_text(encoding="utf-8") == first
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("missing/page.html", "there is no folder '.*missing'; make it, or choose another"),
        ("", "which is there and is no HTML page, so it is not replaced; choose another name, or remove it"),
        ("run.yaml", "which is there and is no HTML page"),
        ("run.yaml/page.html", "there is no folder '.*run.yaml'"),
        ("loop", "which cannot be written|no HTML page"),
        ("x" * 300, "which cannot be written .File name too long.; choose another place"),
        ("/dev/null", "which is there and is no HTML page"),
        ("/proc/page.html", "which cannot be written"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_the_data_are_read(tmp_path, root, name, says):
    (tmp_path / "run.yaml").write_text("model: {}\n", encoding="utf-8")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    before = sorted(tmp_path.iterdir())
    config = base_config(root)
    config["data"]["train"] = [{"source": str(root / "there is none.jsonl")}]
    config = load_config(str(write_config(root / "unread.yaml", config)))
    with pytest.raises(ConfigError, match=says):
        check_run(config, page=tmp_path / name)
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "run.yaml").read_text(encoding="utf-8") == "model: {}\n"
    assert os.path.exists("/dev/null") and not os.path.isfile("/dev/null")


def test_a_link_to_a_page_stays_a_link(material, tmp_path):
    (tmp_path / "real").mkdir()
    link = tmp_path / "page.html"
    link.symlink_to(tmp_path / "real" / "page.html")
    check_page_path(link)
    write_page(material, link)
    assert link.is_symlink()
    assert (tmp_path / "real" / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")
