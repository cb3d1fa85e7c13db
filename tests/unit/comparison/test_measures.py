"""Measures of preferences, document by document, against numbers worked out by hand."""

from typing import Any

import pytest
import torch

from mrpo_ds.comparison.measures import Yardstick
from mrpo_ds.config.schema import LossConfig
from mrpo_ds.losses import load
from mrpo_ds.registry import names
from mrpo_ds.types import ResponseLogps

POLICY = [[-10.0, -12.0], [-10.0, -10.0], [-9.0, -5.0]]
FIRST = [[-10.0, -11.0], [-10.0, -10.0], [-9.0, -6.0]]
SECOND = [[-13.0, -11.0], [-14.0, -10.0], [-8.0, -6.0]]


def yardstick(name: str, references: tuple[str, ...] = ("a", "b"), view: str = "pair", **options: Any) -> Yardstick:
    options_class, _ = load(name)
    return Yardstick(LossConfig(name=name, options=options_class(**options)), references, view)


def logps(policy: list[list[float]], *references: list[list[float]]) -> ResponseLogps:
    ours = torch.tensor(policy)
    theirs = torch.tensor(references) if references else torch.zeros(0, *ours.shape)
    return ResponseLogps(
        policy=ours,
        lengths=torch.full(ours.shape, 4.0),
        reference=theirs,
        reference_lengths=torch.full(theirs.shape, 4.0),
        present=torch.ones(ours.shape, dtype=torch.bool),
        scores=torch.full(ours.shape, torch.nan, dtype=torch.float64),
    )


def test_log_probs_and_one_reference_by_hand() -> None:
    """Log-prob margins 2, 0, -4. Against the first reference: 2 - 1, 0, -4 + 3; times 0.1."""
    found = yardstick("dpo", ("a",)).measure(logps(POLICY, FIRST))
    assert found["logps/accuracy"].tolist() == [1, 0, 0]
    assert found["logps/ties"].tolist() == [0, 1, 0]
    assert found["logps/margin"].tolist() == [2, 0, -4]
    for prefix in ("objective", "against/a", "vref"):  # with one reference the virtual one is that
        assert found[f"{prefix}/margin"].tolist() == pytest.approx([0.1, 0, -0.1])
        assert found[f"{prefix}/accuracy"].tolist() == [1, 0, 0] and found[f"{prefix}/ties"].tolist() == [0, 1, 0]


def test_each_reference_has_its_own_margin() -> None:
    """Against the second: 2 + 2, 0 + 4, -4 + 2; times beta = 0.5."""
    found = yardstick("mrpo", beta=0.5).measure(logps(POLICY, FIRST, SECOND))
    assert found["against/b/margin"].tolist() == pytest.approx([2, 2, -1])
    assert found["against/b/accuracy"].tolist() == [1, 1, 0]


def test_the_virtual_reference_is_that_of_mrpo_with_the_runs_options() -> None:
    """Uniform, geometric, no clipping: v is the mean; 2 - (1 - 2) / 2 = 2.5, 0 + 2, -4 + 2.5 = -1.5."""
    options = {"weights": "uniform", "virtual_ref": "geometric", "ctro": "none"}
    found = yardstick("mrpo", **options).measure(logps(POLICY, FIRST, SECOND))
    assert found["vref/margin"].tolist() == pytest.approx([0.25, 0.2, -0.15])
    assert found["objective/margin"].tolist() == pytest.approx(found["vref/margin"].tolist())
    under_dpo = yardstick("dpo").measure(logps(POLICY, FIRST, SECOND))
    usual = yardstick("mrpo").measure(logps(POLICY, FIRST, SECOND))
    assert under_dpo["vref/margin"].tolist() == usual["objective/margin"].tolist()
    assert under_dpo["objective/margin"].tolist() == pytest.approx([0.1, 0, -0.1])


def test_a_number_that_is_not_finite_concerns_its_reference_alone() -> None:
    broken = [[-13.0, float("nan")], *SECOND[1:]]
    found = yardstick("dpo").measure(logps(POLICY, FIRST, broken))
    assert found["against/b/margin"].isnan().tolist() == [True, False, False]
    assert found["vref/margin"].isnan().tolist() == [True, False, False]
    assert not found["against/a/margin"].isnan().any() and not found["objective/margin"].isnan().any()


def test_an_objective_without_references_has_log_probs_and_its_own_rewards() -> None:
    """SimPO: 2 * (-10 / 4 + 12 / 4) = 1."""
    found = yardstick("simpo", ()).measure(logps(POLICY))
    assert sorted({name.rpartition("/")[0] for name in found}) == ["logps", "objective"]
    assert found["objective/margin"].tolist() == pytest.approx([1, 0, -2])


def test_triples_compare_the_second_response_with_the_last() -> None:
    found = yardstick("tpo", (), "triple").measure(logps([[-1.0, -10.0, -12.0], [-20.0, -10.0, -9.0]]))
    assert found["logps/margin"].tolist() == [2, -1]
    assert found["objective/accuracy"].tolist() == [1, 0]


@pytest.mark.parametrize("name", names("mrpo_ds.losses"))
def test_every_objective_can_be_the_yardstick_of_pairs(name: str) -> None:
    """Also those that are trained on something else: models are then measured by log-probs and references."""
    measured = yardstick(name)
    found = measured.measure(logps(POLICY, FIRST, SECOND))
    assert {"logps/accuracy", "against/a/accuracy", "vref/margin"} <= set(found)
    assert ("objective/accuracy" in found) == measured.has_objective
    assert all(value.shape == (3,) and value.dtype == torch.float64 for value in found.values())
    assert not torch.stack([value for key, value in found.items() if not key.startswith("objective")]).isnan().any()
