"""Real evidence: every case of the shared vectors gives the status and advisories that its index states."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from adyton.attest import dcap, sgx, tdx
from adyton.attest.certificates import parse_certificate, parse_chain, parse_crl, split_pem
from adyton.attest.checks import Checks
from adyton.attest.collateral import Collateral
from adyton.attest.evidence import parse_evidence
from adyton.attest.pck import SGX_EXTENSION
from adyton.attest.quote import parse_ppid_certification
from adyton.attest.roots import TrustRoots
from adyton.attest.sgx import SGXQuote
from adyton.attest.tdx import TDXQuote
from adyton.attest.validity import check_validity
from adyton.errors import BadChain, EvidenceError, MalformedQuote, Mismatch, Stale
from adyton.values import Digest

pytestmark = pytest.mark.shared_vectors

Entry = dict[str, Any]


@pytest.fixture(scope="module")
def folder(shared_vectors: Path) -> Path:
    """The folder of attestation vectors."""
    return shared_vectors / "evidence"


@pytest.fixture(scope="module")
def entries(folder: Path) -> list[Entry]:
    """Every entry of the index."""
    found: list[Entry] = json.loads((folder / "INDEX.json").read_text())["entries"]
    return found


def _quote(folder: Path, entry: Entry) -> SGXQuote | TDXQuote:
    quote = parse_evidence((folder / entry["file"]).read_bytes())
    assert isinstance(quote, SGXQuote | TDXQuote)
    return quote


def _instant(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def _cases(folder: Path, entries: list[Entry]) -> list[tuple[Entry, Any]]:
    return [(entry, case) for entry in entries for case in entry.get("cases", [])]


def test_cases_all_give_the_stated_status_and_advisories(folder: Path, entries: list[Entry]) -> None:
    """Status, advisories and the status of each part are those of the index; its one rejection is a rejection."""
    judged = 0
    for entry, case in _cases(folder, entries):
        quote = _quote(folder, entry)
        collateral = Collateral.from_json((folder / case["collateral"]).read_text())
        now = datetime.fromtimestamp(case["verify_at"], UTC)
        if case["expected_status"].startswith("REJECT"):
            with pytest.raises(BadChain) as caught:
                dcap.verify(quote, collateral, TrustRoots(), now)
            assert caught.value.check == "PCK certificate: issuer"
            continue
        report = dcap.verify(quote, collateral, TrustRoots(), now)
        assert report.status == case["expected_status"], entry["file"]
        assert list(report.advisories) == case["expected_advisories"], entry["file"]
        assert report.tee == ("sgx" if isinstance(quote, SGXQuote) else "tdx")
        parts = {name: value for name, value in case["status_parts"].items() if value is not None and name != "mod"}
        assert {name: report.part_statuses[name] for name in parts} == parts
        assert report.evaluation_number == case["tcb_evaluation_data_number"]
        judged += 1
    assert judged >= 24


def test_cases_hold_from_the_first_to_the_last_second_and_no_longer(folder: Path, entries: list[Entry]) -> None:
    """The boundary instants of validity belong to it; one second outside the collateral is stale."""
    judged = 0
    for entry, case in _cases(folder, entries):
        if "valid_from" not in case or case["expected_status"].startswith("REJECT"):
            continue
        quote = _quote(folder, entry)
        collateral = Collateral.from_json((folder / case["collateral"]).read_text())
        first, last = _instant(case["valid_from"]), _instant(case["valid_until"])
        for now in (first, last):
            assert dcap.verify(quote, collateral, TrustRoots(), now).status == case["expected_status"]
        for now in (first - timedelta(seconds=1), last + timedelta(seconds=1)):
            with pytest.raises(Stale) as caught:
                dcap.verify(quote, collateral, TrustRoots(), now)
            assert caught.value.remedy
        judged += 1
    assert judged >= 24


def test_quotes_all_parse_to_what_the_index_says_and_back(folder: Path, entries: list[Entry]) -> None:
    """Every quote of the corpus parses, has the fields of the index, and writes itself back byte for byte."""
    judged = 0
    for entry in entries:
        if not entry["kind"].startswith(("sgx-quote", "tdx-quote")):
            continue
        raw = (folder / entry["file"]).read_bytes()
        quote = parse_evidence(raw)
        assert isinstance(quote, SGXQuote | TDXQuote)
        assert quote.to_bytes() == raw
        stated = entry.get("parsed", {})
        report = quote.report
        found = {
            "version": quote.version,
            "report_data": report.report_data.hex(),
            "debug": report.debug,
            "trailing_bytes": quote.padding,
            "cert_data_type": quote.signature.certification_type,
        }
        if isinstance(quote, SGXQuote):
            found |= {"mrenclave": quote.report.mrenclave.hex(), "mrsigner": quote.report.mrsigner.hex()}
        else:
            found |= {
                "mrtd": quote.report.mrtd.hex(),
                "tee_tcb_svn": quote.report.tee_tcb_svn.hex(),
                "mr_seam": quote.report.mrseam.hex(),
                "td_attributes": quote.report.field("td_attributes").hex(),
                "xfam": quote.report.field("xfam").hex(),
            }
        assert {name: found[name] for name in stated if name in found} == {
            name: value for name, value in stated.items() if name in found
        }
        judged += 1
    assert judged >= 28


def test_quote_of_preproduction_hardware_is_refused(folder: Path) -> None:
    """Pre-production hardware has a root of the same name, which is not Intel's."""
    collateral = Collateral.from_json((folder / "collateral/tdx-v4-00806f-gcp.2026-06.json").read_text())
    quote = tdx.parse_quote((folder / "tdx/tdx-v4-30806f-preproduction-root.quote.bin").read_bytes())
    with pytest.raises(BadChain) as caught:
        dcap.verify(quote, collateral, TrustRoots(), datetime.fromtimestamp(1784102583, UTC))
    assert caught.value.check == "root CA: pinned"


