"""The reference store's files: whole or known to be damaged, whoever writes, is killed, prunes or reads meanwhile."""

import math
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mrpo_ds.cli import main
from mrpo_ds.data.rendering import Encoded
from mrpo_ds.errors import ReferenceError
from mrpo_ds.reference import store as store_module
from mrpo_ds.reference.shards import Rows, abandoned, key_of, read_folder, read_shard, shards_of, write_shard
from mrpo_ds.reference.store import SMALL_SHARDS, ReferenceStore, folder_of, open_store
from tests.store_writers import IDENTITY, prune_often, sequence, value, write_many
from tests.support import unprivileged

# A server that has imported torch once and forks a process in 0.1 s, without threads of pytest's.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["tests.store_writers"])


def filled(root: Path, *numbers: int) -> ReferenceStore:
    """A store that has written these sequences as one shard."""
    store = open_store(root, IDENTITY, {})
    store.add([sequence(number) for number in numbers], [value(number) for number in numbers])
    store.flush()
    return store


def found(root: Path, *numbers: int) -> list[float]:
    """What a run that begins now finds of them."""
    store = open_store(root, IDENTITY, {})
    return [store.find(sequence(number)) for number in numbers]


def test_what_was_written_is_found_with_all_its_bits(tmp_path):
    filled(tmp_path, *range(100))
    filled(tmp_path, *range(100, 130))
    assert found(tmp_path, *range(130)) == [value(number) for number in range(130)]
    (folder,) = tmp_path.iterdir()
    rows = read_shard(shards_of(folder)[0])
    assert set(rows.tokens.tolist()) == {3} and rows.logps.dtype == torch.float32


def test_rows_are_found_before_they_are_written_and_gone_if_they_never_are(tmp_path):
    store = open_store(tmp_path, IDENTITY, {})
    store.add([sequence(1)], [-2.5])
    assert store.find(sequence(1)) == -2.5 and len(store) == 1
    assert math.isnan(*found(tmp_path, 1))
    assert list(tmp_path.iterdir()) == [], "opening a store writes nothing"


def test_a_log_prob_that_is_not_finite_is_not_kept(tmp_path):
    store = open_store(tmp_path, IDENTITY, {})
    store.add([sequence(1), sequence(2), sequence(3)], [math.nan, -math.inf, -1.0])
    store.flush()
    assert [math.isnan(one) for one in found(tmp_path, 1, 2, 3)] == [True, True, False]


BASE = Encoded([1, 2, 3, 4, 5, 6], prompt_length=3)
CHANGED = [
    Encoded([1, 2, 3, 4, 5, 7], prompt_length=3),
    Encoded([0, 2, 3, 4, 5, 6], prompt_length=3),
    Encoded([1, 2, 3, 4, 5], prompt_length=3),
    Encoded([1, 2, 3, 4, 5, 6], prompt_length=2),
    Encoded([1, 2, 3, 4, 5, 6], prompt_length=3, earlier=((1, 2),)),
]


@pytest.mark.parametrize("other", CHANGED, ids=["response", "prompt", "cut", "scored from", "earlier turn"])
def test_any_change_of_what_is_scored_is_another_row(tmp_path, other):
    store = open_store(tmp_path, IDENTITY, {})
    store.add([BASE], [-1.0])
    assert math.isnan(store.find(other)) and store.find(BASE) == -1.0


encoded = st.builds(
    lambda ids, prompt, spans: Encoded(ids, prompt, tuple(spans)),
    st.lists(st.integers(0, 3), min_size=1, max_size=4),
    st.integers(0, 3),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=2),
)


@given(encoded, encoded)
def test_keys_are_the_same_exactly_for_the_same_content(one, other):
    assert (key_of(one) == key_of(other)) == (one == other)


@pytest.mark.parametrize("name", IDENTITY)
def test_other_weights_or_another_dtype_never_find_a_row(tmp_path, name):
    filled(tmp_path, 1)
    other = open_store(tmp_path, {**IDENTITY, name: "another"}, {})
    assert len(other) == 0 and math.isnan(other.find(sequence(1)))
    assert folder_of(tmp_path, IDENTITY) != other.folder


def test_half_a_key_is_not_enough(tmp_path):
    """Other rows whose keys begin alike stand before and after it in the table."""
    high, low = key_of(sequence(1))
    folder = folder_of(tmp_path, IDENTITY)
    folder.mkdir(parents=True)
    write_shard(folder, Rows.of([(high, low - 1), (high, low + 1)], [-8.0, -9.0], [1, 1]))
    assert math.isnan(*found(tmp_path, 1))
    write_shard(folder, Rows.of([(high, low)], [-1.5], [1]))
    assert found(tmp_path, 1) == [-1.5]


