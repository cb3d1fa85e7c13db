"""Dashboards of real runs in a real browser: of one, and of three side by side."""

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from mrpo_ds.dashboard.charts import is_unplanned
from mrpo_ds.dashboard.sections import SECTIONS
from tests.browser import Tab, browser_tab
from tests.support import base_config, mrpo_ds, need

LAPTOP, PHONE = 1280, 390
ON_THE_PLOT = (
    "(() => {const box = document.querySelector('%s .plot').getBoundingClientRect(); return [box.x, box.y]})()"
)


@pytest.fixture(scope="module")
def finished(warm_runs) -> list[Path]:
    """Three tiny runs: two references, the same with another beta, and one reference."""
    shared = {"placement": "colocated"}
    losses = {"mrpo": {"name": "mrpo", "beta": 0.1}, "wide": {"name": "mrpo", "beta": 0.5}, "dpo": {"name": "dpo"}}
    configs = {}
    for name, loss in losses.items():
        config = base_config(warm_runs.root, references=1 if name == "dpo" else 2)
        config |= {"loss": loss, "topology": {**config["topology"], **shared}, "evaluate": {"every_steps": 2}}
        configs[name] = config
    run = warm_runs.begin(configs)
    return [run(name).directory for name in configs]


@pytest.fixture(scope="module")
def pages(finished, tmp_path_factory) -> dict[str, Path]:
    """The pages that the command writes, below a name that would be a tag."""
    root = tmp_path_factory.mktemp("pages")
    hostile = root / "<script>alert(1)<script>"
    shutil.copytree(finished[0], hostile)
    made = {"one": (root / "one.html", [hostile]), "three": (root / "three.html", finished)}
    for path, runs in made.values():
        done = mrpo_ds("dashboard", "html", *map(str, runs), "--out", str(path))
        assert done.returncode == 0, done.stderr
        assert f"dashboard: {path}" in done.stderr
        assert "warning" not in done.stderr
    return {name: path for name, (path, _) in made.items()}


@pytest.fixture(scope="module")
def tab(tmp_path_factory) -> Iterator[Tab]:
    need(shutil.which("chromium") is not None, "chromium (apt-get install chromium)")
    with browser_tab(tmp_path_factory.mktemp("browser") / "profile") as tab:
        yield tab


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [LAPTOP, PHONE])
@pytest.mark.parametrize("name", ["one", "three"])
def test_a_page_is_quiet_alone_and_fits(pages, tab, name, width, dark):
    tab.complaints.clear()
    tab.requests.clear()
    tab.open(pages[name], width, dark=dark)
    assert tab.complaints == []
    assert tab.requests == [pages[name].resolve().as_uri()]
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    data = json.loads(tab.evaluate("document.getElementById('data').textContent"))
    # One chart that was not drawn would be one too few.
    assert tab.evaluate("document.querySelectorAll('.plot svg .tick').length > 0")
    assert tab.evaluate("[...document.querySelectorAll('.plot')].every((plot) => plot.querySelector('svg .line'))")
    assert tab.evaluate("document.querySelectorAll('.plot').length") == len(data["charts"]) > 30
    parts = "[...document.querySelectorAll('figure, .plot svg')]"
    edges = f"Math.max(...{parts}.map((one) => one.getBoundingClientRect().right))"
    assert tab.evaluate(edges) <= width
    ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(20, 24, 29)") == dark


def test_every_metric_of_real_runs_is_planned(finished):
    for directory in finished:
        for kind, file in (("train", "metrics.jsonl"), ("eval", "evals.jsonl")):
            rows = [json.loads(line) for line in (directory / file).read_text().splitlines()]
            names = {name for row in rows for name in row} - {"step"}
            assert len(names) > 15
            assert [name for name in sorted(names) if is_unplanned(f"{kind}/{name}")] == []


