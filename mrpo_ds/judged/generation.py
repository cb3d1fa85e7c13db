"""How a model is asked the turns of a question: as in a conversation, each one after its own answer to the last.

What a backend (generation_transformers.py, vllm_engine.py) gets are token ids, so the two are asked the same to the
token. The model's own chat template writes them; a model without one gets the plain template, and its answer then ends
where it begins to write the user's next turn, which a base model does instead of ending.

An answer may have max_new_tokens, and at most half of the model's positions; the rest is room for the conversation. One
that is longer loses its earliest exchanges, each whole, while the system message and the last turn stay. A last turn
that is too long by itself loses its beginning. Both are counted, and said.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mrpo_ds.config.schema import ModelConfig
from mrpo_ds.data.rendering import Renderer
from mrpo_ds.data.special_text import special_ids
from mrpo_ds.data.templates import plain_prompt
from mrpo_ds.errors import ConfigError
from mrpo_ds.judged.records import Answer, Generation, Question
from mrpo_ds.types import Message

WHOLE, WITHOUT_TURNS, WITHOUT_TEXT = "", "turns", "text"
"""What a conversation lost to fit: nothing, earlier exchanges, or also the beginning of its last turn."""
NEXT_TURN = "\n\n" + plain_prompt([Message("user", "|")]).partition("|")[0]
"""What the plain template writes between an answer and the user's next turn."""


@dataclass(frozen=True)
class Request:
    """One turn of a question, as a backend gets it."""

    ids: list[int]
    """Up to where the answer begins."""
    temperature: float
    """0 takes the likeliest token."""
    draws: str
    """Names the random numbers of this turn, wherever and beside whatever else it is answered."""


class Backend(Protocol):
    """What answers."""

    limit: int | None
    """Positions of the model, or None where it has no limit."""
    at_once: int
    """Questions that it is given together; they are kept when all of them are answered."""

    def generate(self, requests: Sequence[Request], most: int) -> list[list[int]]:
        """Up to so many new ids for each request, the one that ended it among them."""

    def close(self) -> None:
        """Let go of the model's memory."""


@dataclass(frozen=True)
class Asked:
    """An answer, and what the model saw of the question."""

    answer: Answer
    lost: tuple[str, ...]
    """Per turn: WHOLE, WITHOUT_TURNS or WITHOUT_TEXT."""


