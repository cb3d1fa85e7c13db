"""What every file of mrpo_ds/losses must do. A new loss is held to it by being in the folder."""

import math
from dataclasses import fields, is_dataclass, replace
from typing import NamedTuple

import pytest
import torch
from omegaconf import OmegaConf

from mrpo_ds import losses
from mrpo_ds.errors import ConfigError
from mrpo_ds.registry import load_by_file_name, names
from mrpo_ds.types import LossOutput

ROWS = 6


class Objective(NamedTuple):
    """A loss with its default options and the number of references and responses it is tried with."""

    module: object
    config: object
    references: int
    responses: int

    def loss(self, logps):
        return self.module.loss(logps, self.config)


@pytest.fixture(params=names("mrpo_ds.losses"))
def objective(request):
    module = load_by_file_name("mrpo_ds.losses", request.param, "loss.name")
    # A loss that needs no reference is tried without any, and once more with some that must not matter.
    references = max(2, module.MIN_REFERENCES) if module.MIN_REFERENCES else 0
    return Objective(module, module.Config(), references, module.RESPONSES or 4)


@pytest.fixture
def make(objective, batch_of):
    """(dtype, scale) -> a batch of ROWS prompts with log-probs from -scale to 0 nats, the same in every dtype."""

    def build(dtype=torch.float64, scale=20.0):
        generator = torch.Generator().manual_seed(0)
        shape = (ROWS, objective.responses)
        policy = -scale * torch.rand(shape, generator=generator)
        reference = -scale * torch.rand((objective.references, *shape), generator=generator)
        return batch_of(policy, reference, dtype)

    return build


def gradient(objective, logps):
    (grad,) = torch.autograd.grad(objective.loss(logps).losses.sum(), logps.policy)
    return grad


def rows_of(logps, rows):
    """The given rows of a batch, as a batch whose policy is still in the graph."""
    return replace(
        logps,
        policy=logps.policy[rows],
        lengths=logps.lengths[rows],
        reference=logps.reference[:, rows],
        reference_lengths=logps.reference_lengths[:, rows],
        present=logps.present[rows],
        scores=logps.scores[rows],
    )


def test_a_loss_module_declares_what_it_needs(objective):
    module = objective.module
    assert losses.load(module.__name__.rpartition(".")[2]) == (module.Config, module.loss)
    assert isinstance(module.MIN_REFERENCES, int) and module.MIN_REFERENCES >= 0
    assert module.RESPONSES is None or module.RESPONSES >= 1
    assert module.__doc__ and module.loss.__doc__ and module.check_references.__doc__
    module.check_references(objective.config, objective.references)
    for too_few in range(module.MIN_REFERENCES):
        with pytest.raises(ConfigError):
            module.check_references(objective.config, too_few)


def test_a_config_is_frozen_plain_and_readable_by_omegaconf(objective):
    config = objective.module.Config
    assert is_dataclass(config) and config.__dataclass_params__.frozen
    assert OmegaConf.to_object(OmegaConf.structured(config)) == config()
    changed = OmegaConf.merge(OmegaConf.structured(config), {fields(config)[0].name: 0.25})
    assert isinstance(OmegaConf.to_object(changed), config)


@pytest.mark.parametrize(
    "given, computed", [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)]
)
def test_shapes_dtypes_and_what_has_a_gradient(objective, make, given, computed):
    output = objective.loss(make(given))
    assert isinstance(output, LossOutput)
    assert output.losses.shape == (ROWS,) and output.losses.dtype == computed and output.losses.requires_grad
    assert output.rewards.shape == (ROWS, objective.responses) and not output.rewards.requires_grad
    assert output.valid.shape == (ROWS,) and output.valid.dtype == torch.bool and output.valid.all()
    for value in output.stats.values():
        assert value.shape in {(ROWS,), (objective.references, ROWS)}
        assert value.isfinite().all() and not value.requires_grad


def test_gradcheck(objective, make):
    logps = make(scale=5.0)
    assert torch.autograd.gradcheck(lambda policy: objective.loss(replace(logps, policy=policy)).losses, logps.policy)


