"""The learning rate as a pure function of the step."""

import math

from mrpo_ds.config.schema import OptimizationConfig


def learning_rate_at(step: int, total_steps: int, config: OptimizationConfig) -> float:
    """Learning rate of the 0-based optimizer step: linear warm-up from above 0, then config.scheduler to 0."""
    warmup = math.ceil(config.warmup_ratio * total_steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    if config.scheduler == "linear":
        return config.learning_rate * (1.0 - progress)
    if config.scheduler == "cosine":
        return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.learning_rate
