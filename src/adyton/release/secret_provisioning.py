"""The messages of Gramine's secret provisioning over RA-TLS, wire-compatible with Gramine 1.8 and later.

::

    TLS 1.3; the client's certificate carries its evidence (attest.ratls); no tickets after the handshake
    client -> server   "SECRET_PROVISION_RA_TLS_REQUEST_V1" 00                                35 bytes
    server -> client   "SECRET_PROVISION_RA_TLS_RESPONSE_V1:" 00, u32 big-endian N, N bytes   41 + N bytes

The protocol has no key name. The server chooses the key by policy for the measurement, or by the server name in the
client's TLS handshake (`KEY.keys.adyton-key-server`). The protocol has no nonce: evidence is bound only to the client's
TLS key. So a policy must allow it by name (`ra-tls`).
"""

from __future__ import annotations

import struct
from typing import Final

from adyton.errors import OutOfOrder, VersionMismatch

REQUEST: Final = b"SECRET_PROVISION_RA_TLS_REQUEST_V1\0"
RESPONSE: Final = b"SECRET_PROVISION_RA_TLS_RESPONSE_V1:\0"
HEADER_BYTES: Final = len(RESPONSE) + 4
MAX_SECRET_BYTES: Final = 64 * 1024


def check_request(raw: bytes) -> None:
    """Check a client's request of 35 bytes. Raises VersionMismatch."""
    if raw != REQUEST:
        raise VersionMismatch(
            "this is not Gramine's secret provisioning request, version 1",
            check="request",
            expected=REQUEST[:-1].decode(),
            seen=repr(raw[:40]),
            remedy="use Gramine 1.8 or later, or adyton run --provisioning ra-tls",
        )


def response(secret: bytes) -> bytes:
    """The answer that carries a secret. Raises OutOfOrder for an empty secret, which clients take as a failure."""
    if not 1 <= len(secret) <= MAX_SECRET_BYTES:
        raise OutOfOrder(f"a provisioned secret has 1 to {MAX_SECRET_BYTES} bytes", check="length of the secret")
    return RESPONSE + struct.pack(">I", len(secret)) + secret


def parse_header(raw: bytes) -> int:
    """Check the first 41 bytes of an answer. Returns the length of the secret in bytes. Raises OutOfOrder."""
    if len(raw) != HEADER_BYTES or raw[: len(RESPONSE)] != RESPONSE:
        raise OutOfOrder(
            "this is not an answer of secret provisioning, version 1",
            check="answer of the key server",
            expected=RESPONSE[:-1].decode(),
            seen=repr(raw[:40]),
        )
    size = int(struct.unpack(">I", raw[len(RESPONSE) :])[0])
    if not 1 <= size <= MAX_SECRET_BYTES:
        raise OutOfOrder(
            "the key server's answer has an impossible size",
            check="length of the secret",
            expected=f"1 to {MAX_SECRET_BYTES} bytes",
            seen=size,
        )
    return size
