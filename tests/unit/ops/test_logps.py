"""Selected log-probs against the plain log_softmax, and the memory they are for."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mrpo_ds.ops.logps import selected_logps, sum_by_sequence

SHAPES = [(1, 2, 1), (7, 5, 3), (33, 97, 16)]  # T, V, D
CHUNK_ROWS = [1, 5, 512]


def inputs(shape, dtype=torch.float64, with_bias=True):
    """hidden [T, D], weight [V, D], bias [V] or None, targets [T] and a gradient [T] for the log-probs."""
    tokens, vocabulary, width = shape
    generator = torch.Generator().manual_seed(sum(shape))

    def leaf(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    grad = torch.randn(tokens, generator=generator, dtype=torch.float64)
    return leaf(tokens, width), leaf(vocabulary, width), leaf(vocabulary) if with_bias else None, targets, grad


def plain_logps(hidden, weight, targets, bias, softcap, scale):
    """The same numbers by way of the whole [T, V]."""
    logits = F.linear(hidden, weight, bias) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return wide.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)


@pytest.mark.parametrize("with_bias, softcap, scale", list(product([False, True], [None, 2.5], [1.0, 0.0625, 3.0])))
@pytest.mark.parametrize("rows", CHUNK_ROWS)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_plain_log_softmax_in_value_and_gradients(shape, rows, with_bias, softcap, scale):
    hidden, weight, bias, targets, grad = inputs(shape, with_bias=with_bias)
    leaves = [leaf for leaf in (hidden, weight, bias) if leaf is not None]
    ours = selected_logps(hidden, weight, targets, bias, softcap, scale, rows)
    plain = plain_logps(hidden, weight, targets, bias, softcap, scale)
    assert ours.dtype == torch.float64
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    wanted = torch.autograd.grad(plain, leaves, grad)
    torch.testing.assert_close(torch.autograd.grad(ours, leaves, grad), wanted, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("softcap, scale", [(None, 1.0), (1.5, 0.5)])
def test_gradcheck(softcap, scale):
    hidden, weight, bias, targets, _ = inputs((5, 4, 3))

    def logps(hidden, weight, bias):
        return selected_logps(hidden, weight, targets, bias, softcap, scale, rows=2)

    assert torch.autograd.gradcheck(logps, (hidden, weight, bias))


def test_scale_comes_before_softcap():
    hidden, weight, targets = torch.ones(1, 1), torch.tensor([[1.0], [0.0]]), torch.tensor([0])
    ours = selected_logps(hidden, weight, targets, softcap=2.0, scale=3.0)
    logit = 2.0 * torch.tanh(torch.tensor([1.5]))
    torch.testing.assert_close(ours, F.logsigmoid(logit))  # not logsigmoid(3 * 2 * tanh(0.5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_logits_are_the_models_own_and_the_softmax_is_float32(dtype):
    hidden, weight, bias, targets, grad = inputs((64, 500, 32), dtype)
    ours = selected_logps(hidden, weight, targets, bias, softcap=30.0, scale=0.25, rows=9)
    plain = plain_logps(hidden, weight, targets, bias, 30.0, 0.25)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, plain, rtol=0, atol=2e-6 if dtype == torch.float16 else 2e-5)
    for tensor, wanted in zip(
        torch.autograd.grad(ours, (hidden, weight, bias), grad.float()),
        torch.autograd.grad(plain, (hidden, weight, bias), grad.float()),
        strict=True,
    ):
        assert tensor.dtype == dtype
        assert (tensor - wanted).float().norm() <= 0.02 * wanted.float().norm()


def test_bf16_weight_gradient_is_summed_in_float32():
    """1 000 equal terms: a bf16 sum stops growing at 256 of them."""
    hidden, weight, _, _, _ = inputs((1, 8, 4), torch.bfloat16)
    many = hidden.detach().expand(1000, 4).clone()
    targets = torch.zeros(1000, dtype=torch.int64)
    (one,) = torch.autograd.grad(selected_logps(hidden, weight, targets[:1]).sum(), weight)
    (thousand,) = torch.autograd.grad(selected_logps(many, weight, targets, rows=1).sum(), weight)
    torch.testing.assert_close(thousand.float(), 1000 * one.float(), rtol=0.01, atol=0)


class LargestOutput(TorchDispatchMode):
    """Records how many elements the largest tensor made by any operator has."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


