"""The policy's forwards: every prompt once, every rank equally often, values at their places."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mrpo_ds.config.schema import OptimizationConfig
from mrpo_ds.data.batching import Layout
from mrpo_ds.data.micro import PROMPT, PolicyBatcher
from mrpo_ds.data.plan import Batch, train_batches
from mrpo_ds.data.rendering import Renderer
from mrpo_ds.types import Example, Message, Needs
from tests.prepared import encode_split
from tests.support import bpe_tokenizer

TOKENIZER = bpe_tokenizer()
RENDERER = Renderer(TOKENIZER, "policy", "auto", True)


def make_example(index: int, words: int, responses: int, scored: bool = True) -> Example:
    texts = tuple(f"answer {index} " + "word " * (words + r) + "." for r in range(responses))
    scores = tuple(float(responses - r) for r in range(responses)) if scored else None
    return Example(f"row:{index}", (Message("user", f"question {index}"),), texts, scores, f"file row {index}")


PAIRS = Needs(views=("pair",))


def batchers(
    examples: list[Example], size: int, micro: int | None, tokens: int, needs: Needs = PAIRS, alike: int = 1
) -> list[PolicyBatcher]:
    limits = OptimizationConfig(batch_size=max(1, len(examples)), micro_batch_size=micro, micro_batch_tokens=tokens)
    splits = {"train": examples}
    encodings = {"train": encode_split(examples, RENDERER)}
    cpu = torch.device("cpu")
    return [
        PolicyBatcher(splits, encodings, Layout(0, shared=True), limits, needs, rank, size, cpu, alike)
        for rank in range(size)
    ]


sizes = st.lists(st.tuples(st.integers(0, 20), st.integers(2, 4)), min_size=1, max_size=7)


@settings(max_examples=30, deadline=None)
@given(sizes, st.integers(1, 4), st.one_of(st.none(), st.integers(1, 3)), st.integers(1, 400), st.sampled_from([1, 4]))
def test_every_prompt_is_counted_once_and_ranks_make_equally_many_forwards(shapes, size, micro, tokens, alike):
    examples = [make_example(index, *shape) for index, shape in enumerate(shapes)]
    batch = Batch("train", 0, tuple(range(len(examples))))
    built = [one.build(batch) for one in batchers(examples, size, micro, tokens, alike=alike)]
    counted = [
        int(prompt)
        for part in built
        for forward in part.micros
        for prompt, counts in zip(forward.prompts, forward.counted, strict=True)
        if counts
    ]
    assert sorted(counted) == list(range(len(examples)))
    assert len({len(part.micros) for part in built}) == 1
    for part in built:
        assert 0 <= part.padding < 1
        for forward in part.micros:
            if len(forward.prompts) > 1:
                assert forward.sequences.input_ids.numel() <= tokens
            assert micro is None or len(forward.prompts) <= micro


def test_log_probs_land_at_their_prompt_and_response():
    examples = [make_example(0, 3, 2), make_example(1, 1, 3), make_example(2, 2, 2)]
    (batcher,) = batchers(examples, 1, None, 10_000)
    batch = batcher.build(Batch("train", 0, (2, 1, 0)))
    (forward,) = batch.micros
    rows = torch.arange(1.0, 8.0)
    reference = torch.arange(9.0).reshape(1, 3, 3)
    logps = batch.logps(forward, rows, reference, reference)
    assert logps.policy.tolist() == [[1, 2, 0], [3, 4, 5], [6, 7, 0]]
    assert logps.present.tolist() == [[True, True, False], [True, True, True], [True, True, False]]
    assert logps.scores is not None
    assert logps.scores.nan_to_num(-1).tolist() == [[2, 1, -1], [3, 2, 1], [2, 1, -1]]
    assert logps.prompt is None
    assert torch.equal(logps.reference, reference)


def test_lengths_are_the_scored_tokens_and_tokens_all_of_them():
    examples = [make_example(0, 3, 2), make_example(1, 6, 2)]
    (batcher,) = batchers(examples, 1, 1, 10_000)
    batch = batcher.build(Batch("train", 0, (0, 1)))
    encoded = [[RENDERER.encode(one, r) for r in range(2)] for one in examples]
    assert batch.lengths.tolist() == [[len(row.ids) - row.prompt_length for row in rows] for rows in encoded]
    assert batch.tokens == sum(len(row.ids) for rows in encoded for row in rows)
    scored = {int(forward.prompts): len(forward.sequences.predictors) for forward in batch.micros}
    assert [scored[0], scored[1]] == batch.lengths.sum(1).tolist()


def test_a_row_without_scores_has_none_and_the_others_keep_theirs():
    examples = [make_example(0, 1, 2), make_example(1, 1, 2, scored=False)]
    (batcher,) = batchers(examples, 1, None, 10_000)
    scores = batcher.build(Batch("train", 0, (0, 1))).scores
    assert scores[0].tolist() == [2.0, 1.0] and scores[1].isnan().all()


def test_scores_that_are_close_stay_apart():
    """As in AlpacaEval's preferences; in float32 these two are the same number."""
    example = replace(make_example(0, 1, 2), scores=(1.0000001827, 1.0000001108))
    (batcher,) = batchers([example], 1, None, 10_000)
    scores = batcher.build(Batch("train", 0, (0,))).scores
    assert scores[0, 0] > scores[0, 1]


