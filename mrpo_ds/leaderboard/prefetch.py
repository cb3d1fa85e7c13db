"""Make a mirror on a machine with a network: the files of a suite's data sets as they are on the Hub, and no others."""

import tempfile
from pathlib import Path
from typing import Any

from mrpo_ds.console import log, progress
from mrpo_ds.errors import ConfigError
from mrpo_ds.leaderboard.cards import CARD, patterns_of, read_configs
from mrpo_ds.leaderboard.lookup import count_documents, data_of, look_up, use_mirror
from mrpo_ds.leaderboard.mirror import DataSet, Mirror, new_or_old
from mrpo_ds.leaderboard.pool import Worker
from mrpo_ds.leaderboard.suites import load_suite


def prefetch(suite_name: str, directory: str) -> int:
    """The eval-prefetch command: download what a suite reads, and load every task of it from there.

    Raises ConfigError when a data set cannot be had, or does not hold what a task needs.
    """
    suite = load_suite(suite_name)
    mirror = new_or_old(directory)
    with tempfile.TemporaryDirectory(prefix="mrpo-ds-eval-") as scratch:
        online = Worker("cpu", Path(scratch) / "worker.log", offline=False)
        try:
            resolved = look_up(suite_name, suite, online)
        finally:
            online.close()
        needed = data_of(resolved)
        with progress(len(needed), "downloading", "data sets") as bar:
            for data in needed:
                whole = _with_known(data, mirror)  # all of them at one commit
                mirror.take_in(whole, {"commit": download(whole, mirror)})  # a later failure loses nothing
                bar.update(1, data.path)
        check_whole(suite_name, mirror, Path(scratch))
    return 0


def check_whole(suite_name: str, mirror: Mirror, scratch: Path) -> None:
    """Load every task of a suite from the mirror, without a network, and say how many documents there are."""
    suite = load_suite(suite_name)
    worker = Worker("cpu", scratch / "offline.log", offline=True)
    try:
        resolved = look_up(suite_name, suite, worker)
        use_mirror(mirror, resolved, scratch / "tasks")
        documents = count_documents(resolved, scratch / "tasks", worker)
    finally:
        worker.close()
    log(f"{suite_name}: {len(documents)} tasks with {sum(documents.values())} documents load from {mirror.directory}")


def download(data: DataSet, mirror: Mirror) -> str:
    """Fetch a data set's card and the files of its configurations. Returns the commit. Raises ConfigError."""
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, HTTPError, RepositoryNotFoundError
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    folder = mirror.directory / data.path
    wanted: dict[str, Any] = {"repo_id": data.path, "repo_type": "dataset", "local_dir": str(folder)}
    try:
        commit = str(huggingface_hub.HfApi().dataset_info(data.path).sha)
        huggingface_hub.snapshot_download(**wanted, revision=commit, allow_patterns=[CARD])
        huggingface_hub.snapshot_download(**wanted, revision=commit, allow_patterns=wanted_files(folder, data))
    except GatedRepoError as error:
        raise ConfigError(
            f"data set {data.path!r} is gated: accept its terms at https://huggingface.co/datasets/{data.path} and "
            "give the token of that account in HF_TOKEN (or `hf auth login`)."
        ) from error
    except RepositoryNotFoundError as error:
        raise ConfigError(f"data set {data.path!r} is not on the Hub, or HF_TOKEN has no right to it.") from error
    except (HTTPError, OSError, ValueError) as error:  # the first one: no connection at all, too
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConfigError(
            f"data set {data.path!r} cannot be downloaded to {str(folder)!r}: {reason.rstrip('.')}. This needs a "
            "network, and room."
        ) from error
    return commit


def wanted_files(folder: Path, data: DataSet) -> list[str]:
    """The card, the files of the configurations, and those of the first one, which the library asks for."""
    return [CARD, *patterns_of(folder, [*list(read_configs(folder))[:1], *data.configs])]


def _with_known(data: DataSet, mirror: Mirror) -> DataSet:
    """With the configurations that the mirror has had of this data set already."""
    known = mirror.sources.get(data.path, {}).get("configs", [])
    assert isinstance(known, list)
    return DataSet(data.path, tuple(dict.fromkeys([*data.configs, *known])))
