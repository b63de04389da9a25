"""What stands on a page of `hpt-trl report`, taken apart by a parser of HTML that is not a browser's."""

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

_EMPTY = {"meta", "link", "br", "wbr", "img", "input", "hr"}


@dataclass
class Node:
    """An element with its text, and what lies in it."""

    tag: str
    attributes: dict[str, str | None]
    children: list["Node | str"] = field(default_factory=list)

    def all(self, tag: str, **wanted: str) -> list["Node"]:
        """Elements inside, in order; `class_` is one of several classes."""
        found = []
        for child in self.children:
            if isinstance(child, Node):
                if child.tag == tag and all(child.has(name, value) for name, value in wanted.items()):
                    found.append(child)
                found += child.all(tag, **wanted)
        return found

    def has(self, name: str, value: str) -> bool:
        given = self.attributes.get(name.rstrip("_").replace("_", "-")) or ""
        return value in given.split() if name == "class_" else given == value

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = Node("", {})
        self.open = [self.root]

    def handle_starttag(self, tag, attrs):
        node = Node(tag, dict(attrs))
        self.open[-1].children.append(node)
        if tag not in _EMPTY:
            self.open.append(node)

    def handle_startendtag(self, tag, attrs):
        self.open[-1].children.append(Node(tag, dict(attrs)))

    def handle_endtag(self, tag):
        # Every element that is opened is closed, and in order.
        assert self.open.pop().tag == tag

    def handle_data(self, data):
        self.open[-1].children.append(data)


def read_page(path: Path) -> Node:
    """Reads a page, whose elements must all be closed in order."""
    reader = _Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    assert reader.open == [reader.root]
    return reader.root
