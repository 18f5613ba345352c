"""XML of the one narrow shape that reference integrity manifests have, and its canonical form (inclusive C14N 1.1).

Everything is refused that could give a document a second meaning: DTDs, entities and character references, processing
instructions, comments, CDATA, carriage returns, characters outside printable ASCII, `xml:` attributes, line breaks in
attributes, names that differ only by their prefix. What is left has one reading, and its canonical form is nearly the
document itself. `canonical` of a parsed canonical form gives the same bytes again, so values can be read from exactly
the bytes that were digested. ADR 11 says why there is no general XML library here.

Source: W3C, Canonical XML 1.1 (https://www.w3.org/TR/xml-c14n11/), without comments.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NoReturn

from adyton.errors import MalformedQuote

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MAX_ELEMENTS: Final = 4096
MAX_DEPTH: Final = 16
_MAX_ATTRIBUTES: Final = 64

_ALLOWED: Final = re.compile(rb"[\n\t\x20-\x7e]*")
_DECLARATION: Final = re.compile(r"""<\?xml version="1\.0"( encoding="(UTF-8|utf-8)")?( standalone="(yes|no)")? ?\?>""")
_NAME: Final = r"(?:[A-Za-z_][A-Za-z0-9_.-]*)(?::[A-Za-z_][A-Za-z0-9_.-]*)?"
_OPEN: Final = re.compile(rf"<({_NAME})((?:[ \n\t]+{_NAME}=\"[^\"<&>\n\t]*\")*)[ \n\t]*(/?)>")
_CLOSE: Final = re.compile(rf"</({_NAME})[ \n\t]*>")
_ATTRIBUTE: Final = re.compile(rf"({_NAME})=\"([^\"]*)\"")
_TEXT: Final = re.compile(r"[^<&>]+")
_BLANK: Final = re.compile(r"[ \n\t]*")


def _refuse(what: str, seen: object) -> NoReturn:
    raise MalformedQuote(
        f"the XML document is refused: {what}",
        check="shape of the XML document",
        expected="elements, attributes and text in printable ASCII, and nothing else",
        seen=str(seen)[:80],
    )


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute. `namespace` is empty for one without a prefix."""

    namespace: str
    local: str
    written: str
    """The name with its prefix."""
    value: str


@dataclass(slots=True)
class Element:
    """One element, with its children in their order."""

    namespace: str
    local: str
    written: str
    scope: Mapping[str, str]
    """Namespace of each prefix in scope. The default one has the prefix ""."""
    attributes: tuple[Attribute, ...]
    children: list[Element | str] = field(default_factory=list)

    @property
    def name(self) -> tuple[str, str]:
        """Namespace and local name."""
        return self.namespace, self.local

    def elements(self) -> list[Element]:
        """The child elements. Raises MalformedQuote where there is text other than white space between them."""
        found = []
        for child in self.children:
            if isinstance(child, Element):
                found.append(child)
            elif child.strip(" \n\t"):
                _refuse(f"text between the elements of {self.local}", child.strip())
        return found

    def text(self) -> str:
        """The text of an element without child elements. Raises MalformedQuote."""
        if any(isinstance(child, Element) for child in self.children):
            _refuse(f"elements in {self.local}, which holds only text", self.written)
        return "".join(str(child) for child in self.children)

    def values(self) -> dict[tuple[str, str], str]:
        """Values of the attributes by namespace and local name."""
        return {(item.namespace, item.local): item.value for item in self.attributes}

    def walk(self) -> Iterator[Element]:
        """This element and all below it, in document order."""
        waiting = [self]
        while waiting:
            element = waiting.pop()
            yield element
            waiting += [child for child in reversed(element.children) if isinstance(child, Element)]


