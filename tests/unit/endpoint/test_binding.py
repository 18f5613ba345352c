"""Each fact of a connection is in the report data, and no two facts can be taken for each other."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace

from adyton.endpoint.binding import Connection, client_report_data, devices_digest, report_data

FACTS = Connection(b"n" * 32, b"s" * 32, b"e" * 32)


def test_report_data_is_the_documented_hash() -> None:
    """The hash, computed here by hand."""
    fields = (b"server", b"n" * 32, b"s" * 32, b"e" * 32, b"m" * 32, b"api", b"")
    raw = b"adyton report data/1 endpoint\0" + b"".join(struct.pack(">I", len(one)) + one for one in fields)
    assert report_data(FACTS, b"m" * 32, "api") == hashlib.sha512(raw).digest()


def test_each_fact_changes_it() -> None:
    """Another nonce, key, exporter, manifest, name or device gives other report data."""
    found = {
        report_data(FACTS, b"m" * 32, "api"),
        report_data(replace(FACTS, nonce=b"N" * 32), b"m" * 32, "api"),
        report_data(replace(FACTS, spki_sha256=b"S" * 32), b"m" * 32, "api"),
        report_data(replace(FACTS, exporter=b"E" * 32), b"m" * 32, "api"),
        report_data(FACTS, b"M" * 32, "api"),
        report_data(FACTS, b"m" * 32, "apis"),
        report_data(FACTS, b"m" * 32, "api", [b"d"]),
        report_data(FACTS, b"m" * 32, "api", [b"d", b""]),
        client_report_data(FACTS, b"m" * 32, "api"),
        client_report_data(FACTS, b"m" * 32, "apis"),
        client_report_data(FACTS, b"M" * 32, "api"),
    }
    assert len(found) == 11
    assert devices_digest([]) == b""
