"""A reference behind its store: the same numbers, each scored once, and never one that is not its own."""

import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from mrpo_ds.cli import main
from mrpo_ds.config.schema import ReferenceConfig
from mrpo_ds.data.plan import Batch
from mrpo_ds.errors import ConfigError, ReferenceError
from mrpo_ds.models import fingerprint, weights_digest
from mrpo_ds.reference.shards import shards_of
from mrpo_ds.reference.store import open_store
from mrpo_ds.reference.stored import StoredScorer, look_up, refuse_missing, remember
from mrpo_ds.stores import TOLERANCE_NATS, store_of
from tests.support import ROOT, make_model, unprivileged

CPU = torch.device("cpu")
BATCHES = [Batch("eval", 0, (0, 1, 2)), Batch("train", 0, (5, 2, 9, 4)), Batch("train", 1, (7,))]
NAME = "ref2"


class Model:
    """Loads the reference when asked, and counts."""

    def __init__(self, scorer):
        self.loaded, self.sequences = 0, 0
        self._scorer = scorer

    def load(self):
        self.loaded += 1
        scorer = self._scorer

        def forward(batch):
            self.sequences += batch.table[0]
            return scorer.forward(batch)

        return replace(scorer, forward=forward)


@pytest.fixture
def model(material, scorer_of):
    return Model(scorer_of(material, NAME))


@pytest.fixture
def begin(tmp_path, material, model):
    """A run begins: (what it answers with, what it found)."""

    def run(check_fraction=0.0, tolerance=1e-3):
        store = open_store(tmp_path / "store", {"weights": "w", "dtype": "float32"}, {})
        memory = look_up(NAME, store, material.speakers[NAME].encodings, check_fraction)
        return remember(memory, model.load, material.splits, tolerance, CPU), memory

    return run


def whole_splits(material):
    sizes = {split: len(rows) for split, rows in material.speakers[NAME].encodings.items()}
    return [Batch(split, 0, tuple(range(size))) for split, size in sizes.items() if size]


@pytest.fixture
def filled(begin, material, model):
    """Every row is stored. Returns how many rows there are."""
    scorer, memory = begin()
    for batch in whole_splits(material):
        scorer.score(batch)
    scorer.close()
    model.loaded = model.sequences = 0
    return memory.survey.rows


def test_the_first_answers_are_the_models_own_and_the_next_run_reads_the_same_bits(begin, model, material, scorer_of):
    plain = [scorer_of(material, NAME).score(batch) for batch in BATCHES]
    first, _ = begin()
    for batch, own in zip(BATCHES, plain, strict=True):
        scored = first.score(batch)
        assert torch.equal(scored.logps, own.logps) and torch.equal(scored.lengths, own.lengths)
        assert (scored.tokens, scored.stored) == (own.tokens, 0.0)
    first.close()
    model.sequences = 0
    second, memory = begin()
    assert (memory.survey.rows, memory.survey.missing) == (50, 42)
    for batch, own in zip(BATCHES, plain, strict=True):
        scored = second.score(batch)
        assert torch.equal(scored.logps, own.logps) and torch.equal(scored.lengths, own.lengths)
        assert (scored.tokens, scored.stored) == (0, 1.0)
    assert model.sequences == 0


def test_the_second_epoch_scores_nothing(begin, model):
    scorer, _ = begin()
    first = scorer.score(BATCHES[1])
    scored = model.sequences
    again = scorer.score(Batch("train", 5, (2, 4, 9, 5)))
    assert model.sequences == scored == 8 and again.stored == 1
    assert torch.equal(again.logps, first.logps[[1, 3, 2, 0]])


def test_of_a_batch_that_is_stored_in_part_only_the_rest_is_scored(begin, model, material, scorer_of):
    scorer, _ = begin()
    scorer.score(Batch("train", 0, (5, 2)))
    model.sequences = 0
    mixed = scorer.score(Batch("train", 1, (2, 9, 5, 4)))
    assert model.sequences == 4 and mixed.stored == 0.5
    whole = scorer_of(material, NAME).score(Batch("train", 1, (2, 9, 5, 4)))
    torch.testing.assert_close(mixed.logps, whole.logps, rtol=1e-5, atol=1e-5)


