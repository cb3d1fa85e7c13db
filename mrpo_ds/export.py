"""Write the policy as a plain Hugging Face directory: safetensors that transformers, vLLM and lm-eval load.

Parameters are gathered one after the other, and only the writing rank keeps a copy, of one shard at a time.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mrpo_ds.errors import CheckpointError, ConfigError
from mrpo_ds.manifest import write_through

SHARD_BYTES = 4 * 2**30
Shapes = dict[str, tuple[int, ...]]
Gather = Callable[[list[nn.Parameter]], Any]
"""Context manager under which the parameters are whole on this rank; entered by every rank."""


def exported_shapes(model: nn.Module, shape_of: Callable[[nn.Parameter], tuple[int, ...]]) -> Shapes:
    """Name and full shape of every tensor that export will write, in order; tied weights stand once."""
    shapes = {name: shape_of(parameter) for name, parameter in model.named_parameters()}
    return shapes | {name: tuple(buffer.shape) for name, buffer in _saved_buffers(model)}


def check_names(path: str, shapes: Shapes, model: nn.Module) -> None:
    """Compare what export will write with the input checkpoint's own names and shapes, before training.

    Raises ConfigError with the first differences: such a model would not load where the input does.
    """
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    ours = {name.removeprefix(prefix): shape for name, shape in shapes.items()}
    theirs = {name.removeprefix(prefix): shape for name, shape in checkpoint_shapes(path).items()}
    known = {name.removeprefix(prefix) for name in model.state_dict()}
    wrong = [
        f"{name}: {theirs.get(name, 'absent')} there, {shape} here"
        for name, shape in ours.items()
        if theirs.get(name) != shape
    ]
    wrong += [
        f"{name}: not exported"
        for name in theirs
        if name in known and name not in ours and not _is_tied(model, prefix, name)
    ]
    if wrong:
        raise ConfigError(
            f"the export would not match the checkpoint at {path!r}: {'; '.join(wrong[:3])}"
            + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
            + ". Save the model once with this transformers version (save_pretrained) and start from that. If the "
            "names still differ, transformers renames or fuses weights of this architecture on loading, and only "
            "references can be of it."
        )


def checkpoint_shapes(path: str) -> Shapes:
    """Names and shapes in a model's files (local directory or Hub id): safetensors, or pickles where there are none."""
    from transformers.utils import cached_file

    def find(name: str) -> str | None:
        found: str | None = cached_file(path, name, _raise_exceptions_for_missing_entries=False)
        return found

    for whole in ("model.safetensors", "pytorch_model.bin"):
        index = find(f"{whole}.index.json")
        names = [whole] if index is None else json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()
        files = [find(name) for name in sorted(set(names))]
        if any(files):
            break
    shapes: Shapes = {}
    for file in files:
        shapes |= _file_shapes(Path(str(file)))
    return shapes


def export_model(model: Any, tokenizer: Any, shapes: Shapes, directory: Path, gather: Gather, is_main: bool) -> None:
    """Write config, tokenizer and weights to directory, whole or not at all. Every policy rank must call it.

    Raises CheckpointError when it cannot be written, or when what was written is not what was meant.
    """
    try:
        _export(model, tokenizer, shapes, directory, gather, is_main)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"the model cannot be written to {directory}: {error}. Mend that and run again with --resume auto: it goes "
            "on from the last checkpoint"
        ) from error


def _export(model: Any, tokenizer: Any, shapes: Shapes, directory: Path, gather: Gather, is_main: bool) -> None:
    partial = directory.with_name(f".{directory.name}.partial")
    if is_main:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    plan = plan_shards(shapes, SHARD_BYTES, next(model.parameters()).element_size())
    tensors = dict(model.named_parameters()) | dict(_saved_buffers(model))
    weight_map: dict[str, str] = {}
    for number, names in enumerate(plan, start=1):
        file = "model.safetensors" if len(plan) == 1 else f"model-{number:05d}-of-{len(plan):05d}.safetensors"
        shard = _gather_shard({name: tensors[name] for name in names}, gather, is_main)
        weight_map |= dict.fromkeys(names, file)
        if is_main:
            save_file(shard, partial / file, metadata={"format": "pt"})
    if is_main:
        if len(plan) > 1:
            index = {"metadata": {}, "weight_map": weight_map}
            (partial / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
        model.config.save_pretrained(partial)
        if getattr(model, "generation_config", None) is not None:
            model.generation_config.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        _check_written(partial, shapes)
        for path in (*partial.iterdir(), partial):
            write_through(path)  # under its final name it is whole, also after a power cut
        shutil.rmtree(directory, ignore_errors=True)
        os.replace(partial, directory)
        write_through(directory.parent)


def plan_shards(shapes: Shapes, limit_bytes: int, element_bytes: int) -> list[list[str]]:
    """Names per file, in order, each file at most limit_bytes unless a single tensor is larger."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, shape in shapes.items():
        size = element_bytes * int(torch.Size(shape).numel())
        if shards[-1] and filled + size > limit_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _gather_shard(tensors: dict[str, Tensor], gather: Gather, is_main: bool) -> dict[str, Tensor]:
    shard = {}
    for name, tensor in tensors.items():
        with ExitStack() as stack:
            if isinstance(tensor, nn.Parameter):
                stack.enter_context(gather([tensor]))
            if is_main:
                shard[name] = tensor.detach().to("cpu", copy=True).contiguous()
    return shard


def _check_written(directory: Path, shapes: Shapes) -> None:
    written: Shapes = {}
    for file in sorted(directory.glob("*.safetensors")):
        written |= _file_shapes(file)
    if written != shapes:
        different = sorted(name for name in written.keys() | shapes.keys() if written.get(name) != shapes.get(name))
        raise CheckpointError(f"the export in {directory} is not whole: {', '.join(different[:3])} differ.")


def _file_shapes(file: Path) -> Shapes:
    if file.suffix == ".bin":
        tensors = torch.load(file, map_location="meta", weights_only=True)
        return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    with safe_open(file, framework="pt") as opened:
        return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118


def _saved_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Buffers that belong to a checkpoint (non-persistent ones do not)."""
    for module_name, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield (f"{module_name}.{name}" if module_name else name), buffer


def _is_tied(model: nn.Module, prefix: str, name: str) -> bool:
    """Whether a state-dict name is an alias of a parameter that is exported under another name."""
    everything = dict(model.named_parameters(remove_duplicate=False))
    exported = {id(parameter) for _, parameter in model.named_parameters()}
    tensor = everything.get(name, everything.get(prefix + name))
    return tensor is not None and id(tensor) in exported