def test_quote_with_der_instead_of_pem_is_refused(folder: Path) -> None:
    """Intel's TDX sample carries its chain as DER, which certification data of type 5 is not."""
    collateral = Collateral.from_json((folder / "collateral/tdx-v4-00806f-gcp.2026-06.json").read_text())
    quote = tdx.parse_quote((folder / "trust/intel-qvl-sample/tdx/quote.dat").read_bytes())
    with pytest.raises(MalformedQuote):
        dcap.verify(quote, collateral, TrustRoots(), datetime.fromtimestamp(1784102583, UTC))


def test_quotes_with_foreign_collateral_are_refused_by_distinct_checks(folder: Path) -> None:
    """Collateral of another platform, of TDX for SGX, or of the other CA: each is its own refusal."""
    for name, other, check in (
        ("sgx-00a067-phala", "sgx-00906e-mobilecoin.2025-05-eval17.json", "TCB info: FMSPC"),
        ("sgx-00606a-automata-evm", "tdx-v4-00806f-teepot.2025-03.json", "TCB info: kind of TEE"),
        (
            "sgx-00606a-automata-evm",
            "sgx-00906e-mobilecoin.2025-05-eval17.json",
            "PCK CRL: of the CA that issued the PCK certificate",
        ),
    ):
        quote = sgx.parse_quote((folder / f"sgx/{name}.quote.bin").read_bytes())
        collateral = Collateral.from_json((folder / "collateral" / other).read_text())
        with pytest.raises(Mismatch) as caught:
            dcap.verify(quote, collateral, TrustRoots(), datetime.fromtimestamp(1756530546, UTC))
        assert caught.value.check == check


def test_any_flipped_byte_of_a_quote_is_refused(folder: Path) -> None:
    """Header, body, keys, QE report, authentication data, signatures: no byte can be changed."""
    raw = (folder / "tdx/tdx-v4-b0c06f-phala.quote.bin").read_bytes()
    collateral = Collateral.from_json((folder / "collateral/tdx-v4-b0c06f-phala.2025-06.json").read_text())
    now = datetime.fromtimestamp(1751624191, UTC)
    cache = dcap.Cache()
    quote = tdx.parse_quote(raw)
    start = len(raw) - len(quote.signature.certification_data) - quote.padding
    for at in [*range(0, start, 3), start - 1]:
        spoilt = raw[:at] + bytes([raw[at] ^ 0x40]) + raw[at + 1 :]
        with pytest.raises(EvidenceError):
            dcap.verify(tdx.parse_quote(spoilt), collateral, TrustRoots(), now, cache=cache)