def test_no_tensor_of_all_tokens_and_the_whole_vocabulary_is_ever_made():
    tokens, vocabulary, width, rows = 512, 1000, 8, 16
    hidden, weight, bias, targets, grad = inputs((tokens, vocabulary, width), torch.float32)
    with LargestOutput() as largest:
        selected_logps(hidden, weight, targets, bias, softcap=30.0, rows=rows).backward(grad)
    assert largest.numel == rows * vocabulary  # the weight is half of that, all logits would be 32 times it


def test_a_graph_keeps_the_inputs_and_one_number_per_token():
    hidden, weight, bias, targets, _ = inputs((50, 40, 4))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        selected_logps(hidden, weight, targets, bias)
    pointers = {tensor.data_ptr() for tensor in kept}
    assert {t.data_ptr() for t in (hidden, weight, bias, targets)} <= pointers  # as they came, not copies
    assert sum(t.numel() for t in kept) == hidden.numel() + weight.numel() + bias.numel() + 2 * 50


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_nothing_is_kept_without_a_gradient(mode):
    hidden, weight, bias, targets, _ = inputs((50, 40, 4))
    kept = []
    with mode(), torch.autograd.graph.saved_tensors_hooks(kept.append, lambda tensor: tensor):
        logps = selected_logps(hidden, weight, targets, bias)
    assert kept == []
    assert logps.grad_fn is None and not logps.requires_grad


def test_a_parameter_may_lose_its_storage_between_forward_and_backward():
    """What ZeRO-3 does to a sharded parameter."""
    hidden, weight, _, targets, grad = inputs((6, 5, 3))
    weight = torch.nn.Parameter(weight.detach())
    gathered = weight.data
    wanted = torch.autograd.grad(plain_logps(hidden, weight, targets, None, None, 1.0), (hidden, weight), grad)
    logps = selected_logps(hidden, weight, targets)
    weight.data = torch.empty(0, dtype=weight.dtype)
    weight.data = gathered.clone()
    logps.backward(grad)
    torch.testing.assert_close((hidden.grad, weight.grad), wanted)


def test_a_frozen_weight_gets_no_gradient():
    hidden, weight, bias, targets, grad = inputs((6, 5, 3))
    weight, bias = weight.detach(), bias.detach()
    selected_logps(hidden, weight, targets, bias).backward(grad)
    assert weight.grad is None and bias.grad is None and hidden.grad is not None


def test_no_tokens_give_an_empty_result_that_is_still_in_the_graph():
    hidden, weight, bias, targets, grad = inputs((3, 5, 2))
    logps = selected_logps(hidden[:0], weight, targets[:0], bias)
    assert logps.shape == (0,)
    logps.sum().backward()
    for leaf in (hidden, weight, bias):
        torch.testing.assert_close(leaf.grad, torch.zeros_like(leaf))


@pytest.mark.parametrize("token", [-1, 5])
def test_a_target_outside_the_vocabulary_is_an_error(token):
    hidden, weight, _, _, _ = inputs((1, 5, 2))
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        selected_logps(hidden, weight, torch.tensor([token]))


PLACES = torch.tensor([0, 1, 6, 7, 8])
TABLE = (3, 3)
"""Three sequences with two, no and three scored tokens."""


@pytest.mark.parametrize("given, returned", [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_sum_by_sequence_adds_each_rows_tokens(given, returned):
    logps = torch.tensor([-1.0, -2.0, -4.0, -8.0, -16.0], dtype=given)
    sums = sum_by_sequence(logps, PLACES, TABLE)
    assert sums.dtype == returned
    assert sums.tolist() == [-3.0, 0.0, -28.0]


def test_sum_by_sequence_takes_the_tokens_in_any_order():
    order = torch.tensor([3, 0, 4, 2, 1])
    logps = torch.tensor([-1.0, -2.0, -4.0, -8.0, -16.0])
    assert sum_by_sequence(logps[order], PLACES[order], TABLE).tolist() == [-3.0, 0.0, -28.0]


def test_sum_by_sequence_gradcheck():
    logps = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda logps: sum_by_sequence(logps, PLACES, TABLE), logps)


def test_sum_by_sequence_of_nothing_stays_in_the_graph():
    logps = torch.zeros(0, requires_grad=True)
    sums = sum_by_sequence(logps, torch.zeros(0, dtype=torch.int64), (2, 3))
    assert sums.tolist() == [0.0, 0.0]
    sums.sum().backward()
    assert logps.grad.shape == (0,)
