"""The guests that an owner may approve, out of a guest image document. Pure.

A document has one entry for each way in which hardware can start the image. Each entry that pins the whole guest
becomes one guest. The ACPI tables, which the host writes, are pinned by an entry, or by the RTMR0 that the owner gives,
or left open by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from adyton.attest.guest import MUST_COVER, NitroTPMGuest, SNPGuest, TDXGuest, TPMGuest
from adyton.errors import UsageError
from adyton.image.document import BOOTS
from adyton.values import Measurement

if TYPE_CHECKING:
    from adyton.attest.guest import Guest
    from adyton.image.document import GuestImage
    from adyton.values import Digest

MAX_GUESTS: Final = 64
"""Most guests of one approval: a person has to be able to look at them."""

ALLOW: Final = "--allow-host-acpi, if you accept that the host can attack the guest through its ACPI tables"


def guests_of(
    image: GuestImage,
    kind: str,
    *,
    rtmr0: Measurement | None = None,
    mrtd: Measurement | None = None,
    pcr7: Digest | None = None,
    allow_host_acpi: bool = False,
) -> tuple[Guest, ...]:
    """The guests of this kind (`attest.guest.confidential_kind`), each once, in the order of the document.

    `rtmr0` is the value for TDX entries that name none. `mrtd` is a firmware that the document does not know, as a
    cloud's own: it stands in place of all in the document, and starts the image from its disk. `pcr7` pins the state
    of Secure Boot where a TPM measures.

    Raises UsageError where no entry fits, with the remedy.
    """
    if rtmr0 is not None and kind != "tdx":
        raise _refused("--rtmr0", "a TDX guest", kind, "leave it out")
    if mrtd is not None and kind != "tdx":
        raise _refused("--guest", "a TDX guest", kind, "leave it out")
    if pcr7 is not None and kind != "tpm":
        raise _refused("--pcr7", "a guest that a TPM measures", kind, "leave it out")
    found: list[Guest]
    if kind == "tpm":
        found = _tpm(image, pcr7)
    elif kind == "nitrotpm":
        found = _nitrotpm(image)
    else:
        found = _tdx(image, rtmr0, mrtd, allow=allow_host_acpi) if kind == "tdx" else _snp(image, allow=allow_host_acpi)
    guests = tuple(dict.fromkeys(found))
    if len(guests) > MAX_GUESTS:
        raise _refused(
            "number of guests",
            f"at most {MAX_GUESTS}",
            str(len(guests)),
            "take an image.json with the firmware and the machines that you use: adyton image measure --firmware FILE",
        )
    return guests


def left_out(image: GuestImage, *, rtmr0: Measurement | None, allow_host_acpi: bool) -> tuple[str, ...]:
    """The firmware of each TDX entry that makes no guest beside others: nothing pins the ACPI tables of its machine."""
    if rtmr0 is not None or allow_host_acpi:
        return ()
    return tuple(entry.firmware.name for entry in image.tdx if entry.acpi is None)


def _tdx(image: GuestImage, rtmr0: Measurement | None, mrtd: Measurement | None, *, allow: bool) -> list[Guest]:
    if not image.tdx:
        raise _none("tdx")
    if mrtd is not None:
        return _under(image, mrtd, rtmr0, allow=allow)
    if rtmr0 is not None and all(entry.acpi is not None for entry in image.tdx):
        raise _refused("--rtmr0", "an entry without acpi", "an acpi member in every entry", "leave --rtmr0 out")
    found: list[Guest] = []
    for entry in image.tdx:
        pinned = rtmr0 if entry.acpi is None else entry.acpi.rtmr0
        if pinned is not None or allow:
            found.append(TDXGuest(mrtd=entry.mrtd, rtmr0=pinned, rtmr1=entry.rtmr1, rtmr2=entry.rtmr2))
    if not found:
        raise _refused(
            "ACPI tables of the host",
            "an entry that pins them (acpi)",
            f"none in {len(image.tdx)} entries",
            f"give their register with --rtmr0 HEX, computed for your machine; or {ALLOW}",
        )
    return found


def _under(image: GuestImage, mrtd: Measurement, rtmr0: Measurement | None, *, allow: bool) -> list[Guest]:
    """The guest under another firmware. Its kernel's registers are those of every firmware that starts the disk."""
    if rtmr0 is None and not allow:
        raise _refused(
            "ACPI tables of the host",
            "pinned",
            "a firmware whose machine the document does not know",
            f"give their register with --rtmr0 HEX, of a machine that you checked; or {ALLOW}",
        )
    entries = [entry for entry in image.tdx if entry.boot == BOOTS[0]]
    if not entries:
        raise _none("tdx, started from the disk")
    return [TDXGuest(mrtd=mrtd, rtmr0=rtmr0, rtmr1=entry.rtmr1, rtmr2=entry.rtmr2) for entry in entries]


def _tpm(image: GuestImage, pcr7: Digest | None) -> list[Guest]:
    """One guest for each way to boot: the programs are the same, and their order too."""
    started = (image.uki.sha256, image.linux.sha256)
    secure_boot = None if pcr7 is None else pcr7.raw
    return [TPMGuest(boot_applications=started, pcr11=image.pcr(boot, 11), pcr7=secure_boot) for boot in BOOTS]


def _nitrotpm(image: GuestImage) -> list[Guest]:
    """The boot from the disk: EC2 has no other."""
    pcr4, pcr11 = (Measurement(image.pcr("disk-boot", number, "sha384")) for number in (4, 11))
    return [NitroTPMGuest(pcr4=pcr4, pcr11=pcr11)]


def _snp(image: GuestImage, *, allow: bool) -> list[Guest]:
    if not image.snp:
        raise _none("snp")
    covering = [entry for entry in image.snp if entry.covers == MUST_COVER]
    if not covering:
        raise _refused(
            "launch digest",
            f"one that covers {', '.join(MUST_COVER)}",
            "; ".join(sorted({", ".join(entry.covers) or "the firmware only" for entry in image.snp})),
            "measure the image with a firmware that holds the hashes of the kernel (AmdSev OVMF, kernel-hashes=on):"
            " adyton image measure --firmware FILE",
        )
    if not allow:
        raise _refused("ACPI tables of the host", "pinned", "no launch digest of SEV-SNP covers them", f"add {ALLOW}")
    return [SNPGuest(launch_digest=entry.launch_digest, launch_digest_covers=entry.covers) for entry in covering]


def _none(kind: str) -> UsageError:
    return _refused(
        f"entries for {kind}",
        "at least one",
        "none",
        "measure the image with your machine's firmware: adyton image measure --firmware FILE",
    )


def _refused(check: str, expected: str, seen: str, remedy: str) -> UsageError:
    return UsageError(
        f"this guest image cannot be approved so: {check}: expected {expected}, seen {seen}",
        check=check,
        expected=expected,
        seen=seen,
        remedy=remedy,
    )
