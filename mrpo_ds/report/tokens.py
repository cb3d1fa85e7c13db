"""One sequence of token ids as a person reads it: its text, cut where the tokens are, with nothing hidden."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from mrpo_ds.data.rendering import Encoded, Renderer
from mrpo_ds.data.special_text import special_ids
from mrpo_ds.report.markup import is_hidden

TEXT, SPECIAL, BOS, CLOSING = "text", "special", "BOS", "closing"
"""Kinds of pieces."""
SPACE = "\u00b7"
"""Stands for a space in as_line."""
DIVIDER = "\u2502"
"""Stands between pieces in as_line. Not the ASCII one, which is a part of many special tokens."""
_BROKEN = "\ufffd"  # what a decoder writes for a part of a character
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_MARKS = {character: f"\\{character}" for character in f"\\{{}}{SPACE}{DIVIDER}"}


@dataclass(frozen=True)
class Piece:
    """One token; or a few, if only together they are whole characters."""

    ids: tuple[int, ...]
    text: str
    """What the ids add to the decoded text."""
    scored: bool
    kind: str = TEXT
    """TEXT, SPECIAL, BOS or CLOSING: the token that ends an answer and is scored."""


def pieces_of(renderer: Renderer, encoded: Encoded, complete: bool) -> list[Piece]:
    """The tokens of a sequence, in order; their texts joined are the model's own decoding of it.

    Args:
        renderer: the model's.
        encoded: a prompt with a response.
        complete: whether the response was not cut, so that its last token closes it.
    """
    ids, scored = encoded.ids, encoded.scored()
    special = special_ids(renderer.tokenizer)
    alone = [token in special for token in ids]
    # A special token is a group of its own, and no group is scored in part.
    labels = [(scored[index], index if alone[index] else None) for index in range(len(ids))]
    ends = {end - 1 for _, end in encoded.earlier} | ({len(ids) - 1} if complete else set())
    made, place = [], 0
    for part, text in _cut(renderer.tokenizer, ids, labels):
        kind = SPECIAL if alone[place] else TEXT
        if place == 0 and part == [renderer.tokenizer.bos_token_id]:
            kind = BOS
        elif place in ends and part == [renderer.end_of_turn]:
            kind = CLOSING
        made.append(Piece(tuple(part), text, scored[place], kind))
        place += len(part)
    return made


def runs_of(pieces: Iterable[Piece]) -> list[tuple[bool, list[Piece]]]:
    """The pieces in runs that are scored as a whole, or not at all."""
    return [(scored, list(run)) for scored, run in groupby(pieces, key=lambda piece: piece.scored)]


def num_tokens(pieces: Iterable[Piece]) -> int:
    """How many tokens the pieces are."""
    return sum(len(piece.ids) for piece in pieces)


def one_line(text: str) -> str:
    r"""Text for a terminal: hidden characters and newlines as in \n, \x1b and \u202e, all others as they are."""
    return "".join(_escape(one) if one == "\n" or is_hidden(one) else one for one in text)


def as_line(pieces: Sequence[Piece], most: int) -> str:
    r"""Pieces on one line, divided by DIVIDER, spaces as SPACE.

    Special tokens are {in braces}, and so are characters of several tokens, after the ids. Hidden characters stand as
    in \n and \u202e; a backslash before any other character (\ { } SPACE DIVIDER) is that character.

    Args:
        pieces: of one run.
        most: pieces to show; of more, those in the middle are only counted.
    """
    if len(pieces) <= most:
        return DIVIDER.join(map(_show, pieces))
    head, tail = pieces[: most - most // 2], pieces[len(pieces) - most // 2 :]
    hidden = num_tokens(pieces) - num_tokens(head) - num_tokens(tail)
    return DIVIDER.join([*map(_show, head), f" ... {hidden} tokens ... ", *map(_show, tail)])


def _show(piece: Piece) -> str:
    text = "".join(_visible(one) for one in piece.text)
    if piece.kind in (BOS, CLOSING):
        return f"{{{piece.kind} {text}}}"
    if piece.kind == SPECIAL:
        return f"{{{text}}}"
    if len(piece.ids) > 1:
        return f"{{ids {' '.join(map(str, piece.ids))}: {text}}}"
    return text


def _visible(character: str) -> str:
    if character == " ":
        return SPACE
    if character in _MARKS:
        return _MARKS[character]
    return _escape(character) if character == "\n" or is_hidden(character) else character


def _escape(character: str) -> str:
    if character in _SHORT:
        return _SHORT[character]
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _cut(tokenizer: Any, ids: list[int], labels: Sequence[object]) -> list[tuple[list[int], str]]:
    """Ids as the shortest groups that decode to whole characters. A group has one label.

    A token is decoded after the group before it: alone, SentencePiece's would lose their space. If the texts do not add
    up to the decoding of all ids (a decoder that rewrites text across tokens), a group is all that has one label.
    """

    def decode(part: list[int]) -> str:
        return str(tokenizer.decode(part, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    groups: list[tuple[list[int], str]] = []
    before, known, start = list[int](), "", 0
    for end in range(1, len(ids) + 1):
        part = ids[start:end]
        text = decode([*before, *part])
        ends_here = end == len(ids) or labels[end] != labels[start]
        if ends_here or (text.startswith(known) and not text.endswith(_BROKEN)):
            groups.append((part, text[len(known) :]))
            before, known, start = part, decode(part), end
    whole = decode(ids)
    if "".join(text for _, text in groups) == whole:
        return groups
    groups, length, start = [], 0, 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or labels[end] != labels[start]:
            until = len(whole) if end == len(ids) else max(length, len(decode(ids[:end])))
            groups.append((ids[start:end], whole[length:until]))
            length, start = until, end
    return groups
