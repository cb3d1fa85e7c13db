"""The site file: its defaults, what it refuses, and times as sbatch takes them."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from mrpo_ds.errors import ConfigError
from mrpo_ds.slurm.site import EXAMPLE, Site, load_site, seconds_of
from tests.support import ROOT


def test_the_file_in_the_repository_says_the_defaults() -> None:
    assert load_site(str(ROOT / EXAMPLE)) == Site()
    assert set(yaml.safe_load((ROOT / EXAMPLE).read_text())) == set(Site.__dataclass_fields__)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"partitoin": "gpu"}, "partitoin: unknown key; did you mean 'partition'?"),
        ({"gpus_per_node": -1}, "gpus_per_node is -1; allowed: >= 0, or null for one a task."),
        ({"cpus_per_task": 0}, "cpus_per_task is 0; allowed: >= 1 core."),
        ({"signal_seconds": 70000}, "signal_seconds is 70000; allowed: 1 to 65535 seconds."),
        ({"max_requeues": -1}, "max_requeues is -1; allowed: >= 0."),
        ({"sbatch": ["exclusive"]}, "sbatch of the site file is 'exclusive'; allowed: options that begin with -"),
        ({"srun": ["container-image=a"]}, "srun of the site file is 'container-image=a'"),
        ({"environment": ["cd ${HOME}"]}, "environment[0]: Interpolation key 'HOME' not found"),
    ],
)
def test_what_it_refuses(tmp_path: Path, values: dict[str, Any], says: str) -> None:
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError) as caught:
        load_site(str(tmp_path / "site.yaml"))
    assert says in str(caught.value)


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"site file 'none.yaml' does not exist; see launch/site.yaml for examples."):
        load_site("none.yaml")


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("30", 1800),
        ("30:15", 1815),
        ("04:00:00", 14400),
        ("1-2", 93600),
        ("1-02:03", 93780),
        ("2-12:00:01", 216001),
        ("UNLIMITED", None),
    ],
)
def test_times_as_sbatch_takes_them(time: str, seconds: float | None) -> None:
    assert seconds_of(time) == seconds


@pytest.mark.parametrize("time", ["", "4h", "1:2:3:4", "1-", "-1", "1-2-3"])
def test_what_is_no_time(time: str) -> None:
    with pytest.raises(ConfigError, match=f"time is '{time}'; allowed: a time as sbatch takes it"):
        seconds_of(time)
