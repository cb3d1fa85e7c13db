"""The judge's file, and a call over real HTTP: what is sent, repeated, given up, and never told."""

import json
import threading
import time
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import pytest
import yaml

from mrpo_ds.errors import ConfigError
from mrpo_ds.judged.endpoint import CallFailed, Endpoint, retry_after
from mrpo_ds.judged.judge import Judge, load_judge
from mrpo_ds.judged.prompts import Call, Case
from mrpo_ds.judged.replies import Reply, Usage, read_reply
from mrpo_ds.types import Message
from tests.unit.judged.loopback import judge_at, ok, serving

CALL = Call(Case("m", "81", 1), (Message("system", "be fair"), Message("user", "Which?")))


def ask(judge: Judge, lost: list[tuple[str, Usage, bool]] | None = None) -> Reply:
    told = [] if lost is None else lost
    endpoint = Endpoint(judge, threading.Event(), lambda call, why, usage, last: told.append((why, usage, last)))
    try:
        return endpoint.ask(CALL)
    finally:
        endpoint.close()


# ---- what is sent and read -------------------------------------------------------------------------------------------


def test_a_request_has_what_a_judgment_depends_on(monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-very-secret\n")
    with serving(ok()) as (url, seen):
        reply = ask(judge_at(url + "/", api_key_env="MY_KEY", max_tokens=9))
    assert seen == [
        {
            "path": "/v1/chat/completions",
            "key": "Bearer sk-very-secret",
            "body": {
                "model": "j",
                "messages": [{"role": "system", "content": "be fair"}, {"role": "user", "content": "Which?"}],
                "max_tokens": 9,
                "temperature": 0.0,
            },
            "at_once": 1,
        }
    ]
    assert (reply.text, reply.finish, reply.served) == ("[[7]]", "stop", "judge-2024")
    assert (reply.usage, reply.attempts) == (Usage(11, 3), 1)


def test_options_for_models_that_want_another_request():
    judge = judge_at("http://localhost/v1", temperature=None, max_tokens_field="max_completion_tokens", logprobs=True)
    body = judge.request(CALL)
    assert "temperature" not in body and "max_tokens" not in body
    assert (body["max_completion_tokens"], body["logprobs"], body["top_logprobs"]) == (2048, True, 20)


def test_the_key_of_a_request_changes_with_all_that_a_judgment_depends_on_and_with_nothing_else():
    judge = judge_at("http://localhost/v1")
    others = [judge_at("http://localhost/v1", **{key: value}) for key, value in (("model", "k"), ("temperature", 0.5))]
    keys = {one.key(CALL) for one in (judge, *others)}
    assert len(keys) == 3
    for field in ("max_tokens", "max_completion_tokens"):
        assert judge_at("http://localhost/v1", max_tokens=7, max_tokens_field=field).key(CALL) == judge.key(CALL)
    assert judge.key(Call(CALL.case, CALL.messages[1:])) not in keys
    assert judge.key(Call(Case("other", "q", 2), CALL.messages)) == judge.key(CALL)
    assert judge_at("http://localhost:1/v1", timeout_seconds=1, retries=9).key(CALL) == judge.key(CALL)


def test_probabilities_of_the_first_token():
    top = [{"token": " A", "logprob": -0.5}, {"token": "A", "logprob": -2.0}, {"token": "B", "logprob": -9999.0}]
    choice = {"message": {"content": "A"}, "logprobs": {"content": [{"top_logprobs": [*top, {"token": 1}]}]}}
    reply = read_reply(json.dumps({"choices": [choice]}).encode())
    assert reply.top == {}, "what is not in its form is no probability"
    choice["logprobs"]["content"][0]["top_logprobs"] = top
    body = json.dumps({"choices": [choice]}).encode()
    assert read_reply(body).top == {"A": -0.5, "B": -9999.0}
    assert read_reply(body.replace(b"-9999.0", b"-Infinity")).top == {"A": -0.5}
    assert (read_reply(body).usage, read_reply(body).finish) == (Usage(), None)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>It works</html>",
        b"[]",
        b"null",
        b"{}",
        b"\xff\xfe",
        b'{"choices": []}',
        b'{"choices": [{"text": "[[7]]"}]}',
        b'{"choices": "none"}',
        b'{"choices": [{"message": {"content": 3}}]}',
        b'{"choices": [{"message": {"content": ["[[7]]"]}}]}',
        b'{"choices": [{"message": {"content": [{"type": "text"}]}}]}',
    ],
)
def test_a_body_that_is_no_completion_is_shown_and_not_asked_again(body):
    with (
        serving((200, body, {})) as (url, seen),
        pytest.raises(CallFailed, match="answered something that is no chat completion") as told,
    ):
        ask(judge_at(url))
    assert len(seen) == 1 and not told.value.fatal


