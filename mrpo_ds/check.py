"""Everything that can be known before a process group or a GPU: the check command, and the start of train."""

import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from mrpo_ds.checkpoint import check_resume
from mrpo_ds.config.ds_config import check_partitions, check_restorable, read_ds_config, stage_of
from mrpo_ds.config.schema import Config
from mrpo_ds.console import log
from mrpo_ds.data.order import steps_per_epoch, total_steps
from mrpo_ds.distributed.topology import build_topology
from mrpo_ds.errors import ConfigError
from mrpo_ds.leaderboard.after_training import check_evaluation
from mrpo_ds.material import POLICY, Material, prepare
from mrpo_ds.models import AnyModelConfig, check_path, load_model_config
from mrpo_ds.reference.stored import refuse_missing, survey_of
from mrpo_ds.report.markup import check_page_path
from mrpo_ds.report.page import write_page
from mrpo_ds.report.text import check_fits, log_data_report
from mrpo_ds.stores import store_of

WHOLE = {
    1: (4, "4 bytes each for weights and gradients, whole on a rank, 12 for AdamW"),
    2: (2, "2 bytes each for weights, whole on a rank, 14 for gradients and AdamW"),
    3: (0, "16 bytes each for weights, gradients and AdamW"),
}
"""ZeRO stage -> bytes per parameter that are whole on every rank, and what the 16 consist of."""


def check_run(config: Config, resume: str = "none", show_example: bool = False, page: Path | None = None) -> Material:
    """Check models, tokenizers, data, arithmetic and the output directory, and log what a run would do.

    Args:
        config: the run.
        resume: as the command line has it.
        show_example: log an example as each model reads it.
        page: where to write the data report as HTML. It is there even if the data are then refused.

    Raises ConfigError or DataError for the first thing that could not run.
    """
    if page is not None:
        check_page_path(page)
    sharding = read_ds_config(config.deepspeed)
    check_partitions(config.deepspeed, sharding, config.topology.policy)
    if config.checkpoint.every_steps:
        check_restorable(config.deepspeed, sharding)
    check_output_dir(Path(config.output_dir), resume)
    model_configs = check_models(config)
    material = prepare(config)
    log_data_report(material, show_example)
    if page is not None:
        write_page(material, page)
        log(f"data report: {page}")
    check_fits(material, {name: _most_tokens(model_config) for name, model_config in model_configs.items()})
    _report_run(config, material, model_configs, stage_of(sharding))
    _check_store(config, material)
    check_evaluation(config)
    return material


def check_models(config: Config) -> dict[str, Any]:
    """The transformers config of every model, by name. Raises ConfigError for a path without a usable one."""
    for _, model in _models(config):
        check_path(model)  # all of them before transformers is imported for the first
    return {name: load_model_config(model) for name, model in _models(config)}


def check_output_dir(run_dir: Path, resume: str) -> None:
    """Raise ConfigError when the run directory is used (and not resumed) or cannot be written."""
    check_resume(run_dir, resume)
    existing = run_dir
    while not existing.exists():
        existing = existing.parent
    try:
        # Permissions do not say everything (a read-only mount, a full quota, /proc), so try it and clean up.
        os.rmdir(tempfile.mkdtemp(prefix=".mrpo-ds-", dir=existing))
    except OSError as error:
        raise ConfigError(
            f"output_dir is {str(run_dir)!r}, which cannot be written ({existing}: {error.strerror}); choose another "
            "place."
        ) from error


def _check_store(config: Config, material: Material) -> None:
    """Raise ConfigError when the run needs every row of its references stored, and some are not."""
    if config.topology.placement != "stored" or config.topology.store_missing != "refuse":
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # where the run will be: dtype auto asks
    surveys = {}
    for one in config.references:
        encodings = material.speakers[one.name].encodings
        surveys[one.name] = survey_of(one.name, store_of(config, one, device), encodings, check_fraction=0)
    refuse_missing(surveys)


def _models(config: Config) -> list[tuple[str, AnyModelConfig]]:
    return [(POLICY, config.model), *((reference.name, reference) for reference in config.references)]


def _most_tokens(model_config: Any) -> int | None:
    """How many tokens a model takes, if its configuration says so."""
    limit = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    return None if limit is None else int(limit)


def _report_run(config: Config, material: Material, model_configs: dict[str, Any], stage: int) -> None:
    topology = build_topology(config)
    log(f"roles: {topology.describe()} ({config.topology.placement}, {topology.world_size} processes)")
    rows = len(material.splits["train"])
    train = config.train
    steps = total_steps(rows, train.batch_size, train.epochs, train.max_steps)
    log(
        f"steps: {steps} of {train.batch_size} prompts ({train.batch_size // config.topology.policy} a rank), "
        f"{steps_per_epoch(rows, train.batch_size)} an epoch; loss {config.loss.name}"
    )
    for name, model in _models(config):
        parameters = num_parameters(model_configs[name], model.trust_remote_code)
        if name == POLICY:
            whole, what = WHOLE[stage]
            share = (whole + (16 - whole) / config.topology.policy) * parameters / 2**30
            detail = f"{what} / {config.topology.policy} ranks"
        else:
            ranks = _sharding_ranks(config, name)
            share = (4 if model.dtype == "fp32" else 2) * parameters / ranks / 2**30
            detail = f"weights, over {ranks} ranks" if ranks > 1 else "weights, whole on a rank"
        log(f"{name}: {parameters / 1e6:.0f} M parameters; {share:.2f} GiB a rank ({detail}), activations on top")


def _sharding_ranks(config: Config, name: str) -> int:
    """Over how many ranks a reference's weights are spread."""
    reference = next(one for one in config.references if one.name == name)
    if reference.sharding == "none":
        return 1
    served = config.topology.placement == "served"
    return config.topology.references.get(name, 1) if served else config.topology.policy


def num_parameters(model_config: Any, trust_remote_code: bool = False) -> int:
    """Parameters of a model, tied ones once, counted without making it."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(model_config, trust_remote_code=trust_remote_code)
    return sum(parameter.numel() for parameter in model.parameters())
