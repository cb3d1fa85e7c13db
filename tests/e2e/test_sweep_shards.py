"""A sweep that several commands share out among themselves, as the tasks of a job array do."""

import pytest

from tests.leaderboard_support import SUITE, World
from tests.support import make_model

pytestmark = pytest.mark.leaderboard
SHARDS = ("0/2", "1/2")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Two models and two tasks: without MMLU, whose tables take most of the time."""
    world = World.made(tmp_path_factory.mktemp("shards"))
    world.models["mrpo"] = make_model(world.root / "mrpo", seed=2)
    world.suite.write_text("".join(line for line in SUITE.splitlines(True) if "mmlu" not in line), encoding="utf-8")
    return world


def test_two_shards_at_once_make_the_table_of_one_command(world: World) -> None:
    running = [world.start("shared", "--shard", shard) for shard in SHARDS]
    codes = [process.wait(900) for process in running]
    said = (world.root / "shared.log").read_text(encoding="utf-8")
    assert codes == [0, 0], said[-4000:]
    assert sorted(world.computed("shared")) == ["base/arc_easy", "base/gsm8k", "mrpo/arc_easy", "mrpo/gsm8k"]
    assert {path.name for path in (world.root / "shared" / "logs").iterdir()} == {
        "shard-0-of-2-worker-0.log",
        "shard-1-of-2-worker-0.log",
    }
    world.sweep("alone")
    assert world.results("shared")["missing"] == []
    assert world.results("shared") == world.results("alone")
    for name in ("results.md", "results.csv", "suite.json"):
        assert (world.root / "shared" / name).read_bytes() == (world.root / "alone" / name).read_bytes()


def test_what_shards_leave_out_is_missing_in_the_table(world: World) -> None:
    """One that fails, and cells of other settings that nobody has come to yet."""
    bad = world.root / "bad.yaml"
    good = world.suite.read_text(encoding="utf-8")
    bad.write_text(good + "  - {task: arc_easy, name: bad, shots: 1, metric: nonsense, weight: 0}\n", encoding="utf-8")
    said = [world.sweep("failing", "--suite", str(bad), "--shard", shard, code=1) for shard in SHARDS]
    assert all("1 of 4 cells failed" in one for one in said)  # a model each
    assert world.results("failing")["missing"] == ["base/bad", "mrpo/bad"]
    assert all(row["average"] for row in world.results("failing")["models"])
    world.sweep("failing", "--redo", "--shard", "0/2", limit=2)
    results = world.results("failing")
    assert results["missing"] == ["mrpo/arc_easy", "mrpo/gsm8k", "mrpo/flexible"] == list(results["otherwise"])
    base, mrpo = results["models"]
    assert base["average"] and base["scores"]["arc_easy"]["n"] == 2
    assert (mrpo["average"], mrpo["scores"]) == (None, {})
