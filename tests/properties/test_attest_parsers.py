"""Fuzzing of every parser of attestation: hostile bytes are refused with our own errors, quickly, and nothing else."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adyton.attest import der, ratls, sgx, snp, tdx
from adyton.attest.certificates import decode_crl, parse_certificate, parse_crl, split_pem
from adyton.attest.collateral import AMDCollateral, Collateral
from adyton.attest.evidence import parse_evidence
from adyton.attest.evidence_policy import Policy
from adyton.attest.forms import read_form
from adyton.attest.google import parse_endorsement
from adyton.attest.nitro.document import parse_document
from adyton.attest.pck import parse_sgx_extension
from adyton.attest.signed_json import cut_signed
from adyton.attest.snp_table import build_table, parse_table
from adyton.attest.tcbinfo import parse_enclave_identity, parse_tcb_info
from adyton.errors import Error, MalformedQuote
from adyton.untrusted import parse_json_object
from tests.support.amd_factory import SNPScenario
from tests.support.evidence_factory import FMSPC, Scenario, sgx_extension
from tests.support.google_factory import EndorsementScenario
from tests.support.nitro_factory import NitroScenario

SLOW_S = 0.5


def _dstack(document: bytes) -> bytes:
    return b"\0\2" + (len(document) << 2 | 1).to_bytes(2, "little") + document + bytes(66)


def _text(parser: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda raw: parser(raw.decode("utf-8", "replace"))


def _policy(text: str) -> object:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return Policy.from_dict(document)


def _amd_collateral(text: str) -> object:
    return AMDCollateral.from_dict(parse_json_object(text, what="collateral", refuse=MalformedQuote))


def _ratls_certificate() -> bytes:
    quote = Scenario().built().quote
    return ratls.make_certificate(
        ec.derive_private_key(7, ec.SECP384R1()),
        lambda _: quote[:3800],
        not_before=datetime(2026, 1, 1, tzinfo=UTC),
        not_after=datetime(2027, 1, 1, tzinfo=UTC),
    )


def seeds() -> dict[str, tuple[Callable[[bytes], object], bytes]]:
    """Parser and one good input for it."""
    v3, v5 = Scenario().built(), Scenario(tdx=True, version=5, td_size=648).built()
    v4 = Scenario(tdx=True, version=4).built()
    collateral = v5.collateral
    report = SNPScenario().built()
    platform = {
        "components": [5] * 16,
        "pce_svn": 13,
        "ppid": bytes(16),
        "pce_id": bytes(2),
        "fmspc": FMSPC,
    }
    policy = {"tees": ["sgx"], "exemptions": [{"name": "TEST-SA-1", "owner": "a", "until": "2026-01-01"}]}
    certificate = _ratls_certificate()
    evidence, claims = ratls.encode_evidence(b"q" * 500, ratls.encode_claims(b"k")), ratls.encode_claims(b"k")
    served = f'{{"tcbInfo":{collateral.tcb_info},"signature":"{"00" * 64}"}}'
    return {
        "evidence-v3": (parse_evidence, v3.quote),
        "sgx": (sgx.parse_quote, v3.quote),
        "tdx-v4": (tdx.parse_quote, v4.quote),
        "tdx-v5": (tdx.parse_quote, v5.quote),
        "snp": (snp.parse_report, report.report),
        "certificate": (lambda raw: parse_certificate(raw, "certificate"), Scenario().leaf.build()),
        "chip-certificate": (lambda raw: parse_certificate(raw, "VCEK"), report.collateral.leaf),
        "crl": (lambda raw: parse_crl(raw, "CRL"), collateral.pck_crl),
        "any-crl": (decode_crl, collateral.pck_crl.hex().encode()),
        "pem": (lambda raw: split_pem(raw, "chain"), collateral.pck_crl_issuer_chain.encode()),
        "sgx-extension": (parse_sgx_extension, sgx_extension(platform)),
        "der": (lambda raw: list(der.children(raw)), sgx_extension(platform)),
        "tcb-info": (_text(parse_tcb_info), collateral.tcb_info.encode()),
        "qe-identity": (_text(parse_enclave_identity), collateral.qe_identity.encode()),
        "served-json": (_text(lambda text: cut_signed(text, "tcbInfo")), served.encode()),
        "collateral": (_text(Collateral.from_json), collateral.to_json().encode()),
        "amd-collateral": (_text(_amd_collateral), report.collateral.to_json().encode()),
        "policy": (_text(_policy), json.dumps(policy).encode()),
        "ratls-certificate": (ratls.parse_certificate, certificate),
        "ratls-evidence": (ratls.parse_evidence_extension, evidence),
        "ratls-claims": (ratls.parse_claims, claims),
        "nitro": (parse_document, NitroScenario().built().raw),
        "nitrotpm": (parse_document, NitroScenario(tpm=True).built().raw),
        "snp-table": (parse_table, build_table({"VLEK": b"leaf", "ARK": b"ark"})),
        "snp-extended": (snp.parse_extended_report, report.report + build_table({"VLEK": b"leaf"})),
        "endorsement": (parse_endorsement, EndorsementScenario(snp=[b"a" * 48], tdx=[b"b" * 48]).built()),
        "form-hex": (read_form, v3.quote.hex().encode()),
        "form-envelope": (read_form, json.dumps({"quote": v4.quote.hex(), "event_log": "[]"}).encode()),
        "form-dstack": (read_form, _dstack(NitroScenario().built().raw)),
    }


SEEDS = seeds()
NAMES = sorted(SEEDS)


def _survives(parser: Callable[[bytes], object], raw: bytes) -> None:
    started = time.thread_time()
    with contextlib.suppress(Error):
        parser(raw)
    assert time.thread_time() - started < SLOW_S


EDITS = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 5), st.binary(max_size=6)),
    min_size=1,
    max_size=4,
)


def edited(raw: bytes, edits: list[tuple[float, int, bytes]]) -> bytes:
    """Replace pieces of a good input at relative places; no pieces may be cut, grown, or put elsewhere."""
    spoilt = bytearray(raw)
    for where, removed, inserted in edits:
        at = int(where * len(spoilt))
        spoilt[at : at + removed] = inserted
    return bytes(spoilt)


@pytest.mark.parametrize("name", NAMES)
def test_parser_accepts_its_good_input(name: str) -> None:
    """The seeds are good, except the token, which nobody signed."""
    parser, raw = SEEDS[name]
    if name == "token":
        with pytest.raises(Error):
            parser(raw)
        return
    parser(raw)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(edits=EDITS)
def test_parser_survives_edited_input(name: str, edits: list[tuple[float, int, bytes]]) -> None:
    """Whatever is changed in a good input, the parser accepts it or refuses it with an error of ours."""
    parser, raw = SEEDS[name]
    _survives(parser, edited(raw, edits))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(raw=st.binary(max_size=2000))
def test_parser_survives_any_bytes(name: str, raw: bytes) -> None:
    """Arbitrary bytes are refused with an error of ours, or happen to be good."""
    _survives(SEEDS[name][0], raw)


@pytest.mark.parametrize("name", NAMES)
def test_parser_survives_every_truncation(name: str) -> None:
    """An input cut anywhere is refused, at once."""
    parser, raw = SEEDS[name]
    step = max(1, len(raw) // 400)
    for end in range(0, len(raw), step):
        _survives(parser, raw[:end])


@pytest.mark.parametrize("name", [name for name in NAMES if name != "policy"])
def test_parser_refuses_enormous_input_without_reading_it(name: str) -> None:
    """Sizes are capped before anything is read."""
    parser, raw = SEEDS[name]
    with pytest.raises(Error):
        parser(raw + b" " * (40 << 20) + b"x")


@pytest.mark.parametrize("name", ["tcb-info", "qe-identity", "served-json", "collateral", "policy"])
@pytest.mark.parametrize("bomb", [b"[" * 100000, b'{"a":' * 100000, b'{"version":' + b"9" * 500000 + b"}"])
def test_json_parser_survives_deep_nesting_and_long_numbers(name: str, bomb: bytes) -> None:
    """Deep nesting and endless numbers are refused, not followed."""
    _survives(SEEDS[name][0], bomb)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=20000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(edits=EDITS)
def test_parser_survives_very_much_edited_input(name: str, edits: list[tuple[float, int, bytes]]) -> None:
    """The same, with many more edits."""
    parser, raw = SEEDS[name]
    _survives(parser, edited(raw, edits))
