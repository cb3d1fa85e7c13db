"""The data report as one HTML page: no scripts, nothing from elsewhere, readable by day and by night.

The data are hostile: all that comes from them goes through as_html.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mrpo_ds.data.accounts import DataReport, FitReport
from mrpo_ds.data.dataset import adapter_name
from mrpo_ds.material import Material
from mrpo_ds.report.markup import as_html, fact_line, opening, table, write_parts
from mrpo_ds.report.style import STYLE
from mrpo_ds.report.text import ODD, QUANTILES, Reader, Rendered, bins, leaked, quantile, readers, rendered, used
from mrpo_ds.report.tokens import CLOSING, TEXT, Piece, num_tokens

_NUM_BARS = 48
_WIDTH, _HEIGHT = 480, 110  # of a histogram's bars, in its own units


def write_page(material: Material, path: Path) -> None:
    """Write the data report of a run, whole or not at all. Raises ConfigError when that cannot be done."""
    write_parts(_page(material), path)


# ---- the page --------------------------------------------------------------------------------------------------------


def _page(material: Material) -> Iterable[str]:
    """The page in parts, each complete lines."""
    all_readers = readers(material)
    yield f"{opening('mrpo-ds data report', STYLE)}<h1>Data report</h1>\n"
    yield _settings(material)
    if leak := leaked(material):
        yield f'<p class="warning">{as_html(leak)}.</p>\n'
    yield _rows({split: one.report for split, one in material.prepared.items()})
    spans = {name: _longest(all_readers, material, name) for name in ("prompt_tokens", "response_tokens")}
    for reader in all_readers:
        yield _reading(reader, material, spans)
        if (example := rendered(reader, material)) is not None:
            yield _example(example)
    yield "</main>\n</body>\n</html>\n"


def _settings(material: Material) -> str:
    config = material.config
    data = config.data
    facts = {
        "objective": config.loss.name,
        "view": data.view,
        "max_length": f"{data.max_length} policy tokens",
        "score_turns": data.score_turns,
        "score_eos": str(data.score_eos).lower(),
    }
    paths = {"policy": config.model.path} | {one.name: one.path for one in config.references}
    sources = [
        f"<li><b>{split}</b> {as_html(source.source)} <small>{as_html(adapter_name(source))}</small></li>\n"
        for split, parts in (("train", data.train), ("eval", data.eval))
        for source in parts
    ]
    models = [f"<li><b>{as_html(name)}</b> {as_html(path)}</li>\n" for name, path in paths.items()]
    return (
        f'{fact_line(facts.items())}<div class="columns">\n<ul>\n{"".join(sources)}</ul>\n'
        f"<ul>\n{''.join(models)}</ul>\n</div>\n"
    )


def _rows(reports: Mapping[str, DataReport]) -> str:
    lines = {
        "rows read": [report.rows for report in reports.values()],
        "rows kept": [report.kept for report in reports.values()],
        "rows dropped": [report.rows - report.kept for report in reports.values()],
        "examples made": [report.examples for report in reports.values()],
        "most responses of an example": [report.responses_per_prompt for report in reports.values()],
        "rows like an earlier one": [report.duplicates for report in reports.values()],
        "rows with the prompt of an earlier one": [report.repeated_prompts for report in reports.values()],
        "responses cut to fit": [report.truncated_responses for report in reports.values()],
        "rows with a response that is cut": [report.truncated_rows for report in reports.values()],
        "responses left out of kept rows": [sum(report.left_out_responses.values()) for report in reports.values()],
    }
    body = [[as_html(name), *map(str, counts)] for name, counts in lines.items()]
    reasons = []
    for split, report in reports.items():
        for reason, count in report.dropped.items():
            first = report.first_dropped.get(reason, "")
            reasons.append([split, f"dropped: {as_html(reason)}", str(count), as_html(first)])
        for reason, count in report.left_out_responses.items():
            reasons.append([split, f"response left out: {as_html(reason)}", str(count), ""])
        if report.truncated_rows:
            reasons.append([split, "response cut", str(report.truncated_rows), as_html(report.first_truncated)])
    why = table(["split", "what", "count", "first"], reasons, numbers={2}) if reasons else ""
    shown = table(["", *reports], body, numbers=set(range(1, len(reports) + 1)))
    return f"<h2>Rows</h2>\n{shown}{why}"


def _reading(reader: Reader, material: Material, spans: Mapping[str, int]) -> str:
    renderer, tokenizer = reader.speaker.renderer, reader.speaker.tokenizer
    closing = "none" if renderer.end_of_turn is None else _token(tokenizer, renderer.end_of_turn)
    facts = {
        "template": "plain" if renderer.template is None else "the model's own",
        "vocabulary": f"{len(tokenizer)} tokens",
        "BOS": "none" if tokenizer.bos_token_id is None else _token(tokenizer, tokenizer.bos_token_id),
        "closing token": closing,
    }
    parts = [f"<section>\n<h2>{as_html(reader.title)}</h2>\n{fact_line(facts.items())}"]
    fits = {split: reader.speaker.fits[split] for split in material.prepared}
    parts.append(_sizes(fits, material.config.data.max_length))
    parts.append('<div class="columns">\n')
    for split, fit in fits.items():
        parts.append(_histogram(fit.prompt_tokens, spans["prompt_tokens"], f"{split}: prompts"))
        parts.append(_histogram(fit.response_tokens, spans["response_tokens"], f"{split}: responses"))
    marks = ", ".join(f"{share:.0%}" for share in QUANTILES)
    parts.append(f'</div>\n<p class="legend">Lengths in tokens; dashed: {marks} are not longer.</p>\n')
    parts.append(_odd(fits))
    return "".join([*parts, "</section>\n"])


def _sizes(fits: Mapping[str, FitReport], max_length: int) -> str:
    head = ["tokens", *(f"{share:.0%}" for share in QUANTILES), "max"]
    body = []
    for split, fit in fits.items():
        for what, histogram in (("prompts", fit.prompt_tokens), ("responses", fit.response_tokens)):
            marks = [quantile(histogram, share) for share in QUANTILES]
            body.append([f"{split}: {what}", *map(str, marks), str(max(histogram, default=0))])
    sizes = table(head, body, numbers=set(range(1, len(head))))
    body = []
    for split, fit in fits.items():
        mean, longest, padding = used(fit, max_length)
        body.append([split, str(fit.tokens), str(fit.longest), f"{mean:.1%}", f"{longest:.1%}", f"{padding:.1%}"])
    head = ["", "tokens", "longest", "mean of max_length", "longest of max_length", "padding if padded to it"]
    return sizes + table(head, body, numbers=set(range(1, len(head))))


def _odd(fits: Mapping[str, FitReport]) -> str:
    body = []
    for name, what in ODD.items():
        for split, fit in fits.items():
            if count := getattr(fit, name):
                share = f"{count / max(fit.rows, 1):.2%}"
                body.append([split, f"rows that {what}", str(count), share, as_html(fit.first.get(name, "unknown"))])
    if not body:
        return '<p class="good">All rows are read as they are written.</p>\n'
    return table(["split", "what", "count", "share", "first"], body, numbers={2, 3})


# ---- histograms ------------------------------------------------------------------------------------------------------


def _longest(all_readers: Sequence[Reader], material: Material, name: str) -> int:
    """The end of the scale that all histograms of a kind share, so that models and splits can be compared."""
    fits = [reader.speaker.fits[split] for reader in all_readers for split in material.prepared]
    return max((max(getattr(fit, name), default=0) for fit in fits), default=0)


def _histogram(histogram: Mapping[int, int], end: int, title: str) -> str:
    parts = bins(histogram, _NUM_BARS, 0, end)
    peak = max((count for _, _, count in parts), default=0) or 1
    step = _WIDTH / len(parts)
    bars = []
    for place, (first, last, count) in enumerate(parts):
        if count:
            height = max(_HEIGHT * count / peak, 1)
            tokens = f"{first} tokens" if first == last else f"{first} to {last} tokens"
            bars.append(
                f'<rect x="{place * step:.1f}" y="{_HEIGHT - height:.1f}" width="{max(step - 1, 0.5):.1f}" '
                f'height="{height:.1f}"><title>{tokens}: {count}</title></rect>'
            )
    width = parts[0][1] - parts[0][0] + 1
    marks = [
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="-4" y2="{_HEIGHT}"><title>{share:.0%}: {value} tokens</title></line>'
        for share, value in ((share, quantile(histogram, share)) for share in QUANTILES)
        if histogram
        for x in [(value + 0.5) / width * step]
    ]
    scale = "".join(
        f'<text x="{value / width * step:.1f}" y="{_HEIGHT + 16}" text-anchor="{anchor}">{value}</text>'
        for value, anchor in ((0, "start"), (end // 2, "middle"), (end, "end"))
    )
    count = sum(histogram.values())
    return (
        f"<figure><figcaption>{title} <small>{count}, tallest bar {peak}</small></figcaption>\n"
        f'<svg viewBox="-4 -6 {_WIDTH + 8} {_HEIGHT + 26}" role="img" aria-label="{title}, lengths in tokens">\n'
        f'{"".join(bars)}{"".join(marks)}<path d="M0 {_HEIGHT}H{_WIDTH}"/>{scale}</svg></figure>\n'
    )


# ---- text and tokens -------------------------------------------------------------------------------------------------


def _example(example: Rendered) -> str:
    parts = [
        f"<section>\n<h3>First example <small>{as_html(example.source)}, {len(example.responses)} responses, prompt of "
        f"{example.prompt_tokens} tokens</small></h3>\n{_LEGEND}"
    ]
    for number, pieces in enumerate(example.responses, start=1):
        scored = num_tokens(piece for piece in pieces if piece.scored)
        parts.append(
            f"<details{' open' if number == 1 else ''}><summary>Response {number} of {len(example.responses)}: "
            f"{num_tokens(pieces)} tokens, {scored} of them scored</summary>\n"
            f'<div class="tokens" dir="ltr">{"".join(map(_piece, pieces, range(len(pieces))))}</div></details>\n'
        )
    return "".join([*parts, "</section>\n"])


_LEGEND = (
    '<p class="legend"><span class="t a">a</span><span class="t b"> token</span> each on its own ground, its id in its '
    'tooltip; <span class="t a s">scored</span> underlined; <span class="t b x">special</span> framed; '
    '<span class="t a s x e">closing</span> bold. <span class="t a">a<i> </i>b</span> space, '
    '<span class="t b"><u>\n</u></span> newline, <b class="c">U+202E</b> characters that cannot be seen. Several ids '
    "in one tooltip are parts of one character.</p>\n"
)


def _piece(piece: Piece, place: int) -> str:
    ids = f"id {piece.ids[0]}" if len(piece.ids) == 1 else f"ids {', '.join(map(str, piece.ids))}"
    kind = "" if piece.kind == TEXT else f", {piece.kind}"
    names = ["t", "ab"[place % 2]]
    names += ["s"] * piece.scored + ["x"] * (piece.kind != TEXT) + ["e"] * (piece.kind == CLOSING)
    said = f"{ids}{kind}{', scored' if piece.scored else ''}"
    return f'<span class="{" ".join(names)}" title="{said}">{as_html(piece.text, spaces=True)}</span>'


def _token(tokenizer: Any, token: int) -> str:
    return f"{tokenizer.convert_ids_to_tokens(token)} (id {token})"
