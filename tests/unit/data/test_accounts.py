"""Accounts of rows: parts add up to the whole, however the rows were cut into parts, and survive JSON."""

import copy
import json
from collections.abc import Callable
from dataclasses import fields
from typing import TypeVar

from hypothesis import given
from hypothesis import strategies as st

from mrpo_ds.data.accounts import DataReport, FitReport

Account = TypeVar("Account", DataReport, FitReport)
Event = Callable[[Account], None]
FIT_COUNTS = ["not_round_trip", "special_in_text", "left_out", "folded_system", "refused"]
REASONS = ["empty response", "missing prompt", "tied scores"]


def one_more(counts: dict[str, int], key: str) -> None:
    counts[key] = counts.get(key, 0) + 1


def dropped_row(number: int, reason: str) -> "Event[DataReport]":
    def event(report: DataReport) -> None:
        report.rows += 1
        one_more(report.dropped, reason)
        report.first_dropped.setdefault(reason, f"rows.jsonl row {number}: {reason}")

    return event


def kept_row(number: int, responses: int, left_out: list[str], cut: int, repeats: bool) -> "Event[DataReport]":
    def event(report: DataReport) -> None:
        report.rows += 1
        report.kept += 1
        report.examples += responses % 3 + 1
        report.responses += responses
        report.duplicates += repeats
        report.repeated_prompts += repeats
        report.responses_per_prompt = max(report.responses_per_prompt, responses)
        for reason in left_out:
            one_more(report.left_out_responses, reason)
        if cut:
            report.truncated_rows += 1
            report.truncated_responses += cut
            report.first_truncated = report.first_truncated or f"rows.jsonl row {number}"

    return event


def fit_row(number: int, prompt: int, responses: list[int], odd: set[str]) -> "Event[FitReport]":
    def event(report: FitReport) -> None:
        report.count(prompt, responses)
        for name in sorted(odd):
            report.find(name, f"rows.jsonl row {number}")

    return event


numbers = st.integers(1, 9999)
reasons = st.sampled_from(REASONS)
data_events = st.builds(dropped_row, numbers, reasons) | st.builds(
    kept_row, numbers, st.integers(1, 9), st.lists(reasons, max_size=3), st.integers(0, 2), st.booleans()
)
lengths = st.integers(0, 40)
fit_events = st.builds(
    fit_row, numbers, lengths, st.lists(lengths, min_size=1, max_size=4), st.sets(st.sampled_from(FIT_COUNTS))
)


def check_parts(parts: list[list[Event[Account]]], empty: Callable[[], Account]) -> None:
    whole, total = empty(), empty()
    for part in parts:
        counted = empty()
        for event in part:
            event(whole)
            event(counted)
        before = copy.deepcopy(counted)
        total.add(counted)
        assert counted == before
    assert total == whole


@given(st.lists(st.lists(data_events, max_size=5), max_size=6))
def test_data_reports_of_parts_add_up(parts: list[list[Event[DataReport]]]) -> None:
    check_parts(parts, DataReport)


@given(st.lists(st.lists(fit_events, max_size=5), max_size=6))
def test_fit_reports_of_parts_add_up(parts: list[list[Event[FitReport]]]) -> None:
    check_parts(parts, FitReport)


def test_adding_changes_no_part_later() -> None:
    total, part = FitReport(), FitReport()
    part.count(3, [1, 2])
    part.find("refused", "rows.jsonl row 1")
    total.add(part)
    total.add(part)
    total.find("refused", "rows.jsonl row 2")
    assert (part.rows, part.refused, part.prompt_tokens, part.first) == (1, 1, {3: 1}, {"refused": "rows.jsonl row 1"})
    assert (total.rows, total.refused, total.prompt_tokens, total.response_tokens) == (2, 3, {3: 2}, {1: 2, 2: 2})
    assert total.first == {"refused": "rows.jsonl row 1"}


def test_fit_of_two_rows_by_hand() -> None:
    fit = FitReport()
    fit.count(5, [2, 2, 7])
    fit.count(9, [1])
    assert (fit.rows, fit.tokens, fit.longest) == (2, 3 * 5 + 2 + 2 + 7 + 9 + 1, 12)
    assert (fit.prompt_tokens, fit.response_tokens) == ({5: 1, 9: 1}, {2: 2, 7: 1, 1: 1})


def test_the_largest_examples_by_hand() -> None:
    """With its prompt before each response, and with its prompt once: these are not the same rows."""
    fit, later = FitReport(), FitReport()
    fit.count(4, [1, 1])
    fit.count(50, [1, 2])
    later.count(50, [2, 1])
    later.count(5, [30, 40])
    fit.add(later)
    assert (fit.heaviest, fit.most_tokens) == (1, 103)
    assert (fit.wordiest, fit.most_text) == (3, 75)


@given(st.lists(data_events, max_size=8), st.lists(fit_events, max_size=8))
def test_round_trip_through_json(data: list[Event[DataReport]], fit: list[Event[FitReport]]) -> None:
    report, reading = DataReport(), FitReport()
    for data_event in data:
        data_event(report)
    for fit_event in fit:
        fit_event(reading)
    assert DataReport.from_dict(json.loads(json.dumps(report.as_dict()))) == report
    assert FitReport.from_dict(json.loads(json.dumps(reading.as_dict()))) == reading
    assert list(report.as_dict()) == [one.name for one in fields(DataReport)]
