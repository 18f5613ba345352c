"""Properties of manifest text: reading equals tomllib on what is written, and on texts cut and spliced at random."""

from __future__ import annotations

import tomllib
from typing import Any

import tomli_w
from hypothesis import example, given, settings
from hypothesis import strategies as st

from adyton.errors import MalformedManifest
from adyton.manifest.document import parse_document, write_document

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
URIS = st.one_of(
    NAMES.map(lambda name: f"file:{name}"), st.sampled_from(["file:a", "file:b/c.py", "file:it's", 'file:"'])
)
DIGESTS = st.binary(min_size=32, max_size=32).map(bytes.hex)
ENTRIES = st.lists(st.tuples(URIS, DIGESTS), max_size=6)
PIECES = st.sampled_from(
    [
        '[[sgx.trusted_files]]\nuri = "file:a"\nsha256 = "' + "0" * 64 + '"\n\n',
        '[[sgx.trusted_files]]\nuri = "file:b"\nsha256 = "' + "1" * 64 + '"\n\n',
        "[[sgx.trusted_files]]\nuri = \"file:'''\"\nsha256 = \"" + "2" * 64 + '"\n\n',
        "[sgx]\n",
        "[fs]\nmounts = []\n",
        'x = """\n',
        '"""\n',
        "y = '''\n",
        "'''\n",
        "# comment\n",
        "z = [\n",
        "]\n",
        "\n",
        "\r\n",
        'uri = "file:c"\n',
        'sha256 = "' + "3" * 64 + '"\n',
        '"',
    ]
)


def read(text: str) -> dict[str, Any] | None:
    """The whole document, or None where it is refused."""
    try:
        document, block = parse_document(text)
    except MalformedManifest:
        return None
    if block:
        document["sgx"]["trusted_files"] += [{"uri": uri, "sha256": digest} for uri, digest in block]
    return document


def read_by_tomllib(text: str) -> dict[str, Any] | None:
    """What tomllib makes of it, or None where it refuses."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return None


@given(ENTRIES)
@example([("file:a'b", "0" * 64)])  # short enough for tomli_w to write a table of its own in one line
def test_written_document_reads_back(entries: list[tuple[str, str]]) -> None:
    """What is written is read back, entry for entry, whatever the file names hold."""
    text = write_document({"fs": {"mounts": []}}, entries)
    assert read(text) == read_by_tomllib(text)
    document = read(text)
    assert document is not None
    assert [(entry["uri"], entry["sha256"]) for entry in document["sgx"]["trusted_files"]] == entries
    assert tomli_w.dumps(document) == text


@settings(max_examples=400)
@given(st.lists(PIECES, max_size=12), st.integers(0, 3))
def test_spliced_document_reads_as_tomllib_reads_it(pieces: list[str], cut: int) -> None:
    """Texts made to confuse the fast path are read, or refused, as tomllib does."""
    text = "".join(pieces)
    text = text[: len(text) - cut]
    assert read(text) == read_by_tomllib(text)
