"""What the evidence of an endpoint is bound to: this connection, this key, this program, and nothing else.

Report data = SHA-512(label ‖ fields with their lengths). The fields are in this order:

1. `server` or `client`: the side that proves itself. So the evidence of one side never serves as the other's.
2. The client's nonce, 32 bytes.
3. SHA-256 of the SubjectPublicKeyInfo of the certificate with which the ingress made this handshake.
4. The TLS exporter of this connection (RFC 8446, section 7.5), 32 bytes, with the nonce as its context.
5. SHA-256 of the final manifest of the program behind the ingress.
6. The name of the ingress, as the manifest has it.
7. SHA-256 over the devices' evidence, each with its length. Empty where there are no devices. A client shows none.

The exporter is known to the two ends of a connection only, and it exists after the handshake only. So whoever has
stolen the TLS key of an accepted machine gets no evidence for a connection of his own: the machine makes evidence for
its own connections.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from adyton.attest.bundle import derived_gpu_nonce
from adyton.attest.report_data import ENDPOINT, framed

if TYPE_CHECKING:
    from collections.abc import Sequence

EXPORTER_LABEL: Final = b"EXPORTER-adyton-connect"
EXPORTER_BYTES: Final = 32

_SERVER: Final = b"server"
_CLIENT: Final = b"client"


@dataclass(frozen=True, slots=True)
class Connection:
    """The facts of one TLS connection, as each end sees them itself."""

    nonce: bytes
    spki_sha256: bytes
    exporter: bytes


def devices_digest(devices: Sequence[bytes]) -> bytes:
    """SHA-256 over the devices' evidence, or no bytes where there are none."""
    return hashlib.sha256(framed(*devices)).digest() if devices else b""


def gpu_nonce(connection: Connection) -> bytes:
    """The 32 bytes that the GPUs sign for this connection (docs/registers.md, with the exporter as the key)."""
    return derived_gpu_nonce(connection.nonce, connection.exporter)


def report_data(connection: Connection, manifest_sha256: bytes, name: str, devices: Sequence[bytes] = ()) -> bytes:
    """The 64 bytes that the evidence of an ingress must carry on this connection."""
    return _hash(_SERVER, connection, manifest_sha256, name, devices_digest(devices))


def client_report_data(connection: Connection, manifest_sha256: bytes, name: str) -> bytes:
    """The 64 bytes that the evidence of a client of this ingress must carry on this connection."""
    return _hash(_CLIENT, connection, manifest_sha256, name, b"")


def _hash(role: bytes, connection: Connection, manifest_sha256: bytes, name: str, devices: bytes) -> bytes:
    fields = framed(
        role,
        connection.nonce,
        connection.spki_sha256,
        connection.exporter,
        manifest_sha256,
        name.encode("ascii"),
        devices,
    )
    return hashlib.sha512(ENDPOINT + fields).digest()
