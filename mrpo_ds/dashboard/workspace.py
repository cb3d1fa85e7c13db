"""`mrpo-ds dashboard wandb`: the sections as a workspace of W&B, made by wandb-workspaces."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrpo_ds.console import log
from mrpo_ds.dashboard.panels import Panel, Section
from mrpo_ds.dashboard.sections import SECTIONS
from mrpo_ds.errors import ConfigError, MrpoError
from mrpo_ds.manifest import write_atomic
from mrpo_ds.wandb_sink import has_credentials

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

NAME = "mrpo-ds"
"""Of the workspace among the views of its project."""
STEP = "train/global_step"
"""The x axis: the optimizer step, which training and evaluation share."""
TABLES = {"evaluation": ("samples/table", "evals/table")}
"""Section -> the tables of a run that are shown in it, by the keys they are logged under."""


def make_workspace(project: str, entity: str | None, dry_run: str | None) -> None:
    """Save the workspace to W&B, as a new view of the project, or write its JSON to a file.

    Args:
        project: the runs' tracking.wandb.project.
        entity: team or user; None: the account's default.
        dry_run: where to write the JSON; None: save it.

    Raises:
        ConfigError: the package, the key or the place for the file is missing.
        MrpoError: W&B did not take it.
    """
    # As for runs: errors are said below, and reports to W&B's makers would hold paths.
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    if dry_run is not None:
        _write(Path(dry_run), as_json(build(project, entity or "")))
        log(f"workspace, not saved to W&B: {dry_run}")
        return
    _check_package()
    if not has_credentials():
        raise ConfigError(
            "there is no key for W&B, which a workspace is saved with; set WANDB_API_KEY or run `wandb login`, or "
            "write it to a file with --dry-run FILE."
        )
    import wandb

    try:
        workspace = build(project, entity or str(wandb.Api().default_entity))
        address = workspace.save().url
    except MrpoError:
        raise
    except Exception as error:  # any type: wandb's service and network each throw their own
        said = str(error).strip().splitlines()
        raise MrpoError(
            f"W&B did not take the workspace for project {project!r} ({type(error).__name__}: "
            f"{said[0] if said else 'no reason given'}). Is the project there (the first run makes it), and may this "
            "key write to it? --entity names another team."
        ) from error
    log(f"workspace: {address}")


def build(project: str, entity: str) -> "Workspace":
    """The workspace with all sections; touches no network. Raises ConfigError without the package."""
    _check_package()
    import wandb_workspaces.workspaces as ws

    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[_section(section) for section in SECTIONS],
        settings=ws.WorkspaceSettings(x_axis=STEP),
    )


def as_json(workspace: "Workspace") -> dict[str, Any]:
    """What W&B is given, without the ids that are drawn by chance each time."""
    view = workspace._to_model()  # its own save() does the same
    spec = view.spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {
        "entity": workspace.entity or None,
        "project": workspace.project,
        "name": workspace.name,
        "spec": _without_ids(spec),
    }


def _check_package() -> None:
    try:
        import wandb_workspaces.workspaces  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "dashboard wandb needs the package wandb-workspaces; install it with: pip install 'mrpo-ds[dashboards]'."
        ) from error


def _section(section: Section) -> Any:
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    good = "".join(f"- **{panel.title}**: {panel.good}\n" for panel in section.panels)
    panels: list[Any] = [_panel(panel) for panel in section.panels]
    panels += [wr.WeavePanelSummaryTable(table_name=name) for name in TABLES.get(section.name, ())]
    panels.append(wr.MarkdownPanel(markdown=f"### What good looks like\n{good}"))
    axis = ws.SectionPanelSettings(x_axis=STEP)  # for panels that people add
    return ws.Section(name=section.title, panels=panels, is_open=True, panel_settings=axis)


def _panel(panel: Panel) -> Any:
    import wandb_workspaces.reports.v2 as wr

    options: dict[str, Any] = {"title": panel.title, "title_y": panel.unit, "x": STEP, "title_x": "optimizer step"}
    options["range_y"] = panel.limits or (None, None)
    if any(line.per_reference for line in panel.lines):  # the names of references are a run's own
        options["metric_regex"] = f"^({'|'.join(line.regex for line in panel.lines)})$"
    else:
        options["y"] = [line.pattern for line in panel.lines]
    return wr.LinePlot(**options)


def _without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_ids(item) for key, item in value.items() if key != "__id__"}
    return [_without_ids(item) for item in value] if isinstance(value, list) else value


def _write(path: Path, content: dict[str, Any]) -> None:
    try:
        if path.exists() and not _is_earlier(path):
            raise ConfigError(
                f"--dry-run is {str(path)!r}, which is there and is no workspace, so it is not replaced; choose "
                "another name, or remove it."
            )
        write_atomic(path, (json.dumps(content, indent=2) + "\n").encode())
    except OSError as error:
        raise ConfigError(
            f"--dry-run is {str(path)!r}, which cannot be written ({error.strerror or error}); choose another place."
        ) from error


def _is_earlier(path: Path) -> bool:
    """Whether a file is what an earlier dry run has written."""
    if not path.is_file():
        return False
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        return False
    return isinstance(content, dict) and "spec" in content
