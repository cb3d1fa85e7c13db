"""The plan command: read what the run would read, touch no weights, print what it would take."""

from dataclasses import replace

from mrpo_ds.check import check_models
from mrpo_ds.config.ds_config import read_ds_config, stage_of
from mrpo_ds.config.schema import Config
from mrpo_ds.errors import ConfigError, require
from mrpo_ds.material import POLICY, prepare
from mrpo_ds.plan.machine import EXAMPLES, load_machine
from mrpo_ds.plan.measure import measure_machine, save_machine
from mrpo_ds.plan.predict import Prediction
from mrpo_ds.plan.say import describe


def plan_run(
    config: Config, machine_file: str | None, measure_seconds: float | None, save: str | None, devices: int | None
) -> None:
    """Print the plan of a run on stdout.

    Args:
        config: the run.
        machine_file: a machine's YAML, or None to measure this one.
        measure_seconds: how long to measure, > 0, or None.
        save: where to write what was measured, or None.
        devices: plan as if the machine had so many; None for as many as it has.

    Raises ConfigError for a machine that is not there, and what check raises for a configuration that cannot run.
    """
    if (machine_file is None) == (measure_seconds is None):
        raise ConfigError(
            f"plan needs a machine: allowed: --machine FILE (examples in {EXAMPLES}) or --measure, one of them."
        )
    require(measure_seconds is None or measure_seconds > 0, "--measure", measure_seconds, "> 0 seconds")
    require(devices is None or devices >= 1, "--gpus", devices, ">= 1")
    require(save is None or measure_seconds is not None, "--save", save, "only with --measure")
    stage = stage_of(read_ds_config(config.deepspeed))
    mend = "plan knows what a rank holds and sends under ZeRO-3 only."
    require(stage == 3, "deepspeed", config.deepspeed, "a file with stage 3, such as ds_configs/zero3.json", mend)
    machine = None if machine_file is None else load_machine(machine_file)
    model_configs = check_models(config)
    if machine is None:
        assert measure_seconds is not None
        machine = measure_machine(model_configs[POLICY], config.model, measure_seconds, config.deepspeed)
        if save is not None:
            save_machine(machine, save)
    if devices is not None:
        machine = replace(machine, devices=devices)
    for line in describe(Prediction(prepare(config), machine, model_configs)):
        print(line, flush=True)
