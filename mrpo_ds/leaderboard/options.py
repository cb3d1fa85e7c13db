"""What a sweep is asked for, by the command line, a training's configuration or a job array."""

from collections.abc import Sequence
from dataclasses import dataclass

from mrpo_ds.errors import read_shard, require, require_choice


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line says."""

    models: Sequence[str | tuple[str, str]]
    """See find_candidates."""
    suite: str
    out: str | None = None
    offline: str | None = None
    limit: int | None = None
    batch_size: int = 16
    devices: str | None = None
    dtype: str = "checkpoint"
    chat_template: bool | None = None
    """None: what the suite says."""
    shard: str | None = None
    """I/N: only the I-th of N parts of the cells, see share_out."""
    redo: bool = False

    def __post_init__(self) -> None:
        require(self.limit is None or self.limit >= 1, "--limit", self.limit, ">= 1 document")
        require(self.batch_size >= 1, "--batch-size", self.batch_size, ">= 1 request")
        require_choice("--dtype", self.dtype, ("checkpoint", "bf16", "fp32"))
        _ = self.part  # a wrong shard is refused now

    @property
    def part(self) -> tuple[int, int]:
        """(I, N) of shard; all is one part. Raises ConfigError for a shard that is none."""
        return (0, 1) if self.shard is None else read_shard(self.shard)

    @property
    def words(self) -> list[str]:
        """What `mrpo-ds eval` is told for the same figures: all but models, suite, --out, --devices and --shard."""
        valued = [name for name in ("offline", "limit", "batch_size", "dtype") if self._is_given(name)]
        words = [word for name in valued for word in (f"--{name.replace('_', '-')}", str(getattr(self, name)))]
        words += [] if self.chat_template is None else [f"--{'' if self.chat_template else 'no-'}chat-template"]
        return words + (["--redo"] if self.redo else [])

    def _is_given(self, name: str) -> bool:
        return bool(getattr(self, name) != getattr(Options, name))
