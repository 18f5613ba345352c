"""What a run says after its grant: only the run itself can say it, for one action, one grant and one server."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from adyton.errors import OutOfOrder, VersionMismatch
from adyton.release.messages import ServerIdentity
from adyton.release.run_key import RUN_KEY_BYTES, RunKey, is_signed_by, parse_run_key
from adyton.release.run_messages import (
    MAX_PAYLOAD_BYTES,
    MAX_RUN_MESSAGE_BYTES,
    RECEIPT,
    ROOT_INTENT,
    RunMessage,
    parse_run_answer,
    parse_run_message,
    run_answer,
)
from adyton.values import Digest

ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
KEY = RunKey()
SERVER = ServerIdentity(Digest(b"c" * 32), "adyton-key-server")
MESSAGE = RunMessage.create(KEY, SERVER, RECEIPT, "g-1", b"payload")


def test_message_comes_as_it_was_sent_and_verifies() -> None:
    """The largest payload, too."""
    again = parse_run_message(MESSAGE.to_bytes(), RECEIPT)
    assert again == MESSAGE
    assert again.is_of(KEY.public_bytes, SERVER)
    largest = RunMessage.create(KEY, SERVER, RECEIPT, "g-" + "1" * 38, bytes(MAX_PAYLOAD_BYTES)).to_bytes()
    assert len(largest) <= MAX_RUN_MESSAGE_BYTES
    assert parse_run_message(largest, RECEIPT).is_of(KEY.public_bytes, SERVER)


@pytest.mark.parametrize(
    "change", [{"action": ROOT_INTENT}, {"grant": "g-2"}, {"payload": b"payloae"}, {"signature": bytes(64)}], ids=str
)
def test_another_message_does_not_verify(change: dict[str, Any]) -> None:
    """Action, grant, payload and signature count, each by itself."""
    assert not replace(MESSAGE, **change).is_of(KEY.public_bytes, SERVER)


def test_message_to_another_server_or_of_another_run_does_not_verify() -> None:
    """Another owner's server cannot pass it on, and another run cannot claim the grant."""
    assert not MESSAGE.is_of(KEY.public_bytes, replace(SERVER, server_name="other"))
    assert not MESSAGE.is_of(KEY.public_bytes, replace(SERVER, ca_sha256=Digest(b"d" * 32)))
    assert not MESSAGE.is_of(RunKey().public_bytes, SERVER)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"protocol": "adyton-release/3"}, VersionMismatch),
        ({"extra": 1}, OutOfOrder),
        ({"grant": "a b"}, OutOfOrder),
        ({"payload": "AAA"}, OutOfOrder),
        ({"signature": "AAAA"}, OutOfOrder),
    ],
    ids=str,
)
def test_malformed_message_is_refused(change: dict[str, Any], error: type[Exception]) -> None:
    """Exactly these members, and base64 in its one form."""
    with pytest.raises(error):
        parse_run_message(json.dumps({**json.loads(MESSAGE.to_bytes()), **change}).encode(), RECEIPT)


def test_unknown_action_and_too_long_payload_are_refused() -> None:
    """Neither reaches a handler."""
    with pytest.raises(OutOfOrder):
        parse_run_message(MESSAGE.to_bytes(), "other")
    with pytest.raises(OutOfOrder):
        parse_run_message(replace(MESSAGE, payload=bytes(MAX_PAYLOAD_BYTES + 1)).to_bytes(), RECEIPT)


def test_answers_come_as_they_were_sent() -> None:
    """The members of the action, or that the run is unknown; another status is refused."""
    found = parse_run_answer(run_answer({"a": 1}), 4096)
    assert found is not None
    assert dict(found) == {"a": 1}
    assert parse_run_answer(run_answer(None), 4096) is None
    for status in ("granted", 1, None):
        with pytest.raises(OutOfOrder):
            parse_run_answer(json.dumps({"protocol": "adyton-release/4", "status": status}).encode(), 4096)


def test_a_signature_has_one_form() -> None:
    """64 bytes, with the lower of the two values of s: the other one is refused, though the mathematics holds."""
    for _ in range(32):
        signature = KEY.sign(b"data")
        assert len(signature) == 64
        assert is_signed_by(KEY.public_bytes, signature, b"data")
        other = signature[:32] + (ORDER - int.from_bytes(signature[32:], "big")).to_bytes(32, "big")
        assert not is_signed_by(KEY.public_bytes, other, b"data")
    assert not is_signed_by(KEY.public_bytes, signature[:63], b"data")
    assert not is_signed_by(KEY.public_bytes, b"\xff" * 64, b"data")
    assert "secret" in repr(KEY)


def test_a_run_key_is_a_p256_key_of_91_bytes() -> None:
    """A key of another curve and a compressed point are refused."""
    assert len(KEY.public_bytes) == RUN_KEY_BYTES
    assert parse_run_key(KEY.public_bytes).curve.name == "secp256r1"
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    other = ec.generate_private_key(ec.SECP384R1()).public_key().public_bytes(*form)
    point = parse_run_key(KEY.public_bytes).public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    for raw in (b"", other, KEY.public_bytes[:26] + point, KEY.public_bytes + b"\0"):
        with pytest.raises(OutOfOrder):
            parse_run_key(raw)
