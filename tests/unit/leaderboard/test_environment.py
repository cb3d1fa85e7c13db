"""What a worker is not told: that it is one of many."""

import pytest
import torch

from mrpo_ds.errors import ConfigError
from mrpo_ds.leaderboard.environment import visible_devices, worker_environment

LEAKED = [
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "GROUP_WORLD_SIZE",
    "ROLE_RANK",
    "ROLE_NAME",
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_USE_AGENT_STORE",
    "ACCELERATE_USE_DEEPSPEED",
    "FSDP_VERSION",
    "DEEPSPEED_TIMEOUT",
    "SLURM_PROCID",
    "SLURM_NTASKS",
    "SLURM_JOB_ID",
    "PMI_RANK",
    "OMPI_COMM_WORLD_RANK",
    "MRPO_DS_CHECKED",
    "MRPO_DS_TOKEN",
]
KEPT = {"HOME": "/h", "PATH": "/bin", "HF_HOME": "/hf", "MRPO_DS_CACHE": "/c", "OMP_NUM_THREADS": "2"}


def test_the_launchers_variables_are_gone_and_the_others_stay():
    made = worker_environment({**dict.fromkeys(LEAKED, "1"), **KEPT}, "cpu", offline=False)
    assert not set(LEAKED) & set(made)
    assert made.items() >= KEPT.items()


def test_one_device_is_seen():
    assert worker_environment(KEPT, "cuda:3", offline=False)["CUDA_VISIBLE_DEVICES"] == "3"
    on_cpu = worker_environment({**KEPT, "CUDA_VISIBLE_DEVICES": "0,1"}, "cpu", offline=False)
    assert on_cpu["CUDA_VISIBLE_DEVICES"] == ""
    assert on_cpu["DS_ACCELERATOR"] == "cpu"


def test_offline_means_offline_whatever_the_variables_said():
    made = worker_environment({**KEPT, "HF_DATASETS_OFFLINE": "0", "HF_HUB_OFFLINE": "0"}, "cpu", offline=True)
    assert made["HF_HUB_OFFLINE"] == made["HF_DATASETS_OFFLINE"] == "1"


def test_prepared_tables_go_where_we_may_write(monkeypatch):
    monkeypatch.setenv("MRPO_DS_CACHE", "/c")
    assert worker_environment(KEPT, "cpu", offline=True)["HF_DATASETS_CACHE"] == "/c/leaderboard/datasets"
    theirs = {**KEPT, "HF_DATASETS_CACHE": "/mine"}
    assert worker_environment(theirs, "cpu", offline=True)["HF_DATASETS_CACHE"] == "/mine"


def test_devices_are_entries_of_what_is_visible(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-5,6")
    assert visible_devices(None) == ["cuda:4", "cuda:GPU-5", "cuda:6"]
    assert visible_devices("1,0") == ["cuda:GPU-5", "cuda:4"]
    assert visible_devices("cpu") == ["cpu"]
    for wrong in ("3", "0,0", "gpu", ""):
        with pytest.raises(ConfigError, match="numbers of GPUs, 0 to 2"):
            visible_devices(wrong)


def test_without_a_gpu_it_is_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert visible_devices(None) == ["cpu"]
    with pytest.raises(ConfigError, match="there is no GPU here"):
        visible_devices("0")
