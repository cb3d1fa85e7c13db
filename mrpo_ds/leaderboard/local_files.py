"""A mirror of local files: published rows in .jsonl or .jsonl.gz, for trials where there is no Hub at all.

Where the split that few-shot examples are drawn from is not there, rows of another split are set aside for it; they are
then not evaluated. The mirror says so, and with it every table that is made of it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import yaml

from mrpo_ds.console import log
from mrpo_ds.data.formats import JsonLines
from mrpo_ds.errors import ConfigError, DataError
from mrpo_ds.leaderboard.cards import CARD
from mrpo_ds.leaderboard.mirror import DataSet, cannot_write, new_or_old

Row = dict[str, Any]
NOTE = "made of local files with subsets of the rows: not the figures of the benchmarks"
SET_ASIDE = 100
"""Rows that stand in for a missing train split, from the end of a file."""


@dataclass(frozen=True)
class Split:
    """One split of a configuration, and the file it is made of."""

    data: str
    config: str | None
    """None for a data set whose configurations have no names."""
    split: str
    file: str
    start: int | None = None
    """First of its rows, and the one after the last, as in a slice."""
    stop: int | None = None
    change: Callable[[Row], Row] = dict
    """A row as the Hub has it."""


def _arc(row: Row) -> Row:
    """The layout of AI2's download -> that of the Hub."""
    choices = row["question"]["choices"]
    texts, labels = [one["text"] for one in choices], [one["label"] for one in choices]
    stem = row["question"]["stem"]
    return {
        "id": row["id"],
        "question": stem,
        "choices": {"text": texts, "label": labels},
        "answerKey": row["answerKey"],
    }


def _bigbench(*choices: str) -> Callable[[Row], Row]:
    """BIG-Bench-Hard's rows of a task with these answers, in the layout of BIG-bench."""

    def change(row: Row) -> Row:
        scores = [int(choice == row["target"]) for choice in choices]
        if sum(scores) != 1:
            raise DataError(f"the answer {row['target']!r} is none of {', '.join(choices)}")
        return {
            "inputs": f"{row['input']}\nA:",
            "targets": [row["target"]],
            "multiple_choice_targets": list(choices),
            "multiple_choice_scores": scores,
        }

    return change


BIG = "hails/bigbench"
SPLITS = [
    Split("allenai/ai2_arc", "ARC-Challenge", "test", "arc/ARC-Challenge.test.ai2", change=_arc),
    Split("allenai/ai2_arc", "ARC-Challenge", "train", "arc/ARC-Challenge.validation"),
    Split("allenai/ai2_arc", "ARC-Easy", "test", "arc/ARC-Easy.validation", stop=-SET_ASIDE),
    Split("allenai/ai2_arc", "ARC-Easy", "train", "arc/ARC-Easy.validation", start=-SET_ASIDE),
    Split("Rowan/hellaswag", None, "validation", "hellaswag/validation", stop=-SET_ASIDE),
    Split("Rowan/hellaswag", None, "train", "hellaswag/validation", start=-SET_ASIDE),
    Split("truthfulqa/truthful_qa", "multiple_choice", "validation", "truthfulqa/multiple_choice"),
    Split("allenai/winogrande", "winogrande_xl", "validation", "winogrande/winogrande_xl.validation", stop=-SET_ASIDE),
    Split("allenai/winogrande", "winogrande_xl", "train", "winogrande/winogrande_xl.validation", start=-SET_ASIDE),
    Split("openai/gsm8k", "main", "test", "gsm8k/test"),
    Split("openai/gsm8k", "main", "train", "gsm8k/train_fewshot"),
    Split("allenai/openbookqa", "main", "test", "openbookqa/main.validation", stop=-SET_ASIDE),
    Split("allenai/openbookqa", "main", "train", "openbookqa/main.validation", start=-SET_ASIDE),
    Split(BIG, "causal_judgment_zero_shot", "default", "bbh/causal_judgement", change=_bigbench("Yes", "No")),
    Split(BIG, "sports_understanding_zero_shot", "default", "bbh/sports_understanding", change=_bigbench("yes", "no")),
    Split(
        BIG,
        "formal_fallacies_syllogisms_negation_zero_shot",
        "default",
        "bbh/formal_fallacies",
        change=_bigbench("valid", "invalid"),
    ),
]
"""What becomes of which file; MMLU and BIG-Bench-Hard, which have many configurations, are below."""


