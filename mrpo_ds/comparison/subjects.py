"""Which models eval-preferences measures, and on which rows: names for what the command line gives as paths."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mrpo_ds.config.schema import Config, ModelConfig, ReferenceConfig, SourceConfig
from mrpo_ds.data.dataset import source_names
from mrpo_ds.errors import ConfigError, require
from mrpo_ds.model_names import check_name, own_name, split_named

BASE = "base"
PREFIX = "model."
"""Begins the names under which measured models score, so that they never are those of references."""
Sets = dict[str, list[SourceConfig]]
"""Name of an eval set -> the source that is read for it."""


@dataclass(frozen=True)
class Subject:
    """One model that is measured."""

    name: str
    kind: str
    """base | reference | model"""
    config: ReferenceConfig
    """How it is loaded; its name is that under which it scores."""


def subjects_of(config: Config, given: Sequence[str] | None) -> list[Subject]:
    """Every model that is measured: the base model, the references that are not the base, and the given ones.

    Args:
        config: the run. Models are read as its policy is: dtype, attention, chat template.
        given: run directories, model directories or Hub ids, each optionally as name=path; None for the model that the
            run has made, if it has.

    Raises ConfigError for a name that is used twice, or a directory of checkpoints.
    """
    own = Path(config.output_dir)
    if given is None:
        given = [str(own)] if (own / "model").is_dir() else []
    base = _as_reference(config.model, PREFIX + BASE, config.train.micro_batch_tokens)
    subjects = [Subject(BASE, BASE, base)]
    subjects += [Subject(one.name, "reference", one) for one in config.references if not _same(one, base)]
    for text in given:
        name, path = _named(text)
        model = replace(base, name=PREFIX + name, path=path, revision=None)
        subjects.append(Subject(name, "model", model))
    names = [one.name for one in subjects]
    for name in names:
        mend = "Give the model another one: --models name=path."
        require(names.count(name) == 1, "the name of a model", name, "every name once", mend)
    return subjects


def scored_references(config: Config, subjects: Sequence[Subject]) -> tuple[list[ReferenceConfig], dict[str, str]]:
    """The models that must score, each once, and by whose answer every reference and subject is known.

    A subject that is loaded as a reference is (the base model as RefM1, mostly) is that reference.
    """
    scoring = list(config.references)
    answers = {one.name: one.name for one in scoring}
    for subject in subjects:
        twin = next((one for one in scoring if _same(one, subject.config)), None)
        if twin is None:
            scoring.append(subject.config)
            twin = subject.config
        answers[subject.config.name] = twin.name
    return scoring, answers


def sets_of(config: Config, files: Sequence[str] | None, adapters: Sequence[str] | None) -> Sets:
    """The eval sets by name: the given files, else each source of data.eval.

    Args:
        config: the run.
        files: data files or Hub ids.
        adapters: one for each file, or a single one for all, or None: that of the Hub data set, else pairs.

    Raises ConfigError when there are none, or not as many adapters as files.
    """
    sources = list(config.data.eval)
    if files:
        named: list[str | None] = [*adapters] if adapters else [None]
        one_each = len(named) in (1, len(files))
        require(one_each, "--adapter", adapters, f"one name, or one for each of the {len(files)} files of --data")
        named = named * len(files) if len(named) == 1 else named
        sources = [SourceConfig(source=file, adapter=name) for file, name in zip(files, named, strict=True)]
    else:
        require(not adapters, "--adapter", adapters, "only beside --data")
    mend = "Give data.eval in the configuration, or --data FILE --adapter NAME."
    require(bool(sources), "data.eval", [], "at least one source of held-out rows", mend)
    return {name: [source] for name, source in zip(source_names(sources), sources, strict=True)}


def _as_reference(model: ModelConfig, name: str, batch_tokens: int) -> ReferenceConfig:
    return ReferenceConfig(
        name=name,
        path=model.path,
        revision=model.revision,
        allow_pickle=model.allow_pickle,
        trust_remote_code=model.trust_remote_code,
        dtype=model.dtype,
        attention=model.attention,
        chat_template=model.chat_template,
        packing=model.packing,
        prefix_sharing=model.prefix_sharing,
        batch_tokens=batch_tokens,
    )


READING: Mapping[str, None] = dict.fromkeys(("path", "revision", "dtype", "attention", "chat_template"))
"""What of a model's settings its log-probs depend on."""


def _same(one: ReferenceConfig, other: ReferenceConfig) -> bool:
    return all(getattr(one, key) == getattr(other, key) for key in READING)


def _named(text: str) -> tuple[str, str]:
    """'name=path' or 'path' -> (name, path of the model itself). Raises ConfigError for what is no exported model."""
    name, path = split_named(text)
    name = name or own_name(path)
    check_name(name, path, "--models name=path")
    directory = Path(path)
    if (directory / "config.yaml").is_file():  # a run
        if not (directory / "model").is_dir():
            raise ConfigError(
                f"the run {path!r} has no model yet; allowed: a finished run, a model directory or a Hub id. "
                "`mrpo-ds train` with --resume auto ends it and exports the model."
            )
        return name, str(directory / "model")
    if directory.is_dir() and not (directory / "config.json").is_file():
        raise ConfigError(
            f"{path!r} is no model: it has no config.json; allowed: a run directory, a Hugging Face model directory or "
            "a Hub id. A checkpoint is exported by ending its run: `mrpo-ds train CONFIG --resume auto`."
        )
    return name, path
