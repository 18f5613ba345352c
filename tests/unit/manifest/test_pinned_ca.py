"""A pinned CA is one certificate of a CA and nothing else, in every manifest and for every key."""

from __future__ import annotations

import base64
import ssl
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509

from adyton.errors import MalformedManifest
from adyton.keystore.certificates import make_ca, make_server
from adyton.manifest.model import parse_manifest
from adyton.manifest.pinned_ca import ca_sha256, ca_within, check_ca

CA = (Path(__file__).parents[2] / "support" / "owner-ca.pem").read_text()
MALLORY = make_ca("mallory", datetime.now(UTC))
OTHER = MALLORY.certificate_pem.decode()
LEAF = make_server(MALLORY, ("x",), datetime.now(UTC)).certificate_pem.decode()
MANIFEST = 'libos.entrypoint = "/app"\nfs.mounts = [{ type = "encrypted", path = "/d", uri = "file:d" }]\n'


def wrapped(der: bytes) -> str:
    """Bytes as PEM calls a certificate."""
    return f"-----BEGIN CERTIFICATE-----\n{base64.encodebytes(der).decode()}-----END CERTIFICATE-----\n"


HOSTILE = {
    "two certificates": CA + OTHER,
    "another before": OTHER + CA,
    "the same twice": CA + CA,
    "a second one of OpenSSL's own kind": CA + OTHER.replace("CERTIFICATE", "TRUSTED CERTIFICATE"),
    "a second one of the old kind": CA + OTHER.replace("CERTIFICATE", "X509 CERTIFICATE"),
    "a key behind it": CA + MALLORY.key_pem.decode(),
    "words before": "words\n" + CA,
    "words after": CA + "words\n",
    "bytes after the certificate": wrapped(ssl.PEM_cert_to_DER_cert(CA) + b"more"),
    "a server's certificate": LEAF,
    "no certificate": "words",
    "nothing": "",
    "half a certificate": CA[: len(CA) // 2],
    "another label": CA.replace("CERTIFICATE", "TRUSTED CERTIFICATE"),
    "too long": CA + "\n" * (64 << 10),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_ca_that_is_not_one_ca_is_refused_at_parse(name: str) -> None:
    """A TLS library would trust every certificate in the text; the manifest says one."""
    with pytest.raises(MalformedManifest, match=r"adyton\.owners\.me\.ca"):
        parse_manifest(MANIFEST + f"adyton.owners.me.ca = '''{HOSTILE[name]}'''\n")


@pytest.mark.parametrize("name", HOSTILE)
def test_ca_is_refused_for_every_owner_and_key(name: str) -> None:
    """Also for an owner of whom the manifest asks nothing."""
    owners = f"adyton.owners.me.ca = '''{CA}'''\nadyton.owners.other.ca = '''{HOSTILE[name]}'''\n"
    with pytest.raises(MalformedManifest, match=r"adyton\.owners\.other\.ca"):
        parse_manifest(MANIFEST + owners + 'adyton.keys.default = "me"\n')


def test_ca_of_a_sample_pki_is_refused_with_how_to_make_it(tmp_path: Path) -> None:
    """`openssl req -x509` without extensions makes version 1: it does not say that it is a CA's, and that is said."""
    names = "[req]\nprompt = no\ndistinguished_name = dn\n[dn]\ncommonName = localhost\n"
    (tmp_path / "names").write_text(names)
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.crt"]
    made += ["-config", "names"]
    subprocess.run(made, cwd=tmp_path, check=True, capture_output=True)
    if x509.load_pem_x509_certificate((tmp_path / "ca.crt").read_bytes()).version is not x509.Version.v1:
        pytest.skip("this OpenSSL makes version 3 by itself")
    with pytest.raises(MalformedManifest, match="does not say that it may sign") as refused:
        ca_within((tmp_path / "ca.crt").read_text(), "k")
    assert '-addext "basicConstraints=critical,CA:TRUE"' in (refused.value.remedy or "")
    subprocess.run(
        [*made, "-addext", "basicConstraints=critical,CA:TRUE"], cwd=tmp_path, check=True, capture_output=True
    )
    assert ca_within((tmp_path / "ca.crt").read_text(), "k")


def test_ca_is_one_text_whatever_its_spaces() -> None:
    """Line ends and indentation make no other certificate, and the model holds the canonical text."""
    for text in (CA, CA.replace("\n", "\r\n"), f"\n{CA}\n\n", CA.replace("\n", "\n  ")):
        assert check_ca(text, "k") == CA
        (owner,) = parse_manifest(MANIFEST + f"adyton.owners.me.ca = '''{text}'''\n").adyton.owners
        assert owner.ca == CA
    assert ca_sha256(CA) != ca_sha256(OTHER)
    assert ca_within(f"words\n{CA}words\n", "k") == CA
    with pytest.raises(MalformedManifest, match="not one"):
        ca_within(f"words\n{CA}words\n{OTHER}", "k")
