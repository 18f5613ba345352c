"""Verification of one device: evidence, collateral, roots and a time go in, and what was found comes out.

The steps, in their order:

1  the report and the certificates parse, the chain leads to a pinned root, everything is valid now
2  the architecture, the report's signature, the firmware id, the nonce: after this the device is genuine
3  OCSP: no certificate of the chain is revoked (the device makes its leaf itself, so nobody can revoke that)
4  the RIM of the driver (not for an NVSwitch) and of the VBIOS: signature, chain, time, OCSP, version
5  no index is active in both RIMs, and every active one matches the report

A failure in steps 1 and 2 ends it. Later steps are all taken, so that everything that is wrong is seen at once.
Sources: NVIDIA's verifiers (nvtrust, attestation-sdk). They compare firmware id and nonce before the signature.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from adyton.attest.certificates import ECDSA_SHA384, ecdsa_is_valid
from adyton.attest.checks import Checks
from adyton.attest.nvidia.chain import DEVICE_CHAIN, DeviceChain, check_chain, fwid_of, parse_pem_chain
from adyton.attest.nvidia.collateral import MAX_KNOWN
from adyton.attest.nvidia.gpu_policy import GPUPolicy
from adyton.attest.nvidia.layout import SIMULATED_PREFIX, TEE
from adyton.attest.nvidia.ocsp import check_answer
from adyton.attest.nvidia.rim import check_signers
from adyton.attest.nvidia.spdm import parse_report
from adyton.attest.validity import check_validity
from adyton.check import Check
from adyton.errors import AppraisalFailed, BadChain, Error, EvidenceError, FetchFailed, Mismatch, Stale, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from adyton.attest.certificates import Certificate
    from adyton.attest.nvidia.collateral import GPUCollateral, KnownRIM
    from adyton.attest.nvidia.evidence import DeviceEvidence
    from adyton.attest.nvidia.layout import Arch
    from adyton.attest.nvidia.rim import RIM
    from adyton.attest.nvidia.spdm import Report
    from adyton.attest.roots import TrustRoots

NVDEC0_INDEX: Final = 35
"""This measurement says something only where NVDEC0 is enabled."""
_SWITCH_BOARD: Final = "5612_0002_890"
"""Project, project SKU and chip SKU of the LS10 NVSwitch, whose reports do not state them."""
_PRODUCTS: Final = {"HOPPER": ("GH",), "BLACKWELL": ("GB",), "LS10": ("LS10", "LS_10")}
_FETCH: Final = "fetch it: adyton collateral fetch --gpu --for EVIDENCE, or give it: --collateral FILE"
_NO_POLICY: Final = GPUPolicy()


@dataclass(frozen=True, slots=True)
class Mismatched:
    """A measurement that differs from every good value."""

    index: int
    source: str
    """driver or vbios: the RIM that names the good values."""
    golden: tuple[bytes, ...]
    seen: bytes
    """What the report measured. Empty where the report has no such index."""


@dataclass(kw_only=True)
class Device:
    """One device, as far as it was verified."""

    arch: Arch | None
    report: Report | None = None
    chain: DeviceChain | None = None
    genuine: bool = False
    """Whether chain, firmware id, nonce and signature are good. It says nothing about the firmware."""
    matched: tuple[int, ...] = ()
    """Indexes of active measurements that match."""
    mismatched: tuple[Mismatched, ...] = ()
    compared: bool = False
    """Whether all reference values were at hand, so that every measurement was compared."""
    revocation_checked: bool = False
    checks: list[Check] = field(default_factory=list)
    errors: list[Error] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What was accepted by exception."""
    expires_at: datetime | None = None
    """The earliest end of validity of all that was used. None where it is not genuine."""

    @property
    def is_switch(self) -> bool:
        """Whether it is an NVSwitch."""
        return self.arch == "LS10"

    @property
    def driver(self) -> str:
        """Version of the driver. Empty where none is stated."""
        return (self.report.opaque.driver or "") if self.report else ""

    @property
    def vbios(self) -> str:
        """Version of the VBIOS. Empty where none is stated."""
        return (self.report.opaque.vbios or "") if self.report else ""

    @property
    def ueid(self) -> str:
        """UEID, in decimal. Empty where the chain does not parse."""
        return self.chain.ueid if self.chain else ""

    @property
    def serial(self) -> str:
        """Serial number of the boot ROM's certificate, in decimal."""
        return self.chain.serial if self.chain else ""

    @property
    def tee(self) -> str:
        """`nvidia-gpu`, or `sim-nvidia-gpu` for one under a simulated root."""
        return SIMULATED_PREFIX + TEE if self.chain is not None and self.chain.simulated else TEE

    @property
    def tee_with_root(self) -> str:
        """The TEE as a policy names it: a simulated one with the fingerprint of its root."""
        return f"{self.tee}:{self.chain.root}" if self.chain is not None and self.chain.simulated else self.tee

    @property
    def ok(self) -> bool:
        """Whether it is genuine, and everything about it was checked and held."""
        return self.genuine and self.compared and not self.errors

    def use_until(self, end: datetime) -> None:
        """Note the end of validity of something that was used."""
        self.expires_at = end if self.expires_at is None else min(self.expires_at, end)


