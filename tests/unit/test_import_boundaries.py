"""Arrows point down: who may import whom, and how large a file, a function or a signature may grow.

The tables are the design's section 2 as data. A new module needs its line in MAY_IMPORT, after those that it uses.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "mrpo_ds"
FILES = sorted(PACKAGE.rglob("*.py"))

# unit -> what it may import of mrpo_ds, besides itself. A unit is a module, or a package with all that is in it; the
# longest name that fits counts. Units may only name units above them, so there is no cycle.
MAY_IMPORT = {
    "errors": "",
    "types": "",
    "accelerator": "",
    "logs": "",
    "memory": "",
    "activations": "",
    "manifest": "",
    "signals": "",
    "locks": "errors",
    "model_names": "errors",
    "wandb_files": "",
    "registry": "errors",
    "ops": "errors types registry",
    "losses": "errors types registry ops",
    "config.shares": "",
    "config.outputs": "errors",
    "config.schema": "errors config.shares config.outputs",
    # the losses' options by file name, so that yaml needs no torch
    "config": "errors manifest registry config.schema config.shares config.outputs",
    "learning_rate": "config.schema",
    "data": "errors types registry config.schema config.shares",
    "distributed": "errors config.schema logs",
    "console": "logs",
    "wandb_sink": "config.outputs console wandb_files",
    "tracking": "errors config.outputs console manifest plots wandb_sink",
    "plots": "errors tracking",
    "reference": "errors types data distributed console manifest memory",
    "flops": "types",
    "peaks": "",
    "accounting": "types flops",
    "models": "errors types activations ops config.schema manifest memory",
    "stores": "config.schema data models reference",
    "export": "errors manifest",
    "preflight": "errors types data models",
    "shards": "manifest",
    "partitions": "shards",
    "engine": "errors types config config.schema models shards partitions",
    "checkpoint": "errors memory manifest distributed console shards engine logs",
    "metrics": "errors types ops data distributed",
    "objective": "types ops losses config.schema data distributed reference",
    "evaluation": "engine metrics objective",
    "failures": "errors types distributed data metrics objective",
    "material": "errors types losses config config.schema data models console",
    "report.markup": "errors",
    "report.style": "",
    "report": "errors config.schema data console material report.markup report.style",
    # the command line and its workers, which are processes of their own
    "leaderboard": "errors memory accelerator manifest signals locks model_names config config.schema data console "
    "models",
    "samples": "errors types memory config.schema data distributed console models engine material",
    "check": "errors config config.schema data distributed.topology reference material models stores "
    "checkpoint console report report.markup leaderboard",
    "dashboard": "errors console tracking report.markup report.style",
    "dashboard.workspace": "errors manifest console wandb_sink dashboard",
    "plan": "errors accelerator types ops config config.schema data distributed.topology material models check console",
    "budget": "",
    "train": "errors types config.schema learning_rate memory budget accounting data distributed console tracking "
    "reference engine checkpoint metrics objective evaluation failures samples",
    "dry_run": "errors config.schema memory data distributed console engine",
    "roles": "errors types activations config config.schema memory flops peaks accounting data distributed console "
    "tracking reference models stores export preflight engine checkpoint metrics objective material budget samples "
    "train dry_run wandb_sink",
    "plan.probe": "types config config.schema distributed models engine plan",
    "session": "errors console",
    "run": "errors logs accelerator config.schema distributed console checkpoint material check roles session "
    "reference leaderboard",
    "demo": "errors accelerator console",
    "slurm": "errors manifest config config.schema distributed.topology console models leaderboard",
    "topology_picture": "errors config.schema distributed.placement distributed.topology manifest plots",
    "comparison.statistics": "",
    "judged": "errors types memory accelerator manifest signals locks config config.schema data models console "
    "leaderboard comparison.statistics",
    "comparison": "errors types losses config config.schema data distributed.topology manifest model_names console "
    "tracking plots reference models metrics material run leaderboard comparison.statistics",
    "cli": "errors logs accelerator config console reference stores check dashboard dashboard.workspace plan run slurm "
    "topology_picture leaderboard comparison comparison.statistics judged",
    "__main__": "cli",
}
KNOWN_CYCLE = ("tracking", "plots")
"""tracking draws the plots at the end, and plots reads the run with tracking's reader."""

