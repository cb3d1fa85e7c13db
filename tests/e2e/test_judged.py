"""`mrpo-ds judge` from the models to the table, by a judge on loopback with a real model behind it; what goes wrong.

The test marked `leaderboard` takes a real model and the published questions beside the repository, for minutes.
"""

import contextlib
import gzip
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from mrpo_ds import console
from mrpo_ds.cli import main
from tests.judge_server import JudgeServer, judge_server, key_of
from tests.support import ROOT, command_environment, make_model, need, write_jsonl

DATA = (ROOT / "../shared/data").resolve()
SMOLLM2 = ROOT / ".cache/models/SmolLM2-135M-Instruct"
PAIRS = ("[[A]]", "[[B]]", "[[tie]]")
FIVE = ("[[A>>B]]", "[[A>B]]", "[[A=B]]", "[[B>A]]", "[[B>>A]]")
MARKS = tuple(f"[[{mark}]]" for mark in range(1, 11))
OUTCOME = {"A>>B": 1.0, "A>B": 1.0, "A": 1.0, "A=B": 0.5, "tie": 0.5, "B": 0.0, "B>A": 0.0, "B>>A": 0.0}
KEY = "judge-key-that-must-not-be-told"


@dataclass
class World:
    """Models, questions and a judge of one folder."""

    root: Path
    server: JudgeServer
    models: dict[str, Path] = field(default_factory=dict)

    def judge(self, name: str = "judge", **changes: Any) -> str:
        """A judge's file."""
        settings = {
            "base_url": self.server.url,
            "model": "tiny-judge",
            "api_key_env": "JUDGE_KEY",
            "max_tokens": 32,
            "retries": 2,
            "backoff_seconds": 0.02,
            "timeout_seconds": 30,
            "concurrency": 2,
        }
        path = self.root / f"{name}.yaml"
        path.write_text(yaml.safe_dump(settings | changes), encoding="utf-8")
        return str(path)

    def words(self, bench: str, out: str, *more: str, models: tuple[str, ...] = ("dpo",)) -> list[str]:
        """The words of a command. Pairs are judged against the base model."""
        named = [f"{name}={self.models[name]}" for name in models]
        options = ["--questions", str(self.root / f"{Path(bench).stem}.jsonl"), "--judge", self.judge()]
        if "mt_bench" in bench:
            options += ["--reference-answers", str(self.root / "references.jsonl")]
        else:
            options += ["--baseline", f"base={self.models['base']}"]
        return ["judge", bench, *named, *options, "--out", str(self.root / out), "--resamples", "50", *more]

    def run(self, words: list[str], code: int = 0, timeout: float = 300) -> str:
        """The command in a process of its own. Returns all that it said."""
        command = [sys.executable, "-m", "mrpo_ds", *words]
        env = command_environment(JUDGE_KEY=KEY)
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout)
        return self._checked(done.returncode, done.stdout + done.stderr, code)

    def call(self, words: list[str], code: int = 0) -> str:
        """The command's main() in this process, which has imported all that it needs."""
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), pytest.MonkeyPatch.context() as patch:
            patch.setenv("JUDGE_KEY", KEY)
            found = main(words)
        console.configure_console(False)
        return self._checked(found, said.getvalue(), code)

    def _checked(self, found: int, said: str, code: int) -> str:
        assert found == code, said[-4000:]
        assert "Traceback" not in said
        assert KEY not in said
        return said

    def results(self, out: str) -> dict[str, Any]:
        return dict(json.loads((self.root / out / "results.json").read_text(encoding="utf-8")))

    def judgments(self, out: str) -> list[dict[str, Any]]:
        files = sorted((self.root / out / "judgments").glob("*.jsonl"))
        return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]

    def answers(self, out: str, name: str) -> dict[str, list[str]]:
        lines = (self.root / out / "answers" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[1:]
        return {row["question"]: row["turns"] for row in map(json.loads, lines)}


@contextlib.contextmanager
def world_of(root: Path, verdicts: tuple[str, ...]) -> Iterator[World]:
    """A judge that chooses among these, with models and questions in the published layouts."""
    # The judge's seed is one of those whose judgments differ.
    seeds = {"base": 0, "dpo": 1, "mrpo": 2, "judge": 14}
    models = {name: make_model(root / name, seed=seed) for name, seed in seeds.items()}
    with judge_server(models["judge"], verdicts, api_key=KEY) as server:
        world = World(root, server, models)
        write_questions(root)
        for bench in ("mt_bench", "arena_hard", "alpaca_eval", "hh_rlhf"):
            shorter_answers(root, bench)
        yield world


def shorter_answers(root: Path, bench: str) -> None:
    """The benchmark with answers of a few tokens: a copy of its file, as a user makes one."""
    content = yaml.safe_load((ROOT / "eval/judged" / f"{bench}.yaml").read_text(encoding="utf-8"))
    content["generation"]["max_new_tokens"] = 12
    (root / f"{bench}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")


def write_questions(root: Path) -> None:
    colours = ("red", "green", "blue", "white", "black", "amber", "violet", "brown")
    asked = [f"Which colour comes after {colour}?" for colour in colours]
    kinds = ("writing", "math", "coding")
    rows = [
        {"question_id": 81 + index, "category": kinds[index % 3], "turns": [text, "And after that one?"]}
        for index, text in enumerate(asked)
    ]
    write_jsonl(root / "mt_bench.jsonl", rows)
    write_jsonl(
        root / "references.jsonl",
        [{"question_id": row["question_id"], "choices": [{"turns": references(row["question_id"])}]} for row in rows],
    )
    write_jsonl(root / "arena_hard.jsonl", [{"uid": f"u{n}", "prompt": text} for n, text in enumerate(asked)])
    write_jsonl(root / "alpaca_eval.jsonl", [{"dataset": "colours", "instruction": text} for text in asked])
    talk = "\n\nHuman: {}\n\nAssistant: Guess.\n\nHuman: Red?\n\nAssistant: {}"
    rows = [{"chosen": talk.format(text, "No."), "rejected": talk.format(text, "Yes.")} for text in asked]
    write_jsonl(root / "hh_rlhf.jsonl", rows)


def references(question: object) -> list[str]:
    """What a right answer to each turn is."""
    return [f"The solution {turn} of {question}." for turn in (1, 2)]


def verdict_in(record: dict[str, Any]) -> str:
    """What a judgment's last words are, read here once more."""
    return re.findall(r"\[\[(.*?)\]\]", record["judgment"])[-1]


def spread(records: list[dict[str, Any]]) -> None:
    """Where the judge always said the same, a wrong number could not be seen."""
    assert len({verdict_in(record) for record in records}) > 1


def outcome_of(record: dict[str, Any]) -> float:
    """For the model."""
    value = OUTCOME[verdict_in(record)]
    return 1 - value if record["order"] == "baseline_first" else value


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world_of(tmp_path_factory.mktemp("scores"), MARKS) as world:
        yield world


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world_of(tmp_path_factory.mktemp("pairs"), PAIRS) as world:
        yield world


@pytest.fixture(autouse=True)
def clean(request: pytest.FixtureRequest) -> None:
    """Every test begins with a server that answers and has seen nothing."""
    for name in {"scores", "pairs"}.intersection(request.fixturenames):
        server = request.getfixturevalue(name).server
        server.plan = lambda seen: ""
        server.forget()


# ---- the four benchmarks ---------------------------------------------------------------------------------------------


def test_mt_bench_from_models_to_the_table(scores: World) -> None:
    words = scores.words(str(scores.root / "mt_bench.yaml"), "mt", models=("base", "dpo"))
    said = scores.run(words)
    table = (scores.root / "mt" / "table.md").read_text(encoding="utf-8")
    assert table in said and "| base |" in table and "| dpo |" in table
    records = scores.judgments("mt")
    spread(records)
    assert len(records) == len(scores.server.seen) == 2 * 8 * 2
    assert scores.server.most_at_once == 2, "as many as the judge's file says"
    assert set(scores.server.answered.values()) == {1}
    assert scores.server.answered.keys() == {record["key"] for record in records}
    for name in ("base", "dpo"):
        answers = scores.answers("mt", name)
        mine = {(record["question"], record["turn"]): record for record in records if record["model"] == name}
        assert len(answers) == 8 and len(mine) == 16
        for (question, turn), record in mine.items():  # the judge has seen what the model said, of both turns
            prompt = record["prompt"][-1]["content"]
            assert all(text in prompt for text in answers[question][:turn])
            has_reference = int(question) % 3 != 0  # 81, 84, 87 are of writing, the others of math and coding
            known = [text in prompt for text in references(question)]
            assert known == [has_reference, has_reference and turn == 2]
            assert record["usage"]["input_tokens"] > 0 and record["usage"]["output_tokens"] > 0
        (row,) = [row for row in scores.results("mt")["models"] if row["model"] == name]
        marks = [float(verdict_in(record)) for record in mine.values()]
        assert row["mean"] == pytest.approx(sum(marks) / 16)
        for turn in (1, 2):
            own = [float(verdict_in(record)) for (_, number), record in mine.items() if number == turn]
            assert row["turns"][str(turn)] == pytest.approx(sum(own) / 8)
    assert scores.answers("mt", "base") != scores.answers("mt", "dpo")
    assert "not the figures" not in said
    before = scores.results("mt")
    scores.server.forget()
    again = scores.call(words)
    assert not scores.server.seen, "what has been judged is never asked again"
    assert table in again and scores.results("mt") == before


def test_a_pair_is_judged_in_both_orders(pairs: World) -> None:
    pairs.call(pairs.words(str(pairs.root / "alpaca_eval.yaml"), "alpaca", models=("dpo", "mrpo")))
    records = pairs.judgments("alpaca")
    spread(records)
    assert Counter(record["order"] for record in records) == {"model_first": 16, "baseline_first": 16}
    assert set(pairs.server.answered.values()) == {1}
    base = pairs.answers("alpaca", "base")
    for name in ("dpo", "mrpo"):
        own = [record for record in records if record["model"] == name]
        answers = pairs.answers("alpaca", name)
        for record in own:
            first, second = answers[record["question"]][0], base[record["question"]][0]
            if record["order"] == "baseline_first":
                first, second = second, first
            shown = record["prompt"][-1]["content"]
            assert f"<answer_a>\n{first}\n</answer_a>" in shown and f"<answer_b>\n{second}\n</answer_b>" in shown
        (row,) = [row for row in pairs.results("alpaca")["models"] if row["model"] == name]
        assert row["win_rate"] == pytest.approx(sum(map(outcome_of, own)) / 16)
        sides = {order: [outcome_of(one) for one in own if one["order"] == order] for order in row["orders"]}
        for order, values in sides.items():
            assert row["orders"][order]["win"] == pytest.approx(values.count(1.0) / 8)


def test_arena_hard_is_fitted_from_five_verdicts(tmp_path_factory: pytest.TempPathFactory) -> None:
    with world_of(tmp_path_factory.mktemp("arena"), FIVE) as world:
        said = world.call(world.words(str(world.root / "arena_hard.yaml"), "arena", models=("dpo", "mrpo")))
        assert "Bradley-Terry win rate" in said
        records = world.judgments("arena")
        spread(records)
        assert len(records) == 2 * 8 * 2 == len(world.server.seen)
        for row in world.results("arena")["models"]:
            # Against one baseline alone the fit has a closed form: the share of the games that were won.
            won = games = 0.0
            for record in (one for one in records if one["model"] == row["model"]):
                weight = 3 if ">>" in verdict_in(record) else 1
                won, games = won + weight * outcome_of(record), games + weight
            assert row["bradley_terry"]["rate"] == pytest.approx(won / games, abs=1e-6)


def test_hh_rlhf_goes_on_from_earlier_turns_in_one_order(pairs: World) -> None:
    said = pairs.call(pairs.words(str(pairs.root / "hh_rlhf.yaml"), "hh", "--single-order"))
    records = pairs.judgments("hh")
    assert {record["order"] for record in records} == {"model_first"} and len(records) == 8
    assert all("Guess." in record["prompt"][-1]["content"] for record in records)
    assert all("No." not in record["prompt"][-1]["content"] for record in records), "the data's own answer is not shown"
    (row,) = pairs.results("hh")["models"]
    assert row["win_rate"] == pytest.approx(sum(map(outcome_of, records)) / 8)
    assert "the model's answer was always A" in said


def test_the_benchmarks_of_the_repository_by_their_names(scores: World) -> None:
    """The shipped files themselves, with answers as long as the model has room for."""
    rows = (scores.root / "mt_bench.jsonl").read_text(encoding="utf-8").splitlines()
    (scores.root / "one.jsonl").write_text(rows[0] + "\n", encoding="utf-8")
    words = scores.words("mt_bench", "shipped", "--questions", str(scores.root / "one.jsonl"))
    said = scores.call(words)
    assert "its answers have at most 256 tokens and not 1024" in said
    assert scores.results("shipped")["models"][0]["judged"] == 2


# ---- what goes wrong -------------------------------------------------------------------------------------------------


def test_killed_in_the_middle_it_asks_nothing_twice(pairs: World) -> None:
    bench = str(pairs.root / "alpaca_eval.yaml")
    words = pairs.words(bench, "killed", "--judge", pairs.judge("one", concurrency=1))
    pairs.call(pairs.words(bench, "untouched", "--judge", pairs.judge("one", concurrency=1)))
    pairs.server.forget()
    pairs.server.plan = lambda seen: "hang" if seen.number == 5 else ""
    command = [sys.executable, "-m", "mrpo_ds", *words]
    with (pairs.root / "killed.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=command_environment(JUDGE_KEY=KEY), stdout=log, stderr=log, start_new_session=True
        )
        deadline = time.monotonic() + 120
        while len(pairs.server.seen) < 6:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    kept = pairs.judgments("killed")
    assert len(kept) == 5
    said = pairs.call(words)
    assert "11 judgments made now, 5 were there" in said
    assert len(pairs.server.seen) == 17  # the one that hung was never answered, and is asked again
    assert set(pairs.server.answered.values()) == {1}
    assert pairs.judgments("killed")[:5] == kept
    assert without_spend(pairs.results("killed")) == without_spend(pairs.results("untouched"))
    tables = [(pairs.root / out / "table.md").read_text(encoding="utf-8") for out in ("killed", "untouched")]
    assert tables[0] == tables[1]


def without_spend(results: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in results.items() if name != "spend"}


@pytest.mark.parametrize("fault", ["429", "500", "503", "cut", "drop"])
def test_a_judge_in_trouble_is_asked_again(pairs: World, fault: str) -> None:
    pairs.server.plan = lambda seen: fault if seen.tries == 0 and seen.number % 2 == 0 else ""
    pairs.call(pairs.words(str(pairs.root / "alpaca_eval.yaml"), f"trouble-{fault}", "--limit", "3"))
    assert pairs.results(f"trouble-{fault}")["models"][0]["judged"] == 6
    assert len(pairs.server.seen) > 6
    assert set(pairs.server.answered.values()) == {1}


def test_a_judge_that_times_out_is_given_up_and_what_is_finished_is_kept(pairs: World) -> None:
    bench = str(pairs.root / "alpaca_eval.yaml")
    slow = pairs.judge("slow", timeout_seconds=4, retries=0, concurrency=3)
    pairs.server.plan = lambda seen: "hang" if seen.number >= 4 else ""
    said = pairs.call(pairs.words(bench, "timeout", "--judge", slow), code=1)
    assert "did not answer within timeout_seconds, 4 s" in said and "3 calls in a row failed" in said
    assert "4 judgments are kept, 12 are missing, and the same command asks for those alone" in said
    records = pairs.judgments("timeout")
    assert sum("judgment" in record for record in records) == 4
    assert all(record["usage"]["input_tokens"] > 0 for record in records), "what may have been billed is kept too"
    assert 3 <= sum("lost" in record for record in records) <= 5, "two more were under way at the third"
    assert pairs.results("timeout")["missing"] == 12
    pairs.server.plan = lambda seen: ""
    pairs.call(pairs.words(bench, "timeout", "--judge", slow))
    assert pairs.results("timeout")["missing"] == 0
    assert set(pairs.server.answered.values()) == {1}


@pytest.mark.parametrize("fault", ["html", "nonsense"])
def test_a_server_that_is_no_judge(pairs: World, fault: str) -> None:
    pairs.server.plan = lambda seen: fault
    said = pairs.call(pairs.words(str(pairs.root / "alpaca_eval.yaml"), f"not-{fault}", "--limit", "3"), code=1)
    assert "answered something that is no chat completion" in said
    assert pairs.judgments(f"not-{fault}") == []


def test_judgments_without_a_verdict_are_no_scores(pairs: World) -> None:
    bench = str(pairs.root / "alpaca_eval.yaml")
    pairs.server.plan = lambda seen: "silence" if seen.number % 4 == 0 else ""
    one = pairs.judge("one", concurrency=1)
    said = pairs.call(pairs.words(bench, "silent", "--judge", one), code=1)
    assert "25.0 % of the judgments have no verdict (max_parse_failures is 10 %)" in said
    (row,) = pairs.results("silent")["models"]
    assert (row["judged"], row["no_verdict"]) == (12, 4)
    read = [record for record in pairs.judgments("silent") if record["judgment"]]
    by_question: dict[str, list[float]] = {}
    for record in read:
        by_question.setdefault(record["question"], []).append(outcome_of(record))
    means = [sum(values) / len(values) for values in by_question.values()]
    assert row["win_rate"] == pytest.approx(sum(means) / len(means))


def test_a_wrong_key_ends_at_once_and_is_not_told(pairs: World, monkeypatch: pytest.MonkeyPatch) -> None:
    other = KEY.replace("judge", "wrong")
    words = pairs.words(str(pairs.root / "alpaca_eval.yaml"), "key", "--judge", pairs.judge("one", concurrency=1))
    said = io.StringIO()
    monkeypatch.setenv("JUDGE_KEY", other)
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        assert main(words) == 1
    console.configure_console(False)
    assert "401" in said.getvalue() and other not in said.getvalue()
    assert pairs.server.refused == 1 and not pairs.server.seen
    for file in (pairs.root / "key").rglob("*"):
        assert not file.is_file() or other.encode() not in file.read_bytes()


def test_a_full_disk_keeps_what_is_finished(pairs: World) -> None:
    need(shutil.which("unshare") is not None and can_mount(), "unshare, and leave to mount a tmpfs in a namespace")
    words = pairs.words(str(pairs.root / "alpaca_eval.yaml"), "full", "--judge", pairs.judge("one", concurrency=1))
    directory, kept = pairs.root / "full", pairs.root / "kept"
    directory.mkdir()
    script = (
        f"mount -t tmpfs -o size=20480 tmpfs {directory} && {sys.executable} -m mrpo_ds {' '.join(words)}; code=$?; "
        f"cp -r {directory} {kept}; exit $code"
    )
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script],
        cwd=ROOT,
        env=command_environment(JUDGE_KEY=KEY),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1, done.stderr[-4000:]
    assert "Traceback" not in done.stderr
    assert "judgments cannot be written: No space left on device; make room, and run the same command" in done.stderr
    records = pairs.judgments("kept")
    assert 0 < len(records) < 16
    assert all(file.read_bytes().endswith(b"\n") for file in kept.rglob("*.jsonl"))
    told = f"{len(records)} judgments are kept"
    assert told in done.stderr
    before = len(pairs.server.seen)
    pairs.call([word.replace(str(directory), str(kept)) for word in words])  # with room
    assert len(pairs.judgments("kept")) == 16 and pairs.judgments("kept")[: len(records)] == records
    assert len(pairs.server.seen) - before == 16 - len(records)


