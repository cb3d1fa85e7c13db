"""What all HTML pages are made with: escaped text, tables, and a file that is written whole or not at all.

What comes from data, models and runs is hostile: it goes through as_html, which leaves no character that a browser
would hide, or would let rearrange what is around it.
"""

import base64
import hashlib
import html
import os
import tempfile
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from mrpo_ds.errors import ConfigError

_BEGIN = "<!doctype html>"
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"}  # Unicode categories that cannot be seen, or that rearrange


def is_hidden(character: str) -> bool:
    """Whether a character other than the space and the newline cannot be seen, or changes how others are shown."""
    return character not in " \n" and unicodedata.category(character) in _HIDDEN


def as_html(text: str, spaces: bool = False, lines: bool = False) -> str:
    """Text as HTML: hidden characters as <b class="c">U+202E</b>; on demand, spaces and newlines are marked.

    Args:
        text: whatever it may hold.
        spaces: mark spaces and newlines, for the style sheet to show.
        lines: leave newlines as they are, for an element that keeps them.
    """
    return "".join("\n" if lines and one == "\n" else _character(one, spaces) for one in text)


def plain(text: str) -> str:
    """Text for where no element can mark hidden characters: they are spelt out, as in U+202E."""
    return "".join(f"U+{ord(one):04X}" if one == "\n" or is_hidden(one) else one for one in text)


def attribute(text: str) -> str:
    """Text for a quoted attribute, or for the title of a page, where no element may stand."""
    return html.escape(plain(text))


def table(head: Sequence[str], body: Iterable[Sequence[str]], numbers: set[int]) -> str:
    """A table of cells that are HTML already; those in the columns of numbers are set to the right."""

    def row(cells: Sequence[str], tag: str) -> str:
        return "".join(
            f'<{tag} class="n">{cell}</{tag}>' if index in numbers else f"<{tag}>{cell}</{tag}>"
            for index, cell in enumerate(cells)
        )

    lines = "".join(f"<tr>{row(cells, 'td')}</tr>\n" for cells in body)
    return f'<div class="wide"><table>\n<tr>{row(head, "th")}</tr>\n{lines}</table></div>\n'


def fact_line(pairs: Iterable[tuple[str, str]]) -> str:
    """A line of names (HTML already) and values (any text)."""
    shown = "".join(f"<span>{name} <b>{as_html(value)}</b></span>\n" for name, value in pairs)
    return f'<p class="facts">{shown}</p>\n'


def opening(title: str, style: str, script: str = "") -> str:
    """The page up to its main part. Nothing from elsewhere may be loaded, and no script but this one may run.

    Args:
        title: any text.
        style: CSS.
        script: the JavaScript that stands at the end of the page.
    """
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
        policy += f"; script-src 'sha256-{digest}'"
    return (
        f'{_BEGIN}\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{attribute(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<style>{style}</style>\n</head>\n<body>\n<main>\n"
    )


def check_page_path(path: Path, option: str = "--html") -> None:
    """Raise ConfigError when no page can be written there, or what is there is not one to be replaced.

    option: what the user has given it with, for messages.
    """
    try:
        target = path.resolve()
        if not target.parent.is_dir():
            raise ConfigError(
                f"{option} is {str(path)!r}, but there is no folder {str(target.parent)!r}; make it, or choose another."
            )
        if target.exists() and not _is_page(target):
            raise ConfigError(
                f"{option} is {str(path)!r}, which is there and is no HTML page, so it is not replaced; choose another "
                "name, or remove it."
            )
        # Permissions do not say everything (a read-only mount, a full quota), so try it and clean up.
        handle, name = tempfile.mkstemp(prefix=".mrpo-ds-", dir=target.parent)
        os.close(handle)
        os.unlink(name)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise ConfigError(_cannot(path, error, option)) from error


def write_parts(parts: Iterable[str], path: Path, option: str = "--html") -> None:
    """Write a page, whole or not at all. Raises ConfigError when that cannot be done."""
    target = path.resolve()
    beside = target.with_name(f".mrpo-ds-{os.getpid()}.partial")
    try:
        try:
            with open(beside, "x", encoding="utf-8") as file:
                file.writelines(parts)
            os.replace(beside, target)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(_cannot(path, error, option)) from error


def _is_page(target: Path) -> bool:
    """Whether a file is empty or begins as an HTML page does; devices, pipes and folders are none."""
    if not target.is_file():
        return False
    with open(target, "rb") as file:
        start = file.read(len(_BEGIN)).decode("ascii", "replace").lower()
    return start in ("", _BEGIN)


def _cannot(path: Path, error: Exception, option: str) -> str:
    why = error.strerror if isinstance(error, OSError) else error
    return f"{option} is {str(path)!r}, which cannot be written ({why}); choose another place."


def _character(one: str, spaces: bool) -> str:
    if spaces and one == " ":
        return "<i> </i>"
    if spaces and one == "\n":
        return "<u>\n</u>"
    if one == "\n" or is_hidden(one):
        return f'<b class="c">U+{ord(one):04X}</b>'
    return html.escape(one)