def test_prompts_are_scored_in_rows_of_their_own_where_asked():
    examples = [make_example(0, 3, 2), make_example(1, 1, 3)]
    (batcher,) = batchers(examples, 1, None, 10_000, Needs(views=("ranked",), prompt=True))
    batch = batcher.build(Batch("train", 0, (0, 1)))
    (forward,) = batch.micros
    prompts = [len(RENDERER.prompt_ids(one.prompt)) for one in examples]
    alone = [index for index, response in enumerate(forward.row_response.tolist()) if response == PROMPT]
    scored = (forward.sequences.places // forward.sequences.table[1]).bincount()
    assert scored[alone].tolist() == [length - 1 for length in prompts]
    logps = batch.logps(forward, torch.arange(1.0, 8.0), torch.zeros(0, 2, 3), torch.zeros(0, 2, 3))
    assert logps.policy.tolist() == [[1, 2, 0], [4, 5, 6]]
    assert logps.prompt is not None and logps.prompt.tolist() == [3, 7]
    assert logps.prompt_lengths is not None and logps.prompt_lengths.tolist() == [length - 1 for length in prompts]


def test_columns_that_are_not_used_are_not_computed():
    (batcher,) = batchers([make_example(0, 3, 3)], 1, None, 10_000, Needs(views=("triple",), unused=(0,)))
    batch = batcher.build(Batch("train", 0, (0,)))
    (forward,) = batch.micros
    assert forward.row_response.tolist() == [1, 2] and forward.sequences.table[0] == 2
    logps = batch.logps(forward, torch.tensor([5.0, 6.0]), torch.zeros(0, 1, 3), torch.zeros(0, 1, 3))
    assert logps.policy.tolist() == [[0, 5, 6]] and (logps.lengths > 0).all()


@settings(max_examples=30, deadline=None)
@given(sizes, st.integers(1, 400))
def test_1_2_and_4_ranks_compute_the_same_forwards(shapes, tokens):
    """Only who computes which differs."""
    examples = [make_example(index, *shape) for index, shape in enumerate(shapes)]
    batch = Batch("train", 0, tuple(range(len(examples))))
    made = []
    for size in (1, 2, 4):
        built = [one.build(batch) for one in batchers(examples, size, None, tokens, alike=4)]
        forwards = [forward for part in built for forward in part.micros if forward.counted.all()]
        made.append(sorted((one.prompts.tolist(), one.sequences.input_ids.tolist()) for one in forwards))
        assert sum(len(prompts) for prompts, _ in made[-1]) == len(examples)
    assert made[0] == made[1] == made[2]


@settings(max_examples=20, deadline=None)
@given(sizes, st.integers(1, 3), st.integers(1, 4), st.data())
def test_a_resumed_run_computes_the_forwards_that_were_left(shapes, batch_size, ranks, data):
    examples = [make_example(index, *shape) for index, shape in enumerate(shapes)]
    config = OptimizationConfig(batch_size=batch_size, epochs=2)
    batcher = batchers(examples, ranks, None, 300, alike=4)[0]
    whole = [batcher.build(batch) for batch in train_batches(len(examples), config, 0)]
    first_step = data.draw(st.integers(0, len(whole)))
    resumed = [batcher.build(batch) for batch in train_batches(len(examples), config, first_step)]
    assert [ids_of(one) for one in resumed] == [ids_of(one) for one in whole[first_step:]]


def ids_of(batch):
    return [(forward.prompts.tolist(), forward.sequences.input_ids.tolist()) for forward in batch.micros]


def test_draws_are_the_same_on_every_rank_and_others_in_every_step():
    examples = [make_example(index, 1, 2) for index in range(8)]
    draws = [one.build(Batch("train", 3, tuple(range(8)))).draws for one in batchers(examples, 2, None, 10_000)]
    assert torch.equal(*draws) and ((draws[0] >= 0) & (draws[0] < 1)).all() and len(set(draws[0].tolist())) == 8
    (batcher,) = batchers(examples, 1, None, 10_000)
    assert not torch.equal(batcher.build(Batch("train", 4, tuple(range(8)))).draws, draws[0])


def test_the_padding_figure_by_hand():
    """Five prompts of one response in two rounds of four forwards: three are filler, a copy of the first prompt."""
    examples = [make_example(index, 0, 1) for index in range(5)]
    five, needs = Batch("train", 0, (0, 1, 2, 3, 4)), Needs(views=("best",))
    alone = batchers(examples, 1, 1, 10_000, needs, alike=4)[0].build(five)
    assert len(alone.micros) == 5 and alone.padding == 0  # a rank alone leaves the empty forwards out
    shared = batchers(examples, 4, 1, 10_000, needs, alike=4)[0].build(five)
    first = len(RENDERER.encode(examples[0], 0).ids)
    assert len(shared.micros) == 2
    assert shared.padding == pytest.approx(1 - shared.tokens / (shared.tokens + 3 * first))


def test_the_padding_figure_knows_what_is_computed():
    """Columns that are not used are no waste, since they are not computed; a prompt on its own is no waste either."""
    examples = [make_example(0, 3, 3)]
    lengths = [len(row.ids) for row in RENDERER.encode_all(examples[0])]
    for needs, computed in (
        (Needs(views=("triple",), unused=(0,)), lengths[1:]),
        (Needs(views=("ranked",), prompt=True), [*lengths, len(RENDERER.prompt_ids(examples[0].prompt))]),
    ):
        (batcher,) = batchers(examples, 1, None, 10_000, needs)
        padding = batcher.build(Batch("train", 0, (0,))).padding
        assert padding == pytest.approx(1 - sum(computed) / Layout(0).places(computed))


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_rank_without_prompts_runs_filler(rank):
    batch = batchers([make_example(0, 2, 2)], 3, None, 10_000)[rank].build(Batch("train", 0, (0,)))
    assert [bool(forward.counted.any()) for forward in batch.micros] == [rank == 0]
