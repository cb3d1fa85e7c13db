"""The configuration that the tests of this folder start from: the least that a run needs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mrpo_ds.config.load import load_config
from mrpo_ds.config.schema import Config

LEAST = """\
model: {path: models/policy}
references:
  - {name: one, path: models/one}
  - {name: two, path: models/two}
loss: {name: mrpo}
data:
  train:
    - {source: train.jsonl}
output_dir: runs/test
"""


@pytest.fixture
def yaml_file(tmp_path) -> Path:
    file = tmp_path / "run.yaml"
    file.write_text(LEAST, encoding="utf-8")
    return file


@pytest.fixture
def load(yaml_file) -> Callable[..., Config]:
    """The least configuration with the given "key=value" overrides."""
    return lambda *overrides: load_config(str(yaml_file), overrides)