def mirror_local_files(source: str, target: str) -> int:
    """The eval-mirror command: write what the files of a folder make. Raises ConfigError or DataError."""
    root = Path(source)
    if not root.is_dir():
        raise ConfigError(
            f"--from is {source!r}, which is no folder; allowed: one with the layout of docs/evaluation.md."
        )
    mirror = new_or_old(target)
    made: dict[str, dict[str | None, dict[str, int]]] = {}
    for data, config, split, rows in _tables(root):
        place = mirror.directory / data / (config or "data")
        _write(place / f"{split}-00000-of-00001.parquet", rows)
        made.setdefault(data, {}).setdefault(config, {})[split] = len(rows)
    if not made:
        files = ", ".join(f"{one.file}.jsonl" for one in SPLITS[:3])
        raise ConfigError(
            f"--from {source!r} has none of the files that are known: {files}, ...; see docs/evaluation.md."
        )
    for data, configs in made.items():
        card = mirror.directory / data / CARD
        try:
            card.write_text(_card(configs), encoding="utf-8")
        except OSError as error:
            raise cannot_write(card, error) from error
        counts = {str(name or "default"): splits for name, splits in configs.items()}
        mirror.take_in(DataSet(data, tuple(configs)), {"rows": counts, "note": NOTE})
        log(f"{data}: {len(configs)} configurations, {sum(sum(splits.values()) for splits in counts.values())} rows")
    return 0


def _tables(root: Path) -> Iterator[tuple[str, str | None, str, list[Row]]]:
    """(data set, configuration, split, rows) of everything that the folder has files for."""
    for one in SPLITS:
        if (path := _find(root, one.file)) is not None:
            try:
                rows = [one.change(row) for row in _read(path)[one.start : one.stop]]
            except (KeyError, TypeError) as error:
                raise DataError(f"{path}: a row is not laid out as expected: {error!r}") from error
            yield one.data, one.config, one.split, rows
    for split, name in (("test", "mmlu/test"), ("dev", "mmlu/dev")):
        if (path := _find(root, name)) is not None:
            subjects: dict[str, list[Row]] = {}
            for row in _read(path):
                subjects.setdefault(row["subject"], []).append(row)
            yield from (("cais/mmlu", subject, split, rows) for subject, rows in sorted(subjects.items()))
    for path in sorted(root.glob("bbh/*.jsonl*")):
        yield "SaylorTwift/bbh", path.name.partition(".")[0], "test", _read(path)


def _find(root: Path, name: str) -> Path | None:
    return next((path for end in (".jsonl", ".jsonl.gz") if (path := root / f"{name}{end}").is_file()), None)


def _read(path: Path) -> list[Row]:
    return [row for _, row in JsonLines(path, str(path)).read(repeat(1))]


def _write(path: Path, rows: list[Row]) -> None:
    import pyarrow
    import pyarrow.parquet

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    except OSError as error:
        raise cannot_write(path, error) from error


def _card(configs: dict[str | None, dict[str, int]]) -> str:
    """A data set card that says which files make the splits."""
    entries = [
        {
            "config_name": name or "default",
            "data_files": [{"split": split, "path": f"{name or 'data'}/{split}-*.parquet"} for split in splits],
        }
        for name, splits in configs.items()
    ]
    return f"---\n{yaml.safe_dump({'configs': entries}, sort_keys=False)}---\n\n{NOTE}\n"
