"""Templates and what they are filled with; bash itself says how it reads them."""

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from mrpo_ds.errors import ConfigError
from mrpo_ds.slurm.jobs import KINDS
from mrpo_ds.slurm.script import fill, read_template
from mrpo_ds.slurm.site import Site
from tests.support import ROOT

SITE = Site(templates=str(ROOT / "launch/slurm"))
ODD = ["plain", "two words", 'quo"te', "back\\slash", "it's", "a;b|c&d", "$HOME", "`id`", "*", "ünïcode", ""]


def settings_as_bash_reads_them(script: str, *arrays: str) -> dict[str, list[str]]:
    """The words of the arrays after the settings of a script have run."""
    block = script.partition("# ---- settings ----")[2].partition("# ---- end of settings ----")[0]
    prints = "".join(f"printf '%s\\0' {name} \"${{{name}[@]}}\" END; " for name in arrays)
    run = subprocess.run(["bash", "-c", f"{block}\n{prints}"], capture_output=True, text=True, check=True)
    found: dict[str, list[str]] = {}
    words = iter(run.stdout.split("\0")[:-1])
    for name in words:
        found[name] = list(iter(lambda: next(words), "END"))
    return found


@pytest.mark.parametrize("words", [[], ["a=b"], ODD, ["long" * 30, "two words"]])
def test_words_of_a_command_line_reach_the_script_as_they_are(words: list[str]) -> None:
    script = fill(read_template(SITE, "train"), {}, {"overrides": words, "config": "my config.yaml"}, SITE)
    found = settings_as_bash_reads_them(script, "overrides", "config")
    assert found == {"overrides": words, "config": ["my config.yaml"]}


def test_words_of_the_site_are_expanded_by_the_job_and_not_split() -> None:
    site = replace(SITE, srun=["--a=$PLACE/x"], container=["run", 'b"c', "`id`", "d\\e", "*"], python="$PLACE/python")
    site = replace(site, environment=["PLACE='on the node'", 'srun_options+=("$PLACE")'])
    script = fill(read_template(site, "train"), {}, {}, site)
    script = script.replace("# ---- settings ----\n", "# ---- settings ----\nPLACE='a b'\n")
    found = settings_as_bash_reads_them(script, "srun_options", "container", "python")
    assert found["srun_options"] == ["--a=a b/x", "on the node"]
    assert found["container"] == ["run", 'b"c', "`id`", "d\\e", "*"] and found["python"] == ["a b/python"]


def test_options_stand_before_the_first_command_and_those_of_the_site_last() -> None:
    site = replace(SITE, sbatch=["--exclusive"], modules=["cuda/12"])
    options = {"job-name": "my run", "requeue": None, "nodes": 2}
    script = fill(read_template(site, "train"), options, {"config": "c"}, site)
    before = script[: script.index("set -eo pipefail")]
    said = re.findall(r"^#SBATCH (.*)$", script, re.MULTILINE)
    assert said == ["--job-name='my run'", "--requeue", "--nodes=2", "--exclusive"]
    assert re.findall(r"^#SBATCH (.*)$", before, re.MULTILINE) == said
    assert all(line.startswith("#") or not line for line in before.splitlines())
    assert "\nmodule load cuda/12\n" in script and script.index("module load") < script.index("\nset -u\n")


@pytest.mark.parametrize("kind", KINDS)
def test_no_variable_of_a_rank_is_expanded_before_the_task_starts(kind: str) -> None:
    """They differ from task to task: what the batch script's shell makes of them would be the same for all."""
    script = read_template(SITE, kind)
    names = "RANK LOCAL_RANK WORLD_SIZE SLURM_PROCID SLURM_LOCALID SLURM_NODEID SLURM_GTIDS CUDA_VISIBLE_DEVICES"
    own = rf"\$\{{?({names.replace(' ', '|')}|SLURM_STEP_\w+)\b"
    assert not re.search(own, script)
    assert "unset RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT" in script
    assert len(re.findall(r"^srun ", script, re.MULTILINE)) == 1
    assert "bash -c" not in script, "a shell of its own would need care with quotes"


def test_a_template_that_is_not_there_or_has_lost_a_mark(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the template .*train.sbatch' cannot be read \(No such file"):
        read_template(replace(SITE, templates=str(tmp_path)), "train")
    for mark in ("# ---- options ----", "# ---- end of settings ----"):
        with pytest.raises(ConfigError, match=f"the template lacks the line '{mark}'"):
            fill(read_template(SITE, "train").replace(mark, ""), {}, {}, SITE)