def test_a_row_is_found_in_another_split_and_under_another_number(begin, material, model):
    rows = material.speakers[NAME].encodings
    scorer, memory = begin()
    scorer.score(Batch("train", 0, (5, 2)))
    elsewhere = replace(memory, encodings={"eval": [rows["train"][2], rows["train"][5]]})
    model.sequences = 0
    found = StoredScorer(elsewhere, None, CPU).score(Batch("eval", 0, (0, 1)))
    assert model.sequences == 0 and found.stored == 1


def test_with_every_row_stored_no_model_is_loaded(begin, filled, material, model):
    scorer, memory = begin()
    assert memory.survey.missing == 0 and model.loaded == 0
    assert all(scorer.score(batch).stored == 1 for batch in whole_splits(material))
    refuse_missing({NAME: memory.survey})


def test_missing_rows_are_counted_and_refused(begin, material):
    scorer, _ = begin()
    scorer.score(Batch("train", 0, (5, 2)))
    scorer.close()
    _, memory = begin()
    with pytest.raises(ConfigError, match="lacks 48 of 50 rows of ref2, 1 of 2 rows of x. Fill it with `mrpo-ds score"):
        refuse_missing({NAME: memory.survey, "x": replace(memory.survey, rows=2, missing=1)})


def test_rows_of_a_damaged_shard_are_scored_again(begin, filled, model, tmp_path, material, capfd):
    assert main(["store", "prune", "--dir", str(tmp_path / "store")]) == 0
    (shard,) = shards_of(next((tmp_path / "store").iterdir()))
    shard.write_bytes(shard.read_bytes()[:-7])
    scorer, memory = begin()
    assert memory.survey.missing == filled
    assert f"{shard} has changed since it was written (SHA-256); its rows count as missing" in capfd.readouterr().err
    scorer.score(BATCHES[0])
    assert model.sequences == 6


# ---- the check at the start ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fraction", "rows"), [(0.01, 1), (0.1, 5), (0.5, 25), (1.0, 50)])
def test_a_share_of_the_rows_is_scored_again_always_the_same(begin, filled, model, fraction, rows):
    _, memory = begin(fraction)
    assert (model.loaded, model.sequences, len(memory.survey.sample)) == (1, 2 * rows, rows)
    assert len(set(memory.survey.sample)) == rows and begin(fraction)[1].survey == memory.survey


def test_a_stored_row_that_is_not_the_models_stops_the_run_with_both_values(begin, tmp_path, material, scorer_of):
    row = material.speakers[NAME].encodings["eval"][0]
    own = scorer_of(material, NAME).score(Batch("eval", 0, (0,))).logps[0].tolist()
    stale = open_store(tmp_path / "store", {"weights": "w", "dtype": "float32"}, {})
    stale.add(row, [own[0], own[1] + 0.05])
    stale.flush()
    with pytest.raises(ReferenceError) as caught:
        begin(0.01)
    message = str(caught.value)
    assert f"reference ref2, {material.splits['eval'][0].source}, response 2: the store says" in message
    values = [float(number) for number in re.findall(r"-\d+\.\d{6}", message)]
    assert values == pytest.approx([own[1] + 0.05, own[1]], abs=1e-4)


def test_rows_scored_in_other_company_pass_the_check(begin, model, material):
    """One by one they were stored, together they are scored again: the last bits differ, and no more."""
    scorer, _ = begin()
    for batch in whole_splits(material):
        for index in batch.ids:
            scorer.score(Batch(batch.split, 0, (index,)))
    scorer.close()
    begin(1.0, tolerance=TOLERANCE_NATS[torch.float32])


# ---- when it is written ----------------------------------------------------------------------------------------------


def stored_rows(begin):
    _, memory = begin()
    return memory.survey.rows - memory.survey.missing