@pytest.mark.parametrize("message", [{"content": None}, {"role": "assistant"}, {"content": []}])
def test_words_that_are_missing_are_no_words(message):
    """The thoughts of a judge may take all that it may say, and are paid for: asked again, it would do the same."""
    body = {"choices": [{"message": message, "finish_reason": "length"}], "usage": {"completion_tokens": 2048}}
    reply = read_reply(json.dumps(body).encode())
    assert (reply.text, reply.finish, reply.usage) == ("", "length", Usage(None, 2048))


def test_words_in_parts_are_read_without_thoughts():
    thoughts = {"type": "thinking", "thinking": [{"type": "text", "text": "A? [[A]]"}], "text": "[[A]]"}
    parts = [thoughts, {"type": "text", "text": "B is better: "}, {"type": "text", "text": "[[B]]"}]
    body = {"choices": [{"message": {"content": parts}}]}
    assert read_reply(json.dumps(body).encode()).text == "B is better: [[B]]"


@pytest.mark.parametrize(
    ("counted", "usage"),
    [
        ({"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 514}, Usage(11, 503)),
        ({"prompt_tokens": 11, "completion_tokens": 503, "total_tokens": 514}, Usage(11, 503)),
        ({"prompt_tokens": 11, "total_tokens": 514}, Usage(11, 503)),
        ({"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 0}, Usage(11, 3)),
        ({"completion_tokens": 3, "total_tokens": 514}, Usage(None, 3)),
        ({"prompt_tokens": -1, "completion_tokens": True}, Usage()),
        (None, Usage()),
        ([], Usage()),
    ],
)
def test_thoughts_that_are_in_the_total_alone_are_counted(counted, usage):
    body = {"choices": [{"message": {"content": "[[7]]"}}], "usage": counted}
    assert read_reply(json.dumps(body).encode()).usage == usage


@pytest.mark.parametrize(
    ("answer", "usage"),
    [
        ({"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": 3}}, Usage(11, 3)),
        ({"choices": [{"message": {"content": 3}}]}, Usage()),
        ({"choices": []}, None),
        ({"result": "yes"}, None),
    ],
)
def test_an_unusable_answer_that_was_billed_is_told(answer, usage):
    lost: list[tuple[str, Usage, bool]] = []
    with serving(ok(answer)) as (url, seen), pytest.raises(CallFailed, match="no chat completion") as told:
        ask(judge_at(url), lost)
    assert len(seen) == 1 and told.value.alone == (usage is not None)
    assert [what[1:] for what in lost] == ([] if usage is None else [(usage, True)])


# ---- what is repeated ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 529])
def test_trouble_that_passes_is_waited_for(status):
    with serving((status, b"later", {}), (status, b"later", {}), ok()) as (url, seen):
        assert ask(judge_at(url)).attempts == 3
    assert len(seen) == 3 and seen[0] == seen[2]


@pytest.mark.parametrize(
    ("status", "fatal"), [(400, False), (401, True), (403, True), (404, True), (413, False), (301, True)]
)
def test_a_refusal_is_told_in_the_servers_words_at_once(status, fatal):
    body = json.dumps({"error": {"message": "This model's maximum\ncontext length is 8", "type": "x"}}).encode()
    with (
        serving((status, body, {"Location": "http://127.0.0.1:9/"})) as (url, seen),
        pytest.raises(CallFailed, match=f"answered {status} .*: This model's maximum context length is 8") as told,
    ):
        ask(judge_at(url))
    assert len(seen) == 1 and told.value.fatal == fatal


@pytest.mark.parametrize("code", [429, "429", 503])
@pytest.mark.parametrize("whole", [True, False])
def test_trouble_in_a_200_is_waited_for(code, whole):
    error = {"error": {"code": code, "message": "slow down"}}
    trouble = error if whole else {"choices": [{**error, "message": {"content": ""}, "finish_reason": "error"}]}
    with serving(ok(trouble), ok(trouble), ok()) as (url, seen):
        assert ask(judge_at(url)).attempts == 3
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("error", "fatal", "alone"),
    [
        ({"code": 401, "message": "no such key"}, True, False),
        ({"code": 400, "message": "no such key"}, False, True),
        ({"code": "odd", "message": "no such key"}, False, True),
        ("no such key", False, True),
    ],
)
def test_a_refusal_in_a_200_is_told(error, fatal, alone):
    lost: list[tuple[str, Usage, bool]] = []
    with (
        serving(ok({"error": error, "usage": {"prompt_tokens": 11, "completion_tokens": 0}})) as (url, seen),
        pytest.raises(CallFailed, match="answered 200, and in it an error: no such key") as told,
    ):
        ask(judge_at(url), lost)
    assert (told.value.fatal, told.value.alone, len(seen)) == (fatal, alone, 1)
    assert [what[1:] for what in lost] == [(Usage(11, 0), True)]


def test_no_error_beside_words_is_none():
    assert read_reply(b'{"choices": [{"message": {"content": "[[7]]"}}], "error": null}').text == "[[7]]"


def test_trouble_that_does_not_pass_is_given_up():
    with (
        serving((500, b"<h1>oops</h1>", {})) as (url, seen),
        pytest.raises(CallFailed, match=r"answered 500 .*: <h1>oops</h1> \(after 3 attempts\)") as told,
    ):
        ask(judge_at(url))
    assert len(seen) == 3 and not told.value.fatal


def test_retry_after_is_honoured():
    with serving((429, b"", {"Retry-After": "0.4"}), ok()) as (url, _):
        started = time.monotonic()
        ask(judge_at(url))
        assert time.monotonic() - started >= 0.4
    with (
        serving((429, b"", {"Retry-After": "3600"})) as (url, seen),
        pytest.raises(CallFailed, match="asks to wait 3600 s .max_wait_seconds is 120") as told,
    ):
        ask(judge_at(url))
    assert told.value.fatal and len(seen) == 1


def test_retry_after_as_number_and_as_date():
    assert retry_after("7") == 7 and retry_after("-1") == 0
    assert retry_after(None) is None and retry_after("soon") is None and retry_after("nan") is None
    later = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=30), usegmt=True)
    assert 25 < (retry_after(later) or 0) <= 30
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0


