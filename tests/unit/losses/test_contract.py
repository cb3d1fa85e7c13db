"""What every file of mrpo_ds/losses must do. A new loss is held to it by being in the folder.

It is tried with the options of variants.py, on every view of the data that it then takes.
"""

import math
from dataclasses import fields, is_dataclass, replace

import pytest
import torch
from omegaconf import OmegaConf

from mrpo_ds.config.schema import VIEWS
from mrpo_ds.data.micro import MicroBatch
from mrpo_ds.losses import load
from mrpo_ds.losses._virtual import TrustRegionOptions
from mrpo_ds.metrics import Totals
from mrpo_ds.types import LossOutput, SequenceBatch
from tests.unit.losses.variants import LOSSES, RESPONSES, variants
from tests.waits import counted_waits

ROWS = 6
OBJECTIVES = {label: objective for name in LOSSES for label, objective in variants(name).items()}
LISTS = [label for label, objective in OBJECTIVES.items() if "ranked" in objective.needs.views]
UNUSED = [label for label, objective in OBJECTIVES.items() if objective.needs.unused]


@pytest.fixture(params=OBJECTIVES)
def objective(request):
    return OBJECTIVES[request.param]


@pytest.fixture
def make(objective, batch_of):
    """(dtype, scale) -> ROWS prompts with log-probs from -scale to 0 nats, the same numbers in every dtype.

    It holds what needs() asks for and nothing else. Lists have 2 to 4 responses and some ties; of what is absent,
    the numbers are there but must not matter.
    """

    def build(dtype=torch.float64, scale=20.0):
        generator = torch.Generator().manual_seed(0)
        shape = (ROWS, objective.responses)
        policy, *reference = -scale * torch.rand((1 + objective.references, *shape), generator=generator)
        lengths = torch.randint(5, 20, (1 + objective.references, *shape), generator=generator)
        present = torch.ones(shape, dtype=torch.bool)
        scores = torch.tensor([9.0, 7.0, 6.0, 1.0]).expand(ROWS, 4)[:, : objective.responses].clone()
        if objective.view == "ranked":
            present[1, 2:] = present[2, 3:] = False
            scores[3, 2] = scores[3, 1]
        if objective.responses == 1:
            scores[::2] = 0.0
        asked = {}
        if objective.needs.prompt:
            asked["prompt"] = -scale * torch.rand(ROWS, generator=generator)
            asked["prompt_lengths"] = torch.randint(5, 20, (ROWS,), generator=generator)
        if objective.needs.baseline != "none":
            asked["baseline"] = torch.tensor([0.4, -0.1])[: objective.responses]
        if objective.needs.draws:
            asked["draws"] = torch.rand(ROWS, generator=generator)
        return batch_of(
            policy,
            torch.stack(reference) if reference else (),
            dtype,
            lengths=lengths[0],
            reference_lengths=lengths[1:],
            present=present,
            scores=scores,
            **asked,
        )

    return build


@pytest.fixture
def gradients(objective, step_loss):
    """(batch) -> the gradients of the step's loss: of the responses and, where they are scored, of the prompts."""

    def compute(logps):
        leaves = [leaf for leaf in (logps.policy, logps.prompt) if leaf is not None]
        return torch.autograd.grad(step_loss(objective.loss(logps)), leaves)

    return compute


def rows_of(logps, rows):
    """The given rows of a batch, as a batch whose policy is still in the graph."""
    changed = {"reference": logps.reference[:, rows], "reference_lengths": logps.reference_lengths[:, rows]}
    for name in ("policy", "lengths", "present", "scores", "prompt", "prompt_lengths", "draws"):
        value = getattr(logps, name)
        changed[name] = None if value is None else value[rows]
    return replace(logps, **changed)


def with_garbage(logps, place):
    """The batch with an absent response put in at a column, which holds what must not matter."""

    def insert(table, value):
        column = torch.full((*table.shape[:-1], 1), value, dtype=table.dtype)
        return torch.cat((table[..., :place], column, table[..., place:]), -1)

    return replace(
        logps,
        policy=insert(logps.policy, math.nan),
        lengths=insert(logps.lengths, 0),
        reference=insert(logps.reference, math.inf),
        reference_lengths=insert(logps.reference_lengths, 0),
        present=insert(logps.present, False),
        scores=insert(logps.scores, 99.0),
    )


