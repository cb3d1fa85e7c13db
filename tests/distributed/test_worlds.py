"""Split worlds: every role is an ordinary world of its own ranks."""

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mrpo_ds.distributed.interface import choose_interface
from mrpo_ds.distributed.launch import Launch
from mrpo_ds.distributed.worlds import open_rendezvous
from mrpo_ds.errors import ConfigError
from tests.distributed.harness import make_topology, run_ranks
from tests.distributed.looking import look_around
from tests.support import ROOT, command, free_port, need


@pytest.fixture(scope="module")
def reports() -> list[dict[str, Any]]:
    return run_ranks(look_around, make_topology(2, a=1, b=1))


def test_every_role_is_an_ordinary_world_of_its_own_ranks(reports: list[dict[str, Any]]) -> None:
    assert [report["world"] for report in reports] == [
        ("policy", 0, 2, True, True),
        ("policy", 1, 2, False, False),
        ("ref/a", 0, 1, True, False),
        ("ref/b", 0, 1, True, False),
    ]
    assert [report["default group"] for report in reports] == [(0, 2), (1, 2), (0, 1), (0, 1)]
    environment = [report["environment"] for report in reports]
    assert [(one["RANK"], one["WORLD_SIZE"]) for one in environment] == [("0", "2"), ("1", "2"), ("0", "1"), ("0", "1")]
    assert [one["LOCAL_RANK"] for one in environment] == ["0", "1", "2", "3"]  # stays the index on the node
    assert [report["agent store"] for report in reports] == [None] * 4


def test_roles_never_share_a_port(reports: list[dict[str, Any]]) -> None:
    ports = [report["environment"]["MASTER_PORT"] for report in reports]
    assert ports[0] == ports[1]
    assert len(set(ports)) == 3


def test_collectives_stay_within_the_role(reports: list[dict[str, Any]]) -> None:
    assert [report["sum"] for report in reports] == [1, 1, 2, 3]
    assert [report["own value after the sum"] for report in reports] == [0, 1, 2, 3]
    assert [report["broadcast"] for report in reports] == [0, 0, 2, 3]
    assert [report["gathered"] for report in reports] == [[0, 1], [0, 1], [2], [3]]
    assert reports[0]["objects"] == reports[1]["objects"] == [[], ["row 1"]]
    assert reports[2]["objects"] == [["row 2", "row 2"]]


def test_a_reference_of_several_ranks_is_a_world_too() -> None:
    reports = run_ranks(look_around, make_topology(1, a=3))
    assert [report["sum"] for report in reports] == [0, 6, 6, 6]
    assert [report["broadcast"] for report in reports] == [0, 1, 1, 1]
    assert reports[0]["environment"]["MASTER_PORT"] != reports[1]["environment"]["MASTER_PORT"]


SCRIPT = """
import json, os
from mrpo_ds.distributed.launch import read_launch
from tests.distributed.harness import everyone_left, make_topology
from tests.distributed.looking import look_around
launch = read_launch(os.environ)
report = look_around(make_topology(2, a=1), launch)
report["prefix"] = launch.store_prefix
os.write(1, (json.dumps(report) + "\\n").encode())
"""


def test_split_under_torchrun_uses_the_store_of_its_agent(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    done = command(
        ["-m", "torch.distributed.run", "--nproc_per_node", "3", "--master_port", str(free_port()), str(script)],
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert {report["prefix"] for report in reports} == {"mrpo_ds/attempt_0"}
    assert sorted((report["world"][0], report["world"][1], report["sum"]) for report in reports) == [
        ("policy", 0, 1),
        ("policy", 1, 1),
        ("ref/a", 0, 2),
    ]


def test_a_taken_port_is_named() -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"cannot listen on 127.0.0.1:{port} .*--master_port"):
            open_rendezvous(Launch(0, 2, 0, "127.0.0.1", port, None), 5)


def test_an_absent_rank_0_is_named() -> None:
    port = free_port()
    with pytest.raises(ConfigError, match=rf"rank 1 cannot reach global rank 0 at 127.0.0.1:{port} within 1 s"):
        open_rendezvous(Launch(1, 2, 1, "127.0.0.1", port, None), 1)


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", socket.gethostname()])
def test_the_main_host_is_published_by_the_name_that_others_use(name: str) -> None:
    # On Debian a host's own name leads to 127.0.1.1, which is no address to give to other hosts.
    assert choose_interface(Launch(0, 2, 0, name, 29500, None), None).public == name


def test_a_host_that_cannot_reach_even_itself_is_told_so() -> None:
    """Where there is no network at all, loopback included, as `unshare -n` makes it."""
    look = (
        "from mrpo_ds.distributed.interface import choose_interface; from mrpo_ds.distributed.launch import Launch\n"
        "from mrpo_ds.errors import ConfigError\n"
        "try: choose_interface(Launch(0, 1, 0, '127.0.0.1', 29500, None), None)\n"
        "except ConfigError as error: print(error)"
    )
    cut = ["unshare", "-rn", "--"]
    allowed = shutil.which("unshare") and subprocess.run([*cut, "true"], capture_output=True).returncode == 0
    need(bool(allowed), "network namespaces (unshare -rn)")
    done = subprocess.run([*cut, sys.executable, "-c", look], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert "MASTER_ADDR is '127.0.0.1', to which this host has no way (Network is unreachable)" in done.stdout
    assert "ip link set lo up" in done.stdout and "Traceback" not in done.stderr


def test_another_host_publishes_the_interface_that_leads_to_rank_0() -> None:
    launch = Launch(1, 2, 0, "198.51.100.1", 29500, None)  # a documentation address: no host has it
    chosen = choose_interface(launch, None)
    assert chosen.address == chosen.public and not chosen.address.startswith("127.")
    assert chosen.address != launch.master_addr and chosen.name is not None
