"""A confidential machine's guest, pinned whole: firmware, kernel, initrd, command line, and what the host adds to them.

The firmware's measurement alone pins nothing else: a host boots another kernel under it, and that kernel says what it
likes. So a guest that leaves any part open cannot be expressed here. One part may be left open by name: the ACPI
tables, which a host writes, and whose code the guest's kernel runs (`host_acpi`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

from adyton.attest.evidence_policy import Policy
from adyton.errors import UsageError
from adyton.values import Digest, Measurement

REGISTER_BYTES: Final = 48
PCR_BYTES: Final = 32
MAX_BOOT_APPLICATIONS: Final = 16
MUST_COVER: Final = ("cmdline", "initrd", "kernel")
"""What SEV-SNP's launch digest must cover besides the firmware, sorted. It never covers the host's ACPI tables."""
HOST_ACPI: Final = "the host writes the ACPI tables"


def confidential_kind(tee: str) -> str | None:
    """`tdx`, `snp`, `tpm` or `nitrotpm` for a TEE that is a whole machine, as policies name TEEs. None for an enclave.

    `tpm` is every machine whose guest a TPM measures with SHA-256: Azure's confidential machines, too.
    """
    name = tee.partition(":")[0].removeprefix("sim-")
    if name in ("az-snp", "az-tdx"):
        return "tpm"
    return name if name in ("tdx", "snp", "tpm", "nitrotpm") else None


def _refused(check: str, expected: str, seen: str) -> UsageError:
    return UsageError(
        f"this does not pin a guest: {check}: expected {expected}, seen {seen}",
        check=check,
        expected=expected,
        seen=seen,
        remedy="take every value from the guest image that you built or checked, none from evidence that a host showed",
    )


def _check_register(name: str, value: Measurement) -> None:
    if len(value.raw) != REGISTER_BYTES:
        raise _refused(name, f"{2 * REGISTER_BYTES} hex digits", f"{2 * len(value.raw)} hex digits")
    if not any(value.raw):
        raise _refused(name, "a register that something was measured into", "zeros: the firmware measured nothing")


@dataclass(frozen=True, slots=True, kw_only=True)
class TDXGuest:
    """A TDX guest: firmware (MRTD), its settings and ACPI tables (RTMR0), kernel (RTMR1), command line, initrd (RTMR2).

    RTMR3 is not part of it: it holds the workload. RTMR0 is None where the host's ACPI tables are left open.
    """

    kind: ClassVar[str] = "tdx"
    mrtd: Measurement
    rtmr0: Measurement | None
    rtmr1: Measurement
    rtmr2: Measurement

    def __post_init__(self) -> None:
        for name in ("mrtd", "rtmr0", "rtmr1", "rtmr2"):
            value = getattr(self, name)
            if value is not None:
                _check_register(name, value)

    @property
    def host_acpi(self) -> bool:
        """Whether the host's ACPI tables are left open."""
        return self.rtmr0 is None

    def policy(self) -> Policy:
        """What evidence must show, as one alternative of a policy."""
        return Policy(
            measurements=frozenset({self.mrtd}),
            rtmr0=frozenset(() if self.rtmr0 is None else (self.rtmr0.raw,)),
            rtmr1=frozenset({self.rtmr1.raw}),
            rtmr2=frozenset({self.rtmr2.raw}),
        )

    def to_dict(self) -> dict[str, object]:
        """As plain data."""
        return {
            "tee": self.kind,
            "mrtd": self.mrtd.hex(),
            **({"host_acpi": True} if self.rtmr0 is None else {"rtmr0": self.rtmr0.hex()}),
            "rtmr1": self.rtmr1.hex(),
            "rtmr2": self.rtmr2.hex(),
        }

    def __str__(self) -> str:
        settings = f"RTMR0 open ({HOST_ACPI})" if self.rtmr0 is None else f"RTMR0 {self.rtmr0}"
        return f"MRTD {self.mrtd}, {settings}, RTMR1 {self.rtmr1}, RTMR2 {self.rtmr2}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SNPGuest:
    """A SEV-SNP guest: a launch digest, and the statement that it covers kernel, initrd and command line.

    Only a guest image document can know that. The digest never covers the ACPI tables: they are left open.
    """

    kind: ClassVar[str] = "snp"
    host_acpi: ClassVar[bool] = True
    launch_digest: Measurement
    launch_digest_covers: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_register("launch_digest", self.launch_digest)
        if self.launch_digest_covers != MUST_COVER:
            raise _refused(
                "launch_digest_covers", ", ".join(MUST_COVER), ", ".join(self.launch_digest_covers) or "none"
            )

    def policy(self) -> Policy:
        """What evidence must show, as one alternative of a policy."""
        return Policy(measurements=frozenset({self.launch_digest}))

    def to_dict(self) -> dict[str, object]:
        """As plain data."""
        return {
            "tee": self.kind,
            "launch_digest": self.launch_digest.hex(),
            "launch_digest_covers": list(self.launch_digest_covers),
            "host_acpi": True,
        }

    def __str__(self) -> str:
        covers = ", ".join(self.launch_digest_covers)
        return f"launch digest {self.launch_digest}, which covers {covers}; ACPI tables open ({HOST_ACPI})"


