"""The command line: parse, load the configuration, call. Exit codes: 0 done, 2 bad input, 75 run again, 1 else."""

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mrpo_ds import logs
from mrpo_ds.errors import MrpoError, require
from mrpo_ds.judged.options import add_judge

STORE_HELP = "list the references of a store; verify its files; remove what is damaged or abandoned and merge shards"
LAUNCH_HELP = "fill a script of launch/slurm from a configuration and the site file, and submit it"
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
        if name == "score":
            command.add_argument("--shard", metavar="I/N", help="score one of N parts of the rows alone, 0 <= I < N")
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
            _add_topology_options(command)
    store = commands.add_parser("store", help=STORE_HELP, description=STORE_HELP)
    store.add_argument("action", choices=("ls", "verify", "prune"))
    store.add_argument("--dir", metavar="DIR", help="topology.store; without it the store beside the prepared data")
    store.set_defaults(run=_store)
    _add_launch(commands.add_parser("launch", help=LAUNCH_HELP, description=LAUNCH_HELP))
    _add_eval_commands(commands)
    _add_eval_preferences(commands)
    add_judge(commands)
    _add_compare(commands)
    _add_dashboard(commands)
    return parser


def _add_launch(command: argparse.ArgumentParser) -> None:
    command.add_argument("scheduler", choices=("slurm",))
    command.add_argument("words", nargs="+", metavar="CONFIG [key=value ...]", help="or models, or runs, see --kind")
    command.add_argument(
        "--kind",
        choices=("train", "score", "eval", "compare"),
        default="train",
        help="what the job does; eval takes models and compare run directories instead of a configuration",
    )
    command.add_argument("--nodes", type=int, metavar="N", help="nodes of a job (1)")
    command.add_argument("--tasks-per-node", type=int, metavar="N", help="processes a node; default: ranks / nodes")
    command.add_argument("--gpus-per-node", type=int, metavar="N", help="default: the site's, else one a task")
    command.add_argument("--time", metavar="TIME", help="limit as sbatch takes it; default: the site's")
    command.add_argument("--name", metavar="NAME", help="of the job; default: that of the configuration")
    command.add_argument("--sweep", metavar="FILE", help="a run per line of overrides, then a comparison of all runs")
    command.add_argument(
        "--shards", type=int, metavar="N", help="score, eval: jobs that share the work (1; one a model)"
    )
    command.add_argument("--suite", metavar="NAME", help="eval: what to evaluate on")
    command.add_argument("--offline", metavar="DIR", help="eval: what the suite needs, for nodes without internet")
    command.add_argument("--limit", type=int, metavar="N", help="eval: questions per task")
    command.add_argument("--batch-size", type=int, metavar="B", help="eval: requests a forward")
    command.add_argument("--devices", metavar="cpu|0,1,...", help="eval: of the node's; cpu asks for no GPU")
    command.add_argument("--dtype", metavar="checkpoint|bf16|fp32", help="eval: of the weights")
    command.add_argument(
        "--chat-template", action=argparse.BooleanOptionalAction, help="eval: instead of what the suite says"
    )
    command.add_argument("--redo", action="store_true", help="eval: compute cells of other settings anew")
    command.add_argument("--out", metavar="DIR", help="eval, compare, --sweep: where results go")
    command.add_argument("--site", default="launch/site.yaml", metavar="FILE", help="the cluster's settings")
    command.add_argument("--dry-run", action="store_true", help="print the scripts and submit nothing")
    command.set_defaults(run=_launch)


def _add_eval_preferences(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    text = "preference accuracy and margin of base and trained models on held-out rows, with bootstrap intervals"
    command = commands.add_parser("eval-preferences", help=text, description=text)
    command.add_argument("config", help="a YAML file; its objective and references are the yardstick")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="replace a setting")
    command.add_argument(
        "--models",
        nargs="+",
        metavar="[NAME=]PATH",
        help="run directories, model directories or Hub ids; without it the model of output_dir. The base model and "
        "the references are always there",
    )
    command.add_argument("--data", nargs="+", metavar="FILE", help="eval sets; without it the sources of data.eval")
    command.add_argument("--adapter", nargs="+", metavar="NAME", help="one for each file of --data, or one for all")
    command.add_argument("--out", metavar="DIR", help="where results go; without it eval/ of the run directory")
    command.add_argument("--resamples", type=int, default=2000, metavar="N", help="of the bootstrap (2000)")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="of the bootstrap (0)")
    command.set_defaults(run=_eval_preferences)


