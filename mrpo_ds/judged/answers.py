"""The answers of a model to the questions of a benchmark: made once, kept line by line, never made twice.

    OUT/answers/<name>.jsonl
        {"settings", "made"}                                             what all answers depend on; versions
        {"question", "asked", "turns", "tokens", "finished", "lost"}     a line for each question, with all of its turns

Lines are on the disk before the next questions are asked. `asked` is a digest of the question as it was put, so that a
changed benchmark is not answered by old lines. The versions are written down and not compared, and the device is not
asked for: answers that were made on GPUs may be judged elsewhere.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mrpo_ds.config.schema import ModelConfig
from mrpo_ds.console import log, progress, warn
from mrpo_ds.errors import ConfigError, MrpoError, Stopped, require_choice
from mrpo_ds.judged.generation import (
    Asked,
    Backend,
    Speaker,
    answer_questions,
    describe_lost,
    describe_room,
    load_speaker,
    model_limit,
)
from mrpo_ds.judged.lines import append, read_whole
from mrpo_ds.judged.records import Answer, Generation, Question
from mrpo_ds.leaderboard.cells import differences
from mrpo_ds.locks import take
from mrpo_ds.manifest import write_through
from mrpo_ds.signals import first_signal

BACKENDS = ("transformers", "vllm")
SHOWN = 3
"""Differences that a message names."""


def answers_of(
    name: str,
    path: Path,
    questions: Sequence[Question],
    generation: Generation,
    out: Path,
    backend: str,
    device: str | None,
) -> list[Answer]:
    """A model's answers to all questions, in their order: those of OUT/answers/<name>.jsonl, the others made now.

    Args:
        name: of the model, in messages and of its file.
        path: a directory or a Hub id.
        questions: each id once.
        generation: how answers are made.
        out: the folder of the evaluation.
        backend: transformers | vllm.
        device: cpu | cuda | cuda:N; None takes a GPU where there is one. Nothing is looked at when all are there.

    Raises:
        ConfigError: a model or device that cannot be used, or a file of other settings or questions.
        MrpoError: the file cannot be written (a full disk), or the device lacks memory; finished answers are kept.
        Stopped: by a signal, after the questions under way.
    """
    require_choice("the backend of answers", backend, BACKENDS)
    file = AnswerFile(out / "answers" / f"{name}.jsonl", settings_of(str(path), generation, backend))
    with file.opened():
        todo = [one for one in questions if not file.has(one, generation)]
        if todo:
            _make(file, name, str(path), todo, generation, (backend, device, len(questions)))
        asked = [file.kept[one.id] for one in questions]
    if said := describe_lost([one.lost for one in asked], name):
        log(said)
    return [one.answer for one in asked]


def _make(
    file: "AnswerFile",
    name: str,
    path: str,
    todo: Sequence[Question],
    generation: Generation,
    where: tuple[str, str | None, int],
) -> None:
    """Answer what is missing, and keep it. where: backend, device, and how many questions there are in all."""
    backend, device, total = where
    there = total - len(todo)
    log(f"{name}: {total} questions, {there} of them answered already; the answers are in {file.path}")
    answering, speaker = _load(path, generation, backend, device)
    if said := describe_room(speaker, generation, name):
        log(said)
    by_id = {one.id: one for one in todo}
    told: list[str] = []

    def tell(signal: str) -> None:
        told.append(signal)
        warn(f"{signal}: finishing the questions under way; a second signal ends at once")

    try:
        with progress(total, f"answers of {name}", "questions", there) as bar, first_signal(tell):
            for group in answer_questions(answering, speaker, todo, generation):
                file.add([(by_id[one.answer.question], one) for one in group], generation)
                bar.update(len(group))
                if told:
                    raise Stopped(
                        f"stopped by {told[0]}; {bar.done} of {total} answers of {name} are kept, and the same command "
                        "goes on from them"
                    )
    finally:
        answering.close()


def _load(path: str, generation: Generation, backend: str, device: str | None) -> tuple[Backend, Speaker]:
    from mrpo_ds.accelerator import announce_cpu

    announce_cpu()
    speaker = load_speaker(path, model_limit(path))
    if backend == "vllm":
        from mrpo_ds.judged.vllm_engine import VllmBackend

        engine = VllmBackend(path, speaker, generation.seed, device)
        return engine, load_speaker(path, engine.limit)
    from mrpo_ds.judged.generation_transformers import TransformersBackend

    return TransformersBackend(path, speaker, generation.batch_size, device), speaker


def settings_of(path: str, generation: Generation, backend: str) -> dict[str, Any]:
    """All that answers depend on but questions, device and versions. Raises ConfigError where there is no model."""
    from mrpo_ds.models import tokenizer_fingerprint, weights_digest

    config = ModelConfig(path=path)
    return {
        "model_hash": weights_digest(config),
        "tokenizer": tokenizer_fingerprint(config),
        "backend": backend,
        "max_new_tokens": generation.max_new_tokens,
        "temperature": float(generation.temperature),
        "temperature_by_category": {key: float(value) for key, value in generation.temperature_by_category.items()},
        "system": generation.system,
        "seed": generation.seed,
    }


def digest_of(question: Question, generation: Generation) -> str:
    """Changes with what is put to a model: the question's turns, what was said before them, and its temperature."""
    said = [[message.role, message.content] for message in question.history]
    content = [question.turns, said, float(generation.temperature_of(question))]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


