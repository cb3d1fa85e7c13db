"""From a command line to the jobs it means: their sbatch options, the settings of their scripts, and the checks."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mrpo_ds.config.load import load_config
from mrpo_ds.config.schema import Config, ModelConfig
from mrpo_ds.console import log
from mrpo_ds.distributed.topology import build_topology
from mrpo_ds.errors import ConfigError, require
from mrpo_ds.leaderboard.candidates import find_candidates
from mrpo_ds.leaderboard.mirror import open_mirror
from mrpo_ds.leaderboard.options import Options
from mrpo_ds.leaderboard.suites import load_suite
from mrpo_ds.slurm.script import Value
from mrpo_ds.slurm.site import Site, seconds_of

KINDS = ("train", "score", "eval", "compare")
COMPARE_TIME = "00:30:00"
EVAL_OPTIONS = ("offline", "limit", "batch_size", "devices", "dtype", "chat_template", "redo")
"""Of `mrpo-ds eval`, which gets them as they are."""
ONLY_FOR: Mapping[str, tuple[str, ...]] = {
    "nodes": ("train", "score"),
    "tasks_per_node": ("train", "score"),
    "gpus_per_node": ("train", "score", "eval"),
    "sweep": ("train",),
    "shards": ("score", "eval"),
    **dict.fromkeys(("suite", *EVAL_OPTIONS), ("eval",)),
}
"""Option -> the kinds of jobs that heed it. Given for another kind, it is refused."""
LONGEST_NAME = 80
"""Characters of a sweep's run directory."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a user asks for; see `mrpo-ds launch slurm --help`."""

    words: tuple[str, ...]
    """train and score: the configuration and its overrides. eval: models. compare: run directories."""
    kind: str
    nodes: int | None = None
    tasks_per_node: int | None = None
    gpus_per_node: int | None = None
    time: str | None = None
    name: str | None = None
    sweep: str | None = None
    """File with a line of overrides per run."""
    shards: int | None = None
    """score, eval: tasks of the array that share the work; None for 1, and one a model."""
    suite: str | None = None
    offline: str | None = None
    """eval: folder with what the suite needs, for nodes without internet."""
    limit: int | None = None
    """eval: questions per task."""
    batch_size: int | None = None
    devices: str | None = None
    dtype: str | None = None
    chat_template: bool | None = None
    redo: bool = False
    """eval, as the four above: see leaderboard.options."""
    out: str | None = None

    def __post_init__(self) -> None:
        for key in ("nodes", "tasks_per_node", "shards"):
            value = getattr(self, key)
            require(value is None or value >= 1, _flag(key), value, ">= 1")
        require(self.gpus_per_node is None or self.gpus_per_node >= 0, "--gpus-per-node", self.gpus_per_node, ">= 0")
        for key, kinds in ONLY_FOR.items():
            value = getattr(self, key)
            unused = value == getattr(Request, key)
            require(unused or self.kind in kinds, _flag(key), value, f"with --kind {' or '.join(kinds)} alone")
        used = self.out is None or self.kind in ("eval", "compare") or self.sweep is not None
        require(used, "--out", self.out, "with --kind eval or compare, or with --sweep, alone")


@dataclass(frozen=True)
class Job:
    """One job: what its template is filled with."""

    kind: str
    options: Mapping[str, str | int | None]
    """Of sbatch, without the dashes."""
    variables: Mapping[str, Value]
    """Of the template's settings."""


def jobs_of(request: Request, site: Site) -> list[Job]:
    """The jobs that a request means, in order; the second waits for the first. Says what was checked.

    Raises ConfigError when tasks are not what the topology needs, or for a configuration that could not run.
    """
    if request.kind == "train":
        return _train(request, site)
    if request.kind == "score":
        return [_score(request, site)]
    if request.kind == "eval":
        require(request.suite is not None, "--suite", None, "the name of a suite, see mrpo-ds eval --help")
        return [_eval(request, site)]
    return [_compare(request.words, request.out or "runs/compare", request.name, request.time, site)]


