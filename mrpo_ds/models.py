"""Load policies, references and tokenizers, and score sequences with them.

Arrows: transformers -> SequenceScorer -> (an engine shards it) -> summed log-probs [N].
"""

import hashlib
import inspect
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrpo_ds.config.schema import ModelConfig, ReferenceConfig
from mrpo_ds.errors import ConfigError, require
from mrpo_ds.manifest import READERS, checksum
from mrpo_ds.memory import total_bytes
from mrpo_ds.ops.attention import MaskPlan, groups_of, plan_masks
from mrpo_ds.ops.logps import chunk_rows, selected_logps, sum_by_sequence
from mrpo_ds.ops.segments import attend
from mrpo_ds.types import SequenceBatch

AnyModelConfig = ModelConfig | ReferenceConfig
TOKENIZER_FILES = (
    "tokenizer",
    "tokenization",
    "vocab",
    "merges",
    "spiece",
    "special_tokens_map",
    "added_tokens",
    "chat_template",
)
"""How the names of the files begin that a tokenizer is made of."""
PICKLES = "pytorch_model*.bin"
WEIGHT_FILES = ("*.safetensors", PICKLES)
FINGERPRINT_BLOCKS = 64
FINGERPRINT_BYTES = 1 << 14
"""How many parts of a weight file the fingerprint reads, and how much of each."""


class SelectedLogps(nn.Module):
    """The language-model head, asked only for the log-probs of given tokens.

    It holds the head's own parameters, so that ZeRO-3 gathers them around this forward and its backward, and it
    honours what families do to logits after the head: a scale (Cohere, Granite) and a soft cap (Gemma 2 and on).
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        head = model.get_output_embeddings()
        if head is None:
            raise ConfigError(f"{type(model).__name__} has no language-model head; allowed: causal language models.")
        if body_of(model) is None:
            raise ConfigError(
                f"{type(model).__name__} has no base model apart from its head; allowed: those that have."
            )
        self.weight = head.weight
        self.bias = getattr(head, "bias", None)
        self.scale, self.softcap = _after_head(model)

    def forward(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Hidden [T, D], targets [T] -> [T] log-probs, nats."""
        rows = chunk_rows(self.weight.shape[0], total_bytes(hidden.device))
        return selected_logps(hidden, self.weight, targets, self.bias, self.softcap, self.scale, rows)


class SequenceScorer(nn.Module):
    """A causal language model that returns log-probs of given tokens, and never a [*, V] tensor."""

    def __init__(self, model: Any) -> None:
        from transformers import AttentionInterface

        super().__init__()
        AttentionInterface.register("sdpa", _attention)
        self.model = model
        self.head = SelectedLogps(model)
        self.mask_plan = plan_masks(model.config.get_text_config())
        self.saving: Callable[[], AbstractContextManager[None]] = nullcontext
        """The context of a forward that backward will follow; see mrpo_ds/activations.py."""

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor | None,
        segments: Tensor | None,
        predictors: Tensor,
        targets: Tensor,
    ) -> Tensor:
        """The tensors of a SequenceBatch -> [T] log-probs of the scored tokens, nats, float32 (or float64).

        The hidden state of a token predicts the next one; prompt positions never reach the head.
        """
        # With a mask, positions count from its first token by themselves; some families know of no others.
        packed: dict[str, Any] = {"position_ids": position_ids}
        if attention_mask is not None:
            packed = {"attention_mask": attention_mask}
        elif segments is not None:
            assert isinstance(self.mask_plan, MaskPlan), self.mask_plan
            packed["attention_mask"] = self.mask_plan.masks(segments, position_ids, self.head.weight.dtype)
        with self.saving() if torch.is_grad_enabled() else nullcontext():
            hidden = body_of(self.model)(input_ids=input_ids, use_cache=False, **packed)[0]
            # Not an index: one token may predict the first of several responses, and the backward of an index adds them
            # up in any order. An embedding's does so in one, to the bit.
            logps: Tensor = self.head(F.embedding(predictors, hidden.flatten(0, 1)), targets)
        return logps


def score(scorer: nn.Module, batch: SequenceBatch) -> Tensor:
    """[N] summed log-probs, nats. The one way in which policies and references, sharded or whole, are called."""
    rows = (batch.input_ids, batch.position_ids, batch.attention_mask, batch.segments)
    return sum_by_sequence(scorer(*rows, batch.predictors, batch.targets), batch.places, batch.table)


def takes_positions(model: Any) -> bool:
    """Whether a model can be told where in its sequence each token stands, as packed rows must."""
    return "position_ids" in inspect.signature(body_of(model).forward).parameters


def body_of(model: Any) -> Any:
    """The model below its head: token ids to hidden states."""
    body = model.base_model
    return getattr(model, "model", None) if body is model else body  # Llama 4's text model calls itself its base


