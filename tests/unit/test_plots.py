"""Plots: every picture that the rows allow, and none that they do not."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mrpo_ds.errors import DataError
from mrpo_ds.plots import plot_run, running_mean

REPOSITORY = Path(__file__).resolve().parents[2]
PNG = b"\x89PNG\r\n\x1a\n"


def row(step: int, references: tuple[str, ...] = ()) -> dict[str, Any]:
    """A row as training writes it."""
    per_reference = {f"ref/{name}/{suffix}": 0.5 for name in references for suffix in ("weight", "clip_fraction")}
    return {
        "step": step,
        "loss": math.log(2) / step,
        "rewards/margins": 0.1 * step,
        "rewards/accuracies": 0.5,
        "logps/chosen": -100.0,
        "logps/rejected": -120.0,
        **per_reference,
    }


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(item) + "\n" for item in rows))


def names(paths: list[Path]) -> list[str]:
    return sorted(path.name for path in paths)


def test_a_whole_run_gets_every_picture(tmp_path: Path) -> None:
    references = tuple(f"model-{number}.1" for number in range(8))  # more than there are colours
    write(tmp_path / "metrics.jsonl", [row(step, references) | {"vref/logps/chosen": -99.0} for step in range(1, 60)])
    write(tmp_path / "evals.jsonl", [row(step) for step in (20, 40)])
    paths = plot_run(tmp_path)
    assert names(paths) == [
        "accuracy.png",
        "logps.png",
        "loss.png",
        "margin.png",
        "reference_clip_fraction.png",
        "reference_weight.png",
    ]
    for path in paths:
        assert path.parent == tmp_path / "plots"
        assert path.read_bytes().startswith(PNG) and path.stat().st_size > 5_000


def test_a_single_step_is_enough_and_absent_metrics_are_left_out(tmp_path: Path) -> None:
    write(tmp_path / "metrics.jsonl", [row(1)])
    assert names(plot_run(tmp_path)) == ["accuracy.png", "logps.png", "loss.png", "margin.png"]


def test_values_that_were_not_finite_are_left_out(tmp_path: Path) -> None:
    rows = [{"step": step, "loss": None if step % 2 else 1.0, "rewards/margins": None} for step in range(1, 50)]
    write(tmp_path / "metrics.jsonl", rows)
    assert names(plot_run(tmp_path)) == ["loss.png"]


def test_an_empty_run_gets_no_picture(tmp_path: Path) -> None:
    assert plot_run(tmp_path) == []
    assert not (tmp_path / "plots").exists()


def test_a_torn_last_line_is_left_out_and_a_broken_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "lo')
    assert names(plot_run(tmp_path)) == ["loss.png"]
    path.write_text('{"step": 1, "lo\n{"step": 2, "loss": 0.5}\n')
    with pytest.raises(DataError, match="line 1"):
        plot_run(tmp_path)


@pytest.mark.parametrize(
    ("window", "wanted"),
    [
        (1, [1.0, 2.0, 6.0, 3.0]),
        (3, [1.5, 3.0, 11 / 3, 4.5]),  # (1+2)/2, (1+2+6)/3, (2+6+3)/3, (6+3)/2
        (9, [3.0, 3.0, 3.0, 3.0]),
    ],
)
def test_running_mean_is_centred_and_shortens_at_the_ends(window: int, wanted: list[float]) -> None:
    np.testing.assert_allclose(running_mean(np.array([1.0, 2.0, 6.0, 3.0]), window), wanted, rtol=1e-12)


def test_matplotlib_is_loaded_only_to_draw() -> None:
    script = "import sys, mrpo_ds.plots; print('matplotlib' in sys.modules)"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "False\n"
