"""Judge a document of AWS Nitro: no debug mode, registers by value, and its age."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from adyton.attest.nitro.document import PCR_BYTES, NitroDocument
from adyton.attest.policy.judge_intel import PROGRAM_REMEDY

if TYPE_CHECKING:
    from datetime import datetime

    from adyton.attest.evidence_policy import Policy
    from adyton.attest.policy.judgement import Judgement
    from adyton.attest.report import VerifiedReport

BOOT_PCR: Final = 4
_ZEROS: Final = bytes(PCR_BYTES)
_ADDED: Final = {12: "more command line and credentials", 13: "system extensions beside it"}
"""PCRs of what systemd's stub adds to an image. PCR 4 and 11 stay as they are."""


def _judge_boot(to: Judgement, document: NitroDocument, policy: Policy) -> None:
    """A NitroTPM: the boot is named, and nothing lies beside it. Whatever boots can put any workload into PCR 15."""
    to.require(
        "boot: named",
        bool(policy.measurements) or BOOT_PCR in policy.pcrs or policy.any_program,
        expected=f"a policy that names PCR {BOOT_PCR}, what the firmware started",
        seen="none: another guest could put the same workload into PCR 15",
        remedy=f"name PCR {BOOT_PCR} in the policy's pcrs or measurements, from an image that you built or checked",
    )
    for number, added in _ADDED.items():
        if number not in policy.pcrs:
            value = document.pcrs.get(number)
            to.require(
                f"PCR {number}",
                value == _ZEROS,
                expected=f"zeros: no {added}",
                seen="absent" if value is None else value,
                remedy=f"start the image without {added}, or name the value in the policy's pcrs",
            )


def judge_nitro(to: Judgement, document: NitroDocument, report: VerifiedReport, policy: Policy, now: datetime) -> None:
    """Judge what an enclave or a NitroTPM says of its program, at the time `now`."""
    if document.tee == "nitro":
        to.require(
            "PCR 0 to 2",
            not document.debug,
            expected="values that something was measured into",
            seen="zeros: the enclave runs in debug mode",
            remedy="start the enclave without --debug-mode: its parent machine reads its console, and nothing"
            " tells which program runs",
        )
    else:
        _judge_boot(to, document, policy)
    if policy.boot_applications:
        to.require(
            "boot applications",
            False,
            expected="an event log, which says which programs the firmware started",
            seen="a Nitro document, which has none",
            remedy="name PCR 4 in the policy's pcrs or measurements instead",
        )
    for number, allowed in sorted(policy.pcrs.items()):
        value = document.pcrs.get(number)
        to.require(
            f"PCR {number}",
            value in allowed,
            expected=allowed,
            seen="this document has no such PCR" if value is None else value,
            remedy=PROGRAM_REMEDY,
        )
    limit = None if policy.max_document_age_s is None else timedelta(seconds=policy.max_document_age_s)
    to.require(
        "age of the document",
        now <= report.expires_at if limit is None else now - document.timestamp <= limit,
        expected="one whose certificate has not ended" if limit is None else f"at most {limit}",
        seen=f"made {document.timestamp:%Y-%m-%d %H:%M:%S}, certified until {report.expires_at:%Y-%m-%d %H:%M:%S} UTC",
        remedy="take a new document from the machine; an old one is judged at its own time: --at",
    )
