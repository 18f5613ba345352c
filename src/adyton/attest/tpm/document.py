"""The form in which a TPM's quote travels: `{"format": "adyton-tpm-quote/1", …}`. Parse it, and write it.

::

    {"format": "adyton-tpm-quote/1",
     "ak_certificates": [base64 DER, the attestation key's first, the root last],
     "message": base64 TPMS_ATTEST, "signature": base64 TPMT_SIGNATURE,
     "pcrs": {"sha256": [24 times 64 hex digits]},
     "event_log": base64, may be absent}

Members are strict, and base64 is in its one form (RFC 4648, section 4, with padding). Nothing is verified here.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from adyton.attest.quote import refuse
from adyton.attest.tpm.event_log import MAX_LOG_BYTES
from adyton.attest.tpm.structures import (
    MAX_ATTEST_BYTES,
    MAX_SIGNATURE_BYTES,
    PCRS,
    Attest,
    Signature,
    parse_attest,
    parse_signature,
)
from adyton.errors import MalformedQuote
from adyton.untrusted import parse_json_object

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMAT: Final = "adyton-tpm-quote/1"
MAX_DOCUMENT_BYTES: Final = 512 << 10
MAX_CERTIFICATES: Final = 5
MAX_CERTIFICATE_BYTES: Final = 4096

_MEMBERS: Final = frozenset({"format", "ak_certificates", "message", "signature", "pcrs"})
_PCR: Final = re.compile(r"[0-9a-fA-F]{64}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class TPMQuote:
    """A TPM's quote over its PCRs, with the certificates of its attestation key (AK). Everything is unverified."""

    ak_certificates: tuple[bytes, ...]
    """DER: the AK's certificate first, the root last."""
    message: bytes
    """TPMS_ATTEST, as it was signed."""
    attest: Attest
    signature: Signature
    pcrs: tuple[bytes, ...]
    """24 values of the SHA-256 bank, 32 bytes each."""
    event_log: bytes | None = None
    """The firmware's event log, not parsed yet."""

    @property
    def report_data(self) -> bytes:
        """What the caller asked the TPM to sign along: its nonce, up to 66 bytes."""
        return self.attest.extra_data

    def with_event_log(self, raw: bytes | None) -> TPMQuote:
        """The same quote with this event log beside it."""
        return replace(self, event_log=raw)

    def to_bytes(self) -> bytes:
        """The document. `parse_quote_document` gives the quote back."""
        found: dict[str, object] = {
            "format": FORMAT,
            "ak_certificates": [_b64(raw) for raw in self.ak_certificates],
            "message": _b64(self.message),
            "signature": _b64(self.signature.to_bytes()),
            "pcrs": {"sha256": [value.hex() for value in self.pcrs]},
        }
        if self.event_log is not None:
            found["event_log"] = _b64(self.event_log)
        return json.dumps(found, separators=(",", ":")).encode()


def make_quote(
    *,
    ak_certificates: tuple[bytes, ...],
    message: bytes,
    signature: bytes,
    pcrs: tuple[bytes, ...],
    event_log: bytes | None = None,
) -> TPMQuote:
    """A quote from what a TPM gave: TPMS_ATTEST, TPMT_SIGNATURE and 24 PCR values. Raises MalformedQuote."""
    return TPMQuote(
        ak_certificates=ak_certificates,
        message=message,
        attest=parse_attest(message),
        signature=parse_signature(signature),
        pcrs=pcrs,
        event_log=event_log,
    )


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


def _unb64(value: object, limit: int, what: str) -> bytes:
    if not isinstance(value, str) or len(value) > 4 * ((limit + 2) // 3):
        seen = f"{len(value)} characters" if isinstance(value, str) else type(value).__name__
        refuse(f"{what} of the TPM quote is wrong", check=what, expected=f"base64 of {limit} bytes at most", seen=seen)
    try:
        raw = base64.b64decode(value.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error):
        raw = b""
    if not raw or _b64(raw) != value or len(raw) > limit:
        refuse(f"{what} of the TPM quote is no base64", check=what, expected="base64 in its one form", seen=value[:40])
    return raw


def parse_quote_document(raw: bytes) -> TPMQuote:
    """Parse the document of a TPM quote. Raises MalformedQuote."""
    return quote_from_document(
        parse_json_object(raw, what="TPM quote", refuse=MalformedQuote, limit_bytes=MAX_DOCUMENT_BYTES)
    )


def quote_from_document(document: Mapping[str, object]) -> TPMQuote:
    """Take the parsed JSON of a TPM quote. Raises MalformedQuote."""
    if set(document) - {"event_log"} != _MEMBERS or document["format"] != FORMAT:
        refuse(
            "this is no TPM quote in a form that is known",
            check="members of the TPM quote",
            expected=f"format {FORMAT}, and {', '.join(sorted(_MEMBERS - {'format'}))} (event_log may be absent)",
            seen=f"{str(document.get('format'))[:40]}: {', '.join(sorted(document))[:160]}",
        )
    chain = document["ak_certificates"]
    if not isinstance(chain, list) or not 2 <= len(chain) <= MAX_CERTIFICATES:
        refuse(
            "the attestation key's certificate chain is wrong",
            check="ak_certificates",
            expected=f"a list of 2 to {MAX_CERTIFICATES} certificates, the root last",
            seen=len(chain) if isinstance(chain, list) else type(chain).__name__,
        )
    log = document.get("event_log")
    return make_quote(
        ak_certificates=tuple(_unb64(item, MAX_CERTIFICATE_BYTES, "ak_certificates") for item in chain),
        message=_unb64(document["message"], MAX_ATTEST_BYTES, "message"),
        signature=_unb64(document["signature"], MAX_SIGNATURE_BYTES, "signature"),
        pcrs=_pcrs(document["pcrs"]),
        event_log=None if "event_log" not in document else _unb64(log, MAX_LOG_BYTES, "event_log"),
    )


def _pcrs(value: object) -> tuple[bytes, ...]:
    if not isinstance(value, dict) or set(value) != {"sha256"}:
        refuse(
            "the PCRs are of an unknown bank", check="pcrs", expected="sha256, and no other bank", seen=str(value)[:80]
        )
    return parse_pcr_values(value["sha256"])


def parse_pcr_values(values: object) -> tuple[bytes, ...]:
    """24 PCR values in hex, 32 bytes each. Raises MalformedQuote."""
    if not isinstance(values, list) or len(values) != PCRS:
        refuse(
            "the number of PCRs is wrong",
            check="pcrs",
            expected=f"a list of {PCRS} values",
            seen=len(values) if isinstance(values, list) else type(values).__name__,
        )
    found = []
    for index, value in enumerate(values):
        if not isinstance(value, str) or _PCR.fullmatch(value) is None:
            refuse(f"PCR {index} is wrong", check=f"PCR {index}", expected="64 hex digits", seen=str(value)[:80])
        found.append(bytes.fromhex(value))
    return tuple(found)
