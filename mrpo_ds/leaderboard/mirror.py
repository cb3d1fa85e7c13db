"""A mirror: the data sets of a suite in one folder, laid out as on the Hub, with the checksum of every file.

    DIR/mirror.json                                  what is in it, and where it is from
    DIR/allenai/ai2_arc/README.md                    its `configs:` say which files make a configuration's splits
    DIR/allenai/ai2_arc/ARC-Easy/test-*.parquet

It may be read-only. Compute nodes read nothing else: `mrpo-ds eval --offline DIR`.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from mrpo_ds.errors import ConfigError, DataError
from mrpo_ds.leaderboard.cards import default_of, patterns_of, read_configs
from mrpo_ds.manifest import Manifest, checksum, damage, write_atomic

FILE = "mirror.json"
FORMAT = 1


@dataclass(frozen=True)
class DataSet:
    """A data set of a mirror, or one that a task needs."""

    path: str
    """Its id on the Hub, owner/name."""
    configs: tuple[str | None, ...]
    """Names of its configurations; None is the only one of a data set that has no names for them."""


@dataclass
class Mirror:
    """What mirror.json says."""

    directory: Path
    sources: dict[str, dict[str, object]] = field(default_factory=dict)
    """Data set -> configurations, the commit or the files that it is from, and notes."""
    files: Manifest = field(default_factory=dict)

    def take_in(self, data: DataSet, origin: dict[str, object]) -> None:
        """Note the files of a data set as they lie there now, instead of those that it had before, in mirror.json.

        Raises ConfigError when that cannot be written.
        """
        root = self.directory / data.path
        self.files = {name: entry for name, entry in self.files.items() if not name.startswith(f"{data.path}/")}
        for file in sorted(path for path in root.rglob("*") if path.is_file()):
            parts = file.relative_to(root).parts
            if not any(part.startswith(".") for part in parts[:-1]):  # .cache, where downloads keep their books
                self.files[file.relative_to(self.directory).as_posix()] = [file.stat().st_size, checksum(file)]
        names = sorted(str(name) for name in data.configs if name is not None)
        self.sources[data.path] = {"configs": names, **origin}
        record = {"format": FORMAT, "data_sets": dict(sorted(self.sources.items())), "files": self.files}
        file = self.directory / FILE
        try:
            write_atomic(file, (json.dumps(record, indent=1) + "\n").encode())
        except OSError as error:
            raise cannot_write(file, error) from error

    def check(self, needed: Iterable[DataSet]) -> None:
        """Raises ConfigError for data sets and configurations it lacks, DataError for files that have changed."""
        for data in needed:
            if data.path not in self.sources:
                raise ConfigError(
                    f"the mirror {str(self.directory)!r} has no data set {data.path!r}; it has: "
                    f"{', '.join(self.sources) or 'none'}. {_mend(self.directory)}"
                )
            known = self.sources[data.path]["configs"]
            assert isinstance(known, list)
            lacking = sorted(str(name) for name in data.configs if name is not None and name not in known)
            if lacking:
                more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
                raise ConfigError(
                    f"the mirror {str(self.directory)!r} has no configuration {', '.join(lacking[:3])}{more} of "
                    f"{data.path!r}. {_mend(self.directory)}"
                )
            if wrong := damage(self.directory, self._files_of(data.path)):
                raise DataError(f"the mirror {str(self.directory)!r} is damaged: {wrong}. {_mend(self.directory)}")

    def digest(self, needed: Iterable[DataSet]) -> str:
        """Changes with any file of these configurations, and with what the card says of them; not with others."""
        parts: list[object] = []
        for data in sorted(needed, key=lambda one: one.path):
            folder = self.directory / data.path
            patterns, configs = patterns_of(folder, data.configs), read_configs(folder)
            files = {name.removeprefix(f"{data.path}/"): entry for name, entry in self._files_of(data.path).items()}
            used = {name: entry for name, entry in files.items() if any(fnmatch(name, pattern) for pattern in patterns)}
            names = [default_of(configs) if name is None and configs else name for name in data.configs]
            parts.append([data.path, used or files, [configs.get(name) for name in sorted(names, key=str)]])
        return f"SHA-256 {hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()}"

    @property
    def notes(self) -> list[str]:
        """What must be said beside every figure that comes of it."""
        return sorted({str(origin["note"]) for origin in self.sources.values() if "note" in origin})

    def _files_of(self, path: str) -> Manifest:
        return {name: entry for name, entry in self.files.items() if name.startswith(f"{path}/")}


def open_mirror(directory: str | Path) -> Mirror:
    """The mirror in a folder. Raises ConfigError when there is none, or mirror.json cannot be read."""
    file = Path(directory) / FILE
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise ValueError(f"its format is {record['format']}, and not {FORMAT}")
        return Mirror(Path(directory).resolve(), record["data_sets"], record["files"])
    except FileNotFoundError as error:
        raise ConfigError(
            f"there is no mirror in {str(directory)!r} ({FILE} is missing). {_mend(directory)}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"the mirror's {str(file)!r} cannot be read: {error}. {_mend(directory)}") from error


def new_or_old(directory: str | Path) -> Mirror:
    """The mirror of a folder to add to; an empty one when there is none yet. Raises ConfigError."""
    path = Path(directory)
    if (path / FILE).exists():
        return open_mirror(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--to is {str(directory)!r}, and cannot be made: {error.strerror}.") from error
    return Mirror(path.resolve())


def merged(needs: Iterable[DataSet]) -> list[DataSet]:
    """Each data set once, with all the configurations that are needed of it."""
    configs: dict[str, list[str | None]] = {}
    for data in needs:
        known = configs.setdefault(data.path, [])
        known += [name for name in data.configs if name not in known]
    return [DataSet(path, tuple(names)) for path, names in sorted(configs.items())]


def cannot_write(file: Path, error: OSError) -> ConfigError:
    """What to say of a mirror's file that the disk does not take."""
    return ConfigError(f"{str(file)!r} cannot be written: {error.strerror or error}; make room or give leave.")


def _mend(directory: str | Path) -> str:
    return f"Make it where there is a network: mrpo-ds eval-prefetch --suite NAME --to {directory}"
