"""Every metric that the code logs or the docs name has its place in a dashboard."""

import ast
import re
from itertools import product
from pathlib import Path

import pytest

from mrpo_ds.dashboard.sections import NOT_DRAWN, SECTIONS, section_of
from mrpo_ds.metrics import COUNTS, prompt_metrics
from tests.unit.losses.strategies import batch_for
from tests.unit.losses.variants import LOSSES, variants

ROOT = Path(__file__).resolve().parents[3]
OBJECTIVES = {label: objective for name in LOSSES for label, objective in variants(name).items()}
PREFIXES = "rewards|logps|ref|vref|ctro|perf|rewards_ref1"
ONCE_A_STEP = ("learning_rate", "grad_norm", "skipped_steps", "epoch", "num_tokens")
"""Names without a / that are logged besides those of the losses."""


def has_a_place(metric):
    return metric in NOT_DRAWN or section_of(metric) is not None


def homeless(names, kinds=("train", "eval")):
    """The names that have a place in no kind of row: some are logged in training only."""
    return sorted({name for name in names if not any(has_a_place(f"{kind}/{name}") for kind in kinds)})


@pytest.mark.parametrize("label", OBJECTIVES)
@pytest.mark.parametrize("kind", ["train", "eval"])
def test_every_metric_of_every_objective_has_a_place(label, kind):
    objective = OBJECTIVES[label]
    logps = batch_for(objective, seed=0, rows=3)
    output = objective.loss(logps)
    names = [f"model-{k}.1" for k in range(objective.references)]
    logged = {*prompt_metrics(output, logps, names, objective.needs.chosen), *COUNTS, "nll_loss"}
    assert "loss" in logged
    assert homeless(logged, kinds=[kind]) == []


def test_every_metric_that_the_training_loop_adds_has_a_place():
    names = set(ONCE_A_STEP)
    for file in ("train.py", "accounting.py"):
        for node in ast.walk(ast.parse((ROOT / "mrpo_ds" / file).read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):  # f"ref/{name}/wait_seconds"
                parts = [part.value if isinstance(part, ast.Constant) else "x" for part in node.values]
                names.add("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                names.add(node.value)
    logged = {name for name in names if re.fullmatch(rf"({PREFIXES})(/[\w.]+)+", name)} | set(ONCE_A_STEP)
    logged -= {"logps/x", "ref/x/logps/x"}  # f"logps/{side}" is read, not logged
    assert {"perf/mfu", "perf/seconds_per_step", "ref/x/score_seconds", "learning_rate"} <= logged
    assert homeless(logged, kinds=["train"]) == []


def names_in(text):
    """The metrics that a text names in backticks, with x for the name of a reference."""
    for word in re.findall(r"`([^`\s]+)`", re.sub(r"<name>|NAME|\*(?=/)", "x", text)):
        parts = [part.split(",") for part in re.split(r"[{}]", word)]
        for one in product(*parts):
            name = "".join(one)
            if re.fullmatch(rf"({PREFIXES})(/[\w.]+)+", name):
                yield name


def test_the_names_in_a_text_are_found():
    text = "`ref/<name>/{weight,margin}` and `ref/NAME/logps/*`, `perf/mfu`, `docs/x.md`, loss"
    assert list(names_in(text)) == ["ref/x/weight", "ref/x/margin", "perf/mfu"]


def test_every_metric_that_the_docs_name_has_a_place():
    files = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    named = {name for file in files for name in names_in(file.read_text(encoding="utf-8"))}
    assert len(named) > 15
    assert homeless(named) == []


def test_no_place_is_for_a_metric_that_nobody_logs():
    """A misspelt pattern would leave its chart out without a word."""
    losses = set(ONCE_A_STEP) | {"nll_loss", *COUNTS}
    for objective in OBJECTIVES.values():
        logps = batch_for(objective, seed=0, rows=3)
        names = [f"x{k}" for k in range(objective.references)]
        losses |= set(prompt_metrics(objective.loss(logps), logps, names, objective.needs.chosen))
    source = "".join((ROOT / "mrpo_ds" / file).read_text(encoding="utf-8") for file in ("train.py", "accounting.py"))
    unknown = []
    for section in SECTIONS:
        for line in (line for panel in section.panels for line in panel.lines):
            kind, _, name = line.pattern.partition("/")
            assert kind in ("train", "eval")
            if name.replace("*", "x0") not in losses and f'"{name}"' not in source:
                suffix = name.removeprefix("ref/*/")
                if f'ref/{{name}}/{suffix}"' not in source:
                    unknown.append(line.pattern)
    assert unknown == []


def test_every_panel_says_what_good_looks_like_in_a_sentence():
    panels = [panel for section in SECTIONS for panel in section.panels]
    assert [panel.title for panel in panels if not panel.good.endswith(".") or len(panel.good) > 120] == []
    titles = [panel.title for panel in panels]
    assert len(set(titles)) == len(titles)
    assert all(panel.unit for panel in panels)


def test_patterns_match_whole_names_of_any_reference():
    (weight,) = [line for s in SECTIONS for p in s.panels for line in p.lines if line.pattern == "train/ref/*/weight"]
    assert weight.match("train/ref/Llama-3.2_1B/weight") == "Llama-3.2_1B"
    assert weight.match("train/ref/a/b/weight") is None
    assert weight.match("eval/ref/a/weight") is None
    assert weight.match("train/ref/a/weight2") is None


def test_the_four_kinds_of_questions_have_their_sections():
    names = [section.name for section in SECTIONS]
    assert [name for name in names if name != "optimization"] == [
        "preference",
        "references",
        "performance",
        "evaluation",
    ]
