"""Every length that lies, every type that is unknown, bytes that follow: refused by the parser, by name.

A length stands in a quote next to others that it must agree with, so a lie about one is a lie about two: the test
names the check that sees it first.
"""

from __future__ import annotations

import contextlib
import tracemalloc
from collections.abc import Callable

import pytest

from adyton.attest import quote as quote_module
from adyton.attest.evidence import parse_evidence
from adyton.attest.sgx import SGXQuote
from adyton.errors import MalformedQuote
from tests.support.evidence_factory import Scenario

Spoil = Callable[[bytearray], None]


def _u16(at: int, value: int) -> Spoil:
    def spoil(raw: bytearray) -> None:
        raw[at : at + 2] = value.to_bytes(2, "little")

    return spoil


def _add(at: int, size: int, change: int) -> Spoil:
    def spoil(raw: bytearray) -> None:
        value = int.from_bytes(raw[at : at + size], "little") + change
        raw[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, "little")

    return spoil


def _append(extra: bytes) -> Spoil:
    def spoil(raw: bytearray) -> None:
        raw += extra

    return spoil


def _cut(size: int) -> Spoil:
    def spoil(raw: bytearray) -> None:
        del raw[size:]

    return spoil


def _vendor(raw: bytearray) -> None:
    raw[12] ^= 1


Kind = dict[str, int]
V3: Kind = {"version": 3}
V4: Kind = {"version": 4, "tdx": True}
V5: Kind = {"version": 5, "tdx": True, "td_size": 648}
S3, S4, S5 = 432, 632, 702
AUTH = 32

CASES: list[tuple[str, dict[str, int], Spoil, str]] = [
    ("version-2", V3, _u16(0, 2), "quote version"),
    ("version-6", V3, _u16(0, 6), "quote version"),
    ("key-type-p384", V3, _u16(2, 3), "attestation key type"),
    ("tee-type-of-v3", V3, _add(4, 4, 0x81), "TEE type"),
    ("tee-type-unknown", V4, _add(4, 4, 1), "TEE type"),
    ("qe-vendor", V3, _vendor, "QE vendor"),
    ("body-type-unknown", V5, _u16(48, 9), "body type"),
    ("body-type-of-sgx", V5, _u16(48, 1), "body type"),
    ("body-size-larger", V5, _add(50, 4, 1), "body size"),
    ("body-size-smaller", V5, _add(50, 4, -1), "body size"),
    ("body-size-huge", V5, _add(50, 4, -649), "body size"),
    ("signature-data-longer", V3, _add(S3, 4, 1), "length of the signature data"),
    ("signature-data-huge", V3, _add(S3, 4, 0xFFFF0000), "length of the signature data"),
    ("signature-data-shorter", V3, _add(S3, 4, -1), "length of the certification data"),
    ("signature-data-tiny", V3, _u16(S3, 133), "length of the signature data"),
    ("auth-data-longer", V3, _u16(S3 + 4 + 576, 0xFFFF), "length of the QE authentication data"),
    ("certification-data-longer", V3, _add(S3 + 4 + 580 + AUTH, 4, 1), "length of the certification data"),
    ("certification-data-huge", V3, _add(S3 + 4 + 580 + AUTH, 4, 0xF0000000), "length of the certification data"),
    ("certification-data-shorter", V3, _add(S3 + 4 + 580 + AUTH, 4, -1), "signature data filled exactly"),
    ("certification-type-0", V3, _u16(S3 + 4 + 578 + AUTH, 0), "certification data type"),
    ("certification-type-6", V3, _u16(S3 + 4 + 578 + AUTH, 6), "certification data type"),
    ("certification-type-7", V3, _u16(S3 + 4 + 578 + AUTH, 7), "certification data type"),
    ("outer-type-5", V4, _u16(S4 + 4 + 128, 5), "outer certification data type"),
    ("outer-size-longer", V4, _add(S4 + 4 + 130, 4, 1), "length of the QE report certification data"),
    ("outer-size-shorter", V4, _add(S4 + 4 + 130, 4, -1), "QE report certification data filled exactly"),
    ("signature-data-longer-v5", V5, _add(S5, 4, 1), "length of the signature data"),
    ("trailing-bytes", V3, _append(b"\x01"), "trailing bytes"),
    ("trailing-bytes-after-zeros", V4, _append(bytes(64) + b"\x80"), "trailing bytes"),
    ("cut-in-header", V3, _cut(40), "length of the header"),
    ("cut-in-body", V3, _cut(300), "length of the body"),
    ("cut-in-signature-data", V3, _cut(600), "length of the signature data"),
    ("empty", V3, _cut(0), "length of the header"),
    ("too-large", V3, _append(bytes(64 << 10)), "size of the evidence"),
]


def _built(scenario: dict[str, int], spoil: Spoil) -> bytes:
    raw = bytearray(Scenario(**scenario).built().quote)  # type: ignore[arg-type]
    spoil(raw)
    return bytes(raw)


@pytest.mark.parametrize(("scenario", "spoil", "check"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_parser_refuses_by_name(scenario: dict[str, int], spoil: Spoil, check: str) -> None:
    """The parser names what is wrong, what it expected and what it saw."""
    with pytest.raises(MalformedQuote) as caught:
        parse_evidence(_built(scenario, spoil))
    assert caught.value.check == check
    assert caught.value.expected
    assert caught.value.seen


def test_parser_allocates_no_more_than_it_was_given() -> None:
    """A length that claims gigabytes costs nothing."""
    raws = [_built(scenario, spoil) for _, scenario, spoil, _ in CASES]
    tracemalloc.start()
    try:
        for raw in raws:
            with contextlib.suppress(MalformedQuote):
                parse_evidence(raw)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


PASSABLE = {
    "trailing-bytes",
    "trailing-bytes-after-zeros",
    "qe-vendor",
    "certification-data-shorter",
    "key-type-p384",
    "certification-type-6",
}


@pytest.mark.parametrize(
    ("scenario", "spoil", "check"),
    [case[1:] for case in CASES if case[0] in PASSABLE],
    ids=[case[0] for case in CASES if case[0] in PASSABLE],
)
def test_parser_without_that_check_would_accept(
    scenario: dict[str, int], spoil: Spoil, check: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing else depends on the field, the evidence parses once that check alone is disabled."""
    raw = _built(scenario, spoil)
    refuse = quote_module.refuse

    def lenient(message: str, **facts: object) -> None:
        if facts["check"] != check:
            refuse(message, **facts)  # type: ignore[arg-type]

    monkeypatch.setattr(quote_module, "refuse", lenient)
    assert parse_evidence(raw)


def test_zero_padding_behind_a_quote_is_counted_and_kept() -> None:
    """Zero bytes behind a quote are what real platforms deliver."""
    raw = Scenario().built().quote + bytes(70)
    quote = parse_evidence(raw)
    assert isinstance(quote, SGXQuote)
    assert quote.padding == 70
    assert quote.to_bytes() == raw
