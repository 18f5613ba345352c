"""Manifest text to loose TOML tables and back, deterministically, and fast for tens of thousands of trusted files.

A final manifest ends in a block of entries of one exact shape::

    [[sgx.trusted_files]]
    uri = "file:/usr/lib/python3.11/abc.py"
    sha256 = "…64 hex digits…"

An empty line stands between two entries. Earlier versions of Adyton wrote one after the last entry, too: both are read.

tomllib reads 6 MB/s of such a block, so it is read here by one regular expression, about forty times as fast.
Everything else goes through `adyton.untrusted`, which bounds the time that a text can cost.
The short cut changes no meaning. It is taken only for the text's last run of entries that match the shape exactly, and
only if tomllib accepts everything before that run followed by the run's first entry, with that entry as the last
trusted file. A run's URIs hold no quote, backslash or control character, so a run cannot end a string that began before
it. Hence that first entry is an entry, and TOML gives every further one the same meaning. Whatever does not fit is read
by tomllib whole. tests/properties holds the two equal.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from adyton.errors import MalformedManifest
from adyton.untrusted import parse_toml

MAX_TEXT_CHARS: Final = 256 << 20

_HEAD: Final = '[[sgx.trusted_files]]\nuri = "'
_MIDDLE: Final = '"\nsha256 = "'
_TAIL: Final = '"\n'
_PLAIN: Final = r"[^\x00-\x1f\x7f\"'\\]*"
_ENTRY: Final = re.compile(
    re.escape(_HEAD) + f"(file:{_PLAIN})" + re.escape(_MIDDLE) + "([0-9a-f]{64})" + re.escape(_TAIL) + r"(?:\n|\Z)"
)
_PLAIN_URI: Final = re.compile(f"file:{_PLAIN}")
_STAND_IN: Final = "file:stand-in"
_INLINE_CHARS: Final = 6
"""tomli_w writes a list of tables in one piece where every table fits into a line: with URIs of so many characters."""


def parse_document(text: str) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Parse TOML into (document, block): `block` holds the (uri, sha256) pairs that follow the document's own."""
    if len(text) > MAX_TEXT_CHARS:
        raise MalformedManifest(
            "the manifest is too large",
            check="size of the manifest",
            expected=f"at most {MAX_TEXT_CHARS} characters",
            seen=len(text),
        )
    return _parse_fast(text) or (parse_toml(text, what="manifest"), [])


def _parse_fast(text: str) -> tuple[dict[str, Any], list[tuple[str, str]]] | None:
    start = 0 if text.startswith(_HEAD) else text.find("\n" + _HEAD) + 1
    if start == 0 and not text.startswith(_HEAD):
        return None
    run: list[re.Match[str]] = []
    for match in _ENTRY.finditer(text, start):
        if run and run[-1].end() != match.start():
            run = []
        run.append(match)
    if not run or run[-1].end() != len(text) or (run[0].start() and text[run[0].start() - 1] != "\n"):
        return None
    try:
        document = parse_toml(text[: run[0].end()], what="manifest")
        last = document["sgx"]["trusted_files"][-1]
    except (MalformedManifest, LookupError, TypeError):
        return None
    if last != {"uri": run[0][1], "sha256": run[0][2]}:
        return None
    return document, [(match[1], match[2]) for match in run[1:]]


def write_document(document: Mapping[str, Any], trusted: Sequence[tuple[str, str]]) -> str:
    """The one text of a document (without `sgx.trusted_files`) followed by its trusted files as (uri, sha256).

    Keys keep their order. The same input gives the same text. It is the text that tomli_w writes for what the text
    means, byte for byte: Gramine's signer writes a manifest anew with tomli_w, and measures what it wrote.
    """
    import tomli_w

    body = {name: value for name, value in document.items() if name != "sgx"}
    body["sgx"] = {name: value for name, value in document.get("sgx", {}).items() if name != "trusted_files"}
    if all(len(uri) <= _INLINE_CHARS for uri, _ in trusted):
        listed = [{"uri": uri, "sha256": digest} for uri, digest in trusted]
        body["sgx"] = {"trusted_files": listed, **body["sgx"]}
        return tomli_w.dumps(body)
    body["sgx"]["trusted_files"] = [{"uri": _STAND_IN, "sha256": "0" * 64}]
    head = tomli_w.dumps(body).removesuffix(f"{_HEAD}{_STAND_IN}{_MIDDLE}{'0' * 64}{_TAIL}")
    plain = _PLAIN_URI.fullmatch
    parts = [
        f"{_HEAD}{uri}{_MIDDLE}{digest}{_TAIL}"
        if plain(uri)
        else "[[sgx.trusted_files]]\n" + tomli_w.dumps({"uri": uri, "sha256": digest})
        for uri, digest in trusted
    ]
    return head + "\n".join(parts)
