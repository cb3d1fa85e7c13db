"""Cut once, as text: a true beginning that fits, never half a character."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrpo_ds.data.rendering import Renderer
from mrpo_ds.data.truncation import fit_response


def tokens(renderer: Renderer, text: str) -> int:
    return len(renderer.response_ids(text, complete=False))


@pytest.fixture(params=["byte level", "byte fallback"])
def renderer(request: pytest.FixtureRequest, policy: Renderer, plain_unigram: Renderer) -> Renderer:
    return policy if request.param == "byte level" else plain_unigram


def test_what_fits_is_complete(renderer: Renderer) -> None:
    text = "The capital of France is Paris."
    assert fit_response(text, tokens(renderer, text) + 1, renderer) == (text, True)


def test_closing_token_that_does_not_fit(renderer: Renderer) -> None:
    text = "The capital of France is Paris."
    assert fit_response(text, tokens(renderer, text), renderer) == (text, False)


def test_without_closing_token_it_needs_no_room(make_bpe: Callable[..., Any]) -> None:
    open_ended = Renderer(make_bpe(), "policy", "auto", score_eos=False)
    text = "The capital of France is Paris."
    assert fit_response(text, tokens(open_ended, text), open_ended) == (text, True)


def test_cut_at_a_token(renderer: Renderer) -> None:
    text = "The capital of France is Paris."
    kept, complete = fit_response(text, 3, renderer)
    assert not complete
    assert kept == renderer.response_text(renderer.response_ids(text, complete=False)[:3])
    assert text.startswith(kept)


@pytest.mark.parametrize(("room", "smileys"), [(1, 0), (2, 0), (4, 0), (5, 1), (6, 1), (8, 1), (9, 2), (11, 2)])
def test_half_a_character_is_dropped(renderer: Renderer, room: int, smileys: int) -> None:
    smiley = "\U0001f600"  # four bytes, a token each
    assert fit_response(f"a{3 * smiley}", room, renderer) == (f"a{smileys * smiley}", False)


def test_true_replacement_characters_are_kept(policy: Renderer) -> None:
    # U+FFFD has three bytes, so four tokens hold "a" and one of them.
    assert fit_response("a\ufffd\ufffd", 4, policy) == ("a\ufffd", False)
    assert fit_response("a\ufffd\ufffd", 5, policy) == ("a\ufffd", False)


def test_no_room_for_the_first_character(renderer: Renderer) -> None:
    assert fit_response("\U0001f600", 3, renderer) == ("", False)


def test_tokenizer_that_loses_text(make_word_level: Callable[..., Any]) -> None:
    words = Renderer(make_word_level(), "words", "auto", score_eos=True)
    assert fit_response("unheard-of words " * 100, 50, words) == ("", False)


@given(text=st.text(min_size=1).filter(lambda text: "\u2581" not in text), room=st.integers(1, 40))
@settings(max_examples=200, deadline=None)
def test_any_text(policy: Renderer, plain_unigram: Renderer, text: str, room: int) -> None:
    for renderer in (policy, plain_unigram):
        kept, complete = fit_response(text, room, renderer)
        assert text.startswith(kept)
        assert tokens(renderer, kept) + complete <= room
        assert complete == (tokens(renderer, text) + 1 <= room)
        ids = renderer.response_ids(text, complete=False)
        for decoded in (renderer.response_text(ids[:num]) for num in range(room + 1)):  # no longer beginning fits
            if text.startswith(decoded) and tokens(renderer, decoded) <= room:
                assert len(decoded) <= len(kept)
