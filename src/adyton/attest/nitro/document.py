"""Nitro documents: bytes to values. Nothing is verified here.

A document is a COSE_Sign1 (RFC 9052) without a tag: `[protected, {}, payload, signature]`, signed with ES384. Its
payload is a CBOR map. An enclave's names its registers `pcrs`, a NitroTPM's `nitrotpm_pcrs`. AWS writes that map
without a length, which is allowed for it alone.

Source: AWS, aws-nitro-enclaves-nsm-api, docs/attestation_process.md; AWS EC2 user guide, "Validate a NitroTPM
Attestation Document".
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, NoReturn

from adyton.attest.cbor import ARRAY, BYTES, MAP, TEXT, UNSIGNED, Reader, head, string
from adyton.errors import MalformedQuote

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_DOCUMENT_BYTES: Final = 32 << 10
MAX_PAYLOAD_BYTES: Final = 16 << 10
MAX_CERTIFICATE_BYTES: Final = 1024
MAX_CABUNDLE: Final = 8
MAX_MODULE_ID_BYTES: Final = 256
MAX_PCRS: Final = 32
PCR_BYTES: Final = 48
"""SHA-384, the only digest that AWS uses."""
SIGNATURE_BYTES: Final = 96
PROTECTED_ES384: Final = bytes.fromhex("a1013822")
"""The protected header `{1: -35}`: ES384, and nothing else."""
START: Final = b"\x84" + string(BYTES, PROTECTED_ES384)
"""The first bytes of every document."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_MS: Final = 253_402_300_799_000
"""The end of the year 9999."""
_OPTIONAL: Final[Mapping[str, int]] = {"public_key": 1024, "user_data": 512, "nonce": 512}
"""What whoever asked put into the document, and its most bytes. Each may be absent or null."""
_REQUIRED: Final = ("module_id", "digest", "timestamp", "certificate", "cabundle")
_PCRS: Final[Mapping[str, Literal["nitro", "nitrotpm"]]] = {"pcrs": "nitro", "nitrotpm_pcrs": "nitrotpm"}


def _malformed(what: str) -> MalformedQuote:
    return MalformedQuote(
        f"the Nitro document does not parse: {what}",
        check="parse of the Nitro document",
        expected="one COSE_Sign1 document as AWS makes it",
        seen=what,
        remedy="take the document again from the machine, as it is: binary, hex or base64",
    )


def _refuse(what: str) -> NoReturn:
    raise _malformed(what)


@dataclass(frozen=True, slots=True, kw_only=True)
class NitroDocument:
    """A document, unverified."""

    raw: bytes
    """The COSE_Sign1 itself."""
    tee: Literal["nitro", "nitrotpm"]
    payload: bytes
    """The signed bytes."""
    signature: bytes
    """r and s, 48 bytes each, big-endian."""
    module_id: str
    timestamp: datetime
    pcrs: Mapping[int, bytes]
    """PCR -> SHA-384 value, 48 bytes."""
    certificate: bytes
    """The leaf, DER."""
    cabundle: tuple[bytes, ...]
    """DER each: the root first, the issuer of the leaf last."""
    public_key: bytes | None
    user_data: bytes | None
    nonce: bytes | None

    @property
    def report_data(self) -> bytes:
        """What the document is bound to: the nonce, or the user data where there is no nonce. Empty without both."""
        return self.nonce if self.nonce is not None else self.user_data or b""

    @property
    def signed_part(self) -> bytes:
        """The bytes under the signature: COSE's Sig_structure."""
        return signed_bytes(self.payload)

    @property
    def debug(self) -> bool:
        """Whether this is an enclave that its parent machine may look into: it has zeros in PCR 0, 1 or 2."""
        return self.tee == "nitro" and not all(any(self.pcrs.get(index, b"")) for index in (0, 1, 2))

    def to_bytes(self) -> bytes:
        """The document."""
        return self.raw


def signed_bytes(payload: bytes) -> bytes:
    """COSE's Sig_structure over a payload: `["Signature1", protected, h'', payload]`."""
    parts = (string(TEXT, b"Signature1"), string(BYTES, PROTECTED_ES384), string(BYTES, b""), string(BYTES, payload))
    return head(ARRAY, len(parts)) + b"".join(parts)


def is_document(raw: bytes) -> bool:
    """Whether these bytes begin as a Nitro document does."""
    return raw.startswith(START)


