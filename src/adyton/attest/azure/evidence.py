"""The bodies in which clients send Azure's evidence: versions 0, 1 and 2 of one client's format. Nothing is verified.

::

    1, 2  {"version": 1, "hcl_report": base64url, "vcek": base64url DER | "td_quote": base64url,
           "tpm_quote": {"message": hex, "signature": hex, "pcrs": [24 times 64 hex digits]}}
    0     {"quote" | "tpm_quote": {"message": [bytes], "signature": [bytes], "pcrs": [24 lists of 32 bytes]},
           "report" | "hcl_report": [bytes], "vcek": PEM | "td_quote": [bytes]}

In version 2 the runtime claims' user data begin with the nonce. Adyton's own guest sends version 1.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, NoReturn

from adyton.attest import snp, tdx
from adyton.attest.azure.hcl import MAX_HCL_BYTES, TDREPORT, HCLReport, parse_hcl_report
from adyton.attest.certificates import split_pem
from adyton.attest.layout import MAX_QUOTE_BYTES
from adyton.attest.tpm.document import parse_pcr_values
from adyton.attest.tpm.structures import (
    ALG_RSASSA,
    MAX_ATTEST_BYTES,
    PCR_BYTES,
    PCRS,
    RSA_BYTES,
    Attest,
    Signature,
    parse_attest,
)
from adyton.errors import MalformedQuote
from adyton.untrusted import parse_json_object

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_BODY_BYTES: Final = 64 << 10
MAX_VCEK_BYTES: Final = 4096

_B64URL: Final = re.compile(r"[A-Za-z0-9_-]+={0,2}", re.ASCII)
_HEX: Final = re.compile(r"(?:[0-9a-fA-F]{2})+", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureEvidence:
    """A paravisor's report, the hardware's proof of it, and a quote of its TPM. Everything is unverified."""

    version: int
    hcl: HCLReport
    hardware: snp.SNPReport | tdx.TDXQuote
    """The SEV-SNP report out of the paravisor's, or the TD quote that was made from its TDREPORT."""
    vcek: bytes | None
    """SEV-SNP: the chip's certificate as the evidence brings it, DER."""
    message: bytes
    """TPMS_ATTEST, as it was signed."""
    attest: Attest
    signature: Signature
    pcrs: tuple[bytes, ...]
    event_log: bytes | None = None
    """The firmware's event log, which travels beside the body; not parsed yet."""

    @property
    def report_data(self) -> bytes:
        """What the guest asked the TPM to sign along: its nonce."""
        return self.attest.extra_data

    def with_event_log(self, raw: bytes | None) -> AzureEvidence:
        """The same evidence with this event log beside it."""
        return replace(self, event_log=raw)


def encode_body(
    hcl_report: bytes,
    *,
    vcek: bytes | None,
    td_quote: bytes | None,
    message: bytes,
    signature: bytes,
    pcrs: list[bytes],
) -> bytes:
    """A body of version 1. `signature` is the RSA signature alone. `parse_body` reads it."""
    tpm = {"message": message.hex(), "signature": signature.hex(), "pcrs": [value.hex() for value in pcrs]}
    hardware = {"vcek": vcek, "td_quote": td_quote}
    parts = {name: _b64(raw) for name, raw in hardware.items() if raw is not None}
    found = {"version": 1, "hcl_report": _b64(hcl_report), "tpm_quote": tpm, **parts}
    return json.dumps(found, separators=(",", ":")).encode()


def _b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def _refuse(what: str, *, expected: object, seen: object) -> NoReturn:
    raise MalformedQuote(
        f"this is no evidence of an Azure machine: {what}",
        check=f"Azure evidence: {what}",
        expected=expected,
        seen=str(seen)[:160],
    )


def is_body(document: Mapping[str, object]) -> bool:
    """Whether parsed JSON looks like such a body."""
    return bool(set(document) & {"hcl_report", "report"}) and bool(set(document) & {"tpm_quote", "quote"})


def parse_body(raw: bytes) -> AzureEvidence:
    """Parse a body of version 0, 1 or 2. Raises MalformedQuote."""
    return evidence_from_document(
        parse_json_object(raw, what="Azure evidence", refuse=MalformedQuote, limit_bytes=MAX_BODY_BYTES)
    )


