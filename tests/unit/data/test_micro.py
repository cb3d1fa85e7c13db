"""The policy's forwards: every prompt once, every rank equally often, values at their places."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mrpo_ds.config.schema import OptimizationConfig
from mrpo_ds.data.micro import PolicyBatcher
from mrpo_ds.data.plan import Batch
from mrpo_ds.data.rendering import Renderer
from mrpo_ds.types import Example, Message
from tests.support import bpe_tokenizer

TOKENIZER = bpe_tokenizer()
RENDERER = Renderer(TOKENIZER, "policy", "auto", True)


def make_example(index: int, words: int, responses: int, scored: bool = True) -> Example:
    texts = tuple(f"answer {index} " + "word " * (words + r) + "." for r in range(responses))
    scores = tuple(float(responses - r) for r in range(responses)) if scored else None
    return Example(f"row:{index}", (Message("user", f"question {index}"),), texts, scores, f"file row {index}")


def batchers(examples: list[Example], size: int, micro: int | None, tokens: int) -> list[PolicyBatcher]:
    limits = OptimizationConfig(batch_size=max(1, len(examples)), micro_batch_size=micro, micro_batch_tokens=tokens)
    splits = {"train": examples}
    return [PolicyBatcher(splits, RENDERER, 0, limits, rank, size, torch.device("cpu")) for rank in range(size)]


sizes = st.lists(st.tuples(st.integers(0, 20), st.integers(2, 4)), min_size=1, max_size=7)


@settings(max_examples=30, deadline=None)
@given(sizes, st.integers(1, 4), st.one_of(st.none(), st.integers(1, 3)), st.integers(1, 400))
def test_every_prompt_is_counted_once_and_ranks_make_equally_many_forwards(shapes, size, micro, tokens):
    examples = [make_example(index, *shape) for index, shape in enumerate(shapes)]
    batch = Batch("train", 0, tuple(range(len(examples))))
    built = [one.build(batch) for one in batchers(examples, size, micro, tokens)]
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
    assert logps.scores.tolist() == [[2, 1, 0], [3, 2, 1], [2, 1, 0]]
    assert torch.equal(logps.reference, reference)


def test_lengths_are_the_scored_tokens_and_tokens_all_of_them():
    examples = [make_example(0, 3, 2), make_example(1, 6, 2)]
    (batcher,) = batchers(examples, 1, 1, 10_000)
    batch = batcher.build(Batch("train", 0, (0, 1)))
    encoded = [[RENDERER.encode(one, r) for r in range(2)] for one in examples]
    assert batch.lengths.tolist() == [[len(row.ids) - row.prompt_length for row in rows] for rows in encoded]
    assert batch.tokens == sum(len(row.ids) for rows in encoded for row in rows)
    assert [int(forward.sequences.response_mask.sum()) for forward in batch.micros] == batch.lengths.sum(1).tolist()


def test_a_row_without_scores_leaves_the_batch_without():
    examples = [make_example(0, 1, 2), make_example(1, 1, 2, scored=False)]
    (batcher,) = batchers(examples, 1, None, 10_000)
    assert batcher.build(Batch("train", 0, (0, 1))).scores is None


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_rank_without_prompts_runs_filler(rank):
    batch = batchers([make_example(0, 2, 2)], 3, None, 10_000)[rank].build(Batch("train", 0, (0,)))
    assert [bool(forward.counted.any()) for forward in batch.micros] == [rank == 0]
