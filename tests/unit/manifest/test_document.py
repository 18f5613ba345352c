"""Reading and writing of manifest text: the fast path means what tomllib means."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
import tomli_w

from adyton.errors import MalformedManifest
from adyton.manifest.document import parse_document, write_document

HASHES = [f"{number:064x}" for number in range(5)]


def entry(uri: str, digest: str) -> str:
    """One entry as `write_document` writes it."""
    return f'[[sgx.trusted_files]]\nuri = "{uri}"\nsha256 = "{digest}"\n\n'


def whole(text: str) -> dict[str, Any]:
    """The document of a text with the block put where it belongs."""
    document, block = parse_document(text)
    if block:
        document["sgx"]["trusted_files"] += [{"uri": uri, "sha256": digest} for uri, digest in block]
    return document


BODY = 'libos.entrypoint = "/app"\n[sgx]\ndebug = false\n\n'

ACCEPTED = {
    "entries only": entry("file:a", HASHES[0]) + entry("file:b", HASHES[1]),
    "body and entries": BODY + entry("file:a", HASHES[0]) + entry("file:b", HASHES[1]),
    "body alone": BODY,
    "one entry": BODY + entry("file:a", HASHES[0]),
    "entry that is not plain, first": BODY + entry("file:\\u00e4", HASHES[0]) + entry("file:b", HASHES[1]),
    "entry that is not plain, between": BODY
    + entry("file:a", HASHES[0])
    + entry("file:it's", HASHES[1])
    + entry("file:b", HASHES[2])
    + entry("file:c", HASHES[3]),
    "entry that is not plain, last": BODY + entry("file:a", HASHES[0]) + entry("file:\\"[:-1] + "\\\\", HASHES[1]),
    "no last newline": (BODY + entry("file:a", HASHES[0]) + entry("file:b", HASHES[1])).rstrip("\n"),
    "a table after the entries": BODY + entry("file:a", HASHES[0]) + "[fs]\nmounts = []\n",
    "entries inside a string": f'x = """\n{entry("file:a", HASHES[0]).replace(chr(34), "")}"""\n',
    "entries inside a literal string": "x = '''\n" + entry("file:a", HASHES[0]) + entry("file:b", HASHES[1]) + "'''\n",
    "entries in a comment, then one": "# [[sgx.trusted_files]]\n" + entry("file:a", HASHES[0]),
    "an entry with a further key": BODY
    + entry("file:a", HASHES[0])[:-1]
    + "extra = 1\n\n"
    + entry("file:b", HASHES[1]),
    "entries after a multi-line string": 'y = """\n"""\n' + entry("file:a", HASHES[0]) + entry("file:b", HASHES[1]),
    "carriage returns": (BODY + entry("file:a", HASHES[0]) + entry("file:b", HASHES[1])).replace("\n", "\r\n"),
    "carriage returns in the body": BODY.replace("\n", "\r\n")
    + entry("file:a", HASHES[0])
    + entry("file:b", HASHES[1]),
}

REFUSED = {
    "entries inside an open string": 'x = """\n' + entry("file:a", HASHES[0]) + entry("file:b", HASHES[1]),
    "entries inside an open literal string": "x = '''\n" + entry("file:a", HASHES[0]) + entry("file:b", HASHES[1]),
    "entries inside an open list": "x = [\n" + entry("file:a", HASHES[0]) + entry("file:b", HASHES[1]),
    "sgx is an inline table": "sgx = {debug = false}\n" + entry("file:a", HASHES[0]) + entry("file:b", HASHES[1]),
    "trusted_files is a plain list": "[sgx]\ntrusted_files = []\n"
    + entry("file:a", HASHES[0])
    + entry("file:b", HASHES[1]),
    "trusted_files is a table": "[sgx.trusted_files]\n" + entry("file:a", HASHES[0]) + entry("file:b", HASHES[1]),
    "a key twice": "a = 1\na = 2\n" + entry("file:a", HASHES[0]),
    "a key twice in an entry": BODY + entry("file:a", HASHES[0])[:-1] + 'uri = "x"\n' + entry("file:b", HASHES[1]),
    "rubbish after the entries": BODY + entry("file:a", HASHES[0]) + "rubbish",
    "a control character": BODY + entry("file:\x01", HASHES[0]) + entry("file:b", HASHES[1]),
    "a bare carriage return": BODY + entry("file:a\r", HASHES[0]) + entry("file:b", HASHES[1]),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_document_of_any_shape_equals_tomllib(name: str) -> None:
    """Whatever path is taken, the document is tomllib's."""
    assert whole(ACCEPTED[name]) == tomllib.loads(ACCEPTED[name])


@pytest.mark.parametrize("name", REFUSED)
def test_document_that_tomllib_refuses_is_refused(name: str) -> None:
    """The fast path accepts nothing that tomllib refuses."""
    with pytest.raises(tomllib.TOMLDecodeError):
        tomllib.loads(REFUSED[name])
    with pytest.raises(MalformedManifest, match="not TOML"):
        parse_document(REFUSED[name])


def test_document_with_many_entries_takes_the_fast_path() -> None:
    """A final manifest's entries beyond the first never reach tomllib."""
    text = BODY + "".join(entry(f"file:{name}", HASHES[0]) for name in "abcdef")
    for written in (text, text.removesuffix("\n")):  # as earlier versions of Adyton ended it, and as this one does
        _, block = parse_document(written)
        assert [uri for uri, _ in block] == [f"file:{name}" for name in "bcdef"]


def test_document_error_shows_the_line() -> None:
    """A syntax error names its line and shows it."""
    with pytest.raises(MalformedManifest) as refused:
        parse_document('a = 1\nb = "x\n')
    assert refused.value.seen == "'b = \"x'"


def test_written_document_equals_tomli_w() -> None:
    """The text is what tomli_w writes for the same tables, with sgx last."""
    trusted = [("file:a", HASHES[0]), ("file:it's ä", HASHES[1]), ('file:"q"\\', HASHES[2]), ("file:z", HASHES[3])]
    body: dict[str, Any] = {"fs": {"mounts": []}, "sgx": {"debug": True, "cpu_features": {"avx": "required"}}}
    text = write_document(body, trusted)
    tables = {"fs": body["fs"], "sgx": {**body["sgx"], "trusted_files": [{"uri": u, "sha256": h} for u, h in trusted]}}
    assert text == tomli_w.dumps(tables)
    assert whole(text) == tables


@pytest.mark.parametrize("sgx", [{}, {"debug": True}, {"cpu_features": {"avx": "required"}}])
@pytest.mark.parametrize("uris", [(), ("file:a",), ("file:a", "file:b"), ("file:a", "file:long"), ("file:it's",)])
def test_written_document_stays_itself_when_gramines_signer_writes_it_anew(
    sgx: dict[str, Any], uris: tuple[str, ...]
) -> None:
    """Read and written by tomli_w, every byte stays: Gramine's signer does so, and measures the result."""
    text = write_document({"fs": {"mounts": []}, "sgx": sgx}, [(uri, HASHES[0]) for uri in uris])
    assert tomli_w.dumps(tomllib.loads(text)) == text


def test_written_document_without_trusted_files_has_an_empty_list() -> None:
    """No trusted files are written as an empty list."""
    assert tomllib.loads(write_document({"fs": {"mounts": []}}, []))["sgx"] == {"trusted_files": []}