@dataclass
class AnswerFile:
    """One model's answers on the disk. Use it within opened()."""

    path: Path
    settings: dict[str, Any]
    """What its answers depend on."""
    kept: dict[str, Asked] = field(default_factory=dict)
    """What is in the file, by question."""
    _digests: dict[str, str] = field(default_factory=dict)
    _descriptor: int = -1

    @contextmanager
    def opened(self) -> Iterator[None]:
        """The file, read and locked.

        Raises ConfigError for a file of other settings, one that is damaged before its last line, one that another
        process writes, or one that cannot be locked; MrpoError when it cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise MrpoError(f"answers cannot be kept in {str(self.path)!r}: {error.strerror}.") from error
        try:
            take(self._descriptor, self.path, "another process writes answers to")
            self._read()
            yield
        finally:
            os.close(self._descriptor)

    def has(self, question: Question, generation: Generation) -> bool:
        """Whether a question is answered. Raises ConfigError if another one of its id is."""
        if question.id not in self.kept:
            return False
        if self._digests[question.id] != digest_of(question, generation):
            raise ConfigError(
                f"question {question.id!r} is answered in {str(self.path)!r}, but was another one then (its turns, "
                "history or temperature). Use another --out, or remove the file, and it is answered anew."
            )
        return True

    def add(self, answers: Sequence[tuple[Question, Asked]], generation: Generation) -> None:
        """Write answers through to the disk. Raises MrpoError when there is no room; no line is then half there."""
        is_new = os.fstat(self._descriptor).st_size == 0
        made = made_with(self.settings["backend"])
        lines = [json.dumps({"settings": self.settings, "made": made}) + "\n"] if is_new else []
        for question, asked in answers:
            answer, digest = asked.answer, digest_of(question, generation)
            row = {
                "question": answer.question,
                "asked": digest,
                "turns": answer.turns,
                "tokens": answer.tokens,
                "finished": answer.finished,
                "lost": asked.lost,
            }
            lines.append(json.dumps(row) + "\n")
        self._append("".join(lines))
        if is_new:
            write_through(self.path.parent)
        for question, asked in answers:
            self.kept[question.id] = asked
            self._digests[question.id] = digest_of(question, generation)

    def _read(self) -> None:
        try:
            lines = read_whole(self.path)
        except OSError as error:
            raise MrpoError(f"answers in {str(self.path)!r} cannot be read or mended: {error.strerror}.") from error
        rows = [self._parsed(number, line) for number, line in enumerate(lines, start=1)]
        if rows:
            self._compare(rows[0].get("settings"), self.settings)
        for number, row in enumerate(rows[1:], start=2):
            try:
                answer = Answer(row["question"], *(tuple(row[key]) for key in ("turns", "tokens", "finished")))
                self.kept[answer.question] = Asked(answer, tuple(row["lost"]))
                self._digests[answer.question] = row["asked"]
            except (KeyError, TypeError) as error:
                raise self._damaged(number) from error

    def _parsed(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            return dict(json.loads(line))
        except (ValueError, TypeError) as error:
            raise self._damaged(number) from error

    def _damaged(self, number: int) -> ConfigError:
        return ConfigError(
            f"line {number} of {str(self.path)!r} is damaged. Remove it, and its question is answered anew; the first "
            "line says what the answers depend on: without it remove the file."
        )

    def _compare(self, theirs: Any, ours: dict[str, Any]) -> None:
        changed = differences({"settings": theirs if isinstance(theirs, dict) else {}}, ours)
        if changed:
            raise ConfigError(
                f"the answers in {str(self.path)!r} were made otherwise ({'; '.join(changed[:SHOWN])}), and must not "
                "be mixed with others. Use another --out, another name (NAME=PATH), or remove the file."
            )

    def _append(self, text: str) -> None:
        try:
            append(self._descriptor, text)
        except OSError as error:
            raise MrpoError(
                f"answers cannot be kept in {str(self.path)!r}: {error.strerror}. {len(self.kept)} of them are there; "
                "make room and run the same command again, which goes on from them."
            ) from error


def made_with(backend: str) -> dict[str, str]:
    """The versions with which a file of answers begins, for the record."""
    return {
        package: version(package) for package in ("torch", "transformers", *(["vllm"] if backend == "vllm" else []))
    }