def test_a_judge_that_hangs_or_drips_is_timed_out_and_may_have_been_billed():
    lost: list[tuple[str, Usage, bool]] = []
    with (
        serving(ok(), seconds_a_byte=0.05) as (url, seen),
        pytest.raises(CallFailed, match=r"did not answer within timeout_seconds, 0.3 s \(after 2 attempts\)"),
    ):
        ask(judge_at(url, timeout_seconds=0.3, retries=1), lost)
    assert len(seen) == 2 and [what[1:] for what in lost] == [(Usage(), False), (Usage(), True)]


def test_nobody_there_is_no_bill():
    lost: list[tuple[str, Usage, bool]] = []
    with pytest.raises(CallFailed, match=r"cannot be reached: .*refused.*after 3 attempts"):
        ask(judge_at("http://127.0.0.1:9/v1"), lost)
    assert lost == []


def test_pauses_end_when_the_work_is_stopped():
    stopped = threading.Event()
    with serving((503, b"", {})) as (url, _):
        endpoint = Endpoint(judge_at(url, backoff_seconds=60), stopped, lambda *lost: None)
        threading.Timer(0.3, stopped.set).start()
        started = time.monotonic()
        with pytest.raises(CallFailed, match="stopped between attempts"):
            endpoint.ask(CALL)
        assert time.monotonic() - started < 10


# ---- the file and the key --------------------------------------------------------------------------------------------


