"""What one section of the configuration demands of another. Pure arithmetic: no files, no models."""

from collections import Counter

from mrpo_ds.config.schema import Config
from mrpo_ds.errors import require
from mrpo_ds.registry import load_by_file_name


def validate_sections(config: Config) -> None:
    """Raise ConfigError for the first combination that could not run, whatever the loss."""
    _validate_references(config)
    _validate_batches(config)


def _validate_references(config: Config) -> None:
    names = [reference.name for reference in config.references]
    for name, count in Counter(names).items():
        require(count == 1, "references", names, f"every name once, but {name!r} stands {count} times")
    for name in config.topology.references:
        require(name in names, "topology.references", name, f"names of references ({', '.join(names) or 'none'})")


def validate_loss(config: Config) -> None:
    """Raise ConfigError when the loss cannot work with the references or the view of the data."""
    module = load_by_file_name("mrpo_ds.losses", config.loss.name, "loss.name")
    needed = module.MIN_REFERENCES
    require(
        len(config.references) >= needed,
        "references",
        [reference.name for reference in config.references],
        f"at least {needed} for loss.name={config.loss.name}",
    )
    module.check_references(config.loss.options, len(config.references))
    pair_only = module.RESPONSES == 2
    require(
        not pair_only or config.data.view == "pair",
        "data.view",
        config.data.view,
        f"pair, because loss.name={config.loss.name} compares two responses",
    )


def _validate_batches(config: Config) -> None:
    policy = config.topology.policy
    size = config.train.batch_size
    require(
        size % policy == 0,
        "train.batch_size",
        size,
        f"a multiple of topology.policy ({policy})",
        f"Use {size - size % policy} or {size + policy - size % policy}." if size > policy else f"Use {policy}.",
    )
    micro = config.train.micro_batch_size
    share = size // policy
    require(
        micro is None or share % micro == 0,
        "train.micro_batch_size",
        micro,
        f"a divisor of train.batch_size / topology.policy = {size} / {policy} = {share}",
    )
    require(len(config.data.train) > 0, "data.train", [], "at least one source")
