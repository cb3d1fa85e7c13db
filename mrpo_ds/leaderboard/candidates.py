"""The models of a sweep: found, named, and refused before anything is computed when their weights would not be theirs.

transformers fills what a checkpoint lacks with random numbers and says so in a report; such a model still gets a score.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrpo_ds.config.schema import ModelConfig
from mrpo_ds.errors import ConfigError, require
from mrpo_ds.model_names import check_name, own_name, split_named

SHOWN_KEYS = 3
RAW_CHECKPOINT = ("latest", "zero_to_fp32.py", "global_step*", "*_optim_states.pt", "mp_rank_*_model_states.pt")
"""What DeepSpeed's own checkpoints have."""


@dataclass(frozen=True)
class Candidate:
    """A model of a sweep."""

    name: str
    """In tables, and of the folder of its cells."""
    path: str
    """A local directory that transformers loads, or a Hub id."""


def find_candidates(models: Sequence[str | tuple[str, str]]) -> list[Candidate]:
    """The models of a command, each with a name of its own. Raises ConfigError for what is no model.

    Args:
        models: PATH or NAME=PATH, as a user writes them, or pairs of a name and a path.
    """
    found = []
    for model in models:
        name, given = split_named(model) if isinstance(model, str) else model
        path = _model_path(given)
        found.append(Candidate(name or own_name(path), path))
        check_name(found[-1].name, given, "NAME=PATH")
    twice = next((name for name, count in Counter(one.name for one in found).items() if count > 1), None)
    paths = [one.path for one in found if one.name == twice]
    require(twice is None, "the name of a model", twice, "every name once", f"Give NAME=PATH to {', '.join(paths)}.")
    return found


def _model_path(path: str) -> str:
    """Where a model is: a run directory has it in model/. Raises ConfigError for directories that have none."""
    directory = Path(path)
    if not directory.is_dir():
        return path
    inner = directory / "model"
    if not (directory / "config.json").is_file() and (inner / "config.json").is_file():
        return str(inner)
    has_weights = any(directory.glob("*.safetensors")) or any(directory.glob("*.bin"))
    if not has_weights and any(any(directory.glob(pattern)) for pattern in RAW_CHECKPOINT):
        raise ConfigError(
            f"{path!r} is a raw ZeRO checkpoint, of pieces of the weights and of the optimizer, and not a model. For a "
            "run of mrpo-ds finish it with `mrpo-ds train CONFIG --resume auto`, which writes model/; for others make "
            f"weights of it with `python {directory / 'zero_to_fp32.py'} {directory} OUT --safe_serialization`, put "
            "config.json and the tokenizer's files beside them, and evaluate OUT."
        )
    checkpoints = directory if directory.name == "checkpoints" else directory / "checkpoints"
    if not (directory / "config.json").is_file() and (
        (directory / "state.json").is_file() or any(checkpoints.glob("step-*"))
    ):
        raise ConfigError(
            f"{path!r} has checkpoints to resume from and no model yet; finish the run with `mrpo-ds train CONFIG "
            "--resume auto`, and evaluate its directory."
        )
    return path


def check_candidate(candidate: Candidate) -> None:
    """Raise ConfigError unless the model's files have all of its weights, no others, in their shapes, and a tokenizer.

    Reads the headers of the files, not the weights.
    """
    from mrpo_ds.models import check_path, load_model_config, load_tokenizer

    config = ModelConfig(path=candidate.path)
    check_path(config)
    load_model_config(config)
    load_tokenizer(config)
    load_whole(candidate.path, device_map="meta")


def load_whole(path: str, **options: Any) -> Any:
    """A model by transformers, with every weight from its files. Raises ConfigError when it would not be whole.

    Args:
        path: a directory or a Hub id.
        options: of from_pretrained.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its report of what is wrong is a screen long; ours is a line
    try:
        # Mismatched shapes are asked for as a list, and then refused; safetensors hold no code.
        model, info = AutoModelForCausalLM.from_pretrained(
            path, output_loading_info=True, ignore_mismatched_sizes=True, use_safetensors=True, **options
        )
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConfigError(f"cannot load the model at {path!r}: {reason}") from error
    finally:
        logging.set_verbosity(verbosity)
    if wrong := describe_keys(info):
        raise ConfigError(
            f"the checkpoint at {path!r} is not whole: {wrong}. Random weights would be scored. Export it again "
            "(save_pretrained, or the model/ of a finished run of mrpo-ds; for DeepSpeed zero_to_fp32.py)."
        )
    return model


def describe_keys(info: dict[str, Any]) -> str:
    """What from_pretrained's loading information says is wrong with a checkpoint, or ""."""
    parts = []
    for kind in ("missing", "unexpected", "mismatched"):
        keys = sorted(str(key[0] if isinstance(key, tuple) else key) for key in info.get(f"{kind}_keys") or ())
        if keys:
            more = f" and {len(keys) - SHOWN_KEYS} more" if len(keys) > SHOWN_KEYS else ""
            parts.append(f"{kind} {', '.join(keys[:SHOWN_KEYS])}{more}")
    return "; ".join(parts)
