"""The certificate table of a SEV-SNP host: read back, and refused where it lies."""

from __future__ import annotations

import uuid

import pytest

from adyton.attest import snp
from adyton.attest.snp_table import MAX_TABLE_BYTES, build_table, parse_table
from adyton.errors import MalformedQuote
from tests.support.amd_factory import SNPScenario

FILES = {"VLEK": b"leaf", "ASK": b"issuer", "ARK": b"root", "CRL": b"list"}


def test_table_gives_back_its_certificates() -> None:
    """Every name, none at all, and an entry of an unknown name."""
    assert parse_table(build_table(FILES)) == FILES
    assert parse_table(build_table(FILES) + bytes(1000)) == FILES
    assert parse_table(bytes(24)) == {}
    strange = uuid.UUID(int=7).bytes_le + (48).to_bytes(4, "little") + (1).to_bytes(4, "little") + bytes(24) + b"x"
    assert parse_table(strange) == {}


def test_guid_stands_in_mixed_byte_order() -> None:
    """As UEFI writes it: the first three groups little-endian (known bytes of VCEK's entry)."""
    assert build_table({"VCEK": b"x"})[:16].hex() == "8d75da6364e66445adc5f4b93be8accd"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        bytes(23),
        build_table(FILES)[:-1],
        build_table({"VLEK": b"a"})[:24],
        bytes(MAX_TABLE_BYTES + 1),
        (b"\1" * 24) * 17 + bytes(24),
        build_table({"VLEK": b"a"}).replace((48).to_bytes(4, "little"), (0).to_bytes(4, "little")),
        build_table({"VLEK": b"a"}).replace((48).to_bytes(4, "little"), b"\xff\xff\xff\xff"),
        build_table({"VLEK": b""}),
        build_table({"VLEK": b"a"})[:24] + build_table({"VLEK": b"a"})[:24] + bytes(24) + bytes(9),
    ],
)
def test_table_that_lies_is_refused(raw: bytes) -> None:
    """Lengths, places, entries: each error says what is wrong."""
    with pytest.raises(MalformedQuote) as caught:
        parse_table(raw)
    assert caught.value.seen
    assert caught.value.remedy


def test_only_a_vlek_that_signed_is_kept() -> None:
    """A report that a VCEK signed needs no table, so nothing of it is kept."""
    table = build_table(FILES)
    assert snp.parse_extended_report(SNPScenario(vlek=True).built().report + table).vlek == b"leaf"
    assert snp.parse_extended_report(SNPScenario().built().report + table).vlek is None
