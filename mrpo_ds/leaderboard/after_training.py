"""The suite of evaluate.suite on the model that a run has just made, on the devices that trained it."""

import gc
import signal
from pathlib import Path

import torch

from mrpo_ds.config.schema import Config
from mrpo_ds.console import log, warn
from mrpo_ds.errors import MrpoError, Stopped
from mrpo_ds.leaderboard.sweep import Options, run_sweep
from mrpo_ds.signals import SIGNALS


def evaluate_trained(config: Config, local_ranks: int) -> int:
    """Run evaluate.suite, if there is one, once the run's worlds are closed. Returns an exit code.

    The model is safe by then, so what goes wrong is said with the command that tries again. Raises Stopped.

    Args:
        config: of the run.
        local_ranks: processes that the run had on this machine; so many of its GPUs are used.
    """
    suite = config.evaluate.suite
    if suite is None:
        return 0
    run_dir = Path(config.output_dir)
    out = run_dir / "eval" / Path(suite).stem
    for number in SIGNALS:  # those of the run end its ranks, and there are none any more
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    options = Options(
        models=[f"{run_dir.resolve().name}={run_dir / 'model'}"],
        suite=suite,
        out=str(out),
        offline=config.evaluate.offline,
        limit=config.evaluate.suite_limit,
        devices=_devices(local_ranks),
    )
    log(f"evaluating {run_dir / 'model'} on {suite}; the table will be {out / 'results.md'}")
    try:
        code = run_sweep(options)
    except Stopped:
        raise
    except MrpoError as error:
        warn(f"the evaluation failed: {error}")
        code = 1
    if code:
        limit = "" if options.limit is None else f" --limit {options.limit}"
        offline = "" if options.offline is None else f" --offline {options.offline}"
        command = f"mrpo-ds eval {options.models[0]} --suite {suite} --out {out}{limit}{offline}"
        warn(f"the model is trained; this evaluates it again: {command}")
    return code


def _devices(local_ranks: int) -> str:
    """The value of --devices; this process gives back what its engine has left on its own."""
    if not torch.cuda.is_available():
        return "cpu"
    gc.collect()
    torch.cuda.empty_cache()
    return ",".join(str(index) for index in range(min(torch.cuda.device_count(), max(1, local_ranks))))
