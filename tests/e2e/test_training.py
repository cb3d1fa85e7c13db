"""Whole runs: what they compute, what they leave behind, how they go on, and how they stop."""

import json
import math
import re
import shutil
from itertools import product

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from mrpo_ds.losses import dpo, mrpo
from mrpo_ds.types import ResponseLogps
from tests.support import base_config, make_rows, write_config, write_jsonl

LN_2 = math.log(2)


@pytest.fixture(scope="module")
def config(warm_runs):
    """(references, family of the policy and so of RefM1, sections to change) -> a configuration."""

    def build(references=2, family="llama", **sections):
        values = base_config(warm_runs.root, references)
        for start in (values["model"], *values["references"][:1]):
            start["path"] = str(warm_runs.root / "models" / family)
        for section, settings in sections.items():
            values[section] = settings if section == "loss" else {**values[section], **settings}
        return values

    return build


def few_rows(warm_runs, count):
    return str(write_jsonl(warm_runs.root / "data" / f"rows-{count}.jsonl", make_rows(count)))


# ---- no reference, one, two, three -----------------------------------------------------------------------------------


def test_no_reference_on_one_and_two_ranks(warm_runs, config):
    """There is nothing to serve: placement served has the policy's ranks only."""
    loss = {"name": "simpo", "beta": 2.0, "gamma": 1.0}
    ranks = {"one": 1, "two": 2}
    run = warm_runs.begin({name: config(0, "gemma3", loss=loss, topology={"policy": p}) for name, p in ranks.items()})
    one, two = run("one"), run("two")
    losses = [[row["loss"] for row in run.metrics] for run in (one, two)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert losses[0][-1] < losses[0][0]
    assert not [name for row in one.metrics for name in row if name.startswith(("ref/", "vref/"))]
    summary = json.loads((one.directory / "summary.json").read_text())
    assert summary["references"] == [] and summary["loss"] == "simpo"
    model, tokenizer = (kind.from_pretrained(two.directory / "model") for kind in (AutoModelForCausalLM, AutoTokenizer))
    assert (model.config.model_type, model.config.final_logit_softcapping) == ("gemma3_text", 20.0)
    # It came without a chat template and was trained in the plain one, which therefore goes with it.
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Why?"}], tokenize=False, add_generation_prompt=True
    )
    assert text.endswith("Human:\nWhy?\n\nAssistant:\n")


@pytest.mark.parametrize("loss", ["dpo", "mrpo"])
def test_a_loss_that_needs_references_says_so_before_anything_starts(warm, warm_runs, config, loss):
    path = write_config(warm_runs.root / "none.yaml", config(references=0, loss={"name": loss}))
    run = warm.alone("train", str(path))
    assert run.returncode == 2 and "Traceback" not in run.stderr
    assert f"mrpo-ds: error: references is []; allowed: at least 1 for loss.name={loss}." in run.stderr


@pytest.fixture(scope="module")
def with_one_reference(warm_runs, config):
    """Name of a loss -> its run of twelve steps on eight rows, which a policy of any use learns by heart."""
    losses = {
        "dpo": {"name": "dpo", "beta": 0.1},
        "mrpo": {"name": "mrpo", "beta": 0.1, "virtual_ref": "geometric", "weights": "uniform", "ctro": "fixed"},
    }
    shared = {
        "data": {"train": [{"source": few_rows(warm_runs, 8)}]},
        "train": {"max_steps": 12, "epochs": 12},
        "topology": {"placement": "colocated"},
    }
    return warm_runs.begin({name: config(1, "qwen2", loss=loss, **shared) for name, loss in losses.items()})


@pytest.fixture(scope="module")
def dpo_run(with_one_reference):
    return with_one_reference("dpo")


