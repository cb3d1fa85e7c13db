"""Runs that differ only in their seed are one method; what differs between methods is said, never mixed silently."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrpo_ds.comparison.runs import RunRecord
from mrpo_ds.comparison.tables import Column, Table
from mrpo_ds.errors import ConfigError, require

FREE = (
    "output_dir",
    "tracking.",
    "checkpoint.",
    "evaluate.",
    "topology.",
    "deepspeed",
    "train.seed",
    "train.micro_batch_",
    "train.max_seconds",
    "train.max_skipped_steps",
    "train.dry_run",
    "data.cache_dir",
    "data.workers",
    "data.max_",
)
"""Beginnings of settings that change no number but in its last bits, or only say where and how often."""
KEPT = ("data.max_length",)
FREE_ENDS = (
    ".attention",
    ".packing",
    ".prefix_sharing",
    ".gradient_checkpointing",
    ".activation_offload",
    ".sharding",
    ".batch_tokens",
    ".allow_pickle",
    ".trust_remote_code",
)
"""The same of models."""
MOST_IN_LABEL = 3
"""Settings that stand in a method's name; the table of settings has all."""


@dataclass(frozen=True)
class Method:
    """One configuration, trained with one or more seeds."""

    label: str
    runs: Sequence[RunRecord]
    settings: Mapping[str, str]
    """What its numbers depend on, the seed aside: full key -> value as text."""

    @property
    def seeds(self) -> str:
        """As in '0, 1'."""
        return ", ".join(str(run.seed) for run in self.runs)


def methods_of(runs: Sequence[RunRecord]) -> list[Method]:
    """The methods, in the order of their first runs.

    Raises ConfigError for two runs with the same configuration and the same seed.
    """
    found: dict[str, list[RunRecord]] = {}
    settings = {}
    by_content = all(run.summary and "rows" in run.summary for run in runs)
    for run in runs:
        mine = settings_of(run, by_content)
        key = json.dumps(mine, sort_keys=True)
        settings[key] = mine
        for other in found.setdefault(key, []):
            if other.seed == run.seed:
                raise ConfigError(
                    f"the runs {str(other.directory)!r} and {str(run.directory)!r} have the same settings and the same "
                    f"train.seed ({run.seed}), so they are one sample and not two; name one of them."
                )
        found[key].append(run)
    labels = _labels(list(settings.values()))
    return [Method(label, found[key], settings[key]) for label, key in zip(labels, found, strict=True)]


def settings_of(run: RunRecord, by_content: bool) -> dict[str, str]:
    """What a run's numbers depend on, its seed aside: full key -> value as text.

    by_content: rows count by what they say, which finished runs have recorded, and not by their files.
    """
    flat = _flatten(run.config, "")
    kept = {
        key: text
        for key, text in flat.items()
        if key.startswith(KEPT) or not (key.startswith(FREE) or key.endswith(FREE_ENDS))
    }
    for split, rows in (run.summary or {}).get("rows", {}).items() if by_content else ():
        kept = {key: text for key, text in kept.items() if not key.startswith(f"data.{split}[")}
        kept[f"rows of data.{split}"] = str(rows)
    return kept


def method_with(methods: Sequence[Method], baseline: str | None) -> Method:
    """The method that a run belongs to; the first one for None. Raises ConfigError when no run is that."""
    if baseline is None:
        return methods[0]
    place = Path(baseline).resolve()
    for method in methods:
        if any(run.directory.resolve() == place for run in method.runs):
            return method
    given = ", ".join(str(run.directory) for method in methods for run in method.runs)
    require(False, "--baseline", baseline, f"one of the runs that are compared ({given})")
    raise AssertionError


def check_held_out_rows(runs: Sequence[RunRecord]) -> None:
    """Raise ConfigError unless all runs that evaluated did so on the same held-out rows."""
    evaluated = [run for run in runs if run.evals]
    for run in evaluated[1:]:
        first = evaluated[0]
        rows = [one.held_out_rows() for one in (first, run)]
        if type(rows[0]) is not type(rows[1]):  # one is not finished: what is known of both
            rows = [{"data.eval": one.config["data"]["eval"]} for one in (first, run)]
        if rows[0] != rows[1]:
            raise ConfigError(
                f"the held-out rows of {str(first.directory)!r} are {_short(rows[0])}, those of "
                f"{str(run.directory)!r} are {_short(rows[1])}: their numbers cannot stand in one table. Compare runs "
                "with the same data.eval, or measure all models on one set with `mrpo-ds eval-preferences`."
            )


def settings_table(methods: Sequence[Method]) -> Table | None:
    """Every setting that is not the same in all methods; None when there is a single method."""
    if len(methods) < 2:
        return None
    differing = [key for key in _keys(methods) if len({method.settings.get(key) for method in methods}) > 1]
    columns = [Column("setting"), *(Column(method.label) for method in methods)]
    rows = [[key, *(method.settings.get(key, "") for method in methods)] for key in differing]
    return Table("settings", "Settings that differ", columns, rows)


def _keys(methods: Sequence[Method]) -> list[str]:
    return list(dict.fromkeys(key for method in methods for key in method.settings))


def _labels(settings: Sequence[Mapping[str, str]]) -> list[str]:
    """loss.name, and where several have it what tells them apart."""
    labels: list[str] = []
    for mine in settings:
        alike = [other for other in settings if other["loss.name"] == mine["loss.name"]]
        keys = [key for key in mine if len({other.get(key) for other in alike}) > 1]
        parts = [f"{key.removeprefix('loss.')}={_short(mine.get(key, 'none'), 40)}" for key in keys[:MOST_IN_LABEL]]
        label = " ".join([mine["loss.name"], *parts])
        same = sum(one == label or one.startswith(f"{label} #") for one in labels)
        labels.append(f"{label} #{same + 1}" if same else label)
    return labels


def _flatten(value: Any, prefix: str) -> dict[str, str]:
    if isinstance(value, dict) and value:
        parts = [_flatten(item, f"{prefix}.{key}" if prefix else str(key)) for key, item in value.items()]
        return {key: text for part in parts for key, text in part.items()}
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        parts = [_flatten(item, f"{prefix}[{index}]") for index, item in enumerate(value)]
        return {key: text for part in parts for key, text in part.items()}
    return {prefix: value if isinstance(value, str) else json.dumps(value)}


def _short(value: Any, most: int = 300) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."
