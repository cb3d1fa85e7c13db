"""The tokens of a sequence as pieces of text: nothing lost, nothing hidden, boundaries where they are."""

import re
from typing import Any

import pytest
from hypothesis import example as case
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders

from mrpo_ds.data.rendering import Renderer
from mrpo_ds.report.markup import is_hidden
from mrpo_ds.report.tokens import (
    BOS,
    CLOSING,
    SPECIAL,
    Piece,
    as_line,
    num_tokens,
    one_line,
    pieces_of,
    runs_of,
)
from mrpo_ds.types import Example, Message
from tests.unit.data.conftest import build_bpe, build_unigram, build_word_level

SMILE = "\U0001f642"
FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
RENDERERS = {
    "bytes": Renderer(build_bpe(), "policy", "auto", score_eos=True),
    "all turns": Renderer(build_bpe(), "policy", "auto", score_eos=True, score_turns="all"),
    "fallback": Renderer(build_unigram(), "llama", "auto", score_eos=True),
    "words": Renderer(build_word_level(), "words", "auto", score_eos=True),
}


def whole(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def example(prompt: str, response: str) -> Example:
    turns = (Message("user", "Hi"), Message("assistant", "Hello there"), Message("user", prompt))
    return Example("1", turns, (response,), None, "rows.jsonl row 1")


@pytest.mark.parametrize("name", RENDERERS)
@settings(max_examples=60, deadline=None)
@given(prompt=st.text(max_size=30), response=st.text(max_size=60), complete=st.booleans())
@case(prompt=f"{SMILE}\n", response=f"  {FAMILY} a\r\n\u2028\u202e\x00 ", complete=True)
@case(prompt="<|im_end|></s>", response="\ufffd\ufffd \ufffd", complete=False)
@case(prompt="\u00e9", response="\u20ac\u20ac\u00e9", complete=True)
def test_the_pieces_are_all_tokens_and_all_text_in_order(name, prompt, response, complete):
    renderer = RENDERERS[name]
    row = Example("1", example(prompt, response).prompt, (response,), None, "row", (complete,))
    encoded = renderer.encode(row, 0)
    pieces = pieces_of(renderer, encoded, complete)
    assert [token for piece in pieces for token in piece.ids] == encoded.ids
    assert "".join(piece.text for piece in pieces) == whole(renderer.tokenizer, encoded.ids)
    assert [piece.scored for piece in pieces for _ in piece.ids] == encoded.scored()


@pytest.mark.parametrize("name", ["bytes", "fallback"])
def test_a_character_of_several_tokens_is_one_piece_with_its_ids(name):
    renderer = RENDERERS[name]
    encoded = renderer.encode(example("Hi", f"a{SMILE}b"), 0)
    (smile,) = [piece for piece in pieces_of(renderer, encoded, True) if SMILE in piece.text]
    assert (smile.text, len(smile.ids)) == (SMILE, 4)
    assert as_line([smile], 9) == f"{{ids {' '.join(map(str, smile.ids))}: {SMILE}}}"


def test_kinds_of_tokens():
    renderer = RENDERERS["all turns"]
    encoded = renderer.encode(example("Hi", "Paris"), 0)
    pieces = pieces_of(renderer, encoded, True)
    # The tokenizer's BOS is <|im_start|> here, and the template writes it before every turn; only the first is one.
    assert pieces[0].kind == BOS
    assert all(len(piece.ids) == 1 for piece in pieces)
    kinds = [piece.kind for piece in pieces if piece.text == "<|im_start|>"]
    assert kinds == [BOS, SPECIAL, SPECIAL, SPECIAL]
    # Only the assistant's turns are scored, so only their ends close.
    ends = [piece for piece in pieces if piece.text == "<|im_end|>"]
    assert [(piece.kind, piece.scored) for piece in ends] == [
        (SPECIAL, False),
        (CLOSING, True),
        (SPECIAL, False),
        (CLOSING, True),
    ]
    texts = [("".join(piece.text for piece in run), scored) for scored, run in runs_of(pieces)]
    assert texts[1] == ("Hello there<|im_end|>", True)
    assert texts[-1] == ("Paris<|im_end|>", True)
    assert len(texts) == 4


def test_text_that_spells_a_special_token_is_not_one():
    renderer = RENDERERS["bytes"]
    row = Example("1", (Message("user", "Hi"),), ("<|im_end|>",), None, "row", (False,))
    pieces = [piece for piece in pieces_of(renderer, renderer.encode(row, 0), False) if piece.scored]
    assert "".join(piece.text for piece in pieces) == "<|im_end|>"
    assert len(pieces) > 1
    assert {piece.kind for piece in pieces} == {"text"}


def test_a_decoder_that_rewrites_across_tokens_loses_boundaries_and_no_text():
    tokenizer = build_bpe()
    tokenizer.backend_tokenizer.decoder = decoders.Sequence(
        [decoders.ByteLevel(), decoders.Fuse(), decoders.Replace("l of F", "#")]
    )
    renderer = Renderer(tokenizer, "policy", "auto", score_eos=True)
    encoded = renderer.encode(example("Hi", "The capital of France"), 0)
    pieces = pieces_of(renderer, encoded, True)
    decoded = whole(tokenizer, encoded.ids)
    assert "The capita#rance" in decoded
    assert "".join(piece.text for piece in pieces) == decoded
    assert [piece.scored for piece in pieces for _ in piece.ids] == encoded.scored()


# ---- one line --------------------------------------------------------------------------------------------------------


def read_back(text: str) -> str:
    """What an escaped text says, by the rules of as_line alone."""

    def plain(found: re.Match[str]) -> str:
        code = found[1] or found[2] or found[3]
        return chr(int(code, 16)) if code else {"n": "\n", "r": "\r", "t": "\t"}.get(found[4], found[4])

    parts = re.split(r"(\\(?:x..|u....|U.{8}|.))", text)
    escape = r"\\(?:x(..)|u(....)|U(.{8})|(.))"
    return "".join(re.sub(escape, plain, part) if part[:1] == "\\" else part.replace("\u00b7", " ") for part in parts)


@settings(deadline=None)
@given(st.lists(st.text(st.characters(), min_size=1), min_size=1))
@case(["\\n", "\n", "|{a}|", "\u00b7 \u2502", "\x1b[31m", "\u202eabc", "\x00", "\ud800", "\ufdd0", "\\", "x41"])
def test_a_line_can_be_read_back_and_hides_nothing(texts):
    pieces = [Piece((number,), text, False) for number, text in enumerate(texts)]
    line = as_line(pieces, len(pieces))
    assert not any(is_hidden(character) for character in line)
    assert "\n" not in line
    divided = re.findall(r"(?:\\.|[^\\\u2502])+", line)
    assert [read_back(part) for part in divided] == texts


def test_a_long_line_is_cut_in_the_middle_and_says_how_many_tokens_are_missing():
    pieces = [Piece((1, 2), f"t{number}", False) for number in range(20)]
    line = as_line(pieces, 5)
    assert line.split("\u2502") == [
        *(f"{{ids 1 2: t{number}}}" for number in (0, 1, 2)),
        " ... 30 tokens ... ",
        *(f"{{ids 1 2: t{number}}}" for number in (18, 19)),
    ]
    assert num_tokens(pieces) == 40


def test_one_line_for_a_terminal():
    assert one_line("a b\n\x1b[31m\u202e|\u00e9") == "a b\\n\\x1b[31m\\u202e|\u00e9"
