"""Tracking: the record survives kills, full disks and a W&B that is not there."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from mrpo_ds.config.outputs import TrackingConfig, WandbConfig
from mrpo_ds.errors import ConfigError, DataError
from mrpo_ds.tracking import Tracker, read_jsonl
from mrpo_ds.wandb_files import history_in, records_in, steps_in
from mrpo_ds.wandb_sink import log_job

REPOSITORY = Path(__file__).resolve().parents[2]
FILES_ONLY = TrackingConfig(wandb=WandbConfig(mode="disabled"), plots=False)
OFFLINE = TrackingConfig(wandb=WandbConfig(mode="offline"), plots=False)
KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No W&B settings or keys of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith("WANDB_")] + ["NETRC"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    # What tracking sets when it is unset; set here, it is undone after the test.
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_DATA_DIR", "")
    monkeypatch.delenv("WANDB_DATA_DIR")


def open_tracker(run_dir: Path, config: TrackingConfig = FILES_ONLY, resume_step: int = 0) -> Tracker:
    return Tracker(run_dir, config, {"model": {"path": "tiny"}}, resume_step)


def run_script(
    body: str, *arguments: object, expected: int = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run body in a fresh interpreter, arguments in sys.argv, the run directory first; it must end as expected."""
    head = """
        import sys
        from pathlib import Path
        from mrpo_ds import console, tracking, wandb_sink
        from mrpo_ds.config.outputs import TrackingConfig, WandbConfig
        console.configure_console(enabled=True)
        wandb_sink.WANDB_START_SECONDS = wandb_sink.WANDB_FINISH_SECONDS = 2.0
        run_dir = Path(sys.argv[1])
        def open_tracker(mode, step=0):
            return tracking.Tracker(run_dir, TrackingConfig(wandb=WandbConfig(mode=mode), plots=False), {}, step)
    """
    script = textwrap.dedent(head) + textwrap.dedent(body)
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == expected, done.stderr
    return done


def logged(run_dir: Path) -> dict[str, list[int]]:
    """By kind of row, the steps that all offline files of a run hold together."""
    found: dict[str, list[int]] = {"train": [], "eval": [], "samples": []}
    for path in run_dir.glob("wandb/offline-run-*/*.wandb"):
        for kind, step in steps_in(path):
            found[kind].append(step)
    return found


