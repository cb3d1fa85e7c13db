"""Activations on the host: the same numbers, and never a weight, a view of one, or what is too small to be worth it."""

from contextlib import nullcontext
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from mrpo_ds.activations import HostActivations
from mrpo_ds.config.schema import ModelConfig
from mrpo_ds.data.batching import Layout
from mrpo_ds.data.rendering import Encoded
from mrpo_ds.models import load_scorer, score
from tests.support import make_model

ROWS = [Encoded([5 + (7 * index + row) % 200 for index in range(20 + 9 * row)], 6 + row) for row in range(4)]
LAYERS = 2


@dataclass(frozen=True)
class Recording(HostActivations):
    """Remembers what it has moved."""

    fewest_bytes: int = 0
    moved: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)

    def pack(self, tensor):
        packed = super().pack(tensor)
        if not isinstance(packed, torch.Tensor):
            self.moved.append((tensor.untyped_storage().data_ptr(), tuple(tensor.shape)))
        return packed


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("activations")
    return {family: make_model(root / family, family) for family in ("llama", "gemma3", "qwen2")}


def run(path, checkpointing, saving=nullcontext):
    """(log-probs, gradients, scorer) of a forward and a backward."""
    scorer = load_scorer(ModelConfig(path=str(path), gradient_checkpointing=checkpointing), torch.float32, True)
    scorer.saving = saving
    logps = score(scorer, Layout(0).collate([[row] for row in ROWS]))
    logps.sum().backward()
    return logps, [parameter.grad for parameter in scorer.parameters()], scorer


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen2"])
def test_nothing_changes_but_where_activations_wait(models, family, checkpointing):
    host = Recording()
    plain, plain_gradients, _ = run(models[family], checkpointing)
    ours, gradients, scorer = run(models[family], checkpointing, host)
    assert torch.equal(ours, plain)
    assert all(torch.equal(one, other) for one, other in zip(gradients, plain_gradients, strict=True))
    weights = {parameter.untyped_storage().data_ptr() for parameter in scorer.parameters()}
    assert host.moved and not weights & {storage for storage, _ in host.moved}


def test_with_checkpointing_each_layers_input_travels_and_little_else(models):
    host, everything = Recording(), Recording()
    run(models["llama"], True, host)
    run(models["llama"], False, everything)
    hidden = [shape for _, shape in host.moved if len(shape) == 3 and shape[-1] == 32]
    # beside the inputs of the layers: what the last norm saves (its input and that, normalised)
    assert LAYERS <= len(hidden) <= LAYERS + 3
    assert len(everything.moved) > 3 * len(host.moved)


def test_a_forward_without_gradient_moves_nothing(models):
    host = Recording()
    scorer = load_scorer(ModelConfig(path=str(models["llama"])), torch.float32, True)
    scorer.saving = host
    with torch.no_grad():
        score(scorer, Layout(0).collate([[row] for row in ROWS]))
    assert host.moved == []


@pytest.mark.parametrize("trainable", [True, False])
def test_weights_and_their_views_stay(trainable):
    weight = nn.Parameter(torch.randn(64, 64), requires_grad=trainable)
    host = HostActivations(fewest_bytes=0)
    for view in (weight, weight.t(), weight[3:], weight.view(-1), weight.t()[1:].unsqueeze(0)):
        assert not host.moves(view) and host.pack(view) is view
    assert host.moves(weight * 2)


def test_small_tensors_and_whole_numbers_stay():
    host = HostActivations(fewest_bytes=4096)
    for stays in (torch.ones(1023), torch.ones(4096, dtype=torch.int64), torch.ones(9999, dtype=torch.bool)):
        assert host.pack(stays) is stays
    assert host.moves(torch.ones(1024)) and not host.moves(torch.ones(1024, dtype=torch.bfloat16))


def test_what_waits_is_a_copy_with_the_same_numbers_and_layout():
    tensor = torch.randn(8, 16).t()
    host = HostActivations(fewest_bytes=0)
    packed = host.pack(tensor)
    again = host.unpack(packed)
    assert packed.copy.data_ptr() != tensor.data_ptr()
    assert torch.equal(again, tensor) and again.stride() == tensor.stride() and again.device == tensor.device
