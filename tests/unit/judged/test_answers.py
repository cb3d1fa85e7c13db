"""Answers: in batches as alone, kept line by line, never made twice, and cut by a rule that is said."""

import json
import math
import os
import random
import resource
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mrpo_ds.config.schema import ModelConfig
from mrpo_ds.data.rendering import Renderer
from mrpo_ds.errors import ConfigError, MrpoError
from mrpo_ds.judged import answers
from mrpo_ds.judged.answers import answers_of
from mrpo_ds.judged.generation import (
    NEXT_TURN,
    Request,
    conversation,
    draws_name,
    draws_seed,
    fit,
    load_speaker,
    model_limit,
)
from mrpo_ds.judged.generation_transformers import TransformersBackend, find_device, pick
from mrpo_ds.judged.records import Answer, Generation, Question
from mrpo_ds.judged.vllm_engine import count_gpus, engine_settings, sampling_settings, with_end
from mrpo_ds.models import load_tokenizer
from mrpo_ds.types import Message
from tests.support import ROOT, bpe_tokenizer, command_environment, digit_tokenizer, make_model

FAMILIES = ("llama", "gemma3", "qwen2", "mamba", "llama4")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "llama")


def questions(count: int = 5) -> list[Question]:
    """Questions of different lengths, of one turn, of two, and with something said before."""
    history = (Message("user", "Who are you?"), Message("assistant", "A colour chart."))
    made = []
    for index in range(count):
        turns = ("Which colour comes next" + ", please" * (3 * index % 7) + "?", "And then?")[: 1 + index % 2]
        made.append(
            Question(f"q{index}", turns, ("odd" if index % 2 else "even"), history=history if index > 2 else ())
        )
    return made


def generation(**changes: Any) -> Generation:
    return Generation(**{"max_new_tokens": 8, "batch_size": 4} | changes)


def ask(model: Path, out: Path, asked: list[Question], how: Generation, name: str = "tiny") -> list[Answer]:
    return answers_of(name, model, asked, how, out, "transformers", "cpu")


def lines(out: Path, name: str = "tiny") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "answers" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


# ---- what is said ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_does_not_depend_on_what_is_answered_beside_it(
    tmp_path: Path, family: str, temperature: float
) -> None:
    path = make_model(tmp_path / family, family)
    alone = ask(path, tmp_path / "alone", questions(), generation(batch_size=1, temperature=temperature))
    if temperature or family != "gemma3":  # the likeliest token of that one is always a newline
        assert len({answer.turns for answer in alone}) == 5, "they differ, so that a mixture would be seen"
    for batch_size in (3, 5):
        together = generation(batch_size=batch_size, temperature=temperature)
        assert ask(path, tmp_path / str(batch_size), questions(), together) == alone


