"""One file per objective; the folder listing is the registry (`mrpo_ds.registry.names("mrpo_ds.losses")`).

Every file holds
    Config   frozen dataclass of the objective's own options
    needs    Config -> Needs: what it asks of the data, the references and the step
    loss     (ResponseLogps, Config) -> LossOutput, a pure function
Files whose name starts with an underscore are parts that several objectives share.
"""

from collections.abc import Callable
from typing import Any

from mrpo_ds.registry import load_by_file_name
from mrpo_ds.types import LossOutput, Needs, ResponseLogps

LossFunction = Callable[[ResponseLogps, Any], LossOutput]
"""Per-prompt losses from log-probs; the second argument is the Config of the same file."""


def load(name: str) -> tuple[type[Any], LossFunction]:
    """The Config class and the loss function of mrpo_ds/losses/<name>.py.

    Raises:
        ConfigError: there is no such file.
    """
    module = load_by_file_name(__name__, name, "loss.name")
    return module.Config, module.loss


def needs(name: str, options: Any) -> Needs:
    """What mrpo_ds/losses/<name>.py asks of a run with these options, a Config of that file."""
    asked: Needs = load_by_file_name(__name__, name, "loss.name").needs(options)
    return asked
