"""The run's token: who knows it is one of the run. Nobody sends it; each proves that he has it."""

import hashlib
import hmac
from collections.abc import Mapping

from mrpo_ds.errors import require

TOKEN = "MRPO_DS_TOKEN"
"""Environment variable. Without it global rank 0 makes a token and hands it to whoever reaches its store."""
SHORTEST = 16


def token_from(env: Mapping[str, str]) -> str | None:
    """The token of the environment, if there is one. Raises ConfigError, without showing it, for one that is short."""
    token = env.get(TOKEN)
    if token is not None:
        allowed = f"{SHORTEST} characters or more, the same for every rank; make one with: openssl rand -hex 16"
        require(len(token) >= SHORTEST, TOKEN, f"{len(token)} characters long", allowed)
    return token


def prove(token: str, *about: object) -> str:
    """What only one who knows the token can say about something."""
    return hmac.new(token.encode(), "|".join(map(str, about)).encode(), hashlib.sha256).hexdigest()


def is_proof(said: object, token: str, *about: object) -> bool:
    """Whether that was said by one who knows the token. Takes as long for every wrong answer."""
    return hmac.compare_digest(str(said).encode(), prove(token, *about).encode())
