"""Evidence as other tools write it: each form gives the same bytes, and what cannot be read is named."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import cbor2
import pytest

from adyton.attest.evidence import parse_evidence
from adyton.attest.forms import MAX_FORM_BYTES, MAX_TEXT_CHARACTERS, read_form
from adyton.attest.nitro.document import parse_document
from adyton.errors import MalformedQuote
from tests.support.amd_factory import SNPScenario
from tests.support.evidence_factory import Scenario
from tests.support.nitro_factory import NitroScenario

EVIDENCE = {
    "sgx": Scenario().built().quote,
    "tdx": Scenario(tdx=True, version=5, td_size=648).built().quote,
    "snp": SNPScenario().built().report,
    "nitro": NitroScenario().built().raw,
}


def forms(raw: bytes) -> dict[str, bytes]:
    """The same evidence in every form that is for all kinds."""
    standard, url = base64.b64encode(raw), base64.urlsafe_b64encode(raw)
    lines = b"\n".join(standard[at : at + 64] for at in range(0, len(standard), 64))
    return {
        "binary": raw,
        "hex": raw.hex().encode(),
        "upper-case hex": raw.hex().upper().encode() + b"\n",
        "hex with 0x": b"0x" + raw.hex().encode(),
        "hex in lines": raw.hex(" ", 16).replace(" ", "\r\n").encode(),
        "base64": standard,
        "base64 in lines": b"\n" + lines + b"\n",
        "base64url": url,
        "base64url without padding": url.rstrip(b"="),
        "Trustee": json.dumps({"cc_eventlog": None, "quote": standard.decode()}).encode(),
        "dstack": json.dumps({"quote": raw.hex(), "event_log": "[]", "report_data": "00" * 64}).encode(),
    }


@pytest.mark.parametrize("kind", EVIDENCE)
def test_every_form_gives_the_same_evidence(kind: str) -> None:
    """Nobody says which form it is."""
    raw = EVIDENCE[kind]
    expected = type(parse_evidence(raw))
    for name, written in forms(raw).items():
        form = read_form(written)
        assert form.evidence == raw, name
        assert isinstance(parse_evidence(form.evidence), expected)
        assert form.name


def test_answer_of_the_sev_device_is_unpacked() -> None:
    """With its head of 32 bytes, alone or in the whole answer, binary or as text."""
    report = EVIDENCE["snp"]
    head = bytes(4) + (1184).to_bytes(4, "little") + bytes(24)
    for answer in (head + report, (head + report).ljust(4000, b"\0")):
        assert read_form(answer) == (report, "the answer of the SEV guest device")
        assert read_form(answer.hex().encode()).evidence == report
    for wrong in (b"\1" + (head + report)[1:], head + report + b"\1"):
        assert read_form(wrong).name == "binary"


def test_answer_of_the_nsm_and_attestation_of_dstack_are_unpacked() -> None:
    """A Nitro document comes in the NSM's answer, or in dstack's envelope."""
    raw = EVIDENCE["nitro"]
    answer = cbor2.dumps({"Attestation": {"document": raw}})
    assert read_form(answer) == (raw, "the answer of the NSM device")
    size = (len(raw) << 2 | 1).to_bytes(2, "little")
    behind = b"\0" + bytes(64) + b"\x08{}"
    assert read_form(b"\0\2" + size + raw + behind) == (raw, "an attestation of dstack")
    for wrong in (answer + b"\0", answer[:-1], b"\0\2" + size + raw[:-1]):
        with pytest.raises(MalformedQuote):
            read_form(wrong)


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        (b'{"attestation_report": {"version": 2}, "cert_chain": null}', "SEV-SNP evidence of Trustee"),
        (b'{"header": {}, "tdQuoteBody": {}}', "go-tdx-guest"),
        (b"eyJhbGciOiJSUzI1NiJ9.eyJhIjoxfQ.c2ln", "token (JWT)"),
        (b"hello, this is no evidence", "neither hex nor base64"),
        (b'{"quote": 7}', "no text"),
        (b"ab" * MAX_TEXT_CHARACTERS, "characters of text"),
        (bytes(MAX_FORM_BYTES + 1), "bytes, more than"),
        (b'{"quote": "!!"}', "neither hex nor base64"),
    ],
)
def test_what_cannot_be_read_is_named(raw: bytes, named: str) -> None:
    """The refusal says what it is."""
    with pytest.raises(MalformedQuote) as caught:
        read_form(raw)
    assert named in str(caught.value.seen)
    assert caught.value.expected
    assert caught.value.remedy


def test_text_is_never_taken_for_a_quote_version() -> None:
    """The wire takes binary evidence only. A hex file there is named, not taken for "quote version 13360"."""
    with pytest.raises(MalformedQuote) as caught:
        parse_evidence(EVIDENCE["sgx"].hex().encode()[:8192])
    assert "text" in caught.value.message
    assert "version" not in caught.value.message


@pytest.mark.shared_vectors
def test_real_evidence_in_every_form(shared_vectors: Path) -> None:
    """Real quotes and reports as text, and the real dstack attestations."""
    folder = shared_vectors / "evidence"
    files = [*folder.glob("sgx/*.quote.bin"), *folder.glob("tdx/*.quote.bin"), *folder.glob("snp/milan*.report.bin")]
    assert len(files) > 20
    for path in files:
        raw = path.read_bytes()
        if len(raw) > 65536:
            continue
        for name, written in forms(raw).items():
            assert read_form(written).evidence == raw, f"{path.name}: {name}"
    for path in folder.glob("nitro/*.bin"):
        form = read_form(path.read_bytes())
        assert form.name == "an attestation of dstack"
        assert parse_document(form.evidence).tee == "nitro"