def can_mount() -> bool:
    attempt = subprocess.run(["unshare", "-Urm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True)
    return attempt.returncode == 0


# ---- the judge itself ------------------------------------------------------------------------------------------------


def test_the_server_says_what_its_model_says(pairs: World) -> None:
    """Its words are the model's likeliest tokens, and its verdict the likeliest of those that it was given."""
    import httpx
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = pairs.models["judge"]
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path)
    headers = {"Authorization": f"Bearer {KEY}"}
    assert httpx.get(f"{pairs.server.url}/models").status_code == 401
    assert httpx.get(f"{pairs.server.url}/models", headers=headers, timeout=60).json()["data"][0]["id"] == "judge"
    for text in ("Which is better?", "Is red better than blue?", "Say something"):
        body = {"model": "any", "messages": [{"role": "user", "content": text}], "max_tokens": 32, "temperature": 0.0}
        url = f"{pairs.server.url}/chat/completions"
        answer = httpx.post(url, json=body | {"logprobs": True, "top_logprobs": 5}, headers=headers, timeout=60).json()
        content = answer["choices"][0]["message"]["content"]
        prompt = tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True, return_dict=False)
        with torch.no_grad():
            made = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=6)[0, len(prompt) :]
            words = tokenizer.decode(made, skip_special_tokens=True)
            losses = {}
            for verdict in PAIRS:
                ids = tokenizer(f"{words} {verdict}", add_special_tokens=False).input_ids
                start = len(tokenizer(words, add_special_tokens=False).input_ids)
                labels = torch.tensor([[-100] * (len(prompt) + start) + ids[start:]])
                loss = model(torch.tensor([prompt + ids]), labels=labels).loss
                losses[verdict] = float(loss) * (len(ids) - start)
        assert content == f"{words} {min(losses, key=losses.__getitem__)}"
        top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        logps = torch.log_softmax(model(torch.tensor([prompt])).logits[0, -1], dim=-1)
        assert [one["logprob"] for one in top] == pytest.approx(logps.topk(5).values.tolist(), abs=1e-4)
        assert answer["usage"]["prompt_tokens"] == len(prompt)
        assert pairs.server.seen[-1].key == key_of(body | {"logprobs": True, "top_logprobs": 5})
        cut = httpx.post(url, json=body | {"max_tokens": 2}, headers=headers, timeout=60).json()["choices"][0]
        assert cut["finish_reason"] == "length" and "[[" not in cut["message"]["content"]


