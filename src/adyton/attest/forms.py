"""Evidence as other tools write it: hex, base64, JSON envelopes, device answers. Pure: bytes go in, evidence comes out.

What is read here is only unpacked. `parse_evidence` parses what is inside. What is known and cannot be read is refused
by its name. Every length is limited before anything is decoded, and one text holds one piece of evidence.

Sources: Trustee, attestation-service and attester (TDX, SGX bodies); dstack, guest agent's GetQuote and the SCALE form
of its attestations; AWS, aws-nitro-enclaves-nsm-api (the NSM's answer); Linux, include/uapi/linux/sev-guest.h (the
answer of /dev/sev-guest).
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final, NamedTuple, NoReturn

from adyton.attest.layout import MAX_QUOTE_BYTES
from adyton.attest.nitro import nsm
from adyton.attest.nitro.document import START
from adyton.attest.snp import REPORT_BYTES
from adyton.errors import MalformedQuote
from adyton.untrusted import parse_json_object

MAX_FORM_BYTES: Final = 1 << 20
"""The most bytes of an envelope. An event log beside a quote is most of it."""
MAX_TEXT_CHARACTERS: Final = 4 * MAX_QUOTE_BYTES
"""The most characters of evidence in hex or base64, white space included."""
_DEVICE_HEAD_BYTES: Final = 32
_MAX_DEVICE_BYTES: Final = 4096
_DSTACK_NITRO: Final = b"\x00\x02"
_HEX: Final = re.compile(rb"(?:0[xX])?([0-9a-fA-F]+)")
_BASE64: Final = re.compile(rb"[A-Za-z0-9+/_-]+={0,2}")
_TOKEN: Final = re.compile(rb"eyJ[A-Za-z0-9_-]*\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")
_SPACE: Final = b" \t\r\n"
_PRINTABLE: Final = re.compile(rb"[\t\r\n -~]+")


class Form(NamedTuple):
    """Evidence that was unpacked."""

    evidence: bytes
    """As `parse_evidence` takes it."""
    name: str
    """The form in which it came, for people."""


def _malformed(what: str) -> MalformedQuote:
    return MalformedQuote(
        f"this is no evidence that can be read: {what}",
        check="form of the evidence",
        expected="a quote, a report or a document: binary, hex, base64, or in a JSON envelope of Trustee or dstack",
        seen=what,
        remedy="give the evidence itself, as the machine made it",
    )


def _refuse(what: str) -> NoReturn:
    raise _malformed(what)


def read_form(raw: bytes) -> Form:
    """The evidence in these bytes. Raises MalformedQuote, which names a form that is known and cannot be read.

    Binary evidence comes back as it is, also where nothing is known of it: its parser refuses it.
    """
    if len(raw) > MAX_FORM_BYTES:
        _refuse(f"{len(raw)} bytes, more than {MAX_FORM_BYTES}")
    text = raw.strip(_SPACE)
    if text.startswith(b"{"):
        return _json(text)
    if _is_text(text):
        return _text(text, "")
    return _binary(raw)


def _is_text(text: bytes) -> bool:
    return _PRINTABLE.fullmatch(text) is not None


def _text(text: bytes, inside: str) -> Form:
    """Hex or base64 (also in its URL-safe form), with white space between its lines. `inside` names an envelope."""
    if len(text) > MAX_TEXT_CHARACTERS:
        _refuse(f"{len(text)} characters of text, more than {MAX_TEXT_CHARACTERS}")
    if text.startswith(b"-----BEGIN"):
        return Form(text, "PEM")
    if _TOKEN.fullmatch(text) is not None:
        _refuse("a token (JWT) of an attestation service: it says what that service believes, and holds no evidence")
    packed = b"".join(text.split())
    found = _HEX.fullmatch(packed)
    if found is not None:
        if len(found[1]) % 2:
            _refuse(f"hex with an odd number of digits ({len(found[1])}): it was cut")
        return _unpacked(bytes.fromhex(found[1].decode("ascii")), "hex", inside)
    if _BASE64.fullmatch(packed) is None:
        _refuse("a text that is neither hex nor base64")
    try:
        decoded = base64.b64decode(packed.translate(_STANDARD).rstrip(b"=") + b"=" * (-len(packed.rstrip(b"=")) % 4))
    except (binascii.Error, ValueError):
        _refuse("a text that is neither hex nor base64")
    return _unpacked(decoded, "base64", inside)


_STANDARD: Final = bytes.maketrans(b"-_", b"+/")


def _unpacked(decoded: bytes, encoding: str, inside: str) -> Form:
    form = _binary(decoded)
    parts = (encoding, *(() if form.name == "binary" else (form.name,)))
    return Form(form.evidence, f"{' of '.join(parts)}{inside and ' in '}{inside}")


# --- binary


def _binary(raw: bytes) -> Form:
    if raw.startswith(nsm.START):
        return Form(nsm.parse_answer(raw), "the answer of the NSM device")
    if raw.startswith(_DSTACK_NITRO):
        document = _dstack_document(raw)
        if document is not None:
            return Form(document, "an attestation of dstack")
    report = _device_report(raw)
    if report is not None:
        return Form(report, "the answer of the SEV guest device")
    return Form(raw, "binary")


def _dstack_document(raw: bytes) -> bytes | None:
    """The Nitro document in a dstack attestation, or None where this is none.

    The form is SCALE: version 0, variant 2 (Nitro), the document with its length. Behind it stand dstack's own events,
    report data and configuration, of which nothing is signed: they are left out. The document has its own report data.
    """
    size, at = _compact(raw, 2)
    if size is None or raw[at : at + len(START)] != START:
        return None
    if at + size > len(raw):
        _refuse("a dstack attestation whose document is cut")
    return raw[at : at + size]


def _compact(raw: bytes, at: int) -> tuple[int | None, int]:
    """A compact SCALE length of one, two or four bytes, and where it ends."""
    width = {0: 1, 1: 2, 2: 4}.get(raw[at] & 3 if at < len(raw) else 3)
    if width is None or at + width > len(raw):
        return None, at
    return int.from_bytes(raw[at : at + width], "little") >> 2, at + width


def _device_report(raw: bytes) -> bytes | None:
    """The report in an answer of /dev/sev-guest, which has a head of 32 bytes: status 0, size 1184, zeros."""
    end = _DEVICE_HEAD_BYTES + REPORT_BYTES
    if not end <= len(raw) <= _MAX_DEVICE_BYTES:
        return None
    head = bytes(4) + REPORT_BYTES.to_bytes(4, "little") + bytes(24)
    if raw[:_DEVICE_HEAD_BYTES] != head or any(raw[end:]):
        return None
    return raw[_DEVICE_HEAD_BYTES:end]


# --- JSON


def _json(text: bytes) -> Form:
    document = parse_json_object(text, what="evidence", refuse=MalformedQuote, limit_bytes=MAX_FORM_BYTES)
    names = set(document)
    if "attestation_report" in names:
        _refuse(
            "SEV-SNP evidence of Trustee, which holds the fields of the report and not its bytes:"
            " give the report's 1184 bytes"
        )
    if {"tdQuoteBody", "td_quote_body"} & names:
        _refuse(
            "a quote of go-tdx-guest as a JSON message, which holds the fields of the quote and not its bytes:"
            " write it with `attest -outform bin`"
        )
    if "quote" not in names or {"hcl_report", "report", "tpm_quote", "format"} & names:
        return Form(text, "JSON")
    quote = document["quote"]
    if not isinstance(quote, str):
        _refuse("a JSON envelope whose quote is no text")
    maker = "dstack" if "event_log" in names else "Trustee"
    return _text(quote.strip().encode("utf-8", "replace"), f"an envelope of {maker}")
