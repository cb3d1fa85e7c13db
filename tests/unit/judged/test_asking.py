"""Judgments are made once, kept whole, and stop below the cap; what ends the asking loses nothing."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrpo_ds.errors import RUN_AGAIN, ConfigError, DataError
from mrpo_ds.judged.asking import CapReached
from mrpo_ds.judged.judge import Judge
from mrpo_ds.judged.judgments import Judgments, case_of
from mrpo_ds.judged.prompts import Call, Case
from mrpo_ds.judged.replies import Usage
from mrpo_ds.judged.spending import TEMPLATE_TOKENS, Spending
from mrpo_ds.locks import locked
from mrpo_ds.types import Message
from tests.unit.judged.loopback import (
    COMPLETION,
    COST,
    PRICES,
    PROMPT,
    Choice,
    ask,
    calls,
    judge_at,
    ok,
    serving,
    spent,
)

# ---- once, and kept --------------------------------------------------------------------------------------------------


def test_nothing_is_asked_twice(tmp_path):
    with serving(ok()) as (url, seen):
        judge = judge_at(url, concurrency=3, **PRICES)
        first, _ = ask(tmp_path, judge, calls(7))
        assert (first.new, first.cached, first.end, first.failed) == (7, 0, None, {})
        assert first.usd == pytest.approx(7 * COST)
        assert len(seen) == 7
        again, kept = ask(tmp_path, judge, calls(9))
        assert (again.new, again.cached, len(seen)) == (2, 7, 9)
        assert again.usd == pytest.approx(9 * COST)
    (file,) = (tmp_path / "judgments").iterdir()
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert len(records) == 9
    record = kept.find(judge.key(calls(1)[0]))
    assert record is not None
    expected = {"model": "m", "question": "0", "turn": 1, "order": "", "judge": "j", "judgment": "[[7]]", "attempts": 1}
    assert record.items() >= {**expected, "served_model": "judge-2024", "finish_reason": "stop"}.items()
    assert record["prompt"] == [{"role": "user", "content": "Question 0: how good?"}]
    assert record["usage"] == {"input_tokens": 11, "output_tokens": 3} and record["usd"] == pytest.approx(COST)


def test_two_models_that_answer_alike_are_judged_by_one_call_and_both_have_it(tmp_path):
    both = [*calls(2, "a"), *calls(2, "b")]
    with serving(ok()) as (url, seen):
        outcome, _ = ask(tmp_path, judge_at(url, **PRICES), both)
        assert (outcome.new, len(seen)) == (2, 2)
        ask(tmp_path, judge_at(url, **PRICES), both)
    for name, shared in (("a", False), ("b", True)):
        lines = (tmp_path / f"judgments/{name}.jsonl").read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        assert sorted(record["question"] for record in records) == ["0", "1"]
        assert all(record.get("same_request", False) == shared for record in records)
    assert spent(tmp_path) == pytest.approx(2 * COST)


def test_another_judge_is_another_question(tmp_path):
    with serving(ok()) as (url, seen):
        ask(tmp_path, judge_at(url), calls(2))
        ask(tmp_path, judge_at(url, temperature=0.5), calls(2))
    assert len(seen) == 4


@pytest.mark.parametrize("count", [1, 3])
def test_as_many_calls_at_a_time_as_the_judge_takes(tmp_path, count):
    with serving(ok(), seconds_a_byte=0.002) as (url, seen):
        outcome, _ = ask(tmp_path, judge_at(url, concurrency=count, timeout_seconds=120), calls(9))
    assert outcome.new == 9
    assert max(one["at_once"] for one in seen) == count
    asked = [one["body"]["messages"][0]["content"] for one in seen]
    assert (asked if count == 1 else sorted(asked)) == [f"Question {n}: how good?" for n in range(9)]


@pytest.mark.parametrize("torn", [b'{"key": "ab', b"\x00\x00", b'{"key": "k", "judgment": "[[3]]"}'])
def test_a_torn_last_line_is_dropped_and_said_and_asked_again(tmp_path, capfd, console, torn):
    with serving(ok()) as (url, seen):
        judge = judge_at(url)
        ask(tmp_path, judge, calls(3))
        file = tmp_path / "judgments/m.jsonl"
        whole = file.read_bytes()
        file.write_bytes(whole + torn)
        outcome, _ = ask(tmp_path, judge, calls(4))
        assert (outcome.cached, outcome.new, len(seen)) == (3, 1, 4)
    assert file.read_bytes().startswith(whole) and len(Judgments(tmp_path)._by_key) == 4
    assert f"m.jsonl ends in a torn line of {len(torn)} bytes" in capfd.readouterr().err


@pytest.mark.parametrize("line", ["{}", "[]", "nonsense", '{"key": 3}', '{"key": "k", "judgment": "x"}'])
def test_a_damaged_line_in_the_middle_is_named(tmp_path, line):
    (tmp_path / "judgments").mkdir()
    (tmp_path / "judgments/m.jsonl").write_text(f"{line}\n", encoding="utf-8")
    with pytest.raises(DataError, match="m.jsonl line 1 cannot be read .* remove that line, and it is asked again"):
        Judgments(tmp_path)


def test_a_folder_has_one_owner(tmp_path):
    refused = pytest.raises(ConfigError, match="another mrpo-ds judge works in")
    who = "mrpo-ds judge"
    with locked(tmp_path / "out", who), refused, locked(tmp_path / "out", who):
        pass
    with locked(tmp_path / "out", who):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--out is .* and cannot be written"), locked(tmp_path / "file", who):
        pass


def test_a_judgment_that_two_models_share_keeps_what_it_took(tmp_path):
    """The copy lies in a file that is read first."""
    kept = Judgments(tmp_path)
    record = {"key": "k", "model": "zeta", "question": "q", "turn": 1, "order": "", "judgment": "[[7]]"}
    record |= {"baseline": "", "usage": {"prompt_tokens": 100, "completion_tokens": 9}, "usd": 0.5}
    kept.add(record)
    kept.share("k", case_of({**record, "model": "alpha"}))
    for there in (kept, Judgments(tmp_path)):
        assert there.find("k") == record


def test_a_disk_that_is_full_leaves_whole_lines(tmp_path):
    kept = Judgments(tmp_path)
    record = {"key": "k", "model": "m", "question": "q", "turn": 1, "order": "", "judgment": "x" * 50_000}
    kept.add(record)
    size = (tmp_path / "judgments/m.jsonl").stat().st_size
    limit = size + 100  # a file may grow no further, as on a disk without room: the write is cut short
    child = os.fork()
    if child == 0:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            kept.add({**record, "key": "l"})
        except OSError:
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0, "the error is the caller's to tell"
    assert (tmp_path / "judgments/m.jsonl").stat().st_size == size
    assert Judgments(tmp_path).find("k") == record


# ---- what ends the asking --------------------------------------------------------------------------------------------


def test_the_cap_holds_and_what_was_bought_is_kept(tmp_path):
    with serving(ok()) as (url, seen):
        judge = judge_at(url, concurrency=4, **PRICES)
        outcome, _ = ask(tmp_path, judge, calls(50), cap=1.6)
        assert outcome.usd <= 1.6 and outcome.usd == pytest.approx(len(seen) * COST)
        # The dearest outcome of a call is 0.1 for 10 tokens and PROMPT: it must still fit.
        assert outcome.new == len(seen) == 12
        assert outcome.end is not None and outcome.end.exit_code == 1
        assert "--max-cost 1.6 USD: 0.4920 USD are spent, and the next call may cost 1.146" in str(outcome.end)
        again, _ = ask(tmp_path, judge, calls(50), cap=1.6)
        assert (again.new, len(seen)) == (0, 12), "what earlier commands spent counts"
        more, _ = ask(tmp_path, judge, calls(50), cap=1.8)
        assert more.new > 0 and more.usd <= 1.8


def test_a_server_that_does_not_count_costs_the_estimate(tmp_path):
    answer = {key: value for key, value in COMPLETION.items() if key != "usage"}
    with serving(ok(answer)) as (url, _):
        outcome, _ = ask(tmp_path, judge_at(url, concurrency=1, **PRICES), calls(1), cap=2.0)
    assert outcome.usd == spent(tmp_path) == pytest.approx(PROMPT + 0.1)


def test_attempts_that_may_have_been_billed_count_against_the_cap(tmp_path):
    with serving(ok(), seconds_a_byte=0.05) as (url, seen):
        judge = judge_at(url, concurrency=1, timeout_seconds=0.2, retries=1, **PRICES)
        outcome, _ = ask(tmp_path, judge, calls(1))
    assert len(seen) == 2 and len(outcome.failed) == 1
    assert outcome.usd == pytest.approx(2 * (PROMPT + 0.1))
    assert spent(tmp_path) == pytest.approx(outcome.usd), "in the next command too"
    assert Judgments(tmp_path).find(judge.key(calls(1)[0])) is None


def test_another_attempt_is_made_only_below_the_cap(tmp_path):
    cap = 2.5 * (PROMPT + 0.1)
    with serving(ok(), seconds_a_byte=0.05) as (url, seen):
        judge = judge_at(url, concurrency=1, timeout_seconds=0.2, retries=5, **PRICES)
        outcome, _ = ask(tmp_path, judge, calls(1), cap)
    assert len(seen) == 2, "a third attempt might have been billed beyond the cap"
    assert outcome.usd == pytest.approx(2 * (PROMPT + 0.1)) and outcome.usd <= cap
    assert isinstance(outcome.end, CapReached) and outcome.failed == {}
    assert f"--max-cost {cap:g} USD: {outcome.usd:.4f} USD are spent" in str(outcome.end)


def test_a_last_attempt_that_is_lost_leaves_what_is_left_to_other_calls(tmp_path):
    with serving(ok(), seconds_a_byte=0.05) as (url, seen):
        judge = judge_at(url, concurrency=1, timeout_seconds=0.2, retries=0, **PRICES)
        outcome, _ = ask(tmp_path, judge, calls(2), cap=2.0 * (PROMPT + 0.1) + 1e-6)
    assert len(seen) == 2 and len(outcome.failed) == 2 and outcome.end is None


@pytest.mark.parametrize("text", ["\u4f60" * 200, "\U0001f600" * 200, "q83vEjRWeJA" * 20])
def test_the_cap_holds_for_text_that_takes_more_tokens_than_characters(tmp_path, text):
    """A server with a tokenizer of bytes, which is the most that a text can take, and all calls at once."""
    size = len(text.encode())
    answer = {**COMPLETION, "usage": {"prompt_tokens": size + 40, "completion_tokens": 0}}
    asked = [Call(Case("m", str(n), 1), (Message("user", text[n:]),)) for n in range(16)]
    price = {"usd_per_million_input": 1000.0, "usd_per_million_output": 0.0}
    cap = 1.5 * (size + TEMPLATE_TOKENS) * 1e-3
    with serving(ok(answer)) as (url, _):
        outcome, _ = ask(tmp_path, judge_at(url, concurrency=8, **price), asked, cap)
    assert 0 < outcome.usd <= cap and isinstance(outcome.end, CapReached)


def test_what_a_server_counts_beyond_that_is_remembered(tmp_path):
    """A server that adds a long system message, and counts thoughts beside max_tokens, does so once at most."""
    usage = {"prompt_tokens": 5000, "completion_tokens": 70}
    with serving(ok({**COMPLETION, "usage": usage})) as (url, seen):
        judge = judge_at(url, concurrency=1, **PRICES)
        first, _ = ask(tmp_path, judge, calls(1))
        assert first.usd == pytest.approx(5.7)
        for cap, made in ((2 * 5.7 - 0.01, 1), (2 * 5.7 + 0.01, 2)):
            outcome, _ = ask(tmp_path, judge, calls(3), cap)
            assert outcome.usd <= cap and isinstance(outcome.end, CapReached) and len(seen) == made


def test_what_was_bought_before_there_were_prices_counts(tmp_path):
    with serving(ok(), ok({**COMPLETION, "usage": None})) as (url, _):
        ask(tmp_path, judge_at(url, max_tokens=10), [*calls(2, "a"), *calls(1, "b")])
    with serving(ok(), seconds_a_byte=0.05) as (url, _):
        ask(tmp_path, judge_at(url, max_tokens=10, timeout_seconds=0.2, retries=0), calls(3)[2:])
    assert spent(tmp_path) == 0
    with serving(ok()) as (url, seen):
        judge = judge_at(url, concurrency=1, **PRICES)
        outcome, _ = ask(tmp_path, judge, calls(9), cap=2 * (PROMPT + 0.1) + COST)
        assert outcome.usd == pytest.approx(COST + 2 * (PROMPT + 0.1)), "counted, not counted, and lost"
        assert isinstance(outcome.end, CapReached) and not seen
        other, _ = ask(tmp_path, judge_at(url, concurrency=1, **{**PRICES, "model": "another"}), calls(1))
        assert other.usd == pytest.approx(COST), "what another judge costs is not known"


def test_a_refusal_that_concerns_all_ends_at_once(tmp_path):
    body = json.dumps({"error": {"message": "no such model"}}).encode()
    with serving(ok(), ok(), (404, body, {})) as (url, seen):
        outcome, kept = ask(tmp_path, judge_at(url, concurrency=1), calls(20))
    assert len(seen) == 3 and outcome.new == 2
    assert "the judge refuses" in str(outcome.end) and "404 Not Found: no such model" in str(outcome.end)
    assert len(Judgments(tmp_path)._by_key) == 2


def test_one_prompt_that_is_refused_does_not_end_the_others(tmp_path):
    body = json.dumps({"error": {"message": "too long"}}).encode()
    with serving(ok(), (400, body, {}), ok()) as (url, _):
        outcome, _ = ask(tmp_path, judge_at(url, concurrency=1), calls(5))
    assert (outcome.new, outcome.end) == (4, None)
    (why,) = outcome.failed.values()
    assert "400 Bad Request: too long" in why


def refusing(which: Callable[[int], bool]) -> Choice:
    """A server that wants no prompt of calls() whose number is such."""
    body = json.dumps({"error": {"message": "too long"}}).encode()
    return lambda prompt: (400, body, {}) if which(int(prompt.split()[1][:-1])) else ok()


def test_prompts_that_are_refused_do_not_keep_later_commands_from_the_others(tmp_path):
    with serving(refusing(lambda n: n % 10 == 0)) as (url, seen):
        judge = judge_at(url, concurrency=1, **PRICES)
        first, _ = ask(tmp_path, judge, calls(100), cap=40 * COST + PROMPT + 0.1 - 1e-6)
        assert isinstance(first.end, CapReached) and (first.new, len(first.failed)) == (40, 5)
        again, _ = ask(tmp_path, judge, calls(100))
        assert (again.new, again.cached, len(again.failed), again.end) == (50, 40, 10, None)
        last, _ = ask(tmp_path, judge, calls(100))
        assert (last.new, len(last.failed), last.end) == (0, 10, None)


def test_prompts_that_are_refused_before_any_answer_come_last_the_next_time(tmp_path):
    with serving(refusing(lambda n: n < 4)) as (url, seen):
        judge = judge_at(url, concurrency=1, **PRICES)
        first, _ = ask(tmp_path, judge, calls(9))
        assert (first.new, len(seen)) == (0, 3) and "3 calls in a row failed" in str(first.end)
        again, _ = ask(tmp_path, judge, calls(9))
        assert (again.new, again.end) == (5, None) and set(again.failed) == {judge.key(one) for one in calls(4)}
    assert spent(tmp_path) == pytest.approx(5 * COST), "a refusal costs nothing"


def test_settings_that_the_judge_refuses_end_early(tmp_path):
    with serving(refusing(lambda n: False)) as (url, _):
        ask(tmp_path, judge_at(url, concurrency=1, max_tokens=10), calls(5))
    with serving(refusing(lambda n: True)) as (url, seen):
        outcome, _ = ask(tmp_path, judge_at(url, concurrency=1, max_tokens=1 << 20), calls(50))
    assert len(seen) == 3 and "3 calls in a row failed; the last: " in str(outcome.end)


def test_three_failures_in_a_row_are_the_end(tmp_path):
    with serving(ok(), (500, b"", {})) as (url, seen):
        outcome, _ = ask(tmp_path, judge_at(url, concurrency=1, retries=0), calls(20))
    assert len(seen) == 4 and outcome.new == 1 and len(outcome.failed) == 3
    assert "3 calls in a row failed; the last: " in str(outcome.end)


def test_a_signal_lets_calls_under_way_end(tmp_path):
    with serving(ok(), seconds_a_byte=0.004) as (url, seen):
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        before = signal.getsignal(signal.SIGTERM)
        started = time.monotonic()
        outcome, _ = ask(tmp_path, judge_at(url, concurrency=2), calls(400))
        assert time.monotonic() - started < 30
        assert signal.getsignal(signal.SIGTERM) == before
    assert outcome.end is not None and outcome.end.exit_code == RUN_AGAIN
    assert "stopped by SIGTERM" in str(outcome.end)
    assert 0 < outcome.new == len(seen) < 400 and outcome.failed == {}
    assert len(Judgments(tmp_path)._by_key) == outcome.new


def test_a_folder_that_cannot_be_written_ends_it(tmp_path):
    (tmp_path / "judgments").touch()  # a file where the folder should be
    with serving(ok()) as (url, _):
        outcome, _ = ask(tmp_path, judge_at(url, concurrency=1), calls(5))
    assert "judgments cannot be written" in str(outcome.end) and "run the same command again" in str(outcome.end)
    assert outcome.new == 0


# ---- the cap as arithmetic -------------------------------------------------------------------------------------------


EVENT = st.tuples(st.sampled_from(["begin", "lose", "end", "fail"]), st.integers(1, 200), st.floats(0, 1))


@given(cap=st.floats(1, 5), events=st.lists(EVENT, max_size=60))
def test_spend_never_passes_the_cap_while_servers_count_no_more_than_was_reserved(
    cap: float, events: list[tuple[str, int, float]]
) -> None:
    spending = Spending(Judge(base_url="https://host/v1", model="j", **PRICES), cap)
    under_way: list[tuple[float, Call]] = []
    for what, size, share in events:
        call = Call(Case("m", "q", 1), (Message("user", "x" * size),))
        usage = Usage(int(share * (size + TEMPLATE_TOKENS)), int(share * 10)) if share < 0.9 else Usage()
        if what == "begin":
            if spending.fits(call):
                under_way.append((spending.begin(call), call))
        elif under_way:
            estimate, call = under_way.pop(0)
            usage = usage if call.messages[0].content == "x" * size else Usage()
            if what == "lose":
                spending.lose(call, usage)
                if spending.holds():
                    under_way.append((estimate, call))
                    assert spending.spent + spending.reserved <= cap * (1 + 1e-9)
                    continue
            spending.end(estimate, call, usage if what == "end" else None)
        assert spending.spent + spending.reserved <= cap * (1 + 1e-9)
    for estimate, call in under_way:
        spending.end(estimate, call, Usage())
    assert spending.spent <= cap * (1 + 1e-9) and spending.reserved == pytest.approx(0, abs=1e-9)
