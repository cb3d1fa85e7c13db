"""Reading the pages that we write as a browser does."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "rect", "line", "path", "br", "input"}


@dataclass
class Token:
    """A span of the page's examples."""

    title: str
    classes: set[str]
    text: str = ""


@dataclass
class Page(HTMLParser):
    """What stands on a page."""

    tags: list[str] = field(default_factory=list)
    attributes: list[tuple[str, str | None]] = field(default_factory=list)
    examples: list[list[Token]] = field(default_factory=list)
    """The tokens of each response, in order."""
    cells: list[list[str]] = field(default_factory=list)
    """Of the rows of all tables."""
    titles: list[str] = field(default_factory=list)
    """Of the parts of all histograms."""
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._open: list[tuple[str, set[str]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        classes = set((dict(attrs).get("class") or "").split())
        if "tokens" in classes:
            self.examples.append([])
        if "t" in classes and self._inside("tokens"):
            self.examples[-1].append(Token(dict(attrs).get("title") or "", classes))
        if tag == "title":
            self.titles.append("")
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")
        if tag not in VOID:
            self._open.append((tag, classes))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop()[0] == tag, f"{tag} is not what is open"

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1][0] in ("style", "script"):
            return
        self.text += data
        if self._open and self._open[-1][0] == "title":
            self.titles[-1] += data
        if self._inside("c") and self._inside("tokens"):
            data = chr(int(data.removeprefix("U+"), 16))
        if self._inside("tokens") and self._inside("t"):
            self.examples[-1][-1].text += data
        if any(tag in ("td", "th") for tag, _ in self._open):
            self.cells[-1][-1] += data

    def _inside(self, name: str) -> bool:
        return any(name in classes for _, classes in self._open)


def read_page(text: str) -> Page:
    """Parse a page whose elements are all closed in order."""
    page = Page()
    page.feed(text)
    page.close()
    assert not page._open
    return page