def test_dpo_starts_at_ln_2(dpo_run):
    first = dpo_run.metrics[0]
    assert first["loss"] == pytest.approx(LN_2, abs=1e-6)
    assert first["logps/chosen"] == pytest.approx(first["ref/ref1/logps/chosen"], abs=1e-4)
    assert dpo_run.evals[0]["step"] == 0 and dpo_run.evals[0]["loss"] == pytest.approx(LN_2, abs=1e-6)


def test_an_overfittable_set_is_overfitted(dpo_run):
    losses = [row["loss"] for row in dpo_run.metrics]
    assert losses[-1] < 0.2 and sum(losses[6:]) < sum(losses[:6])
    assert dpo_run.metrics[-1]["rewards/accuracies"] == 1.0
    assert dpo_run.metrics[-1]["rewards/margins"] > dpo_run.metrics[1]["rewards/margins"] > 0


def test_mrpo_with_one_reference_is_dpo(dpo_run, with_one_reference):
    mrpo_run = with_one_reference("mrpo")
    losses = [[row["loss"] for row in run.metrics] for run in (dpo_run, mrpo_run)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)
    assert {row["ref/ref1/weight"] for row in mrpo_run.metrics} == {1.0}


def test_mrpo_with_one_reference_is_dpo_under_any_option():
    torch.manual_seed(0)
    policy, reference = -150 * torch.rand(2, 32, 2)
    present = torch.ones(32, 2, dtype=torch.bool)
    logps = ResponseLogps(policy, torch.full((32, 2), 9.0), reference[None], torch.full((1, 32, 2), 9.0), present)
    expected = dpo.loss(logps, dpo.Config()).losses
    choices = {
        "virtual_ref": ["harmonic", "geometric", "arithmetic"],
        "weights": ["arwc", "uniform", [1.0]],
        "ctro": ["adaptive", "fixed", "none"],
        "eps_norm": ["sum", "mean"],
        "nonfinite": ["stop", "drop", "mask_ref"],
    }
    for values in product(*choices.values()):
        options = dict(zip(choices, values, strict=True))
        losses = mrpo.loss(logps, mrpo.Config(**options)).losses
        torch.testing.assert_close(losses, expected, rtol=0, atol=1e-6, msg=str(options))


# ---- the closed form, computed here and not by our ops ---------------------------------------------------------------


def closed_form(policy, references, beta=0.1, eps_max=0.1):
    """MRPO of one pair in plain floats: (loss, virtual reference). policy (w, l); references K x (w, l), nats.

    eq. 10 weights, eq. 9 widths, eq. 8 clipping around the first, Prop. 1 harmonic mean, and the sigmoid of DPO.
    """
    gaps = [abs(chosen - rejected) for chosen, rejected in references]
    weights = [gap / sum(gaps) for gap in gaps]
    sizes = [abs(sum(reference[side] for reference in references)) for side in (0, 1)]
    virtual = []
    for side in (0, 1):
        first = references[0][side]
        eps = eps_max * sizes[side] / sum(sizes)
        bounds = (1 + eps) * first, (1 - eps) * first
        clipped = [first] + [min(max(reference[side], bounds[0]), bounds[1]) for reference in references[1:]]
        lowest = min(clipped)  # taken out of the sum of exponentials, which would overflow
        total = sum(a * math.exp(lowest - logp) for a, logp in zip(weights, clipped, strict=True) if a > 0)
        virtual.append(lowest - math.log(total))
    margin = beta * ((policy[0] - virtual[0]) - (policy[1] - virtual[1]))
    return math.log1p(math.exp(-abs(margin))) + max(-margin, 0.0), virtual


def test_the_closed_form_of_this_test_gives_the_known_numbers():
    loss, virtual = closed_form((-52.3, -61.7), [(-55.1, -60.2), (-48.9, -71.4)])
    assert loss == pytest.approx(0.7045713105686730) and virtual == pytest.approx([-53.73894401, -63.36613623])


@pytest.fixture(scope="module")
def row_by_row(warm_runs, config):
    """Three references and one pair a step, so that the logged means are the numbers of that pair."""
    train = {"batch_size": 1, "micro_batch_size": None, "max_steps": 6}
    return warm_runs.train("row-by-row", config(3, train=train, topology={"placement": "colocated"}))