@dataclass(frozen=True, slots=True, kw_only=True)
class TPMGuest:
    """A guest that a TPM measures: what the firmware starts (PCR 4, by its log), and the sections of the UKI (PCR 11).

    PCR 12 and 13 must hold zeros, and PCR 15 the workload (`attest.tpm.pcr_policy`). The firmware is not part of it: on
    clouds it is the provider's.
    """

    kind: ClassVar[str] = "tpm"
    host_acpi: ClassVar[bool] = False
    boot_applications: tuple[bytes, ...]
    """Authenticode SHA-256 (32 bytes each) of the UKI, then of the kernel in it."""
    pcr11: bytes
    pcr7: bytes | None = None
    """The state of Secure Boot, where the owner names it."""

    def __post_init__(self) -> None:
        named = [("boot_applications", self.boot_applications), ("pcr11", (self.pcr11,))]
        for name, values in [*named, *([] if self.pcr7 is None else [("pcr7", (self.pcr7,))])]:
            if not values or any(len(value) != PCR_BYTES or not any(value) for value in values):
                seen = ", ".join(value.hex() for value in values)[:160] or "none"
                raise _refused(name, f"{2 * PCR_BYTES} hex digits each, not zeros", seen)

    def policy(self) -> Policy:
        """What evidence must show, as one alternative of a policy."""
        pcrs = {11: frozenset({self.pcr11})}
        if self.pcr7 is not None:
            pcrs[7] = frozenset({self.pcr7})
        return Policy(boot_applications=self.boot_applications, pcrs=pcrs)

    def to_dict(self) -> dict[str, object]:
        """As plain data."""
        return {
            "tee": self.kind,
            "boot_applications": [value.hex() for value in self.boot_applications],
            "pcr11": self.pcr11.hex(),
            **({} if self.pcr7 is None else {"pcr7": self.pcr7.hex()}),
        }

    def __str__(self) -> str:
        started = ", ".join(value.hex() for value in self.boot_applications)
        secure_boot = "" if self.pcr7 is None else f", PCR 7 {self.pcr7.hex()}"
        return f"boot applications {started}, PCR 11 {self.pcr11.hex()}{secure_boot}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NitroTPMGuest:
    """A guest of an EC2 instance with a NitroTPM: what the firmware starts (PCR 4), and the UKI's sections (PCR 11).

    Values are SHA-384, 48 bytes each: Amazon's documents show no event log. PCR 12 and 13 must hold zeros, and PCR 15
    the workload (`policy.judge_nitro`). The firmware and its ACPI tables are those of Amazon's hypervisor.
    """

    kind: ClassVar[str] = "nitrotpm"
    host_acpi: ClassVar[bool] = False
    pcr4: Measurement
    pcr11: Measurement

    def __post_init__(self) -> None:
        _check_register("pcr4", self.pcr4)
        _check_register("pcr11", self.pcr11)

    def policy(self) -> Policy:
        """What evidence must show, as one alternative of a policy."""
        return Policy(pcrs={4: frozenset({self.pcr4.raw}), 11: frozenset({self.pcr11.raw})})

    def to_dict(self) -> dict[str, object]:
        """As plain data."""
        return {"tee": self.kind, "pcr4": self.pcr4.hex(), "pcr11": self.pcr11.hex()}

    def __str__(self) -> str:
        return f"PCR 4 {self.pcr4}, PCR 11 {self.pcr11}"


