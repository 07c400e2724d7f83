"""Reading a page back: its elements, as a browser that knows no mercy would build them."""

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

_VOID = {"meta", "link", "br", "hr", "img", "input"}


@dataclass
class Element:
    """An element, its attributes, what it holds, and its own text."""

    tag: str
    attributes: dict[str, str]
    children: list["Element"] = field(default_factory=list)
    own: list[str] = field(default_factory=list)

    def all(self, tag: str, style: str | None = None) -> list["Element"]:
        """Those below it with a tag and a class."""
        found = [self] if self.tag == tag and (style is None or style in self.classes) else []
        return found + [each for child in self.children for each in child.all(tag, style)]

    @property
    def classes(self) -> list[str]:
        return self.attributes.get("class", "").split()

    @property
    def text(self) -> str:
        """All text in it, in order of the elements."""
        return " ".join(" ".join([*self.own, *(child.text for child in self.children)]).split())


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = Element("", {})
        self._open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice"
        element = Element(tag, {name: value or "" for name, value in attrs})
        self._open[-1].children.append(element)
        if tag not in _VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        opened = self._open.pop()
        assert opened.tag == tag, f"</{tag}> closes <{opened.tag}>"

    def handle_data(self, data: str) -> None:
        self._open[-1].own.append(data)


def read(path: Path) -> Element:
    """A page's elements; fails where one is not closed in its place."""
    reader = _Reader()
    reader.feed(path.read_text(encoding="utf-8").replace("<wbr>", ""))  # breaks a line, not a word
    reader.close()
    assert len(reader._open) == 1, f"<{reader._open[-1].tag}> is never closed"
    return reader.root


def section(page: Element, name: str) -> Element:
    """The section of an id."""
    (found,) = (each for each in page.all("section") if each.attributes["id"] == name)
    return found


def cells(table: Element) -> list[list[str]]:
    """A table's rows of text, without its heading."""
    (body,) = table.all("tbody")
    return [[cell.text for cell in row.children] for row in body.children]