def pair_of(row, prefix):
    return row[f"{prefix}/chosen"], row[f"{prefix}/rejected"]


def test_mrpo_loss_is_the_closed_form_of_the_logged_log_probs(row_by_row):
    for row in row_by_row.metrics:
        references = [pair_of(row, f"ref/ref{k}/logps") for k in (1, 2, 3)]
        loss, virtual = closed_form(pair_of(row, "logps"), references)
        assert row["loss"] == pytest.approx(loss, abs=1e-5)
        assert pair_of(row, "vref/logps") == pytest.approx(virtual, rel=1e-6)


def test_mrpo_starts_at_the_closed_form_of_its_references_alone(row_by_row):
    """The policy is RefM1 before the first update, so the loss follows from the references; it is not ln 2."""
    first = row_by_row.metrics[0]
    references = [pair_of(first, f"ref/ref{k}/logps") for k in (1, 2, 3)]
    assert pair_of(first, "logps") == pytest.approx(references[0], abs=1e-4)
    loss, _ = closed_form(references[0], references)
    assert first["loss"] == pytest.approx(loss, abs=1e-5)
    assert abs(first["loss"] - LN_2) > 1e-3


# ---- what a run leaves behind ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full_config(warm_runs, config):
    """Two policy ranks with everything sharded, two served references, all that a run can write."""
    sharding = warm_runs.root / "zero3.json"
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0}
    sharding.write_text(json.dumps({"zero_optimization": zero}))
    values = config(
        topology={"policy": 2},
        train={"max_steps": 6, "micro_batch_size": 2},
        checkpoint={"every_steps": 3, "keep": 2},
        evaluate={"every_steps": 3},
        tracking={"plots": True, "wandb": {"mode": "offline"}},
    )
    return {**values, "deepspeed": str(sharding)}


@pytest.fixture(scope="module")
def full(runs, full_config):
    """As it is typed."""
    return runs.train("full", full_config)


def test_the_run_directory_holds_everything(full):
    names = {path.name for path in full.directory.iterdir()}
    expected = {"config.yaml", "metrics.jsonl", "evals.jsonl", "checkpoints", "model", "summary.json", "plots", "wandb"}
    assert names == expected | {"logs"}
    kept = sorted(path.name for path in (full.directory / "checkpoints").iterdir())
    assert kept == ["step-00000003", "step-00000006"]
    plots = {path.name for path in (full.directory / "plots").glob("*.png")}
    assert {"loss.png", "margin.png", "accuracy.png", "logps.png"} <= plots
    assert list((full.directory / "wandb").glob("offline-run-*/*.wandb"))


def test_the_written_configuration_is_the_one_of_the_run(warm, full, full_config):
    check = warm.alone("check", str(full.directory / "config.yaml"), f"output_dir={full.directory}-again")
    assert check.returncode == 0, check.stderr
    text = (full.directory / "config.yaml").read_text()
    assert full_config["model"]["path"] in text and "virtual_ref: harmonic" in text  # defaults are written out too


def test_metrics_have_the_names_that_the_field_uses(full):
    shared = {"loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen"}
    shared |= {"logps/rejected", "vref/logps/chosen", "vref/logps/rejected"}
    trained = {"step", "epoch", "num_tokens", "grad_norm", "learning_rate"}
    trained |= {f"perf/{name}" for name in ("tokens_per_second", "seconds_per_step", "reference_wait_seconds")}
    trained |= {"perf/model_tflops_per_second", "perf/recompute_fraction"}
    of_references = {"logps/chosen", "logps/rejected", "margin", "accuracy", "weight", "clip_fraction"}
    telemetry = {"wait_seconds", "score_seconds", "tokens_per_second", "idle_fraction", "memory_gib"}
    for reference in ("ref1", "ref2"):
        shared |= {f"ref/{reference}/{name}" for name in of_references}
        trained |= {f"ref/{reference}/{name}" for name in telemetry}
    assert [row["step"] for row in full.metrics] == [1, 2, 3, 4, 5, 6]
    for row in full.metrics:
        assert shared | trained | {"perf/memory_gib"} <= row.keys()
        assert all(math.isfinite(value) for value in row.values())
    assert [row["step"] for row in full.evals] == [0, 3, 6]
    assert all(shared <= row.keys() for row in full.evals)


