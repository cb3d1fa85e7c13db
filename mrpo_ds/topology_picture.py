"""Who sits where: the roles of a run over nodes and GPUs, as text and as a PNG. matplotlib is loaded for the PNG."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

from mrpo_ds.config.schema import Config
from mrpo_ds.distributed.placement import nodes_of, place
from mrpo_ds.distributed.topology import Topology, build_topology
from mrpo_ds.errors import ConfigError, require
from mrpo_ds.manifest import write_atomic
from mrpo_ds.plots import CYCLE, DOTS_PER_INCH, GREY

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEADER = "*"
MOST_ROWS = 64
"""Of a picture; nodes that are alike share a row, so more would be a strange cluster."""
CELL_WIDTH, CELL_HEIGHT, HEAD_HEIGHT, NOTE_HEIGHT = 1.35, 0.62, 1.0, 0.24
"""Inches."""
LONGEST_LINE = 16
"""Letters of a role's name before it is broken."""
FEWEST_COLUMNS = 5
"""So many cells wide is the picture at least, for what is written below."""


@dataclass(frozen=True)
class Seats:
    """The roles of a run on nodes of a cluster."""

    topology: Topology
    nodes: list[str]
    """The node of each global rank: its number from 0 on."""
    count: int
    """Nodes there are, with those that stay empty."""
    gpus: int
    """Of a node."""
    placement: str
    """topology.placement."""
    moved: list[str]
    """References that are not where the order of the configuration would have put them."""


@dataclass(frozen=True)
class _Row:
    """A node, or nodes in a row that are alike."""

    name: str
    cells: list[tuple[str, str]]
    """Of each GPU: (role, what to write), or ("", "-")."""


def draw_topology(config: Config, nodes: int | None, gpus_per_node: int | None, png: str | None) -> None:
    """Print the drawing of a run on stdout, and write it to a file. Raises ConfigError as seat and draw_png do."""
    seats = seat(config, nodes, gpus_per_node)
    if png is not None:
        draw_png(seats, Path(png))
    for line in draw_text(seats):
        print(line, flush=True)


