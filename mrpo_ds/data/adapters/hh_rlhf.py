r"""Anthropic HH-RLHF: columns `chosen` and `rejected`, whole transcripts that share all but the last answer.

A transcript is turns of "\n\nHuman: ..." and "\n\nAssistant: ...". The prompt is all up to and including the last
"\n\nAssistant:", the response all after it, less the one space that the format puts after a colon. In the published
files (checked on 3632 rows) a speaker sometimes has two turns in a row: they become one turn, joined by the blank line
that stood between them, because many chat templates insist on alternating roles. A turn without text is left out. In
about 1 row of 280 an answer has a further turn in it, so that the two prompts differ: such a row cannot be used.
"""

from collections.abc import Mapping
from typing import Any

from mrpo_ds.data.adapters._raw import RawExample, RowError, read_text
from mrpo_ds.data.adapters._transcript import ANSWER, read_turns
from mrpo_ds.types import Message

HUB_IDS = ("Anthropic/hh-rlhf",)


def adapt(row: Mapping[str, Any]) -> RawExample:
    """One pair, the chosen response first.

    Raises:
        RowError: the row cannot be used.
    """
    prompt, chosen = _split_transcript(row, "chosen")
    other_prompt, rejected = _split_transcript(row, "rejected")
    if prompt != other_prompt:
        raise RowError("prompts differ", "the transcripts part before the last '\\n\\nAssistant:'")
    return RawExample(read_turns(prompt), (chosen, rejected))


def prompt_of(transcript: str) -> tuple[Message, ...]:
    """The turns before a transcript's last answer, whatever that is; () where they do not end with the user's."""
    turns, mark, _ = transcript.rpartition(ANSWER)
    try:
        messages = read_turns(turns) if mark else ()
    except RowError:
        return ()
    return messages if messages and messages[-1].role == "user" else ()


def _split_transcript(row: Mapping[str, Any], key: str) -> tuple[str, str]:
    """The turns before the last answer, and that answer."""
    turns, mark, answer = read_text(row, key, "response").rpartition(ANSWER)
    if not mark:
        raise RowError("not a transcript", f"'{key}' has no '\\n\\nAssistant:'")
    return turns, answer.removeprefix(" ")
