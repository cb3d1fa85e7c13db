"""Build what a role needs and run it: the policy's ranks train, a reference's ranks score."""

import math
from collections.abc import Callable
from contextlib import closing
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import psutil
import torch

from mrpo_ds.accounting import Accounting
from mrpo_ds.activations import HostActivations
from mrpo_ds.budget import Budget, make_budget
from mrpo_ds.checkpoint import Checkpoints, TrainState
from mrpo_ds.config.ds_config import check_restorable, read_ds_config
from mrpo_ds.config.load import save_config, to_dict
from mrpo_ds.config.schema import Config, ReferenceConfig
from mrpo_ds.console import log, progress, warn
from mrpo_ds.data.batching import Layout
from mrpo_ds.data.plan import batches_of
from mrpo_ds.distributed.bridge import Bridge
from mrpo_ds.distributed.collectives import gather_objects
from mrpo_ds.distributed.orders import Orders
from mrpo_ds.distributed.worlds import World
from mrpo_ds.dry_run import dry_run, is_wanted
from mrpo_ds.engine import DeepSpeedEngine, full_shape, gathered, shard_frozen
from mrpo_ds.errors import ConfigError
from mrpo_ds.export import check_names, export_model, exported_shapes
from mrpo_ds.flops import model_shape
from mrpo_ds.material import POLICY, Material, Speaker, rows_of, run_settings
from mrpo_ds.memory import give_back_freed, peak_memory_gib
from mrpo_ds.models import AnyModelConfig, SequenceScorer, check_attention, load_scorer, resolve_dtype, score
from mrpo_ds.objective import Objective
from mrpo_ds.peaks import device_peak_tflops
from mrpo_ds.preflight import Forward, check_selected_logps, unfit_for_packing, unfit_for_sharing
from mrpo_ds.reference.client import ReferenceClient
from mrpo_ds.reference.colocated import ColocatedReferences
from mrpo_ds.reference.scoring import Answered, ReferenceScorer, Scored, Scorer
from mrpo_ds.reference.served import ServedReferences, serve
from mrpo_ds.reference.stored import StoredScorer, look_up, refuse_missing, remember
from mrpo_ds.samples import make_sampler
from mrpo_ds.stores import TOLERANCE_NATS, store_of, uses_store
from mrpo_ds.tracking import Tracker, read_jsonl
from mrpo_ds.train import PolicyRun, Report, asked_of_references, describe_preferences
from mrpo_ds.wandb_sink import log_job

BYTES_PER_PARAMETER = 12
"""Of a checkpoint: a weight and AdamW's two moments in fp32."""
SCORED_AT_ONCE = 32
"""Rows that the score command scores in one go, for each rank."""


def run_policy(material: Material, world: World, resume: Path | None, report: Report, orders: Orders) -> None:
    """A policy rank's whole life: load, check, train, export. orders: what to look for on global rank 0."""
    config = material.config
    run_dir = Path(config.output_dir)
    checkpoints = Checkpoints(
        directory=run_dir / "checkpoints",
        keep=config.checkpoint.keep,
        settings=run_settings(material, world.device),
        is_main=world.is_leader,
        on_failure=config.checkpoint.on_failure,
        allow_changes=config.checkpoint.allow_changes,
        background=config.checkpoint.background,
    )
    if resume:
        check_restorable(config.deepspeed, read_ds_config(config.deepspeed))
        checkpoints.check(resume)  # before the minutes that large models take to load
    engine, layout = _policy_engine(material, world, report)
    restorable = _restorable(config, engine, needed=resume is not None or config.checkpoint.every_steps > 0)
    references = _reference_client(material, world, report, lambda: orders.stop is not None)
    state = checkpoints.load(engine, resume) if resume else TrainState()
    batcher = material.batcher(layout, world.rank, world.size, world.device)
    if is_wanted(config, world.device):
        report("preflight dry run", state.step)
        dry_run(config, engine, batcher.largest(material.largest_examples()), world.rank)
    tracker = _tracker(config, run_dir, state.step) if world.is_main else None
    run = PolicyRun(
        config=config,
        engine=engine,
        objective=Objective.from_config(config),
        references=references,
        batcher=batcher,
        checkpoints=checkpoints,
        tracker=tracker,
        report=report,
        orders=orders,
        budget=_budget(config, engine, tracker) if tracker else None,
        accounting=_accounting(config, engine, world),
        restorable=restorable,
        state=state,
        sampler=make_sampler(config, engine.scorer.model, material, world),
    )
    if state.step:
        _recall_evaluations(run, run_dir, world)
    give_back_freed()
    with closing(references):
        run.run(material.eval_batches(), material.train_batches(state.step))
    report("export", run.state.step)
    model = engine.scorer.model
    shapes = exported_shapes(model, full_shape)
    tokenizer = copy(material.speakers[POLICY].tokenizer)
    tokenizer.chat_template = material.speakers[POLICY].renderer.template_to_save()
    export_model(model, tokenizer, shapes, run_dir / "model", gathered, world.is_main)
    if run.tracker:
        run.tracker.finish(_summary(run, material), 0)
        _say_what_was_made(run)