def test_the_summary_tells_what_training_did(full):
    summary = json.loads((full.directory / "summary.json").read_text())
    assert summary["steps"] == 6 and summary["references"] == ["ref1", "ref2"]
    assert summary["tokens"] == full.metrics[-1]["num_tokens"]
    before, after = summary["held_out"]["before"], summary["held_out"]["after"]
    assert before["loss"] == full.evals[0]["loss"] and after["loss"] == full.evals[-1]["loss"] < before["loss"]
    assert summary["data"]["train"]["kept"] == 40 and summary["data"]["eval"]["kept"] == 10
    assert summary["data"]["train"]["dropped"] == {}


def test_the_model_loads_with_transformers_and_speaks(full, full_config):
    directory = full.directory / "model"
    model = AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    turns = [{"role": "user", "content": "What is the capital of France?"}]
    given = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    made = model.generate(**given, max_new_tokens=5, do_sample=False)
    assert made.shape[1] > given["input_ids"].shape[1]
    start = AutoTokenizer.from_pretrained(full_config["model"]["path"])
    assert tokenizer.chat_template == start.chat_template and tokenizer.get_vocab() == start.get_vocab()


def test_the_model_has_the_names_and_shapes_of_its_start_and_other_numbers(full, full_config):
    start = load_file(f"{full_config['model']['path']}/model.safetensors")
    trained = load_file(full.directory / "model" / "model.safetensors")
    assert {name: tensor.shape for name, tensor in trained.items()} == {
        name: tensor.shape for name, tensor in start.items()
    }
    assert all(trained[name].isfinite().all() and not torch.equal(trained[name], start[name]) for name in start)


