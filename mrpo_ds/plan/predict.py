"""A run's steps and memory on a machine: material and shapes in, seconds and bytes per role out."""

import math
from dataclasses import dataclass, field, replace
from functools import cache
from statistics import mean
from typing import Any

import torch

from mrpo_ds.config.ds_config import read_ds_config
from mrpo_ds.config.schema import Config, ReferenceConfig
from mrpo_ds.data.encodings import shape_of
from mrpo_ds.data.order import steps_per_epoch, total_steps
from mrpo_ds.material import POLICY, Material
from mrpo_ds.models import AnyModelConfig, resolve_dtype
from mrpo_ds.plan.advise import Placement, Seconds, Split, best_split
from mrpo_ds.plan.forwards import PolicyStep, policy_steps, reference_steps, sampled
from mrpo_ds.plan.machine import Machine
from mrpo_ds.plan.memory import (
    Part,
    RoleMemory,
    Sharding,
    policy_memory,
    reference_memory,
    reference_weights,
)
from mrpo_ds.plan.seconds import (
    CostModel,
    bridge_seconds,
    collective_seconds,
    compute_seconds,
    cost_model,
    optimizer_seconds,
    reduce_seconds,
)
from mrpo_ds.plan.trace import MetaModel, meta_model

STORED_BYTES = 64
"""Of a response in the store: digests, its log-prob and its length."""
CHECKPOINT_BYTES = 12
"""Per parameter of a rank's share in a checkpoint: a weight and AdamW's two moments in float32."""


