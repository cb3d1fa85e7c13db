"""Write the scripts of jobs and hand them to sbatch, or only show them."""

import subprocess
import time
from dataclasses import replace
from pathlib import Path

from mrpo_ds.console import log
from mrpo_ds.errors import ConfigError
from mrpo_ds.manifest import write_atomic
from mrpo_ds.slurm.jobs import Job, Request, jobs_of
from mrpo_ds.slurm.script import fill, read_template
from mrpo_ds.slurm.site import Site, load_site

SBATCH_SECONDS = 120.0
"""A controller that is busy answers late."""


def launch_slurm(request: Request, site_path: str, dry_run: bool) -> int:
    """The launch command: print the scripts, or submit them and print their job ids, one a line. Returns 0.

    Raises ConfigError for what the request, the site file or sbatch refuses.
    """
    site = load_site(site_path)
    before: str | None = None
    for job in jobs_of(request, site):
        if before is not None:  # a failed run must not keep the others from being compared
            job = replace(job, options={**job.options, "dependency": f"afterany:{before}"})
        script = fill(read_template(site, job.kind), job.options, job.variables, site)
        if dry_run:
            print(script, end="")
            before = "JOB"
        else:
            before = _submit(script, job, site)
            print(before, flush=True)
    return 0


def _submit(script: str, job: Job, site: Site) -> str:
    """Keep the script beside its job's output, and submit it. Returns the job's id."""
    folder = Path(site.scripts)
    path = folder / f"{job.options['job-name']}-{time.strftime('%Y%m%d-%H%M%S')}.sbatch"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(path, script.encode())
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written: {error.strerror or error}; name a folder with scripts:."
        ) from error
    try:
        done = subprocess.run(
            ["sbatch", "--parsable", str(path)], capture_output=True, text=True, timeout=SBATCH_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"sbatch cannot be run here ({error}); use a login node, or --dry-run.") from error
    if done.returncode != 0:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise ConfigError(f"sbatch refuses {path}: {said}. Mend the request or the site file.")
    number = done.stdout.strip().partition(";")[0]  # after ; comes the cluster's name
    log(f"submitted job {number}: {path}; its output: {job.options['output']}")
    return number