def parse(raw: bytes, *, limit_bytes: int) -> Element:
    """Parse a document and return its root. Raises MalformedQuote. The time is linear in the length."""
    if len(raw) > limit_bytes:
        _refuse(f"at most {limit_bytes} bytes", f"{len(raw)} bytes")
    if _ALLOWED.fullmatch(raw) is None:
        _refuse("only printable ASCII, spaces, tabs and line feeds", "another byte")
    text = raw.decode("ascii")
    declaration = _DECLARATION.match(text)
    at = _skip(text, declaration.end() if declaration else 0)
    open_elements: list[Element] = []
    root: Element | None = None
    count = 0
    while at < len(text):
        if text.startswith("</", at):
            match = _CLOSE.match(text, at)
            if match is None or not open_elements or open_elements[-1].written != match[1]:
                _refuse("an end tag that closes nothing", text[at : at + 60])
            open_elements.pop()
            at = match.end() if open_elements else _skip(text, match.end())
        elif text[at] == "<":
            match = _OPEN.match(text, at)
            if match is None or (root is not None and not open_elements):
                _refuse("markup other than one tree of elements", text[at : at + 60])
            count += 1
            if count > MAX_ELEMENTS or len(open_elements) >= MAX_DEPTH:
                _refuse(f"at most {MAX_ELEMENTS} elements, {MAX_DEPTH} deep", "more")
            element = _element(match[1], match[2], open_elements[-1].scope if open_elements else {})
            if open_elements:
                open_elements[-1].children.append(element)
            else:
                root = element
            at = match.end()
            if not match[3]:
                open_elements.append(element)
            elif not open_elements:
                at = _skip(text, at)
        else:
            match = _TEXT.match(text, at)
            if match is None or not open_elements:
                _refuse("text where none can be, or a reference", text[at : at + 60])
            open_elements[-1].children.append(match[0])
            at = match.end()
    if root is None or open_elements:
        _refuse("no root element, or one that is not closed", "the end of the document")
    return root


def _skip(text: str, at: int) -> int:
    match = _BLANK.match(text, at)
    return match.end() if match else at


def _split(written: str) -> tuple[str, str]:
    prefix, _, local = written.rpartition(":")
    return prefix, local


def _element(written: str, tail: str, outer: Mapping[str, str]) -> Element:
    """An element from its start tag, with its names resolved."""
    pairs = _ATTRIBUTE.findall(tail)
    if len(pairs) > _MAX_ATTRIBUTES or len({name for name, _ in pairs}) != len(pairs):
        _refuse(f"at most {_MAX_ATTRIBUTES} attributes, each once", tail.strip())
    scope = dict(outer)
    plain = []
    for name, value in pairs:
        prefix, local = _split(name)
        if name == "xmlns" or prefix == "xmlns":
            bound = "" if name == "xmlns" else local
            if not value or bound in ("xml", "xmlns") or "www.w3.org/XML/1998" in value or "/2000/xmlns" in value:
                _refuse("a namespace that is none, or a reserved one", f"{name}={value}")
            scope[bound] = value
        else:
            plain.append((prefix, local, name, value))
    attributes = tuple(
        Attribute(_bound(scope, prefix) if prefix else "", local, name, value) for prefix, local, name, value in plain
    )
    if len({(item.namespace, item.local) for item in attributes}) != len(attributes):
        _refuse("two attributes of one name", tail.strip())
    prefix, local = _split(written)
    namespace = _bound(scope, prefix) if prefix else scope.get("", "")
    return Element(namespace, local, written, scope, attributes)


def _bound(scope: Mapping[str, str], prefix: str) -> str:
    if prefix not in scope:
        _refuse("a prefix without a namespace", prefix)
    return scope[prefix]


def canonical(element: Element, *, without: Element | None = None) -> bytes:
    """The canonical form of the subtree at `element`, without the subtree at `without`.

    An element that is not the document's root shows every namespace in its scope, as the specification says.
    """
    out: list[str] = []
    waiting: list[Element | str] = [element]
    shown: list[Mapping[str, str]] = [{}]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            out.append(item)
            if item.startswith("</"):
                shown.pop()
            continue
        new = sorted((prefix, uri) for prefix, uri in item.scope.items() if shown[-1].get(prefix) != uri)
        names = [f' xmlns:{prefix}="{uri}"' if prefix else f' xmlns="{uri}"' for prefix, uri in new]
        ordered = sorted(item.attributes, key=lambda each: (each.namespace, each.local))
        pairs = [f' {each.written}="{each.value}"' for each in ordered]
        out.append("".join(["<", item.written, *names, *pairs, ">"]))
        shown.append(item.scope)
        waiting.append(f"</{item.written}>")
        waiting += [child for child in reversed(item.children) if child is not without]
    return "".join(out).encode("ascii")
