"""What launchers say about a process, as the environments that they really set."""

import pytest

from mrpo_ds.distributed.launch import Launch, first_host, read_launch
from mrpo_ds.errors import ConfigError

DEEPSPEED = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_SIZE": "2",
    "CROSS_RANK": "1",
    "CROSS_SIZE": "2",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29600",
}
TORCHRUN = {
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "GROUP_RANK": "0",
    "LOCAL_WORLD_SIZE": "2",
    "ROLE_RANK": "1",
    "ROLE_WORLD_SIZE": "2",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "41257",
    "TORCHELASTIC_RESTART_COUNT": "0",
    "TORCHELASTIC_MAX_RESTARTS": "0",
    "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}
BATCH_SCRIPT = {  # sbatch --nodes 2 --ntasks-per-node 4: a script that runs once, on the first node
    "SLURM_JOB_ID": "123456",
    "SLURM_JOB_NODELIST": "node[07-08]",
    "SLURM_NODELIST": "node[07-08]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_NTASKS": "8",
    "SLURM_NPROCS": "8",
    "SLURM_NTASKS_PER_NODE": "4",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}
SRUN = {
    **BATCH_SCRIPT,
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}


def test_the_deepspeed_launcher():
    assert read_launch(DEEPSPEED) == Launch(3, 4, 1, "10.0.0.1", 29600, None, "1")


@pytest.mark.parametrize("attempt", ["0", "3"])
def test_torchrun_hosts_the_store_and_every_attempt_has_keys_of_its_own(attempt):
    launch = read_launch({**TORCHRUN, "TORCHELASTIC_RESTART_COUNT": attempt})
    assert launch == Launch(1, 2, 1, "localhost", 41257, f"mrpo_ds/attempt_{attempt}", "0")


@pytest.mark.parametrize("value", ["False", ""])
def test_torchrun_without_an_agents_store_is_like_any_launcher(value):
    launch = read_launch({**TORCHRUN, "TORCHELASTIC_USE_AGENT_STORE": value})
    assert launch is not None and launch.store_prefix is None


def test_srun_gives_the_rank_and_the_first_host_and_a_port_of_the_job():
    assert read_launch(SRUN) == Launch(5, 8, 1, "node07", 20000 + 123456 % 12000, None, "1")


def test_srun_takes_an_address_and_a_port_that_the_script_exports():
    launch = read_launch({**SRUN, "MASTER_ADDR": "fast-net", "MASTER_PORT": "1234", "SLURM_STEP_NODELIST": "???["})
    assert launch is not None and (launch.master_addr, launch.master_port) == ("fast-net", 1234)


def test_every_rank_of_a_job_computes_the_same_port_below_the_ephemeral_range():
    ports = set()
    for job in (0, 1, 11999, 12000, 19999, 4294967295):
        seen = {read_launch({**SRUN, "SLURM_JOB_ID": str(job), "SLURM_PROCID": str(r)}).master_port for r in range(8)}
        assert len(seen) == 1
        ports |= seen
    assert min(ports) >= 20000 and max(ports) < 32768


def test_torchrun_under_srun_is_torchruns_launch():
    launch = read_launch({**SRUN, **TORCHRUN})
    assert launch is not None and (launch.rank, launch.world_size) == (1, 2)
    assert launch.store_prefix == "mrpo_ds/attempt_0" and launch.node == "0"


def test_a_launcher_that_numbers_no_nodes_leaves_them_to_their_names():
    launch = read_launch({key: value for key, value in DEEPSPEED.items() if key != "CROSS_RANK"})
    assert launch is not None and launch.node == ""


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"PATH": "/usr/bin", "HOME": "/home/me", "LOCAL_RANK": "0", "MASTER_PORT": "29500"},
        BATCH_SCRIPT,
        {**SRUN, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},  # srun --pty bash
    ],
    ids=["nothing", "a desk", "a batch script", "an interactive shell of one task"],
)
def test_what_is_no_launch(environment):
    assert read_launch(environment) is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"RANK": "4"}, "rank 4 of 4 processes; allowed: ranks 0 to 3. Unset RANK and WORLD_SIZE"),
        ({"WORLD_SIZE": "0"}, "rank 3 of 0 processes"),
        ({"RANK": "-1"}, "RANK is '-1'; allowed: a number >= 0"),
        ({"RANK": "one"}, "RANK is 'one'"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE is ''"),
        ({"WORLD_SIZE": "4.0"}, "WORLD_SIZE is '4.0'"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK is 'x'"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT is 'http'"),
        ({"RANK": None}, "RANK is None"),
        ({"WORLD_SIZE": None}, "WORLD_SIZE is None"),
    ],
)
def test_variables_that_contradict_each_other_or_are_no_numbers(changes, says):
    environment = {key: value for key, value in {**DEEPSPEED, **changes}.items() if value is not None}
    with pytest.raises(ConfigError) as caught:
        read_launch(environment)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"SLURM_PROCID": "8"}, "rank 8 of 8 processes"),
        ({"SLURM_STEP_NUM_TASKS": "many"}, "SLURM_STEP_NUM_TASKS is 'many'"),
        ({"SLURM_JOB_ID": "12_3"}, "SLURM_JOB_ID is '12_3'"),
        ({"SLURM_STEP_NODELIST": "[oops"}, "SLURM_STEP_NODELIST is '[oops'; set MASTER_ADDR"),
    ],
)
def test_slurm_variables_that_make_no_sense(changes, says):
    with pytest.raises(ConfigError) as caught:
        read_launch({**SRUN, **changes})
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("nodelist", "first"),
    [
        ("node07", "node07"),
        ("node07,node08", "node07"),
        ("node[07-09,12],login", "node07"),
        ("node[12]", "node12"),
        ("gpu-a[3,1-2]", "gpu-a3"),
        ("login,node[1-2]", "login"),
        ("rack1-node[001-128]", "rack1-node001"),
        ("n[1-2]-ib,n9", "n1-ib"),
        ("r[1-2]n[05-06]", "r1n05"),
        ("a.b.example[1-2].org", "a.b.example1.org"),
        (" node1\n", "node1"),
    ],
)
def test_the_first_host_of_a_node_list(nodelist, first):
    assert first_host(nodelist) == first


@pytest.mark.parametrize("nodelist", ["", "  ", "[", "node[1-2", "node[]", ",node1", "node]1"])
def test_a_node_list_that_cannot_be_read_asks_for_the_address(nodelist):
    with pytest.raises(ConfigError, match="set MASTER_ADDR to the first node's host name"):
        first_host(nodelist)
