"""A request on its way to its answer, as values: Received, Verified, Decided, Answered; each is made from the last."""

from __future__ import annotations

import hmac
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from adyton.check import text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adyton.collateral.verifier import VerifiedEvidence
    from adyton.errors import Error, Unavailable
    from adyton.keyserver.decide import Grant
    from adyton.keyserver.explainer import Ticket
    from adyton.release.grants import Granted
    from adyton.release.messages import Payload, Refusal, ReleaseRequest
    from adyton.values import Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A request as it came; nothing of it is verified."""

    protocol: str
    names: tuple[str, ...]
    """The keys that it names; over RA-TLS there may be none."""
    evidence: bytes
    run: str
    peer: str
    report_data: bytes | None
    """What the evidence must be bound to; None where the request shows too little to know."""
    manifest_sha256: Digest | None = None
    message: ReleaseRequest | None = None
    """The request itself, where it came over Adyton's own protocol."""
    error: Error | None = None
    """Why it is refused before its evidence is looked at."""
    at_s: float = field(default_factory=time.monotonic)
    """When it came, on the monotonic clock."""


@dataclass(frozen=True, slots=True)
class Verified:
    """A request and what the verification of its evidence came to: a report, or why there is none."""

    received: Received
    result: VerifiedEvidence | Error

    @property
    def evidence(self) -> VerifiedEvidence | None:
        """The verified evidence, where it is genuine."""
        return None if isinstance(self.result, Exception) else self.result

    @property
    def platform(self) -> str | None:
        """The genuine platform that made its evidence for this very request; None where there is none such.

        Over RA-TLS report data names the certificate's key, and the handshake proved that the client holds it.
        """
        evidence, expected = self.evidence, self.received.report_data
        if evidence is None or expected is None:
            return None
        report = evidence.report
        if not hmac.compare_digest(report.report_data, expected):
            return None
        chip = report.platform.get("ppid", report.platform.get("chip_id", ""))
        return f"{report.root_fingerprint} {text(chip)}"


@dataclass(frozen=True, slots=True, repr=False)
class Release:
    """The request gets its keys; recorded under the grant's id."""

    grant_id: str
    grants: tuple[Grant, ...]
    versions: Mapping[str, int]
    """Which version of each key was granted."""
    payload: Payload


@dataclass(frozen=True, slots=True)
class Refused:
    """The request gets none; recorded, or only counted where there were too many."""

    refusal: Refusal
    ticket: Ticket | None = None
    """What lets the refusal be explained, once it stands in the record."""


@dataclass(frozen=True, slots=True)
class Unchecked:
    """The request could not be checked: no verdict."""

    error: Unavailable
    """Why, in public words."""


Outcome: TypeAlias = Release | Refused | Unchecked


@dataclass(frozen=True, slots=True, repr=False)
class Decided:
    """A request and its decision, which stands in the record once the transaction is committed."""

    received: Received
    outcome: Outcome


@dataclass(frozen=True, slots=True, repr=False)
class Answered:
    """What goes back: a grant with its payload (and, for Adyton's protocol, wrapped), or a refusal."""

    refusal: Refusal | None
    granted: Granted | None = None
    payload: Payload | None = None
    grant_id: str = ""
