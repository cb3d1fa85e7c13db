"""What one forward (and backward) does, found by running the real model's code on the meta device: no weights, no data.

Every operation is seen as it would run: matmuls and attention by their operations, everything else by the bytes that it
reads and writes, and every storage when it is made and when it goes. So nothing here knows a family of models.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from mrpo_ds.config.schema import ModelConfig
from mrpo_ds.errors import ConfigError
from mrpo_ds.models import AnyModelConfig, SequenceScorer
from mrpo_ds.ops.attention import MaskPlan

ATTENTION = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention_for_cpu_backward",
)


TRACED = "mrpo_ds_traced"
"""The name under which transformers knows our stand-in for fused attention."""


@dataclass(frozen=True)
class ForwardShape:
    """One forward of one rank."""

    rows: int
    """M."""
    width: int
    """S: tokens of a row, padding included."""
    scored: int
    """T: tokens that reach the head."""

    @property
    def places(self) -> int:
        """M * S."""
        return self.rows * self.width


@dataclass
class Trace:
    """Everything that was seen, in order."""

    matmul_flops: int = 0
    attention_flops: int = 0
    """Of whole rows, as a kernel with a mask computes them."""
    moved_bytes: int = 0
    """Read and written by all that is neither of the two, and by the two's own operands not at all."""
    kernels: int = 0
    """Operations that compute, views left out."""
    events: list[tuple[int, int]] = field(default_factory=list)
    """(storage, bytes) when a storage is made, (storage, 0) when it goes."""
    backward_from: int = 0
    """Place in events where backward begins."""
    shapes: dict[tuple[int, int, int], int] = field(default_factory=dict)
    """Matmuls by (rows, inner, columns): their operations."""


@dataclass(frozen=True)
class MetaModel:
    """A causal language model on the meta device, as the run would load it."""

    scorer: SequenceScorer
    dtype: torch.dtype

    @property
    def sizes(self) -> list[int]:
        """Elements of every parameter, tied ones once."""
        return [parameter.numel() for parameter in self.scorer.parameters()]


def meta_model(model_config: Any, dtype: torch.dtype, model: AnyModelConfig) -> MetaModel:
    """The model of a transformers configuration without its weights, set up as the run sets it up.

    Raises ConfigError when the model has no such attention.
    """
    from transformers import AttentionInterface, AutoModelForCausalLM

    AttentionInterface.register(TRACED, _fused_attention)
    form = "eager" if model.attention == "eager" else "sdpa"
    settings = {"dtype": dtype, "attn_implementation": form, "trust_remote_code": model.trust_remote_code}
    try:
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(model_config, **settings)
    except ValueError as error:
        first = str(error).splitlines()[0]
        raise ConfigError(f"attention={model.attention} does not suit {model.path!r}: {first}") from error
    scorer = SequenceScorer(empty)
    if form == "sdpa":
        empty.set_attn_implementation(TRACED)
    if isinstance(model, ModelConfig) and model.gradient_checkpointing:
        enable = getattr(empty, "activation_checkpointing_enable", empty.gradient_checkpointing_enable)
        enable({"use_reentrant": False, "preserve_rng_state": False})  # the meta device has no generator
    return MetaModel(scorer, dtype)


def trace_forward(meta: MetaModel, shape: ForwardShape, train: bool) -> Trace:
    """One forward, with its backward if train, from an empty memory. Gradients go as soon as they are whole."""
    meta.scorer.train(train)
    meta.scorer.requires_grad_(train)
    hooks = []
    if train:
        hooks = [_on_gradient(one, _drop_gradient) for one in meta.scorer.parameters()]
    recorder = _Recorder([*meta.scorer.parameters(), *meta.scorer.buffers()])
    try:
        with recorder, torch.set_grad_enabled(train):
            total = _log_probs(meta, shape).sum()
            if train:
                recorder.trace.backward_from = len(recorder.trace.events)
                torch.autograd.backward([total])
            del total
    finally:
        for hook in hooks:
            hook.remove()
    return recorder.trace


