"""Cutting a response that is too long: once, as text, by the policy's tokenizer.

Every model then gets exactly the kept text and scores no end-of-turn after it. Cutting token ids instead would give
each model another part of the response.
"""

from mrpo_ds.data.rendering import Renderer

_TRIES = 16  # one fewer token each; a tokenizer that decodes its own ids to other text would never end


def fit_response(text: str, room: int, policy: Renderer) -> tuple[str, bool]:
    """The longest beginning of a response that fits.

    Args:
        text: the whole response.
        room: tokens of the policy that there are for it, closing token included, at least 1.
        policy: the policy's renderer.

    Returns:
        (kept text, complete). Complete is False if text was cut, or if only its closing token does not fit. The kept
        text is "" if no beginning fits or none decodes to what it was.
    """
    if len(policy.response_ids(text, complete=True)) <= room:
        return text, True
    ids = policy.response_ids(text, complete=False)
    if len(ids) <= room:
        return text, False
    longest = ""
    for num_tokens in range(room, max(room - _TRIES, 0), -1):
        kept, whole = _beginning(policy.response_text(ids[:num_tokens]), text)
        # The beginning of a text may tokenize into more tokens than it had as a part of the whole.
        if len(kept) > len(longest) and len(policy.response_ids(kept, complete=False)) <= room:
            longest = kept
        if longest and whole:
            break
    return longest, False


def _beginning(decoded: str, text: str) -> tuple[str, bool]:
    """How much of a decoded beginning is text, and whether it is all of it.

    Tokens can hold a part of a character's bytes. Decoded alone they give replacement characters, for the last
    character only (byte-level BPE) or for a whole run of characters that are spelled in bytes (byte fallback).
    """
    if decoded.startswith(" ") and not text.startswith(" "):
        decoded = decoded[1:]  # SentencePiece's dummy prefix
    kept = decoded
    while kept.endswith("\ufffd") and not text.startswith(kept):
        kept = kept[:-1]
    return (kept, kept == decoded) if text.startswith(kept) else ("", False)
