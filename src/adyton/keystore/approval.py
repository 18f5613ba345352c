"""Approvals. An approval says which program may have which key, on which platform and over which protocol.

A key without an approval is released to nobody. Approvals are data. They are stored with their whole history, read
again for every request, and round-trip through `to_dict` and `from_dict`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeVar

from adyton.agreement.document import ID_PATTERN
from adyton.attest.evidence_policy import Policy as EvidencePolicy
from adyton.attest.guest import Guest, parse_guest
from adyton.attest.names import TEE_NAMES, is_advisory_name, is_tee_name
from adyton.attest.status import NEVER_ACCEPTED, TCBStatus
from adyton.dates import parse_end, timestamp
from adyton.errors import StoreError, UsageError
from adyton.keystore.names import check_name
from adyton.values import Digest, Measurement

T = TypeVar("T")

if TYPE_CHECKING:
    from collections.abc import Mapping

ADYTON: Final = "adyton"
RA_TLS: Final = "ra-tls"
PROTOCOLS: Final = (ADYTON, RA_TLS)

PENDING: Final = "pending"
APPROVED: Final = "approved"
REVOKED: Final = "revoked"
STATES: Final = (PENDING, APPROVED, REVOKED)

ACCEPTABLE_STATUSES: Final = tuple(
    status.value for status in TCBStatus if status not in NEVER_ACCEPTED | {TCBStatus.NOT_STATED}
)
"""TCB statuses that an owner may accept by name. SEV-SNP states none: there the lowest versions decide."""

OWN_EVIDENCE_ENTRIES: Final = frozenset(
    {"tees", "statuses", "exemptions", "measurements", "workloads", "signers", "any_program", "allow_debug", "any_of"}
) | {"allow_missing_report_data"}
"""Entries of an evidence policy that are fields of an approval themselves."""

_AGREEMENT_ID: Final = re.compile(ID_PATTERN, re.ASCII)

DEFAULT_LEASE_S: Final = 24 * 3600
MAX_LEASE_S: Final = 366 * 24 * 3600


def check_tee(tee: str) -> str:
    """Return `tee` if it is the name of a platform that can be approved. Raises UsageError otherwise."""
    if not is_tee_name(tee):
        bare = tee in ("sim", "sim-tdx", "sim-tpm")
        raise UsageError(
            f"{tee!r} is no platform that can be approved",
            check="platform (--tee)",
            expected=TEE_NAMES,
            seen=tee[:100],
            remedy=(
                "a simulated platform is accepted only by the fingerprint of its root: adyton platform show"
                if bare
                else "name one of these"
            ),
        )
    return tee


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """One line of an owner's policy: this program, proven in this way, may have this key.

    The program is named either by `measurement`, or by `mrsigner` with `isv_prod_id` and `min_isv_svn`. `guest_images`
    are the fully pinned guests that a confidential machine may have booted. Without one nothing is released there,
    since the host could replace Adyton in the guest (`keystore.approval_gaps`). `guests` (MRTD, or SEV-SNP's launch
    measurement) is the older form, which pins only the firmware; of an Azure machine it is the paravisor beside the
    guest. `raw_report_data` says that the manifest has
    `adyton.insecure__raw_report_data`. `advisories` maps each accepted advisory to the end of its acceptance (None: no
    end). `evidence` holds further requirements on the platform, by the names of `attest.evidence_policy.Policy`: age of
    collateral, SEV-SNP's lowest versions (`min_tcb`), registers and attributes of a confidential machine, and others.
    `max_runs` limits how many runs may ever have the key, `max_active` how many may hold a lease at a time. A run holds
    its lease for `lease_s` seconds. A repeated request within the lease does not count. `not_covered`, `findings` and
    `allowed` come from the review of the manifest (`consent`): the facts that the measurement does not cover, the names
    of all findings, and the findings that expose the data and that the owner accepted. `agreement` is the id of the
    agreement (`adyton.agreement`) on whose ground the key is released, if there is one.
    """

    key: str
    app: str
    version: str
    tees: tuple[str, ...]
    measurement: Measurement | None = None
    guests: tuple[Measurement, ...] = ()
    guest_images: tuple[Guest, ...] = ()
    mrsigner: Digest | None = None
    isv_prod_id: int | None = None
    min_isv_svn: int | None = None
    tcb_statuses: tuple[str, ...] = ("UpToDate",)
    advisories: Mapping[str, datetime | None] = field(default_factory=lambda: MappingProxyType({}))
    allow_debug: bool = False
    raw_report_data: bool = False
    protocols: tuple[str, ...] = (ADYTON,)
    expires_at: datetime | None = None
    max_runs: int | None = None
    max_active: int | None = None
    lease_s: int = DEFAULT_LEASE_S
    manifest_sha256: Digest | None = None
    evidence: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    not_covered: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    allowed: tuple[str, ...] = ()
    note: str = ""
    agreement: str = ""

    def __post_init__(self) -> None:
        check_name(self.key)
        check_name(self.app, "program name")
        check_name(self.version, "version name")
        object.__setattr__(self, "advisories", MappingProxyType(dict(self.advisories)))
        object.__setattr__(self, "evidence", MappingProxyType(dict(self.evidence)))
        taken = sorted(set(self.evidence) & OWN_EVIDENCE_ENTRIES)
        if taken:
            raise UsageError(
                f"{', '.join(taken)} cannot stand under evidence",
                check="evidence",
                expected="requirements that the approval has no entry of its own for",
                seen=", ".join(taken),
            )
        EvidencePolicy.from_dict(self.evidence)
        if self.agreement and _AGREEMENT_ID.fullmatch(self.agreement) is None:
            raise UsageError(
                f"{self.agreement[:60]!r} is no agreement's id",
                check="agreement",
                expected="ag- and 32 hex digits",
                seen=self.agreement[:60],
            )
        if not self.tees:
            raise UsageError("an approval names no platform, so nobody could have the key", check="platform (--tee)")
        for tee in self.tees:
            check_tee(tee)
        by_signer = (self.mrsigner, self.isv_prod_id, self.min_isv_svn)
        if (self.measurement is None) == (None in by_signer) or (
            self.measurement is not None and any(part is not None for part in by_signer)
        ):
            raise UsageError(
                "an approval names a program in exactly one way",
                check="identity of the program",
                expected="a measurement; or the signer, product id and lowest SVN, all three",
                seen=f"measurement {self.measurement}, signer {self.mrsigner}, product {self.isv_prod_id}, "
                f"SVN {self.min_isv_svn}",
            )
        if "snp" in self.tees and (self.measurement is None or self.manifest_sha256 is None):
            raise UsageError(
                "under SEV-SNP a program is known by its manifest, in a guest image that is known",
                check="identity of the program",
                expected="a measurement, and the manifest's hash",
                seen=f"measurement {self.measurement}, manifest {self.manifest_sha256}",
                remedy="approve by measurement (adyton approve MANIFEST without --by-signer)",
            )
        if {"tdx", "snp", "tpm", "az-snp", "az-tdx", "nitrotpm"} & set(self.tees) and not (
            self.guests or self.guest_images
        ):
            raise UsageError(
                "a confidential machine is approved by its guest image",
                check="guest image",
                expected="a guest that is pinned whole",
                seen="none",
                remedy="approve it with adyton approve: without a guest image the host could start another guest, with"
                " another Adyton in it",
            )
        twice = sorted({"rtmr0", "rtmr1", "rtmr2", "pcrs", "boot_applications"} & set(self.evidence))
        if self.guest_images and twice:
            raise UsageError(
                f"{', '.join(twice)} cannot stand under evidence where the guest image names them",
                check="evidence",
                expected="registers of the guest in its image only",
                seen=", ".join(twice),
            )
        for name, number, top in (
            ("isv_prod_id", self.isv_prod_id, 0xFFFF),
            ("min_isv_svn", self.min_isv_svn, 0xFFFF),
            ("max_runs", self.max_runs, 1 << 40),
            ("max_active", self.max_active, 1 << 40),
            ("lease_s", self.lease_s, MAX_LEASE_S),
        ):
            if number is not None and not 0 <= number <= top:
                raise UsageError(f"{name} is out of range", check=name, expected=f"0 to {top}", seen=number)
        for status in self.tcb_statuses:
            if status not in ACCEPTABLE_STATUSES:
                raise UsageError(
                    f"TCB status {status!r} cannot be accepted",
                    check="TCB status",
                    expected=", ".join(ACCEPTABLE_STATUSES),
                    seen=status,
                    remedy="Revoked and NotSupported are refused whatever the policy says",
                )
        if not self.tcb_statuses:
            raise UsageError("an approval accepts no TCB status, so nobody could have the key", check="TCB status")
        for advisory in self.advisories:
            if not is_advisory_name(advisory):
                raise UsageError(f"{advisory[:60]!r} is no advisory id", check="advisory", expected="as INTEL-SA-00615")
        if not self.protocols or any(protocol not in PROTOCOLS for protocol in self.protocols):
            raise UsageError(
                "unknown protocol", check="protocol", expected=" or ".join(PROTOCOLS), seen=",".join(self.protocols)
            )

    def identity(self) -> str:
        """The program in one line of text."""
        if self.measurement is not None:
            return f"measurement {self.measurement}"
        return f"signer {self.mrsigner}, product {self.isv_prod_id}, SVN {self.min_isv_svn} or newer"

    def to_dict(self) -> dict[str, Any]:
        """The approval as plain data (JSON, TOML), without unset entries."""
        found: dict[str, Any] = {}
        for spec in fields(self):
            value = getattr(self, spec.name)
            if value is None or value == () or value == "" or (spec.name == "raw_report_data" and not value):
                continue
            if isinstance(value, Measurement | Digest):
                value = value.hex()
            elif isinstance(value, datetime):
                value = timestamp(value)
            elif isinstance(value, tuple):
                value = [_plain(entry) for entry in value]
            elif spec.name == "evidence":
                if not value:
                    continue
                value = dict(value)
            elif spec.name == "advisories":
                value = {name: "" if until is None else timestamp(until) for name, until in value.items()}
            found[spec.name] = value
        return found

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Approval:
        """Parse the data of `to_dict`. An unknown entry or one of the wrong type is refused by name."""
        known = {spec.name for spec in fields(cls)}
        unknown = sorted(set(document) - known)
        if unknown:
            raise UsageError(
                f"unknown policy entry: {', '.join(unknown)}",
                check="entries of the policy",
                expected=", ".join(sorted(known)),
                seen=", ".join(unknown),
                remedy="correct the spelling; an entry that is not understood is never ignored",
            )
        missing = {"key", "app", "version", "tees"} - set(document)
        if missing:
            raise UsageError(f"policy entry missing: {', '.join(sorted(missing))}", check="entries of the policy")
        values: dict[str, Any] = {}
        for name, value in document.items():
            values[name] = _read_entry(name, value)
        return cls(**values)

    def changed(self, **changes: Any) -> Approval:
        """A copy with some entries changed. All entries are checked again."""
        return replace(self, **changes)


_TEXTS: Final = {"key", "app", "version", "note", "agreement"}
_LISTS: Final = {"tees", "tcb_statuses", "protocols", "not_covered", "findings", "allowed"}
_NUMBERS: Final = {"isv_prod_id", "min_isv_svn", "max_runs", "max_active", "lease_s"}


def _read_entry(name: str, value: object) -> object:
    if name in _TEXTS:
        return _expect(name, value, str)
    if name in _NUMBERS:
        if isinstance(value, bool):
            raise _ill_typed(name, "a whole number", value)
        return _expect(name, value, int)
    if name == "evidence":
        return _expect(name, value, dict)
    if name in ("allow_debug", "raw_report_data"):
        return _expect(name, value, bool)
    if name in _LISTS:
        _expect(name, value, list)
        return tuple(_expect(name, entry, str) for entry in value)  # type: ignore[attr-defined]
    if name == "guests":
        _expect(name, value, list)
        return tuple(Measurement.from_hex(_expect(name, entry, str)) for entry in value)  # type: ignore[attr-defined]
    if name == "guest_images":
        _expect(name, value, list)
        return tuple(parse_guest(entry) for entry in value)  # type: ignore[attr-defined]
    if name == "measurement":
        return Measurement.from_hex(_expect(name, value, str))
    if name in ("mrsigner", "manifest_sha256"):
        return Digest.from_hex(_expect(name, value, str))
    if name == "expires_at":
        return parse_end(_expect(name, value, str), name)
    _expect(name, value, dict)
    return {
        _expect(name, advisory, str): parse_end(_expect(name, until, str), name) if until else None
        for advisory, until in value.items()  # type: ignore[attr-defined]
    }


def _plain(entry: object) -> object:
    if isinstance(entry, Guest):
        return entry.to_dict()
    return entry.hex() if isinstance(entry, Measurement) else entry


def _expect(name: str, value: object, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise _ill_typed(name, kind.__name__, value)
    return value


def _ill_typed(name: str, expected: str, value: object) -> UsageError:
    return UsageError(f"policy entry {name} is ill-typed", check=name, expected=expected, seen=type(value).__name__)


@dataclass(frozen=True, slots=True)
class StoredApproval:
    """An approval with its id, state and revision number."""

    id: str
    state: str
    revision: int
    approval: Approval
    changed_at: datetime

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise StoreError(f"approval {self.id} has the unknown state {self.state!r}", check="state of an approval")