rows_of = st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2), st.integers(-9, 0)), max_size=12)


@given(st.lists(rows_of, min_size=1, max_size=4))
def test_merged_rows_are_sorted_and_the_first_of_a_key_stays(parts):
    expected: dict[tuple[int, int], float] = {}
    for high, low, logp in (row for part in parts for row in part):
        expected.setdefault((high, low), float(logp))
    tables = [Rows.of([row[:2] for row in part], [row[2] for row in part], [1] * len(part)) for part in parts]
    merged = tables[0].merged(*tables[1:])
    assert [tuple(key) for key in merged.keys.tolist()] == sorted(expected)
    assert merged.logps.tolist() == [expected[key] for key in sorted(expected)]


def test_many_new_rows_move_into_the_table_and_are_still_found(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "MERGE_ROWS", 10)
    store = open_store(tmp_path, IDENTITY, {})
    for start in range(0, 60, 6):
        store.add([sequence(number) for number in range(start, start + 6)], [value(n) for n in range(start, start + 6)])
        store.flush()
        assert [store.find(sequence(number)) for number in range(start + 6)] == [value(n) for n in range(start + 6)]
    assert len(store) == 60


# ---- damage ----------------------------------------------------------------------------------------------------------


def cut(content: bytes) -> list[bytes]:
    return [content[:size] for size in (0, 1, len(content) // 2, len(content) - 1)]


def flipped(content: bytes) -> list[bytes]:
    places = range(0, len(content), max(1, len(content) // 40))
    return [content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :] for place in places]


@pytest.mark.parametrize("harm", [cut, flipped])
def test_a_damaged_shard_is_named_and_its_rows_count_as_missing(tmp_path, harm, capsys):
    store = filled(tmp_path, 1, 2)
    (shard,) = shards_of(store.folder)
    filled(tmp_path, 3)
    content = shard.read_bytes()
    for damaged in harm(content):
        shard.write_bytes(damaged)
        again = open_store(tmp_path, IDENTITY, {})
        assert [str(shard) in line for line in again.damaged] == [True]
        assert math.isnan(again.find(sequence(1))) and again.find(sequence(3)) == value(3)
    assert main(["store", "verify", "--dir", str(tmp_path)]) == 1
    assert f"{shard} has changed since it was written" in capsys.readouterr().out
    filled(tmp_path, 1, 2)  # the same rows have the same name: scoring them again mends it
    assert open_store(tmp_path, IDENTITY, {}).damaged == []
    assert found(tmp_path, 1, 2, 3) == [value(1), value(2), value(3)]


def test_a_shard_that_was_deleted_costs_its_rows_only(tmp_path):
    store = filled(tmp_path, 1)
    (shard,) = shards_of(store.folder)
    filled(tmp_path, 2)
    shard.unlink()
    assert [math.isnan(one) for one in found(tmp_path, 1, 2)] == [True, False]


def test_a_store_that_cannot_be_written_keeps_its_rows_for_the_next_try(tmp_path):
    store = open_store(tmp_path / "store", IDENTITY, {})
    store.add([sequence(1)], [-1.0])
    with unprivileged(), pytest.raises(ReferenceError, match="cannot be written: Permission denied. Make room, or na"):
        store.flush()
    assert store.find(sequence(1)) == -1.0
    store.flush()
    assert found(tmp_path / "store", 1) == [-1.0]


# ---- many processes --------------------------------------------------------------------------------------------------


def test_prune_does_not_take_what_it_makes_for_the_damaged_shard_of_that_name(tmp_path):
    filled(tmp_path, 1, 2), filled(tmp_path, 3)
    assert main(["store", "prune", "--dir", str(tmp_path)]) == 0
    (folder,) = tmp_path.iterdir()
    (merged,) = shards_of(folder)
    merged.write_bytes(flipped(merged.read_bytes())[0])
    filled(tmp_path, 1, 2), filled(tmp_path, 3)  # scored again
    assert main(["store", "prune", "--dir", str(tmp_path)]) == 0
    assert shards_of(folder) == [merged] and found(tmp_path, 1, 2, 3) == [value(1), value(2), value(3)]


def test_prune_leaves_what_it_cannot_read(tmp_path, capsys):
    filled(tmp_path, 1)
    (folder,) = tmp_path.iterdir()
    strange = folder / "rows-strange.parquet"
    strange.mkdir()
    main(["store", "prune", "--dir", str(tmp_path)])
    assert f"{strange}: Is a directory" in capsys.readouterr().out
    assert strange.is_dir() and found(tmp_path, 1) == [value(1)]


def test_a_process_that_writes_often_leaves_few_shards(tmp_path):
    store = open_store(tmp_path, IDENTITY, {})
    for number in range(3 * SMALL_SHARDS + 5):
        store.add([sequence(number)], [value(number)])
        store.flush()
    assert len(shards_of(store.folder)) == 3 + 5
    assert found(tmp_path, *range(3 * SMALL_SHARDS + 5)) == [value(n) for n in range(3 * SMALL_SHARDS + 5)]


def test_many_writers_at_once_while_others_read_and_prune(tmp_path):
    writers = [processes.Process(target=write_many, args=(str(tmp_path), 20 * n, 40)) for n in range(3)]
    others = [processes.Process(target=prune_often, args=(str(tmp_path), 1.5))]
    for process in (*writers, *others):
        process.start()
    while any(process.is_alive() for process in (*writers, *others)):
        seen = open_store(tmp_path, IDENTITY, {})
        assert seen.damaged == []
        for number in range(80):
            logp = seen.find(sequence(number))
            assert math.isnan(logp) or logp == value(number)
        time.sleep(0.02)
    for process in (*writers, *others):
        process.join()
        assert process.exitcode == 0
    assert found(tmp_path, *range(80)) == [value(number) for number in range(80)]
    assert main(["store", "prune", "--dir", str(tmp_path)]) == 0
    (folder,) = tmp_path.iterdir()
    assert len(shards_of(folder)) == 1 and len(read_folder(folder)[0]) == 80


def test_writers_that_are_killed_lose_only_what_they_had_not_written(tmp_path):
    chance = random.Random(5)
    for attempt in range(6):
        before = len(open_store(tmp_path, IDENTITY, {}))
        process = processes.Process(target=write_many, args=(str(tmp_path), 10_000 * attempt, 10_000))
        process.start()
        while len(list(tmp_path.glob("*/rows-*"))) <= before:  # one row a shard: it is at work
            assert process.is_alive()
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.05))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        store = open_store(tmp_path, IDENTITY, {})
        assert store.damaged == [] and len(store) > before
        numbers = [number for number in range(10_000 * attempt, 10_000 * attempt + len(store) - before)]
        assert [store.find(sequence(number)) for number in numbers] == [value(number) for number in numbers]


def test_prune_removes_what_killed_writers_left_and_nothing_of_living_ones(tmp_path, capsys):
    store = filled(tmp_path, 1)
    filled(tmp_path, 2)
    gone = processes.Process(target=int)
    gone.start()
    gone.join()
    host = os.uname().nodename
    files = {
        "killed": store.folder / f".rows-1.{host}.{gone.pid}.unfinished",
        "alive": store.folder / f".rows-2.{host}.{os.getpid()}.unfinished",
        "elsewhere": store.folder / ".rows-3.another-host.1.unfinished",
        "elsewhere, long ago": store.folder / ".rows-4.another-host.1.unfinished",
    }
    for path in files.values():
        path.write_bytes(b"half a shard")
    os.utime(files["elsewhere, long ago"], (0, 0))
    assert open_store(tmp_path, IDENTITY, {}).damaged == [], "unfinished files are no shards"
    assert set(abandoned(store.folder)) == {files["killed"], files["elsewhere, long ago"]}
    assert main(["store", "prune", "--dir", str(tmp_path)]) == 0
    assert [name for name, path in files.items() if path.exists()] == ["alive", "elsewhere"]
    assert "removed 4 files, 2 shards merged, 2 responses" in capsys.readouterr().out
    assert found(tmp_path, 1, 2) == [value(1), value(2)] and len(shards_of(store.folder)) == 1


# ---- the commands ----------------------------------------------------------------------------------------------------


def test_ls_says_what_is_stored(tmp_path, capsys):
    store = open_store(tmp_path, IDENTITY, {"path": "org/llama", "revision": ""})
    store.add([sequence(1), sequence(2)], [-1.0, -2.0])
    store.flush()
    assert main(["store", "ls", "--dir", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert str(store.folder) in out and "org/llama" in out and "float32" in out and "2 responses in 1 shards" in out
    assert main(["store", "verify", "--dir", str(tmp_path)]) == 0


def test_rows_that_were_put_into_another_references_folder_are_noticed(tmp_path, capsys):
    store = filled(tmp_path, 1)
    store.folder.rename(tmp_path / "0123456789abcdef0123456789abcdef")
    assert main(["store", "verify", "--dir", str(tmp_path)]) == 1
    assert "about.json does not describe this folder" in capsys.readouterr().out


@pytest.mark.parametrize("action", ["ls", "verify", "prune"])
def test_a_directory_that_is_no_store_is_refused(tmp_path, action, capsys):
    assert main(["store", action, "--dir", str(tmp_path / "nothing")]) == 2
    assert "nothing' is no reference store; allowed: a directory that `mrpo-ds score`" in capsys.readouterr().err
