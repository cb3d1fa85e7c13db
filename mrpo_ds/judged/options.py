"""The options of `mrpo-ds judge`. Imports nothing heavy: every command's parser is built first."""

import argparse

TEXT = "let a judge score what models answer: MT-Bench, Arena-Hard, AlpacaEval, HH-RLHF, or a benchmark of your own"


def add_judge(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the command line's parser."""
    command = commands.add_parser("judge", help=TEXT, description=TEXT)
    command.add_argument("bench", metavar="BENCH", help="a file of eval/judged, or a YAML like them")
    command.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help="a model or a run's directory, NAME=PATH, or NAME=FILE of answers; with --verdicts names in the files",
    )
    command.add_argument("--questions", metavar="FILE", help="questions in the published layout, or a Hub data set")
    command.add_argument("--judge", metavar="FILE", help="whom to ask: a YAML like eval/judged/judge.yaml")
    command.add_argument("--verdicts", nargs="+", metavar="FILE", help="files of verdicts instead of a judge")
    command.add_argument("--baseline", metavar="NAME=PATH", help="pairs: a model or a file of answers to compare with")
    command.add_argument("--reference-answers", metavar="FILE", help="scores: right answers, as FastChat stores them")
    command.add_argument(
        "--single-order", action="store_true", help="pairs: the model's answer is always A, as in the MRPO paper"
    )
    command.add_argument("--max-cost", type=float, metavar="USD", help="the most that the judgments of --out may cost")
    command.add_argument(
        "--retry-unread", action="store_true", help="ask once more for judgments that are there without a verdict"
    )
    command.add_argument("--limit", type=int, metavar="N", help="only the first N questions, for trials")
    command.add_argument("--out", metavar="DIR", help="answers, judgments and table; without it runs/judged/<bench>")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="of sampled answers and of the bootstrap (0)")
    command.add_argument("--resamples", type=int, default=1000, metavar="N", help="of the bootstrap (1000)")
    command.add_argument("--backend", default="transformers", metavar="transformers|vllm", help="what makes answers")
    command.add_argument("--device", metavar="cpu|cuda:0|...", help="where answers are made; a GPU, or the CPU")
    command.set_defaults(run=_judge)


def _judge(options: argparse.Namespace) -> int:
    from mrpo_ds.console import configure_console
    from mrpo_ds.judged.command import Options, run_judge

    configure_console(True)
    return run_judge(Options(**{name: value for name, value in vars(options).items() if name != "run"}))
