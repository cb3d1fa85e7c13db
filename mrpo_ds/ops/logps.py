"""Log-probs of given tokens from hidden states, without ever holding a [T, V] tensor.

Shapes as in mrpo_ds/types.py; C is the number of rows of one chunk: a block of logits is [V, C].

With V = 150 000 and T = 8 000 the logits alone would take 4.8 GB in float32, and as much again for their gradient.
Only T numbers of them are wanted, so each block is made, used and overwritten by the next, and made once more in
backward: one more matmul with the output embedding, a few percent of a step, against the largest tensor of the run.
A block has one place in memory for all chunks: on CPUs a new one would cost a page fault for every 4 KiB. It lies the
other way round than logits usually do, a column per token, because CPUs multiply so by a fifth faster
(docs/performance.md).
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_ROWS = 512
"""The gradient of the output embedding [V, D] is read and written once per chunk: with so many rows that traffic is a
few percent of the matmuls, whatever the vocabulary (docs/performance.md)."""
MEMORY_SHARE = 1 / 24
"""The most of a device's memory for one block. Of all its memory, not of what is free: the number of rows decides the
last bits, and a resumed run must have those of the run that was killed."""


class _Head(NamedTuple):
    """What turns a matmul into the model's logits, and in how many rows at a time."""

    softcap: float | None
    scale: float
    chunk_rows: int


