"""Questions, reference answers and answers from files in the published layouts, and from files that are none."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from mrpo_ds.errors import ConfigError, DataError
from mrpo_ds.judged.answer_files import read_answers
from mrpo_ds.judged.benchmarks import load_benchmark
from mrpo_ds.judged.questions import read_questions, text_id, with_references
from mrpo_ds.judged.records import Answer, Question
from mrpo_ds.types import Message
from tests.support import write_jsonl

DATA = (Path(__file__).parents[3] / "../shared/data").resolve()
published = pytest.mark.skipif(not (DATA / "README.md").is_file(), reason="the public data is not beside the repo")


def questions_of(path: Path, name: str, rows: list[dict[str, Any]], limit: int | None = None) -> tuple[Question, ...]:
    return read_questions(load_benchmark(name), str(write_jsonl(path / "rows.jsonl", rows)), limit).questions


@pytest.mark.parametrize(
    ("name", "row", "question"),
    [
        (
            "mt_bench",
            {"question_id": 81, "category": "math", "turns": ["a", "b"], "reference": ["x", "y"]},
            Question("81", ("a", "b"), "math"),
        ),
        ("arena_hard", {"uid": "u", "category": "c", "prompt": "a"}, Question("u", ("a",), "c")),
        ("arena_hard", {"question_id": "u", "turns": [{"content": "a"}]}, Question("u", ("a",))),
        ("alpaca_eval", {"instruction": "a", "dataset": "d", "output": "o"}, Question(text_id("a"), ("a",), "d")),
        (
            "hh_rlhf",
            {"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d", "rejected": "?"},
            Question(
                text_id("user: a\n\nassistant: b\n\nuser: c"),
                ("c",),
                history=(Message("user", "a"), Message("assistant", "b")),
            ),
        ),
    ],
)
def test_a_row_of_each_layout(tmp_path, name, row, question):
    assert questions_of(tmp_path, name, [row]) == (question,)


def test_the_first_questions_and_those_that_come_twice(tmp_path):
    rows = [{"instruction": text} for text in ("a", "b", "a", "c")]
    names = [one.id for one in questions_of(tmp_path, "alpaca_eval", rows)]
    assert names == [text_id("a"), text_id("b"), f"{text_id('a')}#2", text_id("c")]
    assert len(questions_of(tmp_path, "alpaca_eval", rows, limit=2)) == 2


def test_hh_rows_without_a_question_are_left_out_and_300_are_taken(tmp_path):
    rows = [{"chosen": f"\n\nHuman: {n}\n\nAssistant: x", "rejected": ""} for n in range(310)]
    rows[4] = {"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: \n\nAssistant: c", "rejected": ""}
    found = read_questions(load_benchmark("hh_rlhf"), str(write_jsonl(tmp_path / "rows.jsonl", rows)), None)
    assert (len(found.questions), found.skipped) == (300, 1)
    assert found.questions[-1].turns == ("300",)


@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        ("mt_bench", {"question_id": 1, "turns": ["a"]}, "row 1 is no question of the layout: KeyError 'category'"),
        ("mt_bench", {"question_id": 1, "category": "c", "turns": "a"}, "turns is no list of texts"),
        ("mt_bench", {"question_id": 1, "category": "c", "turns": []}, "turns is no list of texts"),
        (
            "mt_bench",
            {"prompt_id": 44067482, "category": "writing", "prompt": ["a", "b"], "reference": []},
            "ValueError prompt_id is not FastChat's number of a question",
        ),
        ("arena_hard", {"instruction": "a"}, "its columns are instruction"),
        ("alpaca_eval", {"instruction": " "}, "row 1 has an empty question"),
    ],
)
def test_another_row_is_refused_with_its_place(tmp_path, name, row, said):
    with pytest.raises(DataError, match=f"rows.jsonl {said}|{said}"):
        questions_of(tmp_path, name, [row])


def test_without_a_file_and_a_data_set_there_are_no_questions():
    with pytest.raises(ConfigError, match="--questions is None; allowed: a file in the layout of alpaca_eval"):
        read_questions(load_benchmark("alpaca_eval"), None, None)
    with pytest.raises(DataError, match="nowhere.jsonl' does not exist"):
        read_questions(load_benchmark("alpaca_eval"), "nowhere.jsonl", None)


# ---- reference answers -----------------------------------------------------------------------------------------------


def test_references_go_to_their_categories_alone(tmp_path):
    questions = (Question("1", ("a", "b"), "math"), Question("2", ("c", "d"), "stem", ("own", "own")))
    rows = [{"question_id": name, "choices": [{"turns": ["r", "s"]}]} for name in (1, 2)]
    file = str(write_jsonl(tmp_path / "references.jsonl", rows))
    assert [one.reference for one in with_references(questions, file, ["math"])] == [("r", "s"), ()]
    assert [one.reference for one in with_references(questions, None, [])] == [(), ()]
    with pytest.raises(ConfigError, match="--reference-answers is None; allowed: a file .* 1 questions of math"):
        with_references(questions, None, ["math"])
    with pytest.raises(DataError, match="no reference answer to 2 turns of question 3"):
        with_references((Question("3", ("a", "b"), "math"),), file, ["math"])
    with pytest.raises(DataError, match="row 1 is no reference answer"):
        with_references(questions, str(write_jsonl(tmp_path / "other.jsonl", [{"question_id": 1}])), ["math"])


# ---- answers of others -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "question"),
    [
        ({"question_id": 1, "choices": [{"turns": ["x", "y"]}]}, Question("1", ("a", "b"))),
        ({"question_id": "1", "choices": [{"turns": [{"content": "x"}, {"content": "y"}]}]}, Question("1", ("a", "b"))),
        (
            {
                "uid": "1",
                "messages": [
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "content": {"answer": "x"}},
                    {"role": "user", "content": "b"},
                    {"role": "assistant", "content": "y"},
                ],
            },
            Question("1", ("a", "b")),
        ),
        ({"instruction": "a", "output": "x"}, Question(text_id("a"), ("a",))),
        (
            {"question": "1", "turns": ["x", "y"], "tokens": [3, 4], "finished": [True, False]},
            Question("1", ("a", "b")),
        ),
    ],
)
def test_answers_of_each_layout(tmp_path, row, question):
    file = str(write_jsonl(tmp_path / "answers.jsonl", [{"settings": {}, "made": {}}, row]))
    (answer,) = read_answers(file, [question])
    assert answer.question == question.id
    assert answer.turns == ("x", "y")[: len(question.turns)]
    if "tokens" in row:
        assert answer == Answer("1", ("x", "y"), (3, 4), (True, False))


def test_an_instruction_that_comes_twice_has_two_answers(tmp_path):
    rows = [{"instruction": text, "output": f"{text}{n}"} for n, text in enumerate(("a", "b", "a"))]
    questions = questions_of(tmp_path, "alpaca_eval", rows)
    file = str(write_jsonl(tmp_path / "answers.jsonl", rows))
    assert [one.turns[0] for one in read_answers(file, questions)] == ["a0", "b1", "a2"]


def test_answers_that_are_missing_or_double_are_refused(tmp_path):
    rows = [{"question_id": 1, "choices": [{"turns": ["x"]}]}]
    file = str(write_jsonl(tmp_path / "answers.jsonl", rows))
    with pytest.raises(DataError, match=r"no whole answer to 2 of 2 questions \(first: 1\)"):
        read_answers(file, [Question("1", ("a", "b")), Question("2", ("a",))])
    twice = [*rows, {"question_id": 1, "choices": [{"turns": ["y"]}]}]
    with pytest.raises(DataError, match="row 2 is a second answer to question 1"):
        read_answers(str(write_jsonl(tmp_path / "twice.jsonl", twice)), [Question("1", ("a",))])
    with pytest.raises(DataError, match="row 1 is no answer .*FastChat"):
        read_answers(str(write_jsonl(tmp_path / "none.jsonl", [{"prompt": "a"}])), [Question("1", ("a",))])


# ---- published files -------------------------------------------------------------------------------------------------


@published
@pytest.mark.parametrize(
    ("name", "file", "count"),
    [
        ("mt_bench", "eval/mt_bench/question.jsonl", 80),
        ("arena_hard", "eval/arena_hard/question_v0.1.jsonl", 400),
        ("arena_hard", "eval/arena_hard/question_v2.0.jsonl.gz", 599),
        ("alpaca_eval", "eval/alpaca_eval/alpaca_eval.jsonl", 613),
        ("hh_rlhf", "preference/hh-rlhf/helpful-base.test.eval.jsonl.gz", 299),
    ],
)
def test_published_questions(name, file, count):
    benchmark = load_benchmark(name)
    questions = read_questions(benchmark, str(DATA / file), None).questions
    assert len(questions) == len({one.id for one in questions}) == count
    if name == "mt_bench":
        referred = with_references(
            questions, str(DATA / "eval/mt_bench/reference_answer_gpt-4.jsonl"), benchmark.reference_categories
        )
        assert sum(len(one.reference) == 2 for one in referred) == 30


@published
def test_published_answers():
    arena = DATA / "eval/arena_hard"
    questions = read_questions(load_benchmark("arena_hard"), str(arena / "question_v0.1.jsonl"), None).questions
    file = arena / "model_answer_v0.1/gpt-4-0314.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(file.read_bytes()).decode().split("\n") if line]
    direct = {row["uid"]: row["messages"][-1]["content"]["answer"] for row in rows}
    answers = read_answers(str(file), questions)
    assert {one.question: one.turns[0] for one in answers} == direct
    alpaca = str(DATA / "eval/alpaca_eval/alpaca_eval.jsonl")
    asked = read_questions(load_benchmark("alpaca_eval"), alpaca, None).questions
    assert all(one.turns[0] for one in read_answers(alpaca, asked[:20]))