def test_greedy_answers_are_the_likeliest_tokens_of_the_models_own_template(tmp_path: Path, model: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, reference = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
    (answer,) = ask(model, tmp_path, [questions()[1]], generation(system="Be brief."))
    messages = [{"role": "system", "content": "Be brief."}]
    for turn, text, count in zip(questions()[1].turns, answer.turns, answer.tokens, strict=True):
        messages.append({"role": "user", "content": turn})
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        start = len(ids)
        while len(ids) - start < 8 and ids[-1] != tokenizer.eos_token_id:
            with torch.no_grad():
                ids.append(int(reference(torch.tensor([ids])).logits[0, -1].argmax()))
        assert count == len(ids) - start
        assert text == tokenizer.decode(ids[start:], skip_special_tokens=True)
        messages.append({"role": "assistant", "content": text})


def test_sampled_answers_depend_on_seed_question_and_turn_alone(tmp_path: Path, model: Path) -> None:
    how = generation(temperature=1.0)
    forward = ask(model, tmp_path / "a", questions(), how)
    backward = ask(model, tmp_path / "b", questions()[::-1], how)
    assert backward[::-1] == forward
    assert ask(model, tmp_path / "c", questions(), generation(temperature=1.0, seed=1)) != forward
    same_text = [Question(name, ("Which colour?", "Which colour?")) for name in ("one", "two")]
    one, two = ask(model, tmp_path / "d", same_text, how)
    assert one.turns != two.turns and one.turns[0] != one.turns[1]


def test_an_answer_ends_with_the_token_that_ended_it(model: Path) -> None:
    speaker = load_speaker(str(model), 512)
    backend = TransformersBackend(str(model), speaker, 8, "cpu")
    asked = [Request([5, 6, 7][: 1 + row % 3], 50.0, str(row)) for row in range(8)]  # so hot that some end by chance
    made = backend.generate(asked, 200)
    ended = [ids for ids in made if speaker.ends.intersection(ids)]
    assert 0 < len(ended) < 8
    for ids in made:
        assert len(ids) == 200 or ids[-1] in speaker.ends
        assert not speaker.ends.intersection(ids[:-1])
        assert speaker.text(ids)[1:] == (len(ids), ids in ended)
    assert [backend.generate([one], 200)[0] for one in asked] == made


def test_the_numbers_of_a_turn_have_a_name_of_their_own() -> None:
    names = [draws_name(seed, question, turn) for seed in (0, 1) for question in questions(2) for turn in (0, 1)]
    assert len(set(names)) == 8


def test_a_temperature_of_a_category_is_that_of_its_questions(tmp_path: Path, model: Path) -> None:
    greedy = ask(model, tmp_path / "greedy", questions(), generation())
    mixed = ask(model, tmp_path / "mixed", questions(), generation(temperature_by_category={"odd": 5.0}))
    same = [one == other for one, other in zip(greedy, mixed, strict=True)]
    assert same == [True, False, True, False, True]


@settings(deadline=None)
@given(st.lists(st.floats(-8, 8), min_size=1, max_size=12), st.floats(0.1, 3), st.floats(0, 1, exclude_max=True))
def test_the_token_at_a_height_of_the_cumulated_probabilities(
    logits: list[float], temperature: float, height: float
) -> None:
    token = pick(torch.tensor(logits), temperature, height)
    weights = [math.exp(float(one) / temperature) for one in torch.tensor(logits)]
    below, total = math.fsum(weights[:token]), math.fsum(weights)
    assert below - 1e-9 * total <= height * total <= below + weights[token] + 1e-9 * total


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0])
    numbers = random.Random(3)
    counts = Counter(pick(logits, 0.7, numbers.random()) for _ in range(4000))
    expected = torch.softmax(logits / 0.7, dim=-1)
    for token, probability in enumerate(expected.tolist()):
        assert abs(counts[token] / 4000 - probability) < 4 * math.sqrt(probability * (1 - probability) / 4000)


def test_a_base_models_answer_ends_where_it_writes_the_users_next_turn(tmp_path: Path) -> None:
    speaker = load_speaker(str(make_model(tmp_path / "gemma3", "gemma3")), None)
    assert speaker.renderer.template is None
    ids = speaker.renderer.response_ids(f"Four.{NEXT_TURN}What is 3 + 3?", complete=False)
    assert speaker.text(ids) == ("Four.", len("Four."), True)
    assert NEXT_TURN in speaker.renderer._chat.prompt([Message("assistant", "Four."), Message("user", "And?")])
    with_template = load_speaker(str(make_model(tmp_path / "llama")), None)
    ids = with_template.renderer.response_ids(f"Four.{NEXT_TURN}", complete=False)
    assert with_template.text(ids) == (f"Four.{NEXT_TURN}", len(ids), False)


