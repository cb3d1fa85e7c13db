"""The page of a dashboard: what is drawn, what the tables say, and that nothing of a run can break out of it."""

import json
import re
from pathlib import Path

import pytest

from mrpo_ds.cli import main
from mrpo_ds.dashboard.charts import charts_of, payload
from mrpo_ds.dashboard.page import page, write_dashboard
from mrpo_ds.dashboard.runs import read_runs
from mrpo_ds.dashboard.tables import differences, end_of
from mrpo_ds.errors import ConfigError
from tests.page import read_page
from tests.unit.dashboard.conftest import row, write_rows

ROOT = Path(__file__).resolve().parents[3]
RECORD = ROOT / "docs" / "records" / "hh_rlhf_smollm2_gemma3"
"""A real run, without its config and summary."""
HOSTILE = "<script>alert(1)</script>\"'&\u202e"


def html_of(*directories):
    return "".join(page(read_runs([str(one) for one in directories])))


def data_of(html):
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    return json.loads(found)


def drawn(data, title):
    """The lines of a chart, as (run, metric)."""
    (chart,) = [chart for chart in data["charts"] if chart["title"] == title]
    return [(line["run"], line["metric"]) for line in chart["lines"]]


# ---- one run ---------------------------------------------------------------------------------------------------------


def test_a_real_run_has_all_its_metrics_on_the_page():
    html = html_of(RECORD)
    data, shown = data_of(html), read_page(html)
    metrics = {json.dumps(name) for name in read_runs([str(RECORD)])[0].metrics}
    in_tables = {json.dumps(cells[0]) for cells in shown.cells}
    assert metrics <= in_tables
    assert drawn(data, "Weight of each reference") == [
        (0, "train/ref/gemma3/weight"),
        (0, "train/ref/smollm2/weight"),
    ]
    assert drawn(data, "Loss") == [(0, "train/loss"), (0, "eval/loss")]
    assert not [chart for chart in charts_of(read_runs([str(RECORD)])) if chart.section == "other"]
    rows = [json.loads(line) for line in (RECORD / "metrics.jsonl").read_text().splitlines()]
    series = data["runs"][0]["series"]["train/loss"]
    assert series == {"mean": [pytest.approx(one["loss"], rel=1e-4) for one in rows]}
    (cells,) = [cells for cells in shown.cells if cells[0] == "train/grad_norm"]
    norms = [one["grad_norm"] for one in rows]
    end = sum(norms[-5:]) / 5  # a tenth of 48 steps, rounded up
    assert [float(cell) for cell in cells[1:]] == [
        pytest.approx(value, rel=1e-4) for value in (norms[0], norms[-1], end, min(norms), max(norms), 48)
    ]


def test_references_come_in_the_order_of_the_configuration(write_run):
    references = ("zeta", "alpha")
    settings = {"references": [{"name": name} for name in references]}
    data = data_of(html_of(write_run(train=[row(1, references)], config=settings)))
    assert drawn(data, "Weight of each reference") == [
        (0, "train/ref/zeta/weight"),
        (0, "train/ref/alpha/weight"),
    ]


def test_a_metric_that_nobody_has_planned_is_shown_all_the_same(write_run):
    html = html_of(write_run(train=[row(1) | {"my/new_stat": 3.5}]))
    assert drawn(data_of(html), "my/new_stat") == [(0, "train/my/new_stat")]
    assert 'id="other"' in html
    assert 'id="other"' not in html_of(RECORD)


def test_a_long_run_is_thinned_and_the_page_stays_small(write_run):
    rows = [row(step) | {"grad_norm": 500.0 if step == 7777 else 1.0} for step in range(1, 20_001)]
    html = html_of(write_run(train=rows))
    assert len(html) < 150_000
    assert "at most 240 points" in read_page(html).text
    series = data_of(html)["runs"][0]["series"]["train/grad_norm"]
    assert len(series["mean"]) == 240 and max(series["high"]) == 500.0


