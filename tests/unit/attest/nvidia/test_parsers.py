"""Reports, opaque data and evidence lists: what parses, and what is refused."""

from __future__ import annotations

import json

import pytest

from adyton.attest.nvidia import opaque
from adyton.attest.nvidia.evidence import parse_devices
from adyton.attest.nvidia.layout import ARCHS, MAX_REPORT_BYTES
from adyton.attest.nvidia.opaque import parse_opaque
from adyton.attest.nvidia.spdm import parse_report
from adyton.errors import MalformedQuote
from adyton.sim.gpu import DRIVER, VBIOS, evidence_json, measurement
from tests.support.gpu_world import NONCE, gpu, machine


def test_report_says_what_the_device_said() -> None:
    """Nonce, measurements by RIM index, and the named fields."""
    report = parse_report(gpu().report(NONCE))
    assert report.nonce == NONCE
    assert report.measurements == {index: measurement(index) for index in range(64)}
    assert (report.opaque.driver, report.opaque.vbios, report.opaque.fwid) == (DRIVER, VBIOS, gpu().fwid)
    assert report.opaque.feature == "spt"
    switch = parse_report(machine()[-1].report(NONCE))
    assert len(switch.measurements) == 31
    assert len(set(switch.opaque.gpu_pdis)) == 8


_AT_RESPONSE = 37


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, 0x12),
        (3, 0x00),
        (36, 0x01),
        (_AT_RESPONSE, 0x12),
        (_AT_RESPONSE + 1, 0x61),
        (_AT_RESPONSE + 4, 0),
        (_AT_RESPONSE + 4, 65),
        (_AT_RESPONSE + 4, 63),
        (_AT_RESPONSE + 5, 0xC1),
        (_AT_RESPONSE + 8, 2),
        (_AT_RESPONSE + 9, 2),
        (_AT_RESPONSE + 10, 52),
        (_AT_RESPONSE + 12, 0x81),
        (_AT_RESPONSE + 13, 47),
    ],
)
def test_altered_structure_is_refused(place: int, value: int) -> None:
    """Each byte that says how the report is built."""
    raw = bytearray(gpu().report(NONCE))
    assert raw[place] != value
    raw[place] = value
    with pytest.raises(MalformedQuote, match="GPU report does not parse"):
        parse_report(bytes(raw))


@pytest.mark.parametrize("size", [0, 37, 40, 44, 100, 3000])
def test_cut_or_longer_reports_are_refused(size: int) -> None:
    """The length is what the fields say."""
    raw = gpu().report(NONCE)
    for given in (raw[:size], raw + b"\0", raw.ljust(MAX_REPORT_BYTES + 1, b"\0")):
        with pytest.raises(MalformedQuote, match="GPU report does not parse"):
            parse_report(given)


def _field(kind: int, data: bytes) -> bytes:
    return kind.to_bytes(2, "little") + len(data).to_bytes(2, "little") + data


@pytest.mark.parametrize(
    "raw",
    [
        b"\x03",
        b"\x03\0\x09\0a",
        _field(opaque.DRIVER_VERSION, b"1.2\0") * 2,
        _field(opaque.INVALID, b""),
        _field(opaque.DRIVER_VERSION, b"\0"),
        _field(opaque.DRIVER_VERSION, b"1\0002"),
        _field(opaque.DRIVER_VERSION, b"\xff"),
        _field(opaque.DRIVER_VERSION, b"1" * 33),
        _field(opaque.VBIOS_VERSION, b"\x00\x5e\x00\x96\x01\0\0\1"),
        _field(opaque.FWID, b"1" * 47),
        _field(opaque.NVDEC0_STATUS, b"\0"),
        _field(opaque.PROTECTED_PCIE_STATUS, b"\xaa\xaa"),
        _field(opaque.SWITCH_PDI, b"1" * 9),
        _field(opaque.SWITCH_GPU_PDIS, b"1" * 63),
        _field(opaque.OPAQUE_DATA_VERSION, b"\x02\0"),
        _field(opaque.FEATURE_FLAG, b"\x03\0"),
    ],
)
def test_malformed_opaque_data_are_refused(raw: bytes) -> None:
    """Every field that is judged later."""
    with pytest.raises(MalformedQuote, match="opaque data do not parse"):
        parse_opaque(raw)


def test_unknown_fields_are_kept() -> None:
    """A type that nobody knows yet refuses nothing."""
    assert parse_opaque(_field(99, b"x")).unknown == (99,)


def test_evidence_list_is_what_was_written() -> None:
    """Members of each device, in order."""
    given = [device.evidence(NONCE) for device in machine()]
    assert list(parse_devices(evidence_json(given))) == given


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("arch", "VOLTA"),
        ("arch", None),
        ("nonce", "00"),
        ("nonce", 5),
        ("nonce", " " + "0" * 63),
        ("certificate", ""),
        ("certificate", "a"),
        ("certificate", 3),
        ("evidence", "AAAA" * 6000),
        ("evidence", "AB=="),
        ("evidence", "\u00e9"),
        ("more", 1),
    ],
)
def test_malformed_evidence_lists_are_refused(name: str, value: object) -> None:
    """Each member."""
    (row,) = json.loads(evidence_json([gpu().evidence(NONCE)]))
    row[name] = value
    with pytest.raises(MalformedQuote, match="GPU evidence"):
        parse_devices(json.dumps([row]).encode())


@pytest.mark.parametrize("document", [b"[]", b"{}", b"[1]", b"[[]]", b"[{}]", b"x"])
def test_other_documents_are_refused(document: bytes) -> None:
    """No list, an empty one, and one of too many devices."""
    many = json.dumps(json.loads(evidence_json([gpu().evidence(NONCE)])) * 17).encode()
    for given in (document, many):
        with pytest.raises(MalformedQuote, match="GPU evidence"):
            parse_devices(given)


def test_architectures_are_those_of_the_tools() -> None:
    """Names that documents carry."""
    assert set(ARCHS) == {"HOPPER", "BLACKWELL", "LS10"}
