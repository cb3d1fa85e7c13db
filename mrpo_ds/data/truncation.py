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
    for kept_tokens in range(room, max(room - _TRIES, 0), -1):
        kept = _common_text(policy.response_text(ids[:kept_tokens]), text)
        # The beginning of a text may tokenize into more tokens than it had as a part of the whole.
        if kept and len(policy.response_ids(kept, complete=False)) <= room:
            return kept, False
    return "", False


def _common_text(decoded: str, text: str) -> str:
    """What was decoded, less its broken last character, if that is how text begins, else ""."""
    if decoded.startswith(" ") and not text.startswith(" "):
        decoded = decoded[1:]  # SentencePiece's dummy prefix
    # Tokens can hold a part of a character's bytes; decoded alone they give replacement characters.
    while decoded.endswith("\ufffd") and not text.startswith(decoded):
        decoded = decoded[:-1]
    return decoded if text.startswith(decoded) else ""
