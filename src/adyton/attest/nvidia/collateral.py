"""Collateral for devices: RIMs and OCSP answers, parsed once and looked up by what a report says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from adyton.attest.nvidia.layout import MAX_DEVICES
from adyton.attest.nvidia.ocsp import Answer, signer_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from adyton.attest.certificates import Certificate, Known
    from adyton.attest.nvidia.rim import RIM

MAX_KNOWN: Final = 8 * MAX_DEVICES


@dataclass(frozen=True, slots=True)
class KnownRIM:
    """A parsed RIM, and what the collateral store knows of it."""

    rim: RIM
    rim_id: str = ""
    """The id under which it was served. Empty where it came as a bare file."""
    recorded_at: datetime | None = None
    """When the store recorded its SHA-256 while its signers were valid. None where it never did."""


@dataclass
class GPUCollateral:
    """RIMs and OCSP answers for any number of devices. Their signatures are checked once, when they are first used.

    One object may be used for many verifications, which is what makes them fast. It is not thread-safe.
    """

    rims: tuple[KnownRIM, ...] = ()
    answers: tuple[Answer, ...] = ()
    known: Known = field(default_factory=dict, repr=False)
    """Certificates of devices that were parsed before. It is emptied when it is full."""
    _about: dict[tuple[int, bytes], tuple[Answer, ...]] = field(default_factory=dict, repr=False)
    _signer: dict[tuple[bytes, bytes], Certificate | None] = field(default_factory=dict, repr=False)

    def rims_for(self, version: str, rim_ids: Sequence[str]) -> tuple[KnownRIM, ...]:
        """RIMs about this version, newest signers first. One that was served under another id is left out."""
        fitting = [
            item
            for item in self.rims
            if item.rim.version.upper() == version.upper() and (not item.rim_id or item.rim_id in rim_ids)
        ]
        return tuple(sorted(fitting, key=lambda item: item.rim.valid_until, reverse=True))

    def answers_about(self, certificate: Certificate, issuer: Certificate) -> tuple[Answer, ...]:
        """OCSP answers about this certificate, the newest first."""
        key = certificate.serial, issuer.spki
        if key not in self._about:
            if len(self._about) >= MAX_KNOWN:
                self._about.clear()
            found = [item for item in self.answers if item.is_about(certificate, issuer)]
            self._about[key] = tuple(sorted(found, key=lambda item: item.this_update, reverse=True))
        return self._about[key]

    def signer(self, answer: Answer, authorities: Sequence[Certificate]) -> Certificate | None:
        """Who signed an answer, as `signer_of` says. It is remembered."""
        key = answer.raw, authorities[0].der
        if key not in self._signer:
            if len(self._signer) >= MAX_KNOWN:
                self._signer.clear()
            self._signer[key] = signer_of(answer, authorities)
        return self._signer[key]
