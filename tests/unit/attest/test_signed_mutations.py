"""Evidence whose signed bytes were changed and signed again, under test roots, so that the later checks fire.

Each mutation is refused, or changes only fields that no rule of the policy names. Those fields are listed here, a list
for each format. Half of all mutations are not signed again, and none of them is accepted. TPM quotes, Azure's evidence,
Nitro documents and GPU reports have tests of their own like this one.
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, utils

from adyton.attest import enclave, snp, tdx
from adyton.attest.assess import assess
from adyton.attest.evidence import parse_evidence
from adyton.attest.evidence_policy import Policy
from adyton.attest.google import parse_endorsement, verify_endorsement
from adyton.attest.layout import Span
from adyton.errors import EvidenceError
from tests.support.amd_factory import SNPScenario, chip_key
from tests.support.evidence_factory import MRENCLAVE, REPORT_DATA, Scenario, key, raw_signature
from tests.support.google_factory import NOW as GOOGLE_NOW
from tests.support.google_factory import EndorsementScenario, octets
from tests.support.google_factory import key as google_key

_HEADER_BYTES = 48


@dataclass
class Signed:
    """A format: its signed bytes, how they become evidence again, and how that is judged."""

    part: bytes
    sign: Callable[[bytes], bytes]
    unsigned: Callable[[bytes], bytes]
    """The evidence with these bytes under the old signature."""
    judge: Callable[[bytes], object]
    """Raises an EvidenceError, which names the check."""
    fields: Mapping[str, Span]
    may_differ: frozenset[str]
    """Fields that nothing judges under this policy."""

    differing: Callable[[bytes], str] | None = None
    """What some evidence says otherwise, for a format whose fields have no fixed place."""

    def field_at(self, offset: int, evidence: bytes) -> str:
        """The field that a byte belongs to."""
        if self.differing is not None:
            return self.differing(evidence)
        for name, span in self.fields.items():
            if span.offset <= offset < span.offset + span.size:
                return name
        return "reserved"


def _policy(named: dict[str, Any]) -> Policy:
    return Policy.from_dict(named)


def _moved(fields: Mapping[str, Span], by: int) -> dict[str, Span]:
    return {name: Span(span.offset + by, span.size) for name, span in fields.items()}


def _quote(scenario: Scenario, fields: Mapping[str, Span], may_differ: frozenset[str], **named: Any) -> Signed:
    built, good = scenario.built(), scenario.parsed()
    part, raw = good.signed_part, built.quote
    assert raw.startswith(part)
    policy = _policy({"tees": ["tdx" if scenario.tdx else "sgx"], **named})
    at = len(part) + 4

    def signed(changed: bytes) -> bytes:
        return changed + raw[len(part) : at] + raw_signature(key(scenario.ak_signer), changed) + raw[at + 64 :]

    def judge(evidence: bytes) -> object:
        found = assess(
            parse_evidence(evidence), built.collateral, built.roots, policy, built.now, report_data=REPORT_DATA
        )
        if found.error is not None:
            raise found.error
        return found.claims

    return Signed(part, signed, lambda changed: changed + raw[len(part) :], judge, fields, may_differ)


def _sgx() -> Signed:
    header = {"header": Span(0, _HEADER_BYTES)}
    fields = {**header, **_moved(enclave.FIELDS, _HEADER_BYTES)}
    allowed = {"header", "reserved", "cpu_svn", "misc_select", "flags", "xfrm", "mrsigner", "isv_prod_id", "isv_svn"}
    allowed |= {name for name in enclave.FIELDS if name.startswith(("config", "isv_", "reserved"))}
    return _quote(Scenario(), fields, frozenset(allowed), measurements=[MRENCLAVE.hex()])


def _tdx(version: int, size: int) -> Signed:
    scenario = Scenario(tdx=True, version=version, td_size=size)
    layout = tdx._LAYOUT[size]
    before = _HEADER_BYTES if version == 4 else _HEADER_BYTES + 6
    fields = {"header": Span(0, before), **_moved(layout, before)}
    allowed = {"header", "xfam", "td_attributes", "mrconfigid", "mrowner", "mrownerconfig", "mrservicetd"}
    allowed |= {"rtmr3", "mr_config_id", "mr_owner", "mr_owner_config", "mr_service_td", "mrsignerseam", "mrseam"}
    allowed |= {"tee_tcb_svn", "tee_tcb_svn2", "seam_attributes"}
    named: dict[str, Any] = {"measurements": [scenario.parsed().report.mrtd.hex()]}  # type: ignore[union-attr]
    named |= {f"rtmr{number}": ["00" * 48] for number in range(3)}
    return _quote(scenario, fields, frozenset(allowed), **named)


def _snp() -> Signed:
    scenario = SNPScenario()
    built = scenario.built()
    part = snp.parse_report(built.report).signed_part
    measurement = snp.parse_report(built.report).measurement
    policy = _policy(
        {
            "tees": ["snp"],
            "measurements": [measurement.hex()],
            "min_tcb": {"Milan": {"bootloader": 4, "tee": 0, "snp": 24, "microcode": 219}},
            "snp": {"products": {"Milan": {"accept_until": "2040-01-01T00:00:00+00:00", "reason": "a test"}}},
        }
    )

    def signed(changed: bytes) -> bytes:
        r, s = utils.decode_dss_signature(chip_key(scenario.signer).sign(changed, ec.ECDSA(hashes.SHA384())))
        raw = changed + built.report[len(part) :]
        return snp.SNPReport(raw).replace(signature_r=r, signature_s=s).to_bytes()

    report_data = snp.parse_report(built.report).report_data

    def judge(evidence: bytes) -> object:
        found = assess(
            parse_evidence(evidence), built.collateral, built.roots, policy, built.now, report_data=report_data
        )
        if found.error is not None:
            raise found.error
        return found.claims

    allowed = frozenset(
        {"version", "guest_svn", "policy", "family_id", "image_id", "platform_info", "host_data", "id_key_digest"}
        | {"author_key_digest", "report_id", "report_id_ma", "cpuid_family", "cpuid_model", "cpuid_stepping"}
        | {"current_tcb", "committed_tcb", "launch_tcb", "current_build", "current_minor", "current_major"}
        | {"committed_build", "committed_minor", "committed_major", "key_info", "signature_algorithm"}
        | {"reserved of reported_tcb", "launch_mitigations", "current_mitigations"}
    )
    at = snp.FIELDS["reported_tcb"].offset  # bytes 2 to 5 of a TCB_VERSION are reserved on Milan
    fields = {"reserved of reported_tcb": Span(at + 2, 4), **snp.FIELDS}
    return Signed(part, signed, lambda changed: changed + built.report[len(part) :], judge, fields, allowed)


def _google() -> Signed:
    measurement = b"\x11" * 48
    scenario = EndorsementScenario(snp=[measurement, b"\x33" * 48], tdx=[b"\x22" * 48])
    part, raw = scenario.signed(), scenario.built()
    scheme = padding.PSS(padding.MGF1(hashes.SHA256()), 32)

    def signed(changed: bytes) -> bytes:
        return octets(1, changed) + octets(2, google_key("ask").sign(changed, scheme, hashes.SHA256()))

    def judge(evidence: bytes) -> object:
        return verify_endorsement(
            parse_endorsement(evidence),
            [scenario.root()],
            tee="snp",
            measurement=measurement,
            now=GOOGLE_NOW,
            root=scenario.pin,
        )

    def unsigned(changed: bytes) -> bytes:
        return octets(1, changed) + raw[len(octets(1, part)) :]

    good = parse_endorsement(raw)
    names = [field.name for field in dataclasses.fields(good) if field.name not in ("signed", "signature")]

    def differing(evidence: bytes) -> str:
        found = parse_endorsement(evidence)
        return ", ".join(name for name in names if getattr(found, name) != getattr(good, name)) or "nothing"

    allowed = frozenset({"made_at", "commit", "firmware", "snp_svn", "tdx_svn", "snp", "tdx", "nothing"})
    return Signed(part, signed, unsigned, judge, {}, allowed, differing)


FORMATS: dict[str, Callable[[], Signed]] = {
    "sgx": _sgx,
    "tdx-4": lambda: _tdx(4, 584),
    "tdx-5": lambda: _tdx(5, 648),
    "snp": _snp,
    "google": _google,
}


def _run(name: str, count: int) -> Counter[str]:
    """What became of so many mutations."""
    format_, chance, outcomes = FORMATS[name](), random.Random(7), Counter[str]()
    format_.judge(format_.sign(format_.part))
    for number in range(count):
        resigned = number % 2 == 0
        at = chance.randrange(len(format_.part))
        changed = bytearray(format_.part)
        changed[at] ^= 1 << chance.randrange(8) if chance.random() < 0.5 else chance.randrange(1, 256)
        evidence = (format_.sign if resigned else format_.unsigned)(bytes(changed))
        try:
            format_.judge(evidence)
        except EvidenceError as error:
            outcomes[f"refused: {error.check}"] += 1
            continue
        field = format_.field_at(at, evidence)
        assert resigned, f"mutation {number} of {field}: accepted under the old signature"
        assert field in format_.may_differ, f"mutation {number}: another {field} accepted"
        outcomes[f"accepted with another {field}"] += 1
    print(dict(outcomes.most_common()))
    return outcomes


@pytest.mark.parametrize(
    "count", [600, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])], ids=["some", "all"]
)
@pytest.mark.parametrize("name", FORMATS)
def test_signed_evidence_with_a_change_is_refused_or_says_what_is_judged(name: str, count: int) -> None:
    """Refused by more than its signature, too."""
    outcomes = _run(name, count)
    refused = {text for text in outcomes if text.startswith("refused")}
    assert len(refused) >= 3, outcomes