def _recall_evaluations(run: PolicyRun, run_dir: Path, world: World) -> None:
    """What the run that is resumed has recorded of its evaluations; every rank must call it."""
    rows = read_jsonl(run_dir / "evals.jsonl") if world.is_main else []
    for row in rows:
        if row["step"] == 0:
            run.evals["before"] = {name: value for name, value in row.items() if name != "step"}
    samples = read_jsonl(run_dir / "samples.jsonl") if world.is_main else []
    for steps, known in ((run.evaluated, rows), (run.sampled, samples)):
        for said in gather_objects(sorted({str(row["step"]) for row in known})):
            steps.update(int(step) for step in said)


def run_reference(material: Material, world: World, first_step: int, report: Report) -> None:
    """A reference rank's whole life: load, check, score every batch of the run in order."""
    name = world.role.name.removeprefix("ref/")
    config = next(reference for reference in material.config.references if reference.name == name)
    (scorer,) = _scorers([config], material, world, report)
    bridge = Bridge(world) if world.is_leader else None
    batches = chain(material.eval_batches(), material.train_batches(first_step))
    with closing(scorer):
        serve(scorer, bridge, asked_of_references(batches, material.needs), report)


def run_score(material: Material, world: World, report: Report, answered: Answered | None = None) -> None:
    """The score command on one of its ranks: every reference in turn scores what the store lacks of every split.

    answered is told what each reference says about each batch, on every rank.
    """
    config = material.config
    logged: list[dict[str, float]] = []
    for reference in config.references:
        (scorer,) = _stored_scorers([reference], material, world, report)
        encodings = material.speakers[reference.name].encodings
        done = _Scoring()
        with closing(scorer), progress(sum(map(len, encodings.values())), f"scoring {reference.name}", "row") as bar:
            for split, rows in sorted(encodings.items()):
                for batch in batches_of(split, len(rows), SCORED_AT_ONCE * world.size):
                    report(f"score {split}", batch.step + 1)
                    scored = scorer.score(batch)
                    if answered is not None:
                        answered(reference.name, batch, scored)
                    done.add(scored, len(batch.ids))
                    bar.update(len(batch.ids))
        scorer.check_kept()
        logged.append(done.metrics(f"ref/{reference.name}"))
    if world.is_main and answered is None:
        run_dir = Path(config.output_dir)
        beside = run_dir.with_name(f"{run_dir.name}-score")  # the run's own must be new when it is trained into
        log_job("score", beside, config.tracking.wandb, to_dict(config), logged)


@dataclass
class _Scoring:
    """What the score command did with one reference."""

    rows: int = 0
    tokens: int = 0
    seconds: float = 0.0
    stored: float = 0.0

    def add(self, scored: Scored, rows: int) -> None:
        """Count a batch."""
        self.rows += rows
        self.tokens += scored.tokens
        self.seconds += scored.seconds
        self.stored += scored.stored * rows

    def metrics(self, prefix: str) -> dict[str, float]:
        """The names of a training run's telemetry, and rows."""
        values = {
            "rows": float(self.rows),
            "score_seconds": self.seconds,
            "tokens_per_second": self.tokens / max(self.seconds, 1e-9),
            "stored_fraction": self.stored / max(self.rows, 1),
            "memory_gib": peak_memory_gib(),
        }
        return {f"{prefix}/{name}": value for name, value in values.items()}


