"""What one section of the configuration demands of another. Pure arithmetic: no files, no models."""

from collections import Counter
from dataclasses import replace

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


def settle_loss(config: Config) -> Config:
    """The configuration with the views that its loss needs in place of "auto".

    Raises ConfigError when the loss cannot work with the references or a view of the data.
    """
    name = config.loss.name
    needs = load_by_file_name("mrpo_ds.losses", name, "loss.name").needs(config.loss.options)
    references = [reference.name for reference in config.references]
    enough = f"at least {needs.references} for loss.name={name}"
    require(len(references) >= needs.references, "references", references, enough)
    if needs.exactly is not None:
        count, option = needs.exactly
        require(len(references) == count, "references", references, f"exactly {count} for {option}")
    view = needs.views[0] if config.data.view == "auto" else config.data.view
    eval_view = view if config.data.eval_view == "auto" else config.data.eval_view
    for key, value in (("data.view", view), ("data.eval_view", eval_view)):
        require(value in needs.views, key, value, f"{' | '.join(needs.views)}, for loss.name={name} with these options")
    return replace(config, data=replace(config.data, view=view, eval_view=eval_view))


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