def chunk_rows(vocabulary: int, memory_bytes: float) -> int:
    """How many rows a chunk has, at least 1, for a vocabulary on a device with so much memory."""
    return max(1, min(CHUNK_ROWS, int(MEMORY_SHARE * memory_bytes) // (4 * vocabulary)))


def selected_logps(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    rows: int = CHUNK_ROWS,
) -> Tensor:
    """log_softmax(softcap(scale * (hidden @ weight.T + bias)))[target] of every row.

    The logits are made in hidden's dtype, as the model itself makes them; the log-softmax is float32 at least, because
    a bf16 one errs by nats over a few hundred tokens.

    Args:
        hidden: [T, D] last hidden states, those that predict the targets.
        weight: [V, D] output embedding, of hidden's dtype. A parameter sharded by ZeRO-3 must be gathered while this
            runs, and again while its backward runs; in between its storage may go.
        targets: [T] int64 token ids in [0, V); others are an error of indexing.
        bias: [V] bias of the output embedding, or None.
        softcap: c of c * tanh(logits / c), after the scale (Gemma 2, arXiv:2408.00118 section 2), or None.
        scale: factor of the logits (logit_scale of Cohere, 1 / logits_scaling of Granite).
        rows: C, >= 1. One float32 block is alive; in bf16 half of one more, with a soft cap one more in backward.

    Returns:
        [T] log-probs in nats, float32, or float64 if hidden is. Differentiable once in hidden, weight and bias.
    """
    head = _Head(softcap, scale, rows)
    logps: Tensor = _SelectedLogps.apply(hidden, weight, bias, targets, head)  # type: ignore[no-untyped-call]
    return logps


def sum_by_sequence(logps: Tensor, places: Tensor, table: tuple[int, int]) -> Tensor:
    """Sum per-token log-probs over each sequence.

    The tokens are put at their places in an [N, L] table and summed along L, rather than added with index_add, whose
    order, and so whose last bits, differ from run to run on a GPU.

    Args:
        logps: [T] nats.
        places: [T] int64 places in the flat table, all different.
        table: (N, L).

    Returns:
        [N] nats, float32, or float64 if logps is; 0 for a sequence without a scored token. Differentiable.
    """
    logps = logps.to(torch.promote_types(logps.dtype, torch.float32))
    flat = logps.new_zeros(table[0] * table[1]).index_put((places,), logps)
    return flat.view(table).sum(-1)


class _SelectedLogps(torch.autograd.Function):
    """Forward keeps one normaliser per row; backward makes each block of logits again."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, head: _Head) -> Tensor:
        block = _Block(weight, bias, head, len(targets))
        logps = hidden.new_empty(targets.shape, dtype=block.dtype)  # [T]
        normalisers = torch.empty_like(logps)  # [T] log sum_v exp(logit_v)
        for rows in _chunks(len(targets), head.chunk_rows):
            logits = block.logits(hidden[rows])  # [V, C]
            chosen = logits.gather(0, targets[rows].unsqueeze(0)).squeeze(0)
            largest = logits.amax(0)
            normalisers[rows] = logits.sub_(largest).exp_().sum(0).log_().add_(largest)
            logps[rows] = chosen - normalisers[rows]
        # The weight goes in as it came: ZeRO-3 frees the parameter's storage after forward and fills it again before
        # backward, which a view or a copy of it would not follow.
        ctx.save_for_backward(hidden, weight, bias, targets, normalisers)
        ctx.head = head
        return logps

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, normalisers = ctx.saved_tensors
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        block = _Block(weight, bias, ctx.head, len(targets))
        grad_hidden = torch.empty_like(hidden) if need_hidden else None  # [T, D]
        # The sums over chunks are float32: hundreds of bf16 additions would lose the small terms.
        grad_weight = _Sum(weight, block.dtype) if need_weight else None  # [V, D]
        grad_bias = torch.zeros_like(bias, dtype=block.dtype) if need_bias else None  # [V]
        for rows in _chunks(len(targets), ctx.head.chunk_rows):
            grad_logits = block.gradient(hidden[rows], targets[rows], normalisers[rows], grad[rows])  # [V, C]
            if grad_bias is not None:
                grad_bias += grad_logits.sum(1)
            grad_logits = block.narrow(grad_logits)
            if grad_hidden is not None:
                torch.mm(grad_logits.T, weight, out=grad_hidden[rows])
            if grad_weight is not None:
                grad_weight.add_product(grad_logits, hidden[rows])
        total = None if grad_weight is None else grad_weight.value()
        return grad_hidden, total, _like(grad_bias, bias), None, None


def _chunks(length: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, length, size))


class _Block:
    """A place in memory for a [V, C] block of logits, used by one chunk after the other."""

    def __init__(self, weight: Tensor, bias: Tensor | None, head: _Head, tokens: int) -> None:
        self.dtype = torch.promote_types(weight.dtype, torch.float32)
        self._weight, self._bias, self._head = weight, bias, head
        size = min(tokens, head.chunk_rows) * weight.shape[0]
        self._wide = weight.new_empty(size, dtype=self.dtype)
        self._narrow = self._wide if weight.dtype == self.dtype else weight.new_empty(size)

    def logits(self, hidden: Tensor) -> Tensor:
        """[V, C] the model's logits of [C, D] hidden states, made in hidden's dtype."""
        narrow = self._view(self._narrow, len(hidden))
        if self._bias is None:
            torch.mm(self._weight, hidden.T, out=narrow)
        else:
            torch.addmm(self._bias.unsqueeze(1), self._weight, hidden.T, out=narrow)
        if self._head.scale != 1.0:
            narrow.mul_(self._head.scale)
        if self._head.softcap is not None:
            narrow.div_(self._head.softcap).tanh_().mul_(self._head.softcap)
        return narrow if narrow.dtype == self.dtype else self._view(self._wide, len(hidden)).copy_(narrow)

    def gradient(self, hidden: Tensor, targets: Tensor, normalisers: Tensor, grad: Tensor) -> Tensor:
        """[V, C] gradient of the matmul's output: grad * (onehot(target) - softmax), back through softcap and scale.

        targets, normalisers and grad are [C].
        """
        logits = self.logits(hidden)
        softcap, scale = self._head.softcap, self._head.scale
        slope = None if softcap is None else (logits / softcap).square_().neg_().add_(1.0)  # d tanh = 1 - tanh^2
        target = targets.unsqueeze(0)
        result = logits.sub_(normalisers).exp_().mul_(-grad)
        result.scatter_(0, target, result.gather(0, target) + grad)  # one place per token, so deterministic
        if slope is not None:
            result.mul_(slope)
        return result if scale == 1.0 else result.mul_(scale)

    def narrow(self, values: Tensor) -> Tensor:
        """The [V, C] values of this block in the dtype of the matmuls."""
        return values if self._narrow is self._wide else self._view(self._narrow, values.shape[1]).copy_(values)

    def _view(self, memory: Tensor, columns: int) -> Tensor:
        """[V, columns] of this block's memory: the last chunk may have fewer than the others."""
        return memory[: self._weight.shape[0] * columns].view(-1, columns)


class _Sum:
    """A sum of matrix products, wider than they are."""

    def __init__(self, like: Tensor, dtype: torch.dtype) -> None:
        self._total = torch.zeros_like(like, dtype=dtype)
        self._product = None if like.dtype == dtype else torch.empty_like(like)

    def add_product(self, left: Tensor, right: Tensor) -> None:
        if self._product is None:
            self._total.addmm_(left, right)
        else:
            self._total += torch.mm(left, right, out=self._product)

    def value(self) -> Tensor:
        """The sum, in the dtype of the products."""
        return self._total if self._product is None else self._product.copy_(self._total)


def _like(grad: Tensor | None, tensor: Tensor | None) -> Tensor | None:
    return grad if grad is None or tensor is None else grad.to(tensor.dtype)