def _log_probs(meta: MetaModel, shape: ForwardShape) -> Tensor:
    """[T] log-probs of one forward."""
    with torch.device("meta"):
        ids = torch.empty(shape.rows, shape.width, dtype=torch.int64)
        segments: Tensor | None = torch.empty(shape.rows, 2, shape.width, dtype=torch.int32)
        chosen = torch.empty(shape.scored, dtype=torch.int64)
        mask = None
        if not isinstance(meta.scorer.mask_plan, MaskPlan):
            mask, segments = torch.empty(shape.rows, 1, shape.width, shape.width, dtype=torch.bool), None
    logps: Tensor = meta.scorer(ids, ids, mask, segments, chosen, chosen)
    return logps


def _on_gradient(parameter: Any, call: Callable[[Tensor], None]) -> Any:
    return parameter.register_post_accumulate_grad_hook(call)


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def _fused_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention by a kernel that never holds the scores, as CPUs and GPUs run it; on meta, sdpa itself would hold them.

    query [M, heads, S, width], key and value [M, heads of keys, S, width] -> [M, S, heads, width].
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    # As mrpo_ds/ops/segments.py does, but every row as one piece: more pairs of tokens than there are, and no mask.
    query, key, value = (torch.split(one, [one.shape[2]], 2)[0] for one in (query, key, value))
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    output = torch.cat([torch.cat([kernel(query, key, value, is_causal=True, scale=scaling)[0]], 2)])
    return output.transpose(1, 2).contiguous(), None


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = Trace()
        self._known = {one.untyped_storage()._cdata for one in known}
        self._alive: dict[int, int] = {}
        """Storage -> its number."""
        self._made = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        inputs, outputs = _tensors((args, kwargs)), _tensors(result)
        made = [one for one in outputs if self._is_new(one)]
        mutates = func._schema.is_mutable
        if made or mutates:
            self._count(func, args, kwargs, inputs, outputs, result)
        return result

    def _count(self, func: Any, args: Any, kwargs: Any, inputs: list[Tensor], outputs: list[Tensor], out: Any) -> None:
        trace = self.trace
        trace.kernels += 1
        packet = torch.ops.aten.addmm if func._overloadpacket is torch.ops.aten.addmm_ else func._overloadpacket
        formula = flop_registry.get(packet)
        if func._overloadpacket.__name__ in ATTENTION:
            trace.attention_flops += _attention_flops(args)
        elif formula is not None:
            flops = int(formula(*args, **kwargs, out_val=out))
            trace.matmul_flops += flops
            self._remember(inputs, outputs, flops)
        elif "empty" not in func._overloadpacket.__name__:
            trace.moved_bytes += sum(one.numel() * one.element_size() for one in (*inputs, *outputs))

    def _remember(self, inputs: list[Tensor], outputs: list[Tensor], flops: int) -> None:
        """A matmul's shape, from its operations."""
        rows, columns = outputs[0].shape[-2:]
        key = (int(rows), flops // (2 * outputs[0].numel()), int(columns))
        self.trace.shapes[key] = self.trace.shapes.get(key, 0) + flops

    def _is_new(self, tensor: Tensor) -> bool:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known or key in self._alive or tensor.device.type != "meta" or not storage.nbytes():
            return False
        number = self._alive[key] = self._made
        self._made += 1
        self.trace.events.append((number, storage.nbytes()))
        weakref.finalize(storage, self._gone, key)
        return True

    def _gone(self, key: int) -> None:
        number = self._alive.pop(key, None)
        if number is not None:
            self.trace.events.append((number, 0))


def _attention_flops(args: Any) -> int:
    """Two matmuls over all pairs of a row forward; four more backward and the scores once again."""
    backward = args[1].shape != args[0].shape or len(args) > 5  # (grad, query, key, value, out, ...)
    query, key = (args[1], args[2]) if backward else (args[0], args[1])
    pairs = query.shape[0] * query.shape[1] * query.shape[2] * key.shape[2]
    return int((10 if backward else 4) * pairs * query.shape[-1])


def _tensors(tree: Any) -> list[Tensor]:
    return [one for one in tree_leaves(tree) if isinstance(one, Tensor)]
