"""Where and in which portions a step is computed changes nothing: one trajectory, whatever the sharding.

Every run takes the same 10 steps over 17 rows, 8 a step: the third step of an epoch is a tail of one row, which leaves
a second policy rank with nothing but filler.
"""

import json
from copy import deepcopy
from itertools import pairwise

import pytest

from tests.support import base_config, make_model, make_rows, write_jsonl

STEPS, ROWS = 10, 17
LOSS_TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def base(warm_runs):
    """K = 2, everything whole: served references, one policy rank, one micro-batch a step."""
    config = base_config(warm_runs.root)
    source = write_jsonl(warm_runs.root / "data" / "tail.jsonl", make_rows(ROWS))
    config["data"]["train"] = [{"source": str(source)}]
    config["train"] |= {"batch_size": 8, "micro_batch_size": 8, "epochs": 4, "max_steps": STEPS, "learning_rate": 3e-4}
    return config


@pytest.fixture(scope="module")
def everything_sharded(warm_runs):
    """ZeRO-3 keeps small parameters whole on every rank, which is all of them here, unless told not to."""
    path = warm_runs.root / "zero3.json"
    sharding = {"stage": 3, "stage3_param_persistence_threshold": 0, "reduce_bucket_size": 10_000}
    path.write_text(json.dumps({"zero_optimization": sharding}))
    return str(path)


def colocated(config, _):
    config["topology"] |= {"placement": "colocated"}


def stored(config, _):
    """Scored on two ranks in the first epoch, read from the store in the others."""
    config["topology"] |= {"placement": "stored", "policy": 2, "store_missing": "score"}
    config["topology"]["store"] = config["output_dir"] + "-store"
    config["train"]["micro_batch_size"] = 4


def micro_batches_of_one(config, _):
    config["topology"] |= {"placement": "colocated"}
    config["train"]["micro_batch_size"] = 1


def two_policy_ranks(config, sharding):
    config["topology"] |= {"policy": 2}
    config["train"]["micro_batch_size"] = 4
    config["deepspeed"] = sharding
    config["model"]["gradient_checkpointing"] = True


def sharded_reference(config, _):
    config["topology"] |= {"references": {"ref1": 2}, "run_ahead": 0}
    config["references"][0]["sharding"] = "zero3"


def padded_rows(config, _):
    """One padded row per sequence, where the base packs them."""
    for model in (config["model"], *config["references"]):
        model["packing"] = False
    config["topology"] |= {"placement": "colocated"}


def prompts_apart(config, _):
    """Every prompt computed with each of its responses, where in the base they share it."""
    for model in (config["model"], *config["references"]):
        model["prefix_sharing"] = False
    config["topology"] |= {"placement": "colocated"}


VARIANTS = [colocated, stored, micro_batches_of_one, two_policy_ranks, sharded_reference, padded_rows, prompts_apart]


@pytest.fixture(scope="module")
def trajectories(warm_runs, base, everything_sharded):
    """Name of a variant, or 'base' -> its run. All of them begin at once."""
    configs = {"base": base}
    for change in VARIANTS:
        configs[change.__name__] = deepcopy(base)
        change(configs[change.__name__], everything_sharded)
    return warm_runs.begin(configs)


@pytest.fixture(scope="module", params=[change.__name__ for change in VARIANTS])
def pair(request, trajectories):
    """(the base run, a variant of it)."""
    return trajectories("base"), trajectories(request.param)


def values(run, name, rows="metrics"):
    return [row[name] for row in getattr(run, rows)]


def test_losses_are_the_same_at_every_step(pair):
    ours, theirs = pair
    assert len(ours.metrics) == STEPS
    assert values(theirs, "loss") == pytest.approx(values(ours, "loss"), abs=LOSS_TOLERANCE)
    assert values(theirs, "prompts") == values(ours, "prompts") == [8, 8, 1, 8, 8, 1, 8, 8, 1, 8]


def test_differences_of_the_loss_have_no_direction(pair):
    """Rounding goes both ways; a mean of means, or filler that counts a little, would push one way in small steps."""
    ours, theirs = pair
    differences = [b - a for a, b in zip(values(ours, "loss"), values(theirs, "loss"), strict=True)]
    assert abs(sum(differences)) / STEPS <= LOSS_TOLERANCE / 10