def test_references_get_no_gradient_and_nothing_is_changed_in_place(objective, make):
    logps = make()
    logps.reference.requires_grad_()
    before = [logps.policy.clone(), logps.reference.clone()]
    objective.loss(logps).losses.sum().backward()
    assert logps.reference.grad is None and logps.policy.grad.any()
    assert torch.equal(logps.policy, before[0]) and torch.equal(logps.reference, before[1])


@pytest.mark.parametrize("scale", [0.0, 500.0, 5000.0])
def test_float32_is_finite_and_equals_float64_at_any_scale(objective, make, scale):
    narrow, wide = make(torch.float32, scale), make(torch.float64, scale)
    output = objective.loss(narrow)
    torch.testing.assert_close(output.losses.double(), objective.loss(wide).losses, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(output.rewards.double(), objective.loss(wide).rewards, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradient(objective, narrow).double(), gradient(objective, wide), rtol=1e-4, atol=1e-6)


def test_permuting_the_batch_permutes_the_losses(objective, make):
    logps = make()
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    torch.testing.assert_close(objective.loss(rows_of(logps, order)).losses, objective.loss(logps).losses[order])


def test_micro_batches_add_up_to_the_batch(objective, make):
    """Uneven ones, as the last of an epoch is."""
    logps = make()
    parts = [objective.loss(rows_of(logps, rows)).losses.sum() for rows in (slice(0, 1), slice(1, 4), slice(4, ROWS))]
    torch.testing.assert_close(sum(parts), objective.loss(logps).losses.sum())
    (summed,) = torch.autograd.grad(sum(parts), logps.policy)
    torch.testing.assert_close(summed, gradient(objective, logps))


def broken(logps, rows):
    """Make the given rows unusable, each in another way, and put a NaN where their policy log-probs are."""
    reference, reference_lengths = logps.reference.clone(), logps.reference_lengths.clone()
    lengths, present = logps.lengths.clone(), logps.present.clone()
    policy = logps.policy.detach().clone()
    for row in rows:
        policy[row] = math.nan
        if row % 4 == 3:
            present[row, 1:] = False
        elif row % 4 == 2 or not len(reference):
            lengths[row, 0] = 0
        else:
            reference[0, row, row % 4] = (math.nan, -math.inf)[row % 4]
    return replace(
        logps,
        policy=policy.requires_grad_(),
        lengths=lengths,
        reference=reference,
        reference_lengths=reference_lengths,
        present=present,
    )


@pytest.mark.parametrize("rows", [[0], [1, 2], [3], list(range(ROWS))])
def test_rows_that_cannot_be_used_are_marked_zero_and_harmless(objective, make, rows):
    whole = make()
    logps = broken(whole, rows)
    output = objective.loss(logps)
    assert (~output.valid).nonzero().flatten().tolist() == rows
    kept = output.valid.unsqueeze(-1)
    assert torch.equal(output.losses, objective.loss(whole).losses * output.valid)
    assert torch.equal(output.rewards, objective.loss(whole).rewards * kept)
    assert all(value.isfinite().all() for value in output.stats.values())
    assert output.losses.requires_grad
    assert torch.equal(gradient(objective, logps), gradient(objective, whole) * kept)


def test_valid_does_not_depend_on_the_policy(objective, make):
    """A policy that is not finite must end the run, not shrink the denominator."""
    logps = make()
    output = objective.loss(replace(logps, policy=torch.full_like(logps.policy, math.nan)))
    assert output.valid.all() and output.losses.isnan().all()


def test_a_loss_that_needs_no_reference_ignores_those_there_are(objective, make):
    alone = make()
    broken_references = torch.full((2, *alone.policy.shape), math.nan, dtype=torch.float64)
    accompanied = replace(alone, reference=broken_references, reference_lengths=torch.zeros_like(broken_references))
    if objective.module.MIN_REFERENCES == 0:
        assert torch.equal(objective.loss(accompanied).losses, objective.loss(alone).losses)
    assert objective.loss(accompanied).valid.all() == (objective.module.MIN_REFERENCES == 0)