def test_what_a_checkpoint_rests_on_is_written_before_it_is_answered(begin):
    scorer, _ = begin()
    assert stored_rows(begin) == 0
    scorer.score(BATCHES[1])
    assert stored_rows(begin) == 4
    scorer.score(BATCHES[2])
    assert stored_rows(begin) == 5


def test_a_store_that_cannot_be_written_costs_nothing_but_the_next_scoring(begin, model, capfd):
    scorer, _ = begin()
    with unprivileged():
        first = scorer.score(BATCHES[1])
    assert "cannot be written: Permission denied" in capfd.readouterr().err
    assert torch.equal(scorer.score(replace(BATCHES[1], step=5)).logps, first.logps)
    assert model.sequences == 8 and stored_rows(begin) == 4


def test_a_log_prob_that_is_not_finite_is_answered_and_not_kept(tmp_path, model, material):
    store = open_store(tmp_path, {"weights": "broken", "dtype": "float32"}, {})
    memory = look_up(NAME, store, material.speakers[NAME].encodings, 0.0)
    broken = replace(model.load(), forward=lambda batch: torch.full((batch.table[0],), math.nan))
    scorer = StoredScorer(memory, broken, CPU)
    assert scorer.score(BATCHES[2]).logps.isnan().all() and len(store) == 0


# ---- what belongs to a reference -------------------------------------------------------------------------------------


def test_one_changed_byte_anywhere_in_the_weights_is_another_reference(tmp_path):
    path = make_model(tmp_path / "model")
    config = ReferenceConfig(name="a", path=str(path))
    before, quick = weights_digest(config), fingerprint(config)
    weights = path / "model.safetensors"
    content = bytearray(weights.read_bytes())
    for place in (len(content) // 128 - 1, len(content) - 1):
        content[place] ^= 1
        weights.write_bytes(content)
        assert weights_digest(config) != before
        content[place] ^= 1
    weights.write_bytes(content)
    assert (weights_digest(config), fingerprint(config)) == (before, quick)
    shutil.copytree(path, tmp_path / "copy")
    assert weights_digest(replace(config, path=str(tmp_path / "copy"))) == before


def test_where_a_models_own_code_is_trusted_it_is_part_of_what_it_is(tmp_path):
    path = make_model(tmp_path / "model")
    trusted = ReferenceConfig(name="a", path=str(path), trust_remote_code=True)
    digests = []
    for code in ("x = 1\n", "x = 2\n"):
        (path / "modeling_own.py").write_text(code)
        digests.append((weights_digest(trusted), weights_digest(replace(trusted, trust_remote_code=False))))
    assert digests[0][0] != digests[1][0] and digests[0][1] == digests[1][1]


def test_a_store_is_told_apart_by_weights_and_dtype_only(tmp_path, material):
    config = replace(material.config, topology=replace(material.config.topology, store=str(tmp_path)))
    one, other = config.references[:2]
    folder = store_of(config, one, CPU).folder
    assert folder.parent == tmp_path
    assert store_of(config, replace(one, name="another", attention="eager", batch_tokens=7), CPU).folder == folder
    assert store_of(config, replace(one, dtype="bf16"), CPU).folder != folder
    assert store_of(config, replace(one, path=other.path), CPU).folder != folder


def test_a_model_of_the_hub_counts_by_its_commit(tmp_path):
    """As huggingface_hub keeps it on the disk; a branch that moves on is another model."""
    model = make_model(tmp_path / "model")
    repository = tmp_path / "hub" / "models--org--name"
    program = (
        "from mrpo_ds.models import weights_digest; from mrpo_ds.config.schema import ReferenceConfig; "
        "print(weights_digest(ReferenceConfig(name='a', path='org/name')))"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    for commit in ("1" * 40, "2" * 40):
        shutil.copytree(model, repository / "snapshots" / commit)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(commit)
        run = subprocess.run(
            [sys.executable, "-c", program], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120
        )
        assert run.stdout.strip() == f"org/name@{commit}", run.stderr
