"""Machine files: the examples load, and mistakes are said as anywhere else."""

from dataclasses import asdict, replace

import pytest
import yaml

from mrpo_ds.config.load import load_config
from mrpo_ds.errors import ConfigError
from mrpo_ds.plan.command import plan_run
from mrpo_ds.plan.machine import load_machine
from mrpo_ds.plan.measure import save_machine
from tests.support import ROOT

EXAMPLES = sorted((ROOT / "launch/machines").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_load(path):
    machine = load_machine(str(path))
    assert machine.devices >= 2 and machine.tflops.bf16 > machine.tflops.fp32


def test_there_are_the_examples_that_messages_point_to():
    assert {path.stem for path in EXAMPLES} >= {"h100x8", "a100x8", "cpu2"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"memory_gibs": 80}, "memory_gibs: unknown key; did you mean 'memory_gib'?"),
        ({"devices": 0}, "devices is 0; allowed: >= 1."),
        ({"devices": "many"}, "devices is 'many'; allowed: a whole number."),
        ({"tflops": {"bf16": 1.0, "fp32": -1.0}}, "tflops.fp32 is -1.0; allowed: > 0 teraflop/s."),
        ({"tflops": {"fp16": 1.0}}, "tflops.fp16: unknown key; did you mean 'bf16'?"),
        ({"tflops": 600}, r"tflops is 600; allowed: a mapping (bf16, fp32)"),
        ({"kind": "tpu"}, "kind is 'tpu'; allowed: gpu | cpu."),
        ({"launch_us": -1}, "launch_us is -1.0; allowed: >= 0."),
        ({"link_gbs": None}, "link_gbs is None; allowed: a number."),
    ],
)
def test_what_is_wrong_is_said(tmp_path, change, message):
    values = yaml.safe_load(EXAMPLES[0].read_text())
    path = tmp_path / "machine.yaml"
    path.write_text(yaml.safe_dump({**values, **change}))
    with pytest.raises(ConfigError) as caught:
        load_machine(str(path))
    assert message in str(caught.value)


def test_a_missing_figure_and_a_missing_file(tmp_path):
    values = yaml.safe_load(EXAMPLES[0].read_text())
    del values["disk_gbs"]
    path = tmp_path / "machine.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match="disk_gbs is missing"):
        load_machine(str(path))
    with pytest.raises(ConfigError, match="machine file '.*none.yaml' does not exist; see launch/machines"):
        load_machine(str(tmp_path / "none.yaml"))
    path.write_text("- 1\n")
    with pytest.raises(ConfigError, match="machine file .* is not a mapping of sections; see launch/machines"):
        load_machine(str(path))


def test_what_is_saved_loads_again(tmp_path):
    machine = replace(load_machine(str(EXAMPLES[0])), name='odd: "name" # 2', devices=3)
    save_machine(machine, str(tmp_path / "saved.yaml"))
    assert asdict(load_machine(str(tmp_path / "saved.yaml"))) == asdict(machine)
    with pytest.raises(ConfigError, match="--save .* cannot be written"):
        save_machine(machine, str(tmp_path / "no/such/folder.yaml"))


def test_a_collective_is_as_slow_as_its_slowest_link():
    machine = replace(load_machine(str(EXAMPLES[0])), devices_per_node=8, link_gbs=300.0, internode_gbs=40.0)
    assert (machine.between(8), machine.between(9)) == (300.0, 40.0)


@pytest.mark.parametrize("name", ["zero1", "zero2"])
def test_stages_that_the_plan_does_not_know_are_refused(name):
    config = load_config("launch/configs/quickstart.yaml", [f"deepspeed=ds_configs/{name}.json"])
    with pytest.raises(ConfigError, match=f"deepspeed is 'ds_configs/{name}.json'; allowed: a file with stage 3"):
        plan_run(config, "launch/machines/h100x8.yaml", None, None, None)
