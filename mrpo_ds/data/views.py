"""Which responses of a row are trained on, and in how many examples: what an objective can use.

pair      the best and the worst response
triple    gold, chosen, rejected: the first, the second and the last of at least three
ranked    every response, best first
best      the first response alone
unpaired  one response an example, with score 1 (desirable) or 0: the best and the worst of a row, or the only
          response of a row whose score is its label
point     one response an example, each with its own score
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from mrpo_ds.data.adapters._raw import RawExample, RowError


def select_view(raw: RawExample, view: str) -> list[RawExample]:
    """The examples that a row becomes, at least one; the first of them has what the row left out.

    Args:
        raw: a row, its responses best first.
        view: one of VIEWS.

    Raises:
        RowError: the row has too few responses, no scores where the view needs them, tied scores or identical
            responses.
    """
    parts = _SELECT[view](raw)
    if repeats([text for part in parts for text in part.responses], view):
        raise RowError("identical responses")
    return [parts[0], *(replace(part, left_out=()) for part in parts[1:])]


def repeats(responses: Sequence[str], view: str) -> bool:
    """Whether responses that a view sets against each other are the same text.

    Args:
        responses: those of all examples of a row, best first.
        view: one of VIEWS. The gold response of a triple may be the chosen one; point-wise, nothing is compared.
    """
    if view == "point":
        return False
    if view == "ranked":
        return len(set(responses)) < len(responses)
    return responses[-1] in responses[:-1]


def _pair(raw: RawExample) -> list[RawExample]:
    _require(raw, 2)
    pair = _take(raw, (0, -1))
    _refuse_tie(pair, 0, "best and worst")
    return [pair]


def _triple(raw: RawExample) -> list[RawExample]:
    _require(raw, 3)
    triple = _take(raw, (0, 1, -1))
    _refuse_tie(triple, 1, "chosen and rejected")
    return [triple]


def _ranked(raw: RawExample) -> list[RawExample]:
    first: dict[str, int] = {}
    for index, text in enumerate(raw.responses):
        first.setdefault(text, index)
    duplicates = len(raw.responses) - len(first)
    kept = replace(_take(raw, first.values()), left_out=(*raw.left_out, *["duplicate response"] * duplicates))
    _require(kept, 2)
    _refuse_tie(kept, 0, "best and worst")  # sorted by score, so all of them are
    return [kept]


def _best(raw: RawExample) -> list[RawExample]:
    return [_take(raw, (0,))]


def _unpaired(raw: RawExample) -> list[RawExample]:
    # A response that is alone because the others were left out has a rating, not a label.
    if len(raw.responses) == 1 and not raw.left_out:
        if raw.scores is None:
            raise RowError(
                "missing label", "a row with one response needs a score: 1 if it is desirable, 0 or -1 if not"
            )
        if raw.scores[0] not in (-1, 0, 1):
            raise RowError("score is no label", f"one response with {raw.scores[0]:g}; allowed: 1, or 0 or -1")
        return [replace(raw, scores=(float(raw.scores[0] > 0),))]
    pair = _pair(raw)[0]
    return [
        replace(pair, responses=(pair.responses[0],), scores=(1.0,)),
        replace(pair, responses=(pair.responses[1],), scores=(0.0,)),
    ]


def _point(raw: RawExample) -> list[RawExample]:
    if raw.scores is None:
        raise RowError("missing score", "every response needs one")
    return [_take(raw, (index,)) for index in range(len(raw.responses))]


def _take(raw: RawExample, numbers: Iterable[int]) -> RawExample:
    """The responses of these numbers with their scores."""
    numbers = tuple(numbers)
    scores = None if raw.scores is None else tuple(raw.scores[number] for number in numbers)
    return replace(raw, responses=tuple(raw.responses[number] for number in numbers), scores=scores)


def _require(raw: RawExample, count: int) -> None:
    if len(raw.responses) < count:
        raise RowError(f"fewer than {count} responses")


def _refuse_tie(raw: RawExample, better: int, names: str) -> None:
    """Raise RowError when the response number `better` and the last one have the same score."""
    if raw.scores is not None and raw.scores[better] == raw.scores[-1]:
        raise RowError("tied scores", f"{names} response both have {raw.scores[-1]:g}")


_SELECT: dict[str, Callable[[RawExample], list[RawExample]]] = {
    "pair": _pair,
    "triple": _triple,
    "ranked": _ranked,
    "best": _best,
    "unpaired": _unpaired,
    "point": _point,
}

VIEWS = tuple(_SELECT)