def seat(config: Config, nodes: int | None, gpus_per_node: int | None) -> Seats:
    """Where a launcher that fills node after node puts the roles of a run.

    Args:
        config: the run.
        nodes: how many there are; None: as many as it takes.
        gpus_per_node: how many each has; None: so many that the nodes hold the run.

    Raises ConfigError when there are too few.
    """
    topology = build_topology(config)
    ranks = topology.world_size
    require(nodes is None or nodes >= 1, "--nodes", nodes, ">= 1")
    require(gpus_per_node is None or gpus_per_node >= 1, "--gpus-per-node", gpus_per_node, ">= 1")
    gpus = gpus_per_node or -(-ranks // (nodes or 1))
    count = nodes or -(-ranks // gpus)
    per_node = gpus
    if ranks > count * gpus:
        if not config.topology.share_gpus:
            raise ConfigError(
                f"the run has {ranks} ranks ({topology.describe()}), but {count} x {gpus} GPUs are {count * gpus}; "
                "allowed: more --nodes or --gpus-per-node, fewer ranks in topology, or topology.share_gpus=true."
            )
        per_node = -(-ranks // count)
    on = [str(rank // per_node) for rank in range(ranks)]
    placed = place(topology, on)
    moved = [after.name for before, after in zip(topology.roles, placed.roles, strict=True) if before != after]
    return Seats(placed, on, count, gpus, config.topology.placement, moved)


def draw_text(seats: Seats) -> list[str]:
    """The lines of the drawing: a row per node, and what it means."""
    rows = list(_rows(seats))
    widths = [max(len(row.cells[gpu][1]) for row in rows) for gpu in range(seats.gpus)]
    widths = [max(width, len(f"GPU {gpu}")) for gpu, width in enumerate(widths)]
    left = max(len(row.name) for row in rows)
    lines = [_title(seats), ""]
    lines.append("  ".join([" " * left, *(f"GPU {gpu}".ljust(width) for gpu, width in enumerate(widths))]).rstrip())
    for row in rows:
        words = [text.ljust(width) for (_, text), width in zip(row.cells, widths, strict=True)]
        lines.append("  ".join([row.name.ljust(left), *words]).rstrip())
    return [*lines, "", *_notes(seats)]


def draw_png(seats: Seats, path: Path) -> None:
    """The same as a PNG, written whole or not at all. Raises ConfigError when it cannot be written there."""
    # A Figure of its own, without pyplot, is drawn by Agg: no display, no backend to choose, no state left behind.
    from matplotlib.figure import Figure

    _check_png(path)
    rows, notes = list(_rows(seats)), _notes(seats)
    require(len(rows) <= MOST_ROWS, "rows of the picture", len(rows), f"<= {MOST_ROWS}", "Take the text without --png.")
    left = 0.1 * max(len(row.name) for row in rows) + 0.3
    width = left + CELL_WIDTH * max(seats.gpus, FEWEST_COLUMNS) + 0.1
    below = HEAD_HEIGHT + CELL_HEIGHT * len(rows) + 0.3
    height = below + NOTE_HEIGHT * len(notes)
    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))  # inches, from the top
    axes.axis("off")
    axes.text(0.15, 0.32, _title(seats), weight="bold", va="center")
    for gpu in range(seats.gpus):
        axes.text(left + CELL_WIDTH * (gpu + 0.5), 0.8, f"GPU {gpu}", ha="center", va="center", color=GREY)
    colours = {role.name: CYCLE[index % len(CYCLE)] for index, role in enumerate(seats.topology.roles)}
    for number, row in enumerate(rows):
        y = HEAD_HEIGHT + CELL_HEIGHT * number
        axes.text(0.15, y + CELL_HEIGHT / 2, row.name, va="center", color=GREY)
        for gpu, (role, text) in enumerate(row.cells):
            _draw_cell(axes, left + CELL_WIDTH * gpu, y, text, colours.get(role))
    for number, note in enumerate(notes):
        axes.text(0.15, below + NOTE_HEIGHT * number, note, va="center", fontsize=8)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    try:
        write_atomic(path.resolve(), content.getvalue())
    except OSError as error:
        raise ConfigError(
            f"--png is {str(path)!r}, which cannot be written ({error.strerror}); choose another place."
        ) from error


def _draw_cell(axes: "Axes", x: float, y: float, text: str, colour: str | None) -> None:
    """A GPU, with the leader of a role in a thick frame. colour: None for one that stays idle."""
    from matplotlib.patches import FancyBboxPatch

    gap, lead = 0.05, LEADER in text
    box = FancyBboxPatch(
        (x + gap, y + gap),
        CELL_WIDTH - 2 * gap,
        CELL_HEIGHT - 2 * gap,
        boxstyle="round,pad=0,rounding_size=0.06",
        facecolor=colour or "white",
        edgecolor="black" if lead else colour or "#CCCCCC",
        linewidth=2.2 if lead else 1.0,
    )
    axes.add_patch(box)
    name, _, rank = text.partition(" ")
    words = text.replace(" + ", "\n") if "+" in text else "\n".join([*wrap(name, LONGEST_LINE), rank])
    longest = max(map(len, words.split("\n")))
    axes.text(
        x + CELL_WIDTH / 2,
        y + CELL_HEIGHT / 2,
        words,
        ha="center",
        va="center",
        color="white" if colour else "#999999",
        weight="bold" if lead else "normal",
        fontsize=min(9.0, 130.0 / longest),
        linespacing=1.2,
    )


def _check_png(path: Path) -> None:
    """Raise ConfigError when there is something that is no PNG, or no folder to write to."""
    if not path.resolve().parent.is_dir():
        raise ConfigError(f"--png is {str(path)!r}, but there is no folder {str(path.resolve().parent)!r}; make it.")
    if path.exists() and (not path.is_file() or not path.read_bytes()[:4] == b"\x89PNG"):
        raise ConfigError(f"--png is {str(path)!r}, which is there and is no PNG, so it is not replaced; remove it.")


def _title(seats: Seats) -> str:
    ranks = seats.topology.world_size
    return (
        f"{seats.count} node{_s(seats.count)} of {seats.gpus} GPU{_s(seats.gpus)}, "
        f"{ranks} process{'' if ranks == 1 else 'es'}, placement {seats.placement}"
    )


def _rows(seats: Seats) -> Iterator[_Row]:
    """The nodes; those in a row with nothing but ranks of one role, none of them its leader, share one."""
    ranks: list[list[int]] = [[] for _ in range(seats.count)]
    for rank, name in enumerate(seats.nodes):
        ranks[int(name)].append(rank)
    cells = [_cells(seats, here) for here in ranks]

    def alike(node: int) -> tuple[str, int]:
        roles = {role for role, _ in cells[node]}
        plain = len(roles) == 1 and not any(LEADER in text or "+" in text for _, text in cells[node])
        return (roles.pop(), -1) if plain else ("", node)

    for _, group in groupby(range(seats.count), key=alike):
        several = list(group)
        first, last = several[0], several[-1]
        if first == last:
            yield _Row(f"node {first}", cells[first])
            continue
        pairs = zip(cells[first], cells[last], strict=True)
        joined = [(role, f"{text}..{other.split()[-1]}" if role else text) for (role, text), (_, other) in pairs]
        yield _Row(f"nodes {first}-{last}", joined)


def _cells(seats: Seats, here: list[int]) -> list[tuple[str, str]]:
    """(role, what to write) of each GPU of a node with these ranks; the role is that of the first of several ranks."""
    found = []
    for gpu in range(seats.gpus):
        ranks = here[gpu :: seats.gpus]  # several with topology.share_gpus
        roles = [seats.topology.role_of(rank) for rank in ranks]
        words = [f"{role.name} {rank}{LEADER * (rank == role.first)}" for role, rank in zip(roles, ranks, strict=True)]
        found.append((roles[0].name if roles else "", " + ".join(words) or "-"))
    return found


def _notes(seats: Seats) -> list[str]:
    """What the drawing means, a line each."""
    topology, names = seats.topology, [role.name for role in seats.topology.roles]
    lines = [
        f"{LEADER} leads its role: the role's MASTER_ADDR is its node, and it stands for the role on the bridge."
        if len(names) > 1
        else f"{LEADER} leads the policy: the role's MASTER_ADDR is its node.",
        "The number is the global rank. Rank 0 hosts the store where all ranks meet (under torchrun its agent does).",
    ]
    if seats.placement == "colocated":
        lines.append("The references sit on the policy's ranks (topology.placement is colocated).")
    if seats.placement == "stored":
        lines.append("The references are read from the store (topology.placement is stored).")
    if seats.moved:
        lines.append(f"In an order of their own, so that fewer lie on two nodes: {', '.join(seats.moved)}.")
    for role in topology.roles[1:]:
        on = nodes_of(role, seats.nodes)
        if len(on) > 1:
            lines.append(f"{role.name} has {role.size} ranks on nodes {', '.join(on)}: its forwards cross the network.")
    empty = seats.count * seats.gpus - topology.world_size
    if empty > 0:
        lines.append(f"{empty} GPU{_s(empty)} stay{'s' if empty == 1 else ''} idle.")
    return lines


def _s(count: int) -> str:
    return "" if count == 1 else "s"
