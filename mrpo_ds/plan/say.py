"""A plan as lines of text."""

from mrpo_ds.plan.advise import Placement, Split, cheapest, in_words, why
from mrpo_ds.plan.memory import GIB, RoleMemory
from mrpo_ds.plan.predict import Prediction

PLACEMENTS = ("served", "colocated", "stored")


def describe(prediction: Prediction) -> list[str]:
    """Everything that the plan command prints."""
    machine, config = prediction.machine, prediction.config
    devices = machine.devices
    lines = [
        f"machine: {machine.name} ({machine.devices} x {machine.kind})",
        f"a step: {prediction.tokens():,.0f} tokens computed, {prediction.padding():.1%} of the places are padding",
        "",
        "memory of a rank, GiB",
    ]
    roles = prediction.memory()
    for role in roles:
        lines += describe_memory(role, prediction.fits(role, roles))
    lines += ["", f"seconds of a step, with the ranks of this configuration ({config.topology.placement})"]
    ranks = {one.name: config.topology.references.get(one.name, 1) for one in config.references}
    for placement in PLACEMENTS if config.references else ("colocated",):
        parts = prediction.step_parts(placement, config.topology.policy, ranks)
        lines.append(describe_seconds(placement if config.references else "no references", parts))
    if config.references:
        split = prediction.split(devices)
        placements = prediction.placements(devices, split)
        names = [one.name for one in config.references]
        lines += ["", describe_split(split, names, devices)]
        lines += [describe_placement(one) for one in placements]
        if placements:
            lines.append("cheapest: " + why(cheapest(placements), placements, prediction.passes()))
        else:
            lines.append(f"no placement fits into {devices} devices: more of them, offloading, or smaller forwards")
    return lines


def describe_memory(role: RoleMemory, fits: bool) -> list[str]:
    """A role's parts, largest first."""
    ranks = f"{role.ranks} rank" + ("" if role.ranks == 1 else "s")
    lines = [f"  {role.role} ({ranks}): {role.gib:.2f}" + ("" if fits else "  -- more than there is")]
    for part in sorted(role.parts, key=lambda part: -part.bytes):
        if part.bytes / GIB >= 0.005:
            lines.append(f"    {part.bytes / GIB:8.2f}  {part.name}" + (" (host memory)" if part.on_host else ""))
    return lines


def describe_seconds(placement: str, parts: dict[str, float]) -> str:
    """One line: the sum, then the parts."""
    listed = ", ".join(f"{name} {seconds:.3g}" for name, seconds in parts.items() if seconds > 0)
    return f"  {placement:10s} {sum(parts.values()):8.3f}  ({listed})"


def describe_split(split: Split | None, names: list[str], devices: int) -> str:
    """The best ranks, as settings."""
    if split is None:
        return f"served does not fit into {devices} devices: each of {1 + len(names)} roles needs one, and its memory"
    given = ", ".join(f"{name}: {ranks}" for name, ranks in zip(names, split.references, strict=True))
    return (
        f"best ranks of {devices} devices, served: topology: {{policy: {split.policy}, references: {{{given}}}}}, "
        f"{split.seconds:.3f} s a step"
    )


def describe_placement(one: Placement) -> str:
    """One line: the whole run."""
    once = f"{in_words(one.once)} once + " if one.once else ""
    return f"  {one.name:10s} {in_words(one.total):>10s} for the run: {once}{one.steps} x {one.step:.3g} s"
