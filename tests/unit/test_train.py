"""One optimizer step with an engine of plain torch: the denominator is exact, and nothing moves after a bad number."""

import gc
import math
from dataclasses import replace

import pytest
import torch

from mrpo_ds.config.load import load_config
from mrpo_ds.config.schema import LossConfig
from mrpo_ds.data.batching import Layout
from mrpo_ds.data.micro import PolicyBatcher
from mrpo_ds.data.plan import Batch
from mrpo_ds.distributed import collectives
from mrpo_ds.errors import NonFiniteError
from mrpo_ds.losses import load
from mrpo_ds.material import prepare
from mrpo_ds.models import load_scorer, score
from mrpo_ds.objective import Objective, ScoredBatch
from mrpo_ds.ops import attention
from mrpo_ds.reference.client import ReferenceAnswer
from mrpo_ds.train import Update, train_step
from tests.support import base_config, world_of_one, write_config
from tests.waits import counted_waits

CPU = torch.device("cpu")
BATCH = Batch("train", 0, tuple(range(7)))


@pytest.fixture(scope="module", autouse=True)
def world():
    with world_of_one():
        yield


class PlainEngine:
    """The policy without DeepSpeed: what every engine must amount to."""

    device = CPU

    def __init__(self, config, ranks=1):
        self.scorer = load_scorer(config.model, torch.float32, trainable=True)
        self.ranks = ranks
        self.steps = []
        self.grad_norm = None
        """Said instead of the true one when set."""

    def forward(self, batch):
        return score(self.scorer, batch)

    def score(self, batch):
        with torch.no_grad():
            return score(self.scorer, batch)

    def backward(self, loss, last):
        (loss / self.ranks).backward()  # as an engine that averages the ranks' gradients

    def step(self, learning_rate):
        self.steps.append(learning_rate)
        true = torch.nn.utils.get_total_norm([parameter.grad for parameter in self.scorer.model.parameters()])
        return float(true) if self.grad_norm is None else self.grad_norm

    def clear(self):
        for parameter in self.scorer.model.parameters():
            parameter.grad = None

    def gradient(self):
        return torch.cat([parameter.grad.flatten() for parameter in self.scorer.model.parameters()])


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    root = tmp_path_factory.mktemp("train")
    config = base_config(root)
    config["loss"]["nonfinite"] = "drop"
    return prepare(load_config(str(write_config(root / "config.yaml", config))))


@pytest.fixture(scope="module")
def objective(material):
    return Objective.from_config(material.config)


def batch_of(material, rank=0, size=1, alike=4, batch=BATCH, **limits):
    policy = material.speakers["policy"]
    limits = replace(material.config.train, **{"micro_batch_size": None, **limits})
    batcher = PolicyBatcher(
        material.splits, policy.encodings, Layout(0, shared=True), limits, material.needs, rank, size, CPU, alike
    )
    return batcher.build(batch)


def answer_of(invalid=(), batch=BATCH):
    """What two references might say of the batch; the rows named invalid hold a NaN."""
    generator = torch.Generator().manual_seed(0)
    logps = -40 - 20 * torch.rand(2, len(batch.ids), 2, generator=generator)
    for row in invalid:
        logps[1, row, 0] = torch.nan
    nothing = [0.0, 0.0]
    return ReferenceAnswer(logps, torch.full(logps.shape, 9.0), 0.0, nothing, nothing, nothing, nothing, nothing)


UPDATE = Update(step=3, learning_rate=0.5, ranks=1)


def whole_batch_gradient(material, objective, answer):
    """Of the mean loss over the valid prompts, in one forward and one backward."""
    engine = PlainEngine(material.config)
    batch = batch_of(material, alike=1)
    (micro,) = batch.micros
    _, output = objective.apply(ScoredBatch(batch, answer), micro, engine.forward(micro.sequences), None)
    output.losses[output.valid].mean().backward()
    return engine.gradient(), output.losses[output.valid].mean().item()


@pytest.mark.parametrize("invalid", [(), (2, 5)], ids=["all valid", "two invalid"])
@pytest.mark.parametrize("limits", [{}, {"micro_batch_size": 1}, {"micro_batch_size": 3}, {"micro_batch_tokens": 400}])
def test_micro_batches_add_up_to_the_mean_over_the_valid_prompts(material, objective, limits, invalid):
    answer = answer_of(invalid)
    gradient, loss = whole_batch_gradient(material, objective, answer)
    engine = PlainEngine(material.config)
    metrics = train_step(engine, objective, ScoredBatch(batch_of(material, **limits), answer), UPDATE)
    torch.testing.assert_close(engine.gradient(), gradient, rtol=1e-4, atol=1e-5)
    assert metrics["loss"] == pytest.approx(loss, abs=1e-6)
    assert (metrics["prompts"], metrics["dropped"]) == (7 - len(invalid), len(invalid))
    assert metrics["grad_norm"] == pytest.approx(gradient.norm().item(), rel=1e-4)
    assert (metrics["learning_rate"], engine.steps) == (0.5, [0.5])


@pytest.mark.parametrize("size", [2, 3, 9])
def test_ranks_add_up_to_the_same_gradient_and_filler_to_nothing(material, objective, size):
    """Nine ranks share seven prompts, so two of them have filler only."""
    answer = answer_of(invalid=(4,))
    gradient, _ = whole_batch_gradient(material, objective, answer)
    total, counted = 0, 0
    for rank in range(size):
        engine = PlainEngine(material.config, ranks=size)
        share = batch_of(material, rank, size, micro_batch_size=1)
        metrics = train_step(engine, objective, ScoredBatch(share, answer), replace(UPDATE, ranks=size))
        total = total + engine.gradient()
        counted += metrics["prompts"]
    torch.testing.assert_close(total, gradient, rtol=1e-4, atol=1e-5)
    assert counted == 6