@dataclass
class Prediction:
    """Predicts one configuration; remembers what it has worked out, since the best split asks often."""

    material: Material
    machine: Machine
    model_configs: dict[str, Any]
    """transformers' configurations by name, 'policy' included."""
    _metas: dict[str, MetaModel] = field(default_factory=dict)
    _costs: dict[tuple[str, bool], CostModel] = field(default_factory=dict)
    _steps: dict[int, list[PolicyStep]] = field(default_factory=dict)

    @property
    def config(self) -> Config:
        """The run's."""
        return self.material.config

    def policy_parts(self, ranks: int) -> dict[str, float]:
        """Seconds of a step of the policy alone, by part."""
        meta = self.meta(POLICY)
        trained = mean(self._compute(POLICY, step.forwards, True) for step in self.steps(ranks))
        scored = mean(self._compute(POLICY, step.scored, False) for step in self.steps(ranks))
        forwards = mean(len(step.forwards) for step in self.steps(ranks))
        reuse = Sharding.read(read_ds_config(self.config.deepspeed)).reuse
        return {
            "policy compute": trained + scored,
            "collectives": collective_seconds(meta, round(forwards), ranks, reuse, self.machine),
            "gradients": reduce_seconds(meta, round(forwards), self.machine),
            "optimizer": optimizer_seconds(meta, ranks, self.machine),
        }

    def policy_seconds(self, ranks: int) -> float:
        """Seconds of a step of the policy alone."""
        return sum(self.policy_parts(ranks).values())

    def reference_seconds(self, reference: ReferenceConfig, ranks: int) -> float:
        """Seconds in which a reference on so many ranks answers a step."""
        steps = reference_steps(self.material, reference, ranks)
        return mean(self._compute(reference.name, forwards, False) for forwards in steps)

    def bridge(self) -> float:
        """Seconds of a step's answers on their way to the policy."""
        shapes = [shape_of(batch, self.material.speakers[POLICY].encodings) for batch in sampled(self.material)]
        prompts, responses = shapes[0]
        return bridge_seconds(prompts, responses, len(self.config.references), self.machine)

    def step_parts(self, placement: str, ranks: int, references: dict[str, int]) -> dict[str, float]:
        """Seconds of a step under a placement, by part; served: with what waits for the slowest reference."""
        parts = self.policy_parts(ranks)
        if placement == "colocated":
            for one in self.config.references:
                parts[f"ref/{one.name} compute"] = self.reference_seconds(one, ranks)
        if placement == "served":
            own = sum(parts.values())
            others = {one.name: self.reference_seconds(one, references[one.name]) for one in self.config.references}
            # More ranks than devices share these, so that all of their work must fit into the step.
            shared = ranks * own + sum(references[name] * seconds for name, seconds in others.items())
            crowded = ranks + sum(references.values()) > self.machine.devices
            slowest = max([*others.values(), shared / self.machine.devices if crowded else 0.0])
            parts["bridge"] = self.bridge()
            parts["wait for references"] = max(0.0, slowest - own)
        if placement == "stored":
            rows = len(self.config.references) * self.config.train.batch_size * 2
            parts["store"] = rows * STORED_BYTES / (1e9 * self.machine.disk_gbs)
        return parts

    def split(self, devices: int) -> Split | None:
        """The best served ranks on so many devices, of those whose memory suffices."""

        def policy(ranks: int) -> float:
            return self.policy_seconds(ranks) if self._has_room(self.policy_memory("served", ranks)) else math.inf

        def reference(one: ReferenceConfig) -> Seconds:
            @cache
            def seconds(ranks: int) -> float:
                fits = self._has_room(self.served_memory(one, ranks))
                return self.reference_seconds(one, ranks) if fits else math.inf

            return seconds

        return best_split(
            devices, self.config.train.batch_size, policy, [reference(one) for one in self.config.references]
        )

    def placements(self, devices: int, split: Split | None) -> list[Placement]:
        """The placements on so many devices, over the whole run: those whose memory suffices. split: the served one."""
        train, rows = self.config.train, len(self.material.splits["train"])
        steps = total_steps(rows, train.batch_size, train.epochs, train.max_steps)
        whole = max(ranks for ranks in range(1, devices + 1) if train.batch_size % ranks == 0)
        every = (rows + len(self.material.splits["eval"])) / train.batch_size
        found = []
        if split is not None:
            names = [reference.name for reference in self.config.references]
            parts = self.step_parts("served", split.policy, dict(zip(names, split.references, strict=True)))
            found.append(Placement("served", 0.0, sum(parts.values()), steps))
        for name in ("colocated", "stored"):
            if self._has_room(self.policy_memory(name, whole)):
                asked = self.config.references if name == "stored" else []
                once = every * sum(self.reference_seconds(one, whole) for one in asked)
                found.append(Placement(name, once, sum(self.step_parts(name, whole, {}).values()), steps))
        return found

    def passes(self) -> float:
        """How often the run sees its rows."""
        train, rows = self.config.train, len(self.material.splits["train"])
        steps = total_steps(rows, train.batch_size, train.epochs, train.max_steps)
        return steps / steps_per_epoch(rows, train.batch_size)

    def memory(self) -> list[RoleMemory]:
        """Bytes of a rank of every role, under the configuration's own placement and ranks."""
        topology = self.config.topology
        roles = [self.policy_memory(topology.placement, topology.policy)]
        if topology.placement == "served":
            for one in self.config.references:
                roles.append(self.served_memory(one, topology.references.get(one.name, 1)))
        return roles

    def policy_memory(self, placement: str, ranks: int) -> RoleMemory:
        """Bytes of a policy rank, with what a placement puts beside it."""
        sharding = Sharding.read(read_ds_config(self.config.deepspeed))
        forwards = [shape for step in self.steps(ranks) for shape in step.forwards]
        policy = policy_memory(self.meta(POLICY), forwards, ranks, sharding, self.machine)
        extra = []
        if self.config.checkpoint.every_steps and self.config.checkpoint.background:
            share = CHECKPOINT_BYTES * sum(self.meta(POLICY).sizes) / ranks
            extra.append(Part("copy of a checkpoint, while it is written", share, self.machine.kind == "gpu"))
        for one in self.config.references if placement == "colocated" else []:
            over = ranks if one.sharding == "zero3" else 1
            extra.append(Part(f"ref/{one.name}", reference_weights(self.meta(one.name), over)[0].bytes))
        return replace(policy, parts=[*policy.parts, *extra])

    def served_memory(self, one: ReferenceConfig, ranks: int) -> RoleMemory:
        """Bytes of a rank of a served reference."""
        shapes = [shape for step in reference_steps(self.material, one, ranks) for shape in step]
        return reference_memory(self.meta(one.name), one.name, shapes, ranks, one.sharding == "zero3", self.machine)

    def _has_room(self, role: RoleMemory) -> bool:
        """Whether a GPU has a rank's memory. On CPUs it is shared, and fits() says of all roles together."""
        return self.machine.kind == "cpu" or role.gib <= self.machine.memory_gib

    def fits(self, role: RoleMemory, roles: list[RoleMemory]) -> bool:
        """Whether a role's memory is there; a CPU's is shared by all ranks."""
        if self.machine.kind == "gpu":
            return role.gib <= self.machine.memory_gib
        return sum(one.gib * one.ranks for one in roles) <= self.machine.memory_gib

    def padding(self) -> float:
        """Mean share of token places that are computed for nothing."""
        return mean(step.padding for step in self.steps(self.config.topology.policy))

    def tokens(self) -> float:
        """Mean tokens that a step computes."""
        return mean(step.work.tokens for step in self.steps(self.config.topology.policy))

    def meta(self, name: str) -> MetaModel:
        """A model without weights."""
        if name not in self._metas:
            model = self._model(name)
            device = torch.device("cuda" if self.machine.kind == "gpu" else "cpu")
            self._metas[name] = meta_model(self.model_configs[name], resolve_dtype(model.dtype, device), model)
        return self._metas[name]

    def steps(self, ranks: int) -> list[PolicyStep]:
        """Sampled steps with so many policy ranks."""
        if ranks not in self._steps:
            self._steps[ranks] = policy_steps(self.material, ranks)
        return self._steps[ranks]

    def _model(self, name: str) -> AnyModelConfig:
        if name == POLICY:
            return self.config.model
        return next(one for one in self.config.references if one.name == name)

    def _compute(self, name: str, shapes: list[Any], train: bool) -> float:
        meta = self.meta(name)
        if (name, train) not in self._costs:
            self._costs[name, train] = cost_model(meta, train)
        return compute_seconds(self._costs[name, train](shapes), self.machine, meta.dtype)