def verify_device(
    evidence: DeviceEvidence,
    collateral: GPUCollateral,
    roots: TrustRoots,
    now: datetime,
    *,
    nonce: bytes | None = None,
    policy: GPUPolicy = _NO_POLICY,
) -> Device:
    """Verify one device at the time `now`. It raises nothing: every failure is in the result.

    `nonce` (32 bytes) is compared with the report's, and so is the nonce that the evidence states. Of `policy` only the
    exceptions count here: exempted RIMs, missing OCSP answers, and developer mode.
    """
    checks = Checks()
    device = Device(arch=evidence.arch)
    try:
        _check_genuine(checks, device, evidence, collateral, roots, now, nonce)
    except EvidenceError as error:
        _note(device, checks, error)
        device.checks = checks.done
        return device
    _step(device, checks, lambda: _check_revocation(checks, device, collateral, now, policy))
    rims = _reference_values(checks, device, collateral, roots, now, policy)
    _step(device, checks, lambda: _compare(checks, device, rims, policy))
    device.checks = checks.done
    return device


def _step(device: Device, checks: Checks, take: Callable[[], None]) -> None:
    try:
        take()
    except (EvidenceError, Unavailable) as error:
        _note(device, checks, error)


def _note(device: Device, checks: Checks, error: Error) -> None:
    """Keep an error, and its check where no check recorded it."""
    device.errors.append(error)
    if isinstance(error, EvidenceError) and (not checks.done or checks.done[-1].ok):
        first = next(iter(error.failed), Check("", None, None, ok=False))
        checks.done.append(first._replace(name=first.name or "GPU evidence"))


# --- genuine ----------------------------------------------------------------------------------------------------------


def _check_genuine(
    checks: Checks,
    device: Device,
    evidence: DeviceEvidence,
    collateral: GPUCollateral,
    roots: TrustRoots,
    now: datetime,
    nonce: bytes | None,
) -> None:
    """Steps 1 and 2."""
    report = device.report = parse_report(evidence.report)
    if len(collateral.known) >= MAX_KNOWN:
        collateral.known.clear()
    certificates = parse_pem_chain(evidence.chain, DEVICE_CHAIN, "device certificate chain", collateral.known)
    device.chain = chain = DeviceChain(certificates, simulated=False)
    simulated = check_chain(checks, certificates, roots.nvidia_device, roots, "device")
    device.chain = chain = DeviceChain(certificates, simulated)
    check_validity(checks, [certificate.window for certificate in certificates], now)
    _check_arch(checks, device, evidence, chain)
    key = chain.leaf.p384
    checks.require(
        "report: signature",
        key is not None and ecdsa_is_valid(key, report.signature, report.signed_part, ECDSA_SHA384),
        expected="a signature by the device key",
        seen="a signature by another key, or over other bytes",
        error=BadChain,
        remedy="refuse the evidence: the report was altered, or the certificate is of another device",
    )
    _check_fwid(checks, report, chain)
    _check_nonces(checks, report, evidence, nonce)
    device.genuine = True
    for certificate in certificates:
        device.use_until(certificate.window.not_after)


def _check_arch(checks: Checks, device: Device, evidence: DeviceEvidence, chain: DeviceChain) -> None:
    model = chain.model
    found: Arch | None = None
    if model.startswith("GH"):
        found = "HOPPER"
    elif model.startswith("GB"):
        found = "BLACKWELL"
    elif model.startswith("LS_10"):
        found = "LS10"
    checks.require(
        "architecture",
        found is not None and evidence.arch in (None, found),
        expected=evidence.arch or ", ".join(_PRODUCTS),
        seen=model,
        error=Mismatch,
        remedy="name the architecture that the certificate is for",
    )
    device.arch = found


def _check_fwid(checks: Checks, report: Report, chain: DeviceChain) -> None:
    stated, certified = report.opaque.fwid, fwid_of(chain.leaf)
    checks.require(
        "firmware id",
        certified is not None and stated in (None, certified),
        expected=certified or "a firmware id in the certificate",
        seen=stated or ("none in the report" if certified else "none"),
        error=Mismatch,
        remedy="refuse the evidence: report and certificate are of different firmware",
    )


