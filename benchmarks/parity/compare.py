"""Run both sides and set their losses side by side: exit code 1 if an objective differs by more than the tolerance.

    .venv/bin/python benchmarks/parity/compare.py [--trl TRL_VENV/bin/python] [--model tiny] [CASE...]

With --trl and all cases it writes benchmarks/results/parity_<model>.json and .md. Without --trl it runs our side alone
and takes TRL's numbers from that file: what a test can do where TRL is not installed.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from cases import BATCH, CASES, ROWS, STEPS, TOLERANCE
from material import REAL, ROOT, make_material

RESULTS = ROOT / "benchmarks/results"


def main() -> int:
    arguments = parse_arguments()
    names = arguments.cases or [name for name, case in CASES.items() if case.rate(arguments.model)]
    commit = subprocess.check_output(["git", "describe", "--always", "--dirty"], cwd=ROOT, text=True).strip()
    with tempfile.TemporaryDirectory() as scratch:
        material = make_material(arguments.model, Path(scratch) / "material")
        sides = [arguments.model, str(material), *names]
        run(sys.executable, "ours.py", sides, arguments.threads)
        ours = json.loads((material / "ours.json").read_text())
        if arguments.trl:
            run(arguments.trl, "peer.py", sides, arguments.threads)
            theirs = json.loads((material / "peer.json").read_text())
        else:
            theirs = stored(arguments.model, names)
    rows = [compare(arguments.model, name, ours["runs"][name], theirs["runs"][name]) for name in names]
    result = {
        "command": " ".join(["benchmarks/parity/compare.py", "--model", arguments.model, *arguments.cases]),
        "commit": commit,
        "machine": f"fp32 on the CPU ({platform.machine()}), threads: {arguments.threads}",
        "versions": {"ours": ours["versions"], "TRL": theirs["versions"]},
        "model": arguments.model,
        "rows": ROWS,
        "batch": BATCH,
        "steps": STEPS,
        "tolerance": TOLERANCE,
        "objectives": rows,
    }
    text = table(result)
    print(text)
    if arguments.trl and not arguments.cases:
        RESULTS.mkdir(exist_ok=True)
        results_file(arguments.model).write_text(json.dumps(result, indent=1) + "\n")
        results_file(arguments.model).with_suffix(".md").write_text(text)
    return int(any(row["max_abs_diff"] > TOLERANCE and not row["why_apart"] for row in rows))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", help="python of the environment with requirements.txt")
    parser.add_argument("--model", default="tiny", choices=("tiny", REAL.name))
    parser.add_argument("--threads", type=int, default=1, help="of each side")
    parser.add_argument("cases", nargs="*", help=f"default: all for the tiny model ({', '.join(CASES)})")
    return parser.parse_args()


def run(python: str, script: str, arguments: list[str], threads: int) -> None:
    """Run one side: offline, quiet, with so many threads."""
    switches = ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "TRL_EXPERIMENTAL_SILENCE")
    settings = {**dict.fromkeys(switches, "1"), "OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
    command = [python, str(Path(__file__).with_name(script)), *arguments]
    subprocess.run(command, env={**os.environ, **settings}, check=True)


def results_file(model: str) -> Path:
    return RESULTS / f"parity_{model}.json"


def stored(model: str, names: list[str]) -> dict[str, Any]:
    """What peer.py said when the results were written. Raises ValueError for a case that has changed since."""
    result = json.loads(results_file(model).read_text())
    rows = {row["name"]: row for row in result["objectives"]}
    for name in names:
        if name not in rows or any(rows[name][key] != value for key, value in settings(model, name).items()):
            raise ValueError(f"case {name!r} is not in {results_file(model)} as it is now; run compare.py with --trl")
    return {"versions": result["versions"]["TRL"], "runs": {name: rows[name]["losses"]["trl"] for name in names}}


def settings(model: str, name: str) -> dict[str, Any]:
    """What a case asks for, as written to the results."""
    case = CASES[name]
    return {
        "ours": case.ours,
        "view": case.view,
        "trl": {"trainer": f"{case.trainer}Trainer", "accumulate": case.accumulate, **case.theirs},
        "learning_rate": case.rate(model),
    }


def compare(model: str, name: str, ours: list[float], theirs: list[float]) -> dict[str, Any]:
    assert len(ours) == len(theirs) == STEPS, (name, ours, theirs)
    return {
        "name": name,
        **settings(model, name),
        "losses": {"ours": ours, "trl": theirs},
        "max_abs_diff": max(abs(mine - other) for mine, other in zip(ours, theirs, strict=True)),
        "why_apart": CASES[name].why_apart,
    }


def table(result: dict[str, Any]) -> str:
    """The comparison as markdown."""
    versions = result["versions"]["TRL"]
    lines = [
        f"{result['model']}, {result['machine']}; TRL {versions['trl']}, transformers {versions['transformers']}, "
        f"torch {versions['torch']}; {STEPS - 1} SGD steps of {BATCH} rows.",
        "",
        f"| objective | step 0, ours | step 0, TRL | after {STEPS - 1}, ours | after {STEPS - 1}, TRL "
        f"| max abs diff of {STEPS} losses | within {TOLERANCE:g} |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    reasons = []
    for row in result["objectives"]:
        ours, theirs = row["losses"]["ours"], row["losses"]["trl"]
        verdict = "yes" if row["max_abs_diff"] <= TOLERANCE else "**no**"
        if row["why_apart"]:
            reasons.append(row["why_apart"])
            verdict += f", see {len(reasons)}"
        numbers = (f"{value:.6f}" for value in (ours[0], theirs[0], ours[-1], theirs[-1]))
        lines.append(f"| {row['name']} | {' | '.join(numbers)} | {row['max_abs_diff']:.1e} | {verdict} |")
    return "\n".join([*lines, "", *(f"{number}. {reason}" for number, reason in enumerate(reasons, 1))]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
