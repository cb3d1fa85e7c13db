"""One file per objective; the folder listing is the registry (`mrpo_ds.registry.names("mrpo_ds.losses")`).

Every file holds
    Config             frozen dataclass of the objective's own options
    loss               (ResponseLogps, Config) -> LossOutput, a pure function
    check_references   (Config, number of references) -> None, or ConfigError
    MIN_REFERENCES     fewest references it can work with
    RESPONSES          how many responses a prompt must have, or None for any number >= 2
"""

from collections.abc import Callable
from typing import Any

from mrpo_ds.registry import load_by_file_name
from mrpo_ds.types import LossOutput, ResponseLogps

LossFunction = Callable[[ResponseLogps, Any], LossOutput]
"""Per-prompt losses from log-probs; the second argument is the Config of the same file."""


def load(name: str) -> tuple[type[Any], LossFunction]:
    """The Config class and the loss function of mrpo_ds/losses/<name>.py.

    Raises:
        ConfigError: there is no such file.
    """
    module = load_by_file_name(__name__, name, "loss.name")
    return module.Config, module.loss
