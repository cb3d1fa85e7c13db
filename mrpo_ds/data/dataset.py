"""From sources to the examples of a run, with an account of every row that was dropped or cut."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mrpo_ds.config.schema import DataConfig, SourceConfig
from mrpo_ds.data.adapters._raw import RawExample, RowError
from mrpo_ds.data.rendering import Renderer
from mrpo_ds.data.sources import read_rows
from mrpo_ds.data.truncation import fit_response
from mrpo_ds.data.views import repeats, select_view
from mrpo_ds.errors import DataError
from mrpo_ds.registry import load_by_file_name
from mrpo_ds.types import Example

ADAPTERS = "mrpo_ds.data.adapters"

Adapter = Callable[[Mapping[str, Any]], RawExample]


@dataclass
class DataReport:
    """What became of the rows of a data set."""

    rows: int = 0
    """Rows read."""
    kept: int = 0
    """Rows that became examples, some views making several of one row."""
    examples: int = 0
    """Examples made of them."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Rows that cannot be used, by reason."""
    first_dropped: dict[str, str] = field(default_factory=dict)
    """The first such row of each reason, as "file row N: what is wrong"."""
    responses: int = 0
    """Responses of the kept rows, those that were left out and those that the view does not take included."""
    left_out_responses: dict[str, int] = field(default_factory=dict)
    """Responses of kept rows that cannot be used, by reason."""
    truncated_rows: int = 0
    """Kept rows with at least one response that is cut, or whose closing token does not fit."""
    first_truncated: str = ""
    """The first of them, as "file row N", or ""."""
    responses_per_prompt: int = 0
    """The most responses of any example."""

    def as_dict(self) -> dict[str, Any]:
        """All counts, ready for JSON."""
        return {
            "rows": self.rows,
            "kept": self.kept,
            "examples": self.examples,
            "dropped": dict(self.dropped),
            "first_dropped": dict(self.first_dropped),
            "responses": self.responses,
            "left_out_responses": dict(self.left_out_responses),
            "truncated_rows": self.truncated_rows,
            "first_truncated": self.first_truncated,
            "responses_per_prompt": self.responses_per_prompt,
        }

    def _keep(self, raw: RawExample, examples: Sequence[Example], left_out: Sequence[str]) -> None:
        """Count one row that became these examples, and its responses that were left out."""
        self.responses += len(raw.responses) + len(raw.left_out)
        self.kept += 1
        self.examples += len(examples)
        self.responses_per_prompt = max(self.responses_per_prompt, *(len(each.responses) for each in examples))
        for reason in left_out:
            self.left_out_responses[reason] = self.left_out_responses.get(reason, 0) + 1
        if not all(all(example.complete) for example in examples):
            self.truncated_rows += 1
            self.first_truncated = self.first_truncated or examples[0].source

    def _drop(self, error: RowError, place: str) -> None:
        self.dropped[error.reason] = self.dropped.get(error.reason, 0) + 1
        self.first_dropped.setdefault(error.reason, f"{place}: {error.detail or error.reason}")


def load_examples(
    sources: Sequence[SourceConfig], config: DataConfig, policy: Renderer, what: str
) -> tuple[list[Example], DataReport]:
    """Read, adapt, choose and cut the rows of all sources, in order.

    Args:
        sources: config.train or config.eval.
        config: the view (one of data/views.py: never "auto" any more), the lengths and the limits.
        policy: the policy's renderer, which decides what fits.
        what: "train" or "eval", for messages.

    Returns:
        The examples and the account of the rows. Without sources, "eval" is empty.

    Raises:
        ConfigError: there is no such adapter.
        DataError: a source cannot be read; more rows are dropped or cut than the limits allow; no row is left; the
            policy's chat template refuses a conversation.
    """
    report = DataReport()
    examples = []
    for index, (source, name) in enumerate(zip(sources, _names(sources), strict=True)):
        adapt: Adapter = load_by_file_name(ADAPTERS, source.adapter, f"data.{what}[{index}].adapter").adapt
        for number, row in read_rows(source):
            place = f"{source.source} row {number}"
            report.rows += 1
            try:
                raw = adapt(row)
                parts = select_view(raw, config.view)
                made = _fit_row(parts, f"{name}:{number}", place, config, policy)
            except RowError as error:
                report._drop(error, place)
            except DataError as error:
                raise DataError(f"{place}: {error}") from error
            else:
                report._keep(raw, made, parts[0].left_out)
                examples.extend(made)
    _check_report(report, config, what, required=what == "train" or bool(sources))
    return examples, report


def _fit_row(
    parts: Sequence[RawExample], identity: str, place: str, config: DataConfig, policy: Renderer
) -> list[Example]:
    """All examples of a row, cut to what fits; one that does not fit takes the row with it."""
    names = [identity] if len(parts) == 1 else [f"{identity}/{number}" for number in range(1, len(parts) + 1)]
    examples = [_fit(part, name, place, config.max_length, policy) for part, name in zip(parts, names, strict=True)]
    if repeats([text for example in examples for text in example.responses], config.view):
        raise RowError("identical responses after truncation", f"data.max_length={config.max_length} cuts what differs")
    return examples


