"""Measure this machine at a model's own shapes: matmuls, attention, what lies between them, memory, links, disk."""

import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor

from mrpo_ds.config.schema import ModelConfig
from mrpo_ds.console import log
from mrpo_ds.errors import ConfigError
from mrpo_ds.models import AnyModelConfig, SequenceScorer, body_of
from mrpo_ds.plan.machine import Machine, Tflops
from mrpo_ds.plan.trace import ForwardShape, meta_model, trace_forward

SHAPES = 8
"""Matmuls that are timed: those with most of the operations."""
TOKENS = 512
"""Of the forward whose matmuls are timed: about a micro-batch, small enough for a CPU."""
LARGE_BYTES = 256 * 2**20
"""Of a tensor that no cache holds."""
PROBE_SECONDS = 120.0


def measure_machine(model_config: Any, model: AnyModelConfig, seconds: float, ds_config: str) -> Machine:
    """This machine as a plan knows it, in about so many seconds plus the start of two processes.

    Args:
        model_config: the policy's transformers configuration: its shapes are what is timed.
        model: the policy's settings.
        seconds: for what is timed in this process.
        ds_config: the run's sharding.
    """
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    devices = torch.cuda.device_count() if gpu else _cores() // torch.get_num_threads()
    share = seconds / 8
    log(f"measuring {_name(device)}: matmuls and attention at the shapes of {model.path}")
    rates = {name: matmul_flops(model_config, model, dtype, device, share) for name, dtype in _DTYPES.items()}
    layer = _Layer(model_config, model, torch.float32 if not gpu else torch.bfloat16, device)
    rate = rates["bf16" if gpu else "fp32"]
    attention = layer.attention_flops(share)
    log("measuring memory, disk and links")
    probe = run_probe(max(1, min(2, devices)), ds_config, model.path)
    if gpu:
        memory = torch.cuda.get_device_properties(device).total_memory / 2**30
    else:
        memory = psutil.virtual_memory().total / 2**30
    large = memory_gbs(device, share)
    link = probe["link_gbs"] or large
    return Machine(
        name=_name(device),
        kind="gpu" if gpu else "cpu",
        devices=max(1, devices),
        devices_per_node=max(1, devices),
        memory_gib=round(memory, 2),
        baseline_gib=round(probe["baseline_gib"], 3),
        tflops=Tflops(bf16=round(rates["bf16"] / 1e12, 5), fp32=round(rates["fp32"] / 1e12, 5)),
        attention_efficiency=round(attention / rate, 3),
        memory_gbs=round(large, 2),
        elementwise_gbs=round(layer.elementwise_gbs(rate, attention, share), 2),
        launch_us=round(probe["launch_us"], 2),
        link_gbs=round(link, 3),
        internode_gbs=round(link, 3),
        disk_gbs=round(disk_gbs(), 2),
    )


_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def save_machine(machine: Machine, path: str) -> None:
    """Write a machine file. Raises ConfigError when it cannot be written."""
    lines = ["# Measured by mrpo-ds plan --measure."]
    for name, value in asdict(machine).items():
        lines.append(f"{name}: {json.dumps(value)}")
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
    except OSError as error:
        raise ConfigError(f"--save {path!r} cannot be written: {error.strerror}; choose another place.") from error