def _check_nonces(checks: Checks, report: Report, evidence: DeviceEvidence, nonce: bytes | None) -> None:
    for what, wanted in (("nonce of the evidence", evidence.nonce), ("nonce", nonce)):
        if wanted is not None:
            checks.require(
                what,
                wanted == report.nonce,
                expected=wanted,
                seen=report.nonce,
                error=Mismatch,
                message=f"the report is for another {what}: it was made for somebody else, or is replayed",
                remedy="request new evidence for this nonce",
            )


# --- revocation -------------------------------------------------------------------------------------------------------


def _check_revocation(
    checks: Checks, device: Device, collateral: GPUCollateral, now: datetime, policy: GPUPolicy
) -> None:
    """Step 3. The leaf and the root have no answers."""
    if device.chain is None:
        return
    chain = device.chain.certificates[1:]
    device.revocation_checked = _check_answers(checks, device, chain, collateral, now, policy)


def _check_answers(
    checks: Checks,
    device: Device,
    chain: Sequence[Certificate],
    collateral: GPUCollateral,
    now: datetime,
    policy: GPUPolicy,
) -> bool:
    """Check an OCSP answer about every certificate of a chain but the root. Returns whether none was missing."""
    whole = True
    for place, certificate in enumerate(chain[:-1]):
        authorities = chain[place + 1 :]
        answers = collateral.answers_about(certificate, authorities[0])
        if certificate.window.not_after < now:
            # Its RIM counts only by record or exemption, and responders forget expired certificates. What it was
            # revoked for before its end still counts.
            answers = tuple(answer for answer in answers if answer.status == "revoked")
            for answer in answers[:1]:
                check_answer(checks, answer, collateral.signer(answer, authorities), certificate, answer.this_update)
        elif answers:
            window = check_answer(checks, answers[0], collateral.signer(answers[0], authorities), certificate, now)
            device.use_until(window.not_after)
        elif policy.allow_missing_ocsp:
            whole = False
            device.notes.append(f"no OCSP answer about the {certificate.what}: the policy allows it")
        else:
            raise FetchFailed(
                f"there is no OCSP answer about the {certificate.what} ({certificate.common_name})",
                check=f"{certificate.what}: not revoked",
                expected="an OCSP answer",
                seen="none",
                remedy=_FETCH,
            )
    return whole


# --- reference values -------------------------------------------------------------------------------------------------


def driver_rim_ids(device: Device) -> tuple[str, ...]:
    """The ids under which NVIDIA's service has the driver's RIM. None for an NVSwitch."""
    if device.report is None or not device.driver:
        return ()
    if device.arch == "HOPPER":
        return (f"NV_GPU_DRIVER_GH100_{device.driver}",)
    return (f"NV_GPU_CC_DRIVER_{device.report.opaque.chip_info or 'GB100'}_{device.driver}",)


def vbios_rim_ids(device: Device) -> tuple[str, ...]:
    """The ids under which NVIDIA's service has the VBIOS RIM."""
    version = device.vbios.replace(".", "").upper()
    if device.report is None or not version:
        return ()
    if device.is_switch:
        return (f"NV_SWITCH_BIOS_{_SWITCH_BOARD}_{version}",)
    opaque = device.report.opaque
    if None in (opaque.project, opaque.project_sku, opaque.chip_sku):
        return ()
    return (f"NV_GPU_VBIOS_{opaque.project}_{opaque.project_sku}_{opaque.chip_sku}_{version}",)


def _reference_values(
    checks: Checks, device: Device, collateral: GPUCollateral, roots: TrustRoots, now: datetime, policy: GPUPolicy
) -> dict[str, RIM]:
    """Step 4: the RIMs that hold, by what they are about."""
    wanted = {"vbios": (device.vbios, vbios_rim_ids(device))}
    if not device.is_switch:
        wanted = {"driver": (device.driver, driver_rim_ids(device)), **wanted}
    found: dict[str, RIM] = {}
    for source, (version, ids) in wanted.items():

        def take(source: str = source, version: str = version, ids: tuple[str, ...] = ids) -> None:
            candidates = collateral.rims_for(version, ids)
            if not candidates:
                raise FetchFailed(
                    f"there is no RIM for the {source} {version or 'that the report does not name'}",
                    check=f"{source} RIM: at hand",
                    expected=" or ".join(ids) or f"a RIM for {source} {version}",
                    seen="none",
                    remedy=_FETCH,
                )
            found[source] = _usable(checks, device, source, candidates, collateral, roots, now, policy)

        _step(device, checks, take)
    return found


def _usable(
    checks: Checks,
    device: Device,
    source: str,
    candidates: Sequence[KnownRIM],
    collateral: GPUCollateral,
    roots: TrustRoots,
    now: datetime,
    policy: GPUPolicy,
) -> RIM:
    """The first candidate that holds. Raises the first one's error where none does."""
    first: Error | None = None
    for candidate in candidates:
        tried = Checks()
        try:
            _check_rim(tried, device, source, candidate, collateral, roots, now, policy)
        except (EvidenceError, Unavailable) as error:
            if first is None:
                first, failed = error, tried
            continue
        checks.done += tried.done
        return candidate.rim
    checks.done += failed.done
    raise first or FetchFailed("there is no RIM")


