"""The workspace of W&B: without a key and without a network, as far as that goes; saving, to a server on loopback."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from mrpo_ds.cli import main
from mrpo_ds.dashboard.sections import SECTIONS
from tests.support import need

pytest.importorskip("wandb_workspaces", reason="pip install 'mrpo-ds[dashboards]'")


@pytest.fixture
def without_key(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))


def panels_of(content):
    return {section["name"]: section["panels"] for section in content["spec"]["section"]["panelBankConfig"]["sections"]}


def test_a_dry_run_writes_all_sections(without_key, tmp_path):
    path = tmp_path / "workspace.json"
    assert main(["dashboard", "wandb", "--project", "p", "--entity", "e", "--dry-run", str(path)]) == 0
    content = json.loads(path.read_text())
    assert (content["entity"], content["project"], content["name"]) == ("e", "p", "mrpo-ds")
    found = panels_of(content)
    assert list(found) == [section.title for section in SECTIONS]
    for section in SECTIONS:
        charts = [panel["config"] for panel in found[section.title] if panel["viewType"] == "Run History Line Plot"]
        assert [chart["chartTitle"] for chart in charts] == [panel.title for panel in section.panels]
        for chart, panel in zip(charts, section.panels, strict=True):
            assert chart["xAxis"] == "train/global_step"
            if any(line.per_reference for line in panel.lines):
                assert chart["useMetricRegex"] and chart["metricRegex"].startswith("^(")
            else:
                assert chart["metrics"] == [line.pattern for line in panel.lines]
        (words,) = [panel["config"]["value"] for panel in found[section.title] if "Markdown" in panel["viewType"]]
        assert all(panel.good in words for panel in section.panels)
    assert "samples/table" in json.dumps(found["Evaluation"])
    first = path.read_bytes()
    assert main(["dashboard", "wandb", "--project", "p", "--entity", "e", "--dry-run", str(path)]) == 0
    assert path.read_bytes() == first, "the same each time, so that it can be kept in a repository"


def can_cut():
    return subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False).returncode == 0


def test_a_dry_run_needs_no_network_at_all(without_key, tmp_path):
    need(shutil.which("unshare") is not None and can_cut(), "unshare, and leave to make a network namespace")
    path = tmp_path / "workspace.json"
    command = ["unshare", "-rn", sys.executable, "-m", "mrpo_ds", "dashboard", "wandb", "--dry-run", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(path.read_text())["entity"] is None


def test_without_a_key_it_says_what_to_do(without_key, capsys):
    assert main(["dashboard", "wandb"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mrpo-ds: error: there is no key for W&B") and "--dry-run FILE" in line


def test_what_is_no_workspace_is_not_replaced(without_key, tmp_path, capsys):
    path = tmp_path / "notes.txt"
    for content in ("dear diary", '{"a": 1}'):
        path.write_text(content)
        assert main(["dashboard", "wandb", "--dry-run", str(path)]) == 2
        assert "is no workspace, so it is not replaced" in capsys.readouterr().err
        assert path.read_text() == content
    assert main(["dashboard", "wandb", "--dry-run", str(tmp_path / "missing" / "x.json")]) == 2
    assert "cannot be written (No such file or directory)" in capsys.readouterr().err
