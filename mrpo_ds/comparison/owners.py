"""Which model a result is of: the one of the weights that it records, and without a record that of its path."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mrpo_ds.config.schema import ModelConfig
from mrpo_ds.console import log
from mrpo_ds.errors import DataError

LOCAL = "SHA-256 "
"""How digests of a local model begin; those of the Hub's models are their ids."""


class Owner:
    """A model that results may be of. Its files are read once, and only when a result has a digest to compare."""

    def __init__(self, path: str) -> None:
        self.path = path
        """A directory or a Hub id."""
        self._digests: dict[str, set[str]] = {}

    def owns(self, record: Mapping[str, Any]) -> bool:
        """Whether a result is of this model. Directories of one name and runs that were moved do not mislead it.

        Raises DataError when the weights cannot be read.
        """
        same = self._has_weights_of(record)
        return self.is_at(str(record.get("model_path", ""))) if same is None else same

    def is_at(self, path: str) -> bool:
        """Whether that is its path; it says nothing where results have no path."""
        return path != "" and (path == self.path or Path(path).resolve() == Path(self.path).resolve())

    def why_not(self, record: Mapping[str, Any]) -> str:
        """Why a result that seems to be of this model is not; '' where it does not seem so."""
        path = str(record.get("model_path", ""))
        if self.is_at(path):
            return f"made with other weights than {self.path} has now"
        ours, theirs = Path(self.path).resolve().parts[-2:], Path(path).parts[-2:]
        if ours == theirs and not Path(path).exists() and self._has_weights_of(record) is None:
            return f"of {path}, which is not there, and without digests to compare"
        return ""

    def _has_weights_of(self, record: Mapping[str, Any]) -> bool | None:
        """Whether a result was made with these weights; None where it or the model has nothing to tell by."""
        settings = record.get("settings")
        model_hash = settings.get("model_hash") if isinstance(settings, Mapping) else None
        for kind, digest in (("model_hash", model_hash), ("fingerprint", record.get("fingerprint"))):
            if isinstance(digest, str) and digest.startswith(LOCAL) and (ours := self._known(kind)):
                return digest in ours
        return None

    def _known(self, kind: str) -> set[str]:
        """What a result of these weights would record; nothing where the files are not there."""
        directory = Path(self.path)
        is_there = (directory / "config.json").is_file() and any(
            any(directory.glob(pattern)) for pattern in ("*.safetensors", "*.bin")
        )
        if not is_there:
            return set()
        if kind not in self._digests:
            try:
                self._digests[kind] = _read(self.path, kind)
            except OSError as error:
                raise DataError(
                    f"{error.filename or directory} cannot be read ({error.strerror or error}), and results are known "
                    "by their weights; give leave, or restore it."
                ) from error
        return self._digests[kind]


def _read(path: str, kind: str) -> set[str]:
    from mrpo_ds.models import fingerprint, weights_digest

    if kind == "fingerprint":  # a few megabytes; it counts code where that was trusted
        models = [ModelConfig(path=path, allow_pickle=True, trust_remote_code=trusted) for trusted in (False, True)]
        return {fingerprint(model) for model in models}
    log(f"reading the weights of {path}, to know its results by")
    return {weights_digest(ModelConfig(path=path))}
