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

_ZEROS: Final = bytes(PCR_BYTES)


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
    elif 12 not in policy.pcrs:
        value = document.pcrs.get(12)
        to.require(
            "PCR 12",
            value == _ZEROS,
            expected="zeros: nothing was added to the kernel's command line",
            seen="absent" if value is None else value,
            remedy="start the image without more command line and credentials, or name the value in the policy's pcrs",
        )
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