def _budget(config: Config, engine: DeepSpeedEngine, tracker: Tracker) -> Budget:
    numbers = sum(math.prod(full_shape(parameter)) for parameter in engine.scorer.model.parameters())
    started = psutil.Process().create_time()
    return make_budget(config.train.max_seconds, started, BYTES_PER_PARAMETER * numbers, tracker.goodbye_seconds)


def _accounting(config: Config, engine: DeepSpeedEngine, world: World) -> Accounting:
    peak = config.tracking.peak_tflops
    if peak is None:
        peak = device_peak_tflops(world.device, engine.scorer.head.weight.dtype)
    if peak is None:
        log("perf/mfu is not logged: this device's peak is not known; tracking.peak_tflops can say it")
    shape = model_shape(engine.scorer.model, full_shape)
    return Accounting(shape, config.model.gradient_checkpointing, world.size, peak)


def _restorable(config: Config, engine: DeepSpeedEngine, needed: bool) -> bool:
    """Whether a checkpoint of the engine can be restored; the same on every rank. If needed, raises what forbids it."""
    try:
        check_restorable(config.deepspeed, read_ds_config(config.deepspeed))
        engine.check_shares()
    except ConfigError:
        if needed:
            raise
        return False
    return True


def _policy_engine(material: Material, world: World, report: Report) -> tuple[DeepSpeedEngine, Layout]:
    config = material.config
    speaker = material.speakers[POLICY]
    check_attention(config.model, world.device)
    dtype = resolve_dtype(config.model.dtype, world.device)
    log(f"policy: {config.model.path} in {_dtype_name(dtype)} on {world.size} x {world.device.type}")
    report("load", 0)
    with progress(1, "loading the policy", "model") as bar:
        scorer = load_scorer(config.model, dtype, trainable=True)
        bar.update()
    if config.model.activation_offload:
        _offload_activations(scorer, world.device)
    shapes = exported_shapes(scorer.model, full_shape)
    if world.is_leader:
        check_names(config.model.path, shapes, scorer.model)
    engine = DeepSpeedEngine(scorer, read_ds_config(config.deepspeed), config.train, world.device)
    report("preflight", 0)
    return engine, _preflight(scorer, engine.score, config.model, speaker, world)


def _offload_activations(scorer: SequenceScorer, device: torch.device) -> None:
    if device.type == "cpu":
        log("model.activation_offload has no effect here: on a CPU activations are in host memory anyway")
    else:
        scorer.saving = HostActivations()


def _reference_client(
    material: Material, world: World, report: Report, stop_asked: Callable[[], bool]
) -> ReferenceClient:
    config = material.config
    if config.topology.placement != "served" or not config.references:
        scorers = _scorers(config.references, material, world, report)
        return ColocatedReferences(scorers, material.speakers[POLICY].encodings, world.device)
    report("meet the references", 0)
    bridge = Bridge(world) if world.is_leader else None
    encodings = material.speakers[POLICY].encodings
    run_ahead = config.topology.run_ahead
    return ServedReferences(bridge, len(config.references), run_ahead, encodings, world.device, stop_asked)


def _scorers(references: list[ReferenceConfig], material: Material, world: World, report: Report) -> list[Scorer]:
    """What answers for references on the ranks of this world: their models, behind the store if there is one."""
    if uses_store(material.config):
        return [*_stored_scorers(references, material, world, report)]
    return [_reference_scorer(reference, material, world, report) for reference in references]


def _stored_scorers(
    references: list[ReferenceConfig], material: Material, world: World, report: Report
) -> list[StoredScorer]:
    config = material.config
    report("read the store", 0)
    stores = [store_of(config, one, world.device) if world.is_leader else None for one in references]
    memories = [
        look_up(one.name, store, material.speakers[one.name].encodings, config.topology.store_check_fraction)
        for one, store in zip(references, stores, strict=True)
    ]
    if config.topology.placement == "stored" and config.topology.store_missing == "refuse":
        refuse_missing({memory.name: memory.survey for memory in memories})
    scorers = []
    for one, memory in zip(references, memories, strict=True):
        load = partial(_reference_scorer, one, material, world, report)
        tolerance = TOLERANCE_NATS[resolve_dtype(one.dtype, world.device)]
        scorers.append(remember(memory, load, material.splits, tolerance, world.device))
    return scorers


