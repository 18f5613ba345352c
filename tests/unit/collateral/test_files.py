"""Collateral in the forms that services and tools give: each is the same, and its faults are never the evidence's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adyton.attest import explain
from adyton.attest.assess import Assessment, assess
from adyton.attest.certificates import leaf_first, parse_certificate, split_pem
from adyton.attest.collateral import AMDCollateral, Collateral
from adyton.attest.evidence import parse_evidence
from adyton.attest.evidence_policy import Policy
from adyton.attest.snp import TCBVersion
from adyton.collateral.files import choose
from adyton.errors import FetchFailed, MalformedQuote
from tests.support.amd_factory import NOW as AMD_NOW
from tests.support.amd_factory import SNPScenario
from tests.support.evidence_factory import NOW, Scenario

BUILT = Scenario().built()
AMD = SNPScenario().built()
REPORT = parse_evidence(AMD.report)
QUOTE = parse_evidence(BUILT.quote)


def pem(der: bytes, label: str) -> str:
    """PEM of anything."""
    import base64

    text = base64.b64encode(der).decode()
    lines = "\n".join(text[at : at + 64] for at in range(0, len(text), 64))
    return f"-----BEGIN {label}-----\n{lines}\n-----END {label}-----\n"


def turned(chain: str) -> str:
    """The same chain, root first."""
    return "".join(pem(der, "CERTIFICATE") for der in reversed(split_pem(chain, "chain")))


CRL_FORMS: dict[str, Callable[[bytes], bytes]] = {
    "DER": lambda der: der,
    "PEM": lambda der: pem(der, "X509 CRL").encode(),
    "hex of DER": lambda der: der.hex().encode(),
    "hex of PEM": lambda der: pem(der, "X509 CRL").encode().hex().encode(),
    "upper-case hex in lines": lambda der: der.hex(" ", 32).replace(" ", "\n").upper().encode(),
}


@pytest.mark.parametrize("form", CRL_FORMS)
@pytest.mark.parametrize("together", [False, True])
def test_amd_certificates_and_list_in_every_form(tmp_path: Path, form: str, together: bool) -> None:
    """Single files, or one with everything, root first."""
    wanted = AMD.collateral
    assert wanted.crl is not None
    names = {"ark": wanted.ark, "ask": wanted.ask, "leaf": wanted.leaf}
    if together:
        text = "".join(pem(der, "CERTIFICATE") for der in names.values())
        (tmp_path / "chain.pem").write_text(text)
    else:
        (tmp_path / "ark.der").write_bytes(wanted.ark)
        (tmp_path / "ask.hex").write_text(wanted.ask.hex())
        (tmp_path / "leaf.pem").write_text(pem(wanted.leaf, "CERTIFICATE"))
    (tmp_path / "list").write_bytes(CRL_FORMS[form](wanted.crl))
    assert choose(REPORT, sorted(tmp_path.iterdir()), AMD_NOW) == wanted


def test_list_and_certificates_stand_in_one_file(tmp_path: Path) -> None:
    """A PEM file may hold both."""
    wanted = AMD.collateral
    assert wanted.crl is not None
    text = pem(wanted.crl, "X509 CRL") + "".join(
        pem(der, "CERTIFICATE") for der in (wanted.ark, wanted.leaf, wanted.ask)
    )
    (tmp_path / "all.pem").write_text(text)
    assert choose(REPORT, [tmp_path / "all.pem"], AMD_NOW) == wanted


def test_of_two_lists_the_one_that_is_valid_counts(tmp_path: Path) -> None:
    """An older list that lies beside is not taken."""
    old = SNPScenario()
    old.crl_window = (old.crl_window[0].replace(year=2024), old.crl_window[1].replace(year=2024))
    for name, der in (("a-old.crl", old.revocations()), ("b-new.crl", AMD.collateral.crl or b"")):
        (tmp_path / name).write_bytes(der)
    for name, der in (("ark", AMD.collateral.ark), ("ask", AMD.collateral.ask), ("leaf", AMD.collateral.leaf)):
        (tmp_path / name).write_bytes(der)
    found = choose(REPORT, [tmp_path], AMD_NOW)
    assert isinstance(found, AMDCollateral)
    assert found.crl == AMD.collateral.crl


@pytest.mark.parametrize("form", [name for name in CRL_FORMS if name != "DER"])
def test_intels_collateral_in_every_form(form: str) -> None:
    """Members of the JSON: lists in PEM or hex, chains in either order."""
    wanted = BUILT.collateral
    document: dict[str, Any] = wanted.to_dict()
    for name in ("pck_crl", "root_ca_crl"):
        document[name] = CRL_FORMS[form](bytes.fromhex(document[name])).decode()
    for name in ("tcb_info_issuer_chain", "qe_identity_issuer_chain", "pck_crl_issuer_chain"):
        document[name] = turned(document[name])
        assert leaf_first(document[name]) != document[name]
    found = Collateral.from_json(json.dumps(document))
    assert found.pck_crl == wanted.pck_crl
    assert judged(found).report is not None


def test_chain_in_order_comes_back_as_it_is() -> None:
    """Also what is no chain at all: whoever reads it refuses it."""
    chain = BUILT.collateral.pck_crl_issuer_chain
    for text in (chain, "", "no PEM", parse_certificate(AMD.collateral.ark, "ARK").pem):
        assert leaf_first(text) == text


# --- whose fault it is


def judged(collateral: Collateral) -> Assessment:
    """Evidence that is genuine, with this collateral."""
    return assess(QUOTE, collateral, BUILT.roots, Policy(), NOW, report_data=None)


def spoilt(**members: str) -> Collateral:
    """The collateral with some members changed."""
    return Collateral.from_dict({**BUILT.collateral.to_dict(), **members})


@pytest.mark.parametrize(
    "collateral",
    [
        spoilt(tcb_info_signature="11" * 64),
        spoilt(qe_identity_signature="11" * 64),
        spoilt(tcb_info=BUILT.collateral.qe_identity),
        spoilt(tcb_info="{}"),
        spoilt(pck_crl=BUILT.collateral.root_ca_crl.hex()),
        spoilt(root_ca_crl="3003020105"),
        Scenario(tdx=True, version=4).built().collateral,
    ],
    ids=["TCB info", "QE identity", "exchanged", "empty", "list of another", "broken list", "of TDX"],
)
def test_fault_of_the_collateral_is_not_said_of_the_evidence(collateral: Collateral) -> None:
    """It is refused, and nobody says that the evidence is not genuine."""
    found = judged(collateral)
    assert found.claims is None
    assert found.genuine is None
    assert explain.to_dict(found)["genuine"] is None
    assert "the collateral is at fault" in explain.to_text(found)
    assert explain.to_dict(found)["verdict"] == "refused"


@pytest.mark.parametrize("vlek", [False, True])
def test_certificate_of_a_chip_that_has_ended_is_no_fault_of_the_report(vlek: bool) -> None:
    """Nor is one of another chip. AMD's certificates are collateral."""
    ended, another = SNPScenario(vlek=vlek), SNPScenario(vlek=vlek)
    ended.leaf_window = (AMD_NOW.replace(year=2024), AMD_NOW.replace(year=2025))
    another.certificate_tcb = TCBVersion(4, 0, 24, 1)
    for made in (ended, another):
        built = made.built()
        found = assess(
            parse_evidence(built.report), built.collateral, built.roots, Policy(), built.now, report_data=None
        )
        assert found.claims is None
        assert found.genuine is None


