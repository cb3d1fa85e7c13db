"""Bad input ends in one line that says what is wrong, the value, what is allowed and how to mend it. Real commands."""

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.bad_files import UNREADABLE, UNUSABLE, BadFile
from tests.support import base_config, command, free_port, make_rows, mrpo_ds, write_config, write_jsonl

ERROR = "mrpo-ds: error: "
LOG = "mrpo-ds | "


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Where the models, the data and the good configuration of this file lie."""
    root = tmp_path_factory.mktemp("bad_input")
    write_config(root / "run.yaml", base_config(root))
    return root


@dataclass(frozen=True)
class Case:
    """One mistake: what is made of the good run, and the parts of the answer."""

    what: str
    says: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    make: Callable[[Path], list[str]] | None = field(default=None)
    """Puts files below the root and returns overrides that use them."""


def only_line(stderr: str) -> str:
    """The one error line; nothing else may stand there but log lines before it."""
    assert "Traceback" not in stderr, stderr
    *before, last = stderr.splitlines()
    assert last.startswith(ERROR), stderr
    assert all(line.startswith(LOG) for line in before), stderr
    return last.removeprefix(ERROR)


# ---- the mistakes ----------------------------------------------------------------------------------------------------


def data_with(name: str, change: Callable[[dict[str, Any]], dict[str, Any] | str]) -> Callable[[Path], list[str]]:
    """A data file of 40 rows whose line 7 is changed."""

    def make(root: Path) -> list[str]:
        rows: list[Any] = make_rows(40)
        changed = change(rows[6])
        file = write_jsonl(root / "data" / f"{name}.jsonl", rows)
        if isinstance(changed, str):
            lines = file.read_text(encoding="utf-8").splitlines()
            lines[6] = changed
            file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        else:
            write_jsonl(file, [*rows[:6], changed, *rows[7:]])
        return [f"data.train.0.source={file}"]

    return make


def model_without_tokenizer(root: Path) -> list[str]:
    bare = root / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).symlink_to(root / "models" / "llama" / name)
    return [f"model.path={bare}"]


def below_a_file(root: Path) -> list[str]:
    (root / "a-file").write_text("not a directory\n")
    return [f"output_dir={root}/a-file/run"]


def used_directory(root: Path) -> list[str]:
    used = root / "used"
    used.mkdir()
    (used / "metrics.jsonl").write_text("{}\n")
    return [f"output_dir={used}"]


CASES = [
    Case("unknown key", ("train.batch_sise: unknown key; did you mean 'batch_size'?",), ("train.batch_sise=8",)),
    Case("wrong type", ("train.epochs is 'many'; allowed: a whole number.",), ("train.epochs=many",)),
    Case("batch that does not divide",
         ("train.batch_size is 9; allowed: a multiple of topology.policy (2). Use 8 or 10.",),
         ("train.batch_size=9", "topology.policy=2")),
    Case("negative eps_max", ("loss.eps_max is -0.1; allowed: >= 0.",), ("loss.eps_max=-0.1",)),
    Case("hpZ over more ranks than there are",
         ("ds_configs/zeropp.json: zero_optimization.zero_hpz_partition_size is 8; allowed: a divisor of ",
          "topology.policy (2): 1 | 2. It is the number of policy ranks on a node."),
         ("deepspeed=ds_configs/zeropp.json", "topology.policy=2")),
    Case("beta 0", ("loss.beta is 0.0; allowed: > 0.",), ("loss.beta=0",)),
    Case("negative beta", ("loss.beta is -0.1; allowed: > 0.",), ("loss.beta=-0.1",)),
    Case("weights that do not sum to 1",
         ("loss.weights is [0.3, 0.6]; allowed: ", "a list of numbers >= 0 that sum to 1."),
         ("loss.weights=[0.3,0.6]",)),
    Case("missing data file",
         ("data source 'no/such.jsonl' does not exist; allowed: a .json, .jsonl, .jsonl.gz or .parquet file",),
         ("data.train.0.source=no/such.jsonl",)),
    Case("data that is no JSON", ("no-json.jsonl line 7 is not JSON: ", "column 12", "mend or remove that line"),
         make=data_with("no-json", lambda row: '{"prompt": yes}')),
    Case("empty response",
         ("1 of 40 rows (2.50%) cannot be used", "data.max_dropped_fraction=0.01", "1 x empty response",
          "empty.jsonl row 7: response 2 has no visible character", "Mend the rows, or raise"),
         make=data_with("empty", lambda row: {**row, "rejected": "  "})),
    Case("missing response",
         ("1 x missing response", "missing.jsonl row 7: 'chosen' is missing or null; the columns are: prompt, rejected",
          "Mend the rows, or raise data.max_dropped_fraction"),
         make=data_with("missing", lambda row: {key: row[key] for key in ("prompt", "rejected")})),
    Case("identical responses",
         ("1 x identical responses", "identical.jsonl row 7", "Mend the rows, or raise data.max_dropped_fraction"),
         make=data_with("identical", lambda row: {**row, "rejected": row["chosen"]})),
    Case("prompt that is too long",
         ("1 x prompt longer than max_length", "long.jsonl row 7", "prompt tokens, max_length is 256",
          "Mend the rows, or raise data.max_dropped_fraction"),
         make=data_with("long", lambda row: {**row, "prompt": "why " * 400})),
    Case("reference that is not there",
         ("model path '/no/such/model' does not exist; allowed: a directory with config.json and safetensors, or a",),
         ("references.1.path=/no/such/model",)),
    Case("model without a tokenizer",
         ("no tokenizer for the model at '", "/bare'", "tokenizer.save_pretrained"),
         make=model_without_tokenizer),
    Case("output_dir below a file",
         ("output_dir is '", "/a-file/run', which cannot be written", "choose another place"),
         make=below_a_file),
    Case("output_dir in /proc",
         ("output_dir is '/proc/mrpo-ds-run', which cannot be written (/proc: ", "choose another place"),
         ("output_dir=/proc/mrpo-ds-run",)),
    Case("used output_dir",
         ("/used', which is already used; choose a new one, empty it, or continue that run with --resume auto.",),
         make=used_directory),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=[case.what for case in CASES])
def test_train_answers_a_mistake_with_one_line_and_exit_code_2(warm, root, case):
    overrides = [f"output_dir={root / 'runs' / case.what.replace(' ', '-')}", *case.overrides]
    overrides += case.make(root) if case.make else []
    done = warm.alone("train", str(root / "run.yaml"), *overrides, timeout=120)
    assert done.returncode == 2, done.stderr
    message = only_line(done.stderr)
    assert all(part in message for part in case.says), message
    assert not (root / "runs").exists(), "nothing was begun"


def test_the_first_mistake_is_told_before_anything_slow_is_loaded(root):
    started = time.perf_counter()
    mrpo_ds("train", str(root / "run.yaml"), "train.batch_sise=8", timeout=60)
    alone = time.perf_counter() - started
    started = time.perf_counter()
    command(["-c", "import torch"], timeout=60)
    torch = time.perf_counter() - started
    assert alone < 2 or alone < torch, f"{alone:.1f} s; importing torch takes {torch:.1f} s here"


@pytest.mark.parametrize("file", ["nothing-here.yaml", "."])
def test_a_configuration_file_that_cannot_be_read(root, file):
    done = mrpo_ds("check", str(root / file), timeout=60)
    assert done.returncode == 2
    assert f"configuration file '{root / file}' " in only_line(done.stderr)


@pytest.mark.parametrize("arguments", [[], ["trian", "run.yaml"], ["train"], ["train", "run.yaml", "--resume"]])
def test_a_command_line_that_cannot_be_read_shows_the_usage(arguments):
    done = mrpo_ds(*arguments, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: mrpo-ds") and "Traceback" not in done.stderr


def test_a_checkpoint_to_resume_from_that_is_none(warm, root):
    done = warm.alone("train", str(root / "run.yaml"), "--resume", str(root / "data"), timeout=60)
    assert done.returncode == 2
    message = only_line(done.stderr)
    assert message == (
        f"--resume is '{root / 'data'}', which is no whole checkpoint; allowed: auto, none or a step-* directory."
    )


# ---- data files ------------------------------------------------------------------------------------------------------

CHECK_EACH = """
import contextlib, io, json, sys
from mrpo_ds.cli import main