def test_gradients_and_log_probs_are_the_same(pair):
    ours, theirs = pair
    assert values(theirs, "grad_norm") == pytest.approx(values(ours, "grad_norm"), rel=1e-4)
    for name in ("logps/chosen", "logps/rejected", "vref/logps/chosen", "vref/logps/rejected"):
        assert values(theirs, name) == pytest.approx(values(ours, name), rel=1e-5)
    for reference in ("ref1", "ref2"):
        for name in ("logps/chosen", "logps/rejected", "weight", "clip_fraction"):
            key = f"ref/{reference}/{name}"
            assert values(theirs, key) == pytest.approx(values(ours, key), rel=1e-5, abs=1e-6)


def test_held_out_numbers_are_the_same_before_and_after(pair):
    ours, theirs = pair
    for name in ("loss", "rewards/margins", "rewards/accuracies"):
        assert values(theirs, name, "evals") == pytest.approx(values(ours, name, "evals"), abs=1e-4)


def test_counts_and_schedules_are_the_same(pair):
    ours, theirs = pair
    for name in ("step", "num_tokens", "epoch", "learning_rate", "dropped"):
        assert values(theirs, name) == values(ours, name)
    assert all(earlier < later for earlier, later in pairwise(values(ours, "num_tokens")))


def test_the_placement_of_whole_references_changes_no_bit(trajectories):
    ours, theirs = trajectories("base"), trajectories("colocated")
    for name in ("loss", "grad_norm", "logps/chosen", "ref/ref2/logps/chosen", "ref/ref2/weight"):
        assert values(theirs, name) == values(ours, name)


def test_with_a_store_every_row_is_scored_once(trajectories):
    fractions = values(trajectories("stored"), "ref/ref2/stored_fraction")
    assert fractions == [0.0] * 3 + [1.0] * (STEPS - 3)


def test_packed_rows_waste_next_to_nothing(trajectories):
    packed, padded = (values(trajectories(name), "perf/padding_fraction") for name in ("base", "padded_rows"))
    assert max(packed) <= 0.02 < min(padded)


def test_a_shared_prompt_is_computed_once(trajectories):
    shared, apart = (values(trajectories(name), "perf/shared_fraction") for name in ("base", "prompts_apart"))
    assert max(apart) == 0.0
    assert 0.1 < min(shared) <= max(shared) < 0.5  # of a pair, half if the answers were empty


def test_the_trajectory_is_worth_comparing(trajectories):
    """It moves: the equalities above are not those of a model that stands still."""
    losses = values(trajectories("base"), "loss")
    assert max(losses) - min(losses) > 0.05


def test_a_reference_whose_responses_cannot_share_a_prompt_is_named_and_packed(warm_runs, base):
    values = deepcopy(base)
    values["train"]["max_steps"] = 1
    path = make_model(warm_runs.root / "models" / "llama4", "llama4", scale=0.1)
    values["references"][1] |= {"path": str(path)}
    apart = deepcopy(values)
    apart["references"][1]["prefix_sharing"] = False
    run = warm_runs.begin({"llama4": values, "llama4, apart": apart})
    said = (
        "ref2: no prefix sharing, a prompt is computed with each of its responses: Llama4ForCausalLM: it has layers of"
    )
    assert said in run("llama4").process.stderr and said not in run("llama4, apart").process.stderr
    (ours,), (theirs,) = (run(name).metrics for name in ("llama4", "llama4, apart"))
    assert ours["ref/ref2/logps/chosen"] == theirs["ref/ref2/logps/chosen"] < 0


def test_a_reference_that_cannot_share_rows_is_named_and_gets_padded_ones(warm_runs, base):
    values = deepcopy(base)
    values["train"]["max_steps"] = 1
    path = make_model(warm_runs.root / "models" / "mamba", "mamba", scale=0.1)
    values["references"][1] |= {"path": str(path), "attention": "eager"}  # it knows no other
    padded = deepcopy(values)
    padded["references"][1]["packing"] = False
    run = warm_runs.begin({"mamba": values, "mamba, padded": padded})
    said = "ref2: no packing, every sequence gets a padded row: MambaForCausalLM takes no position_ids"
    assert said in run("mamba").process.stderr and said not in run("mamba, padded").process.stderr
    (ours,), (theirs,) = (run(name).metrics for name in ("mamba", "mamba, padded"))
    assert ours["ref/ref2/logps/chosen"] == theirs["ref/ref2/logps/chosen"] < 0
