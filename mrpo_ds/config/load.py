"""YAML and key=value overrides -> one frozen Config, or one short ConfigError."""

import difflib
import os
from collections.abc import Sequence
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mrpo_ds.config.outputs import TrackingConfig
from mrpo_ds.config.schema import MISSING, Config, LossConfig
from mrpo_ds.config.validate import settle_loss, validate_sections
from mrpo_ds.errors import ConfigError, require
from mrpo_ds.manifest import write_atomic
from mrpo_ds.registry import load_by_file_name

T = TypeVar("T")
ALLOWED = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true | false",
    list[str]: "a list of texts",
    dict[str, int]: "a mapping of names to whole numbers",
}
"""What a value of each type of the schema looks like in YAML, for messages."""
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
    validate_sections(config)
    return settle_loss(replace(config, loss=_build_loss(loss_options), tracking=_grouped(config.tracking, path)))


def _grouped(tracking: TrackingConfig, path: str) -> TrackingConfig:
    """With a W&B group: the runs of one config file, such as those of a sweep, belong together."""
    if tracking.wandb.group is not None or os.environ.get("WANDB_RUN_GROUP"):
        return tracking
    return replace(tracking, wandb=replace(tracking.wandb, group=Path(path).stem))


def load_record(schema: type[T], path: str, what: str, examples: str) -> T:
    """An instance of a dataclass from a YAML file of its own, checked as a configuration is.

    Args:
        schema: the dataclass.
        path: of the YAML.
        what: the file is, for messages: "machine file".
        examples: where such files can be found, for messages.
    """
    return cast(T, _build(schema, _to_plain(_read_yaml(path, what, examples)), ""))


def read_plain(path: str, what: str, examples: str) -> dict[str, Any]:
    """The plain values of a YAML mapping, unchecked: of a run that another version may have made.

    The arguments are those of load_record. Raises ConfigError when there is no such file or it is no mapping.
    """
    return _to_plain(_read_yaml(path, what, examples))


def to_dict(config: Config) -> dict[str, Any]:
    """The resolved configuration as plain values, as written to the run; secrets of the environment are masked."""
    plain = asdict(config)
    plain["loss"] = {"name": config.loss.name, **asdict(config.loss.options)}
    return cast(dict[str, Any], _mask_secrets(plain))


def save_config(config: Config, path: Path) -> None:
    """Write the resolved configuration, whole or not at all; loading it again gives the same Config.

    Raises ConfigError when it cannot be written.
    """
    try:
        write_atomic(path, OmegaConf.to_yaml(OmegaConf.create(to_dict(config))).encode())
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}; make room or give leave.") from error


def _read_yaml(path: str, what: str = "configuration file", examples: str = "launch/configs") -> DictConfig:
    try:
        tree = OmegaConf.load(path)
    except FileNotFoundError as error:
        raise ConfigError(f"{what} {path!r} does not exist; see {examples} for examples.") from error
    except (YAMLError, UnicodeDecodeError, OSError, OmegaConfBaseException) as error:
        raise ConfigError(f"{what} {path!r} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(tree, DictConfig):
        raise ConfigError(f"{what} {path!r} is not a mapping of sections; see {examples} for examples.")
    return tree


def _apply(tree: DictConfig, override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"override {override!r} is not key=value, for example train.learning_rate=1e-6.")
    try:
        parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]), resolve=False)
        OmegaConf.update(tree, key, cast(dict[str, Any], parsed)["value"], merge=True, force_add=True)
    except IndexError as error:
        raise ConfigError(
            f"override {override!r} names a list entry that the YAML does not have; add it there."
        ) from error
    except (OmegaConfBaseException, YAMLError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"override {override!r} cannot be applied: {' '.join(str(error).split())}") from error


def _to_plain(tree: DictConfig) -> dict[str, Any]:
    try:
        return cast(dict[str, Any], OmegaConf.to_container(tree, resolve=True))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{getattr(error, 'full_key', None) or 'configuration'}: {_first_line(error)}") from error


def _build_loss(options: Any) -> LossConfig:
    named = isinstance(options, dict) and isinstance(options.get("name"), str)
    require(named, "loss", options, "a mapping with a name, for example {name: mrpo, beta: 0.1}")
    options = dict(options)
    name = options.pop("name")
    # Found here and not by an import above: it brings torch, and most mistakes can be told a second earlier.
    options_class = load_by_file_name("mrpo_ds.losses", name, "loss.name").Config
    return LossConfig(name=name, options=_build(options_class, options, "loss."))


def _build(schema: type, values: dict[str, Any], prefix: str) -> object:
    """An instance of a dataclass from plain values: unknown keys and types, then missing ones, then ranges."""
    _check_section(schema, values, prefix)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), values)
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise ConfigError(f"{prefix}{missing[0]} is missing; give it in the YAML or as {prefix}{missing[0]}=...")
        return OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        if isinstance(error.__cause__, ConfigError):
            raise error.__cause__ from None
        raise ConfigError(f"{prefix}{getattr(error, 'full_key', None) or ''}: {_first_line(error)}") from error


def _check_section(schema: type, values: dict[str, Any], prefix: str) -> None:
    """Raise ConfigError, with the full key, for the first key or type of values that schema does not have."""
    hints = get_type_hints(schema)
    defaults = OmegaConf.structured(schema)
    for key, value in values.items():
        if key not in hints:
            nearest = difflib.get_close_matches(str(key), hints, n=1)
            hint = f"did you mean '{nearest[0]}'?" if nearest else f"allowed: {', '.join(sorted(hints))}."
            raise ConfigError(f"{prefix}{key}: unknown key; {hint}")
        item = get_args(hints[key])[0] if get_origin(hints[key]) is list else None
        if is_dataclass(hints[key]):
            _check_mapping(hints[key], value, f"{prefix}{key}")
        elif item is not None and is_dataclass(item):
            require(isinstance(value, list), f"{prefix}{key}", value, f"a list of mappings ({_keys(item)})")
            for index, entry in enumerate(value):
                _check_mapping(item, entry, f"{prefix}{key}[{index}]")
        else:
            _check_value(defaults, hints[key], key, value, prefix)


def _check_mapping(schema: Any, value: Any, key: str) -> None:
    require(isinstance(value, dict), key, value, f"a mapping ({_keys(schema)})")
    _check_section(schema, value, f"{key}.")


def _check_value(defaults: DictConfig, hint: Any, key: str, value: Any, prefix: str) -> None:
    if value == MISSING:
        return
    try:
        OmegaConf.merge(defaults, {key: value})
    except (OmegaConfBaseException, TypeError) as error:
        choices = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        allowed = " or ".join("null" if kind is NoneType else ALLOWED.get(kind, str(kind)) for kind in choices)
        raise ConfigError(f"{prefix}{key} is {value!r}; allowed: {allowed}.") from error


def _keys(schema: Any) -> str:
    return ", ".join(item.name for item in fields(schema))


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