def load_scorer(config: AnyModelConfig, dtype: torch.dtype, trainable: bool) -> SequenceScorer:
    """Load a model's weights into a scorer on the CPU: safetensors, and no code, unless its configuration allows more.

    Raises ConfigError when the path has no usable model.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # every rank would draw one; ours is drawn once
    try:
        model = AutoModelForCausalLM.from_pretrained(
            config.path,
            revision=config.revision,
            dtype=dtype,
            attn_implementation=config.attention,
            use_safetensors=None if config.allow_pickle else True,
            weights_only=True,  # of a pickle: tensors and plain containers, whatever else it asks to be made of
            trust_remote_code=config.trust_remote_code,
        )
    except (OSError, ValueError, ImportError, pickle.UnpicklingError) as error:
        raise ConfigError(f"cannot load the model at {config.path!r}: {_reason(error, config)}") from error
    _switch_off_dropout(model)
    model.requires_grad_(trainable)
    if trainable and isinstance(config, ModelConfig) and config.gradient_checkpointing:
        _checkpoint_activations(model, config.path)
    return SequenceScorer(model).train(trainable)


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Transformers' own SDPA, but piece by piece where a mask of ours says how: the same values, fewer pairs.

    query [M, heads, S, W], key and value [M, heads of keys, S, W] -> [M, S, heads, W].
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    rows = groups_of(attention_mask)
    if rows is None or others.get("position_bias") is not None:
        output, weights = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **others)
        return output, weights
    return attend(query, key, value, rows, scaling).transpose(1, 2).contiguous(), None


def check_attention(config: AnyModelConfig, device: torch.device) -> None:
    """Raise ConfigError for an attention that cannot run, or not train, on this device."""
    usable = device.type == "cuda" or config.attention in ("sdpa", "eager")
    require(usable, f"{_key(config)}.attention", config.attention, f"sdpa | eager on {device.type}")


def load_tokenizer(config: AnyModelConfig) -> Any:
    """Load a model's own tokenizer. Raises ConfigError when there is none."""
    from transformers import AutoTokenizer

    check_path(config)
    try:
        return AutoTokenizer.from_pretrained(
            config.path, revision=config.revision, trust_remote_code=config.trust_remote_code
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(
            f"no tokenizer for the model at {config.path!r}: {_reason(error, config)} Save one beside the weights with "
            "tokenizer.save_pretrained."
        ) from error


def load_model_config(config: AnyModelConfig) -> Any:
    """A model's transformers config, without weights. Raises ConfigError when the path has none, or no weights."""
    from transformers import AutoConfig

    check_path(config)
    path = Path(config.path)
    if path.is_dir() and not _weight_files(config):
        has_pickle = any(path.glob(PICKLES)) and not config.allow_pickle
        mend = f", or set {_key(config)}.allow_pickle=true if you trust who made them" if has_pickle else ""
        raise ConfigError(
            f"model path {config.path!r} has no *.safetensors; other formats are not read, because they can hold code. "
            f"Save the model once with save_pretrained{mend}."
        )
    try:
        return AutoConfig.from_pretrained(
            config.path, revision=config.revision, trust_remote_code=config.trust_remote_code
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(f"no model at {config.path!r}: {_reason(error, config)}") from error


def check_path(config: AnyModelConfig) -> None:
    """Raise ConfigError for a path that is clearly meant to be local and does not exist."""
    path = Path(config.path)
    parts = path.parts
    # 'org/name' may be a Hub id, unless there is a folder of that name here: then it is a misspelt path.
    looks_local = path.is_absolute() or config.path.startswith((".", "~")) or len(parts) != 2 or Path(parts[0]).is_dir()
    if looks_local and not path.is_dir():
        raise ConfigError(
            f"model path {config.path!r} does not exist; allowed: a directory with config.json and safetensors, or a "
            "Hub id such as 'org/name'."
        )


def tokenizer_fingerprint(config: AnyModelConfig) -> str:
    """Changes with a model's tokenizer files: a Hub id and revision, or a digest of local files."""
    directory = Path(config.path)
    if not directory.is_dir():
        return f"{config.path}@{config.revision or 'main'}"
    digest = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        if path.is_file() and path.name.startswith(TOKENIZER_FILES):
            digest.update(f"{path.name} {path.stat().st_size}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def fingerprint(config: AnyModelConfig) -> str:
    """A short name for a model's weights that changes with them: a Hub id and revision, or a digest of local files.

    Of each local file it reads the beginning, which in safetensors names every tensor, and blocks spread over the rest:
    enough to tell any two trainings apart at the price of a few megabytes.
    """
    directory = Path(config.path)
    if not directory.is_dir():
        return f"{config.path}@{config.revision or 'main'}"
    digest = hashlib.sha256()
    code = sorted(directory.glob("*.py")) if config.trust_remote_code else []
    for path in [*_weight_files(config), directory / "config.json", *code]:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for part in range(FINGERPRINT_BLOCKS):
                file.seek(part * size // FINGERPRINT_BLOCKS)
                digest.update(file.read(FINGERPRINT_BYTES))
    return f"SHA-256 {digest.hexdigest()}"


def weights_digest(config: AnyModelConfig) -> str:
    """A name for a model that no change escapes: a Hub id and commit, or SHA-256 of every local byte.

    That is its weights, its config.json and, where its own code is trusted, that too.

    Raises ConfigError when the model is not there.
    """
    from transformers.utils import cached_file

    directory = Path(config.path)
    if not directory.is_dir():
        load_model_config(config)  # the Hub's refusals, as messages
        found = cached_file(config.path, "config.json", revision=config.revision)
        return f"{config.path}@{Path(found).parent.name}"  # <cache>/snapshots/<commit>/config.json
    paths = [directory / "config.json"]
    paths += sorted(path for pattern in WEIGHT_FILES for path in directory.glob(pattern))
    if config.trust_remote_code:
        paths += sorted(directory.glob("*.py"))
    with ThreadPoolExecutor(READERS) as pool:  # hashing leaves the interpreter to others
        parts = [f"{path.name} {found}" for path, found in zip(paths, pool.map(checksum, paths), strict=True)]
    return f"SHA-256 {hashlib.sha256(repr(parts).encode()).hexdigest()}"


def generation_digest(config: AnyModelConfig) -> str | None:
    """SHA-256 of what a local model says of how it generates, such as a repetition penalty.

    None where it says nothing, and for a model of the Hub, whose commit covers it.
    """
    file = Path(config.path) / "generation_config.json"
    return f"SHA-256 {checksum(file)}" if file.is_file() else None


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of 'auto' | 'bf16' | 'fp32' on a device: auto is bf16 where its matrix products are native.

    That is on GPUs and on CPUs with AMX or AVX512-BF16, where it is several times faster than fp32.
    """
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" or _cpu_multiplies_bf16() else torch.float32
    return torch.bfloat16 if name == "bf16" else torch.float32


def pad_id(tokenizer: Any) -> int:
    """The id that fills padding; its value never matters, because padding is masked."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0)


def _after_head(model: Any) -> tuple[float, float | None]:
    """(scale, soft cap) that the family applies to its logits. Preflight compares with the model's own logits."""
    config = model.config.get_text_config()
    scale = float(getattr(model, "logit_scale", None) or getattr(config, "logit_scale", None) or 1.0)
    if getattr(config, "logits_scaling", None):
        scale /= config.logits_scaling
    softcap = getattr(config, "final_logit_softcapping", None)
    return scale, float(softcap) if softcap else None


def _checkpoint_activations(model: Any, path: str) -> None:
    """Recompute activations in backward. Raises ConfigError for a model that cannot."""
    # transformers 5.23 gave it a new name, and warns about the old one on every rank
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise ConfigError(
            f"model.gradient_checkpointing is True, but the model at {path!r} ({type(model).__name__}) cannot do it; "
            "allowed: false."
        ) from error


def _switch_off_dropout(model: nn.Module) -> None:
    """The references run without dropout, so the policy does too: otherwise no log-ratio starts at 0."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout", "attn_pdrop", "resid_pdrop", "hidden_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def _cpu_multiplies_bf16() -> bool:
    """Whether the CPU has bf16 matrix instructions. torch has no public question for it; absent means no."""
    answers = [getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")]
    return any(answer is not None and answer() for answer in answers)


def _weight_files(config: AnyModelConfig) -> list[Path]:
    """The files of a local model that its weights are read from."""
    directory = Path(config.path)
    safe = sorted(directory.glob("*.safetensors"))
    return safe or (sorted(directory.glob(PICKLES)) if config.allow_pickle else [])


def _key(config: AnyModelConfig) -> str:
    """Where a model stands in the configuration."""
    return f"references[{config.name}]" if isinstance(config, ReferenceConfig) else "model"


def _reason(error: Exception, config: AnyModelConfig) -> str:
    """What is wrong with a model; with the key to set when it wants what is not allowed."""
    text, key = _first_line(error), _key(config)
    if "attention implementation" in text:
        return f"{text.partition(' yet')[0]}; set {key}.attention=eager, or flex_attention on GPUs."
    if "trust_remote_code" in str(error) and not config.trust_remote_code:
        return (
            f"{text} It comes with Python code of its own: set {key}.trust_remote_code=true to run it, with all rights "
            "of this user, on every rank."
        )
    if not config.allow_pickle and not Path(config.path).is_dir() and "safetensors" in str(error):
        return f"{text} If it has *.bin only, {key}.allow_pickle=true reads them: pickles, which can hold code."
    return text


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