def test_pointing_and_keys_read_the_values_of_the_run(pages, tab, finished):
    rows = [json.loads(line) for line in (finished[0] / "metrics.jsonl").read_text().splitlines()]
    tab.open(pages["one"], LAPTOP)
    loss = "#chart-0"
    tab.evaluate(f"document.querySelector('{loss}').scrollIntoView({{block: 'center'}})")
    x, y = tab.evaluate(ON_THE_PLOT % loss)
    assert tab.evaluate(f"document.querySelector('{loss} .tip').hidden")
    tab.move(x + 60, y + 80)
    said = tab.evaluate(f"document.querySelector('{loss} .tip').innerText")
    assert said.startswith("step 0") and "evaluation: " in said and "training: none yet" in said
    tab.evaluate(f"document.querySelector('{loss} .plot').focus()")
    tab.press("End")
    said = tab.evaluate(f"document.querySelector('{loss} .tip').innerText").splitlines()
    assert said[0] == f"step {rows[-1]['step']}"
    assert float(said[1].removeprefix("training: ")) == pytest.approx(rows[-1]["loss"], rel=1e-3)
    tab.press("ArrowLeft")
    said = tab.evaluate(f"document.querySelector('{loss} .tip').innerText").splitlines()
    assert float(said[1].removeprefix("training: ")) == pytest.approx(rows[-2]["loss"], rel=1e-3)
    tab.press("Escape")
    assert tab.evaluate(f"document.querySelector('{loss} .tip').hidden")


def test_switches_take_lines_away_and_change_the_scale(pages, tab):
    tab.open(pages["three"], LAPTOP)
    lines = "document.querySelectorAll('#chart-0 .line').length"
    count = tab.evaluate(lines)
    assert count == 6  # three runs, training and evaluation
    wait = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))"
    tab.evaluate("document.querySelector('#runs button').click()")
    tab.evaluate(wait)
    assert tab.evaluate(lines) == 4
    tab.evaluate("document.querySelector('#chart-0 .tools button').click()")
    assert tab.evaluate(lines) == 2
    texts = "[...document.querySelectorAll('#chart-0 text')].map((one) => one.getAttribute('y')).join()"
    before = tab.evaluate(texts)
    tab.evaluate("document.querySelector('#chart-0 .scale').click()")
    assert tab.evaluate(texts) != before
    tab.evaluate("document.querySelector('#smoothing').value = '0.9'")
    tab.evaluate("document.querySelector('#smoothing').dispatchEvent(new Event('input'))")
    tab.evaluate(wait)
    assert tab.evaluate("document.querySelector('#smoothing-value').value") == "0.90"
    assert tab.evaluate("document.querySelectorAll('.plot .raw').length > 0")


@contextmanager
def server(view: dict[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(address, what it was asked): W&B itself cannot run here, so this takes what its real client sends.

    view: what it answers when a workspace is to be saved.
    """
    taken: list[dict[str, Any]] = []

    class Server(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            taken.append(request)
            viewer = {"viewer": {"id": "u", "username": "me", "entity": "me", "flags": "{}", "teams": {"edges": []}}}
            content = json.dumps(view if "upsertView" in request["query"] else {"data": viewer}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.server_port}", taken
    finally:
        listening.shutdown()
        listening.server_close()


def save_workspace(address: str, home: Path) -> CompletedProcess[str]:
    pytest.importorskip("wandb_workspaces", reason="pip install 'mrpo-ds[dashboards]'")
    environment = {"WANDB_BASE_URL": address, "WANDB_API_KEY": "0" * 40, "HOME": str(home)}
    return mrpo_ds("dashboard", "wandb", "--project", "p", **environment)


def test_a_workspace_is_saved_to_a_server_with_all_its_sections(tmp_path):
    view = {"data": {"upsertView": {"view": {"id": "v1", "name": "nw-abc-v"}, "inserted": True}}}
    with server(view) as (address, taken):
        done = save_workspace(address, tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"workspace: {address}/me/p?nw=abc" in done.stderr
    (saved,) = [one["variables"] for one in taken if "upsertView" in one["query"]]
    assert (saved["entityName"], saved["projectName"], saved["displayName"]) == ("me", "p", "mrpo-ds")
    sections = json.loads(saved["spec"])["section"]["panelBankConfig"]["sections"]
    assert [one["name"] for one in sections] == [section.title for section in SECTIONS]


def test_a_server_that_refuses_the_workspace_is_one_line(tmp_path):
    with server({"data": None, "errors": [{"message": "permission denied"}]}) as (address, _):
        done = save_workspace(address, tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("mrpo-ds: error: W&B did not take the workspace for project 'p' (")
    assert "permission denied" in line