def parse_document(raw: bytes) -> NitroDocument:
    """Parse a Nitro document. Raises MalformedQuote."""
    if len(raw) > MAX_DOCUMENT_BYTES:
        _refuse(f"{len(raw)} bytes, more than {MAX_DOCUMENT_BYTES}")
    raw = bytes(raw)
    reader = Reader(raw, _malformed)
    if reader.head(ARRAY, "list of four") != 4:
        _refuse("not a list of four")
    if reader.string(BYTES, "protected header", 64) != PROTECTED_ES384:
        _refuse("another algorithm than ES384, or more in the protected header")
    if reader.head(MAP, "unprotected header") != 0:
        _refuse("an unprotected header that is not empty")
    payload = reader.string(BYTES, "payload", MAX_PAYLOAD_BYTES)
    signature = reader.string(BYTES, "signature", SIGNATURE_BYTES)
    reader.end("document")
    if len(signature) != SIGNATURE_BYTES:
        _refuse(f"a signature of {len(signature)} bytes, not {SIGNATURE_BYTES}")
    return _Members(payload).document(raw, payload, signature)


class _Members:
    """The members of a payload, each at most once."""

    def __init__(self, payload: bytes) -> None:
        self._reader = reader = Reader(payload, _malformed)
        self._texts: dict[str, str] = {}
        self._given: dict[str, bytes | None] = {}
        self._pcrs: dict[str, Mapping[int, bytes]] = {}
        self._cabundle: tuple[bytes, ...] = ()
        self._timestamp_ms = -1
        self._seen: set[str] = set()
        left = reader.open_map("payload", 16)
        while not reader.ends_here() if left is None else left > 0:
            self._member()
            left = None if left is None else left - 1
        reader.end("payload")
        missing = [name for name in _REQUIRED if name not in self._seen]
        if missing:
            _refuse("no " + ", ".join(missing))

    def _member(self) -> None:
        reader = self._reader
        name = reader.text("name of a member", 32)
        if name in self._seen:
            _refuse(f"the member {name} stands twice")
        self._seen.add(name)
        if name in ("module_id", "digest"):
            self._texts[name] = reader.text(name, MAX_MODULE_ID_BYTES)
        elif name == "timestamp":
            self._timestamp_ms = reader.head(UNSIGNED, name)
        elif name in _PCRS:
            self._pcrs[name] = self._registers(name)
        elif name == "certificate":
            self._given[name] = reader.string(BYTES, name, MAX_CERTIFICATE_BYTES)
        elif name == "cabundle":
            count = reader.count(ARRAY, name, MAX_CABUNDLE)
            self._cabundle = tuple(reader.string(BYTES, name, MAX_CERTIFICATE_BYTES) for _ in range(count))
        elif name in _OPTIONAL:
            self._given[name] = None if reader.null() else reader.string(BYTES, name, _OPTIONAL[name])
        else:
            _refuse(f"the unknown member {name!r}")

    def _registers(self, name: str) -> Mapping[int, bytes]:
        reader, found = self._reader, dict[int, bytes]()
        for _ in range(reader.count(MAP, name, MAX_PCRS)):
            index = reader.head(UNSIGNED, "number of a PCR")
            if index >= MAX_PCRS or index in found:
                _refuse(f"PCR {index} stands twice, or there is no such PCR")
            found[index] = reader.string(BYTES, f"PCR {index}", PCR_BYTES)
            if len(found[index]) != PCR_BYTES:
                _refuse(f"PCR {index} has {len(found[index])} bytes, not {PCR_BYTES}")
        return MappingProxyType(found)

    def document(self, raw: bytes, payload: bytes, signature: bytes) -> NitroDocument:
        """The document of these members."""
        if len(self._pcrs) != 1:
            _refuse("not exactly one of pcrs and nitrotpm_pcrs")
        ((name, pcrs),) = self._pcrs.items()
        if self._texts["digest"] != "SHA384":
            _refuse(f"the digest {self._texts['digest'][:40]!r}, not SHA384")
        if not self._texts["module_id"]:
            _refuse("an empty module_id")
        if not 0 < self._timestamp_ms <= _LAST_MS:
            _refuse(f"the timestamp {self._timestamp_ms}")
        certificate = self._given["certificate"]
        if not certificate or not self._cabundle:
            _refuse("no certificate, or no cabundle")
        return NitroDocument(
            raw=raw,
            tee=_PCRS[name],
            payload=payload,
            signature=signature,
            module_id=self._texts["module_id"],
            timestamp=_EPOCH + timedelta(milliseconds=self._timestamp_ms),
            pcrs=pcrs,
            certificate=certificate,
            cabundle=self._cabundle,
            public_key=self._given.get("public_key"),
            user_data=self._given.get("user_data"),
            nonce=self._given.get("nonce"),
        )
