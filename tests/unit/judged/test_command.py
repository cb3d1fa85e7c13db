"""The command: what it refuses and how it says so, files of verdicts from end to end, the table, exit codes."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mrpo_ds.cli import main
from mrpo_ds.judged.benchmarks import OURS
from tests.support import ROOT, command_environment, write_jsonl
from tests.unit.judged.loopback import COMPLETION, ok, serving

QUESTIONS = [
    {"question_id": n, "category": "stem" if n % 2 else "writing", "turns": ["a?", "b?"]} for n in (81, 82, 83)
]
INSTRUCTIONS = [{"instruction": text} for text in ("Why?", "How?", "Who?")]


def run(capfd: Any, *words: str) -> tuple[int, str, str]:
    code = main(["judge", *words])
    said = capfd.readouterr()
    assert "Traceback" not in said.err
    return code, said.out, said.err


def fastchat(path: Path, *scores: float) -> str:
    """Verdicts on 81 turn 1, 81 turn 2, 82 turn 1, ..."""
    rows = [
        {"question_id": 81 + n // 2, "model": "m", "turn": 1 + n % 2, "score": score, "judgment": "..."}
        for n, score in enumerate(scores)
    ]
    return str(write_jsonl(path / "verdicts.jsonl", rows))


def outputs(path: Path, name: str, text: str) -> str:
    rows = [{**row, "output": f"{text} {row['instruction']}", "generator": name} for row in INSTRUCTIONS]
    return f"{name}={write_jsonl(path / f'{name}.jsonl', rows)}"


def judge_file(path: Path, url: str, **options: Any) -> str:
    content = {"base_url": url, "model": "j", "retries": 0, "concurrency": 1, "max_tokens": 10, **options}
    (path / "judge.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return str(path / "judge.yaml")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["mt_bench", "m"], "who judges is not said once; give --judge FILE or --verdicts FILE"),
        (["mt_bench", "m", "--judge", "j.yaml", "--verdicts", "v.jsonl"], "who judges is not said once"),
        (["mt_bench", "--judge", "j.yaml"], "MODEL is []; allowed: at least one with --judge"),
        (["nonsense", "m", "--judge", "j.yaml"], "BENCH is 'nonsense'; allowed: alpaca_eval, arena_hard"),
        (["mt_bench", "m", "--judge", "nowhere.yaml"], "judge file 'nowhere.yaml' does not exist"),
        (["mt_bench", "m", "--judge", "j.yaml", "--limit", "0"], "--limit is 0; allowed: >= 1 question"),
        (["mt_bench", "m", "--judge", "j.yaml", "--max-cost", "0"], "--max-cost is 0.0; allowed: > 0 USD"),
        (["mt_bench", "m", "--judge", "j.yaml", "--backend", "sglang"], "--backend is 'sglang'; allowed: transformers"),
        (
            ["mt_bench", "m", "--judge", "j.yaml", "--baseline", "b"],
            "--baseline is 'b'; allowed: nothing with",
        ),
        (["mt_bench", "m", "--judge", "j.yaml", "--single-order"], "--single-order is True"),
        (["hh_rlhf", "m", "--judge", "j.yaml"], "--baseline is None; allowed: NAME=PATH"),
        (["hh_rlhf", "m", "--judge", "j", "--baseline", "b", "--reference-answers", "r"], "--reference-answers is 'r'"),
        (["mt_bench", "--verdicts", "nowhere.jsonl"], "nowhere.jsonl' does not exist"),
        (
            ["mt_bench", "--verdicts", "v.jsonl", "--max-cost", "3"],
            "--max-cost is 3.0; allowed: nothing with",
        ),
        (["mt_bench", "m", "--judge", "j.yaml", "--resamples", "0"], "--resamples is 0"),
        (["mt_bench", "m", "--judge", "j.yaml", "--seed", "-1"], "--seed is -1"),
    ],
)
def test_a_mistake_in_the_command_is_one_line_and_code_2(tmp_path, monkeypatch, capfd, words, said):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capfd, *words)
    assert (code, out) == (2, "")
    assert said in err and len(err.strip().splitlines()) == 1


def test_verdicts_from_a_file_to_the_table(tmp_path, capfd):
    verdicts = fastchat(tmp_path, 8, 4, 6, 2, 10, 3)
    questions = str(write_jsonl(tmp_path / "q.jsonl", QUESTIONS))
    out = tmp_path / "out"
    words = ["mt_bench", "m", "--verdicts", verdicts, "--questions", questions, "--out", str(out), "--resamples", "50"]
    code, said, _ = run(capfd, *words)
    assert code == 0
    assert said.strip() == (out / "table.md").read_text(encoding="utf-8").strip()
    row = next(line for line in said.splitlines() if line.startswith("| m |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1].startswith("5.50 +-") and cells[3:] == ["8.00", "3.00", "6.25", "4.00", "6", "0"]
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert results["kind"] == "judged" and results["models"][0]["questions"] == {"81": 6, "82": 4, "83": 6.5}
    assert len(results["prompt_hashes"]) == 3 and results["versions"]["httpx"]
    before = (out / "results.json").read_bytes()
    assert run(capfd, *words)[0] == 0 and (out / "results.json").read_bytes() == before


def test_fewer_questions_and_verdicts_that_are_missing_are_said(tmp_path, capfd):
    verdicts = fastchat(tmp_path, 8, 4, 6)
    questions = str(write_jsonl(tmp_path / "q.jsonl", QUESTIONS))
    words = ["mt_bench", "--verdicts", verdicts, "--questions", questions, "--out", str(tmp_path / "out")]
    code, said, err = run(capfd, *words)
    assert code == 1 and "m: 3 judgments are missing." in said
    assert "failed: 3 judgments are missing; the files lack them" in err
    code, said, _ = run(capfd, *words, "--limit", "1")
    assert code == 0, "both turns of the one question are there"
    assert "1 verdicts on other questions are left out" in said and "| 6.00 +-" not in said and "6.00" in said


def test_verdicts_on_other_questions_alone_are_a_mistake(tmp_path, capfd):
    rows = [{"question_id": 1, "category": "stem", "turns": ["a?", "b?"]}]
    questions = str(write_jsonl(tmp_path / "q.jsonl", rows))
    words = ["--verdicts", fastchat(tmp_path, 8, 4), "--questions", questions, "--out", str(tmp_path / "out")]
    code, out, err = run(capfd, "mt_bench", *words)
    assert (code, out) == (2, "") and "none of the 2 verdicts of" in err and "is on one of the questions" in err


def test_a_model_without_a_verdict_is_an_error_also_where_all_may_fail(tmp_path, capfd):
    content = yaml.safe_load((OURS / "mt_bench.yaml").read_text(encoding="utf-8")) | {"max_parse_failures": 1.0}
    bench = tmp_path / "lenient.yaml"
    bench.write_text(yaml.safe_dump(content), encoding="utf-8")
    code, _, err = run(capfd, str(bench), "--verdicts", fastchat(tmp_path, -1, -1), "--out", str(tmp_path / "out"))
    assert code == 1 and "failed: m: there is no verdict" in err


def own(name: str, baseline: str, judge: str, label: str) -> list[dict[str, Any]]:
    """Four of our own records, each of another question."""
    head = {"model": name, "baseline": baseline, "judge": judge, "turn": 1, "order": "model_first"}
    return [head | {"key": f"{baseline}{n}", "question": f"q{n}", "judgment": f"[[{label}]]"} for n in range(4)]


def test_files_of_two_baselines_or_judges_are_not_one_table(tmp_path, capfd):
    """Four wins against one and four losses against another are no win rate of 50."""
    out = tmp_path / "out"
    wins, losses = own("m", "base", "j", "A"), own("m", "gpt4", "j", "B")
    both = str(write_jsonl(tmp_path / "both.jsonl", wins + losses))
    code, said, err = run(capfd, "alpaca_eval", "--verdicts", both, "--out", str(out))
    assert (code, said) == (2, "") and "of more than one baseline: base, gpt4; allowed in one table: one" in err
    other = str(write_jsonl(tmp_path / "other.jsonl", wins + own("n", "base", "k", "B")))
    code, _, err = run(capfd, "alpaca_eval", "--verdicts", other, "--out", str(out))
    assert code == 2 and "of more than one judge: j, k;" in err
    code, said, _ = run(capfd, "alpaca_eval", "m", "--verdicts", other, "--out", str(out), "--resamples", "20")
    assert code == 0 and "| 100.0 +- 0.0 |" in said and "Percent against base;" in said and "judge j" in said
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert (results["baseline"], results["settings"]["judge_of_verdicts"]) == ("base", "j")


def test_judgments_without_a_verdict_are_counted_and_too_many_are_an_error(tmp_path, capfd):
    code, said, err = run(
        capfd, "mt_bench", "--verdicts", fastchat(tmp_path, *[8] * 9, -1), "--out", str(tmp_path / "a")
    )
    assert (
        code == 0 and "| 9 | 1 (10.0 %) |" in said and "without a verdict, which are not scored: no verdict (1)" in said
    )
    assert "| 8.00 +- 0.00 |" in said, "-1 is no score"
    code, said, err = run(capfd, "mt_bench", "--verdicts", fastchat(tmp_path, 8, -1, -1), "--out", str(tmp_path / "b"))
    assert code == 1 and "m: 66.7 % of the judgments have no verdict (max_parse_failures is 10 %)" in err
    assert (tmp_path / "b/table.md").is_file()


def test_answers_of_files_are_judged_in_both_orders(tmp_path, capfd):
    """A judge that always says A is no better for either: a win rate of a half, and its bias is shown."""
    questions = str(write_jsonl(tmp_path / "q.jsonl", INSTRUCTIONS))
    answer = {**COMPLETION, "choices": [{"message": {"content": "First! [[A]]"}, "finish_reason": "stop"}]}
    with serving(ok(answer)) as (url, seen):
        words = ["alpaca_eval", outputs(tmp_path, "mine", "Long words on"), "--questions", questions]
        words += ["--baseline", outputs(tmp_path, "theirs", "On"), "--judge", judge_file(tmp_path, url)]
        code, said, err = run(capfd, *words, "--out", str(tmp_path / "out"), "--resamples", "20")
        assert code == 0 and len(seen) == 6
        row = next(line for line in said.splitlines() if line.startswith("| mine |"))
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[1].startswith("50.0 +- 0.0")
        assert cells[3:8] == ["50.0 / 0.0 / 50.0", "100.0 / 0.0 / 0.0", "0.0 / 0.0 / 100.0", "100.0", "100.0"]
        assert "cost unknown, no prices given" in err
        code, said, _ = run(capfd, *words, "--out", str(tmp_path / "out"), "--resamples", "20", "--single-order")
        assert code == 0 and len(seen) == 6, "the first order is there already"
        assert "| 100.0 +- 0.0 |" in said and "Judged in one order only" in said
    results = json.loads((tmp_path / "out/results.json").read_text(encoding="utf-8"))
    assert results["settings"]["single_order"] is True and results["baseline"] == "theirs"
    assert results["spend"]["served_models"] == ["judge-2024"]
    files = [str(tmp_path / "out/judgments/mine.jsonl")]
    code, said, _ = run(capfd, "alpaca_eval", "mine", "--verdicts", *files, "--out", str(tmp_path / "again"))
    assert code == 0 and "| 50.0 +- 0.0 |" in said, "our own records are a file of verdicts"


def test_the_cap_stops_in_order_with_what_was_spent(tmp_path, capfd):
    questions = str(write_jsonl(tmp_path / "q.jsonl", INSTRUCTIONS))
    prices = {"usd_per_million_input": 0.0, "usd_per_million_output": 10_000.0}
    with serving(ok()) as (url, seen):
        judge = judge_file(tmp_path, url, **prices)
        words = ["alpaca_eval", outputs(tmp_path, "mine", "x"), "--baseline", outputs(tmp_path, "theirs", "y")]
        words += ["--questions", questions, "--judge", judge, "--out", str(tmp_path / "out")]
        code, said, err = run(capfd, *words, "--max-cost", "0.14")
        assert code == 1 and len(seen) == 2
        assert "--max-cost 0.14 USD: 0.0600 USD are spent" in err
        assert "2 judgments are kept, 4 are missing" in err and "mine: 4 judgments are missing." in said
    unpriced = judge_file(tmp_path, "http://127.0.0.1:9/v1")
    code, _, err = run(capfd, *words[:-3], unpriced, *words[-2:], "--max-cost", "1")
    assert code == 2 and "--max-cost is 1.0; allowed: nothing without usd_per_million_*" in err


def test_one_model_whose_judgments_say_nothing_is_not_hidden_among_others(tmp_path, capfd):
    rows = [{"question_id": n, "model": "good", "turn": 1, "score": 5} for n in range(30)]
    rows += [{"question_id": n, "model": "bad", "turn": 1, "score": -1 if n else 5} for n in range(3)]
    words = ["--verdicts", str(write_jsonl(tmp_path / "v.jsonl", rows)), "--out", str(tmp_path / "out")]
    code, _, err = run(capfd, "mt_bench", *words)
    assert code == 1 and "failed: bad: 66.7 %" in err and "failed: good" not in err


def test_a_second_signal_does_not_wait_for_the_judge(tmp_path):
    questions = str(write_jsonl(tmp_path / "q.jsonl", INSTRUCTIONS))
    with serving(ok(), seconds_a_byte=60) as (url, seen):
        words = ["alpaca_eval", outputs(tmp_path, "mine", "x"), "--baseline", outputs(tmp_path, "theirs", "y")]
        words += ["--questions", questions, "--judge", judge_file(tmp_path, url), "--out", str(tmp_path / "out")]
        command = [sys.executable, "-m", "mrpo_ds", "judge", *words]
        process = subprocess.Popen(command, cwd=ROOT, env=command_environment(), stderr=subprocess.PIPE, text=True)
        wait_until(lambda: bool(seen), process)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        while "SIGINT: waiting for the calls under way" not in (line := process.stderr.readline()):
            assert line, "it has ended"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == -signal.SIGINT
        assert "Traceback" not in process.stderr.read()


def wait_until(holds: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not holds():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


def test_references_are_asked_for_before_anything_is_answered(tmp_path, capfd):
    rows = [{"question_id": 101, "category": "math", "turns": ["a?"]}]
    questions = str(write_jsonl(tmp_path / "q.jsonl", rows))
    answers = write_jsonl(tmp_path / "a.jsonl", [{"question_id": 101, "choices": [{"turns": ["x"]}]}])
    with serving(ok()) as (url, seen):
        words = ["mt_bench", f"m={answers}", "--questions", questions, "--judge", judge_file(tmp_path, url)]
        code, _, err = run(capfd, *words, "--out", str(tmp_path / "out"))
        assert code == 2 and "--reference-answers is None" in err and not seen
        file = write_jsonl(tmp_path / "r.jsonl", [{"question_id": 101, "choices": [{"turns": ["the solution"]}]}])
        code, said, _ = run(capfd, *words, "--reference-answers", str(file), "--out", str(tmp_path / "out"))
        assert code == 0 and "| 7.00" in said
        assert "<solution>\nthe solution\n</solution>" in seen[0]["body"]["messages"][-1]["content"]


def test_both_turns_of_a_math_question_are_judged_beside_their_references(tmp_path, capfd):
    rows = [
        {"question_id": 81, "category": "writing", "turns": ["Write.", "Shorter."]},
        {"question_id": 111, "category": "math", "turns": ["1 + 1?", "Twice that?"]},
    ]
    questions = str(write_jsonl(tmp_path / "q.jsonl", rows))
    said_by = [{"question_id": row["question_id"], "choices": [{"turns": ["two", "four"]}]} for row in rows]
    answers = write_jsonl(tmp_path / "a.jsonl", said_by)
    known = [{"question_id": 111, "choices": [{"turns": ["It is 2.", "It is 4."]}]}]
    references = str(write_jsonl(tmp_path / "r.jsonl", known))
    with serving(ok()) as (url, seen):
        words = ["mt_bench", f"m={answers}", "--questions", questions, "--judge", judge_file(tmp_path, url)]
        code, said, _ = run(capfd, *words, "--reference-answers", references, "--out", str(tmp_path / "out"))
    assert code == 0 and "| 7.00" in said
    texts = [one["body"]["messages"][-1]["content"] for one in seen]
    shown = [[part in text for part in ("It is 2.", "It is 4.", "Twice that?", "four")] for text in texts]
    assert shown == [[False] * 4, [False] * 3 + [True], [True] + [False] * 3, [True] * 4]
    assert not any("{" in text for text in texts), "every name is filled"


def test_the_help_names_what_there_is(capfd):
    with pytest.raises(SystemExit) as left:
        main(["judge", "--help"])
    assert left.value.code == 0
    said = capfd.readouterr().out
    assert "--single-order" in said and "--max-cost" in said
    assert {path.stem for path in OURS.glob("*.yaml")} >= {"mt_bench", "judge"}