def test_the_example_of_the_repository_is_a_judge():
    judge = load_judge("eval/judged/judge.yaml")
    assert judge.usd(1e6, 1e6) == pytest.approx(12.5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"api_key": "sk-very-secret"}, "api_key: unknown key; did you mean 'api_key_env'"),
        ({"api_key_env": "sk-very-secret"}, "api_key_env is no name of an environment variable"),
        ({"base_url": "http://user:sk-very-secret@host/v1"}, "base_url has a user, a password or a query"),
        ({"base_url": "https://host/v1?key=sk-very-secret"}, "base_url has a user, a password or a query"),
        ({"base_url": "host/v1"}, "base_url is 'host/v1'"),
        ({"base_url": "http://judge.example/v1", "api_key_env": "MY_KEY"}, "https:// with a key"),
        ({"timeout_seconds": 0}, "timeout_seconds is 0"),
        ({"concurrency": 0}, "concurrency is 0"),
        ({"retries": -1}, "retries is -1"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"usd_per_million_input": 1.0}, "both prices, or neither"),
        ({"max_tokens_field": "tokens"}, "max_tokens_field is 'tokens'"),
    ],
)
def test_a_mistake_in_the_file_is_told_and_a_key_in_it_is_not(tmp_path, changes, said):
    path = tmp_path / "judge.yaml"
    path.write_text(yaml.safe_dump({"base_url": "https://host/v1", "model": "j"} | changes), encoding="utf-8")
    with pytest.raises(ConfigError, match=said) as told:
        load_judge(str(path))
    assert "judge.yaml" in str(told.value) and "very-secret" not in str(told.value)


def test_a_key_that_is_not_set_is_told_before_anything_is_asked(monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(ConfigError, match="api_key_env is 'MY_KEY', but that variable is not set"):
        judge_at("https://host/v1", api_key_env="MY_KEY").secret()


def test_a_key_that_cannot_be_sent_is_not_told(monkeypatch):
    for value in ("sk-very\nsecret", "sk-very-s\u00e9cret"):
        monkeypatch.setenv("MY_KEY", value)
        with pytest.raises(ConfigError, match="what that variable has is no key") as told:
            judge_at("https://host/v1", api_key_env="MY_KEY").secret()
        assert "very" not in str(told.value)


def test_what_is_meant_for_this_host_goes_to_no_proxy(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with serving(ok()) as (url, seen):
        assert ask(judge_at(url)).text == "[[7]]"
    assert len(seen) == 1


SECRET = "sk-very/secret-key"


@pytest.mark.parametrize(
    "answer",
    [
        (401, json.dumps({"error": {"message": f"Incorrect API key: {SECRET}"}}).encode(), {}),
        (401, b'{"error": "Incorrect: sk-very\\/secret-key"}', {}),
        (401, b'<a href="/?key=sk-very%2Fsecret-key">', {}),
        (400, b"x" * 290 + SECRET.encode(), {}),
        (400, b"x" * 1190 + SECRET.encode(), {}),
        (503, json.dumps({"error": {"message": "x" * 290 + SECRET}}).encode(), {}),
        (429, SECRET.encode(), {"Retry-After": "3600"}),
        (200, SECRET.encode(), {}),
        (200, b"x" * 290 + SECRET.encode(), {}),
        (200, json.dumps({"error": {"code": 401, "message": "x" * 290 + SECRET}}).encode(), {}),
        (200, json.dumps({"choices": [{"message": {"content": 3, "to": SECRET}}]}).encode(), {}),
        (200, SECRET.encode(), {"Content-Encoding": "gzip"}),
    ],
)
def test_a_server_that_repeats_the_key_does_not_make_us_tell_it(monkeypatch, answer):
    monkeypatch.setenv("MY_KEY", SECRET)
    lost: list[tuple[str, Usage, bool]] = []
    with serving(answer) as (url, _), pytest.raises(CallFailed) as told:
        ask(judge_at(url, api_key_env="MY_KEY", retries=1), lost)
    for said in (str(told.value), *(what[0] for what in lost)):
        assert "sk-very" not in said


def test_a_judgment_that_repeats_the_key_is_kept_without_it(monkeypatch):
    monkeypatch.setenv("MY_KEY", SECRET)
    words = {"message": {"content": f"You are {SECRET}: [[7]]"}, "finish_reason": SECRET}
    with serving(ok({"choices": [words], "model": SECRET})) as (url, _):
        reply = ask(judge_at(url, api_key_env="MY_KEY"))
    assert (reply.text, reply.finish, reply.served) == ("You are ***: [[7]]", "***", "***")


def test_a_word_in_place_of_a_key_may_stand_in_a_judgment(monkeypatch):
    monkeypatch.setenv("MY_KEY", "EMPTY")
    answer = {"choices": [{"message": {"content": "EMPTY words: [[1]]"}}]}
    with serving(ok(answer), (400, b"EMPTY is no key", {})) as (url, _):
        judge = judge_at(url, api_key_env="MY_KEY")
        assert ask(judge).text == "EMPTY words: [[1]]"
        with pytest.raises(CallFailed, match=r"\*\*\* is no key"):
            ask(judge)
