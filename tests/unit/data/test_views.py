"""What a row becomes in each view, and why some rows cannot be used in it."""

import pytest

from mrpo_ds.data.adapters._raw import RawExample, RowError
from mrpo_ds.data.views import VIEWS, repeats, select_view
from mrpo_ds.types import Message

PROMPT = (Message("user", "Hi?"),)
FOUR = RawExample(PROMPT, ("a", "b", "c", "d"), (4.0, 3.0, 3.0, 1.0))

Part = tuple[tuple[str, ...], tuple[float, ...] | None]


def raw(responses: str, *scores: float, left_out: tuple[str, ...] = ()) -> RawExample:
    """One response per letter."""
    return RawExample(PROMPT, tuple(responses), scores or None, left_out)


def parts(example: RawExample, view: str) -> list[Part]:
    return [(part.responses, part.scores) for part in select_view(example, view)]


def test_the_views() -> None:
    assert VIEWS == ("pair", "triple", "ranked", "best", "unpaired", "point")


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        ("pair", [(("a", "d"), (4.0, 1.0))]),
        ("triple", [(("a", "b", "d"), (4.0, 3.0, 1.0))]),
        ("ranked", [(("a", "b", "c", "d"), (4.0, 3.0, 3.0, 1.0))]),
        ("best", [(("a",), (4.0,))]),
        ("unpaired", [(("a",), (1.0,)), (("d",), (0.0,))]),
        ("point", [(("a",), (4.0,)), (("b",), (3.0,)), (("c",), (3.0,)), (("d",), (1.0,))]),
    ],
)
def test_a_row_with_scores(view: str, expected: list[Part]) -> None:
    assert parts(FOUR, view) == expected
    assert all(part.prompt == PROMPT for part in select_view(FOUR, view))


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        ("pair", [(("a", "c"), None)]),
        ("triple", [(("a", "b", "c"), None)]),
        ("ranked", [(("a", "b", "c"), None)]),
        ("best", [(("a",), None)]),
        ("unpaired", [(("a",), (1.0,)), (("c",), (0.0,))]),
    ],
)
def test_a_row_without_scores(view: str, expected: list[Part]) -> None:
    assert parts(raw("abc"), view) == expected


@pytest.mark.parametrize(("score", "label"), [(1.0, 1.0), (0.0, 0.0), (-1.0, 0.0)])
def test_the_score_of_an_only_response_is_its_label(score: float, label: float) -> None:
    assert parts(raw("a", score), "unpaired") == [(("a",), (label,))]


@pytest.mark.parametrize("rating", [2.0, 0.5, 10.0])
def test_a_rating_is_no_label(rating: float) -> None:
    with pytest.raises(RowError, match="score is no label"):
        select_view(raw("a", rating), "unpaired")


@pytest.mark.parametrize(
    ("example", "view", "expected"),
    [
        (raw("abbc"), "pair", ("a", "c")),  # what is not used may be the same
        (raw("aabc"), "triple", ("a", "a", "c")),  # the gold response may be the chosen one
        (raw("abcc"), "triple", ("a", "b", "c")),
        (raw("abcd", 3, 3, 2, 1), "triple", ("a", "b", "d")),  # and as good
        (raw("abab", 4, 3, 2, 1), "ranked", ("a", "b")),
        (raw("a"), "best", ("a",)),
        (raw("aa", 1, 1), "best", ("a",)),
    ],
)
def test_usable(example: RawExample, view: str, expected: tuple[str, ...]) -> None:
    assert [part.responses for part in select_view(example, view)] == [expected]


def test_the_same_text_twice_is_two_points() -> None:
    assert parts(raw("aa", 2, 1), "point") == [(("a",), (2.0,)), (("a",), (1.0,))]


@pytest.mark.parametrize(
    ("example", "view", "reason"),
    [
        (raw("a"), "pair", "fewer than 2 responses"),
        (raw("abc", 2, 2, 2), "pair", "tied scores"),
        (raw("aba"), "pair", "identical responses"),
        (raw("ab"), "triple", "fewer than 3 responses"),
        (raw("abcd", 3, 2, 2, 2), "triple", "tied scores"),
        (raw("abb"), "triple", "identical responses"),
        (raw("aba"), "triple", "identical responses"),
        (raw("a"), "ranked", "fewer than 2 responses"),
        (raw("aaa", 3, 2, 1), "ranked", "fewer than 2 responses"),
        (raw("aa", 1, 1), "ranked", "fewer than 2 responses"),
        (raw("abc", 2, 2, 2), "ranked", "tied scores"),
        (raw("aab", 2, 2, 2), "ranked", "tied scores"),
        (raw("a"), "unpaired", "missing label"),
        (raw("ab", 2, 2), "unpaired", "tied scores"),
        (raw("aba"), "unpaired", "identical responses"),
        (raw("ab"), "point", "missing score"),
    ],
)
def test_unusable(example: RawExample, view: str, reason: str) -> None:
    with pytest.raises(RowError) as caught:
        select_view(example, view)
    assert caught.value.reason == reason


def test_a_tie_is_described() -> None:
    with pytest.raises(RowError) as caught:
        select_view(raw("abcd", 3, 1.5, 1.5, 1.5), "triple")
    assert caught.value.detail == "chosen and rejected response both have 1.5"


def test_a_rating_that_is_left_alone_is_no_label() -> None:
    with pytest.raises(RowError) as caught:
        select_view(raw("a", 2, left_out=("missing score",)), "unpaired")
    assert caught.value.reason == "fewer than 2 responses"


def test_duplicates_are_left_out_and_counted() -> None:
    (ranked,) = select_view(raw("abacb", 5, 4, 3, 2, 1, left_out=("empty response",)), "ranked")
    assert (ranked.responses, ranked.scores) == (("a", "b", "c"), (5.0, 4.0, 2.0))
    assert ranked.left_out == ("empty response", "duplicate response", "duplicate response")


@pytest.mark.parametrize("view", VIEWS)
def test_what_a_row_left_out_is_counted_once(view: str) -> None:
    made = select_view(raw("abc", 3, 2, 1, left_out=("missing score",)), view)
    assert [part.left_out for part in made] == [("missing score",), *[()] * (len(made) - 1)]


@pytest.mark.parametrize(
    ("responses", "views"),
    [
        ("aab", {"ranked"}),
        ("abb", {"pair", "triple", "ranked", "best", "unpaired"}),
        ("aba", {"pair", "triple", "ranked", "best", "unpaired"}),
        ("abc", set()),
        ("a", set()),
    ],
)
def test_repeats(responses: str, views: set[str]) -> None:
    assert {view for view in VIEWS if repeats(tuple(responses), view)} == views