def _add_compare(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    text = "tables and plots over finished runs: held-out preferences, benchmarks, seeds, paired differences"
    command = commands.add_parser("compare", help=text, description=text)
    command.add_argument("runs", nargs="+", metavar="RUN", help="run directories (output_dir of mrpo-ds train)")
    command.add_argument("--out", default="comparison", metavar="DIR", help="where tables and plots go (comparison)")
    command.add_argument(
        "--baseline", metavar="RUN", help="the run whose method the others are compared with; without it the first one"
    )
    command.add_argument(
        "--results", nargs="+", metavar="DIR", help="further folders of `mrpo-ds eval`, eval-preferences or judge"
    )
    command.set_defaults(run=_compare)


def _add_plan_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--machine", metavar="FILE", help="a machine description, see launch/machines")
    command.add_argument(
        "--measure", nargs="?", type=float, const=30.0, metavar="SECONDS", help="measure this machine instead (30 s)"
    )
    command.add_argument("--save", metavar="FILE", help="write what was measured as a machine description")
    command.add_argument("--gpus", type=int, metavar="N", help="place the roles on N devices, not on all there are")


def _add_topology_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--topology", action="store_true", help="only draw which role sits on which GPU; reads no data"
    )
    command.add_argument(
        "--nodes", type=int, metavar="N", help="with --topology: so many nodes, not as many as it takes"
    )
    command.add_argument("--gpus-per-node", type=int, metavar="G", help="with --topology: so many GPUs on each node")
    command.add_argument("--png", metavar="FILE", help="with --topology: draw it into this file too")


def _add_eval_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    text = "score models on a leaderboard's tasks with lm-eval; go on where an earlier one ended"
    command = commands.add_parser("eval", help=text, description=text)
    command.add_argument("models", nargs="+", metavar="MODEL", help="a model or a run's directory, or NAME=PATH")
    command.add_argument("--suite", required=True, metavar="NAME|YAML", help="a file of eval/suites, or one like them")
    command.add_argument("--out", metavar="DIR", help="cells and table; without it runs/eval/<suite>")
    command.add_argument("--offline", metavar="DIR", help="read the data from this mirror, and use no network")
    command.add_argument("--limit", type=int, metavar="N", help="only the first N documents of each task, for trials")
    command.add_argument("--batch-size", type=int, default=16, metavar="B", help="requests a forward (16)")
    command.add_argument(
        "--devices", metavar="cpu|0,1,...", help="where to compute; without it on every GPU, or the CPU"
    )
    command.add_argument("--dtype", default="checkpoint", metavar="checkpoint|bf16|fp32", help="of the weights")
    command.add_argument(
        "--chat-template", action=argparse.BooleanOptionalAction, help="instead of what the suite says"
    )
    command.add_argument("--shard", metavar="I/N", help="only the I-th of N even parts of the cells, for job arrays")
    command.add_argument("--redo", action="store_true", help="compute cells of other settings anew instead of refusing")
    command.set_defaults(run=_eval)
    text = "download the data of a suite into a mirror, for machines without a network"
    command = commands.add_parser("eval-prefetch", help=text, description=text)
    command.add_argument("--suite", required=True, metavar="NAME|YAML")
    command.add_argument("--to", required=True, metavar="DIR")
    command.set_defaults(run=_eval_prefetch)
    text = "make a mirror of local .jsonl files, for trials without the Hub"
    command = commands.add_parser("eval-mirror", help=text, description=text)
    command.add_argument(
        "--from", required=True, dest="source", metavar="DIR", help="laid out as docs/evaluation.md says"
    )
    command.add_argument("--to", required=True, metavar="DIR")
    command.set_defaults(run=_eval_mirror)


def _eval(options: argparse.Namespace) -> int:
    from mrpo_ds.console import configure_console
    from mrpo_ds.leaderboard.options import Options
    from mrpo_ds.leaderboard.sweep import run_sweep

    configure_console(True)
    return run_sweep(Options(**{name: value for name, value in vars(options).items() if name != "run"}))