# ---- a real model on published questions -----------------------------------------------------------------------------


@pytest.mark.leaderboard
@pytest.mark.timeout(3600)
def test_the_four_benchmarks_with_a_real_model(tmp_path: Path) -> None:
    need(SMOLLM2.is_dir(), "the demo models (make models)")
    if not DATA.is_dir():
        pytest.skip("the public data is not beside the repository")
    files = {
        "mt_bench": (DATA / "eval/mt_bench/question.jsonl", MARKS),
        "arena_hard": (DATA / "eval/arena_hard/question_v0.1.jsonl", FIVE),
        "alpaca_eval": (DATA / "eval/alpaca_eval/alpaca_eval.jsonl", PAIRS),
        "hh_rlhf": (DATA / "preference/hh-rlhf/helpful-base.test.eval.jsonl.gz", PAIRS),
    }
    other = tmp_path / "other"  # the same model, a little off
    nudged(SMOLLM2, other)
    for bench, (questions, verdicts) in files.items():
        with judge_server(SMOLLM2, verdicts, words=6, api_key=KEY) as server:
            world = World(tmp_path, server, {"smollm2": SMOLLM2, "other": other})
            shorter_answers(tmp_path, bench)
            words = ["judge", str(tmp_path / f"{bench}.yaml"), f"other={other}", "--questions", str(questions)]
            words += ["--judge", world.judge(max_tokens=64, timeout_seconds=900), "--limit", "2"]
            words += ["--out", str(tmp_path / bench)]
            references = DATA / "eval/mt_bench/reference_answer_gpt-4.jsonl"
            pairs = ["--baseline", f"smollm2={SMOLLM2}"]
            words += ["--reference-answers", str(references)] if bench == "mt_bench" else pairs
            print(world.run(words, timeout=1800))
            (row,) = world.results(bench)["models"]
            assert row["judged"] == 4 and row["missing"] == row["no_verdict"] == 0
            asked = len(server.seen)
            world.run(words)
            assert len(server.seen) == asked == 4