def test_a_batch_without_a_usable_prompt_moves_nothing_and_divides_by_nothing(material, objective):
    engine = PlainEngine(material.config)
    metrics = train_step(engine, objective, ScoredBatch(batch_of(material), answer_of(invalid=range(7))), UPDATE)
    assert (metrics["loss"], metrics["prompts"], metrics["dropped"], metrics["grad_norm"]) == (0.0, 0.0, 7.0, 0.0)


def test_a_policy_that_is_not_finite_stops_before_the_update(material, objective):
    engine = PlainEngine(material.config)
    with torch.no_grad():
        engine.scorer.model.model.norm.weight[0] = torch.nan
    message = r"the policy's log-probs of train:1 \(\S*train\.jsonl row 1\) \(7 such rows\) are not finite at step 3"
    with pytest.raises(NonFiniteError, match=message) as caught:
        train_step(engine, objective, ScoredBatch(batch_of(material), answer_of()), UPDATE)
    assert engine.steps == [] and all(parameter.grad is None for parameter in engine.scorer.parameters())
    record = caught.value.record
    assert (record["step"], record["not_finite"], record["loss"], record["num_rows"]) == (3, "policy", "nan", 7)
    assert [row["policy_logps"] for row in record["rows"]] == [["nan", "nan"]] * 7


def test_a_gradient_that_is_not_finite_is_not_passed_over(material, objective):
    engine = PlainEngine(material.config)
    engine.grad_norm = float("inf")
    with pytest.raises(
        NonFiniteError, match=r"the gradient of step 3 is not finite, though its loss is 6\.\d+"
    ) as caught:
        train_step(engine, objective, ScoredBatch(batch_of(material), answer_of()), UPDATE)
    record = caught.value.record
    assert (record["not_finite"], record["grad_norm"], len(record["rows"])) == ("gradient", "inf", 7)
    assert record["rows"][1]["source"].endswith("train.jsonl row 2")


@pytest.mark.parametrize("options", [{}, {"nonfinite": "mask_ref"}, {"nonfinite": "drop"}], ids=str)
def test_a_reference_that_is_not_finite_ends_the_step_unless_the_loss_may_drop_it(material, options):
    """Even when nothing else would show it: the loss over the rows that are left is finite."""
    settings = load("mrpo")[0](**options)
    objective = Objective.from_config(replace(material.config, loss=LossConfig(name="mrpo", options=settings)))
    engine = PlainEngine(material.config)
    scored = ScoredBatch(batch_of(material), answer_of(invalid=(2, 5)))
    if options:
        metrics = train_step(engine, objective, scored, UPDATE)
        assert metrics["dropped"] == (2 if options["nonfinite"] == "drop" else 0) and len(engine.steps) == 1
        return
    message = r"the log-probs of reference ref2 of train:3 \(\S+ row 3\) \(2 such rows\) are not finite at step 3"
    with pytest.raises(NonFiniteError, match=message) as caught:
        train_step(engine, objective, scored, UPDATE)
    assert engine.steps == []
    first, second = caught.value.record["rows"]
    assert first["not_finite"] == second["not_finite"] == "reference ref2"
    assert first["references"]["ref2"]["logps"][0] == "nan" and first["references"]["ref1"]["lengths"] == [9.0, 9.0]
    assert all(math.isfinite(value) for value in first["policy_logps"] + first["references"]["ref1"]["logps"])
    assert math.isfinite(caught.value.metrics["loss"]) and math.isnan(caught.value.metrics["grad_norm"])


def test_more_micro_batches_wait_no_more_often_for_the_device_or_for_other_ranks(material, objective, monkeypatch):
    monkeypatch.setattr(attention, "cut", lambda *_: None)  # masks are read, in groups of tokens, on CPUs alone
    eight = replace(BATCH, ids=tuple(range(8)))
    waits = {}
    for micros in (2, 8):
        batch = batch_of(material, alike=micros, batch=eight)
        assert len(batch.micros) == micros
        scored = ScoredBatch(batch, answer_of(batch=eight))
        engine = PlainEngine(material.config)
        with counted_waits() as waits[micros]:
            train_step(engine, objective, scored, UPDATE)
    assert waits[2] == waits[8]
    assert waits[2]["Tensor.tolist"] > 0, "the metrics and the denominators come from the device, once a step"


def test_what_waits_is_counted():
    """The count above would see it."""
    with counted_waits() as counts:
        mask = torch.tensor([True, False])
        values = torch.ones(2)
        values[mask].sum().item()
        values.nonzero()
        values[mask] = 0.0
        bool(values.sum() > 0)
        values.tolist()
        gc.collect()
        collectives.barrier()
    assert counts["Tensor.item"] == counts["Tensor.tolist"] == counts["gc.collect"] == 1
    assert counts["aten.index"] + counts["aten.nonzero"] >= 2 and counts["Tensor.__bool__"] == 1
    assert counts["aten.index_put_"] == 1 and counts["aten._local_scalar_dense"] >= 1
    assert counts["mrpo_ds.distributed.collectives.barrier"] == 1
