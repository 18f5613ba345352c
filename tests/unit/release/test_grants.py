"""A grant's signature is over every field of the request and of the terms: one other field, and it does not hold."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from adyton.attest.bundle import EvidenceBundle
from adyton.errors import Denied, OutOfOrder
from adyton.keystore.certificates import make_ca, make_purpose, make_server
from adyton.purpose_certificate import GRANTS
from adyton.release.grants import Granted, Terms, parse_granted, sign_grant, verify_grant
from adyton.release.messages import ReleaseRequest, ServerIdentity
from adyton.release.wire import parse_object
from adyton.values import Digest, Nonce
from tests.support.owner_world import now
from tests.support.run_keys import RUN_KEY

CA = make_ca("alice", now())
CA_DER = x509.load_pem_x509_certificate(CA.certificate_pem).public_bytes(serialization.Encoding.DER)
KEY = Ed25519PrivateKey.generate()
CERTIFICATE = make_purpose(CA, KEY.public_key(), "alice", GRANTS, now()).public_bytes(serialization.Encoding.DER)
SERVER = ServerIdentity(Digest(hashlib.sha256(CA_DER).digest()), "adyton-key-server")
REQUEST = ReleaseRequest(
    Nonce(b"n" * 32), b"k" * 1216, Digest(b"m" * 32), ("a", "b"), EvidenceBundle(cpu=b"evidence"), RUN_KEY, ("a/x",)
)
TERMS = Terms(
    grant="g-1",
    lease_s=60,
    versions={"a": 1, "b": 2},
    wrapped=b"wrapped",
    checkpoint={"seq": 1},
    roots={"a/x": {"seq": 1}},
)
GRANTED = sign_grant(KEY, CERTIFICATE, REQUEST, SERVER, TERMS)


def test_grant_as_it_was_signed_verifies_also_after_its_way() -> None:
    """What is sent is what is read, and its signature holds."""
    verify_grant(CA_DER, REQUEST, SERVER, GRANTED, now())
    again = parse_granted(parse_object(GRANTED.to_bytes(), 1 << 20))
    assert again == GRANTED
    verify_grant(CA_DER, REQUEST, SERVER, again, now())


@pytest.mark.parametrize(
    "change",
    [
        {"nonce": Nonce(b"o" * 32)},
        {"public_key": b"l" * 1216},
        {"manifest_sha256": Digest(b"o" * 32)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_grant_for_another_request_does_not_verify(change: dict[str, Any]) -> None:
    """Challenge, key and manifest count, each by itself."""
    with pytest.raises(Denied) as caught:
        verify_grant(CA_DER, replace(REQUEST, **change), SERVER, GRANTED, now())
    assert caught.value.check == "signature of the grant"


@pytest.mark.parametrize("change", [{"server_name": "other"}, {"ca_sha256": Digest(b"o" * 32)}])
def test_grant_of_another_server_does_not_verify(change: dict[str, Any]) -> None:
    """One CA may have several servers: a grant is of the one that was asked."""
    with pytest.raises(Denied, match="signature"):
        verify_grant(CA_DER, REQUEST, replace(SERVER, **change), GRANTED, now())


@pytest.mark.parametrize(
    "change",
    [
        {"grant": "g-2"},
        {"lease_s": 61},
        {"versions": {"a": 2, "b": 1}},
        {"wrapped": b"Wrapped"},
        {"checkpoint": {"seq": 2}},
        {"checkpoint": {"seq": "1"}},
        {"roots": {"a/x": {"seq": 2}}},
        {"roots": {"a/x": {}}},
    ],
)
def test_grant_with_another_term_does_not_verify(change: dict[str, Any]) -> None:
    """Every term counts, each by itself; a number is no text."""
    with pytest.raises(Denied) as caught:
        verify_grant(CA_DER, REQUEST, SERVER, replace(GRANTED, terms=replace(TERMS, **change)), now())
    assert caught.value.check == "signature of the grant"


@pytest.mark.parametrize("names", [("a",), ("a", "c"), ("a", "b", "c")])
def test_grant_of_other_names_does_not_verify(names: tuple[str, ...]) -> None:
    """The names are those that were asked for."""
    with pytest.raises(Denied) as caught:
        verify_grant(CA_DER, replace(REQUEST, names=names), SERVER, GRANTED, now())
    assert caught.value.check == "names in the grant"


def test_grant_under_what_is_no_ca_does_not_verify() -> None:
    """A certificate that is pinned and is no CA's signs nothing."""
    server = make_server(CA, ("adyton-key-server",), now())
    der = x509.load_pem_x509_certificate(server.certificate_pem).public_bytes(serialization.Encoding.DER)
    with pytest.raises(Denied):
        verify_grant(der, REQUEST, SERVER, GRANTED, now())
    with pytest.raises(Denied):
        verify_grant(b"nothing", REQUEST, SERVER, GRANTED, now())


@pytest.mark.parametrize("certificate", [b"", b"\x30\x80", CERTIFICATE[:-1], CERTIFICATE + b"\0", CA_DER])
def test_grant_with_another_certificate_does_not_verify(certificate: bytes) -> None:
    """Nothing but a whole certificate for grants; the CA's own is none."""
    with pytest.raises(Denied):
        verify_grant(CA_DER, REQUEST, SERVER, Granted(terms=TERMS, certificate=certificate, signature=bytes(64)), now())


def test_grant_with_other_folders_is_refused() -> None:
    """The roots of exactly the folders that were asked for: none is missing, and none is extra."""
    for roots in ({}, {"a/y": {"seq": 1}}, {"a/x": {"seq": 1}, "a/y": {"seq": 1}}):
        granted = sign_grant(KEY, CERTIFICATE, REQUEST, SERVER, replace(TERMS, roots=roots))
        with pytest.raises(Denied) as caught:
            verify_grant(CA_DER, REQUEST, SERVER, granted, now())
        assert caught.value.check == "folders in the grant"


@pytest.mark.parametrize("roots", [[], {"a/x": []}, {"a/x": {"seq": [1]}}, {"a/x": {"seq": "1" * 2048}}], ids=str)
def test_malformed_roots_are_refused(roots: object) -> None:
    """Each is a short flat object."""
    document = {**json.loads(GRANTED.to_bytes()), "roots": roots}
    with pytest.raises(OutOfOrder):
        parse_granted(parse_object(json.dumps(document).encode(), 1 << 20))