@pytest.mark.leaderboard
@pytest.mark.timeout(3600)
def test_published_answers_as_the_baseline(tmp_path: Path) -> None:
    need(SMOLLM2.is_dir(), "the demo models (make models)")
    if not DATA.is_dir():
        pytest.skip("the public data is not beside the repository")
    folder = DATA / "eval/arena_hard"
    gpt4 = tmp_path / "gpt-4-0314.jsonl"
    gpt4.write_bytes(gzip.decompress((folder / "model_answer_v0.1/gpt-4-0314.jsonl.gz").read_bytes()))
    with judge_server(SMOLLM2, FIVE, words=16, api_key=KEY) as server:
        world = World(tmp_path, server)
        shorter_answers(tmp_path, "arena_hard")
        words = ["judge", str(tmp_path / "arena_hard.yaml"), f"smollm2={SMOLLM2}", "--limit", "3"]
        words += ["--questions", str(folder / "question_v0.1.jsonl"), "--baseline", f"gpt-4-0314={gpt4}"]
        words += ["--judge", world.judge(max_tokens=64, timeout_seconds=900), "--out", str(tmp_path / "out")]
        print(world.run(words, timeout=1800))
        assert world.results("out")["models"][0]["judged"] == 6
        texts = [record["prompt"][-1]["content"] for record in world.judgments("out")]
        published = [json.loads(line) for line in gpt4.read_text(encoding="utf-8").splitlines()]
        assert all(any(shown_in(row, text) for row in published) for text in texts)


def shown_in(row: dict[str, Any], text: str) -> bool:
    """Whether a published answer stands in a prompt of the judge."""
    answer = row["messages"][-1]["content"]
    return (answer if isinstance(answer, str) else answer["answer"]) in text


def nudged(source: Path, target: Path) -> None:
    """A copy of a model with other weights in one place."""
    import torch
    from transformers import AutoModelForCausalLM

    shutil.copytree(source, target)
    model = AutoModelForCausalLM.from_pretrained(source)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        norm = model.model.norm.weight
        norm += 0.2 * norm.abs().mean() * torch.randn(norm.shape, generator=generator)
    for file in target.glob("*.safetensors"):
        file.unlink()
    model.save_pretrained(target)
