"""The messages of Amazon's Nitro Secure Module: a request for a document, and its answer. Pure.

Both are CBOR. An answer in a TPM's memory is followed by what the memory held before: bytes FF, or zeros.

Source: AWS, aws-nitro-enclaves-nsm-api, src/api/mod.rs; AWS, NitroTPM-Tools.
"""

from __future__ import annotations

from typing import Final, NoReturn

from adyton.attest import cbor
from adyton.attest.nitro.document import MAX_DOCUMENT_BYTES
from adyton.errors import MalformedQuote, UsageError

MAX_NONCE_BYTES: Final = 512
START: Final = b"\xa1\x6bAttestation\xa1\x68document"
"""The first bytes of an answer with a document."""
_NULL: Final = b"\xf6"
_ERROR_START: Final = b"\xa1\x65Error"
_MAX_ERROR_CHARACTERS: Final = 40


def _malformed(what: str) -> MalformedQuote:
    return MalformedQuote(
        f"the answer of the NSM does not parse: {what}",
        check="answer of the NSM",
        expected='{"Attestation": {"document": bytes}} in CBOR',
        seen=what,
        remedy="ask again; where that does not help, the machine's hypervisor offers no attestation",
    )


def _refuse(what: str) -> NoReturn:
    raise _malformed(what)


def build_request(nonce: bytes) -> bytes:
    """A request for a document over a nonce of 1 to 512 bytes. Raises UsageError for another length."""
    if not 1 <= len(nonce) <= MAX_NONCE_BYTES:
        raise UsageError(
            f"a nonce has 1 to {MAX_NONCE_BYTES} bytes, got {len(nonce)}",
            check="nonce of the document",
            expected=f"1 to {MAX_NONCE_BYTES} bytes",
            seen=len(nonce),
        )
    members = (("user_data", _NULL), ("nonce", cbor.string(cbor.BYTES, nonce)), ("public_key", _NULL))
    inner = cbor.head(cbor.MAP, len(members)) + b"".join(_text(name) + value for name, value in members)
    return cbor.head(cbor.MAP, 1) + _text("Attestation") + inner


def _text(text: str) -> bytes:
    return cbor.string(cbor.TEXT, text.encode("ascii"))


def parse_answer(raw: bytes, *, filled: bool = False) -> bytes:
    """The document in an answer. Raises MalformedQuote, which names the module's own error where it is one.

    `filled` allows bytes FF, or zeros, behind it: so an answer lies in a TPM's memory.
    """
    if raw.startswith(_ERROR_START):
        reader = cbor.Reader(raw[len(_ERROR_START) :], _malformed)
        _refuse(f"the error {reader.text('name of the error', _MAX_ERROR_CHARACTERS)!a}")
    if not raw.startswith(START):
        _refuse("something else")
    reader = cbor.Reader(raw[len(START) :], _malformed)
    document = reader.string(cbor.BYTES, "document", MAX_DOCUMENT_BYTES)
    rest = raw[len(START) + len(cbor.string(cbor.BYTES, document)) :]
    if rest and (not filled or (rest.strip(b"\xff") and rest.strip(b"\0"))):
        _refuse(f"{len(rest)} bytes behind the document that are no filling")
    return document