def written(file: Path) -> list[Any]:
    """The records of an offline file once it is whole: in a process with other runs W&B writes on after finish."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        records = list(records_in(file))
        if any(record.HasField("exit") for record in records):
            return records
        time.sleep(0.05)
    raise AssertionError(f"{file} was not finished")


class TestFiles:
    def test_rows_are_there_at_once_step_first_and_keys_sorted(self, tmp_path: Path) -> None:
        tracker = open_tracker(tmp_path / "new" / "run")
        tracker.log_step(1, {"rewards/chosen": 0.5, "loss": 0.25, "num_tokens": 12})
        tracker.log_eval(0, {"loss": 1.5})
        run_dir = tmp_path / "new" / "run"
        assert (
            run_dir.joinpath("metrics.jsonl").read_text()
            == '{"step": 1, "loss": 0.25, "num_tokens": 12, "rewards/chosen": 0.5}\n'
        )
        assert run_dir.joinpath("evals.jsonl").read_text() == '{"step": 0, "loss": 1.5}\n'

    def test_values_that_json_cannot_say_become_null(self, tmp_path: Path) -> None:
        tracker = open_tracker(tmp_path)
        tracker.log_step(1, {"loss": float("nan"), "grad_norm": float("inf"), "epoch": -float("inf")})
        tracker.finish({"losses": [float("nan"), 1.0], "nested": {"best": float("inf")}}, exit_code=0)

        def refuse(constant: str) -> Any:
            raise AssertionError(constant)

        row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
        assert row == {"step": 1, "loss": None, "grad_norm": None, "epoch": None}
        summary = json.loads((tmp_path / "summary.json").read_text(), parse_constant=refuse)
        assert summary == {"losses": [None, 1.0], "nested": {"best": None}}
        assert not list(tmp_path.glob("*.tmp"))

    def test_a_new_run_starts_empty(self, tmp_path: Path) -> None:
        (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
        open_tracker(tmp_path)
        assert (tmp_path / "metrics.jsonl").read_bytes() == (tmp_path / "evals.jsonl").read_bytes() == b""

    def test_resume_cuts_later_rows_and_the_torn_one(self, tmp_path: Path) -> None:
        whole = open_tracker(tmp_path / "whole")
        for step in range(1, 7):
            whole.log_step(step, {"loss": 1 / step})
        wanted = (tmp_path / "whole" / "metrics.jsonl").read_bytes()

        killed = tmp_path / "killed"
        killed.mkdir()
        (killed / "metrics.jsonl").write_bytes(b"".join(wanted.splitlines(keepends=True)[:5]) + b'{"step": 6, "lo')
        (killed / "evals.jsonl").write_text('{"step": 0}\n{"step": 4}\n{"step": 5}\n')
        resumed = open_tracker(killed, resume_step=4)
        for step in (5, 6):
            resumed.log_step(step, {"loss": 1 / step})
        assert (killed / "metrics.jsonl").read_bytes() == wanted
        assert read_jsonl(killed / "evals.jsonl") == [{"step": 0}, {"step": 4}]

    def test_resume_keeps_a_last_row_that_lacks_only_its_newline(self, tmp_path: Path) -> None:
        (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}')
        open_tracker(tmp_path, resume_step=2).log_step(3, {})
        assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3}\n'

    @pytest.mark.parametrize("torn", [b'{"step": 2, "loss": 0.', b"{", b"\0\0\0\0", b"\xff\xfe"])
    def test_reading_leaves_out_a_torn_last_line(self, tmp_path: Path, torn: bytes) -> None:
        path = tmp_path / "rows.jsonl"
        path.write_bytes(b'{"step": 1}\n' + torn)
        assert read_jsonl(path) == [{"step": 1}]

    def test_reading_a_missing_file_gives_no_rows(self, tmp_path: Path) -> None:
        assert read_jsonl(tmp_path / "rows.jsonl") == []

    @pytest.mark.parametrize("broken", ['{"step": ', "[1, 2]"])
    def test_a_broken_line_before_the_last_is_named(self, tmp_path: Path, broken: str) -> None:
        path = tmp_path / "rows.jsonl"
        path.write_text(f'{{"step": 1}}\n{broken}\n{{"step": 3}}\n')
        with pytest.raises(DataError, match=r"rows\.jsonl line 2 cannot be read"):
            read_jsonl(path)

    def test_a_run_directory_that_cannot_be_made_is_a_bad_config(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(ConfigError, match="output_dir .* cannot be written"):
            open_tracker(tmp_path / "file" / "run")


class TestSamples:
    ROWS = ({"prompt": "Why?", "text": "So.\n", "tokens": 3, "finished": True}, {"prompt": "How?", "text": "\u2028"})

    def test_a_row_for_each_prompt_with_its_number_and_of_how_many(self, tmp_path: Path) -> None:
        open_tracker(tmp_path).log_samples(4, self.ROWS)
        first, second = read_jsonl(tmp_path / "samples.jsonl")
        assert first == {"step": 4, "sample": 1, "of": 2, **self.ROWS[0]}
        assert (second["sample"], second["text"]) == (2, "\u2028")

    def test_a_run_without_samples_has_no_file_of_them(self, tmp_path: Path) -> None:
        tracker = open_tracker(tmp_path)
        tracker.log_step(1, {"loss": 1.0})
        tracker.sync()
        tracker.finish({}, exit_code=0)
        assert not (tmp_path / "samples.jsonl").exists()

    @pytest.mark.parametrize("lost_bytes", [0, 1, 30, 70, 100, 140])
    def test_resume_keeps_whole_evaluations_only(self, tmp_path: Path, lost_bytes: int) -> None:
        """Of the last evaluation, a kill has cut off so many bytes."""
        tracker = open_tracker(tmp_path)
        for step in (0, 3, 6):
            tracker.log_samples(step, self.ROWS)
        file = tmp_path / "samples.jsonl"
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) - lost_bytes])
        open_tracker(tmp_path, resume_step=7)
        steps = [row["step"] for row in read_jsonl(file)]
        assert steps == ([0, 0, 3, 3, 6, 6] if lost_bytes <= 1 else [0, 0, 3, 3])

    def test_resume_cuts_later_ones(self, tmp_path: Path) -> None:
        tracker = open_tracker(tmp_path)
        for step in (0, 3, 6):
            tracker.log_samples(step, self.ROWS)
        open_tracker(tmp_path, resume_step=4).log_samples(6, self.ROWS[:1])
        assert [row["step"] for row in read_jsonl(tmp_path / "samples.jsonl")] == [0, 0, 3, 3, 6]


class TestFullDisk:
    def test_rows_are_lost_with_one_warning_and_counted(
        self, tmp_path: Path, console: None, capsys: pytest.CaptureFixture[str]
    ) -> None:
        tracker = open_tracker(tmp_path)
        rows = tmp_path / "metrics.jsonl"
        rows.unlink()
        rows.symlink_to("/dev/full")
        for step in (1, 2, 3):
            tracker.log_step(step, {"loss": 1.0})
        rows.unlink()
        tracker.log_step(4, {"loss": 1.0})  # there is space again
        tracker.finish({"steps": 4}, exit_code=0)
        warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
        assert len(warnings) == 1 and "metrics.jsonl cannot be written" in warnings[0]
        assert "No space left" in warnings[0]
        assert read_jsonl(rows) == [{"step": 4, "loss": 1.0}]
        assert json.loads((tmp_path / "summary.json").read_text()) == {"steps": 4, "lost_metric_rows": 3}

    def test_half_a_row_is_taken_back(self, tmp_path: Path) -> None:
        # A file size limit makes the kernel write a part of the row, as a disk with a few bytes left does.
        run_script(
            """
            import resource
            tracker = open_tracker("disabled")
            tracker.log_step(1, {"loss": 1.0})
            unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
            size = (run_dir / "metrics.jsonl").stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, unlimited[1]))
            tracker.log_step(2, {"loss": 2.0})
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
            tracker.log_step(3, {"loss": 3.0})
            """,
            tmp_path,
        )
        assert read_jsonl(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 1.0}, {"step": 3, "loss": 3.0}]

    def test_a_summary_or_plot_that_fails_is_a_warning(
        self, tmp_path: Path, console: None, capsys: pytest.CaptureFixture[str]
    ) -> None:
        tracker = open_tracker(tmp_path, TrackingConfig(wandb=WandbConfig(mode="disabled"), plots=True))
        tracker.log_step(1, {"loss": 1.0})
        (tmp_path / "plots").touch()  # a file where the directory should be
        (tmp_path / "summary.json").mkdir()
        tracker.finish({}, exit_code=0)
        text = capsys.readouterr().err
        assert "warning: summary.json cannot be written" in text
        assert "warning: plots cannot be drawn (FileExistsError" in text


class TestWandb:
    def test_offline_writes_a_run_and_resume_keeps_its_id(
        self, tmp_path: Path, console: None, capsys: pytest.CaptureFixture[str]
    ) -> None:
        tracker = open_tracker(tmp_path, OFFLINE)
        tracker.log_step(1, {"loss": 0.5, "ref/llama/weight": 1.0})
        tracker.log_eval(1, {"rewards/accuracies": float("nan")})
        tracker.finish({"steps": 1}, exit_code=75)
        resumed = open_tracker(tmp_path, OFFLINE, resume_step=1)
        resumed.log_step(2, {"loss": 0.25})
        resumed.finish({"steps": 2}, exit_code=0)

        run_id = (tmp_path / "wandb" / "run_id.txt").read_text().strip()
        files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime)
        assert {path.name for path in files} == {f"run-{run_id}.wandb"}
        first = files[0].read_bytes()
        for name in (b"train/loss", b"train/ref/llama/weight", b"eval/rewards/accuracies", b"train/global_step"):
            assert name in first
        text = capsys.readouterr().err
        assert "warning" not in text and "W&B offline; upload with: wandb sync" in text
        assert all(line.startswith("mrpo-ds | ") for line in text.splitlines())

    def test_offline_holds_every_value_group_job_type_tables_and_artifacts(self, tmp_path: Path) -> None:
        config = WandbConfig(mode="offline", group="ablation", log_model="end")
        run_dir = tmp_path / "beta-0.1"
        (run_dir / "model").mkdir(parents=True)
        (run_dir / "model" / "weights.bin").write_bytes(b"0" * 100)
        (run_dir / "config.yaml").write_text("loss: {name: dpo}\n")
        tracker = open_tracker(run_dir, TrackingConfig(wandb=config, plots=False))
        tracker.log_eval(0, {"loss": 0.75})
        tracker.log_samples(0, TestSamples.ROWS)
        tracker.log_step(1, {"loss": 1 / 3, "ref/llama/weight": 1e-30, "grad_norm": float("nan")})
        tracker.log_eval(1, {"loss": 0.5})
        tracker.finish({"steps": 1}, exit_code=0)

        (file,) = run_dir.glob("wandb/offline-run-*/*.wandb")
        records = written(file)
        (run,) = [record.run for record in records if record.HasField("run")]
        assert (run.run_group, run.job_type, run.display_name) == ("ablation", "train", "beta-0.1")
        rows: dict[int, dict[str, Any]] = {}
        for step, values in history_in(file):
            rows.setdefault(step, {}).update(values)
        assert rows[1]["train/loss"] == 1 / 3 and rows[1]["train/ref/llama/weight"] == 1e-30
        assert math.isnan(rows[1]["train/grad_norm"]) and rows[1]["eval/loss"] == 0.5 and rows[0]["eval/loss"] == 0.75
        tables = {}
        for name, step in (("samples/table", 0), ("evals/table", 1)):
            assert rows[step][f"{name}/_type"] == "table-file"
            tables[name] = json.loads((file.parent / "files" / rows[step][f"{name}/path"]).read_text())
        assert tables["samples/table"]["columns"] == ["step", "sample", "of", *TestSamples.ROWS[0]]
        assert tables["samples/table"]["data"][0] == [0, 1, 2, *TestSamples.ROWS[0].values()]
        assert tables["evals/table"] == tables["evals/table"] | {"columns": ["step", "loss"]}
        assert tables["evals/table"]["data"] == [[0, 0.75], [1, 0.5]]
        artifacts = {record.artifact.type: record.artifact for record in records if record.HasField("artifact")}
        contents = {kind: {one.path: one for one in artifacts[kind].manifest.contents} for kind in ("record", "model")}
        assert set(contents["record"]) == {"config.yaml", "summary.json", "evals.jsonl", "samples.jsonl"}
        weights = contents["model"]["weights.bin"]
        assert Path(weights.local_path) == run_dir / "model" / "weights.bin", "not a second copy"
        outside = [one.local_path for artifact in artifacts.values() for one in artifact.manifest.contents]
        assert all(Path(path).is_relative_to(run_dir) for path in outside), "a sync needs the run directory alone"

    def test_a_job_of_another_type_is_a_small_run_of_its_own(self, tmp_path: Path) -> None:
        config = WandbConfig(mode="offline", group="ablation", name="of the training", log_model="end")
        log_job("score", tmp_path / "run-score", config, {"model": {"path": "tiny"}}, [{"rows": 5.0}, {"rows": 6.0}])
        (file,) = tmp_path.glob("run-score/wandb/offline-run-*/*.wandb")
        (run,) = [record.run for record in written(file) if record.HasField("run")]
        assert (run.run_group, run.job_type, run.display_name) == ("ablation", "score", "run-score")
        assert [values["score/rows"] for _, values in history_in(file)] == [5, 6]
        log_job("score", tmp_path / "none", WandbConfig(mode="disabled"), {}, [{"rows": 5.0}])
        assert not (tmp_path / "none").exists()

    def test_a_resumed_run_logs_the_samples_that_a_killed_process_had_not_written(self, tmp_path: Path) -> None:
        killed = """
            import os, signal
            tracker = open_tracker("offline", int(sys.argv[2]))
            for step in range(int(sys.argv[2]) + 1, int(sys.argv[3]) + 1):
                tracker.log_step(step, {f"ref/{k}/weight": step + k for k in range(80)})
                if step % 5 == 0:
                    tracker.log_samples(step, [{"prompt": "Why?", "text": f"of step {step}"}])
            if len(sys.argv) > 4:
                os.kill(os.getpid(), signal.SIGKILL)
            tracker.finish({}, exit_code=0)
            """
        run_script(killed, tmp_path, 0, 30, "kill", expected=-signal.SIGKILL)
        run_script(killed, tmp_path, 25, 40)
        assert sorted(logged(tmp_path)["samples"]) == [5, 10, 15, 20, 25, 30, 35, 40]
        assert [row["step"] for row in read_jsonl(tmp_path / "samples.jsonl")] == [5, 10, 15, 20, 25, 30, 35, 40]

    def test_after_a_kill_the_offline_files_hold_every_step_once(self, tmp_path: Path) -> None:
        """Few rows were in the file of the killed process, in which W&B writes block by block."""
        killed = """
            import os, signal
            tracker = open_tracker("offline", int(sys.argv[2]))
            for step in range(int(sys.argv[2]) + 1, int(sys.argv[3]) + 1):
                tracker.log_step(step, {f"ref/{k}/weight": step + k for k in range(80)})
                if step % 5 == 0:
                    tracker.log_eval(step, {"loss": float("nan")})
            if len(sys.argv) > 4:
                os.kill(os.getpid(), signal.SIGKILL)
            tracker.finish({}, exit_code=0)
            """
        run_script(killed, tmp_path, 0, 50, "kill", expected=-signal.SIGKILL)
        run_script(killed, tmp_path, 45, 80, "kill", expected=-signal.SIGKILL)
        run_script(killed, tmp_path, 70, 90)
        found = logged(tmp_path)
        assert sorted(found["train"]) == [*range(1, 91)] and sorted(found["eval"]) == [*range(5, 91, 5)]

    def test_a_new_run_gets_a_new_id(self, tmp_path: Path) -> None:
        (tmp_path / "wandb").mkdir()
        (tmp_path / "wandb" / "run_id.txt").write_text("old\n")
        open_tracker(tmp_path, OFFLINE).finish({}, exit_code=0)
        assert (tmp_path / "wandb" / "run_id.txt").read_text() != "old\n"

    @pytest.mark.parametrize(("mode", "ambient"), [("disabled", "online"), ("auto", "disabled")])
    def test_disabled_does_not_even_import_it(self, tmp_path: Path, mode: str, ambient: str) -> None:
        done = run_script(
            """
            tracker = open_tracker(sys.argv[2])
            tracker.log_step(1, {"loss": 1.0})
            tracker.finish({}, exit_code=0)
            print([name for name in ("wandb", "matplotlib", "torch") if name in sys.modules])
            """,
            tmp_path,
            mode,
            WANDB_MODE=ambient,
        )
        assert done.stdout == "[]\n" and done.stderr == ""
        assert not (tmp_path / "wandb").exists()

    @pytest.mark.parametrize("source", ["environment", "netrc"])
    def test_an_unreachable_server_costs_a_warning_and_a_bounded_time(self, tmp_path: Path, source: str) -> None:
        with socket.socket() as closed:  # bound and not listening: connections are refused
            closed.bind(("127.0.0.1", 0))
            host = f"127.0.0.1:{closed.getsockname()[1]}"
            netrc = tmp_path / "netrc"
            netrc.write_text(f"machine {host} login user password {KEY}\n")
            key = {"WANDB_API_KEY": KEY} if source == "environment" else {"NETRC": str(netrc)}
            started = time.monotonic()
            run_dir = tmp_path / "run"
            done = run_script(
                """
                tracker = open_tracker("auto")
                tracker.log_step(1, {"loss": 1.0})
                tracker.finish({}, exit_code=0)
                """,
                run_dir,
                WANDB_BASE_URL=f"http://{host}",
                **key,
            )
        assert time.monotonic() - started < 15
        lines = done.stderr.splitlines()
        assert len(lines) == 2, done.stderr
        assert "warning: W&B cannot go online (CommError" in lines[0]
        assert "W&B offline; upload with" in lines[1]
        assert read_jsonl(run_dir / "metrics.jsonl") == [{"step": 1, "loss": 1.0}]
        assert list(run_dir.glob("wandb/offline-run-*/*.wandb"))
        assert not [path for path in run_dir.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]

    def test_online_without_a_key_never_asks_for_one(self, tmp_path: Path) -> None:
        done = run_script("open_tracker('online').finish({}, exit_code=0)", tmp_path)
        assert "there is no key" in done.stderr.splitlines()[0]
        assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))

    def test_a_service_that_dies_costs_one_warning(self, tmp_path: Path) -> None:
        done = run_script(
            """
            import psutil
            tracker = open_tracker("offline")
            for child in psutil.Process().children():  # wandb's own service and nothing else
                child.kill()
                child.wait()
            for step in (1, 2, 3):
                tracker.log_step(step, {"loss": 1.0})
            tracker.finish({}, exit_code=0)
            """,
            tmp_path,
        )
        warnings = [line for line in done.stderr.splitlines() if "warning" in line]
        assert len(warnings) == 1 and "W&B failed to log" in warnings[0]
        assert len(read_jsonl(tmp_path / "metrics.jsonl")) == 3

    def test_a_wandb_that_cannot_start_is_left_out(
        self, tmp_path: Path, console: None, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "wandb").touch()  # a file where its directory should be
        tracker = open_tracker(tmp_path, OFFLINE)
        tracker.log_step(1, {"loss": 1.0})
        tracker.finish({}, exit_code=0)
        assert "warning: W&B failed to start" in capsys.readouterr().err
        assert read_jsonl(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 1.0}]