def test_a_run_without_steps_or_evaluations_has_a_page_that_says_so(write_run):
    text = read_page(html_of(write_run("new", train=[], evals=[], done=False))).text
    assert "has not finished its first step" in text
    assert "No evaluation yet: evals.jsonl has no rows" in text
    text = read_page(html_of(write_run("no-evals", evals=[]))).text
    assert "No evaluation yet" in text


# ---- several ---------------------------------------------------------------------------------------------------------


def test_runs_with_different_metrics_are_compared_by_what_they_have(write_run):
    both = write_run("both")
    one = write_run("one", train=[row(step, ("one",)) for step in range(1, 6)])
    html = html_of(both, one)
    data = data_of(html)
    assert drawn(data, "Loss") == [(0, "train/loss"), (0, "eval/loss"), (1, "train/loss"), (1, "eval/loss")]
    assert drawn(data, "Weight: one") == [(0, "train/ref/one/weight"), (1, "train/ref/one/weight")]
    assert drawn(data, "Weight: two") == [(0, "train/ref/two/weight")]
    shown = read_page(html)
    assert "Not in one." in shown.text
    assert ["train/ref/two/weight", "0.5", ""] in shown.cells
    assert ["optimizer steps", "10", "5"] in shown.cells


def test_a_metric_has_the_same_dash_in_all_runs(write_run):
    runs = read_runs([str(write_run("a", train=[row(1) | {"rewards/ties": 0.0}])), str(write_run("b"))])
    (runs[1].rows["train"])[0]["score_ties"] = 0.5
    (chart,) = [chart for chart in payload(runs, charts_of(runs))["charts"] if chart["title"] == "Ties"]
    assert [(line["run"], line["metric"], line["style"]) for line in chart["lines"]] == [
        (0, "train/rewards/ties", 0),
        (1, "train/score_ties", 1),
    ]


def test_only_settings_that_differ_are_listed_and_not_the_directories(write_run):
    config = {"output_dir": "runs/a", "train": {"seed": 0, "lr": 1e-6}}
    a = write_run("a", config=config)
    b = write_run("b", config={"output_dir": "runs/b", "train": {"seed": 1, "lr": 1e-6}, "references": []})
    assert differences(read_runs([str(a), str(b)])) == {
        "train.seed": ["0", "1"],
        "references.0.name": ["one", ""],
        "references.1.name": ["two", ""],
        "references": ["", "[]"],
    }
    assert "The runs have the same settings." in html_of(a, write_run("c", config=config))


def test_the_end_of_training_is_a_tenth_of_its_steps_and_that_of_evaluation_its_last(write_run):
    (run,) = read_runs([str(write_run(train=[row(step) for step in range(1, 31)]))])
    assert end_of(run, "train/rewards/margins") == pytest.approx((2.8 + 2.9 + 3.0) / 3)
    assert end_of(run, "eval/rewards/margins") == 1.0
    assert end_of(run, "train/kl") is None


def test_benchmarks_stand_side_by_side(write_run):
    runs = [write_run("a"), write_run("b")]
    for directory, value in zip(runs, (0.5, 0.625), strict=True):
        (directory / "eval").mkdir()
        content = {"results": {"arc": {"acc,none": value, "acc_stderr,none": 0.01}}, "n-shot": {"arc": 25}}
        (directory / "eval" / "arc.json").write_text(json.dumps(content))
    assert ["arc", "25", "acc", "0.5 \u00b1 0.01", "0.625 \u00b1 0.01"] in read_page(html_of(*runs)).cells


