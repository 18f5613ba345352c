"""Tools of others verify the envelope of a receipt as it stands in its file: securesystemslib, and in-toto's own."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from google.protobuf import json_format
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer._key import Key, SSlibKey

from adyton.receipt.dsse import fingerprint
from adyton.receipt.statement import parse_statement
from tests.support.receipt_world import Made, receipt_world


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """A counter-signed receipt."""
    with receipt_world(tmp_path_factory.mktemp("receipts")) as world:
        yield world.make(made=[world.protected("data/a", b"first")])


def key_of(spki: bytes) -> Key:
    """A public key as securesystemslib has it."""
    return SSlibKey.from_crypto(load_der_public_key(spki), keyid=fingerprint(spki))


def keys(made: Made) -> list[Key]:
    """The run's key, and the audit key of the owner."""
    run = parse_statement(made.receipt.envelope.payload).run_key
    audit = x509.load_der_x509_certificate(made.receipt.counter_signatures[0].certificate).public_key()
    return [key_of(run), key_of(audit.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))]


def test_securesystemslib_verifies_both_signatures(made: Made) -> None:
    """The file is a DSSE envelope: its further member is passed over."""
    envelope = Envelope.from_dict(json.loads(made.raw))
    assert len(envelope.verify(keys(made), 2)) == 2
    assert envelope.payload == made.receipt.envelope.payload


def test_securesystemslib_refuses_another_payload(made: Made) -> None:
    """The same signatures over another statement."""
    envelope = Envelope.from_dict(json.loads(made.raw))
    envelope.payload = envelope.payload.replace(b'"exit_code":0', b'"exit_code":1')
    with pytest.raises(VerificationError):
        envelope.verify(keys(made), 1)


def test_in_toto_takes_the_statement(made: Made) -> None:
    """Its own parser and its own rules for a Statement v1."""
    parsed = json_format.Parse(made.receipt.envelope.payload, statement_pb2.Statement())
    statement = Statement.copy_from_pb(parsed)
    statement.validate()
    assert statement.pb.subject[0].name == "data/a"
    assert statement.pb.predicate_type == "https://adyton.dev/run-receipt/v1"
