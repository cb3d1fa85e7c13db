"""Where the log-probs of a run's references are kept, and what of them is there."""

from pathlib import Path

import torch

from mrpo_ds.config.schema import Config, ReferenceConfig
from mrpo_ds.data.cache import cache_folder
from mrpo_ds.models import resolve_dtype, tokenizer_fingerprint, weights_digest
from mrpo_ds.reference.store import ReferenceStore, open_store

TOLERANCE_NATS = {torch.float32: 1e-3, torch.bfloat16: 0.25}
"""Between a stored log-prob and the same row scored again, in other company, times the root of its tokens."""


def store_root(named: str | None, cache_dir: str | None) -> Path:
    """The store's directory: topology.store, else <cache>/references. Raises ConfigError if there is no such home."""
    return cache_folder(named) if named else cache_folder(cache_dir) / "references"


def uses_store(config: Config) -> bool:
    """Whether a run reads and fills the store: always when placed there, else when topology.store names one."""
    return config.topology.placement == "stored" or config.topology.store is not None


def store_of(config: Config, reference: ReferenceConfig, device: torch.device) -> ReferenceStore:
    """What is stored of a reference, as it would be loaded on this device. Reads its weights once, for their digest.

    Raises ConfigError when the model is not there, ReferenceError when the store cannot be used.
    """
    import transformers

    dtype = str(resolve_dtype(reference.dtype, device)).removeprefix("torch.")
    first = {
        "path": reference.path,
        "revision": reference.revision or "",
        "tokenizer": tokenizer_fingerprint(reference),
        "chat_template": reference.chat_template,
        "attention": reference.attention,
        "device": device.type,
        "transformers": transformers.__version__,
    }
    root = store_root(config.topology.store, config.data.cache_dir)
    return open_store(root, {"weights": weights_digest(reference), "dtype": dtype}, first)
