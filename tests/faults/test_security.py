"""Whom a run trusts: pickles and code of models, its own servers, their peers, and where secrets may not go."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from mrpo_ds.config.schema import ModelConfig, ReferenceConfig
from mrpo_ds.distributed.launch import Launch
from mrpo_ds.distributed.trust import TOKEN
from mrpo_ds.distributed.worlds import open_rendezvous
from mrpo_ds.errors import ConfigError
from mrpo_ds.models import fingerprint, load_model_config, load_scorer, load_tokenizer
from tests.conftest import Runs
from tests.distributed.harness import make_topology, run_ranks
from tests.faults.peers import come_to_the_bridge, join_with
from tests.support import base_config, command_environment, free_port, make_model, mrpo_ds, need, write_config
from tests.warm import Warm

# ---- models ----------------------------------------------------------------------------------------------------------


class Bomb:
    """Pickled, it is a call: unpickled without care, it leaves a file behind."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def pickled(source: Path, target: Path) -> Path:
    """A copy of a model with its weights in pytorch_model.bin."""
    shutil.copytree(source, target)
    torch.save(load_file(target / "model.safetensors"), target / "pytorch_model.bin")
    (target / "model.safetensors").unlink()
    return target


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("security") / "model")


@pytest.mark.parametrize("key", ["model", "references[r]"])
def test_pickled_weights_are_refused_with_the_key_that_allows_them(tmp_path: Path, model: Path, key: str) -> None:
    path = str(pickled(model, tmp_path / "pickled"))
    config = ModelConfig(path=path) if key == "model" else ReferenceConfig(name="r", path=path)
    with pytest.raises(
        ConfigError, match=r"no \*\.safetensors.*can hold code.*set " + key.replace("[", r"\[")
    ) as caught:
        load_model_config(config)
    assert f"{key}.allow_pickle=true" in str(caught.value)
    with pytest.raises(ConfigError, match="cannot load the model at"):
        load_scorer(config, torch.float32, trainable=False)


def test_pickled_weights_are_the_same_when_they_are_allowed(tmp_path: Path, model: Path) -> None:
    config = ModelConfig(path=str(pickled(model, tmp_path / "pickled")), allow_pickle=True)
    load_model_config(config)
    ours, theirs = (load_scorer(c, torch.float32, True).state_dict() for c in (config, ModelConfig(path=str(model))))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items()) and len(ours) == len(theirs)
    before = fingerprint(config)
    tensors = torch.load(tmp_path / "pickled" / "pytorch_model.bin", weights_only=True)
    tensors["model.norm.weight"] += 1
    torch.save(tensors, tmp_path / "pickled" / "pytorch_model.bin")
    assert fingerprint(config) != before


def test_a_pickle_that_calls_something_is_refused_even_then(tmp_path: Path, model: Path) -> None:
    target = pickled(model, tmp_path / "pickled")
    torch.save({"model.norm.weight": Bomb(tmp_path / "executed")}, target / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="cannot load the model at"):
        load_scorer(ModelConfig(path=str(target), allow_pickle=True), torch.float32, trainable=True)
    assert not (tmp_path / "executed").exists()


def with_code(source: Path, target: Path) -> Path:
    """A copy of a model that is of a class of its own, in a Python file beside it, which leaves a mark when it runs."""
    shutil.copytree(source, target)
    values = json.loads((target / "config.json").read_text())
    values |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnForCausalLM"}}
    (target / "config.json").write_text(json.dumps(values))
    (target / "own.py").write_text(
        "from pathlib import Path\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        f"Path({str(target.parent / 'executed')!r}).touch()\n"
        "class Own(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = Own\n"
    )
    return target