def _check_rim(
    checks: Checks,
    device: Device,
    source: str,
    known: KnownRIM,
    collateral: GPUCollateral,
    roots: TrustRoots,
    now: datetime,
    policy: GPUPolicy,
) -> None:
    rim = known.rim
    simulated = check_signers(checks, rim, roots)
    checks.require(
        f"{source} RIM: same vendor as the device",
        device.chain is not None
        and simulated == device.chain.simulated
        and (not simulated or rim.chain[-1].fingerprint == device.chain.root),
        expected="NVIDIA for both, or one simulated root for both",
        seen="a RIM under another simulated root" if simulated else "NVIDIA's RIM for a simulated device",
        error=BadChain,
    )
    checks.require(
        f"{source} RIM: product",
        rim.product.startswith(_PRODUCTS[device.arch or "HOPPER"]),
        expected=device.arch,
        seen=rim.product,
        error=Mismatch,
        remedy=_FETCH,
    )
    _check_signed_in_time(checks, device, source, known, now, policy)
    _check_answers(checks, device, rim.chain, collateral, now, policy)


def _check_signed_in_time(
    checks: Checks, device: Device, source: str, known: KnownRIM, now: datetime, policy: GPUPolicy
) -> None:
    """The signers are valid now, or were when the store recorded the RIM, or the policy exempts it."""
    rim, exemption = known.rim, policy.exemption_for(known.rim.fingerprint, now)
    if rim.is_signed_in_time(now):
        device.use_until(rim.valid_until)
    elif known.recorded_at is not None and known.recorded_at <= now and rim.is_signed_in_time(known.recorded_at):
        when = f"{known.recorded_at:%Y-%m-%d}"
        device.notes.append(f"the signer of the {source} RIM has expired; the store recorded this RIM on {when}")
    elif exemption is not None:
        device.notes.append(
            f"the signer of the {source} RIM has expired; {exemption.owner} answers for it until "
            f"{exemption.until:%Y-%m-%d}"
        )
        device.use_until(exemption.until)
    else:
        checks.require(
            f"{source} RIM: signer valid",
            False,
            expected=(rim.valid_from, rim.valid_until),
            seen=now,
            error=Stale,
            message=f"the signer of the {source} RIM is not valid now, and no record or exemption says that it was",
            remedy=f"fetch the RIM again; or answer for it in the policy: gpus.rim_exemptions, "
            f"sha256 {rim.fingerprint}",
        )
    checks.require(
        f"{source} RIM: signer valid",
        True,
        expected=(rim.valid_from, rim.valid_until),
        seen=now,
    )


# --- measurements -----------------------------------------------------------------------------------------------------


def _compare(checks: Checks, device: Device, rims: dict[str, RIM], policy: GPUPolicy) -> None:
    """Step 5. What cannot be compared for want of a RIM is an error already."""
    if device.report is None:
        return
    both = sorted(set.intersection(*(set(rim.golden) for rim in rims.values()))) if len(rims) > 1 else []
    checks.require(
        "RIMs: no index in both",
        not both,
        expected="no active measurement in both RIMs",
        seen=f"indexes {', '.join(map(str, both))}" if both else "none",
        error=Mismatch,
        remedy="fetch the RIMs again; if they stay so, ask NVIDIA",
    )
    matched: list[int] = []
    mismatched: list[Mismatched] = []
    for source, rim in rims.items():
        for index, golden in rim.golden.items():
            if index == NVDEC0_INDEX and device.report.opaque.nvdec0_disabled:
                continue
            seen = device.report.measurements.get(index, b"")
            if seen in golden:
                matched.append(index)
            else:
                mismatched.append(Mismatched(index, source, golden, seen))
    device.matched = tuple(sorted(matched))
    device.mismatched = tuple(sorted(mismatched, key=lambda item: item.index))
    device.compared = len(rims) == (1 if device.is_switch else 2)
    if mismatched and policy.allow_devtools:
        device.notes.append(f"{len(mismatched)} measurements differ from the RIMs: the policy allows developer mode")
        return
    checks.require(
        "measurements",
        not mismatched,
        expected=f"every active measurement of the RIM{'s' if len(rims) > 1 else ''}",
        seen="; ".join(f"{item.source} {item.index}: {item.seen.hex()[:16]}…" for item in device.mismatched[:8])
        or "all match",
        error=AppraisalFailed,
        message=f"{len(mismatched)} measurements of the device are not those that NVIDIA vouches for",
        remedy="update driver and VBIOS, and switch developer mode off; then request new evidence",
    )
