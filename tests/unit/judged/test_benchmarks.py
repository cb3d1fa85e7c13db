"""The benchmark files: those of the repository say what their protocols say, and a mistake is told with its key."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from mrpo_ds.errors import ConfigError
from mrpo_ds.judged.benchmarks import OURS, Prompts, fill, load_benchmark
from mrpo_ds.judged.prompts import BASELINE_FIRST, MODEL_FIRST, pair_calls, score_calls
from mrpo_ds.judged.records import Answer, Generation, Question
from mrpo_ds.types import Message

NAMES = ("alpaca_eval", "arena_hard", "hh_rlhf", "mt_bench")


def changed(path: Path, name: str, **changes: Any) -> str:
    """A copy of a benchmark's file with other values; a.b for nested ones."""
    content = yaml.safe_load((OURS / f"{name}.yaml").read_text(encoding="utf-8"))
    for key, value in changes.items():
        *outer, last = key.split("__")
        place = content
        for part in outer:
            place = place[part]
        place[last] = value
    (path / "mine.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return str(path / "mine.yaml")


def test_the_benchmarks_of_the_issue_are_there():
    assert sorted(path.stem for path in OURS.glob("*.yaml")) == sorted((*NAMES, "judge"))
    for name in NAMES:
        load_benchmark(name)


def test_mt_bench_has_the_temperatures_and_references_of_its_protocol():
    benchmark = load_benchmark("mt_bench")
    how = benchmark.generation
    expected = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}
    expected |= {"extraction": 0.0, "math": 0.0, "coding": 0.0, "reasoning": 0.0}
    assert {name: how.temperature_of(Question("1", ("?",), name)) for name in expected} == expected
    assert benchmark.reference_categories == ["math", "reasoning", "coding"]
    assert (benchmark.lowest, benchmark.highest) == (1, 10)


def test_arena_hard_counts_much_better_three_times():
    benchmark = load_benchmark("arena_hard")
    assert (benchmark.summary, benchmark.much_weight) == ("bradley_terry", 3)
    assert benchmark.labels == {
        **{"A>>B": "a_much", "A>B": "a", "A=B": "tie", "B>A": "b", "B>>A": "b_much"},
        **{"B<<A": "a_much", "B<A": "a", "B=A": "tie", "A<B": "b", "A<<B": "b_much"},
    }


def test_hh_rlhf_is_the_papers():
    benchmark = load_benchmark("hh_rlhf")
    assert (benchmark.questions.first, benchmark.questions.split) == (300, "test")
    assert benchmark.generation.max_new_tokens == 200


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("mt_bench", {"protocol": "marks"}, "protocol is 'marks'; allowed: scores | pairs"),
        ("mt_bench", {"protokol": "scores"}, "protokol: unknown key; did you mean 'protocol'"),
        ("mt_bench", {"labels": {"A": "a"}}, "labels is"),
        ("mt_bench", {"highest": 1.0}, "highest is 1.0; allowed: > lowest"),
        ("mt_bench", {"verdict": "(a"}, "verdict is '\\(a'; allowed: a regular expression with exactly one group"),
        ("mt_bench", {"verdict": "\\d"}, "exactly one group"),
        ("mt_bench", {"max_parse_failures": 2.0}, "max_parse_failures is 2.0"),
        ("mt_bench", {"prompts__first_turn": ""}, "prompts.first_turn is ''; allowed: a template"),
        (
            "mt_bench",
            {"prompts__first_turn": "{answer} {anser_1}"},
            r"prompts.first_turn is '\{anser_1\}'; allowed: \{ans",
        ),
        (
            "mt_bench",
            {"prompts__first_turn": "{question}"},
            "first_turn does not show .* \\{answer\\} or \\{answer_1\\}",
        ),
        ("mt_bench", {"prompts__second_turn": "{answer_1}"}, "prompts.second_turn does not show .* \\{answer_2\\}"),
        ("mt_bench", {"prompts__systems": {"third": "x"}}, "prompts.systems is 'third'; allowed: first_turn"),
        ("hh_rlhf", {"prompts__systems": {"first_turn": "x"}}, "prompts.systems is 'first_turn'; allowed: pair"),
        ("mt_bench", {"questions__layout": "csv"}, "questions.layout is 'csv'; allowed: mt_bench"),
        ("mt_bench", {"generation__max_new_tokens": 0}, "max_new_tokens is 0"),
        ("mt_bench", {"generation__temperature": -1.0}, "temperature"),
        ("arena_hard", {"prompts__pair": "{question} {answer_a}"}, "prompts.pair does not show .* \\{answer_b\\}"),
        ("arena_hard", {"labels": {"A": "a"}}, "at least one label for a and one for b"),
        ("arena_hard", {"labels": {"A": "best"}}, r"labels\[A\] is 'best'; allowed: a_much"),
        ("arena_hard", {"summary": "elo"}, "summary is 'elo'"),
        ("hh_rlhf", {"questions__first": 0}, "questions.first is 0"),
    ],
)
def test_a_mistake_is_told_with_its_file_and_key(tmp_path, name, changes, said):
    with pytest.raises(ConfigError, match=said) as told:
        load_benchmark(changed(tmp_path, name, **changes))
    assert "mine.yaml" in str(told.value)