def matmul_flops(
    model_config: Any, model: AnyModelConfig, dtype: torch.dtype, device: torch.device, seconds: float
) -> float:
    """Operations per second of the matmuls of a forward and backward, each weighted as often as it occurs."""
    shapes = trace_forward(meta_model(model_config, dtype, model), ForwardShape(1, TOKENS, TOKENS // 2), True).shapes
    chosen = sorted(shapes.items(), key=lambda item: -item[1])[:SHAPES]
    total = taken = 0.0
    for (rows, inner, columns), flops in chosen:
        left = torch.randn(rows, inner, device=device).to(dtype)
        right = torch.randn(columns, inner, device=device).to(dtype)
        one = _median(partial(torch.matmul, left, right.T), device, seconds / len(chosen))
        total += flops
        taken += flops / (2 * rows * inner * columns) * one
    return total / taken


def memory_gbs(device: torch.device, seconds: float) -> float:
    """GB/s of a product of large tensors into a new one, read and written."""
    one = torch.ones(LARGE_BYTES // 4, device=device)
    return 3 * LARGE_BYTES / _median(lambda: one * one, device, seconds) / 1e9


def disk_gbs() -> float:
    """GB/s of writing a file of 64 MiB, to the disk, and reading it."""
    block = os.urandom(64 * 2**20)
    with tempfile.NamedTemporaryFile() as file:
        started = time.perf_counter()
        file.write(block)
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        file.read()
        return 2 * len(block) / (time.perf_counter() - started) / 1e9


def run_probe(ranks: int, ds_config: str, tokenizer: str) -> dict[str, Any]:
    """What mrpo_ds.plan.probe says on so many ranks. Raises ConfigError when it cannot run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-W", "ignore", "-m", "mrpo_ds.plan.probe", ds_config, tokenizer]
    processes = [
        subprocess.Popen(
            command,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        said, complaint = processes[0].communicate(timeout=PROBE_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"--measure: a process of the run did not answer in {PROBE_SECONDS:g} s") from error
    finally:
        for process in processes:
            process.kill()
            process.wait()
    lines = [line for line in said.splitlines() if line.startswith("{")]
    if not lines:
        last = (complaint.strip().splitlines() or ["nothing"])[-1]
        raise ConfigError(f"--measure: a process of the run failed: {last}")
    found: dict[str, Any] = json.loads(lines[-1])
    return found


class _Layer:
    """The model with a single layer and random weights: what a forward and backward really take."""

    def __init__(self, model_config: Any, model: AnyModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        from transformers import AutoModelForCausalLM

        config = deepcopy(model_config)
        text = config.get_text_config()
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[:1]
        text.num_hidden_layers = 1
        with device:
            form = "eager" if model.attention == "eager" else "sdpa"
            settings = {"attn_implementation": form, "trust_remote_code": model.trust_remote_code}
            empty = AutoModelForCausalLM.from_config(config, dtype=dtype, **settings)
        self._body = body_of(SequenceScorer(empty).train().model)
        self._config, self._model, self._dtype, self._device = config, model, dtype, device
        self._width = text.hidden_size
        self._heads = text.num_attention_heads
        self._head_width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads

    def attention_flops(self, seconds: float) -> float:
        """Operations per second of masked attention, forward and backward."""
        shape = (1, self._heads, TOKENS, self._head_width)
        query, key, value = (torch.randn(shape, device=self._device).to(self._dtype) for _ in range(3))
        mask = torch.ones(1, 1, TOKENS, TOKENS, dtype=torch.bool, device=self._device).tril()

        for one in (query, key, value):
            one.requires_grad_()

        def run() -> None:
            torch.autograd.backward([F.scaled_dot_product_attention(query, key, value, attn_mask=mask).sum()])

        flops: int = 14 * self._heads * TOKENS**2 * self._head_width
        return flops / _median(run, self._device, seconds)

    def elementwise_gbs(self, matmul: float, attention: float, seconds: float) -> float:
        """GB/s of all that is neither matmul nor attention: what of a layer's time those two leave."""
        ids = torch.ones(1, TOKENS, dtype=torch.int64, device=self._device)
        mask = torch.ones(1, 1, TOKENS, TOKENS, dtype=torch.bool, device=self._device).tril()
        kinds = getattr(self._config.get_text_config(), "layer_types", None)
        given: Any = {kind: mask for kind in set(kinds)} if kinds else mask

        def run() -> Tensor:
            hidden: Tensor = self._body(input_ids=ids, attention_mask=given, use_cache=False)[0]
            torch.autograd.backward([hidden.sum()])
            return hidden

        took = _median(run, self._device, seconds)
        plain = meta_model(self._config, self._dtype, _without_checkpointing(self._model))
        trace = trace_forward(plain, ForwardShape(1, TOKENS, 1), train=True)
        left = took - trace.matmul_flops / matmul - trace.attention_flops / attention
        # Never faster than a matmul-free tenth of the time would say: the two rates have their own spread.
        return trace.moved_bytes / max(left, took / 10) / 1e9


def _without_checkpointing(model: AnyModelConfig) -> AnyModelConfig:
    return replace(model, gradient_checkpointing=False) if isinstance(model, ModelConfig) else model


def _median(run: Callable[[], Any], device: torch.device, seconds: float) -> float:
    """Median seconds of a call, after one that warms up."""
    times: list[float] = []
    run()
    while not times or (sum(times) < seconds and len(times) < 100):
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return sorted(times)[len(times) // 2]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}, {_cores()} cores, {torch.get_num_threads()} a process"
