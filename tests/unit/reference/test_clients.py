"""The hosts of references behind one interface: the same answers to the same batches, in order."""

import pytest
import torch

from mrpo_ds.data.plan import Batch
from mrpo_ds.reference.colocated import ColocatedReferences
from mrpo_ds.reference.served import ServedReferences, message_size, serve

CPU = torch.device("cpu")
BATCHES = [Batch("eval", 0, (0, 1, 2)), Batch("train", 0, (5, 2, 9, 4)), Batch("train", 1, (7,))]


def encodings_of(material):
    return material.speakers["policy"].encodings


class Bridge:
    """The bridge of one process: what the references have sent, message by message."""

    def __init__(self):
        self.sent = {}
        self.sizes = None

    def end_of(self, name):
        """What a reference holds of it."""
        messages = self.sent.setdefault(name, [])
        return type("End", (), {"send": staticmethod(messages.append)})

    def receive(self, sizes, run_ahead, stop_asked):
        self.sizes = list(sizes)
        yield from (torch.stack(messages) for messages in zip(*self.sent.values(), strict=True))


@pytest.fixture(scope="module")
def colocated(material, scorer_of):
    references = [scorer_of(material, name) for name in ("ref1", "ref2")]
    return list(ColocatedReferences(references, encodings_of(material), CPU).stream(BATCHES))


@pytest.fixture(scope="module")
def phases():
    return []


@pytest.fixture(scope="module")
def served(material, scorer_of, phases):
    bridge = Bridge()
    for name in ("ref1", "ref2"):
        end = bridge.end_of(name)
        serve(scorer_of(material, name), end, BATCHES, lambda *phase: phases.append(phase))
    client = ServedReferences(bridge, 2, 2, encodings_of(material), CPU, lambda: False)
    answers = list(client.stream(BATCHES))
    assert bridge.sizes == [message_size(3, 2), message_size(4, 2), message_size(1, 2)]
    return answers


def test_served_and_colocated_give_the_same_bits(served, colocated):
    assert len(served) == len(colocated) == len(BATCHES)
    for ours, theirs in zip(served, colocated, strict=True):
        assert torch.equal(ours.logps, theirs.logps) and ours.logps.dtype == theirs.logps.dtype
        assert torch.equal(ours.lengths, theirs.lengths) and ours.lengths.dtype == theirs.lengths.dtype
        assert ours.tokens == theirs.tokens


def test_answers_are_shaped_references_by_prompts_by_responses(colocated):
    assert [tuple(answer.logps.shape) for answer in colocated] == [(2, 3, 2), (2, 4, 2), (2, 1, 2)]
    assert all((answer.lengths > 0).all() and (answer.logps < 0).all() for answer in colocated)


def test_answers_are_in_the_order_of_the_references_and_the_batches(colocated, material, scorer_of):
    for k, name in enumerate(("ref1", "ref2")):
        for batch, answer in zip(BATCHES, colocated, strict=True):
            assert torch.equal(answer.logps[k], scorer_of(material, name).score(batch).logps)


def test_telemetry_crosses_the_bridge(served):
    for answer in served:
        assert len(answer.score_seconds) == len(answer.tokens) == len(answer.idle_seconds) == 2
        assert all(seconds > 0 for seconds in answer.score_seconds)
        assert answer.wait_seconds >= 0


def test_a_reference_says_what_it_is_doing(phases, served):
    assert phases[:2] == [("score eval", 1), ("deliver eval", 1)]
    assert ("score train", 2) in phases


def test_a_reference_rank_that_is_not_the_leader_scores_and_sends_nothing(material, scorer_of):
    phases = []
    serve(scorer_of(material, "ref1"), None, BATCHES, lambda *phase: phases.append(phase))
    assert phases == [("score eval", 1), ("score train", 1), ("score train", 2)]


def test_without_references_the_answers_are_empty_and_have_the_right_shape(material):
    answers = list(ColocatedReferences([], encodings_of(material), CPU).stream(BATCHES))
    assert [tuple(answer.logps.shape) for answer in answers] == [(0, 3, 2), (0, 4, 2), (0, 1, 2)]
    assert [tuple(answer.lengths.shape) for answer in answers] == [(0, 3, 2), (0, 4, 2), (0, 1, 2)]
    assert all(answer.tokens == answer.score_seconds == answer.idle_seconds == [] for answer in answers)