def test_an_unknown_benchmark_names_the_known_ones():
    with pytest.raises(ConfigError, match="alpaca_eval, arena_hard, hh_rlhf, mt_bench, or the path of a YAML"):
        load_benchmark("mt-bench")


def test_generation_refuses_what_it_cannot_do():
    with pytest.raises(ConfigError, match="generation.seed is -1"):
        Generation(8, seed=-1)
    with pytest.raises(ConfigError, match="'math'"):
        Generation(8, temperature_by_category={"math": float("nan")})


# ---- templates -------------------------------------------------------------------------------------------------------


def test_braces_of_questions_and_answers_stay_as_they_are():
    filled = fill("{question}|{answer}|{x: 1}", {"question": "print({answer})", "answer": "{question} \\1 {}"})
    assert filled == "print({answer})|{question} \\1 {}|{x: 1}"


def test_the_second_turn_is_judged_with_the_first_and_references_where_there_are_some():
    prompts = Prompts(
        system="be fair",
        first_turn="1 {question} {answer}",
        second_turn="2 {question_1} {answer_1} {question} {answer}",
        first_turn_with_reference="1r {reference_1} {answer_1}",
        second_turn_with_reference="2r {reference_1} {reference_2} {answer_2}",
    )
    benchmark = replace(load_benchmark("mt_bench"), prompts=prompts)
    questions = [Question("1", ("q", "p"), "stem"), Question("2", ("u", "v"), "math", ("r", "s"))]
    answers = {name: Answer(name, (f"a{name}", f"b{name}")) for name in ("1", "2")}
    calls = score_calls(benchmark, "m", questions, answers)
    assert [call.messages[-1].content for call in calls] == ["1 q a1", "2 q a1 p b1", "1r r a2", "2r r s b2"]
    assert all(call.messages[0] == Message("system", "be fair") for call in calls)
    assert [(call.case.question, call.case.turn) for call in calls] == [("1", 1), ("1", 2), ("2", 1), ("2", 2)]


def test_fastchats_prompts_have_a_system_message_for_each_template(tmp_path):
    """The turns of a conversation are graded by an instruction that is the system message, with braces that stay."""
    grade = 'Grade the second answer, strictly as "[[rating]]", such as {this}: "Rating: [[5]]".\n\n'
    prompts = {
        "system": "You are a helpful assistant.",
        "systems": {"second_turn": grade, "second_turn_with_reference": ""},
        "first_turn": "[Question]\n{question}\n\n[Answer]\n{answer}\n[End]",
        "second_turn": "### User:\n{question_1}\n{answer_1}\n{question_2}\n{answer_2}",
        "first_turn_with_reference": "{question} {reference_1} {answer}",
        "second_turn_with_reference": "{reference_1} {reference_2} {answer_2}",
    }
    benchmark = load_benchmark(changed(tmp_path, "mt_bench", prompts=prompts))
    questions = [Question("81", ("q", "p"), "stem"), Question("111", ("u", "v"), "math", ("r", "s"))]
    answers = {name: Answer(name, (f"a{name}", f"b{name}")) for name in ("81", "111")}
    calls = score_calls(benchmark, "m", questions, answers)
    helpful = Message("system", prompts["system"])
    assert [call.messages[:-1] for call in calls] == [
        (helpful,),
        (Message("system", grade.strip()),),
        (helpful,),
        (),
    ]
    assert calls[1].messages[-1].content == "### User:\nq\na81\np\nb81"


def test_a_pair_in_both_orders_and_in_the_papers():
    benchmark = replace(load_benchmark("hh_rlhf"), prompts=Prompts(pair="{question}|{answer_a}|{answer_b}"))
    said = (Message("user", "Hi"), Message("assistant", "Hello"))
    questions = [Question("1", ("Why?",), history=said)]
    ours, theirs = {"1": Answer("1", ("mine",))}, {"1": Answer("1", ("yours",))}
    calls = pair_calls(benchmark, "m", questions, ours, theirs, single_order=False)
    talk = "Person: Hi\n\nAssistant: Hello\n\nPerson: Why?"
    assert [(call.case.order, call.messages[0].content) for call in calls] == [
        (MODEL_FIRST, f"{talk}|mine|yours"),
        (BASELINE_FIRST, f"{talk}|yours|mine"),
    ]
    assert pair_calls(benchmark, "m", questions, ours, theirs, single_order=True) == calls[:1]