def test_fault_of_the_evidence_is_said() -> None:
    """A quote that was altered is not genuine, whatever the collateral."""
    raw = bytearray(BUILT.quote)
    raw[400] ^= 1
    found = assess(parse_evidence(bytes(raw)), BUILT.collateral, BUILT.roots, Policy(), NOW, report_data=None)
    assert found.genuine is False


@pytest.mark.parametrize(
    "content", [b"noise" * 20, b"{", b"-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n", b"30zz", b"abab"]
)
def test_file_that_is_no_collateral_could_not_be_checked(tmp_path: Path, content: bytes) -> None:
    """A named file that cannot be read is `could not check`, not a refusal of the evidence."""
    (tmp_path / "file").write_bytes(content)
    for evidence in (QUOTE, REPORT):
        with pytest.raises(FetchFailed) as caught:
            choose(evidence, [tmp_path / "file"], NOW)
        assert caught.value.remedy


def test_quote_without_an_origin_is_the_fault_of_the_evidence(tmp_path: Path) -> None:
    """A quote whose certification data are none is refused itself."""
    (tmp_path / "file.json").write_text(BUILT.collateral.to_json())
    at = BUILT.quote.index(b"-----BEGIN")
    raw = BUILT.quote[:at] + b"x" * (len(BUILT.quote) - at)
    with pytest.raises(MalformedQuote):
        choose(parse_evidence(raw), [tmp_path / "file.json"], NOW)
