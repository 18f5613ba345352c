"""The narrow XML: its canonical form, and everything that is refused."""

from __future__ import annotations

import time

import pytest

from adyton.attest.nvidia import canonical_xml
from adyton.errors import MalformedQuote

LIMIT = 1 << 20


def _canonical(text: str) -> str:
    return canonical_xml.canonical(canonical_xml.parse(text.encode(), limit_bytes=LIMIT)).decode()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<a/>", "<a></a>"),
        ('<?xml version="1.0" encoding="UTF-8"?>\n<a/>\n', "<a></a>"),
        ('<a  y="2"\n x="1" ></a >', '<a x="1" y="2"></a>'),
        ('<a xmlns:p="urn:2" xmlns="urn:1" p:x="1" x="2"/>', '<a xmlns="urn:1" xmlns:p="urn:2" x="2" p:x="1"></a>'),
        ('<a xmlns="u"><b xmlns="u" xmlns:p="v"/></a>', '<a xmlns="u"><b xmlns:p="v"></b></a>'),
        ('<a xmlns:p="u"><b xmlns:p="v"><c xmlns:p="u"/></b></a>', None),
        ('<a xmlns:p="urn:z" xmlns:q="urn:b" p:x="1" q:x="2" />', None),
        ("<a>\n\t text <b/> more</a>", "<a>\n\t text <b></b> more</a>"),
    ],
)
def test_canonical_form(text: str, expected: str | None) -> None:
    """As the specification's rules say; the canonical form of a canonical form is itself."""
    found = _canonical(text)
    if expected is not None:
        assert found == expected
    assert _canonical(found) == found


def test_attributes_are_sorted_by_namespace_and_not_by_prefix() -> None:
    """`q` is of the namespace that sorts first."""
    assert _canonical('<a xmlns:p="urn:z" xmlns:q="urn:b" p:x="1" q:x="2"/>').index("q:x") < len(
        '<a xmlns:p="urn:z" xmlns:q="urn:b"'
    ) + len(' q:x="2"')


def test_part_of_a_document_shows_every_namespace_in_its_scope() -> None:
    """As inclusive canonical XML does, in contrast to exclusive."""
    root = canonical_xml.parse(b'<a xmlns="u" xmlns:p="v" xmlns:q="w"><p:b q:x="1"/></a>', limit_bytes=LIMIT)
    (child,) = root.elements()
    assert canonical_xml.canonical(child) == b'<p:b xmlns="u" xmlns:p="v" xmlns:q="w" q:x="1"></p:b>'


def test_part_is_left_out_with_all_below_it() -> None:
    """What stood before and behind it stays."""
    root = canonical_xml.parse(b"<a>1<b><c/></b>2</a>", limit_bytes=LIMIT)
    assert canonical_xml.canonical(root, without=root.children[1]) == b"<a>12</a>"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "text",
        "<a>",
        "</a>",
        "<a></b>",
        "<a/><b/>",
        "<a/>text",
        '<!DOCTYPE a [<!ENTITY x "y">]><a/>',
        "<a>&lt;</a>",
        "<a>&#65;</a>",
        '<a x="&amp;"/>',
        "<a><!-- comment --></a>",
        "<a><![CDATA[x]]></a>",
        "<a><?target?></a>",
        '<?xml version="1.1"?><a/>',
        '<?xml version="1.0" encoding="UTF-16"?><a/>',
        "<a>\r\n</a>",
        "<a>\u00e9</a>",
        "<a>\x00</a>",
        '<a x="1\n2"/>',
        '<a x="1\t2"/>',
        '<a x="<"/>',
        '<a x="a>b"/>',
        "<a>a>b</a>",
        "<a x='1'/>",
        "<a x=1/>",
        "<a x/>",
        '<a x="1"y="2"/>',
        '<a x="1" x="2"/>',
        '<a xmlns:p="u" xmlns:q="u" p:x="1" q:x="2"/>',
        "<p:a/>",
        '<a p:x="1"/>',
        '<a xml:id="1"/>',
        '<a xmlns:xml="u"/>',
        '<a xmlns:p="http://www.w3.org/XML/1998/namespace"/>',
        '<a xmlns="u"><b xmlns=""/></a>',
        '<a xmlns:p="u"><b xmlns:p=""/></a>',
        "<a" * 3 + ">",
        "<a>" * 17 + "</a>" * 17,
        "<r>" + "<a/>" * 4096 + "</r>",
        "<a " + " ".join(f'x{n}="1"' for n in range(65)) + "/>",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    """Whatever could have a second meaning."""
    with pytest.raises(MalformedQuote, match="XML document is refused"):
        canonical_xml.parse(text.encode(), limit_bytes=LIMIT)


def test_long_documents_are_refused_before_they_are_read() -> None:
    """The limit counts bytes."""
    with pytest.raises(MalformedQuote, match="at most 10 bytes"):
        canonical_xml.parse(b"<a></a>    ", limit_bytes=10)


@pytest.mark.parametrize(
    "text",
    [
        "<a" + " " * 900_000,
        "<a " + 'x="1" ' * 150_000,
        "<a>" + "b" * 900_000,
        "<" + "a" * 900_000,
        '<a x="' + "b" * 900_000,
        "<a>" + "<b>c</b>" * 4000,
        "<" * 900_000,
        "<a" + " x" * 400_000,
        "<a " + "x:" * 400_000,
    ],
)
def test_time_is_linear(text: str) -> None:
    """A megabyte of the worst kinds is refused in time that grows with its length."""
    begin = time.thread_time()
    with pytest.raises(MalformedQuote):
        canonical_xml.parse(text.encode(), limit_bytes=LIMIT)
    assert time.thread_time() - begin < 10  # what grows with the square takes minutes