def test_what_the_models_say_is_shown_by_prompt(write_run):
    runs = [write_run("a"), write_run("b")]
    for directory in runs:
        said = [
            {"step": step, "prompt": prompt, "text": f"{directory.name} at {step}\nwith a line"}
            for step in range(0, 100, 10)
            for prompt in ("Why?", [{"role": "user", "content": "How?"}])
        ]
        write_rows(directory / "samples.jsonl", said)
    cells = read_page(html_of(runs[0])).cells
    answers = [cells[1] for cells in cells if cells[1:] and "with a line" in cells[1]]
    assert len(answers) == 2 * 8  # of ten steps, first and last among them
    assert answers[0] == "a at 0\nwith a line" and answers[7] == "a at 90\nwith a line"
    shown = read_page(html_of(*runs))
    assert ["b step 90", "b at 90\nwith a line"] in shown.cells
    assert "user: How?" in shown.text


def test_long_answers_are_cut_and_that_is_said(write_run):
    directory = write_run()
    write_rows(directory / "samples.jsonl", [{"step": 0, "prompt": "Why?", "text": "x" * 5000}])
    assert "... 3500 more characters" in read_page(html_of(directory)).text


# ---- what comes from runs is hostile ---------------------------------------------------------------------------------


def test_nothing_of_a_run_gets_out_of_its_place(write_run):
    rows = [row(1, (HOSTILE,)) | {HOSTILE: 1.0, f"{HOSTILE}/text": HOSTILE}]
    settings = {"references": [{"name": HOSTILE}], HOSTILE: HOSTILE, "model": {"path": HOSTILE}}
    directories = [write_run(f"{name}{HOSTILE.replace('/', '')}", rows, config=settings) for name in "ab"]
    for directory in directories:
        write_rows(directory / "samples.jsonl", [{"step": HOSTILE, "prompt": HOSTILE, "text": HOSTILE}])
        (directory / "eval").mkdir()
        (directory / "eval" / "x.json").write_text(
            json.dumps({"results": {HOSTILE: {f"{HOSTILE},none": 1.0}}, "model_name": HOSTILE})
        )
    plain = read_page(html_of(write_run("plain")))
    for given in (directories[:1], directories):
        html = html_of(*given)
        shown = read_page(html)
        assert shown.tags.count("script") == plain.tags.count("script") == 2
        assert not [name for name, _ in shown.attributes if name.startswith("on")]
        assert "\u202e" not in html.partition('<script type="application/json"')[0]
        assert "U+202E" in shown.text and "alert(1)" in shown.text
        assert data_of(html)["runs"][0]["name"] == given[0].name.replace("\u202e", "U+202E")


def test_the_page_allows_its_own_script_and_nothing_else(write_run):
    import base64
    import hashlib

    html = html_of(write_run())
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', html)
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", html)


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_page_goes_into_the_run_or_where_it_is_wanted(write_run, tmp_path, monkeypatch, capsys):
    a = write_run("a")
    write_run("b", done=False)
    assert main(["dashboard", "html", str(a)]) == 0
    assert (a / "dashboard.html").read_text().startswith("<!doctype html>")
    assert f"dashboard: {a / 'dashboard.html'}" in capsys.readouterr().err
    assert main(["dashboard", "html", str(a), "--out", str(tmp_path / "other.html")]) == 0
    monkeypatch.chdir(tmp_path)
    assert main(["dashboard", "html", "a", "b"]) == 0
    assert (tmp_path / "dashboard.html").exists()
    assert "b: The run is not at its end" in capsys.readouterr().err
    assert main(["dashboard", "html", "a", "b"]) == 0, "an earlier page is replaced"


def test_what_is_no_page_is_not_replaced(write_run, tmp_path):
    (tmp_path / "notes.html").write_text("dear diary")
    with pytest.raises(ConfigError, match="--out is .*notes.html', which is there and is no HTML page"):
        write_dashboard([str(write_run())], str(tmp_path / "notes.html"))
    with pytest.raises(ConfigError, match="there is no folder"):
        write_dashboard([str(tmp_path / "run")], str(tmp_path / "missing" / "page.html"))


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path, capsys):
    assert main(["dashboard", "html", str(tmp_path / "nowhere")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mrpo-ds: error: RUN is ")
