"""The suite of evaluate.suite on the model that a run has just made, on the devices that trained it."""

import gc
import shlex
import signal
import tempfile
from pathlib import Path

import torch

from mrpo_ds.config.schema import Config
from mrpo_ds.console import log, warn
from mrpo_ds.errors import MrpoError, Stopped
from mrpo_ds.leaderboard.candidates import find_candidates
from mrpo_ds.leaderboard.lookup import look_up, use_mirror
from mrpo_ds.leaderboard.mirror import open_mirror
from mrpo_ds.leaderboard.options import Options
from mrpo_ds.leaderboard.pool import Worker
from mrpo_ds.leaderboard.suites import load_suite
from mrpo_ds.leaderboard.sweep import run_sweep
from mrpo_ds.model_names import own_name
from mrpo_ds.signals import SIGNALS


def evaluate_trained(config: Config, local_ranks: int) -> int:
    """Run evaluate.suite, if there is one, once the run's worlds are closed. Returns an exit code.

    The model is safe by then, so what goes wrong is said with the command that tries again. Raises Stopped.

    Args:
        config: of the run.
        local_ranks: processes that the run had on this machine; so many of its GPUs are used.
    """
    if config.evaluate.suite is None:
        return 0
    for number in SIGNALS:  # those of the run end its ranks, and there are none any more
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    options = _options(config, config.evaluate.suite, _devices(local_ranks))
    log(f"evaluating {_model_of(config)[1]} on {options.suite}; the table will be {options.out}/results.md")
    try:
        code = run_sweep(options)
    except Stopped:
        raise
    except MrpoError as error:
        warn(f"the evaluation failed: {error}")
        code = 1
    if code:
        warn(f"the model is trained; this evaluates it again: {retry_command(config, options)}")
    return code


def check_evaluation(config: Config) -> None:
    """Whether evaluate.suite could be run after the training: its file, tasks and mirror, and the model's name.

    Raises ConfigError, DataError.
    """
    if config.evaluate.suite is None:
        return
    options = _options(config, config.evaluate.suite, "cpu")
    find_candidates(options.models)
    suite = load_suite(options.suite)
    mirror = None if options.offline is None else open_mirror(options.offline)
    with tempfile.TemporaryDirectory(prefix="mrpo-ds-eval-") as scratch:
        worker = Worker("cpu", Path(scratch) / "worker.log", offline=mirror is not None)
        try:
            resolved = look_up(options.suite, suite, worker)
        finally:
            worker.close()
        if mirror is not None:
            use_mirror(mirror, resolved, Path(scratch) / "tasks")


def retry_command(config: Config, options: Options) -> str:
    """What a user types to run the evaluation of a run again, on every device."""
    words = ["=".join(_model_of(config)), "--suite", options.suite, "--out", str(options.out)]
    return shlex.join(["mrpo-ds", "eval", *words, *options.words])


def _model_of(config: Config) -> tuple[str, str]:
    """Name and path of the model that a run makes."""
    run_dir = Path(config.output_dir)
    return own_name(str(run_dir.resolve())), str(run_dir / "model")


def _options(config: Config, suite: str, devices: str) -> Options:
    asked = config.evaluate
    return Options(
        models=[_model_of(config)],
        suite=suite,
        out=str(Path(config.output_dir) / "eval" / Path(suite).stem),
        offline=asked.offline,
        limit=asked.suite_limit,
        batch_size=asked.suite_batch_size,
        devices=devices,
        dtype=asked.suite_dtype,
        chat_template=asked.suite_chat_template,
    )


def _devices(local_ranks: int) -> str:
    """The value of --devices; this process gives back what its engine has left on its own."""
    if not torch.cuda.is_available():
        return "cpu"
    gc.collect()
    torch.cuda.empty_cache()
    return ",".join(str(index) for index in range(min(torch.cuda.device_count(), max(1, local_ranks))))
