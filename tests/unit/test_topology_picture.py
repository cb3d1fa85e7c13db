"""The drawing of who sits where: every rank once, leaders marked, mistakes named."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread

from mrpo_ds.cli import main
from mrpo_ds.config.schema import Config, ReferenceConfig, TopologyConfig
from mrpo_ds.errors import ConfigError
from mrpo_ds.topology_picture import draw_png, draw_text, seat

QUICKSTART = "launch/configs/quickstart.yaml"


def config_of(policy: int, sizes: Sequence[int], share_gpus: bool = False, placement: str = "served") -> Config:
    names = [f"r{index}" for index in range(len(sizes))]
    ranks = dict(zip(names, sizes, strict=True))
    topology = TopologyConfig(policy=policy, references=ranks, share_gpus=share_gpus, placement=placement)
    return Config(references=[ReferenceConfig(name=name, path="p") for name in names], topology=topology)


def test_a_small_cluster() -> None:
    lines = draw_text(seat(config_of(2, [3, 2]), None, 4))
    assert lines[:5] == [
        "2 nodes of 4 GPUs, 7 processes, placement served",
        "",
        "        GPU 0      GPU 1     GPU 2      GPU 3",
        "node 0  policy 0*  policy 1  ref/r1 2*  ref/r1 3",
        "node 1  ref/r0 4*  ref/r0 5  ref/r0 6   -",
    ]
    assert "In an order of their own, so that fewer lie on two nodes: ref/r0, ref/r1." in lines
    assert lines[-1] == "1 GPU stays idle."


@given(
    policy=st.integers(1, 6),
    sizes=st.lists(st.integers(1, 4), max_size=4),
    gpus=st.integers(1, 9),
)
def test_every_rank_sits_somewhere_and_every_role_has_one_leader(policy: int, sizes: list[int], gpus: int) -> None:
    seats = seat(config_of(policy, sizes), None, gpus)
    lines = draw_text(seats)
    text = "\n".join(line.partition("  ")[2] for line in lines[3 : lines.index("", 3)])
    ranks = set()
    for first, last in re.findall(r" (\d+)\*?(?:\.\.(\d+))?", text):
        ranks |= set(range(int(first), int(last or first) + 1, gpus))  # nodes that are alike share a row
    assert ranks == set(range(policy + sum(sizes)))
    assert text.count("*") == 1 + len(sizes)


def test_thousands_of_nodes_are_a_few_rows() -> None:
    lines = draw_text(seat(config_of(8192, [64, 64]), None, 8))
    assert len(lines) < 16
    assert any(re.match(r"nodes 1-1023 +policy 8\.\.8184 ", line) for line in lines)


def test_shared_gpus_hold_several_ranks() -> None:
    lines = draw_text(seat(config_of(1, [1], share_gpus=True), 1, 1))
    assert "policy 0* + ref/r0 1*" in lines[3]


@pytest.mark.parametrize(("placement", "says"), [("colocated", "sit on the policy's ranks"), ("stored", "the store")])
def test_references_without_ranks_are_explained(placement: str, says: str) -> None:
    lines = draw_text(seat(config_of(2, [1], placement=placement), None, None))
    assert any(says in line for line in lines) and "2 processes" in lines[0]


def test_a_reference_that_fits_nowhere_is_said_to_cross_the_network() -> None:
    lines = draw_text(seat(config_of(2, [6]), None, 4))
    assert "ref/r0 has 6 ranks on nodes 0, 1: its forwards cross the network." in lines


@pytest.mark.parametrize(
    ("nodes", "gpus", "says"),
    [
        (1, 4, "the run has 7 ranks .* but 1 x 4 GPUs are 4; allowed: more --nodes"),
        (0, None, "--nodes is 0; allowed: >= 1"),
        (None, -1, "--gpus-per-node is -1; allowed: >= 1"),
    ],
)
def test_too_few_gpus_are_named(nodes: int | None, gpus: int | None, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        seat(config_of(2, [3, 2]), nodes, gpus)


def test_the_picture_is_a_png_and_replaces_nothing_else(tmp_path: Path) -> None:
    seats = seat(config_of(2, [3, 2]), None, 4)
    path = tmp_path / "who.png"
    for _ in range(2):  # its own kind is replaced
        draw_png(seats, path)
        height, width, _ = imread(path).shape
        assert width > 900 and height > 400
        assert [file.name for file in tmp_path.iterdir()] == ["who.png"]
    path.write_text("notes")
    with pytest.raises(ConfigError, match="is no PNG, so it is not replaced"):
        draw_png(seats, path)
    assert path.read_text() == "notes"
    with pytest.raises(ConfigError, match="there is no folder"):
        draw_png(seats, tmp_path / "absent" / "who.png")


def test_the_command_reads_no_data_and_prints_the_drawing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    png = tmp_path / "who.png"
    assert main(["check", QUICKSTART, "data.train=[{source: nowhere.jsonl}]", "--topology", "--png", str(png)]) == 0
    said = capsys.readouterr()
    assert "policy 0*" in said.out and "ref/gemma3 3*" in said.out and png.exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--nodes", "2"], "--topology is False; allowed: to be given with --nodes"),
        (["--topology", "--html", "page.html"], "--html is 'page.html'; allowed: without --topology"),
        (["--topology", "--nodes", "1", "--gpus-per-node", "1"], "but 1 x 1 GPUs are 1"),
        (["--topology", "--nodes", "0"], "--nodes is 0; allowed: >= 1"),
    ],
)
def test_options_that_make_no_sense_are_one_line(
    capsys: pytest.CaptureFixture[str], options: list[str], says: str
) -> None:
    assert main(["check", QUICKSTART, "topology.share_gpus=false", *options]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1