def test_special_tokens_are_no_part_of_an_answers_text(model: Path) -> None:
    speaker = load_speaker(str(model), None)
    names = speaker.renderer.tokenizer.convert_tokens_to_ids
    word = speaker.renderer.response_ids("Paris", complete=False)
    ids = [names("<|im_start|>"), *word, names("<|endoftext|>"), names("<|im_end|>")]
    assert speaker.text(ids) == ("Paris", len(ids), True)
    assert speaker.text(ids[:-1]) == ("Paris", len(ids) - 1, False)
    assert speaker.text([]) == ("", 0, False)


# ---- what does not fit -----------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(45, 400), st.lists(st.integers(0, 40), min_size=1, max_size=5), st.booleans(), st.booleans())
def test_a_conversation_fits_and_loses_its_earliest_parts_first(
    room: int, words: list[int], has_system: bool, plain: bool
) -> None:
    renderer = Renderer(digit_tokenizer() if plain else bpe_tokenizer(), "tiny", "auto", True)
    messages = [Message("system", "Be kind.")] if has_system else []
    for number, count in enumerate(words):
        messages += [Message("user", f"{number}:" + " why" * count + "?"), Message("assistant", f"because {number}")]
    messages.pop()
    ids, lost = fit(renderer, messages, room)
    text = renderer.tokenizer.decode(ids)
    whole = renderer.prompt_ids(messages)
    assert len(ids) <= room
    assert (lost == "") == (len(whole) <= room) and (ids == whole) == (lost == "")
    assert has_system == ("Be kind." in text)
    kept = [number for number in range(len(words)) if f"{number}:" in text]
    last = len(words) - 1
    assert kept == list(range(kept[0], last + 1)) if kept else lost == "text"
    if lost == "turns":  # and no more than must be
        before = [message for message in messages if message.role == "system"]
        start = next(i for i, message in enumerate(messages) if message.content.startswith(f"{kept[0] - 1}:"))
        assert len(renderer.prompt_ids([*before, *messages[start:]])) > room
    if lost == "text":
        assert messages[-1].content.endswith(_last_turn(text, renderer)), "its end is what is kept"
        assert room - len(ids) <= 4  # another character would have been one token too many, or a few


def _last_turn(text: str, renderer: Renderer) -> str:
    start, end = ("Human:\n", "\n\nAssistant:") if renderer.template is None else ("<|im_start|>user\n", "<|im_end|>")
    return text.partition(start)[2].rpartition(end)[0]


