"""A template of launch/slurm with its two blocks filled: the sbatch options, and the variables that its rest uses."""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from mrpo_ds.errors import ConfigError
from mrpo_ds.slurm.site import Site

Value = str | int | Sequence[str]
SAFE = re.compile(r"[\w@%+=:,./-]+")


def read_template(site: Site, kind: str) -> str:
    """The template of a kind of job. Raises ConfigError when it is not there."""
    path = Path(site.templates) / f"{kind}.sbatch"
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the template {str(path)!r} cannot be read ({getattr(error, 'strerror', None) or error}); run this in the "
            "repository's root, or name the folder with templates: in the site file."
        ) from error


def fill(template: str, options: Mapping[str, str | int | None], variables: Mapping[str, Value], site: Site) -> str:
    """The script of a job.

    Args:
        template: one of launch/slurm.
        options: of sbatch, without the dashes; None for those that take no value.
        variables: what the template's settings say, as text, a number or the words of an array.
        site: its options, modules, lines and commands come after the job's own, and win.

    Raises ConfigError when the template has lost its marks.
    """
    lines = [
        f"#SBATCH --{name}" + ("" if value is None else f"={shlex.quote(str(value))}")
        for name, value in options.items()
    ]
    lines += [f"#SBATCH {option}" for option in site.sbatch]
    settings = [f"{name}={_bash(value)}" for name, value in variables.items()]
    settings.append(f"python={_expanded(site.python)}")
    settings.append(f"container=({' '.join(map(_expanded, site.container))})")
    settings.append(f"srun_options=({' '.join(map(_expanded, site.srun))})")
    settings += [f"module load {shlex.quote(module)}" for module in site.modules]
    settings += site.environment
    return _replace(_replace(template, "options", lines), "settings", settings)


def _replace(template: str, block: str, lines: Sequence[str]) -> str:
    """The template with other lines between '# ---- BLOCK ----' and '# ---- end of BLOCK ----'."""
    begin, end = f"# ---- {block} ----\n", f"# ---- end of {block} ----\n"
    head, found, rest = template.partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise ConfigError(f"the template lacks the line {(end if found else begin).strip()!r}; see launch/slurm.")
    return head + begin + "".join(f"{line}\n" for line in lines) + end + tail


def _given(value: str | int | None) -> str:
    return "" if value is None else f"={shlex.quote(str(value))}"


def _bash(value: Value) -> str:
    if isinstance(value, str | int):
        return shlex.quote(str(value))
    words = [shlex.quote(word) for word in value]
    if len(" ".join(words)) <= 80:
        return f"({' '.join(words)})"
    return "(\n" + "".join(f"    {word}\n" for word in words) + ")"


def _expanded(word: str) -> str:
    """A word of the site's in which the job's shell still replaces $NAME, but splits nothing."""
    if SAFE.fullmatch(word):
        return word
    return '"' + re.sub(r'(["\\`])', r"\\\1", word) + '"'
