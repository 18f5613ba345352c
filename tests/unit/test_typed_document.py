"""Members of a document by type: what has another type, size or form is refused by its path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from adyton.errors import StoreError
from adyton.typed_document import TypedDocument


def document(**members: Any) -> TypedDocument:
    """A document whose refusals name path, what was expected, and what was seen."""
    return TypedDocument(members, lambda path, expected, seen: StoreError(f"{path}: expected {expected}, seen {seen}"))


def test_members_come_as_their_types() -> None:
    """Every kind of member, and the mapping below."""
    found = document(a="x", b=7, c="00fF", d="AAA=", e="2027-01-31T12:00:00Z", f={"g": 1}, h=[{"i": 2}], j=["k"])
    assert found.text("a", 1) == "x"
    assert found.number("b", 7) == 7
    assert found.hexadecimal("c", 2) == b"\x00\xff"
    assert found.binary("d", 2, 2) == b"\0\0"
    assert found.moment("e").hour == 12
    assert found.inner("f").number("g", 1) == 1
    assert found.inner_list("h", 1)[0].number("i", 2) == 2
    assert found.texts("j", 1) == ["k"]
    assert "a" in found
    assert len(found) == 8


@pytest.mark.parametrize(
    "read",
    [
        pytest.param(lambda found: found.text("number"), id="number-for-text"),
        pytest.param(lambda found: found.text("text", 3), id="long-text"),
        pytest.param(lambda found: found.number("true", 1), id="true-for-number"),
        pytest.param(lambda found: found.number("number", 6), id="high-number"),
        pytest.param(lambda found: found.number("negative", 6), id="negative-number"),
        pytest.param(lambda found: found.number("float", 6), id="float-for-number"),
        pytest.param(lambda found: found.hexadecimal("text", 2), id="no-hex"),
        pytest.param(lambda found: found.hexadecimal("spaced", 2), id="hex-with-a-space"),
        pytest.param(lambda found: found.binary("text", 0, 2), id="base64-too-long"),
        pytest.param(lambda found: found.binary("other", 1, 1), id="base64-in-another-form"),
        pytest.param(lambda found: found.binary("number", 0, 9), id="number-for-base64"),
        pytest.param(lambda found: found.moment("text"), id="no-time"),
        pytest.param(lambda found: found.inner("text"), id="text-for-object"),
        pytest.param(lambda found: found.inner_list("mixed", 9), id="text-in-a-list-of-objects"),
        pytest.param(lambda found: found.texts("mixed", 9), id="object-in-a-list-of-texts"),
        pytest.param(lambda found: found.texts("long", 2), id="long-list"),
        pytest.param(lambda found: found.text("missing"), id="missing"),
        pytest.param(lambda found: found.only({"text"}), id="unknown-members"),
        pytest.param(lambda found: found.only({*found, "missing"}), id="missing-member"),
    ],
)
def test_member_of_another_type_size_or_form_is_refused(read: Callable[[TypedDocument], object]) -> None:
    """The format's own kind of error is raised, and no value is shown."""
    found = document(
        text="secret!!",
        number=7,
        negative=-1,
        true=True,
        float=1.0,
        spaced="0 0f",
        other="AB==",
        mixed=[{}, "secret!!"],
        long=["", "", ""],
    )
    with pytest.raises(StoreError, match="expected") as caught:
        read(found)
    assert "secret!!" not in str(caught.value)


def test_refusal_names_the_whole_path() -> None:
    """Objects in lists in objects: where the fault is can be found."""
    found = document(levels=[{"tcb": {"svn": 1}}, {"tcb": {"svn": "one"}}])
    with pytest.raises(StoreError, match=r"levels\[1\]\.tcb\.svn: expected a whole number from 0 to 9, seen str"):
        found.inner_list("levels", 2)[1].inner("tcb").number("svn", 9)
    with pytest.raises(StoreError, match=r"levels\[0\]\.id: expected a text, seen nothing"):
        found.inner_list("levels", 2)[0].text("id")


def test_only_takes_optional_members_and_no_others() -> None:
    """A member that a reader would overlook is refused."""
    document(a=1).only({"a"}, {"b"})
    document(a=1, b=2).only({"a"}, {"b"})
    with pytest.raises(StoreError, match="expected a, seen a, c"):
        document(a=1, c=3).only({"a"}, {"b"})
