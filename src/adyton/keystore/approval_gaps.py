"""Gaps: reasons why an approval can release nothing on one of its TEEs, with any evidence.

A new approval with a gap is refused. A stored one is loaded, shown with its gap, and judged by it at every decision.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from adyton.attest.evidence_policy import Policy
from adyton.attest.guest import MUST_COVER, confidential_kind
from adyton.attest.policy.judge_boot import PARAVISOR_EXPECTED, names_id_key
from adyton.check import Check
from adyton.errors import UsageError
from adyton.keystore.approval import ADYTON
from adyton.manifest.findings import RAW_REPORT_DATA, RAW_REPORT_DATA_TEES

if TYPE_CHECKING:
    from adyton.keystore.approval import Approval

GUEST_LINE: Final = "guest image"
ROOT_LINE: Final = "root of the TPM"
PARAVISOR_LINE: Final = "paravisor"
SIGNER_LINE: Final = "identity of the program"
RAW_LINE: Final = "report data of the program"
AGREEMENT_LINE: Final = "agreement"

EXPECTED: Final = {
    "tdx": "a guest that is pinned whole: MRTD, RTMR0, RTMR1 and RTMR2",
    "tpm": "a guest that is pinned by its PCRs and boot applications",
    "nitrotpm": "a guest that is pinned by its PCRs 4 and 11 (SHA-384)",
    "snp": f"a guest image document which says that the launch digest covers {', '.join(MUST_COVER)}",
}
REMEDY: Final = {
    "tpm": "approve it with --guest-image image.json, the document of a guest image that you built or checked",
    "nitrotpm": "approve it with --guest-image image.json, the document of a guest image that you built or checked",
    "tdx": (
        "approve it again with --guest-image image.json, of a guest image that you built or checked; or with"
        " --guest MRTD --rtmr0 HEX --rtmr1 HEX --rtmr2 HEX, computed from it"
    ),
    "snp": (
        "approve it again with --guest-image image.json, whose launch digest covers them (QEMU with kernel-hashes=on),"
        " and --allow-host-acpi"
    ),
}


VERIFIED_ONLY: Final = frozenset({"nitro"})
"""TEEs whose evidence is verified and shown, while Adyton does not run there."""


def lines(approval: Approval, tee: str) -> list[Check]:
    """The checks whether this approval can release anything on this TEE. Empty where none applies."""
    found = []
    if tee in VERIFIED_ONLY:
        found.append(
            Check(
                GUEST_LINE,
                "a guest image document that says which PCRs the image gives",
                "none is known for this TEE",
                False,
                f"nothing can be approved for {tee}: `adyton verify` judges it; keys go to tdx, sgx or nitrotpm",
            )
        )
    kind = confidential_kind(tee)
    if kind is not None:
        named = [guest for guest in approval.guest_images if guest.kind == kind]
        pinned = bool(named)
        if pinned:
            seen = "pinned whole"
        elif approval.guests:
            seen = f"the firmware only ({', '.join(str(guest) for guest in approval.guests[:3])})"
        else:
            seen = "none"
        found.append(Check(GUEST_LINE, EXPECTED[kind], seen, pinned, REMEDY[kind]))
    if tee in PARAVISOR_EXPECTED:
        names = bool(approval.guests) or names_id_key(Policy.from_dict(approval.evidence).snp, tee)
        found.append(
            Check(
                PARAVISOR_LINE,
                PARAVISOR_EXPECTED[tee],
                "named" if names else "none: anybody's software in its place could make up the TPM and all PCRs",
                names,
                "approve it with --paravisor HEX, the launch digest or MRTD of Microsoft's paravisor; for az-snp"
                " snp.id_key_digests in --require FILE does, too",
            )
        )
    if tee == "tpm":
        found.append(
            Check(
                ROOT_LINE,
                "an approval that names the root of the TPM",
                "none: approvals have no place for it, and such a machine's memory is not encrypted",
                False,
                "approve az-snp or az-tdx (Azure), or sim-tpm:ROOT to try; adyton verify judges quotes of any TPM",
            )
        )
    if kind is not None and approval.mrsigner is not None:
        found.append(
            Check(
                SIGNER_LINE,
                "a measurement: the evidence of a confidential machine names no signer",
                approval.identity(),
                False,
                "approve it by measurement (adyton approve MANIFEST without --by-signer)",
            )
        )
    if approval.raw_report_data:
        name = tee.partition(":")[0]
        found.append(
            Check(
                RAW_LINE,
                f"{RAW_REPORT_DATA} only under {', '.join(sorted(RAW_REPORT_DATA_TEES))}",
                name,
                name in RAW_REPORT_DATA_TEES,
                "leave the key out of the manifest, build it again and approve that",
            )
        )
    if approval.agreement and (tee == "sgx" or approval.protocols != (ADYTON,)):
        found.append(
            Check(
                AGREEMENT_LINE,
                "a TEE with a keeper beside the program, and the protocol adyton alone",
                f"{tee}, over {', '.join(approval.protocols)}",
                False,
                "under sgx nothing apart from the program can bring the other parties' statements, and ra-tls has no"
                " place for them: approve it for tdx, snp or an Azure machine, with --protocol adyton",
            )
        )
    return found


def gaps(approval: Approval) -> tuple[tuple[str, Check], ...]:
    """The TEEs on which it can release nothing, each with the failed check."""
    return tuple((tee, line) for tee in approval.tees for line in lines(approval, tee) if not line.ok)


def check_sound(approval: Approval) -> None:
    """Refuse an approval that could release nothing on one of its TEEs. Raises UsageError."""
    for tee, gap in gaps(approval):
        raise UsageError(
            f"this approval could release nothing under {tee}: the {gap.name} does not do",
            check=gap.name,
            expected=str(gap.expected),
            seen=str(gap.seen),
            remedy=gap.remedy,
        )