def test_code_of_a_model_runs_only_when_it_is_trusted(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(with_code(model, tmp_path / "with_code"))
    reference = ReferenceConfig(name="r", path=path)
    for load in (load_model_config, lambda config: load_scorer(config, torch.float32, False)):
        with pytest.raises(ConfigError, match=r"set references\[r\]\.trust_remote_code=true to run it, with all"):
            load(reference)
    assert not (tmp_path / "executed").exists()
    trusting = ModelConfig(path=path, trust_remote_code=True)
    assert type(load_model_config(trusting)).__name__ == "Own"
    assert type(load_scorer(trusting, torch.float32, True).model).__name__ == "OwnForCausalLM"
    load_tokenizer(trusting)
    before = fingerprint(trusting)
    (tmp_path / "with_code" / "own.py").write_text("# other code")
    assert fingerprint(trusting) != before


def test_a_run_with_a_pickled_policy_and_a_reference_with_code(warm_runs: Runs, warm: Warm) -> None:
    config = base_config(warm_runs.root, references=1)
    start = Path(config["model"]["path"])
    config["model"] |= {"path": str(pickled(start, warm_runs.root / "pickled")), "allow_pickle": True}
    path = str(with_code(start, warm_runs.root / "with_code"))
    config["references"][0] |= {"path": path, "trust_remote_code": True}
    run = warm_runs.train("trusting", config)
    assert [row["step"] for row in run.metrics] == [1, 2, 3, 4] and (run.directory / "model").is_dir()
    config["references"][0]["trust_remote_code"] = False
    refused = warm.alone("check", str(write_config(warm_runs.root / "refused.yaml", config)))
    assert refused.returncode == 2 and "references[ref1].trust_remote_code=true" in refused.stderr


# ---- the run's own servers -------------------------------------------------------------------------------------------


def listening(processes: list[psutil.Process]) -> dict[str, set[str]]:
    """By address: the names of the processes that listen on it."""
    found: dict[str, set[str]] = {}
    for process in processes:
        for one in process.net_connections("tcp"):
            if one.status == psutil.CONN_LISTEN:
                found.setdefault(one.laddr.ip, set()).add(process.name())
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("servers")


def outer_interface() -> tuple[str, str]:
    """(name, IPv4 address) of an interface of this host that is not the loopback."""
    found = [
        (name, one.address)
        for name, entries in psutil.net_if_addrs().items()
        for one in entries
        if one.family == socket.AF_INET and not one.address.startswith("127.")
    ]
    need(bool(found), "a network interface")
    return found[0]


def live_run(root: Path, name: str, **topology: Any) -> subprocess.Popen[bytes]:
    config = base_config(root, references=1)
    config["topology"] |= topology
    config["train"] |= {"max_steps": 10_000, "epochs": 10_000}
    path = write_config(root / f"{name}.yaml", config | {"output_dir": str(root / name)})
    with (root / f"{name}.txt").open("wb") as console:
        command = [sys.executable, "-m", "mrpo_ds", "train", str(path)]
        return subprocess.Popen(command, env=command_environment(), stdout=console, stderr=subprocess.STDOUT)


@pytest.mark.parametrize("where", [pytest.param("loopback", marks=pytest.mark.all_faults), "interface"])
def test_the_servers_of_a_run_listen_on_one_interface_only(root: Path, where: str) -> None:
    """Its store, the roles' stores, the heartbeat and gloo: policy and reference, over our own launcher."""
    name, address = outer_interface()
    expected = "127.0.0.1" if where == "loopback" else address
    run = live_run(root, where, **({} if where == "loopback" else {"interface": name}))
    try:
        metrics = root / where / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while not metrics.exists() or not metrics.read_bytes():
            assert run.poll() is None and time.monotonic() < deadline, (root / f"{where}.txt").read_text()[-3000:]
            time.sleep(0.1)
        processes = psutil.Process(run.pid).children(recursive=True)
        assert set(listening(processes)) == {expected}
        ranks = [process for process in processes if process.environ().get("RANK") is not None]
        assert len(ranks) == 2 and all(listening([rank]) for rank in ranks), "each has a store and gloo's own"
        command_lines = [argument for process in processes for argument in process.cmdline()]
        assert not any(ranks[0].environ()[TOKEN] in argument for argument in command_lines)
    finally:
        run.send_signal(signal.SIGTERM)
        run.wait(60)


@pytest.mark.parametrize("wanted", ["eth99", "203.0.113.7"])
def test_an_interface_that_is_not_there_is_told_which_are(wanted: str) -> None:
    with pytest.raises(ConfigError, match=rf"topology.interface is '{wanted}'; allowed on .*lo \(127\.0\.0\.1"):
        open_rendezvous(Launch(0, 1, 0, "127.0.0.1", free_port(), None), 5, wanted)


def test_a_main_address_that_is_not_on_the_interface_is_refused() -> None:
    name, address = outer_interface()
    message = rf"topology.interface is '{name}' \({address}\), but MASTER_ADDR is '127.0.0.1' .*launcher {address}"
    with pytest.raises(ConfigError, match=message):
        open_rendezvous(Launch(0, 1, 0, "127.0.0.1", free_port(), None), 5, name)


# ---- peers -----------------------------------------------------------------------------------------------------------

TOKENS = ("a" * 32, "b" * 32)


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        ([TOKENS[0], TOKENS[0]], ""),
        ([None, None], ""),
        ([TOKENS[0], TOKENS[1]], f"rank 1 was given a {TOKEN}, but global rank 0 was given another one"),
        ([TOKENS[0], None], f"global rank 0 was given {TOKEN}, rank 1 was not"),
        ([None, TOKENS[1]], f"rank 1 was given a {TOKEN}, but global rank 0 was given none"),
        (["short", "short"], f"{TOKEN} is '5 characters long'"),
    ],
)
def test_a_process_with_another_token_is_refused_and_told_the_variable(tokens: list[str | None], says: str) -> None:
    answers = run_ranks(join_with, make_topology(1, a=1), tokens)
    assert answers[1].startswith(says) and bool(answers[1]) == bool(says)
    assert not any(token in answer for answer in answers for token in TOKENS)