# Third-party package -> the units that may import it, at the top of a file or anywhere in it.
ONLY_IN = {
    "torch.distributed": "distributed",
    "deepspeed": "engine partitions",
    "wandb": "comparison dashboard.workspace wandb_sink",
    "matplotlib": "plots topology_picture comparison",
    "numpy": "plots comparison comparison.statistics judged",
    "tqdm": "console",
    "httpx": "judged",
    "vllm": "judged",
    "omegaconf": "config",
    "yaml": "config leaderboard dashboard",
    "wandb_workspaces": "dashboard.workspace",
    "psutil": "memory session distributed roles plan plan.probe",
    "tokenizers": "data",
    "transformers": "data models stores check export demo plan plan.probe leaderboard comparison samples judged",
    "safetensors": "export shards leaderboard",
    "lm_eval": "leaderboard",
    "nltk": "leaderboard",
    "huggingface_hub": "leaderboard",
    "datasets": "data",
    "pyarrow": "data reference leaderboard",
    "jinja2": "data",
    "torch": "accelerator flops peaks memory activations material types ops losses data distributed reference models "
    "stores export preflight shards partitions engine checkpoint metrics objective evaluation failures check train "
    "dry_run roles demo plan plan.probe leaderboard comparison samples judged",
}


def module_of(file: Path) -> str:
    """'config.load' for mrpo_ds/config/load.py, 'losses' for mrpo_ds/losses/__init__.py, '' for mrpo_ds itself."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def within(name: str, unit: str) -> bool:
    return name == unit or name.startswith(f"{unit}.")


def unit_of(module: str) -> str | None:
    return max((unit for unit in MAY_IMPORT if within(module, unit)), key=len, default=None)


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for file in FILES:
        yield file, ast.parse(file.read_text(encoding="utf-8"))


def imported(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, full name) of everything that a file imports, in functions too; 'a.b' for `from a import b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in ONLY_IN:
            # `torch.distributed.barrier()` needs no import of its own once torch is there.
            yield node.lineno, ast.unparse(node)


def imports_of_ours() -> Iterator[tuple[str, str, str]]:
    """Each import of ours as (place, importing module, imported name without the leading "mrpo_ds.")."""
    for file, tree in trees():
        for line, name in imported(tree):
            if within(name, "mrpo_ds"):
                yield f"{file.relative_to(PACKAGE.parent)}:{line}", module_of(file), name.removeprefix("mrpo_ds.")


def test_every_module_has_its_line_in_the_table():
    without = [module for file in FILES if (module := module_of(file)) and unit_of(module) is None]
    packages = {unit.partition(".")[0] for unit in MAY_IMPORT}
    assert not [module for module in without if module not in packages], "add them to MAY_IMPORT"


def test_the_table_has_no_units_that_are_gone():
    modules = {module_of(file) for file in FILES}
    assert not set(MAY_IMPORT) - modules
    used = {unit for units in (*MAY_IMPORT.values(), *ONLY_IN.values()) for unit in units.split()}
    assert not used - modules


def test_the_table_itself_points_down():
    above: set[str] = set()
    for unit, allowed in MAY_IMPORT.items():
        for name in allowed.split():
            known = any(within(name, other) for other in above)
            assert known or (unit, name) == KNOWN_CYCLE, f"{unit} may import {name}, which stands below it"
        above.add(unit)


def test_every_import_of_ours_is_allowed_by_the_table():
    wrong = []
    for place, module, name in imports_of_ours():
        unit = unit_of(module)
        assert unit is not None, module
        allowed = [unit, *MAY_IMPORT[unit].split()]
        if unit_of(name) not in allowed and not any(within(name, other) for other in allowed if "." in other):
            wrong.append(f"{place}: {module} imports {name}; allowed: {MAY_IMPORT[unit] or 'nothing'}")
    assert not wrong, "\n".join(wrong)


def test_private_names_stay_in_their_package():
    wrong = [
        f"{place}: {module} imports {name}"
        for place, module, name in imports_of_ours()
        if any(part.startswith("_") for part in name.split(".")) and not within(module, name.partition(".")[0])
    ]
    assert not wrong, "\n".join(wrong)


def test_third_party_packages_are_imported_where_the_table_says():
    wrong = []
    for file, tree in trees():
        for line, name in imported(tree):
            top = name.partition(".")[0]
            if top == "mrpo_ds" or top in sys.stdlib_module_names:
                continue
            package = max((key for key in ONLY_IN if within(name, key)), key=len, default=None)
            allowed = ONLY_IN[package].split() if package else []
            if unit_of(module_of(file)) not in allowed:
                wrong.append(f"{file.name}:{line} imports {name}; allowed in: {', '.join(allowed) or 'no file'}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import torch.distributed as dist", ["torch.distributed"]),
        ("from torch import distributed", ["torch.distributed"]),
        ("from torch.distributed import barrier", ["torch.distributed.barrier"]),
        ("import torch\ndef f():\n    torch.distributed.barrier()", ["torch", "torch.distributed"]),
        ("def f():\n    import wandb", ["wandb"]),
        ("from mrpo_ds import engine", ["mrpo_ds.engine"]),
    ],
)
def test_the_walk_sees_every_way_to_import(source, expected):
    assert sorted(name for _, name in imported(ast.parse(source))) == expected


# ---- sizes -----------------------------------------------------------------------------------------------------------


def test_init_files_are_empty_except_the_losses():
    full = [
        module_of(file) for file in FILES if file.name == "__init__.py" and file.read_text(encoding="utf-8").strip()
    ]
    assert full == ["losses"]


def test_no_file_is_longer_than_400_lines():
    lengths = {file.name: len(file.read_text(encoding="utf-8").splitlines()) for file in FILES}
    assert not {name: length for name, length in lengths.items() if length > 400}


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for file, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{file.relative_to(PACKAGE)}:{node.lineno} {node.name}", node


def test_no_function_is_longer_than_60_lines():
    lengths = {place: (node.end_lineno or 0) - node.lineno + 1 for place, node in functions()}
    assert not {place: length for place, length in lengths.items() if length > 60}


def test_no_function_has_more_than_7_parameters():
    def count(arguments: ast.arguments) -> int:
        names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
        names += [argument.arg for argument in (arguments.vararg, arguments.kwarg) if argument]
        return len(names) - (names[:1] in (["self"], ["cls"]))

    counts = {place: count(node.args) for place, node in functions()}
    assert not {place: number for place, number in counts.items() if number > 7}


def test_the_sources_are_ascii_of_at_most_120_columns():
    wrong = [
        f"{file.name}:{number}"
        for file in FILES
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
        if len(line) > 120 or not line.isascii()
    ]
    assert not wrong


# ---- what an import really brings ------------------------------------------------------------------------------------


def brought_by(program: str) -> set[str]:
    """The packages of ONLY_IN in a new interpreter after a program."""
    ending = f"\nimport sys\nprint(*(name for name in {sorted(ONLY_IN)} if name in sys.modules))"
    run = [sys.executable, "-c", program + ending]
    answer = subprocess.run(run, cwd=PACKAGE.parent, capture_output=True, text=True, check=True, timeout=120)
    return set(answer.stdout.split())


def test_the_command_line_starts_without_any_heavy_package():
    assert brought_by("import mrpo_ds.cli\nmrpo_ds.cli._parser()") == set()


def test_loading_a_configuration_brings_no_model_or_engine_code():
    brought = brought_by(
        "from mrpo_ds.config.load import load_config\nload_config('launch/configs/quickstart.yaml')",
    )
    assert not brought & {"deepspeed", "wandb", "transformers", "datasets", "matplotlib"}


def test_the_checks_before_a_run_do_not_wait_for_deepspeed_or_wandb():
    assert not brought_by("import mrpo_ds.check, mrpo_ds.run, mrpo_ds.tracking") & {
        "deepspeed",
        "wandb",
        "transformers",
    }


def test_the_losses_need_torch_and_nothing_else():
    program = "from mrpo_ds.registry import load_by_file_name as load, names\n"
    program += "for name in names('mrpo_ds.losses'): load('mrpo_ds.losses', name, 'loss.name')"
    assert brought_by(program) <= {"torch", "torch.distributed", "numpy", "tqdm"}, "torch itself brings the others"
