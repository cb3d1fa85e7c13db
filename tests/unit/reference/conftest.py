"""Tiny references on disk, and the material of runs that use them."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from mrpo_ds.config.load import load_config
from mrpo_ds.data.batching import Layout
from mrpo_ds.material import Material, prepare
from mrpo_ds.models import load_scorer, score
from mrpo_ds.reference.scoring import ReferenceScorer
from tests.support import base_config, world_of_one, write_config

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def world():
    with world_of_one():
        yield


@pytest.fixture(scope="session")
def material_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(policy's family, further settings) -> the material of a run with three references of three families."""
    root = tmp_path_factory.mktemp("references")

    def build(policy: str = "llama", **data: Any) -> Material:
        config = base_config(root, references=3)
        config["model"]["path"] = str(root / "models" / policy)
        config["data"] |= data
        return prepare(load_config(str(write_config(root / "config.yaml", config))))

    return build


@pytest.fixture(scope="session")
def material(material_of: Any) -> Material:
    return material_of()


@pytest.fixture(scope="session")
def models(material: Material) -> dict[str, Any]:
    """Each reference's weights, loaded once."""
    return {one.name: load_scorer(one, torch.float32, trainable=False) for one in material.config.references}


@pytest.fixture(scope="session")
def scorer_of(models: dict[str, Any]) -> Any:
    """(material, reference name, options) -> its ReferenceScorer."""

    def build(material: Material, name: str, batch_tokens: int = 8192, rank: int = 0, size: int = 1) -> ReferenceScorer:
        speaker = material.speakers[name]
        forward = torch.no_grad()(partial(score, models[name]))
        return ReferenceScorer(name, forward, speaker.encodings, Layout(0, shared=True), batch_tokens, rank, size, CPU)

    return build


@pytest.fixture(scope="session")
def path_of(material: Material) -> Any:
    """Name of a reference -> its directory."""
    paths = {one.name: Path(one.path) for one in material.config.references}
    return paths.__getitem__
