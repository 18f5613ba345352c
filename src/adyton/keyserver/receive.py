"""Turn a client's message into a request, for each protocol. Pure. Nothing is verified here."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

from adyton.attest import ratls
from adyton.errors import Error, OutOfOrder
from adyton.keyserver.stages import Received
from adyton.keystore.approval import ADYTON, RA_TLS
from adyton.keystore.names import check_name
from adyton.release.messages import run_id

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from adyton.release.messages import ReleaseRequest, ServerIdentity


def received_message(message: ReleaseRequest, identity: ServerIdentity, peer: str) -> Received:
    """A request of Adyton's own protocol."""
    return Received(
        protocol=ADYTON,
        names=message.names,
        evidence=message.evidence.cpu,
        run=run_id(message.public_key),
        peer=peer,
        report_data=message.report_data(identity),
        manifest_sha256=message.manifest_sha256,
        message=message,
        event_log=message.evidence.event_log,
        devices=message.evidence.devices,
        device_nonce=message.gpu_nonce,
    )


def received_chain(
    chain: Sequence[bytes], server_name: str | None, identity: ServerIdentity, peer: str, now: datetime
) -> Received:
    """A request of Gramine's protocol: the client's certificate chain, and the server name in its handshake.

    A fault becomes the request's `error`. Such a request is refused and recorded like any other.
    """
    received = Received(protocol=RA_TLS, names=(), evidence=b"", run="", peer=peer, report_data=None)
    try:
        certificate = _one_certificate(chain)
        _check_validity(certificate, now)
        received = replace(
            received,
            evidence=certificate.quote,
            report_data=certificate.expected_report_data,
            run=hashlib.sha256(certificate.spki).hexdigest()[:32],
        )
        return replace(received, names=_named_key(server_name, identity))
    except Error as error:
        return replace(received, error=error)


def _one_certificate(chain: Sequence[bytes]) -> ratls.RATLSCertificate:
    if len(chain) != 1:
        raise OutOfOrder(
            "an RA-TLS client shows exactly one certificate",
            check="client certificate",
            expected="one self-signed certificate with evidence",
            seen=f"{len(chain)} certificates",
        )
    return ratls.parse_certificate(chain[0])


def _check_validity(certificate: ratls.RATLSCertificate, now: datetime) -> None:
    if not certificate.not_before <= now <= certificate.not_after:
        raise OutOfOrder(
            "the RA-TLS certificate is not valid now",
            check="validity of the RA-TLS certificate",
            expected=f"{certificate.not_before:%Y-%m-%d} to {certificate.not_after:%Y-%m-%d}",
            seen=f"{now:%Y-%m-%d %H:%M:%S}",
            remedy="compare the clocks of both machines",
        )


def _named_key(server_name: str | None, identity: ServerIdentity) -> tuple[str, ...]:
    """The key in a server name KEY.keys.SERVER. Raises UsageError where it is no valid name of a key."""
    suffix = f".keys.{identity.server_name}"
    if server_name and server_name.endswith(suffix):
        return (check_name(server_name.removesuffix(suffix)),)
    return ()
