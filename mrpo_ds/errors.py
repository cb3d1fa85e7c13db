"""The errors a user can meet. Each carries the exit code of DESIGN section 5 and prints without a traceback."""

RUN_AGAIN = 75
"""Exit code: stopped, run again to go on."""


class MrpoError(Exception):
    """Base of every error that is the input's or the machine's fault, not the program's."""

    exit_code = 1
    resumable = False
    """Whether it makes sense to run again: the exit code is then 75 as soon as there is a checkpoint."""


class ConfigError(MrpoError):
    """The configuration, the topology or the environment asks for something impossible."""

    exit_code = 2


class DataError(MrpoError):
    """A data file, or a row in one, cannot be used."""

    exit_code = 2


class ReferenceError(MrpoError):  # the project's word for a reference model that fails
    """A reference model died, hung or answered with something that is not its log-probs."""


class CheckpointError(MrpoError):
    """A checkpoint or the trained model cannot be written, or is not whole, or belongs to another run."""

    resumable = True


class NonFiniteError(MrpoError):
    """A log-prob, the loss or the gradient of a step is no finite number.

    Weights and optimizer were not touched, and the gradients are cleared: the step can be left out.
    """

    def __init__(
        self, message: str, record: dict[str, object] | None = None, metrics: dict[str, float] | None = None
    ) -> None:
        """record: what failures/step-*.json shall say. metrics: those of the step, as far as there are any."""
        super().__init__(message)
        self.record = record or {}
        self.metrics = metrics or {}


class Stopped(MrpoError):
    """The training loop stopped in order, after a whole step: run again to go on."""

    exit_code = RUN_AGAIN


def require(holds: bool, key: str, value: object, allowed: str, mend: str = "") -> None:
    """Raise ConfigError 'key is value; allowed: ...' unless holds."""
    if not holds:
        raise ConfigError(f"{key} is {value!r}; allowed: {allowed}." + (f" {mend}" if mend else ""))


def require_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ConfigError 'key is value; allowed: a | b.' unless value is one of choices."""
    require(value in choices, key, value, " | ".join(choices))


def read_shard(text: str) -> tuple[int, int]:
    """(I, N) of the --shard option's "I/N". Raises ConfigError unless 0 <= I < N."""
    number, _, count = text.partition("/")
    part = (int(number), int(count)) if number.isdecimal() and count.isdecimal() else (0, 0)
    require(part[0] < part[1], "--shard", text, "I/N with 0 <= I < N, such as 0/4")
    return part
