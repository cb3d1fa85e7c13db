"""What a judge's words mean, and which of them mean nothing; files of others' verdicts."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrpo_ds.errors import ConfigError, DataError
from mrpo_ds.judged.benchmarks import load_benchmark
from mrpo_ds.judged.prompts import BASELINE_FIRST, MODEL_FIRST, Case
from mrpo_ds.judged.questions import read_questions, text_id
from mrpo_ds.judged.verdict_files import Filed, models_of, origin_of, read_verdict_files
from mrpo_ds.judged.verdicts import Verdict, read_verdict, weighed
from tests.support import write_jsonl

SCORES, ARENA, PAIRS = (load_benchmark(name) for name in ("mt_bench", "arena_hard", "alpaca_eval"))
ONE = Case("m", "81", 1)
FIRST, SECOND = Case("m", "q", 1, MODEL_FIRST), Case("m", "q", 1, BASELINE_FIRST)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Good. [[7]]", 7),
        ("Rating: [[ 8.5 ]]", 8.5),
        ("[[10]] as I said: [[10]]", 10),
        ("[[1]]", 1),
        ('`if [[ -f "$f" ]]` is right, and so is the matrix [[1, 2]]. [[7]]', 7),
        ("The form is [[rating]]. [[7]]", 7),
        ("[[8]], that is [[8.0]]", 8),
        ("<think>[[4]]? No, [[6]].</think>Good. [[7]]", 7),
        ("[[4]]? No, [[6]].</think>\n[[7]]", 7),
        ("It has an empty <think> tag. [[7]]", 7),
    ],
)
def test_a_score_is_what_stands_in_the_brackets(text, value):
    assert read_verdict(SCORES, ONE, {"judgment": text}).value == value


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        ("", "no verdict"),
        ("I would give 7 of 10.", "no verdict"),
        ("[7]", "no verdict"),
        ("[[0]]", "out of range: 0"),
        ("[[11]]", "out of range: 11"),
        ("[[-3]]", "no number: '-3'"),
        ("[[7/10]]", "no number: '7/10'"),
        ("[[nan]]", "no number: 'nan'"),
        ("[[rating]]", "no number: 'rating'"),
        ("[[1e1]]", "no number: '1e1'"),
        ("first [[7]], second [[4]]", "several verdicts: 7, 4"),
        ("[[7", "no verdict"),
        ("<think>maybe [[4]] hmm the answer is", "a thought without an end"),
        ("So:\n <think>[[4]]", "a thought without an end"),
        ("<think>[[4]]</think>", "no verdict"),
    ],
)
def test_nonsense_is_never_a_score(text, failure):
    found = read_verdict(SCORES, ONE, {"judgment": text})
    assert (found.value, found.failure) == (None, failure)


def test_a_judgment_that_was_cut_says_so():
    found = read_verdict(SCORES, ONE, {"judgment": "The answer", "finish_reason": "length"})
    assert found.failure == "no verdict (cut at max_tokens of the judge)"
    assert read_verdict(SCORES, ONE, {"judgment": None}).failure == "no verdict"
    found = read_verdict(SCORES, ONE, {"judgment": "maybe [[4]] hmm, the", "finish_reason": "length"})
    assert found.failure == "no verdict at the end (cut at max_tokens of the judge)"
    assert read_verdict(SCORES, ONE, {"judgment": "So **[[4]]**.\n", "finish_reason": "length"}).value == 4


FIVE = [("A>>B", 1, True), ("A>B", 1, False), ("A=B", 0.5, False), ("B>A", 0, False), ("B>>A", 0, True)]
MIRRORED = [("B<<A", 1, True), ("B<A", 1, False), ("B=A", 0.5, False), ("A<B", 0, False), ("A<<B", 0, True)]


@pytest.mark.parametrize(("label", "value", "much"), FIVE + MIRRORED)
def test_the_five_verdicts_in_both_orders(label, value, much):
    record = {"judgment": f"Because. [[{label}]]"}
    assert read_verdict(ARENA, FIRST, record) == Verdict(FIRST, value, much)
    assert read_verdict(ARENA, SECOND, record) == Verdict(SECOND, 1 - value, much)


@pytest.mark.parametrize("text", ["[[C]]", "A>B", "[[A>B]] or rather [[B>A]]", "[[Assistant A]]"])
def test_other_labels_are_no_verdicts(text):
    assert read_verdict(ARENA, FIRST, {"judgment": text}).value is None


def test_quoted_code_and_another_case_do_not_hide_a_label():
    text = 'A tests `[[ -f "$f" ]]` and prints [[1, 2]]; B is wrong. '
    assert read_verdict(ARENA, FIRST, {"judgment": f"{text}[[A>B]]"}) == Verdict(FIRST, 1)
    assert read_verdict(ARENA, FIRST, {"judgment": "[[A>B]], or as I said [[B<A]]"}) == Verdict(FIRST, 1)
    assert read_verdict(PAIRS, FIRST, {"judgment": "[[Tie]]"}).value == 0.5
    assert read_verdict(PAIRS, FIRST, {"judgment": text}).failure == "unknown verdict: '-f \"$f\"'"
    cased = replace(PAIRS, labels={"m": "a", "M": "b", "tie": "tie"})
    assert [read_verdict(cased, FIRST, {"judgment": f"[[{said}]]"}).value for said in ("m", "M", "TIE")] == [1, 0, None]


@given(st.text())
def test_any_words_are_a_verdict_in_range_or_a_failure_with_a_reason(text):
    for benchmark, case, low, high in ((SCORES, ONE, 1, 10), (PAIRS, SECOND, 0, 1)):
        found = read_verdict(benchmark, case, {"judgment": text})
        assert (found.value is None) == bool(found.failure)
        assert found.value is None or low <= found.value <= high


def test_a_weighed_verdict_by_hand():
    """P(A) = 0.6, P(B) = 0.2 of what the judge might say first: 0.6 / 0.8; with P(tie) = 0.1 it is 0.65 / 0.9."""
    top = {"A": math.log(0.6), "B": math.log(0.2), "The": math.log(0.15)}
    assert weighed(PAIRS.labels, top) == pytest.approx(0.75)
    assert weighed(PAIRS.labels, top | {"tie": math.log(0.1)}) == pytest.approx(0.65 / 0.9)
    assert weighed(PAIRS.labels, {"The": -0.1}) is None
    record = {"judgment": "A", "first_token": top}
    found = read_verdict(PAIRS, FIRST, record)
    assert found.value == pytest.approx(0.75)
    assert read_verdict(PAIRS, SECOND, record).value == pytest.approx(0.25)
    assert weighed(PAIRS.labels, top | {"a": math.log(0.2)}) == pytest.approx(0.8), "A in another case"
    cut = record | {"finish_reason": "length"}  # AlpacaEval's own judge may say one token and no more
    assert read_verdict(PAIRS, FIRST, cut).value == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("A good answer is short. [[B]]", 0),  # an article
        ("A\nis short.\nB\nis better. [[B]]", 0),  # a heading
        ("Because of this: [[B]]", 0),
        ("<think>A</think>[[B]]", 0),
        ("A good answer is short.", None),
    ],
)
def test_a_first_token_is_no_verdict_of_a_judge_that_reasons_first(text, value):
    top = {"A": math.log(0.9), "B": math.log(0.05)}
    assert read_verdict(PAIRS, FIRST, {"judgment": text, "first_token": top}).value == value


def test_a_first_token_that_was_hardly_a_label_is_not_weighed():
    top = {"The": math.log(0.6), "A": math.log(0.3), "B": math.log(0.1)}
    assert weighed(PAIRS.labels, top) is None
    assert read_verdict(PAIRS, FIRST, {"judgment": "A", "first_token": top}).failure == "no verdict"


# ---- files of verdicts -----------------------------------------------------------------------------------------------


def read(benchmark: Any, path: Path, rows: list[dict[str, Any]]) -> list[Verdict]:
    return [one.verdict for one in filed(benchmark, path, rows)]


def filed(benchmark: Any, path: Path, rows: list[dict[str, Any]]) -> list[Filed]:
    return read_verdict_files(benchmark, [str(write_jsonl(path / "verdicts.jsonl", rows))])


def test_our_own_records(tmp_path):
    head = {"key": "k1", "model": "m", "baseline": None, "question": "81", "turn": 2, "order": ""}
    rows = [
        head | {"judgment": "[[3]]"},
        head | {"judgment": "[[3]]"},  # the same record again
        head | {"key": "k2", "judgment": "hm", "question": "82"},
        head | {"key": "k2", "lost": "timed out", "usd": 0.1},
    ]
    found = read(SCORES, tmp_path, rows)
    assert [(one.case, one.value) for one in found] == [(Case("m", "81", 2), 3), (Case("m", "82", 2), None)]


def test_fastchats_single_answers(tmp_path):
    row = {"question_id": 81, "model": "m", "judge": ["gpt-4", "single-v1"], "judgment": "[[9]]", "turn": 1}
    rows = [row | {"score": 9}, row | {"score": -1, "turn": 2}, row | {"score": 12, "question_id": 82}]
    found = read(SCORES, tmp_path, rows)
    assert [one.value for one in found] == [9, None, None]
    assert found[0].case == ONE and found[2].failure == "out of range: 12"
    assert read(SCORES, tmp_path, [row | {"score": 9}, row | {"score": 3}])[1].value == 3, "all count, as in FastChat"


def test_arena_hards_games_have_the_baseline_first_in_the_first(tmp_path):
    row = {"uid": "q", "model": "m", "judge": "j", "games": [{"score": "A>>B"}, {"score": "A=B"}]}
    found = read(ARENA, tmp_path, [row, {**row, "uid": "r", "games": [{"score": None}, {"score": "[[A<<B]]"}]}])
    assert found[:2] == [Verdict(SECOND, 0, True), Verdict(FIRST, 0.5)]
    assert found[2].failure == "no verdict" and found[3] == Verdict(replace(FIRST, question="r"), 0, True)


def test_alpaca_evals_preferences(tmp_path):
    row = {"instruction": "Why?", "generator_1": "base", "generator_2": "m"}
    values = (1, 2, 1.5, 0, 1.25, None, 3)
    found = read(PAIRS, tmp_path, [row | {"preference": value} for value in values])
    assert [one.value for one in found] == [0, 1, 0.5, 0.5, 0.25, None, None]
    assert found[0].case == Case("m", text_id("Why?"), 1, MODEL_FIRST)


def test_an_instruction_that_comes_twice_is_two_questions_as_in_the_file_of_questions(tmp_path):
    rows = [
        {"instruction": text, "generator_1": "base", "generator_2": model, "preference": 1}
        for model in ("m", "n")
        for text in ("a", "b", "a")
    ]
    questions = write_jsonl(tmp_path / "questions.jsonl", [{"instruction": text, "output": ""} for text in "aba"])
    asked = [one.id for one in read_questions(PAIRS, str(questions), None).questions]
    found = read(PAIRS, tmp_path, rows)
    assert [one.case.question for one in found] == asked + asked
    assert len({one.case for one in found}) == 6


OWN = {"key": "k", "model": "m", "question": "q", "turn": 1, "order": MODEL_FIRST, "judgment": "[[A>B]]"}
GAMES = {"uid": "q", "model": "m", "games": [{"score": "A>B"}]}
ANNOTATED = {"instruction": "q", "generator_2": "m", "preference": 1.5}


@pytest.mark.parametrize(
    ("benchmark", "row", "baseline", "judge"),
    [
        (
            SCORES,
            {"question_id": 81, "model": "m", "judge": ["gpt-4", "single-v1"], "turn": 1, "score": 9},
            "",
            "gpt-4",
        ),
        (ARENA, OWN | {"baseline": "base", "judge": "j"}, "base", "j"),
        (ARENA, GAMES | {"judge": "j"}, "", "j"),
        (ARENA, GAMES | {"judge": "j", "baseline": "o3"}, "o3", "j"),
        (PAIRS, ANNOTATED | {"generator_1": "base", "annotator": "weighted"}, "base", "weighted"),
        (PAIRS, ANNOTATED, "", ""),
    ],
)
def test_each_layout_says_the_baseline_and_the_judge(tmp_path, benchmark, row, baseline, judge):
    assert origin_of(filed(benchmark, tmp_path, [row])) == (baseline, judge)


@pytest.mark.parametrize(
    ("benchmark", "rows", "said"),
    [
        (ARENA, [OWN | {"baseline": name, "key": name} for name in ("base", "gpt4")], "one baseline: base, gpt4;"),
        (ARENA, [OWN | {"judge": name, "key": name} for name in ("j", "k")], "one judge: j, k;"),
        (ARENA, [GAMES | {"judge": name} for name in ("j", "k")], "one judge: j, k;"),
        (ARENA, [GAMES, OWN | {"baseline": "base"}], "one baseline: base, one that is not named;"),
        (PAIRS, [ANNOTATED | {"generator_1": name} for name in ("a", "b")], "one baseline: a, b;"),
    ],
)
def test_verdicts_of_two_baselines_or_judges_are_not_put_together(tmp_path, benchmark, rows, said):
    with pytest.raises(DataError, match=f"the verdicts are of more than {said} allowed in one table: one"):
        origin_of(filed(benchmark, tmp_path, rows))


def test_a_file_of_lost_attempts_has_no_verdict(tmp_path):
    with pytest.raises(DataError, match=r"verdicts.jsonl: there is no verdict; allowed: lines of"):
        read(PAIRS, tmp_path, [{"key": "k", "lost": "timed out", "usd": 0.1}])


@pytest.mark.parametrize(
    ("benchmark", "row"),
    [
        (SCORES, {"question": "81", "mark": 3}),
        (SCORES, {"question_id": 81, "score": 3}),
        (SCORES, {"question_id": 81, "score": "good", "model": "m", "turn": 1}),
        (PAIRS, {"question_id": 81, "score": 3, "model": "m", "turn": 1}),
        (PAIRS, {"key": "k", "judgment": "[[A]]", "model": "m", "question": "q", "turn": 1, "order": ""}),
    ],
)
def test_a_row_of_no_layout_is_named_with_what_is_allowed(tmp_path, benchmark, row):
    with pytest.raises(DataError, match=r"verdicts.jsonl row 1 .*FastChat"):
        read(benchmark, tmp_path, [row])


def test_models_are_those_of_the_files():
    verdicts = [Filed(Verdict(Case(name, "q", 1), 1.0), "", "") for name in ("a", "b", "a")]
    assert models_of(verdicts, []) == ["a", "b"]
    assert models_of(verdicts, ["b"]) == ["b"]
    with pytest.raises(ConfigError, match="MODEL is 'c'; allowed with --verdicts: those of the files, a, b"):
        models_of(verdicts, ["c"])


def test_a_judgment_is_read_as_it_was_written(tmp_path):
    """U+2028 and braces in what a judge says neither end a line nor change the verdict."""
    head = {"key": "k", "model": "m", "question": "81", "turn": 1, "order": "", "judgment": "a\u2028b {x} [[4]]"}
    (tmp_path / "one.jsonl").write_text(json.dumps(head, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_verdict_files(SCORES, [str(tmp_path / "one.jsonl")])[0].verdict.value == 4