def _train(request: Request, site: Site) -> list[Job]:
    path, *overrides = request.words
    name = request.name or Path(path).stem
    lines = [] if request.sweep is None else read_sweep(request.sweep)
    configs = [load_config(path, [*overrides, *line]) for line in lines or [[]]]
    nodes = request.nodes or 1
    tasks = _tasks_per_node(request, nodes, configs[0])
    for config in configs:
        _check_tasks(nodes, tasks, config)
    time = request.time or site.time
    _check_time(time, site)
    options = _options(name, nodes, tasks, _gpus(request, site, tasks, configs[0].topology.share_gpus), site)
    options |= {"time": time, "signal": f"B:USR1@{site.signal_seconds}"}
    topology = build_topology(configs[0])
    log(f"nodes {nodes} x tasks {tasks} = {topology.world_size} ranks, as the topology has ({topology.describe()})")
    runs = name_runs(configs, lines)
    if lines:
        options |= {"array": f"0-{len(lines) - 1}", "output": _output(site, "%x-%A_%a")}
    variables: dict[str, Value] = {
        "config": path,
        "overrides": overrides,
        "sweep": [" ".join(words) for words, _ in runs] if lines else [],
        "max_requeues": site.max_requeues,
    }
    jobs = [Job("train", options, variables)]
    if len(lines) > 1:
        out = request.out or f"{configs[0].output_dir}/compare"
        jobs.append(_compare([run for _, run in runs], out, f"{name}-compare", None, site))
    return jobs


def _score(request: Request, site: Site) -> Job:
    path, *overrides = request.words
    config = load_config(path, overrides)
    require(len(config.references) > 0, "references", [], "at least one reference to score with")
    nodes = request.nodes or 1
    tasks = request.tasks_per_node or request.gpus_per_node or site.gpus_per_node or 1
    if nodes * tasks == 1:  # a single task is no launch, and would start the topology's ranks itself
        overrides += ["topology.placement=stored", "topology.policy=1"]
    gpus = _gpus(request, site, tasks, config.topology.share_gpus)
    shards = request.shards or 1
    options = _options(request.name or f"{Path(path).stem}-score", nodes, tasks, gpus, site)
    options |= _array(request, shards, site)
    log(f"shards of the rows: {shards}, each on nodes {nodes} x tasks {tasks}")
    return Job("score", options, {"config": path, "overrides": overrides, "shards": shards})


def _eval(request: Request, site: Site) -> Job:
    models = list(request.words)
    given = {name: value for name in EVAL_OPTIONS if (value := getattr(request, name)) is not None}
    asked = Options(models=models, suite=request.suite or "", **given)
    _check_evaluation(asked)
    gpus = _gpus_of(asked.devices, request.gpus_per_node, site)
    options = _options(request.name or f"eval-{Path(asked.suite).stem}", 1, 1, gpus, site)
    shards = request.shards or len(models)
    options |= _array(request, shards, site)
    variables: dict[str, Value] = {
        "models": models,
        "suite": asked.suite,
        "out": request.out or f"runs/eval/{Path(asked.suite).stem}",
        "options": [*asked.words, *([] if asked.devices is None else ["--devices", asked.devices])],
        "shards": shards,
    }
    return Job("eval", options, variables)


def _gpus_of(devices: str | None, given: int | None, site: Site) -> int:
    """GPUs that a task of an evaluation asks for. Raises ConfigError for --devices that it would not have."""
    if devices == "cpu":
        return given or 0
    if devices is None:
        return given if given is not None else min(site.gpus_per_node, 1) if site.gpus_per_node is not None else 1
    numbers = devices.split(",")
    are_numbers = all(one.isdecimal() for one in numbers) and len({int(one) for one in numbers}) == len(numbers)
    require(are_numbers, "--devices", devices, "cpu, or numbers of GPUs, each once")
    needed, most = max(map(int, numbers)) + 1, site.gpus_per_node if given is None else given
    has_them = most is None or needed <= most
    require(has_them, "--devices", devices, f"0 to {(most or 0) - 1}, the GPUs of a node" if most else "cpu")
    return needed if given is None else given


def _check_evaluation(asked: Options) -> None:
    """Refuse here what every task of the array would refuse. Raises ConfigError."""
    from mrpo_ds.models import check_path  # torch comes with it

    load_suite(asked.suite)
    for candidate in find_candidates(asked.models):
        check_path(ModelConfig(path=candidate.path))
    if asked.offline is not None:
        open_mirror(asked.offline)


def _array(request: Request, shards: int, site: Site) -> dict[str, str]:
    time = request.time or site.time
    seconds_of(time)
    return {"time": time, "array": f"0-{shards - 1}", "output": _output(site, "%x-%A_%a")}


