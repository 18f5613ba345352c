"""A thief of the key server's TLS key answers in its place: no program takes anything from him."""

from __future__ import annotations

import hashlib
import json
import shutil
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.x509.oid import ExtendedKeyUsageOID

from adyton.collateral.verifier import Verifier
from adyton.errors import Denied, Error, OutOfOrder, UsageError
from adyton.keyserver.service import KeyService
from adyton.keystore.audit_key import audit_private_key
from adyton.keystore.certificates import make_ca, make_purpose
from adyton.keystore.grant_key import GrantKey, make_grant_key, open_grant_key
from adyton.manifest.findings import findings
from adyton.manifest.measure import combine
from adyton.purpose_certificate import GRANTS
from adyton.release import grants
from adyton.release.answer import parse_answer
from adyton.release.grants import Granted, Terms
from adyton.release.messages import ReleaseRequest, ServerIdentity, parse_used
from adyton.release.tls import server_context
from adyton.release.wire import PROTOCOL
from adyton.server.process import server_identity
from tests.support.owner_world import RA_TLS, Running, World, make_world, now, running
from tests.support.release_by_hand import entries, obtain
from tests.support.servers import raw_server

Sign = Callable[[Any, bytes, ReleaseRequest, ServerIdentity, Terms], Granted]


@pytest.fixture
def thief(world: World, tmp_path: Path) -> Iterator[World]:
    """A server of the thief's own, with the owner's TLS key and certificate, and keys of his choosing."""
    with make_world(tmp_path / "thief", key=b"his own key 1234") as made:
        for name in ("server.crt", "server.key"):
            shutil.copy(world.home.path / name, made.home.path / name)
        made.approve(world.program(), tees=(world.tee,))
        yield made


@contextmanager
def answering(world: World, thief: World, grant_key: GrantKey | None = None) -> Iterator[Running]:
    """The thief's server, which says that it is the owner's, with her TLS key; it grants with whatever he has."""
    his = grant_key or open_grant_key(thief.home, thief.store, actor="thief")
    service = KeyService(
        thief.store,
        Verifier(world.collateral),
        server_identity(world.home),
        audit_private_key(thief.home.path),
        his,
        combine=combine,
    )
    with running(thief, service=service) as found:
        yield found


def refused(world: World, server: Running) -> Error:
    """What the program says to an answer of the thief; his key must not reach it."""
    with pytest.raises((Denied, OutOfOrder)) as caught:
        obtain(world, server, world.program())
    return caught.value


def der_of(path: Path) -> bytes:
    """A certificate of a home, DER."""
    return ssl.PEM_cert_to_DER_cert(path.read_text())


def test_tls_key_alone_grants_nothing(world: World, thief: World) -> None:
    """TLS holds, the thief grants with a key under a CA of his own, and the program takes nothing of it."""
    with answering(world, thief) as server:
        error = refused(world, server)
    assert isinstance(error, Denied)
    assert error.check == "issuer of the grant's certificate"
    assert len(entries(thief, "release")) == 1  # the thief did answer, with his own key
    assert "used" not in thief.kinds()


def test_the_same_answer_is_taken_where_the_grant_key_is_stolen_too(world: World, thief: World) -> None:
    """The control: nothing but the grant's signature stood between the thief's key and the program."""
    stolen = open_grant_key(world.home, world.store, actor="test")
    with answering(world, thief, stolen) as server:
        assert obtain(world, server, world.program()).keys["weights"].reveal() == b"his own key 1234"


def with_tls_key(world: World) -> Sign:
    """Sign with the TLS key, under its certificate."""
    key = serialization.load_pem_private_key(world.home.private("server.key"), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)

    def sign(_key: Any, _der: bytes, request: ReleaseRequest, server: ServerIdentity, terms: Terms) -> Granted:
        raw = key.sign(grants._signed(request, server, terms), ec.ECDSA(hashes.SHA256()))
        signature = b"".join(number.to_bytes(32, "big") for number in utils.decode_dss_signature(raw))
        return Granted(terms=terms, certificate=der_of(world.home.path / "server.crt"), signature=signature)

    return sign


def with_audit_key(world: World) -> Sign:
    """Sign with another Ed25519 key under the CA, which is for something else."""
    key, der = audit_private_key(world.home.path), der_of(world.home.path / "audit.crt")
    return lambda _key, _der, request, server, terms: grants.sign_grant(key, der, request, server, terms)


def with_the_true_certificate(world: World) -> Sign:
    """Show the owner's true certificate over a signature that is not its key's."""
    der = der_of(world.home.path / "grant.crt")
    return lambda key, _der, request, server, terms: grants.sign_grant(key, der, request, server, terms)


