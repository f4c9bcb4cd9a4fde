"""Reads a page as strictly as our rules are: nothing inline, a label for each field, all addresses under the prefix."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "link", "input", "br", "img", "hr"}
HIDDEN_TYPES = {"hidden"}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    children: list[Element] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    parent: Element | None = None

    def all(self, tag: str | None = None, **attributes: str) -> list[Element]:
        found: list[Element] = []
        for child in self.children:
            wanted = {name.replace("_", "-"): value for name, value in attributes.items()}
            if tag in (None, child.tag) and all(child.attributes.get(name) == value for name, value in wanted.items()):
                found.append(child)
            found += child.all(tag, **attributes)
        return found

    @property
    def text(self) -> str:
        return " ".join("".join(self._texts()).split())

    def _texts(self) -> list[str]:
        return self.texts

    def inside(self, tag: str) -> bool:
        return self.parent is not None and (self.parent.tag == tag or self.parent.inside(tag))


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = self.at = Element("", {})

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, attrs)
        element = Element(tag, {name: value or "" for name, value in attrs}, parent=self.at)
        self.at.children.append(element)
        if tag not in VOID:
            self.at = element

    def handle_endtag(self, tag: str) -> None:
        assert self.at.tag == tag, f"</{tag}> closes <{self.at.tag}>"
        assert self.at.parent is not None
        self.at = self.at.parent

    def handle_data(self, data: str) -> None:
        place: Element | None = self.at
        while place is not None:
            place.texts.append(data)
            place = place.parent


def read(html: str, prefix: str = "") -> Element:
    """Parse a page or a region, and check what holds for all of them."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    root = reader.root
    assert reader.at is root, f"<{reader.at.tag}> is not closed"
    everything = root.all()
    for each in everything:
        assert each.tag != "style"
        assert "style" not in each.attributes
        assert not [name for name in each.attributes if name.startswith("on")], each.attributes
        if each.tag == "script":
            assert each.attributes["src"]
            assert not each.text
        for name in ("href", "src", "action"):
            address = each.attributes.get(name)
            if address and not address.startswith("#"):
                assert address.startswith(f"{prefix}/"), (each.tag, address)
                assert not address.startswith("//")
        if each.tag in {"input", "select", "textarea", "meter"} and each.attributes.get("type") not in HIDDEN_TYPES:
            assert each.inside("label") or each.attributes.get("aria-label"), each.attributes
        if each.tag in {"button", "a"}:
            assert each.text or each.attributes.get("aria-label"), each.attributes
        keys = Counter(child.attributes["data-key"] for child in each.children if "data-key" in child.attributes)
        assert not [key for key, count in keys.items() if count > 1], "the same key twice among siblings"
    ids = Counter(each.attributes["id"] for each in everything if "id" in each.attributes)
    assert not [name for name, count in ids.items() if count > 1]
    return root
