"""File names as registries."""

import sys

import pytest

from mrpo_ds import losses
from mrpo_ds.errors import ConfigError
from mrpo_ds.registry import load_by_file_name, names


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """A package with three modules, a private one and a sub-package."""
    folder = tmp_path / "zoo_of_the_registry_test"
    (folder / "cages").mkdir(parents=True)
    for file in ("__init__", "zebra", "ape", "okapi", "_keeper", "cages/__init__"):
        (folder / f"{file}.py").write_text(f"LABEL = {file!r}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder.name
    for name in [name for name in sys.modules if name.startswith(folder.name)]:
        del sys.modules[name]


def test_names_are_sorted_without_private_files_and_sub_packages(zoo):
    assert names(zoo) == ["ape", "okapi", "zebra"]


def test_a_file_is_loaded_by_its_name(zoo):
    assert load_by_file_name(zoo, "okapi", "animal").LABEL == "okapi"


def test_an_unknown_name_lists_the_files_and_the_nearest(zoo):
    with pytest.raises(ConfigError) as error:
        load_by_file_name(zoo, "zebar", "animal.name")
    assert str(error.value) == "animal.name is 'zebar'; allowed: ape | okapi | zebra. Did you mean 'zebra'?"


@pytest.mark.parametrize("name", ["", "_keeper", "cages", "..zebra", "cages.__init__", "qqqqq"])
def test_a_name_that_is_no_listed_file_is_refused_without_a_guess_or_an_import(zoo, name):
    with pytest.raises(ConfigError, match="allowed: ape | okapi | zebra"):
        load_by_file_name(zoo, name, "animal")
    assert f"{zoo}._keeper" not in sys.modules


def test_losses_are_the_files_of_their_folder():
    assert {"dpo", "mrpo"} <= set(names("mrpo_ds.losses"))
    config, loss = losses.load("mrpo")
    assert (config.__module__, config.__name__) == (loss.__module__, "Config") == ("mrpo_ds.losses.mrpo", "Config")


def test_a_misspelt_loss_says_which_was_meant():
    with pytest.raises(ConfigError, match=r"^loss.name is 'mrp'; allowed: .*dpo \| .*mrpo.*\. Did you mean 'mrpo'\?$"):
        losses.load("mrp")