def _fit(raw: RawExample, identity: str, place: str, max_length: int, policy: Renderer) -> Example:
    prompt_tokens = len(policy.prompt_ids(raw.prompt))
    room = max_length - prompt_tokens
    if room <= 0:
        raise RowError("prompt longer than max_length", f"{prompt_tokens} prompt tokens, max_length is {max_length}")
    fitted = [fit_response(text, room, policy) for text in raw.responses]
    texts = tuple(text for text, _ in fitted)
    if not all(text.strip() for text in texts):
        raise RowError("nothing left of a response", f"the prompt leaves room for {room} of {max_length} tokens")
    return Example(identity, raw.prompt, texts, raw.scores, place, tuple(complete for _, complete in fitted))


def _names(sources: Sequence[SourceConfig]) -> list[str]:
    """A short name per source, for the ids of its rows: the file's name without endings, #2 for its second use."""
    names: list[str] = []
    uses: dict[str, int] = {}
    for source in sources:
        name = Path(source.source).name
        for suffix in (".gz", ".jsonl", ".json", ".parquet"):
            name = name.removesuffix(suffix)
        uses[name] = uses.get(name, 0) + 1
        names.append(name if uses[name] == 1 else f"{name}#{uses[name]}")
    return names


def _check_report(report: DataReport, config: DataConfig, what: str, required: bool) -> None:
    if required and not report.rows:
        raise DataError(f"data.{what} has no rows; name at least one source with rows")
    num_dropped = report.rows - report.kept
    reasons = ", ".join(
        f"{count} x {reason} (first: {report.first_dropped[reason]})"
        for reason, count in sorted(report.dropped.items(), key=lambda item: -item[1])
    )
    if required and not report.kept:
        raise DataError(f"data.{what}: none of {report.rows} rows can be used: {reasons}")
    if _fraction(num_dropped, report.rows) > config.max_dropped_fraction:
        raise DataError(
            f"data.{what}: {_share(num_dropped, report.rows)} cannot be used, more than data.max_dropped_fraction="
            f"{config.max_dropped_fraction:g} allows: {reasons}. Mend the rows, or raise data.max_dropped_fraction"
        )
    num_left_out = sum(report.left_out_responses.values())
    if _fraction(num_left_out, report.responses) > config.max_left_out_fraction:
        left_out = ", ".join(f"{count} x {reason}" for reason, count in report.left_out_responses.items())
        raise DataError(
            f"data.{what}: {num_left_out} of {report.responses} responses are left out of the rows that are "
            f"used, more than data.max_left_out_fraction={config.max_left_out_fraction:g} allows: {left_out}. Mend "
            f"the rows, or raise data.max_left_out_fraction"
        )
    if _fraction(report.truncated_rows, report.rows) > config.max_truncated_fraction:
        raise DataError(
            f"data.{what}: {_share(report.truncated_rows, report.rows)} have a response that does not fit into "
            f"data.max_length={config.max_length} tokens, more than data.max_truncated_fraction="
            f"{config.max_truncated_fraction:g} allows (first: {report.first_truncated}). Raise data.max_length, or "
            f"data.max_truncated_fraction"
        )


def _share(count: int, rows: int) -> str:
    return f"{count} of {rows} rows ({_fraction(count, rows):.2%})"


def _fraction(count: int, rows: int) -> float:
    return count / rows if rows else 0.0


@dataclass
class FitReport:
    """How the examples look to one model: rows that it reads otherwise than they are written."""

    longest: int = 0
    """Tokens of the longest sequence, prompt and response."""
    not_round_trip: int = 0
    """Rows with a response whose token ids say another text."""
    special_in_text: int = 0
    """Rows whose text turns into special tokens."""
    left_out: int = 0
    """Rows of whose prompt the chat template drops or rewrites a part."""
    refused: int = 0
    """Rows that the chat template refuses; they count in nothing else."""
    first: dict[str, str] = field(default_factory=dict)
    """The first row of each of these counts, by the count's name."""


def check_fits(examples: Sequence[Example], renderers: Mapping[str, Renderer]) -> dict[str, FitReport]:
    """Render every example for every model, by name, and count what is odd. Raises nothing: the caller judges."""
    return {name: _check_fit(examples, renderer) for name, renderer in renderers.items()}


def _check_fit(examples: Sequence[Example], renderer: Renderer) -> FitReport:
    fit = FitReport()
    for example in examples:
        try:
            lengths = [len(renderer.encode(example, index).ids) for index in range(len(example.responses))]
        except DataError as error:
            fit.refused += 1
            fit.first.setdefault("refused", f"{example.source}: {error}")
            continue
        fit.longest = max(fit.longest, *lengths)
        odd = {
            "not_round_trip": not all(map(renderer.round_trips, example.responses)),
            "special_in_text": renderer.special_in_text(example),
            "left_out": renderer.leaves_out(example.prompt),
        }
        for name in (name for name, is_odd in odd.items() if is_odd):
            setattr(fit, name, getattr(fit, name) + 1)
            fit.first.setdefault(name, example.source)
    return fit