def _eval_prefetch(options: argparse.Namespace) -> int:
    from mrpo_ds.console import configure_console
    from mrpo_ds.leaderboard.prefetch import prefetch

    configure_console(True)
    return prefetch(options.suite, options.to)


def _eval_mirror(options: argparse.Namespace) -> int:
    from mrpo_ds.console import configure_console
    from mrpo_ds.leaderboard.local_files import mirror_local_files

    configure_console(True)
    return mirror_local_files(options.source, options.to)


def _add_dashboard(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    text = "show runs: as one local page, or as a workspace of W&B"
    kinds = commands.add_parser("dashboard", help=text, description=text).add_subparsers(title="kinds", required=True)
    text = "write one page about a run, or that compares several; it needs no network and no account"
    html = kinds.add_parser("html", help=text, description=text)
    html.add_argument("runs", nargs="+", metavar="RUN", help="a run directory: output_dir of mrpo-ds train")
    html.add_argument("--out", metavar="FILE", help="RUN/dashboard.html; of several runs, dashboard.html here")
    html.set_defaults(run=_dashboard_html)
    text = "make a W&B workspace with the same sections"
    wandb = kinds.add_parser("wandb", help=text, description=text)
    wandb.add_argument("--project", metavar="P", default="mrpo-ds", help="tracking.wandb.project of the runs")
    wandb.add_argument("--entity", metavar="E", help="tracking.wandb.entity: a team or user; the account's own")
    wandb.add_argument("--dry-run", metavar="FILE", help="write its JSON instead; needs no key and no network")
    wandb.set_defaults(run=_dashboard_wandb)


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
    drawing = (options.nodes, options.gpus_per_node, options.png)
    if options.topology or any(option is not None for option in drawing):
        from mrpo_ds.topology_picture import draw_topology

        require(options.topology, "--topology", False, "to be given with --nodes, --gpus-per-node and --png")
        require(options.html is None, "--html", options.html, "without --topology, which reads no data")
        draw_topology(config, *drawing)
        return 0
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

    return score(config, options.config, options.overrides, options.shard)


def _store(options: argparse.Namespace) -> int:
    from mrpo_ds.reference.housekeeping import run_action
    from mrpo_ds.stores import store_root

    return run_action(options.action, store_root(options.dir, None))


def _launch(options: argparse.Namespace) -> int:
    from mrpo_ds.console import configure_console
    from mrpo_ds.slurm.jobs import Request
    from mrpo_ds.slurm.submit import launch_slurm

    configure_console(True)
    asked = {name: value for name, value in vars(options).items() if name in Request.__dataclass_fields__}
    return launch_slurm(Request(**{**asked, "words": tuple(options.words)}), options.site, options.dry_run)


def _eval_preferences(options: argparse.Namespace) -> int:
    from mrpo_ds.config.load import load_config

    config = load_config(options.config, options.overrides)
    from mrpo_ds.comparison.preferences import Asked, eval_preferences
    from mrpo_ds.comparison.statistics import Bootstrap

    arguments = ["eval-preferences", options.config, *options.overrides]
    for name in ("models", "data", "adapter"):
        arguments += [f"--{name}", *getattr(options, name)] if getattr(options, name) else []
    arguments += ["--out", options.out] if options.out else []
    arguments += ["--resamples", str(options.resamples), "--seed", str(options.seed)]
    bootstrap = Bootstrap(options.resamples, options.seed)
    asked = Asked(options.models, options.data, options.adapter, options.out, bootstrap)
    return eval_preferences(config, arguments, asked)


def _compare(options: argparse.Namespace) -> int:
    from mrpo_ds.comparison.command import compare
    from mrpo_ds.console import configure_console

    configure_console(True)
    compare(options.runs, Path(options.out), options.baseline, options.results or [])
    return 0


def _dashboard_html(options: argparse.Namespace) -> int:
    from mrpo_ds.console import configure_console
    from mrpo_ds.dashboard.page import write_dashboard

    configure_console(True)
    write_dashboard(options.runs, options.out)
    return 0


def _dashboard_wandb(options: argparse.Namespace) -> int:
    from mrpo_ds.console import configure_console
    from mrpo_ds.dashboard.workspace import make_workspace

    configure_console(True)
    make_workspace(options.project, options.entity, options.dry_run)
    return 0