def test_quotes_that_only_name_their_platform_are_refused_with_the_way_on(folder: Path) -> None:
    """Certification data of types 1 and 3 parses, and the refusal says that the PCK certificate is missing."""
    collateral = Collateral.from_json((folder / "collateral/sgx-00606a-automata-evm.2025-08.json").read_text())
    for name, kind in (("sgx-certdata-type1-intel-sample", 1), ("sgx-certdata-type3-oasis", 3)):
        quote = sgx.parse_quote((folder / f"sgx/{name}.quote.bin").read_bytes())
        assert quote.signature.certification_type == kind
        with pytest.raises(Mismatch) as caught:
            dcap.verify(quote, collateral, TrustRoots(), datetime.fromtimestamp(1756530546, UTC))
        assert caught.value.check == "PCK certificate chain: given"
    named = parse_ppid_certification(3, quote.signature.certification_data)
    assert named.pce_svn == 12
    assert named.cpu_svn.hex() == "05050c0cffff01000000000000000000"


def test_pck_chain_vectors_give_the_stated_outcome(folder: Path, entries: list[Entry]) -> None:
    """Intel's PCK chain cases: exactly those stated as OK pass chain, CRL and revocation checks."""
    cases = sorted(path for path in (folder / "pck-chain-vectors").iterdir() if path.is_dir())
    stated = {
        Path(entry["file"]).parent.name: entry["expected"]
        for entry in entries
        if entry["kind"] == "pck-chain-vector" and entry["file"].endswith("IntelSGXCertificateChain.pem")
    }
    assert len(cases) == len(stated) == 18
    for case in cases:
        accepted = _judge_chain(case)
        assert accepted == (stated[case.name] == "STATUS_OK"), case.name


def _judge_chain(case: Path) -> bool:
    """Steps B1 to B7 for one folder; the extension of these certificates is of 2018 and not for parsing."""
    now = datetime(2018, 10, 1, tzinfo=UTC)
    checks = Checks()
    try:
        trusted = parse_certificate(
            split_pem((case / "IntelSGXRootCACertificate.pem").read_bytes(), "root")[0], "trusted root CA"
        )
        roots = TrustRoots(intel=frozenset({Digest(trusted.fingerprint.raw)}))
        dcap.check_root(checks, trusted, roots)
        names = ("PCK certificate", "PCK CA", "root CA")
        chain = sorted_chain((case / "IntelSGXCertificateChain.pem").read_text())
        leaf, ca, root = parse_chain(chain, names, "PCK certificate chain")
        dcap.check_root(checks, root, roots)
        dcap.check_ca(checks, ca, root)
        dcap.check_leaf(checks, leaf, ca)
        extension = leaf.unrecognized(SGX_EXTENSION)
        assert extension is not None
        for wanted in range(1, 6):
            if bytes.fromhex(f"060a2a864886f84d010d01{wanted:02x}") not in extension:
                return False
        crls = []
        for name, issuer in (("rootCaCrl.pem", root), ("intermediateCaCrl.pem", ca)):
            raw = (case / name).read_bytes()
            crl = parse_crl(split_pem(raw, name, "X509 CRL")[0], name)
            dcap.check_crl(checks, crl, issuer)
            crls.append(crl)
        dcap.check_not_revoked(checks, ca, crls[0])
        dcap.check_not_revoked(checks, leaf, crls[1])
        check_validity(checks, [leaf.window, ca.window, root.window, trusted.window], now)
    except EvidenceError:
        return False
    return True


def sorted_chain(text: str) -> str:
    """Leaf first, root last, whatever the order of the file."""
    blocks = [parse_certificate(raw, "certificate") for raw in split_pem(text, "chain")]
    order = {"PCK Certificate": 0, "Root CA": 2}
    blocks.sort(key=lambda item: next((at for part, at in order.items() if part in item.common_name), 1))
    return "".join(block.pem for block in blocks)