def with_a_ca_of_the_same_name(world: World) -> Sign:
    """A CA that calls itself as the owner's does, and a certificate for grants under it."""
    key = open_grant_key(world.home, world.store, actor="test").private
    certificate = make_purpose(make_ca("alice", now()), key.public_key(), "alice", GRANTS, now())
    der = certificate.public_bytes(serialization.Encoding.DER)
    return lambda _key, _der, request, server, terms: grants.sign_grant(key, der, request, server, terms)


@pytest.mark.parametrize(
    ("make", "check"),
    [
        (with_tls_key, "purpose of the grant's certificate"),
        (with_audit_key, "purpose of the grant's certificate"),
        (with_the_true_certificate, "signature of the grant"),
        (with_a_ca_of_the_same_name, "issuer of the grant's certificate"),
    ],
)
def test_other_signatures_grant_nothing(
    world: World, thief: World, monkeypatch: pytest.MonkeyPatch, make: Callable[[World], Sign], check: str
) -> None:
    """Not by the TLS key, not by the audit key, not under the true certificate without its key, not by another CA."""
    monkeypatch.setattr("adyton.keyserver.answer.sign_grant", make(world))
    with answering(world, thief) as server:
        assert refused(world, server).check == check


@pytest.mark.parametrize("missing", ["signature", "certificate", "versions"])
def test_grant_without_its_signature_is_no_grant(world: World, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """An unsigned grant, as the first version of the protocol had it, is refused whoever sends it."""
    whole = Granted.to_bytes

    def cut(granted: Granted) -> bytes:
        return json.dumps(
            {name: value for name, value in json.loads(whole(granted)).items() if name != missing}
        ).encode()

    monkeypatch.setattr(Granted, "to_bytes", cut)
    with running(world) as server:
        error = refused(world, server)
    assert isinstance(error, OutOfOrder)
    assert error.message == "malformed message: members"


def test_grant_for_another_request_is_refused(world: World, thief: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A true grant that the thief heard, given again to another run's challenge, is not that run's."""
    heard: list[Granted] = []
    true_sign = grants.sign_grant

    def listen(*arguments: Any) -> Granted:
        heard.append(true_sign(*arguments))
        return heard[-1]

    monkeypatch.setattr("adyton.keyserver.answer.sign_grant", listen)
    with running(world) as server:
        assert obtain(world, server, world.program()).keys
    monkeypatch.setattr("adyton.keyserver.answer.sign_grant", lambda *_arguments: heard[0])
    with answering(world, thief) as server:
        assert refused(world, server).check == "signature of the grant"


@pytest.mark.parametrize(
    "change",
    [
        {"wrapped": b"w" * 2000},
        {"versions": {"weights": 7}},
        {"versions": {"other": 1}},
        {"lease_s": 1 << 31},
        {"grant": "g-other"},
        {"checkpoint": {"seq": 1}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_grant_that_was_altered_on_its_way_is_refused(
    world: World, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    """Every term counts: who sits between, TLS key in hand, can alter none."""
    true_sign = grants.sign_grant

    def altered(*arguments: Any) -> Granted:
        granted = true_sign(*arguments)
        return replace(granted, terms=replace(granted.terms, **change))

    monkeypatch.setattr("adyton.keyserver.answer.sign_grant", altered)
    with running(world) as server:
        error = refused(world, server)
    assert error.check in ("signature of the grant", "names in the grant")


@pytest.mark.parametrize("days", [-3000, 3000])
def test_grant_under_a_certificate_that_is_not_valid_now_is_refused(world: World, days: int) -> None:
    """A grant key's certificate has its dates; by the clock of the machine that asks (`docs/release-protocol.md`)."""
    private = open_grant_key(world.home, world.store, actor="test").private
    ca_key = serialization.load_pem_private_key(world.home.private("ca.key"), password=None)
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
    true = x509.load_der_x509_certificate(der_of(world.home.path / "grant.crt"))
    builder = x509.CertificateBuilder(
        true.issuer,
        true.subject,
        private.public_key(),
        true.serial_number,
        now() + timedelta(days=days),
        now() + timedelta(days=days + 1),
        [*true.extensions],
    )
    der = builder.sign(ca_key, hashes.SHA384()).public_bytes(serialization.Encoding.DER)
    service = KeyService(
        world.store,
        Verifier(world.collateral),
        server_identity(world.home),
        audit_private_key(world.home.path),
        GrantKey(der, private),
        combine=combine,
    )
    with running(world, service=service) as server:
        assert refused(world, server).check == "validity of the grant's certificate"


def test_host_cannot_choose_the_protocol_that_signs_nothing(world: World, thief: World) -> None:
    """A host that works with the thief starts the program with --provisioning ra-tls: it asks nobody for a key."""
    thief.approve(world.program(), tees=(world.tee,), protocols=("ra-tls",))
    with answering(world, thief) as server:
        with pytest.raises(UsageError) as caught:
            obtain(world, server, world.program(), protocol="ra-tls")
        assert server.server.counters.accepted == 0
    assert "insecure__ra_tls" in str(caught.value.details())


def test_program_that_takes_unsigned_grants_says_so_in_its_manifest(world: World, thief: World) -> None:
    """What the key opens is true: over RA-TLS the thief's key is taken. The owner is shown it before she approves."""
    open_wide = world.program(tables=RA_TLS)
    thief.approve(open_wide, tees=(world.tee,), protocols=("ra-tls",))
    with answering(world, thief) as server:
        assert obtain(world, server, open_wide, protocol="ra-tls").keys["weights"].reveal() == b"his own key 1234"
    assert "unsigned-grants" in [finding.name for finding in findings(open_wide.manifest)]


def test_grant_key_is_no_tls_servers(world: World, tmp_path: Path) -> None:
    """The other way round: who has the grant key alone is no key server to a TLS client."""
    private = open_grant_key(world.home, world.store, actor="test").private
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "stolen.key").write_bytes(pem)
    context = server_context(world.home.path / "grant.crt", tmp_path / "stolen.key", client_certificate=False)
    with raw_server(lambda _connection, _stop: None, context) as url, pytest.raises(Denied) as caught:
        obtain(world, url.removeprefix("https://"), world.program())
    assert caught.value.check == "identity of the key server"
    extensions = x509.load_der_x509_certificate(der_of(world.home.path / "grant.crt")).extensions
    assert not any(isinstance(each.value, x509.SubjectAlternativeName) for each in extensions)
    (purpose,) = [each.value for each in extensions if isinstance(each.value, x509.ExtendedKeyUsage)]
    assert ExtendedKeyUsageOID.SERVER_AUTH not in purpose


def test_home_without_its_store_signs_no_grant(world: World, thief: World) -> None:
    """The stolen folder alone is not enough: the key is sealed under the store's state key."""
    for name in ("grant.crt", "grant.key", "ca.crt"):
        shutil.copy(world.home.path / name, thief.home.path / name)
    (thief.home.path / "ca.key").unlink()
    with pytest.raises(Error, match="no key to sign grants with"):
        open_grant_key(thief.home, thief.store, actor="thief")
    raw = (world.home.path / "grant.key").read_bytes()
    assert open_grant_key(world.home, world.store, actor="test").private.private_bytes_raw() not in raw


def test_renewed_grant_key_is_another_and_is_on_record(world: World) -> None:
    """Programs keep working with a new grant key: they pin the CA and no key under it."""
    before = der_of(world.home.path / "grant.crt")
    make_grant_key(world.home, world.store, actor="alice")
    after = der_of(world.home.path / "grant.crt")
    assert before != after
    with running(world) as server:
        assert obtain(world, server, world.program()).keys
    made = entries(world, "grant-key-made")
    assert [each["sha256"] for each in made] == [hashlib.sha256(der).hexdigest() for der in (before, after)]


@pytest.mark.parametrize("written", ["\ud800", "\xe9", "../x", "a b", "a\r\nB: c", ""])
def test_ids_that_are_none_are_refused_where_they_are_read(written: str) -> None:
    """A thief writes what no text can hold where an id of the record stands: that ends in a refusal, not in a fault."""
    document = dict.fromkeys(("message", "check", "expected", "seen", "remedy"), "x")
    denied = {"protocol": PROTOCOL, "status": "denied", "denial": written, **document}
    with pytest.raises(OutOfOrder):
        parse_answer(json.dumps(denied).encode())
    with pytest.raises(OutOfOrder):
        parse_used(json.dumps({"protocol": PROTOCOL, "grant": written, "token": 43 * "A" + "="}).encode())
    terms = {
        "grant": written,
        "lease_s": 1,
        "versions": {"weights": 1},
        "wrapped": "AAAA",
        "checkpoint": {},
        "roots": {},
    }
    granted = {**terms, "certificate": "AAAA", "signature": 86 * "A" + "=="}
    with pytest.raises(OutOfOrder, match="grant"):
        parse_answer(json.dumps({"protocol": PROTOCOL, "status": "granted", **granted}).encode())