def test_a_leader_without_the_token_does_not_get_onto_the_bridge() -> None:
    policy, _ = run_ranks(come_to_the_bridge, make_topology(1, a=1))
    assert policy.startswith("who came to the bridge as ref/a does not have this run's token")


# ---- secrets ---------------------------------------------------------------------------------------------------------

SECRETS = {
    "HF_TOKEN": "hf_planted0SecretOfTheHub0123456789",
    "HUGGING_FACE_HUB_TOKEN": "hf_planted1SecretOfTheHub0123456789",
    "WANDB_API_KEY": "planted2" + "0123456789abcdef" * 2,
    "AWS_SECRET_ACCESS_KEY": "planted3SecretOfTheCloud/0123456789",
    TOKEN: "planted4TokenOfTheRun0123456789",
}


def test_no_secret_of_the_environment_is_in_any_file_or_on_the_console(tmp_path: Path) -> None:
    """A run with checkpoints and W&B, to its end through a failure that it skips; what it prepares and prints too."""
    config = base_config(tmp_path, references=1)
    config["train"] |= {"learning_rate": 1e12, "warmup_ratio": 0.0, "scheduler": "constant", "max_skipped_steps": 9}
    config["checkpoint"] = {"every_steps": 2}
    config["tracking"] = {"plots": False, "wandb": {"mode": "offline"}}
    config["topology"]["placement"] = "colocated"
    path = str(write_config(tmp_path / "config.yaml", config))
    planted = {**SECRETS, "MRPO_DS_CACHE": str(tmp_path / "cache")}
    run = mrpo_ds("train", path, **planted)
    assert run.returncode == 0, run.stderr[-3000:]
    (tmp_path / "console").write_text(run.stdout + run.stderr)
    below = [file for file in tmp_path.rglob("*") if file.is_file()]
    names = {file.name for file in below}
    assert {"step-00000002.json", "state.json", "config.yaml", "summary.json", "metrics.jsonl"} <= names
    assert any(name.endswith(".wandb") for name in names)
    found = [(file, key) for file in below for key, value in SECRETS.items() if value.encode() in file.read_bytes()]
    assert not found
