"""The stages of a request, as values: Received, Verified, Decided, Answered. Each is made from the one before."""

from __future__ import annotations

import hmac
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from adyton.check import text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adyton.agreement.in_force import InForce
    from adyton.attest.bundle import DevicePart
    from adyton.attest.report import VerifiedReport
    from adyton.collateral.verifier import VerifiedEvidence
    from adyton.errors import Error, Unavailable
    from adyton.keyserver.decide import Grant
    from adyton.keyserver.refused_programs import Ticket
    from adyton.release.grants import Granted
    from adyton.release.messages import Payload, Refusal, ReleaseRequest
    from adyton.values import Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A request as it arrived, unverified."""

    protocol: str
    names: tuple[str, ...]
    """The names of the requested keys. Over RA-TLS there may be none."""
    evidence: bytes
    """The CPU's evidence."""
    run: str
    peer: str
    report_data: bytes | None
    """The report data that the evidence must carry. None where the request is too incomplete to tell."""
    manifest_sha256: Digest | None = None
    message: ReleaseRequest | None = None
    """The message, for Adyton's own protocol."""
    event_log: bytes | None = None
    devices: tuple[DevicePart, ...] = ()
    device_nonce: bytes = b""
    """What the devices must have signed."""
    error: Error | None = None
    """The reason to refuse the request before its evidence is verified."""
    at_s: float = field(default_factory=time.monotonic)
    """Time of arrival, on the monotonic clock."""

    def is_bound(self, report: VerifiedReport) -> bool:
        """Whether this report was made for this request.

        Over RA-TLS the report data name the certificate's key, and the handshake proved that the client holds it.
        """
        return self.report_data is not None and hmac.compare_digest(report.report_data, self.report_data)


@dataclass(frozen=True, slots=True)
class Verified:
    """A request and the result of its verification: a report, or the reason why there is none."""

    received: Received
    result: VerifiedEvidence | Error
    in_force: frozenset[InForce] = frozenset()
    """What statements of other owners prove for this request (`adyton.agreement.in_force`)."""

    @property
    def evidence(self) -> VerifiedEvidence | None:
        """The verified evidence, if it is genuine."""
        return None if isinstance(self.result, Exception) else self.result

    @property
    def platform(self) -> str | None:
        """The genuine platform that made its evidence for this request. None where there is none."""
        evidence = self.evidence
        if evidence is None or not self.received.is_bound(evidence.report):
            return None
        report = evidence.report
        chip = report.platform.get("ppid", report.platform.get("chip_id", ""))
        return f"{report.root_fingerprint} {text(chip)}"


@dataclass(frozen=True, slots=True, repr=False)
class Release:
    """The request gets its keys. The record has the grant's id."""

    grant_id: str
    grants: tuple[Grant, ...]
    versions: Mapping[str, int]
    """The granted version of each key."""
    payload: Payload
    roots: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The newest root of each folder that was asked for, empty where it is not pinned."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The request gets no key. It is recorded, or only counted where there were too many."""

    refusal: Refusal
    ticket: Ticket | None = None
    """The ticket for an explanation, once the refusal is recorded."""


@dataclass(frozen=True, slots=True)
class Unchecked:
    """The request could not be checked: no verdict."""

    error: Unavailable
    """The reason, in a public text."""


Outcome: TypeAlias = Release | Refused | Unchecked


@dataclass(frozen=True, slots=True, repr=False)
class Decided:
    """A request and its decision, which is recorded once the transaction is committed."""

    received: Received
    outcome: Outcome


@dataclass(frozen=True, slots=True, repr=False)
class Answered:
    """The answer: a grant with its payload (wrapped, for Adyton's protocol), or a refusal."""

    refusal: Refusal | None
    granted: Granted | None = None
    payload: Payload | None = None
    grant_id: str = ""
