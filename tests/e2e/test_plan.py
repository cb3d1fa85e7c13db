"""The plan command on a tiny run: what it prints is there, adds up, and is about what the run takes."""

import re

import pytest

from tests.support import ROOT, base_config, mrpo_ds, write_config

MACHINE = str(ROOT / "launch/machines/cpu2.yaml")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("plan")
    config = base_config(root)
    config["train"] |= {"max_steps": None, "epochs": 3}
    return write_config(root / "config.yaml", config)


@pytest.fixture(scope="module")
def plan(config):
    process = mrpo_ds("plan", str(config), "--machine", MACHINE, "--gpus", "4")
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_every_role_has_its_memory_by_parts(plan):
    blocks = re.findall(r"^  (policy|ref/\w+) \(1 rank\): ([\d.]+)\n((?:    +[\d.]+  .*\n)+)", plan, re.MULTILINE)
    assert [name for name, _, _ in blocks] == ["policy", "ref/ref1", "ref/ref2"]
    for _, total, parts in blocks:
        listed = [float(line.split()[0]) for line in parts.splitlines()]
        assert sum(listed) == pytest.approx(float(total), abs=0.03) and "baseline" in parts


def test_every_placement_has_its_seconds_by_parts(plan):
    for placement in ("served", "colocated", "stored"):
        total, parts = re.search(rf"^  {placement} +([\d.]+)  \((.*)\)$", plan, re.MULTILINE).groups()
        assert sum(float(part.split()[-1]) for part in parts.split(", ")) == pytest.approx(float(total), rel=0.02)
    assert "ref/ref1 compute" in plan and "optimizer" in plan


def test_it_advises(plan):
    assert re.search(
        r"best ranks of 4 devices, served: topology: \{policy: \d, references: \{ref1: \d, ref2: \d\}\}", plan
    )
    assert re.search(r"^cheapest: \w+ takes .* the run sees its rows 3 times\.$", plan, re.MULTILINE)


def test_it_touches_no_weights(warm, config):
    """The models' weights are gone, and the plan is the same."""
    for weights in (config.parent / "models").rglob("*.safetensors"):
        weights.write_bytes(b"")
    process = warm.alone("plan", str(config), "--machine", MACHINE, "--gpus", "4")
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "plan needs a machine: allowed: --machine FILE"),
        (("--machine", MACHINE, "--measure"), "plan needs a machine"),
        (("--machine", "nowhere.yaml"), "machine file 'nowhere.yaml' does not exist; see launch/machines"),
        (("--machine", MACHINE, "--save", "x.yaml"), "--save is 'x.yaml'; allowed: only with --measure."),
        (("--machine", MACHINE, "--gpus", "0"), "--gpus is 0; allowed: >= 1."),
    ],
)
def test_bad_input_is_one_line(warm, config, arguments, message):
    process = warm.alone("plan", str(config), *arguments)
    assert process.returncode == 2 and process.stdout == ""
    (line,) = process.stderr.splitlines()
    assert message in line


def test_this_machine_can_be_measured(config, tmp_path):
    saved = tmp_path / "machine.yaml"
    process = mrpo_ds("plan", str(config), "--measure", "2", "--save", str(saved))
    assert process.returncode == 0, process.stderr
    again = mrpo_ds("plan", str(config), "--machine", str(saved))
    assert again.returncode == 0 and again.stdout == process.stdout
