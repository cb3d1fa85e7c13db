"""YAML and key=value overrides -> one frozen Config, or one short ConfigError."""

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mrpo_ds import losses
from mrpo_ds.config.schema import Config, LossConfig
from mrpo_ds.config.validate import validate
from mrpo_ds.errors import ConfigError

SECRET_WORDS = ("KEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIAL")


def load_config(path: str, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a run from a YAML file and 'key=value' overrides (lists by index: references.0.path=...).

    Raises ConfigError, with the key, the value and what is allowed, for anything that could not run.
    """
    tree = _read_yaml(path)
    for override in overrides:
        _apply(tree, override)
    plain = _to_plain(tree)
    loss_options = plain.pop("loss", None)
    config = cast(Config, _build(Config, {**plain, "loss": None}, ""))  # the loss's own module builds it
    config = replace(config, loss=_build_loss(loss_options))
    validate(config)
    return config


def to_dict(config: Config) -> dict[str, Any]:
    """The resolved configuration as plain values, as written to the run; secrets of the environment are masked."""
    plain = asdict(config)
    plain["loss"] = {"name": config.loss.name, **asdict(config.loss.options)}
    return cast(dict[str, Any], _mask_secrets(plain))


def save_config(config: Config, path: Path) -> None:
    """Write the resolved configuration; loading it again gives the same Config."""
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(to_dict(config))), encoding="utf-8")


def _read_yaml(path: str) -> DictConfig:
    try:
        tree = OmegaConf.load(path)
    except FileNotFoundError as error:
        raise ConfigError(f"configuration file {path!r} does not exist; see launch/configs for examples.") from error
    except (YAMLError, UnicodeDecodeError, OSError, OmegaConfBaseException) as error:
        raise ConfigError(f"configuration file {path!r} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(tree, DictConfig):
        raise ConfigError(f"configuration file {path!r} is not a mapping of sections (model:, references:, ...).")
    return tree


def _apply(tree: DictConfig, override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"override {override!r} is not key=value, for example train.learning_rate=1e-6.")
    try:
        parsed = OmegaConf.from_dotlist([f"value={value}"])["value"]
        OmegaConf.update(tree, key, parsed, merge=True, force_add=True)
    except (OmegaConfBaseException, YAMLError, IndexError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"override {override!r} cannot be applied: {_first_line(error)}") from error


def _to_plain(tree: DictConfig) -> dict[str, Any]:
    try:
        return cast(dict[str, Any], OmegaConf.to_container(tree, resolve=True))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{getattr(error, 'full_key', None) or 'configuration'}: {_first_line(error)}") from error


def _build_loss(options: Any) -> LossConfig:
    if not isinstance(options, dict) or "name" not in options:
        raise ConfigError(
            f"loss is {options!r}; allowed: a mapping with a name, for example {{name: mrpo, beta: 0.1}}."
        )
    options = dict(options)
    name = str(options.pop("name"))
    options_class, _ = losses.load(name)
    return LossConfig(name=name, options=_build(options_class, options, "loss."))


def _build(schema: type, values: dict[str, Any], prefix: str) -> object:
    """An instance of a dataclass from plain values: unknown keys, then types, then missing ones, then ranges."""
    for key, allowed in _unknown_keys(schema, values, prefix):
        nearest = difflib.get_close_matches(key.rpartition(".")[2], allowed, n=1)
        hint = f"did you mean '{nearest[0]}'?" if nearest else f"allowed: {', '.join(sorted(allowed))}."
        raise ConfigError(f"{key}: unknown key; {hint}")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), values)
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise ConfigError(f"{prefix}{missing[0]} is missing; give it in the YAML or as {prefix}{missing[0]}=...")
        return OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        if isinstance(error.__cause__, ConfigError):
            raise error.__cause__ from None
        key = prefix + str(getattr(error, "full_key", None) or "")
        raise ConfigError(f"{key}: {_first_line(error)}") from error


def _unknown_keys(schema: type, values: Any, prefix: str) -> Iterator[tuple[str, list[str]]]:
    """(full key, allowed names) of every key of values that schema does not have, at any depth."""
    if not isinstance(values, Mapping):
        return
    hints = get_type_hints(schema)
    allowed = [item.name for item in fields(schema)]
    for key, value in values.items():
        if key not in allowed:
            yield f"{prefix}{key}", allowed
        elif is_dataclass(hints[key]):
            yield from _unknown_keys(cast(type, hints[key]), value, f"{prefix}{key}.")
        elif get_origin(hints[key]) is list and isinstance(value, list):
            for index, item in enumerate(value):
                if is_dataclass(get_args(hints[key])[0]):
                    yield from _unknown_keys(get_args(hints[key])[0], item, f"{prefix}{key}[{index}].")


def _mask_secrets(value: Any) -> Any:
    secrets = [v for k, v in os.environ.items() if len(v) >= 8 and any(word in k.upper() for word in SECRET_WORDS)]
    if isinstance(value, dict):
        return {key: _mask_secrets(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_mask_secrets(item) for item in value]
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, "***")
    return value


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