def _compare(runs: Sequence[str], out: str, name: str | None, time: str | None, site: Site) -> Job:
    options = _options(name or "compare", 1, 1, 0, site) | {"time": time or COMPARE_TIME}
    return Job("compare", options, {"runs": list(runs), "out": out})


def _options(name: str, nodes: int, tasks: int, gpus: int, site: Site) -> dict[str, str | int | None]:
    """What every job has."""
    known: dict[str, str | int | None] = {
        "partition": site.partition,
        "account": site.account,
        "qos": site.qos,
        "gpus-per-node": gpus or None,
        "mem": site.memory_per_node,
    }
    options: dict[str, str | int | None] = {"job-name": name, "nodes": nodes, "ntasks-per-node": tasks}
    options |= {key: value for key, value in known.items() if value is not None}
    options |= {"cpus-per-task": site.cpus_per_task, "requeue": None, "open-mode": "append"}
    return options | {"output": _output(site, "%x-%j")}


def _output(site: Site, name: str) -> str:
    return f"{site.scripts}/{name}.out"


def _tasks_per_node(request: Request, nodes: int, config: Config) -> int:
    if request.tasks_per_node is not None:
        return request.tasks_per_node
    topology = build_topology(config)
    tasks, rest = divmod(topology.world_size, nodes)
    require(
        rest == 0,
        "--nodes",
        nodes,
        f"a number that divides the {topology.world_size} ranks of the topology ({topology.describe()})",
        "Or change topology.policy and topology.references.",
    )
    return tasks


def _check_tasks(nodes: int, tasks: int, config: Config) -> None:
    topology = build_topology(config)
    if nodes * tasks != topology.world_size:
        raise ConfigError(
            f"--nodes {nodes} x --tasks-per-node {tasks} = {nodes * tasks} processes, but the topology has "
            f"{topology.world_size} ranks ({topology.describe()}). Change --nodes, --tasks-per-node, "
            "topology.policy or topology.references."
        )


def _check_time(time: str, site: Site) -> None:
    seconds = seconds_of(time)
    if seconds is not None and seconds <= site.signal_seconds:
        raise ConfigError(
            f"time is {time!r}, but the run is told to stop {site.signal_seconds} s before its end: it would do "
            "nothing but start. Give more --time, or lower signal_seconds in the site file."
        )


def _gpus(request: Request, site: Site, tasks: int, share: bool) -> int:
    gpus = request.gpus_per_node
    if gpus is None:
        gpus = tasks if site.gpus_per_node is None else site.gpus_per_node
    if 0 < gpus < tasks and not share:
        raise ConfigError(
            f"{gpus} GPUs a node for {tasks} tasks. Use at most {gpus} tasks a node, or set topology.share_gpus=true "
            "to let roles share a GPU."
        )
    return gpus


def read_sweep(path: str) -> list[list[str]]:
    """The overrides of each run of a sweep: a line each, words apart by spaces; lines that begin with # are comments.

    Raises ConfigError when the file cannot be read or has no run.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the sweep file {path!r} cannot be read: {getattr(error, 'strerror', '') or error}."
        ) from error
    lines = [line.split() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    require(len(lines) > 0, f"the sweep file {path!r}", "empty", "a line of key=value overrides for each run")
    return lines


def name_runs(configs: Sequence[Config], lines: Sequence[list[str]]) -> list[tuple[list[str], str]]:
    """Each run of a sweep as (its overrides, its directory): output_dir/NUMBER-OVERRIDES unless the line names one.

    Raises ConfigError when two lines name one directory.
    """
    runs = []
    for number, (config, words) in enumerate(zip(configs, lines, strict=False)):
        directory = config.output_dir
        if not any(word.startswith("output_dir=") for word in words):
            short = ",".join(_short(word) for word in words)
            directory += "/" + re.sub(r"[^\w.,=+-]+", "_", f"{number}-{short}")[:LONGEST_NAME]
            words = [*words, f"output_dir={directory}"]
        runs.append((words, directory))
    directories = [directory for _, directory in runs]
    twice = next((one for one in directories if directories.count(one) > 1), None)
    require(twice is None, "output_dir", twice, "another one in each line of the sweep")
    return runs


def _short(override: str) -> str:
    """'train.learning_rate=1e-6' -> 'learning_rate=1e-6'."""
    key, separator, value = override.partition("=")
    return key.rpartition(".")[2] + separator + value


def _flag(key: str) -> str:
    return "--" + key.replace("_", "-")