config, *overrides = sys.argv[1:]
for override in overrides:
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        code = main(["check", config, override])
    print(json.dumps([code, stderr.getvalue()]))
"""
"""`mrpo-ds check`, many times in one process: most of its seconds are imports."""

BAD_FILES = [*UNREADABLE, *UNUSABLE]


@pytest.fixture(scope="module")
def checked(root) -> dict[str, tuple[Path, int, str]]:
    """For each bad file its path, and the exit code and the stderr of the check of a run that trains on it."""
    paths = [bad.make(root / "bad") for bad in BAD_FILES]
    overrides = [f"data.train.0.source={path}" for path in paths]
    done = command(["-c", CHECK_EACH, str(root / "run.yaml"), *overrides], timeout=300)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(BAD_FILES), done.stderr
    assert "Traceback" not in done.stderr
    return {bad.what: (path, *answer) for bad, path, answer in zip(BAD_FILES, paths, answers, strict=True)}


@pytest.mark.parametrize("bad", BAD_FILES, ids=[bad.what for bad in BAD_FILES])
def test_check_answers_a_bad_data_file_with_one_line_and_exit_code_2(checked, bad: BadFile):
    path, code, stderr = checked[bad.what]
    assert code == 2, stderr
    message = only_line(stderr)
    assert str(path) in message
    assert all(part in message for part in bad.says), message


# ---- inside a launcher -----------------------------------------------------------------------------------------------


def torchrun(processes: int, *arguments: str) -> tuple[int, list[str], float]:
    """(exit code, the lines of stderr that are ours, seconds) of `mrpo-ds ...` in that many processes."""
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", str(free_port())]
    started = time.perf_counter()
    done = command([*launcher, "-m", "mrpo_ds", *arguments], timeout=120)
    ours = [line for line in done.stderr.splitlines() if "mrpo-ds" in line and not line.startswith(LOG)]
    assert not re.search(r'File ".*/mrpo_ds/', done.stderr), done.stderr  # torchrun shows a traceback of its own
    return done.returncode, ours, time.perf_counter() - started


def test_another_number_of_processes_than_the_topology_has(root):
    code, ours, seconds = torchrun(2, "train", str(root / "run.yaml"), f"output_dir={root / 'none'}")
    assert code != 0
    assert ours == [
        f"{ERROR}2 processes were started, but the topology needs 3 (policy: rank 0, ref/ref1: rank 1, ref/ref2: "
        "rank 2). Start 3 processes, or change topology.policy and topology.references."
    ]
    assert seconds < 60, "nobody waits for anyone"
    assert not (root / "none").exists()


@pytest.mark.parametrize(
    ("override", "says"),
    [
        pytest.param(
            *("train.batch_sise=8", "train.batch_sise: unknown key; did you mean 'batch_size'?"),
            marks=pytest.mark.matrix,
        ),
        ("data.train.0.source=no/such.jsonl", "data source 'no/such.jsonl' does not exist; allowed: a .json, "),
    ],
)
def test_all_processes_meet_a_mistake_and_rank_0_tells_it(root, override, says):
    code, ours, seconds = torchrun(3, "train", str(root / "run.yaml"), f"output_dir={root / 'none'}", override)
    assert code != 0
    assert len(ours) == 1 and ours[0].startswith(ERROR + says), ours
    assert seconds < 60
    assert not (root / "none").exists()


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"RANK": "3"}, "environment variable WORLD_SIZE is None; allowed: a number >= 0, set by the launcher."),
        ({"RANK": "0", "WORLD_SIZE": ""}, "environment variable WORLD_SIZE is ''; allowed: a number >= 0"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "the launcher says rank 0 of 0 processes"),
        ({"SLURM_STEP_NUM_TASKS": "x"}, "environment variable SLURM_STEP_NUM_TASKS is 'x'; allowed: a number >= 0"),
    ],
)
def test_variables_that_some_other_launcher_left(warm, root, variables, says):
    done = warm.alone("train", str(root / "run.yaml"), timeout=60, **variables)
    assert done.returncode == 2, done.stderr
    assert only_line(done.stderr).startswith(says)


# ---- the good run ----------------------------------------------------------------------------------------------------


def test_check_says_what_the_good_run_would_do_and_makes_nothing(root):
    before = sorted(path.relative_to(root) for path in root.rglob("*"))
    done = mrpo_ds("check", str(root / "run.yaml"), timeout=120)
    assert done.returncode == 0, done.stderr
    lines = [re.sub(r"^mrpo-ds \| \S+ \| ", "", line) for line in done.stderr.splitlines()]
    assert all(line.startswith(LOG) for line in done.stderr.splitlines()), done.stderr
    assert "roles: policy: rank 0, ref/ref1: rank 1, ref/ref2: rank 2 (served, 3 processes)" in lines
    assert "steps: 4 of 8 prompts (8 a rank), 5 an epoch; loss mrpo" in lines
    assert any(line.startswith("train: 40 of 40 rows; dropped: none") for line in lines)
    assert lines[-1] == "ok"
    assert before == sorted(path.relative_to(root) for path in root.rglob("*"))
    assert done.stdout == ""