def test_long_conversations_are_cut_and_counted(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mrpo_ds.console import configure_console

    limit = model_limit(str(model))
    assert limit == 512
    history = tuple(Message(("user", "assistant")[number % 2], "word " * 30) for number in range(16))
    asked = [
        Question("short", ("Which colour?",)),
        Question("earlier", ("Which colour?",), history=history),
        Question("long", ("Which colour? " * 200, "And then?")),
    ]
    configure_console(True)
    try:
        for _ in range(2):  # the second time nothing is made, and it is said all the same
            found = ask(model, tmp_path, asked, generation(max_new_tokens=20))
            said = capsys.readouterr().err
            assert (
                "of 4 prompts 3 were longer than the model takes: 2 lost their earliest turns, 1 the beginning" in said
            )
        assert [row["lost"] for row in lines(tmp_path)[1:]].count(["text", "turns"]) == 1
        assert [answer.question for answer in found] == ["short", "earlier", "long"]
        ask(model, tmp_path / "more", asked[:1], generation(max_new_tokens=300))
        assert "its answers have at most 256 tokens and not 300" in capsys.readouterr().err
    finally:
        configure_console(False)
    assert max(found[0].tokens) <= 20


def test_a_system_message_without_room_is_refused(tmp_path: Path, model: Path) -> None:
    with pytest.raises(ConfigError, match="the chat template and the system message take .* a shorter system message"):
        ask(model, tmp_path, questions(1), generation(system="Be brief. " * 400))


# ---- what is kept ----------------------------------------------------------------------------------------------------


def test_what_is_there_is_not_made_again(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ask(model, tmp_path, questions(3), generation())
    content = (tmp_path / "answers/tiny.jsonl").read_bytes()
    every = ask(model, tmp_path, questions(5), generation(batch_size=1))
    assert every[:3] == first
    assert (tmp_path / "answers/tiny.jsonl").read_bytes().startswith(content)
    assert sorted(row["question"] for row in lines(tmp_path)[1:]) == [f"q{index}" for index in range(5)]
    monkeypatch.setattr(answers, "_load", None)  # neither the model nor the device is looked at
    assert answers_of("tiny", model, questions(5), generation(), tmp_path, "transformers", "cuda:7") == every


@pytest.mark.parametrize("end", [b'{"question": "q9", "tur', b"{", b'{"question": "q9"}'])
def test_a_torn_last_line_is_dropped(
    tmp_path: Path, model: Path, end: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    from mrpo_ds.console import configure_console

    expected = ask(model, tmp_path, questions(), generation())
    file = tmp_path / "answers/tiny.jsonl"
    whole = file.read_bytes()
    rows = whole.splitlines(keepends=True)
    file.write_bytes(b"".join(rows[:3]) + end)
    configure_console(True)
    assert ask(model, tmp_path, questions(), generation()) == expected
    configure_console(False)
    assert "ends in a torn line of " in capsys.readouterr().err
    assert sorted(file.read_bytes().splitlines()) == sorted(whole.splitlines())
    file.write_bytes(rows[0][:-20])  # of the first line too
    assert ask(model, tmp_path, questions(), generation()) == expected


def test_a_line_that_is_damaged_is_named(tmp_path: Path, model: Path) -> None:
    ask(model, tmp_path, questions(), generation())
    file = tmp_path / "answers/tiny.jsonl"
    rows = file.read_text(encoding="utf-8").splitlines(keepends=True)
    for bad in ("nonsense\n", '{"question": "q1"}\n', "[1, 2]\n"):
        file.write_text("".join([*rows[:2], bad, *rows[3:]]), encoding="utf-8")
        with pytest.raises(ConfigError, match="line 3 of .*tiny.jsonl' is damaged. Remove it"):
            ask(model, tmp_path, questions(), generation())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_new_tokens": 9}, "max_new_tokens 8 then, 9 now"),
        ({"temperature": 0.5}, "temperature 0.0 then, 0.5 now"),
        ({"temperature_by_category": {"odd": 1}}, "temperature_by_category {} then, {'odd': 1.0} now"),
        ({"system": "Be kind."}, "system None then, 'Be kind.' now"),
        ({"seed": 3}, "seed 0 then, 3 now"),
    ],
)
def test_answers_of_other_settings_are_refused(tmp_path: Path, model: Path, changes: dict[str, Any], said: str) -> None:
    ask(model, tmp_path, questions(1), generation())
    with pytest.raises(ConfigError) as caught:
        ask(model, tmp_path, questions(1), generation(**changes))
    assert said in str(caught.value) and "Use another --out, another name (NAME=PATH), or remove" in str(caught.value)


def test_answers_of_another_model_or_to_another_question_are_refused(tmp_path: Path, model: Path) -> None:
    ask(model, tmp_path, questions(2), generation())
    other = make_model(tmp_path / "other", seed=1)
    with pytest.raises(ConfigError, match="model_hash 'SHA-256 .* must not be mixed"):
        ask(other, tmp_path, questions(2), generation())
    changed = [questions(2)[0], Question("q1", ("Which shape comes next?",))]
    with pytest.raises(ConfigError, match="question 'q1' is answered in .* but was another one then"):
        ask(model, tmp_path, changed, generation())
    with pytest.raises(ConfigError, match="the backend of answers is 'tgi'; allowed: transformers | vllm"):
        answers_of("tiny", model, questions(2), generation(), tmp_path, "tgi", None)


def test_two_processes_do_not_write_the_same_answers(tmp_path: Path, model: Path) -> None:
    ask(model, tmp_path, questions(1), generation())
    file = answers.AnswerFile(tmp_path / "answers/tiny.jsonl", lines(tmp_path)[0]["settings"])
    with file.opened(), pytest.raises(ConfigError, match="another process writes answers"):
        ask(model, tmp_path, questions(1), generation())


@pytest.mark.parametrize("room", [0, 100, 2000])
def test_a_full_disk_keeps_what_is_finished(tmp_path: Path, model: Path, room: int) -> None:
    """A limit of the size of files makes the kernel refuse a write in its middle, as a full disk does."""
    expected = ask(model, tmp_path / "expected", questions(), generation(batch_size=1))
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, unlimited[1]))
    try:
        many = [Question(f"more{index}", (f"Which {index}?",)) for index in range(40)]
        with pytest.raises(MrpoError, match="answers cannot be kept in .*: File too large. [0-9]+ of them are there;"):
            ask(model, tmp_path / "full", [*questions(), *many], generation(batch_size=1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        signal.signal(signal.SIGXFSZ, ignored)
    kept = (tmp_path / "full/answers/tiny.jsonl").read_bytes()
    assert len(kept) <= room and kept[-1:] in (b"", b"\n")
    assert (kept.count(b"\n") > 2) == (room == 2000)
    assert ask(model, tmp_path / "full", questions(), generation()) == expected
    assert (tmp_path / "full/answers/tiny.jsonl").read_bytes().startswith(kept)


KILLED = """
import os
import sys
from pathlib import Path
from mrpo_ds.errors import Stopped
from mrpo_ds.judged import answers
from tests.unit.judged.test_answers import ask, generation, questions
add = answers.AnswerFile.add
def counting(file, *arguments):
    add(file, *arguments)
    print(len(file.kept), flush=True)
    if len(file.kept) == 3 and sys.argv[3:]:
        os.kill(os.getpid(), int(sys.argv[3]))
answers.AnswerFile.add = counting
try:
    ask(Path(sys.argv[1]), Path(sys.argv[2]), questions(12), generation(batch_size=1, temperature=1.0))
except Stopped as error:
    print(error)
    sys.exit(error.exit_code)
"""


def test_killed_in_the_middle_it_goes_on_to_the_same_answers(tmp_path: Path, model: Path) -> None:
    expected = ask(model, tmp_path / "expected", questions(12), generation(temperature=1.0))
    command = [sys.executable, "-c", KILLED, str(model), str(tmp_path / "killed")]
    with subprocess.Popen(command, cwd=ROOT, env=command_environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == "3":
                os.kill(process.pid, signal.SIGKILL)
                break
    kept = (tmp_path / "killed/answers/tiny.jsonl").read_bytes()
    assert 4 <= kept.count(b"\n") < 13
    assert ask(model, tmp_path / "killed", questions(12), generation(temperature=1.0)) == expected
    assert (tmp_path / "killed/answers/tiny.jsonl").read_bytes().startswith(kept[: kept.rfind(b"\n") + 1])


@pytest.mark.parametrize("number", [signal.SIGINT])
def test_stopped_by_a_signal_it_finishes_what_is_under_way(tmp_path: Path, model: Path, number: int) -> None:
    expected = ask(model, tmp_path / "expected", questions(12), generation(temperature=1.0))
    command = [sys.executable, "-c", KILLED, str(model), str(tmp_path / "stopped"), str(int(number))]
    done = subprocess.run(command, cwd=ROOT, env=command_environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 75, done.stderr[-3000:]
    assert f"stopped by {signal.Signals(number).name}; 3 of 12 answers of tiny are kept" in done.stdout
    assert "a second signal ends at once" in done.stderr and "Traceback" not in done.stderr
    assert len(lines(tmp_path / "stopped")) == 4
    assert ask(model, tmp_path / "stopped", questions(12), generation(temperature=1.0)) == expected


# ---- devices and vLLM ------------------------------------------------------------------------------------------------


def test_devices_that_are_not_there_are_refused() -> None:
    assert find_device("cpu").type == "cpu"
    with pytest.raises(ConfigError, match="the device of answers is 'tpu'; allowed: cpu"):
        find_device("tpu")
    with pytest.raises(ConfigError, match="allowed with vLLM: cuda. CUDA_VISIBLE_DEVICES"):
        count_gpus("cpu")


def test_a_model_that_is_not_whole_is_refused(tmp_path: Path, model: Path) -> None:
    broken = make_model(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(ConfigError, match="cannot load the model at"):
        ask(broken, tmp_path, questions(1), generation())
    with pytest.raises(ConfigError, match="does not exist"):
        ask(tmp_path / "none", tmp_path, questions(1), generation())


def test_vllm_is_refused_where_it_is_missing(tmp_path: Path, model: Path) -> None:
    with pytest.raises(ConfigError, match=r"not installed; install it with pip install 'mrpo-ds\[vllm\]'"):
        answers_of("tiny", model, questions(1), generation(), tmp_path, "vllm", None)


def test_what_vllm_is_told(model: Path) -> None:
    told = engine_settings(str(model), seed=3, gpus=2)
    expected = {"model": str(model), "dtype": "float32", "tensor_parallel_size": 2, "seed": 3}
    assert told == expected | {"generation_config": "vllm", "trust_remote_code": False}
    greedy = sampling_settings(Request([1, 2], 0.0, '[0, "q", 0]'), 8, [2, 5])
    assert greedy["temperature"] == 0 and greedy["max_tokens"] == 8 and greedy["stop_token_ids"] == [2, 5]
    assert "seed" not in greedy and greedy["detokenize"] is False and greedy["n"] == 1
    names = ('[0, "q", 0]', '[0, "q", 1]', '[1, "q", 0]')
    seeds = [sampling_settings(Request([1], 0.7, name), 8, [2])["seed"] for name in names]
    assert len(set(seeds)) == 3 and seeds == [draws_seed(name) for name in names]
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_vllms_answers_end_as_those_of_transformers_do(model: Path) -> None:
    assert with_end([7, 8], ended=True, ends=[2, 5]) == [7, 8, 2]
    assert with_end([], ended=True, ends=[2, 5]) == [2]
    assert with_end([7, 5], ended=True, ends=[2, 5]) == [7, 5]
    assert with_end([7, 8], ended=False, ends=[2, 5]) == [7, 8]


def test_a_conversation_is_all_that_was_said_before() -> None:
    question = Question("q", ("one", "two"), history=(Message("user", "zero"), Message("assistant", "none")))
    said = [(one.role, one.content) for one in conversation(question, ["first"], "Be kind.")]
    roles = ["system", "user", "assistant", "user", "assistant", "user"]
    assert said == list(zip(roles, ["Be kind.", "zero", "none", "one", "first", "two"], strict=True))


def test_nothing_of_the_models_own_file_changes_an_answer(tmp_path: Path, model: Path) -> None:
    from transformers import GenerationConfig

    expected = ask(model, tmp_path / "plain", questions(3), generation())
    other = make_model(tmp_path / "other")
    own = GenerationConfig(do_sample=True, temperature=3.0, repetition_penalty=9.0, max_new_tokens=1, num_beams=2)
    own.save_pretrained(other)
    assert load_tokenizer(ModelConfig(path=str(other))).eos_token_id is not None
    assert ask(other, tmp_path / "own", questions(3), generation()) == expected


def test_a_backend_lets_go_of_its_model(model: Path) -> None:
    backend = TransformersBackend(str(model), load_speaker(str(model), 512), 2, "cpu")
    assert backend.generate([Request([5, 6, 7], 0.0, "")], 3)
    backend.close()
    assert backend._model is None
