"""Judgments that say nothing are asked for again: cut ones where there is more room, others by an option."""

import json
from pathlib import Path

import pytest

from mrpo_ds.judged.judgments import Judgments
from tests.support import write_jsonl
from tests.unit.judged.loopback import COMPLETION, COST, PRICES, Answer, ask, calls, judge_at, ok, serving, spent
from tests.unit.judged.test_command import INSTRUCTIONS, judge_file, outputs, run


def saying(text: str, finish: str = "stop") -> Answer:
    return ok({**COMPLETION, "choices": [{"message": {"content": text}, "finish_reason": finish}]})


def lines(out: Path, name: str = "m") -> list[str]:
    return [json.loads(line)["judgment"] for line in (out / f"judgments/{name}.jsonl").read_text("utf-8").splitlines()]


def test_a_longer_max_tokens_asks_again_for_cut_judgments_alone(tmp_path):
    with serving(ok(), saying("", "length"), saying("Well, ", "length"), ok()) as (url, seen):
        judge = judge_at(url, concurrency=1, **PRICES)
        assert ask(tmp_path, judge, calls(3))[0].new == 3
        for same in (10, 5):
            outcome, _ = ask(tmp_path, judge_at(url, concurrency=1, **{**PRICES, "max_tokens": same}), calls(3))
            assert (outcome.new, outcome.cached) == (0, 3)
        longer = judge_at(url, concurrency=1, max_tokens_field="max_completion_tokens", **{**PRICES, "max_tokens": 20})
        outcome, kept = ask(tmp_path, longer, calls(3))
        assert (outcome.new, outcome.cached, len(seen)) == (2, 1, 5)
        assert ask(tmp_path, longer, calls(3))[0].new == 0
    assert lines(tmp_path) == ["[[7]]", "", "Well, ", "[[7]]", "[[7]]"], "what was there stays"
    for there in (kept, Judgments(tmp_path)):
        records = [there.find(longer.key(call)) or {} for call in calls(3)]
        assert [record["judgment"] for record in records] == ["[[7]]"] * 3
        assert [record["supersedes"] for record in records] == [0, 1, 1]
    assert outcome.usd == spent(tmp_path) == pytest.approx(5 * COST), "and was paid for"


def test_a_judgment_that_takes_the_place_of_another_does_so_for_every_model_that_answers_alike(tmp_path, capfd):
    both = [*calls(1, "b"), *calls(1, "a")]
    with serving(saying("", "length"), ok()) as (url, seen):
        ask(tmp_path, judge_at(url, max_tokens=10), both)
        longer = judge_at(url, max_tokens=20)
        ask(tmp_path, longer, both)
        ask(tmp_path, longer, both)
    assert len(seen) == 2
    assert lines(tmp_path, "a") == lines(tmp_path, "b") == ["", "[[7]]"]
    found = Judgments(tmp_path).find(longer.key(both[0]))
    assert found is not None and found["judgment"] == "[[7]]"
    for names in ("ab", "ba", "aab"):
        files = [str(tmp_path / f"judgments/{name}.jsonl") for name in names]
        assert run(capfd, "mt_bench", "--verdicts", *files, "--out", str(tmp_path / names))[0] == 0
        models = json.loads((tmp_path / names / "results.json").read_text(encoding="utf-8"))["models"]
        assert sorted((one["model"], one["mean"], one["no_verdict"]) for one in models) == [("a", 7, 0), ("b", 7, 0)]


def test_a_prompt_that_was_refused_is_no_verdict(tmp_path, capfd):
    with serving(ok(), (400, b"too long", {})) as (url, _):
        outcome, _ = ask(tmp_path, judge_at(url, concurrency=1), calls(2))
    assert len(outcome.failed) == 1
    words = ["--verdicts", str(tmp_path / "judgments/m.jsonl"), "--out", str(tmp_path / "out")]
    code, said, _ = run(capfd, "mt_bench", *words)
    assert code == 0 and "| 7.00" in said


def test_a_judgment_stays_where_no_other_comes(tmp_path):
    with serving(saying("Well, "), (400, b"no more", {})) as (url, _):
        judge = judge_at(url)
        ask(tmp_path, judge, calls(1))
        outcome, kept = ask(tmp_path, judge, calls(1), again=lambda call, record: True)
    found = kept.find(judge.key(calls(1)[0]))
    assert found is not None and found["judgment"] == "Well, " and len(outcome.failed) == 1


def test_unread_judgments_are_asked_for_again_by_an_option(tmp_path, capfd):
    questions = str(write_jsonl(tmp_path / "q.jsonl", INSTRUCTIONS))
    with serving(saying("Who knows?"), saying("[[A]]"), saying("[[A]] or [[B]]"), saying("[[B]]")) as (url, seen):
        words = ["alpaca_eval", outputs(tmp_path, "mine", "x"), "--baseline", outputs(tmp_path, "theirs", "y")]
        words += ["--questions", questions, "--judge", judge_file(tmp_path, url), "--out", str(tmp_path / "out")]
        assert run(capfd, *words)[0] == 1 and len(seen) == 6
        assert run(capfd, *words)[0] == 1 and len(seen) == 6, "without it nothing is asked twice"
        code, _, said = run(capfd, *words, "--retry-unread")
        assert code == 0 and len(seen) == 8 and "2 judgments made now, 4 were there" in said
        assert run(capfd, *words, "--retry-unread")[0] == 0 and len(seen) == 8
    code, _, said = run(
        capfd, "alpaca_eval", "--verdicts", str(tmp_path / "out/judgments/mine.jsonl"), "--retry-unread"
    )
    assert code == 2 and "--retry-unread is True; allowed: nothing with --verdicts" in said