def _reference_scorer(config: ReferenceConfig, material: Material, world: World, report: Report) -> ReferenceScorer:
    report("load", 0)
    check_attention(config, world.device)
    dtype = resolve_dtype(config.dtype, world.device)
    log(f"reference {config.name}: {config.path} in {_dtype_name(dtype)}")
    scorer = load_scorer(config, dtype, trainable=False)
    sharded = config.sharding == "zero3"
    module = shard_frozen(scorer, world.size, world.device) if sharded else scorer.to(world.device)
    forward = torch.no_grad()(partial(score, module))
    speaker = material.speakers[config.name]
    report("preflight", 0)
    return ReferenceScorer(
        name=config.name,
        forward=forward,
        encodings=speaker.encodings,
        layout=_preflight(scorer, forward, config, speaker, world),
        batch_tokens=config.batch_tokens,
        rank=world.rank,
        size=world.size,
        device=world.device,
    )


def _preflight(
    scorer: SequenceScorer, forward: Forward, model: AnyModelConfig, speaker: Speaker, world: World
) -> Layout:
    """Check a model's log-probs, and find how its sequences may lie in a forward."""
    name = speaker.renderer.model_name
    row = next(iter(speaker.encodings.values()))[0][0]  # of data.train where there is that
    check_selected_logps(scorer, forward, row, world.device, name if name == POLICY else f"reference {name}")
    layout = speaker.layout(model)
    if layout.packed and (why := _agreed(unfit_for_packing(scorer, forward, row, world.device))):
        _tell(world, f"{name}: no packing, every sequence gets a padded row: {why}")
        layout = replace(layout, packed=False, shared=False)
    if layout.shared and (why := _agreed(unfit_for_sharing(scorer, forward, row, world.device, speaker.longest))):
        _tell(world, f"{name}: no prefix sharing, a prompt is computed with each of its responses: {why}")
        layout = replace(layout, shared=False)
    return layout


def _tell(world: World, message: str) -> None:
    """Say what only the ranks of one role know."""
    if world.is_leader:
        warn(message)


def _agreed(reason: str) -> str:
    """The first rank's reason that has one: all must plan the same forwards, whatever the last bits of one of them."""
    return next((text for (text,) in gather_objects([reason]) if text), "")


def _tracker(config: Config, run_dir: Path, step: int) -> Tracker:
    run_dir.mkdir(parents=True, exist_ok=True)
    save_config(config, run_dir / "config.yaml")
    return Tracker(run_dir, config.tracking, to_dict(config), step)


def _summary(run: PolicyRun, material: Material) -> dict[str, Any]:
    """summary.json: what was done, what it did to the held-out rows, and what became of every row."""
    return {
        "steps": run.state.step,
        "tokens": run.state.tokens,
        "loss": run.config.loss.name,
        "references": run.objective.reference_names,
        "held_out": run.evals,
        "data": {split: one.report.as_dict() for split, one in material.prepared.items()},
        "rows": {split: rows_of(one) for split, one in material.prepared.items()},
        "checkpoints_that_failed": run.checkpoints.failed,
        "peak_memory_gib": peak_memory_gib(),
        "model": str(Path(run.config.output_dir) / "model"),
    }


def _say_what_was_made(run: PolicyRun) -> None:
    for when, metrics in run.evals.items():
        if metrics:
            log(f"held-out {when} training: {describe_preferences(metrics)}loss {metrics['loss']:.4f}")
    directory = Path(run.config.output_dir)
    log(f"made {directory / 'model'}: a Hugging Face model (AutoModelForCausalLM.from_pretrained, vLLM, lm-eval)")
    log(f"look at summary.json, metrics.jsonl, evals.jsonl and plots/ in {directory}")


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
