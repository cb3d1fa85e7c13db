"""The command line: parse, load the configuration, call. Exit codes: 0 done, 2 bad input, 75 run again, 1 else."""

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mrpo_ds import logs
from mrpo_ds.errors import MrpoError

STORE_HELP = "list the references of a store; verify its files; remove what is damaged or abandoned and merge shards"
LET_RANK_0_SPEAK_SECONDS = 5.0
"""All ranks meet the same mistake; a launcher ends everyone as soon as one leaves, so the silent ones wait."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; a user's mistake is one line, never a traceback."""
    # The deepspeed launcher puts --local_rank=N first; the environment says the same.
    given = [word for word in (sys.argv[1:] if arguments is None else arguments) if not word.startswith("--local_rank")]
    options = _parser().parse_args(given)
    try:
        return int(options.run(options))
    except MrpoError as error:
        logs.write(f"error: {error}")
        if _is_first_rank():
            print(f"mrpo-ds: error: {error}", file=sys.stderr, flush=True)
        else:
            time.sleep(LET_RANK_0_SPEAK_SECONDS)
        return error.exit_code


def _is_first_rank() -> bool:
    """Whether this is global rank 0, or no launcher's process at all."""
    rank = os.environ.get("RANK") if os.environ.get("WORLD_SIZE") else None
    return (rank or os.environ.get("SLURM_PROCID", "0")) == "0"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mrpo-ds", description="Preference finetuning against several references.")
    commands = parser.add_subparsers(title="commands", required=True)
    for name, run, text in (
        ("train", _train, "train a policy, inside or outside a launcher"),
        ("check", _check, "check config, data, tokenizers, roles and memory; touches no GPU"),
        (
            "plan",
            _plan,
            "say what a run would take on a machine: memory, time, the best ranks and placement",
        ),
        ("score", _score, "fill the reference store with what the references say about every row"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("config", help="a YAML file, see launch/configs")
        command.add_argument("overrides", nargs="*", metavar="key=value", help="replace a setting")
        command.set_defaults(run=run)
        if name == "plan":
            _add_plan_options(command)
        if name in ("plan", "score"):
            continue
        command.add_argument(
            "--resume",
            default="none",
            metavar="auto|PATH|none",
            help="auto: go on from the newest checkpoint of output_dir; PATH: from that one; none: a new run",
        )
        if name == "check":
            command.add_argument("--html", metavar="FILE", help="write the data report as one page for a browser")
    store = commands.add_parser("store", help=STORE_HELP, description=STORE_HELP)
    store.add_argument("action", choices=("ls", "verify", "prune"))
    store.add_argument("--dir", metavar="DIR", help="topology.store; without it the store beside the prepared data")
    store.set_defaults(run=_store)
    return parser


def _add_plan_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--machine", metavar="FILE", help="a machine description, see launch/machines")
    command.add_argument(
        "--measure", nargs="?", type=float, const=30.0, metavar="SECONDS", help="measure this machine instead (30 s)"
    )
    command.add_argument("--save", metavar="FILE", help="write what was measured as a machine description")
    command.add_argument("--gpus", type=int, metavar="N", help="place the roles on N devices, not on all there are")


def _train(options: argparse.Namespace) -> int:
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # a wish for stacks ends nobody, also before they can be shown
    from mrpo_ds.config.load import load_config

    config = load_config(options.config, options.overrides)
    # Only now: what follows imports torch and transformers, and a misspelt key should not wait for them.
    from mrpo_ds.run import train

    return train(config, options.config, options.overrides, options.resume)


def _check(options: argparse.Namespace) -> int:
    from mrpo_ds.config.load import load_config

    config = load_config(options.config, options.overrides)
    from mrpo_ds.accelerator import announce_cpu
    from mrpo_ds.check import check_run
    from mrpo_ds.console import configure_console, log

    announce_cpu()
    configure_console(True)
    page = None if options.html is None else Path(options.html)
    check_run(config, options.resume, show_example=True, page=page)
    log("ok")
    return 0


def _plan(options: argparse.Namespace) -> int:
    from mrpo_ds.config.load import load_config

    config = load_config(options.config, options.overrides)
    from mrpo_ds.accelerator import announce_cpu
    from mrpo_ds.console import configure_console
    from mrpo_ds.plan.command import plan_run

    announce_cpu()
    configure_console(True)
    plan_run(config, options.machine, options.measure, options.save, options.gpus)
    return 0


def _score(options: argparse.Namespace) -> int:
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # as in _train
    from mrpo_ds.config.load import load_config

    config = load_config(options.config, options.overrides)
    from mrpo_ds.run import score

    return score(config, options.config, options.overrides)


def _store(options: argparse.Namespace) -> int:
    from mrpo_ds.reference.housekeeping import run_action
    from mrpo_ds.stores import store_root

    return run_action(options.action, store_root(options.dir, None))