def evidence_from_document(document: Mapping[str, object]) -> AzureEvidence:
    """Take the parsed JSON of a body. Raises MalformedQuote."""
    version = document.get("version", 0)
    if type(version) is not int or version not in (0, 1, 2) or ("version" in document and version == 0):
        _refuse("version", expected="1, 2, or no version at all", seen=version)
    names = set(document) - {"version"}
    report = "report" if version == 0 and "report" in names else "hcl_report"
    quote = "quote" if version == 0 and "quote" in names else "tpm_quote"
    hardware = sorted(names - {report, quote})
    if not {report, quote} <= names or hardware not in (["vcek"], ["td_quote"]):
        _refuse("members", expected=f"{report}, {quote}, and vcek or td_quote", seen=", ".join(sorted(names)))
    tpm = document[quote]
    if not isinstance(tpm, dict) or set(tpm) != {"message", "signature", "pcrs"}:
        _refuse(quote, expected="an object with message, signature, pcrs", seen=type(tpm).__name__)
    hcl = parse_hcl_report(_bytes(document[report], MAX_HCL_BYTES, report, version))
    message = _bytes(tpm["message"], MAX_ATTEST_BYTES, "message", version, hexadecimal=True)
    signature = _bytes(tpm["signature"], RSA_BYTES[-1], "signature", version, hexadecimal=True)
    if len(signature) not in RSA_BYTES:
        _refuse("signature", expected="256 to 512 bytes", seen=f"{len(signature)} bytes")
    return AzureEvidence(
        version=version,
        hcl=hcl,
        hardware=_hardware(hcl, document, version),
        vcek=_vcek(document["vcek"], version) if "vcek" in document else None,
        message=message,
        attest=parse_attest(message),
        signature=Signature(ALG_RSASSA, signature),
        pcrs=_pcr_lists(tpm["pcrs"]) if version == 0 else parse_pcr_values(tpm["pcrs"]),
    )


def _hardware(hcl: HCLReport, document: Mapping[str, object], version: int) -> snp.SNPReport | tdx.TDXQuote:
    if isinstance(hcl.hardware, TDREPORT):
        if "td_quote" not in document:
            _refuse("members", expected="td_quote, since the paravisor reports a TDREPORT", seen="vcek")
        return tdx.parse_quote(_bytes(document["td_quote"], MAX_QUOTE_BYTES, "td_quote", version))
    if "vcek" not in document:
        _refuse("members", expected="vcek, since the paravisor reports SEV-SNP", seen="td_quote")
    return hcl.hardware


def _vcek(value: object, version: int) -> bytes:
    if version != 0:
        return _bytes(value, MAX_VCEK_BYTES, "vcek", version)
    if not isinstance(value, str) or len(value) > 2 * MAX_VCEK_BYTES:
        _refuse("vcek", expected="PEM", seen=type(value).__name__)
    blocks = split_pem(value, "VCEK")
    if len(blocks) != 1:
        _refuse("vcek", expected="one certificate", seen=len(blocks))
    return blocks[0]


def _bytes(value: object, limit: int, what: str, version: int, *, hexadecimal: bool = False) -> bytes:
    """Bytes as the version writes them: a list of whole numbers (0), hex, or base64url (1, 2)."""
    if version == 0:
        return _from_list(value, limit, what)
    pattern, form = (_HEX, "hex") if hexadecimal else (_B64URL, "base64url")
    if not isinstance(value, str) or len(value) > 2 * limit + 2 or pattern.fullmatch(value) is None:
        _refuse(what, expected=f"{form} of {limit} bytes at most", seen=type(value).__name__)
    if hexadecimal:
        raw = bytes.fromhex(value)
    else:
        text = value.rstrip("=")
        try:
            raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        except binascii.Error:
            raw = b""
        if _b64(raw) != text or value not in (text, text + "=" * (-len(text) % 4)):
            _refuse(what, expected="base64url in its one form", seen=value[:40])
    if not 0 < len(raw) <= limit:
        _refuse(what, expected=f"1 to {limit} bytes", seen=f"{len(raw)} bytes")
    return raw


def _from_list(value: object, limit: int, what: str) -> bytes:
    if not isinstance(value, list) or not 0 < len(value) <= limit:
        _refuse(what, expected=f"a list of 1 to {limit} numbers", seen=type(value).__name__)
    if not all(type(item) is int and 0 <= item <= 255 for item in value):
        _refuse(what, expected="whole numbers from 0 to 255", seen="something else")
    return bytes(value)


def _pcr_lists(values: object) -> tuple[bytes, ...]:
    if not isinstance(values, list) or len(values) != PCRS:
        _refuse("pcrs", expected=f"a list of {PCRS} values", seen=type(values).__name__)
    found = tuple(_from_list(value, PCR_BYTES, f"PCR {index}") for index, value in enumerate(values))
    short = [index for index, value in enumerate(found) if len(value) != PCR_BYTES]
    if short:
        _refuse("pcrs", expected=f"{PCR_BYTES} bytes each", seen=f"PCR {short[0]} has {len(found[short[0]])}")
    return found