Guest = TDXGuest | SNPGuest | TPMGuest | NitroTPMGuest

_MEMBERS: Final[Mapping[str, frozenset[str]]] = {
    "tdx": frozenset({"tee", "mrtd", "rtmr0", "rtmr1", "rtmr2"}),
    "snp": frozenset({"tee", "launch_digest", "launch_digest_covers", "host_acpi"}),
    "tpm": frozenset({"tee", "boot_applications", "pcr11"}),
    "nitrotpm": frozenset({"tee", "pcr4", "pcr11"}),
}


def parse_guest(document: object) -> Guest:
    """Read what `to_dict` made. Members that are unknown, missing or ill-typed are refused. Raises UsageError."""
    if not isinstance(document, dict):
        raise _refused("guest image", "a table", type(document).__name__)
    kind = document.get("tee")
    if not isinstance(kind, str) or kind not in _MEMBERS:
        raise _refused("tee of a guest image", ", ".join(_MEMBERS), str(kind)[:40])
    host_acpi = "host_acpi" in document
    members = _MEMBERS[kind]
    if kind == "tdx" and host_acpi:
        members = members - {"rtmr0"} | {"host_acpi"}
    if kind == "tpm" and "pcr7" in document:
        members = members | {"pcr7"}
    if set(document) != members:
        raise _refused("members of a guest image", ", ".join(sorted(members)), ", ".join(sorted(document))[:160])
    if host_acpi and document["host_acpi"] is not True:
        raise _refused("host_acpi", "true, or left out", str(document["host_acpi"])[:40])
    if kind == "tpm":
        return _tpm(document)
    registers = {
        name: _register(document, name) for name in sorted(members - {"tee", "launch_digest_covers", "host_acpi"})
    }
    if kind == "tdx":
        return TDXGuest(
            mrtd=registers["mrtd"],
            rtmr0=registers.get("rtmr0"),
            rtmr1=registers["rtmr1"],
            rtmr2=registers["rtmr2"],
        )
    if kind == "nitrotpm":
        return NitroTPMGuest(pcr4=registers["pcr4"], pcr11=registers["pcr11"])
    covers = document["launch_digest_covers"]
    if not isinstance(covers, list) or not all(isinstance(part, str) for part in covers):
        raise _refused("launch_digest_covers", "a list of texts", type(covers).__name__)
    return SNPGuest(launch_digest=registers["launch_digest"], launch_digest_covers=tuple(covers))


def _tpm(document: Mapping[str, object]) -> TPMGuest:
    started = document["boot_applications"]
    if not isinstance(started, list) or not 1 <= len(started) <= MAX_BOOT_APPLICATIONS:
        raise _refused("boot_applications", f"a list of 1 to {MAX_BOOT_APPLICATIONS} hashes", type(started).__name__)
    return TPMGuest(
        boot_applications=tuple(_digest("boot_applications", value) for value in started),
        pcr11=_digest("pcr11", document["pcr11"]),
        pcr7=_digest("pcr7", document["pcr7"]) if "pcr7" in document else None,
    )


def _digest(name: str, value: object) -> bytes:
    if not isinstance(value, str):
        raise _refused(name, f"{2 * PCR_BYTES} hex digits", type(value).__name__)
    return Digest.from_hex(value).raw


def _register(document: Mapping[str, object], name: str) -> Measurement:
    value = document[name]
    if not isinstance(value, str):
        raise _refused(name, f"{2 * REGISTER_BYTES} hex digits", type(value).__name__)
    return Measurement.from_hex(value)