def test_the_exported_model_is_the_one_that_was_evaluated(full, config, warm_runs):
    """Its log-probs, by transformers alone, are the ones of the last row of evals.jsonl."""
    directory = full.directory / "model"
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    total = 0.0
    rows = make_rows(10, seed=100)
    for row in rows:
        turns = [{"role": "user", "content": row["prompt"]}]
        given = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        answer = [*tokenizer(row["chosen"], add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        with torch.no_grad():
            logps = model(torch.tensor([given + answer])).logits[0].log_softmax(-1)
        total += float(logps[len(given) - 1 : -1].gather(1, torch.tensor(answer)[:, None]).sum())
    assert full.evals[-1]["logps/chosen"] == pytest.approx(total / len(rows), rel=1e-5)


def test_the_console_says_what_was_made_and_nothing_alarming(full):
    """Of all its processes one speaks."""
    roles = "roles: policy: ranks 0-1, ref/ref1: rank 2, ref/ref2: rank 3"
    for once in (roles, "step 6: held-out accuracy", f"made {full.directory / 'model'}"):
        assert full.process.stderr.count(once) == 1
    assert "Traceback" not in full.process.stderr
    assert "warning" not in full.process.stderr.lower(), full.process.stderr


# ---- going on --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resumed(warm_runs, full, full_config):
    """The full run as if it had been killed in its sixth step, and then continued from step 3."""
    directory = warm_runs.root / "resumed"
    shutil.copytree(full.directory, directory)
    shutil.rmtree(directory / "checkpoints" / "step-00000006")
    shutil.rmtree(directory / "model")
    (directory / "summary.json").unlink()
    lines = (directory / "metrics.jsonl").read_text().splitlines(keepends=True)
    (directory / "metrics.jsonl").write_text("".join(lines[:5]) + lines[5][:40])  # torn in the middle of a row
    return warm_runs.train("resumed", full_config, "--resume", "auto")


def of_the_clock(name):
    telemetry = "wait_seconds|score_seconds|tokens_per_second|idle_fraction|memory_gib"
    return name.startswith("perf/") or re.fullmatch(rf"ref/.*/({telemetry})", name)


def test_a_resumed_run_continues_bit_for_bit(full, resumed):
    """The ranks of the resumed one were given their places by the test, those of the full one by our launcher."""
    assert f"resuming from {resumed.directory / 'checkpoints' / 'step-00000003'}" in resumed.process.stderr
    for ours, theirs in ((full.metrics, resumed.metrics), (full.evals, resumed.evals)):
        without_clock = [[{k: v for k, v in row.items() if not of_the_clock(k)} for row in r] for r in (ours, theirs)]
        assert without_clock[0] == without_clock[1]


def test_a_resumed_run_ends_in_the_same_weights(full, resumed):
    ours, theirs = (load_file(run.directory / "model" / "model.safetensors") for run in (full, resumed))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_used_directory_is_not_trained_into_by_accident(warm, warm_runs, full, full_config):
    path = write_config(warm_runs.root / "again.yaml", {**full_config, "output_dir": str(full.directory)})
    again = warm.alone("train", str(path))
    assert again.returncode == 2 and "is already used" in again.stderr and "--resume auto" in again.stderr


# ---- stopping --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(warm_runs, config):
    """(name, exit code) -> a run that must not get far."""

    def exploding(learning_rate):
        return {"learning_rate": learning_rate, "warmup_ratio": 0.0, "scheduler": "constant"}

    settings = {
        "loss": config(1, train=exploding(1e12), topology={"policy": 2}, checkpoint={"every_steps": 1}),
        "gradient": config(1, train=exploding(1e30), topology={"placement": "colocated"}),
        "damaged": config(2),
    }
    second = settings["damaged"]["references"][1]
    second["path"] = damaged_copy(second["path"], warm_runs.root / "models" / "damaged")
    return warm_runs.begin(settings)


def damaged_copy(source, target):
    """The path of a copy of a model with a NaN in its weights."""
    shutil.copytree(source, target)
    tensors = load_file(target / "model.safetensors")
    next(tensor for name, tensor in tensors.items() if name.endswith("norm.weight"))[0] = math.nan
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return str(target)


def test_a_loss_that_is_not_finite_stops_all_ranks_and_names_the_rows(stopped):
    """Weights of 1e12 after step 1: the attention scores of step 2 overflow, and its loss with them."""
    run = stopped("loss", code=1)
    message = r"the policy's log-probs of \S+ \(\S+ row \d+\) \(8 such rows\) are not finite at step 2; the w"
    assert re.search(message, run.process.stderr), run.process.stderr[-3000:]
    assert "Traceback" not in run.process.stderr
    assert [row["step"] for row in run.metrics] == [1]
    assert not (run.directory / "model").exists()


def test_a_gradient_that_is_not_finite_stops_the_run_although_the_loss_is(stopped):
    """Weights of 1e30 are normalised away in the forward and overflow in the backward. DeepSpeed skips such steps."""
    run = stopped("gradient", code=1)
    assert "the gradient of step 2 is not finite, though its loss is" in run.process.stderr, run.process.stderr[-3000:]
    record = json.loads((run.directory / "failures" / "step-00000002.json").read_text())
    assert (record["not_finite"], record["grad_norm"], len(record["rows"])) == ("gradient", "inf", 8)
    assert "Traceback" not in run.process.stderr
    assert [row["step"] for row in run.metrics] == [1] and math.isfinite(run.metrics[0]["grad_norm"])


def test_a_reference_with_damaged_weights_is_named_before_the_first_step(stopped):
    run = stopped("damaged", code=2)
    assert "reference ref2: the model's own log-prob of a row" in run.process.stderr
    assert "Traceback" not in run.process.stderr
