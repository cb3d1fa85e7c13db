"""The arithmetic of the benchmarks: what is compared with what, and how results are made of measurements."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.bench_logps import disagreement, line
from benchmarks.bench_logps import ratios as logps_ratios
from benchmarks.bench_prefix import Case, least_share
from benchmarks.bench_scale import split_of_start
from benchmarks.bench_step import agreement, agrees, best, pairs_of, ratios, work
from benchmarks.bridge import fit, grid
from benchmarks.common import Place, rank_place, refusal, run_child, spread
from benchmarks.flops import training_flops
from benchmarks.runs import evenly
from benchmarks.shapes import parameters
from mrpo_ds.losses import dpo, mdpo
from mrpo_ds.types import ResponseLogps
from tests.support import make_model


def record(policy: torch.Tensor, reference: torch.Tensor) -> ResponseLogps:
    """Rows without scores, best first."""
    ones = torch.ones_like(policy)
    return ResponseLogps(policy, ones, reference[None], ones[None], torch.ones_like(policy, dtype=torch.bool))


@pytest.mark.parametrize("pairs", ["top_vs_rest", "all", "adjacent"])
@pytest.mark.parametrize("responses", [2, 4, 8])
def test_mdpo_of_a_list_is_the_mean_of_dpo_over_the_pairs_that_the_peer_gets(pairs: str, responses: int) -> None:
    generator = torch.Generator().manual_seed(responses)
    policy, reference = (torch.randn(3, responses, generator=generator) * 20 for _ in range(2))
    ours = mdpo.loss(record(policy, reference), mdpo.Config(pairs=pairs)).losses
    columns = pairs_of(responses, pairs)
    each = [dpo.loss(record(policy[:, pair], reference[:, pair]), dpo.Config()).losses for pair in columns]
    torch.testing.assert_close(ours, torch.stack(each).mean(0))
    assert len(columns) == {"top_vs_rest": responses - 1, "adjacent": responses - 1}.get(
        pairs, responses * (responses - 1) // 2
    )


def test_tokens_of_both_sides_are_those_of_their_sequences() -> None:
    found = work([[100, 10, 20, 30]], "top_vs_rest")
    assert found["tokens_ours_without_prefix_sharing"] == 110 + 120 + 130
    assert found["tokens_ours_with_prefix_sharing"] == 160
    assert found["tokens_TRL_without_padding"] == (110 + 120) + (110 + 130)


def turn(losses: list[float], seconds: list[float], memory: float = 2.0) -> dict[str, Any]:
    return {"losses": losses, "chosen": [-100.0 for _ in losses], "seconds": seconds, "memory_gib": memory}


def test_sides_that_differ_in_one_step_do_not_agree() -> None:
    sides = {"ours": [turn([0.69, 0.5], [9, 1])], "TRL": [turn([0.69, 0.5002], [9, 3])]}
    found = agreement(sides, chosen_too=True)
    assert found["largest_difference_of_losses"] == pytest.approx(2e-4)
    assert found["largest_distance_from_ln_2"] == pytest.approx(math.log(2) - 0.5)
    assert not agrees(found)
    assert agrees(found | {"largest_difference_of_losses": 9e-5})
    assert not agrees(
        found | {"largest_difference_of_losses": 0.0, "largest_relative_difference_of_chosen_logps": 1e-4}
    )
    assert agrees(agreement({"ours": sides["ours"]}, chosen_too=True))


def test_ratios_leave_out_the_first_step_of_each_turn() -> None:
    sides = {
        "ours": [turn([], [50, 1, 2, 3], 2.0), turn([], [50, 1, 2, 3], 2.0)],
        "TRL": [turn([], [90, 4, 5, 6], 8.0), turn([], [90, 4, 5, 6], 8.0)],
    }
    assert ratios(sides) == {"TRL": {"times_faster": 2.5, "share_of_memory": 0.25}}


def test_the_best_size_is_that_with_the_shortest_second_step() -> None:
    seconds = {1: [1.0, 3.0], 2: [9.0, 2.0], 4: [2.0, 4.0]}
    assert best([1, 2, 4], lambda size: turn([], seconds[size])) == 2
    assert best([1, 4], lambda size: turn([], seconds[size]) if size == 4 else "out of memory") == 4
    with pytest.raises(SystemExit, match="out of memory"):
        best([1, 4], lambda size: "out of memory")


def test_evenly_keeps_the_ends_and_never_two_equal_scores() -> None:
    assert evenly([9, 8, 7, 6, 5, 4, 3], 4) == [0, 2, 4, 6]
    assert evenly([9, 9, 7, 7, 5], 3) == [0, 2, 4]
    assert evenly([9, 9, 7], 3) == []


def test_a_line_is_extrapolated_and_says_how_far_it_is_from_the_points() -> None:
    assert line([1, 2, 4], [3.0, 5.0, 9.0], 100) == (pytest.approx(201.0), pytest.approx(0.0, abs=1e-9))
    assert line([1, 2, 4], [1.0, 4.0, 16.0], 8)[1] > 0.1


def test_variants_of_log_probs_are_compared_at_the_same_sizes() -> None:
    def row(variant: str, vocabulary: int, peak: float, check: list[float]) -> dict[str, Any]:
        sizes = {"variant": variant, "vocabulary": vocabulary, "tokens": 8, "hidden": 4, "extrapolated": False}
        return {**sizes, "peak_gib": {"median": peak}, "seconds": {"median": 2 * peak}, "check": check}

    rows = [row("ours", 10, 1.0, [2.0, 4.0]), row("log_softmax", 10, 4.0, [2.0, 4.4]), row("ours", 20, 2.0, [8.0, 1.0])]
    (found,) = logps_ratios(rows)
    assert (found["against"], found["peak_gib"], found["seconds"]) == ("log_softmax", 0.25, 0.25)
    assert disagreement(rows) == pytest.approx(0.1)


def test_the_bound_of_prefix_sharing_is_the_ratio_of_tokens() -> None:
    case = Case(ratio=4, responses=2, response_tokens=10, tokens=400)
    assert (case.prompt_tokens, case.prompts) == (40, 4)
    assert case.bound() == (2 * 40 + 20) / (40 + 20)
    assert case.bound(head_share=1.0) == (2 * 40 + 20 + 20) / (40 + 20 + 20)
    groups = case.groups(1000)
    assert [len(group) for group in groups] == [2] * 4
    first, second = groups[0]
    assert first.ids[:40] == second.ids[:40] and first.ids[40:] != second.ids[40:]
    assert len(first.ids) == 50 and first.prompt_length == 40


def test_the_least_share_is_taken_from_long_prompts_alone() -> None:
    rows = [
        {"model": "m", "work": "policy", "P_over_R": ratio, "share_of_bound": share}
        for ratio, share in ((1, 0.2), (2, 0.9), (4, 0.85))
    ]
    assert least_share(rows) == {"m policy": 0.85}


def test_the_start_is_split_where_phases_begin() -> None:
    names = [("imports", 0), ("start", 0), ("load", 0), ("preflight", 0), ("load", 0), ("preflight", 0)]
    names += [("wait for references", 1), ("train", 1), ("wait for references", 2), ("train", 2)]
    rows = [{"phase": name, "step": step, "seconds": 1.0 + 2.0**i} for i, (name, step) in enumerate(names)]
    assert split_of_start(rows) == {
        "interpreter": 2.0,
        "imports": 1.0,
        "start": 2.0,
        "load": 4.0 + 16.0,
        "preflight": 8.0 + 32.0,
        "first step": 64.0 + 128.0,
    }


def test_the_fit_of_the_bridge_finds_what_made_the_points() -> None:
    rows = [
        {"roles": roles, "policy_ranks": ranks, "bytes": 8.0 * responses}
        for roles, ranks, responses in grid(32)
        if roles - 1 + ranks <= 32
    ]
    for row in rows:
        row["t"] = {"median": 1e-3 + 2e-4 * row["roles"] + 3e-4 * math.log2(row["policy_ranks"]) + 1e-9 * row["bytes"]}
    found = fit(rows, "t")
    assert found["b_seconds_a_role"] == pytest.approx(2e-4)
    assert found["c_seconds_a_doubling_of_ranks"] == pytest.approx(3e-4)
    assert found["d_seconds_a_byte"] == pytest.approx(1e-9)
    assert found["r_squared"] == 1.0


@pytest.mark.parametrize("most", [2, 4, 32])
def test_the_grid_of_the_bridge_never_has_more_processes_than_asked(most: int) -> None:
    assert max(roles - 1 + ranks for roles, ranks, _ in grid(most)) == most


def test_a_spread_says_median_and_ends() -> None:
    assert spread([3.0, 1.0, 2.0, 10.0]) == {"median": 2.5, "least": 1.0, "largest": 10.0, "count": 4}


def test_a_model_counts_each_of_its_parameters_once(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    path = make_model(tmp_path / "model")
    wanted = AutoModelForCausalLM.from_pretrained(path).num_parameters()  # tied embeddings once
    assert parameters(path)["parameters"] == wanted
    assert training_flops(parameters(path), 10) == 60 * wanted


def test_a_child_has_its_own_place_and_tells_of_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "7")
    monkeypatch.setenv("OMP_NUM_THREADS", "9")
    program = "import os; print(os.environ.get('RANK'), os.environ['OMP_NUM_THREADS'], len(os.sched_getaffinity(0)))"
    core = min(__import__("os").sched_getaffinity(0))
    alone = run_child([sys.executable, "-c", program], Place(threads=3, cores=(core,)))
    assert alone.output.split() == ["None", "3", "1"]
    ranked = run_child([sys.executable, "-c", program], rank_place(Place(), 1, 2, 1234))
    assert ranked.output.split()[:2] == ["1", "1"]
    failed = run_child([sys.executable, "-c", "x = bytearray(300 << 20); raise ValueError('no')"], Place())
    assert failed.code == 1
    assert refusal(failed) == "ValueError: no"
    assert failed.peak_gib > 0.29  # no upper limit: what this process holds counts too, until the child is its own
