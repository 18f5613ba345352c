"""A grant and its signature: made by the owner's grant key, checked inside the enclave before the grant is opened.

TLS proves that the peer has the key server's TLS key. That key lies on a machine on the network and is used in every
connection. A thief of that key could answer as the key server and give a program keys of his own choice. So a grant
needs a signature of another key, whose certificate under the pinned CA is for this purpose only::

    signed = "adyton-release/4 grant\\0" ‖ lp(nonce) ‖ lp(public key) ‖ lp(manifest SHA-256)
             ‖ lp(SHA-256 of the CA, DER) ‖ lp(server name)
             ‖ lp( lp(name 1) ‖ lp(version 1, u32) ‖ … ) ‖ lp(grant id) ‖ lp(lease in s, u64)
             ‖ lp(wrapped) ‖ lp(checkpoint, canonical JSON) ‖ lp(roots, canonical JSON)
    lp(x)  = length of x as u32, then x                                       (integers big-endian)

Ed25519 over these bytes. The dates of the certificate are compared with the clock of the enclave's machine. The host
controls that clock. So the dates stop honest mistakes. They do not stop a host that works with a thief.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from cryptography.exceptions import InvalidSignature

from adyton.errors import Denied
from adyton.purpose_certificate import GRANTS, certified_key
from adyton.release.wire import PROTOCOL, b64, identifier, malformed, printable, to_bytes
from adyton.typed_document import TypedDocument

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from adyton.release.messages import ReleaseRequest, ServerIdentity

MAX_WRAPPED_BYTES: Final = 1 << 20
MAX_CERTIFICATE_BYTES: Final = 4096
SIGNATURE_BYTES: Final = 64
MAX_CHECKPOINT_BYTES: Final = 2048
MAX_ROOTS: Final = 64
MAX_ROOT_BYTES: Final = 2048
MAX_VERSION: Final = (1 << 32) - 1
_LABEL: Final = b"adyton-release/4 grant\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The terms of a grant: its id, the wrapped payload, the version of each name, and the record's checkpoint.

    `roots` has the record of each pinned folder that was asked for, by the folder's id: a flat object of texts and
    whole numbers.
    """

    grant: str
    lease_s: int
    versions: Mapping[str, int]
    wrapped: bytes
    checkpoint: Mapping[str, Any]
    roots: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """A grant on the wire: the terms, and the owner's signature over them for one request."""

    terms: Terms
    certificate: bytes
    """Certificate of the signing key, DER."""
    signature: bytes

    def to_bytes(self) -> bytes:
        """As JSON."""
        terms = self.terms
        return to_bytes(
            {
                "protocol": PROTOCOL,
                "status": "granted",
                "grant": terms.grant,
                "lease_s": terms.lease_s,
                "versions": dict(terms.versions),
                "wrapped": b64(terms.wrapped),
                "checkpoint": dict(terms.checkpoint),
                "roots": {folder: dict(root) for folder, root in terms.roots.items()},
                "certificate": b64(self.certificate),
                "signature": b64(self.signature),
            }
        )


def parse_granted(document: TypedDocument) -> Granted:
    """Parse a grant, without verifying it. Raises OutOfOrder."""
    fields = {"grant", "lease_s", "versions", "wrapped", "checkpoint", "roots", "certificate", "signature"}
    document.only({"protocol", "status", *fields})
    versions, checkpoint = document.inner("versions"), document["checkpoint"]
    if not 1 <= len(versions) <= 64:
        raise document.wrong("versions", "a number for each name")
    _check_flat("checkpoint", checkpoint, MAX_CHECKPOINT_BYTES)
    roots = document.inner("roots")
    if len(roots) > MAX_ROOTS:
        raise document.wrong("roots", f"at most {MAX_ROOTS} members")
    for folder in roots:
        _check_flat("roots", roots[folder], MAX_ROOT_BYTES)
    return Granted(
        terms=Terms(
            grant=identifier(document, "grant"),
            lease_s=document.number("lease_s", 1 << 32),
            versions={name: versions.number(name, MAX_VERSION) for name in versions},
            wrapped=document.binary("wrapped", 1, MAX_WRAPPED_BYTES),
            checkpoint=checkpoint,
            roots=dict(roots),
        ),
        certificate=document.binary("certificate", 1, MAX_CERTIFICATE_BYTES),
        signature=document.binary("signature", SIGNATURE_BYTES, SIGNATURE_BYTES),
    )


def _check_flat(what: str, value: object, limit: int) -> None:
    """Refuse what is no flat object of texts and whole numbers, or is longer than `limit` in its canonical form."""
    plain = isinstance(value, dict) and all(type(item) in (str, int) for item in value.values())
    if not isinstance(value, dict) or not plain or len(_canonical(value)) > limit:
        raise malformed(what, "an object of texts and numbers", type(value).__name__)


def sign_grant(
    key: Ed25519PrivateKey, certificate: bytes, request: ReleaseRequest, server: ServerIdentity, terms: Terms
) -> Granted:
    """Sign the terms for this request. `certificate` is that of the key, DER."""
    return Granted(terms=terms, certificate=certificate, signature=key.sign(_signed(request, server, terms)))


def verify_grant(
    ca_der: bytes, request: ReleaseRequest, server: ServerIdentity, granted: Granted, now: datetime
) -> None:
    """Check that a grant was signed for this request by a grant key under this CA. Raises Denied.

    The certificate is under the CA, is for grants only, and is valid now (`purpose_certificate`). Its key signed
    request and terms.
    """
    if set(granted.terms.versions) != set(request.names):
        raise _false(
            "names in the grant", ", ".join(request.names), printable(", ".join(sorted(granted.terms.versions))[:200])
        )
    if set(granted.terms.roots) != set(request.folders):
        raise _false(
            "folders in the grant",
            ", ".join(request.folders) or "none",
            printable(", ".join(sorted(granted.terms.roots))[:200]) or "none",
        )
    key = certified_key(granted.certificate, ca_der, GRANTS, now, _false)
    try:
        key.verify(granted.signature, _signed(request, server, granted.terms))
    except InvalidSignature:
        raise _false(
            "signature of the grant",
            "a signature of the grant key over this request (challenge, key, manifest, server, names) and all terms",
            "one that does not verify: over something else, or by another key",
        ) from None


def _signed(request: ReleaseRequest, server: ServerIdentity, terms: Terms) -> bytes:
    """The signed bytes: everything that the request and the grant depend on."""
    versions = [_framed(name.encode(), struct.pack(">I", terms.versions[name])) for name in request.names]
    return _LABEL + _framed(
        request.nonce.raw,
        request.public_key,
        request.manifest_sha256.raw,
        server.ca_sha256.raw,
        server.server_name.encode(),
        b"".join(versions),
        terms.grant.encode(),
        struct.pack(">Q", terms.lease_s),
        terms.wrapped,
        _canonical(terms.checkpoint),
        _canonical(terms.roots),
    )


def _framed(*parts: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(part)) + part for part in parts)


def _canonical(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def _false(check: str, expected: str, seen: str) -> Denied:
    clocks = "compare the clocks of both machines; the owner makes a new one with adyton init --renew-server"
    return Denied(
        "this is not a grant of the owner whose CA is pinned: its signature does not hold",
        check=check,
        expected=expected,
        seen=seen,
        remedy=clocks
        if check.startswith("validity")
        else "whoever answered has the key server's TLS key and not its grant key: nothing of the answer was used; tell"
        " the owner",
    )
