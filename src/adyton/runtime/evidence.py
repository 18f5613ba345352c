"""The evidence that a program may get from this machine. The source itself stays with the runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adyton.attest.report_data import ProgramEvidence
from adyton.manifest.findings import check_tee

if TYPE_CHECKING:
    from adyton.manifest.model import Manifest
    from adyton.tee.source import QuoteSource
    from adyton.values import Measurement


def program_evidence(source: QuoteSource, manifest: Manifest, workload: Measurement) -> ProgramEvidence:
    """Evidence for the program of this workload. Raises MalformedManifest where the source's TEE refuses it.

    The manifest says whether the program's bytes are signed as they are (adyton.insecure__raw_report_data), which no
    TEE allows on which they could be taken for the runtime's own.
    """
    check_tee(manifest, source.tee)
    return ProgramEvidence(source.quote, workload, raw=manifest.adyton.raw_report_data)
