"""What a key server answers, as the error that a start of a program ends with."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from adyton.errors import Denied, Error, FetchFailed, OutOfOrder, ScriptFailed, VersionMismatch
from adyton.keystore.certificates import Credential, make_ca, make_server
from adyton.manifest.model import Owner
from adyton.release.client import _not_pinned, _server_error, denied
from adyton.release.messages import NOT_KEPT, Refusal
from adyton.release.tls import client_context, server_context
from tests.support.servers import raw_server

REFUSAL = Refusal("d-7", "no", "approval", "one", "none", "ask her")


def test_denied_carries_all_that_the_refusal_says() -> None:
    """Who catches the error reads the denial's id from it, and not from its text."""
    error = denied(REFUSAL, "maker")
    assert error.denials == ("d-7",)
    assert (error.check, error.expected, error.seen, error.remedy) == ("approval", "one", "none", "ask her")
    again = Error.parse(error.to_bytes())
    assert isinstance(again, Denied)
    assert again.denials == ("d-7",)


def test_denied_that_the_owner_only_counted_has_no_id() -> None:
    """There is nothing to look up then."""
    assert denied(Refusal(NOT_KEPT, "no", "c", "e", "s", "r"), "maker").denials == ()


@pytest.mark.parametrize(
    ("status", "kind"), [(503, FetchFailed), (400, OutOfOrder), (500, OutOfOrder), (426, VersionMismatch)]
)
def test_server_error_has_the_class_of_its_status(status: int, kind: type[Error]) -> None:
    """The class that a server names, and what it says of exit codes, count for nothing."""
    raw = json.dumps({"error": "ScriptFailed", "status": 0, "message": "m", "check": "c", "denials": ["d-1"]}).encode()
    error = _server_error(raw, status, "h:1")
    assert type(error) is kind
    assert not isinstance(error, ScriptFailed)


def test_server_error_is_text_within_bounds() -> None:
    """Nothing of it steers a terminal, none of it is long, and what is no text is left out."""
    parts = {"message": "\x1b[2J" + "m" * 1000, "check": ["c"], "expected": 1, "seen": "s\u202e", "remedy": None}
    error = _server_error(json.dumps(parts).encode(), 400, "h:1")
    assert "\x1b" not in error.message
    assert len(error.message) < 400
    assert (error.check, error.expected, error.seen, error.remedy) == (None, None, "s\N{REPLACEMENT CHARACTER}", None)


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b"<html>"])
def test_server_error_without_a_document_names_the_status(raw: bytes) -> None:
    """Something else than a key server answers as it likes."""
    error = _server_error(raw, 502, "h:1")
    assert error.message.endswith("answered with an error: HTTP status 502")
    assert error.checks == ()


def _sample_pki() -> tuple[str, Credential]:
    """A CA and a server's certificate that have one subject, and neither of them key identifiers."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    made = [
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(number + 1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=number == 0, path_length=None), critical=True)
        .sign(keys[0], hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
        for number, key in enumerate(keys)
    ]
    private = keys[1].private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return made[0].decode(), Credential(made[1], private)


def _refused(folder: Path, ca_pem: str, shown: Credential) -> Denied:
    """What a program says of a server that shows this certificate."""
    (folder / "server.crt").write_bytes(shown.certificate_pem)
    (folder / "server.key").write_bytes(shown.key_pem)
    context = server_context(folder / "server.crt", folder / "server.key", client_certificate=False)
    with raw_server(lambda _connection, _stop: None, context) as url:
        host, _, port = url.removeprefix("https://").partition(":")
        with socket.create_connection((host, int(port))) as plain, pytest.raises(ssl.SSLCertVerificationError) as met:
            client_context(ca_pem).wrap_socket(plain, server_hostname="adyton-key-server")
    return _not_pinned(met.value, Owner("maker", ca_pem), "h:1")


def test_server_that_is_not_the_pinned_one_is_refused_with_the_true_reason(tmp_path: Path) -> None:
    """Another CA, another name, and a sample PKI with one subject for CA and server are three things."""
    now = datetime.now(UTC)
    ours, theirs = make_ca("maker", now), make_ca("mallory", now)

    def server(ca: Credential, names: Sequence[str]) -> Credential:
        return make_server(ca, names, now)

    ca_pem = ours.certificate_pem.decode()
    other_ca = _refused(tmp_path, ca_pem, server(theirs, ["adyton-key-server"]))
    assert "does not stand under the pinned CA" in other_ca.message
    other_name = _refused(tmp_path, ca_pem, server(ours, ["elsewhere"]))
    assert "carries another name than adyton-key-server" in other_name.message
    assert "--renew-server --server-name adyton-key-server" in (other_name.remedy or "")
    same_subject = _refused(tmp_path, *_sample_pki())
    assert "names itself as its issuer" in same_subject.message
    assert "the same subject as its CA" in (same_subject.remedy or "")
    assert {error.check for error in (other_ca, other_name, same_subject)} == {"identity of the key server"}
