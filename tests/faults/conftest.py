"""The uninterrupted run that every broken one must equal after it was resumed."""

from pathlib import Path

import pytest

from tests.faults.live import Victims, settings
from tests.warm import Warm


@pytest.fixture(scope="session")
def victims(tmp_path_factory: pytest.TempPathFactory, warm: Warm) -> Victims:
    return Victims(tmp_path_factory.mktemp("faults"), warm)


@pytest.fixture(scope="session")
def whole(victims: Victims) -> Path:
    """The directory of a run of 12 steps that nothing happened to."""
    path, directory = victims.config("whole", settings(victims.root))
    run = victims.train(path)
    assert run.returncode == 0, run.stderr[-4000:]
    return directory