@dataclass(frozen=True)
class Speaker:
    """What turns a model's conversations into ids and its ids into text."""

    renderer: Renderer
    ends: frozenset[int]
    """The tokens that end an answer."""
    special: frozenset[int]
    limit: int | None

    def room(self, wanted: int) -> tuple[int, int | None]:
        """(new tokens of an answer, tokens of a conversation; None: any number)."""
        if self.limit is None:
            return wanted, None
        most = max(1, min(wanted, self.limit // 2))
        return most, self.limit - most

    def text(self, ids: Sequence[int]) -> tuple[str, int, bool]:
        """(an answer's text without special tokens, its tokens, whether the model ended it)."""
        ended = bool(ids) and ids[-1] in self.ends
        text = self.renderer.response_text([one for one in ids if one not in self.special])
        if self.renderer.template is None and NEXT_TURN in text:
            text = text.partition(NEXT_TURN)[0]
            return text, len(self.renderer.response_ids(text, complete=False)), True
        return text, len(ids), ended


def load_speaker(path: str, limit: int | None) -> Speaker:
    """The speaker of a model. Raises ConfigError for a model without a usable tokenizer or template.

    Args:
        path: a directory or a Hub id.
        limit: the model's positions, see model_limit.
    """
    from mrpo_ds.models import load_tokenizer

    tokenizer = load_tokenizer(ModelConfig(path=path))
    renderer = Renderer(tokenizer, path, "auto", score_eos=tokenizer.eos_token_id is not None)
    ends = {*_own_ends(path), tokenizer.eos_token_id, renderer.end_of_turn} - {None}
    return Speaker(renderer, frozenset(ends), frozenset(special_ids(tokenizer) | ends), limit)


def model_limit(path: str) -> int | None:
    """How many positions a model has by its config; None where it knows no limit. Raises ConfigError."""
    from mrpo_ds.models import load_model_config

    text = load_model_config(ModelConfig(path=path)).get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    return None if limit is None else int(limit)


def _own_ends(path: str) -> set[Any]:
    """The tokens that the model's own files say end an answer."""
    from transformers import GenerationConfig

    from mrpo_ds.models import load_model_config

    try:
        own = GenerationConfig.from_pretrained(path).eos_token_id
    except (OSError, ValueError):  # it has no such file
        own = getattr(load_model_config(ModelConfig(path=path)).get_text_config(), "eos_token_id", None)
    return set(own) if isinstance(own, list) else {own}


def answer_questions(
    backend: Backend, speaker: Speaker, questions: Sequence[Question], generation: Generation
) -> Iterator[list[Asked]]:
    """Answer all questions, some at once. Yields the answers of each such group when they have all of their turns.

    Those with long prompts come first: rows of a forward are then alike, and a lack of memory shows at once.
    """
    first = {one.id: len(speaker.renderer.prompt_ids(conversation(one, (), generation.system))) for one in questions}
    queue = sorted(questions, key=lambda one: -first[one.id])
    for start in range(0, len(queue), backend.at_once):
        yield _answer(backend, speaker, queue[start : start + backend.at_once], generation)


def _answer(backend: Backend, speaker: Speaker, group: list[Question], generation: Generation) -> list[Asked]:
    most, room = speaker.room(generation.max_new_tokens)
    said: list[list[tuple[str, int, bool]]] = [[] for _ in group]
    lost: list[list[str]] = [[] for _ in group]
    for turn in range(max(len(question.turns) for question in group)):
        places = [place for place, question in enumerate(group) if turn < len(question.turns)]
        requests = []
        for place in places:
            question = group[place]
            messages = conversation(question, [text for text, _, _ in said[place]], generation.system)
            ids, left_out = fit(speaker.renderer, messages, room)
            lost[place].append(left_out)
            draws = draws_name(generation.seed, question, turn)
            requests.append(Request(ids, generation.temperature_of(question), draws))
        for place, ids in zip(places, backend.generate(requests, most), strict=True):
            said[place].append(speaker.text(ids))
    answers = []
    for question, turns, left in zip(group, said, lost, strict=True):
        texts, tokens, finished = zip(*turns, strict=True)
        answers.append(Asked(Answer(question.id, texts, tokens, finished), tuple(left)))
    return answers


def conversation(question: Question, answers: Sequence[str], system: str | None) -> list[Message]:
    """What a model sees when it has given so many answers: all before the turn that it answers next, and that turn."""
    messages = [] if system is None else [Message("system", system)]
    messages += question.history
    for turn, answer in zip(question.turns, answers, strict=False):
        messages += [Message("user", turn), Message("assistant", answer)]
    return [*messages, Message("user", question.turns[len(answers)])]


def draws_name(seed: int, question: Question, turn: int) -> str:
    """Names the random numbers of a turn: nothing but these three decides them."""
    return json.dumps([seed, question.id, turn])


def draws_seed(name: str) -> int:
    """A seed in [0, 2^32) for a generator of another library."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")


def fit(renderer: Renderer, messages: Sequence[Message], room: int | None) -> tuple[list[int], str]:
    """(the ids of a conversation in so many tokens, what it lost). See the head of this file.

    Raises ConfigError where not even the template and the system message fit.
    """
    kept, lost = list(messages), WHOLE
    ids = renderer.prompt_ids(kept)
    while room is not None and len(ids) > room:
        shorter = _without_first_exchange(kept)
        if shorter is None:
            return _with_end_of_last_turn(renderer, kept, room), WITHOUT_TEXT
        kept, lost = shorter, WITHOUT_TURNS
        ids = renderer.prompt_ids(kept)
    return ids, lost


def _without_first_exchange(messages: Sequence[Message]) -> list[Message] | None:
    """The conversation from its second user turn on, after its system messages; None if it has only one."""
    users = [index for index, message in enumerate(messages) if message.role == "user"]
    if len(users) < 2:
        return None
    head = [message for message in messages[: users[1]] if message.role == "system"]
    return [*head, *messages[users[1] :]]


def _with_end_of_last_turn(renderer: Renderer, messages: list[Message], room: int) -> list[int]:
    """The ids with as much of the end of the last turn as fits. Fewer characters have, all but always, fewer tokens."""
    text = messages[-1].content

    def ids_of(length: int) -> list[int]:
        return renderer.prompt_ids([*messages[:-1], Message("user", text[len(text) - length :])])

    fits, too_long = 0, len(text)
    ids = ids_of(fits)
    if len(ids) > room:
        raise ConfigError(
            f"{renderer.model_name}: the chat template and the system message take {len(ids)} tokens, and beside an "
            f"answer the model has room for {room}; allowed: a shorter system message, or fewer new tokens."
        )
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        tried = ids_of(middle)
        if len(tried) <= room:
            fits, ids = middle, tried
        else:
            too_long = middle
    return ids


def describe_lost(lost: Sequence[tuple[str, ...]], name: str) -> str:
    """What to say of the conversations that did not fit, or ""."""
    turns = [one for each in lost for one in each]
    without_turns, without_text = turns.count(WITHOUT_TURNS), turns.count(WITHOUT_TEXT)
    if not without_turns and not without_text:
        return ""
    return (
        f"warning: {name}: of {len(turns)} prompts {without_turns + without_text} were longer than the model takes: "
        f"{without_turns} lost their earliest turns, {without_text} the beginning of their last one"
    )


def describe_room(speaker: Speaker, generation: Generation, name: str) -> str:
    """What to say where answers must be shorter than asked for, or ""."""
    most, _ = speaker.room(generation.max_new_tokens)
    if most == generation.max_new_tokens:
        return ""
    return (
        f"warning: {name}: its answers have at most {most} tokens and not {generation.max_new_tokens}: half of the "
        f"model's {speaker.limit} positions are kept for the conversation"
    )
