"""What a worker is told by its environment: one device, no launcher, and in offline mode no network."""

import os
from collections.abc import Mapping

from mrpo_ds.data.cache import cache_folder

LAUNCHER_NAMES = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "CROSS_RANK", "CROSS_SIZE"}
LAUNCHER_PREFIXES = (
    "MASTER_",
    "GROUP_",
    "ROLE_",
    "TORCHELASTIC_",
    "TORCH_NCCL_",
    "ACCELERATE_",
    "FSDP_",
    "DEEPSPEED_",
    "SLURM_",
    "SLURMD_",
    "SRUN_",
    "PMI_",
    "PMIX_",
    "OMPI_",
    "PALS_",
    "MV2_",
    "MPI_",
    "MRPO_DS_CHECKED",
    "MRPO_DS_TOKEN",
)
"""A process with these takes itself for one of many: lm-eval waits for the others, or crashes."""
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}
"""HF_DATASETS_OFFLINE too: where it is set to 0, the data sets library ignores HF_HUB_OFFLINE."""


def worker_environment(ours: Mapping[str, str], device: str, offline: bool) -> dict[str, str]:
    """The environment of a worker on a device ("cpu", or "cuda:" and an entry of CUDA_VISIBLE_DEVICES)."""
    kept = {
        name: value
        for name, value in ours.items()
        if name not in LAUNCHER_NAMES and not name.startswith(LAUNCHER_PREFIXES)
    }
    kept |= {
        "CUDA_VISIBLE_DEVICES": device.partition(":")[2],
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONUNBUFFERED": "1",
    }
    # Prepared tables, and the locks beside them, must be written somewhere: HF_HOME is often shared and read-only.
    kept.setdefault("HF_DATASETS_CACHE", str(cache_folder(None) / "leaderboard" / "datasets"))
    if device == "cpu":
        kept["DS_ACCELERATOR"] = "cpu"  # transformers imports deepspeed, which guesses otherwise
    return kept | (OFFLINE if offline else {})


def visible_devices(wanted: str | None) -> list[str]:
    """Devices to work on: those of --devices, or all that this process sees. Raises ConfigError for any other."""
    import torch

    from mrpo_ds.errors import ConfigError

    if wanted == "cpu":
        return ["cpu"]
    named = [token.strip() for token in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if token.strip()]
    count = torch.cuda.device_count()
    visible = named[:count] or [str(index) for index in range(count)]
    if wanted is None:
        return [f"cuda:{token}" for token in visible] or ["cpu"]
    chosen = [token.strip() for token in wanted.split(",")]
    for token in chosen:
        if not token.isdecimal() or int(token) >= count or chosen.count(token) > 1:
            there = f"cpu, or numbers of GPUs, 0 to {count - 1}, each once" if count else "cpu; there is no GPU here"
            raise ConfigError(f"--devices is {wanted!r}; allowed: {there}.")
    return [f"cuda:{visible[int(token)]}" for token in chosen]