def broken(logps, rows):
    """Make the given rows unusable, each in another way, and put a NaN where their policy log-probs are."""
    reference, lengths, present = logps.reference.clone(), logps.lengths.clone(), logps.present.clone()
    policy = logps.policy.detach().clone()
    prompt = None if logps.prompt is None else logps.prompt.detach().clone()
    for row in rows:
        policy[row] = math.nan
        if prompt is not None:
            prompt[row] = math.nan
        if row % 4 == 3:
            present[row] = False
        elif row % 4 == 2 or not len(reference):
            lengths[row, 0] = 0
        else:
            reference[0, row, -1] = reference[0, row, 0] = (math.nan, -math.inf)[row % 4]
    return replace(
        logps,
        policy=policy.requires_grad_(),
        prompt=None if prompt is None else prompt.requires_grad_(),
        lengths=lengths,
        reference=reference,
        present=present,
    )


# Config and needs


@pytest.mark.parametrize("name", LOSSES)
def test_every_choice_is_tried_and_a_misspelt_one_is_told_the_others(name, refusal):
    config_class = load(name)[0]
    for field in fields(config_class):
        values = {str(getattr(objective.config, field.name)) for objective in variants(name).values()}
        if field.type is str:
            key, _, choices = refusal(config_class, {field.name: "nonsense"}).partition("; allowed: ")
            assert key == f"loss.{field.name} is 'nonsense'"
            assert values == set(choices.removesuffix(".").split(" | "))
        if field.type is bool:
            assert values == {"False", "True"}


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", LOSSES)
def test_no_number_may_be_negative_or_not_finite(name, value, refusal):
    config_class = load(name)[0]
    for field in fields(config_class):
        if field.type in (float, float | None):
            assert refusal(config_class, {field.name: value}).startswith(f"loss.{field.name} is {value}; allowed: ")


@pytest.mark.parametrize("name", LOSSES)
def test_beta_may_not_be_zero(name, refusal):
    config_class = load(name)[0]
    if "beta" in config_class.__dataclass_fields__:
        assert refusal(config_class, {"beta": 0.0}) == "loss.beta is 0.0; allowed: > 0."


def test_a_config_is_frozen_plain_and_survives_being_written_out(objective):
    assert is_dataclass(objective.config) and objective.config.__dataclass_params__.frozen
    written = OmegaConf.to_yaml(OmegaConf.structured(objective.config))
    read = OmegaConf.merge(OmegaConf.structured(type(objective.config)), OmegaConf.create(written))
    assert OmegaConf.to_object(read) == objective.config


def test_needs_are_coherent(objective):
    asked = objective.needs
    assert asked.views and set(asked.views) <= set(VIEWS) - {"auto"}
    for width in (RESPONSES[view] for view in asked.views):
        assert 0 <= asked.chosen < width and all(column < width for column in asked.unused)
    assert asked.chosen not in asked.unused
    assert asked.references >= 0 and asked.baseline in ("none", "batch", "mismatched")
    assert asked.baseline == "none" or asked.references >= 1
    assert asked.exactly is None or (asked.exactly[0] >= asked.references and asked.exactly[1].startswith("loss."))
    assert asked.score_range is None or asked.score_range[0] < asked.score_range[1]


def test_what_needs_asks_for_is_not_optional(objective, make):
    for name in ("prompt", "prompt_lengths", "baseline", "draws"):
        if getattr(make(), name) is not None:
            with pytest.raises(AssertionError, match="needs"):
                objective.loss(replace(make(), **{name: None}))


# The output


