"""Collateral from outside, however broken, is refused as what it is: never a crash, never a changed document taken."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adyton.collateral.bundle import BUNDLE_FORMAT, build_bundle, documents_of, parse_bundle
from adyton.collateral.documents import KINDS, Document, verify_document
from adyton.collateral.http_client import Response, retry_after_s
from adyton.errors import Error, EvidenceError, MalformedQuote
from adyton.sim.platform import SimPlatform
from adyton.sim.vendor import Publication

FAST = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)


@functools.cache
def genuine() -> tuple[Document, ...]:
    """One genuine document of each kind that a simulated platform has."""
    with tempfile.TemporaryDirectory() as folder:
        platform = SimPlatform.create(Path(folder) / "platform")
        now = datetime.now(UTC).replace(microsecond=0)
        found = documents_of(platform.collateral(now), "https://x.invalid/", now)
        leaf, _, issuers = platform.pck_chain.partition("-----END CERTIFICATE-----\n")
        certificate = Document(
            "pck-certificate",
            f"{leaf}-----END CERTIFICATE-----\n".encode(),
            issuers,
            "https://x.invalid/",
            now,
            request="0" * 40,
        )
        return (*found, certificate)


@FAST
@given(st.binary(max_size=400))
def test_bundle_of_any_bytes_is_refused_as_malformed(raw: bytes) -> None:
    """Random bytes are no bundle."""
    with pytest.raises(MalformedQuote):
        parse_bundle(raw)


@FAST
@given(st.lists(json_values, max_size=3))
def test_bundle_with_any_documents_is_refused_or_parsed(rows: list[object]) -> None:
    """Random JSON in the place of documents is refused by the one family of errors."""
    raw = json.dumps({"format": BUNDLE_FORMAT, "documents": rows}).encode()
    with contextlib.suppress(MalformedQuote):
        assert len(parse_bundle(raw)) == len(rows)


@FAST
@given(
    kind=st.sampled_from(KINDS),
    body=st.binary(max_size=300),
    chain=st.text(max_size=200),
    channel=st.sampled_from(["standard", "early"]),
)
def test_document_of_any_content_is_refused_as_evidence(kind: str, body: bytes, chain: str, channel: str) -> None:
    """Nothing random verifies, and nothing random does anything but refuse."""
    document = Document(kind, body, chain, "", datetime.now(UTC), channel)  # type: ignore[arg-type]
    with pytest.raises(EvidenceError):
        verify_document(document)


@FAST
@given(data=st.data())
def test_genuine_document_with_any_byte_changed_says_the_same_or_is_refused(data: st.DataObject) -> None:
    """Whatever byte of body or chain changes: refused, or (in what nobody signs) the very same facts."""
    document = data.draw(st.sampled_from(genuine()))
    before = verify_document(document)
    in_chain = data.draw(st.booleans())
    raw = bytearray(document.chain.encode() if in_chain else document.body)
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    try:
        changed = (
            dataclasses.replace(document, chain=raw.decode("latin-1"))
            if in_chain
            else dataclasses.replace(document, body=bytes(raw))
        )
        after = verify_document(changed)
    except EvidenceError:
        return
    assert (after.root, after.subject, after.issued_at, after.number) == (
        before.root,
        before.subject,
        before.issued_at,
        before.number,
    )


@FAST
@given(st.lists(st.integers(0, 4), max_size=8))
def test_bundle_built_is_the_bundle_parsed(picks: list[int]) -> None:
    """Building and parsing a bundle are each other's inverse."""
    documents = tuple(genuine()[pick] for pick in picks)
    assert parse_bundle(build_bundle(documents)) == documents


@FAST
@given(st.text(max_size=60))
def test_retry_after_of_any_text_is_seconds_or_nothing(text: str) -> None:
    """Whatever a server writes into Retry-After, it is at most a day."""
    wait_s = retry_after_s(Response("", 429, {"retry-after": text}, b""))
    assert wait_s is None or 0.0 <= wait_s <= 86_400.0


@FAST
@given(st.dictionaries(st.sampled_from(["published_at", "levels", "ca", "fmspc", "modules"]), json_values))
def test_publication_of_any_json_is_refused(data: dict[str, object]) -> None:
    """A simulated vendor's file that is none is refused by the one family of errors."""
    with pytest.raises(Error):
        Publication.from_dict(data)
