"""Doubles of NVIDIA's RIM service and OCSP responder, for a simulated vendor."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cryptography.x509 import ocsp

from adyton.attest.certificates import parse_certificate
from adyton.attest.nvidia.ocsp import issuer_hashes
from adyton.collateral.gpus import rim_ids
from adyton.collateral.http_client import Response
from adyton.sim.gpu import der_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from adyton.sim.gpu import SimDevice, SimNVIDIA


@dataclass
class NVIDIAServices:
    """A fetcher that answers as both services do, and notes what it is asked."""

    vendor: SimNVIDIA
    devices: Sequence[SimDevice]
    now: datetime
    asked: list[str] = field(default_factory=list)
    posted: list[bytes] = field(default_factory=list)
    status: int = 200

    rims: dict[str, bytes] = field(default_factory=dict)

    def _rims(self) -> dict[str, bytes]:
        """Every RIM by its id, signed once."""
        for device in self.devices if not self.rims else ():
            ids = rim_ids(device.evidence(bytes(32)))
            self.rims |= dict(zip(ids, self.vendor.rims([device]), strict=True))
        return self.rims

    def get(self, url: str, *, max_bytes: int, headers: Mapping[str, str] | None = None) -> Response:
        """A RIM by its id."""
        self.asked.append(url)
        rim_id = url.rpartition("/")[2]
        rim = self._rims().get(rim_id)
        if rim is None or self.status != 200:
            return Response(url, 404 if self.status == 200 else self.status, {}, b"{}")
        body = {"id": rim_id, "rim": base64.b64encode(rim).decode(), "sha256": hashlib.sha256(rim).hexdigest()}
        return Response(url, 200, {}, json.dumps({**body, "request_id": "x", "rim_format": "TCG-SWID"}).encode())

    def post(self, url: str, body: bytes, *, max_bytes: int, headers: Mapping[str, str]) -> Response:
        """An OCSP answer to a request."""
        self.asked.append(url)
        self.posted.append(body)
        if self.status != 200:
            return Response(url, self.status, {}, b"")
        request = ocsp.load_der_ocsp_request(body)
        for issuer, certificate in self.vendor.certificates.items():
            hashes = issuer_hashes(parse_certificate(der_of(certificate), "issuer"), request.hash_algorithm.name)
            if hashes != (request.issuer_name_hash, request.issuer_key_hash):
                continue
            for subject in [*self.vendor.certificates.values(), *(device.chain[1] for device in self.devices)]:
                if subject.serial_number == request.serial_number:
                    return Response(url, 200, {}, self.vendor.answer(subject, issuer, self.now, delegated=True))
        return Response(url, 200, {}, b"\x30\x03\x0a\x01\x06")  # unauthorized: not known here
