"""Collateral as JSON: the shape of QuoteCollateralV3, strictly."""

from __future__ import annotations

import json
from typing import Any

import dcap_qvl
import pytest

from adyton.attest.collateral import AMDCollateral, Collateral
from adyton.attest.signed_json import cut_signed
from adyton.errors import MalformedQuote
from tests.support.amd_factory import SNPScenario
from tests.support.evidence_factory import Scenario


def test_collateral_round_trips_and_is_what_the_peer_reads() -> None:
    """To JSON and back, with and without a PCK chain; dcap-qvl reads the same document."""
    for scenario in (Scenario(), Scenario(pck_chain_in_collateral=True)):
        collateral = scenario.collateral()
        assert Collateral.from_json(collateral.to_json()) == collateral
        peer = dcap_qvl.QuoteCollateralV3.from_json(collateral.to_json())
        assert peer.tcb_info == collateral.tcb_info
        assert bytes(peer.pck_crl) == collateral.pck_crl


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(extra="x"),
        lambda d: d.pop("pck_crl"),
        lambda d: d.update(pck_crl="zz"),
        lambda d: d.update(pck_crl=7),
        lambda d: d.update(tcb_info={"id": "SGX"}),
        lambda d: d.update(tcb_info="x" * (2 << 20)),
    ],
)
def test_collateral_that_is_wrong_is_malformed(change: Any) -> None:
    """Every member, no other, of its type and size."""
    document = json.loads(Scenario().collateral().to_json())
    change(document)
    with pytest.raises(MalformedQuote):
        Collateral.from_json(json.dumps(document))


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"amd_leaf": 1}', "[" * 100000])
def test_text_that_is_no_collateral_is_malformed(text: str) -> None:
    """Whatever else it is."""
    with pytest.raises(MalformedQuote):
        Collateral.from_json(text)


def test_amd_collateral_is_read_strictly() -> None:
    """One leaf, two issuers, a CRL in hex or none."""
    collateral = SNPScenario().built().collateral
    document = json.loads(collateral.to_json())
    assert AMDCollateral.from_dict(document) == collateral
    chain = document["amd_chain"]
    spoilt: list[dict[str, object]] = [
        {"amd_crl": "zz"},
        {"amd_crl": 1},
        {"amd_chain": document["amd_leaf"]},
        {"amd_leaf": chain},
        {"extra": ""},
    ]
    for change in spoilt:
        with pytest.raises(MalformedQuote):
            AMDCollateral.from_dict(document | change)


def test_signed_value_is_cut_out_exactly() -> None:
    """The bytes that were signed, whatever their spacing; braces and quotes in texts do not mislead."""
    inner = '{ "a" : "}\\"{" ,\n "b":[1, 2]}'
    text = f' {{ "signature" : "00ff" , "tcbInfo":{inner} }} '
    assert cut_signed(text, "tcbInfo") == (inner, "00ff")


@pytest.mark.parametrize(
    "text",
    [
        '{"tcbInfo":{}}',
        '{"tcbInfo":{},"signature":"00","other":1}',
        '{"tcbInfo":{},"tcbInfo":{},"signature":"00"}',
        '{"tcbInfo":{},"signature":1}',
        '{"tcbInfo":{} "signature":"00"}',
        '{"tcbInfo":{},"signature":"00"} x',
        '["tcbInfo"]',
        '{"tcbInfo":{"a":1.5},"signature":"00"}',
        "{",
        "",
    ],
)
def test_served_document_of_another_form_is_malformed(text: str) -> None:
    """Two members, each once, nothing behind them."""
    with pytest.raises(MalformedQuote):
        cut_signed(text, "tcbInfo")