@pytest.mark.parametrize("given, computed", [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_shapes_dtypes_and_what_has_a_gradient(objective, make, step_loss, given, computed):
    output = objective.loss(make(given))
    assert isinstance(output, LossOutput) and step_loss(output).requires_grad
    assert output.losses.shape == (ROWS,) and output.losses.dtype == computed
    assert output.rewards.shape == (ROWS, objective.responses) and not output.rewards.requires_grad
    assert output.valid.shape == (ROWS,) and output.valid.dtype == torch.bool and output.valid.all()
    for value in output.stats.values():
        assert value.shape in {(ROWS,), (objective.references, ROWS)} and value.dtype in (torch.float32, computed)
        assert value.isfinite().all() and not value.requires_grad
    if output.per_token is not None:
        assert output.per_token.losses.shape == output.per_token.tokens.shape == (ROWS,)
        assert output.per_token.losses.dtype == computed and not output.per_token.tokens.requires_grad
        assert (output.per_token.tokens > 0).all() and output.per_token.weight > 0


def test_gradcheck(objective, make, step_loss):
    logps = make(scale=5.0)

    def total(policy, prompt=None):
        return step_loss(objective.loss(replace(logps, policy=policy, prompt=prompt)))

    leaves = (logps.policy,) if logps.prompt is None else (logps.policy, logps.prompt)
    assert torch.autograd.gradcheck(total, leaves, fast_mode=True)


def test_references_get_no_gradient_and_nothing_is_changed_in_place(objective, make, step_loss):
    logps, same = make(), make()
    logps.reference.requires_grad_()
    step_loss(objective.loss(logps)).backward()
    assert logps.reference.grad is None and logps.policy.grad.any()
    for field in fields(logps):
        value, before = getattr(logps, field.name), getattr(same, field.name)
        assert value is before is None or torch.equal(value, before)


def test_neither_a_loss_nor_its_metrics_wait_for_the_device(objective, make):
    """They are computed with every micro-batch, while the device is behind."""
    logps = make()
    count = len(logps.policy)
    nothing = torch.zeros(0, dtype=torch.int64)
    sequences = SequenceBatch(nothing, nothing, None, None, nothing, nothing, nothing, (0, 0))
    counted = torch.ones(count, dtype=torch.bool)
    micro = MicroBatch(sequences, nothing, nothing, torch.arange(count), counted)
    totals = Totals([f"ref{number}" for number in range(objective.references)], objective.needs.chosen)
    with counted_waits() as waits:
        totals.add(objective.loss(logps), logps, micro)
    assert waits == {}


@pytest.mark.parametrize("scale", [0.0, 300.0, 5000.0])
def test_float32_is_finite_and_equals_float64_at_any_scale(objective, make, gradients, step_loss, scale):
    narrow, wide = make(torch.float32, scale), make(torch.float64, scale)
    got, wanted = objective.loss(narrow), objective.loss(wide)
    for one, other, least in (
        (got.losses, wanted.losses, 1e-6),
        (got.rewards, wanted.rewards, 1e-4),
        (step_loss(got), step_loss(wanted), 1e-6),
        *((one, other, 1e-6) for one, other in zip(gradients(narrow), gradients(wide), strict=True)),
    ):
        assert one.isfinite().all()
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=least)


# The batch


def test_permuting_the_batch_permutes_the_losses(objective, make):
    logps, order = make(), torch.tensor([4, 2, 0, 5, 1, 3])
    moved, output = objective.loss(rows_of(logps, order)), objective.loss(logps)
    torch.testing.assert_close(moved.losses, output.losses[order])
    torch.testing.assert_close(moved.rewards, output.rewards[order])
    if output.per_token is not None:
        torch.testing.assert_close(moved.per_token.losses, output.per_token.losses[order])


@pytest.mark.parametrize("objective", LISTS, indirect=True)
@pytest.mark.parametrize("place", [0, 1, -1])
def test_an_absent_response_changes_nothing_whatever_it_holds(objective, make, gradients, place):
    logps = make()
    padded = with_garbage(logps, place % (objective.responses + 1))
    got, wanted = objective.loss(padded), objective.loss(logps)
    torch.testing.assert_close(got.losses, wanted.losses)
    assert got.valid.all() and got.stats.keys() == wanted.stats.keys()
    for name, value in wanted.stats.items():
        torch.testing.assert_close(got.stats[name], value)
    torch.testing.assert_close(got.rewards[padded.present], wanted.rewards[logps.present])
    torch.testing.assert_close(torch.autograd.grad(got.losses.mean(), logps.policy), gradients(logps))


@pytest.mark.parametrize(
    "parts",
    [[slice(0, 1), slice(1, 4), slice(4, ROWS)], [slice(rank, ROWS, 4) for rank in range(4)]],
    ids=["micro_batches", "ranks"],
)
def test_uneven_parts_of_a_batch_add_up_to_its_loss(objective, make, gradients, step_loss, parts):
    """With a row that is dropped, so that the parts do not even have the same share of valid rows."""
    logps = broken(make(), [3])
    total = step_loss(*[objective.loss(rows_of(logps, rows)) for rows in parts])
    torch.testing.assert_close(total, step_loss(objective.loss(logps)))
    torch.testing.assert_close(torch.autograd.grad(total, logps.policy)[0], gradients(logps)[0])


# Rows and references that cannot be used


@pytest.mark.parametrize("rows", [[1, 2], [0, 3], [0, 1, 2, 3]])
def test_rows_that_cannot_be_used_are_marked_and_as_if_they_were_not_there(objective, make, gradients, rows):
    logps = broken(make(), rows)
    kept = torch.tensor([row not in rows for row in range(ROWS)])
    got, wanted = objective.loss(logps), objective.loss(rows_of(make(), kept))
    assert torch.equal(got.valid, kept)
    torch.testing.assert_close(got.losses[kept], wanted.losses)
    torch.testing.assert_close(got.rewards[kept], wanted.rewards)
    for grad, whole in zip(gradients(logps), gradients(rows_of(make(), kept)), strict=True):
        torch.testing.assert_close(grad[kept], whole)
        assert not grad[~kept].any()
    for value in (got.losses, got.rewards.mT, *got.stats.values()):
        assert not value[..., ~kept].any()
    if got.per_token is not None:
        assert not got.per_token.losses[~kept].any() and not got.per_token.tokens[~kept].any()


def test_a_batch_without_a_usable_row_gives_zero_with_a_graph(objective, make, gradients, step_loss):
    logps = broken(make(), range(ROWS))
    assert step_loss(objective.loss(logps)).item() == 0
    assert not any(grad.any() for grad in gradients(logps))


def test_the_denominators_do_not_depend_on_the_policy(objective, make, step_loss):
    """A policy that is not finite must end the run, not shrink them."""
    logps = make()
    output = objective.loss(replace(logps, policy=torch.full_like(logps.policy, math.nan)))
    assert output.valid.all() and step_loss(output).isnan()
    if output.per_token is not None:
        assert torch.equal(output.per_token.tokens, objective.loss(logps).per_token.tokens)


def test_references_that_are_not_asked_for_are_ignored_even_when_broken(objective, make):
    """Those that use all there are drop a row with a broken one, or leave it out if nonfinite is mask_ref."""
    logps = make()
    uses_all = objective.needs.references > 0 and isinstance(objective.config, TrustRegionOptions)
    asked = objective.references - 1 if uses_all else objective.needs.references
    nonsense = torch.full((2, *logps.policy.shape), math.nan, dtype=torch.float64)[: 1 if uses_all else 2]
    changed = replace(
        logps,
        reference=torch.cat((logps.reference[:asked], nonsense)),
        reference_lengths=torch.cat((logps.reference_lengths[:asked], torch.zeros_like(nonsense))),
    )
    output = objective.loss(changed)
    if uses_all:
        assert (output.valid == (objective.config.nonfinite == "mask_ref")).all()
    else:
        assert torch.equal(output.losses, objective.loss(logps).losses) and output.valid.all()


@pytest.mark.parametrize("objective", UNUSED, indirect=True)
def test_what_the_policy_need_not_score_does_not_matter(objective, make, gradients):
    logps, unused = make(), list(objective.needs.unused)
    changed = logps.policy.detach().clone()
    changed[:, unused] = -1e3
    changed = replace(logps, policy=changed.requires_grad_())
    assert torch.equal(objective.loss(changed).losses, objective.loss(logps).losses)
    assert not gradients(changed)[0][:, unused].any()
