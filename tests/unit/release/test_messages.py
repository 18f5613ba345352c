"""The release protocol's messages: each round-trips, and nothing but exactly such a message is taken."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adyton.attest.bundle import (
    MAX_CPU_BYTES,
    MAX_EVENT_LOG_BYTES,
    DevicePart,
    EvidenceBundle,
    devices_field,
)
from adyton.attest.devices import MAX_DEVICES
from adyton.errors import KeyReleaseError, OutOfOrder, VersionMismatch
from adyton.release import secret_provisioning
from adyton.release.answer import parse_answer
from adyton.release.grants import Granted, Terms
from adyton.release.messages import (
    MAX_NAMES,
    ChallengeAnswer,
    EnclaveKey,
    Payload,
    Refusal,
    ReleaseRequest,
    ServerIdentity,
    check_challenge,
    make_challenge,
    parse_challenge,
    parse_challenge_request,
    parse_payload,
    parse_public_key,
    parse_release_request,
    parse_used,
    report_data,
    run_id,
    used_message,
    wrap_to,
)
from adyton.release.shown_program import explain_message, parse_explain
from adyton.values import Digest, Nonce
from tests.support.run_keys import RUN_KEY

PAGE = (Path(__file__).parents[3] / "docs" / "registers.md").read_text(encoding="utf-8")
KEY = EnclaveKey()
SERVER = ServerIdentity(Digest(b"c" * 32), "adyton-key-server")
REQUEST = ReleaseRequest(
    Nonce(b"n" * 32), KEY.public_bytes, Digest(b"m" * 32), ("a", "b"), EvidenceBundle(cpu=b"evidence"), run_key=RUN_KEY
)
TERMS = Terms(grant="g-1", lease_s=60, versions={"a": 1, "b": 7}, wrapped=b"wrapped", checkpoint={"seq": 1})
GRANTED = Granted(terms=TERMS, certificate=b"certificate", signature=bytes(64))
BASE_POINT = bytes.fromhex(
    "3059301306072a8648ce3d020106082a8648ce3d03010703420004"
    "6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296"
    "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5"
)
"""A run key: the base point of P-256 (SP 800-186 section 3.2.1.3)."""

PARSERS = [
    parse_challenge_request,
    parse_challenge,
    parse_release_request,
    parse_answer,
    parse_used,
    parse_explain,
    parse_payload,
]


def test_messages_round_trip() -> None:
    """What is written is what is read."""
    assert parse_release_request(REQUEST.to_bytes()) == REQUEST
    challenge = ChallengeAnswer(Nonce(b"x" * 32), 60)
    assert parse_challenge(challenge.to_bytes()) == challenge
    assert parse_answer(GRANTED.to_bytes()) == GRANTED
    refusal = Refusal("d-1", "message", "check", "expected", "seen", "remedy")
    assert parse_answer(refusal.to_bytes()) == refusal
    assert parse_used(used_message("g-1", b"t" * 32)) == ("g-1", b"t" * 32)
    payload = Payload({"k": b"k" * 16}, {"s": b"secret"}, b"t" * 32)
    assert parse_payload(payload.to_bytes()) == payload
    explained = parse_explain(explain_message("d-1", b"manifest", {"adyton": "ab" * 32}))
    assert (explained.manifest, dict(explained.runtime_parts)) == (b"manifest", {"adyton": "ab" * 32})


@pytest.mark.parametrize(
    "change", [{"names": ("a",)}, {"manifest_sha256": Digest(b"x" * 32)}, {"nonce": Nonce(bytes(32))}]
)
def test_report_data_binds_every_field(change: dict[str, Any]) -> None:
    """Any other field gives other report data; so do another server and another key."""
    base = REQUEST.report_data(SERVER)
    assert len(base) == 64
    assert replace(REQUEST, **change).report_data(SERVER) != base
    assert replace(REQUEST, public_key=EnclaveKey().public_bytes).report_data(SERVER) != base
    assert replace(REQUEST, run_key=BASE_POINT).report_data(SERVER) != base
    assert replace(REQUEST, folders=("a/x",)).report_data(SERVER) != base
    assert replace(REQUEST, in_force=(b"x",)).report_data(SERVER) == base
    assert REQUEST.report_data(replace(SERVER, server_name="other")) != base
    assert REQUEST.report_data(replace(SERVER, ca_sha256=Digest(b"d" * 32))) != base


def test_report_data_fields_cannot_run_into_each_other() -> None:
    """Lengths stand before the fields, so that no two requests share report data by moving bytes between them."""
    common: dict[str, Any] = {"nonce": Nonce(bytes(32)), "public_key": b"k", "manifest_sha256": Digest(bytes(32))}
    common["run_key"] = RUN_KEY
    seen = {
        report_data(server=SERVER, names=names, **common) for names in (("ab",), ("a", "b"), ("a", "b", ""), ("", "ab"))
    }
    assert len(seen) == 4


def test_folders_and_statements_round_trip() -> None:
    """Folders of keys that are asked for, and statements of other owners."""
    asked = replace(REQUEST, folders=("a/checkpoints", "b/out/puts"), in_force=(b"x" * 4096, b"y"))
    assert parse_release_request(asked.to_bytes()) == asked


@pytest.mark.parametrize(
    "change",
    [
        {"folders": ["c/x"]},
        {"folders": ["a"]},
        {"folders": ["a/"]},
        {"folders": ["/x"]},
        {"folders": ["a/x\ty"]},
        {"folders": ["a/\u00e9"]},
        {"folders": ["a/" + "x" * 199]},
        {"folders": ["b/x", "a/x"]},
        {"folders": ["a/x", "a/x"]},
        {"folders": [f"a/{number:03}" for number in range(65)]},
        {"folders": "a/x"},
        {"folders": None},
        {"in_force": [base64.b64encode(bytes(4097)).decode()]},
        {"in_force": [""]},
        {"in_force": ["AAA"]},
        {"in_force": ["AAAA"] * 17},
        {"in_force": {}},
        {"run_key": ""},
        {"run_key": base64.b64encode(BASE_POINT[:-1] + b"\xf4").decode()},
        {"run_key": base64.b64encode(BASE_POINT[:26] + b"\2" + BASE_POINT[27:59]).decode()},
        {"run_key": base64.b64encode(BASE_POINT[:26] + b"\6" + BASE_POINT[27:]).decode()},
        {"run_key": base64.b64encode(BASE_POINT.replace(b"\x03\x01\x07", b"\x03\x01\x06")).decode()},
        {"run_key": base64.b64encode(BASE_POINT + b"\0").decode()},
        {"run_key": base64.b64encode(BASE_POINT[:27] + bytes(64)).decode()},
    ],
    ids=str,
)
def test_run_key_folders_and_statements_have_one_form(change: dict[str, Any]) -> None:
    """Another form is refused: a point that is not on the curve, a compressed one, folders out of order, and more."""
    with pytest.raises(OutOfOrder):
        parse_release_request(json.dumps({**json.loads(REQUEST.to_bytes()), **change}).encode())


def test_run_id_belongs_to_the_key() -> None:
    """A run is known by its key: nobody else can claim its lease."""
    assert run_id(KEY.public_bytes) == run_id(KEY.public_bytes)
    assert run_id(KEY.public_bytes) != run_id(EnclaveKey().public_bytes)


def test_payload_length_says_little() -> None:
    """Keys with longer names or more of them mostly give answers of the same length."""
    sizes = {len(Payload({name: b"k" * 16}, {}, b"t" * 32).to_bytes()) for name in ("a", "a" * 40, "weights")}
    assert len(sizes) == 1


def test_payload_shows_no_secret() -> None:
    """Neither the payload nor the enclave's key shows itself in text."""
    payload = Payload({"k": b"0123456789abcdef"}, {}, b"t" * 32)
    assert "0123456789" not in repr(payload)
    assert "secret" in repr(KEY)


@pytest.mark.parametrize("parser", PARSERS)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(raw=st.binary(max_size=300))
def test_parsers_refuse_noise(parser: Any, raw: bytes) -> None:
    """Noise is refused with the protocol's own error, whatever it is."""
    with pytest.raises(KeyReleaseError):
        parser(raw)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=20) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=8,
)
_GOOD = [
    json.loads(REQUEST.to_bytes()),
    json.loads(ChallengeAnswer(Nonce(b"x" * 32), 60).to_bytes()),
    json.loads(GRANTED.to_bytes()),
    json.loads(Refusal("d-1", "m", "c", "e", "s", "r").to_bytes()),
    json.loads(used_message("g-1", b"t" * 32)),
    json.loads(explain_message("d-1", b"manifest", {"adyton": "ab"})),
]


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_parsers_take_nothing_with_one_member_changed_to_another_type(data: st.DataObject) -> None:
    """One member replaced by any other JSON value: refused, or (where it is still such a message) read as written."""
    good = data.draw(st.sampled_from(_GOOD))
    name = data.draw(st.sampled_from(sorted(good)))
    changed = {**good, name: data.draw(_JSON)}
    raw = json.dumps(changed).encode()
    for parser in PARSERS:
        try:
            found = parser(raw)
        except KeyReleaseError:
            continue
        if isinstance(found, ReleaseRequest | Granted | ChallengeAnswer):
            assert json.loads(found.to_bytes()) == changed
    for broken in ({key: value for key, value in good.items() if key != name}, {**good, "extra": 1}):
        for parser in PARSERS:
            with pytest.raises(KeyReleaseError):
                parser(json.dumps(broken).encode())


def _text(size: int) -> str:
    return base64.b64encode(bytes(size)).decode()


DEVICE = {"arch": "HOPPER", "certificate": "AAAA", "evidence": "AAAA"}
DEVICES_OUT_OF_BOUNDS: tuple[object, ...] = (None, {}, [[]], ["AAAA"], [DEVICE] * (MAX_DEVICES + 1))
BUNDLE: dict[str, Any] = {"cpu": "AAAA", "event_log": "AAAA", "devices": [DEVICE]}


def test_largest_bundle_of_each_part_is_taken() -> None:
    """Every limit of a part can be reached; together they are held by the limit of the whole message."""
    full = {"arch": "a" * 32, "certificate": _text(16 * 1024), "evidence": _text(16 * 1024)}
    largest = {"cpu": _text(MAX_CPU_BYTES), "event_log": _text(MAX_EVENT_LOG_BYTES), "devices": [full] * 13}
    for bundle in (BUNDLE, largest, {"cpu": "AAAA", "devices": [full] * MAX_DEVICES}, {"cpu": "AAAA", "devices": []}):
        raw = json.dumps({**json.loads(REQUEST.to_bytes()), "evidence": bundle}).encode()
        assert json.loads(parse_release_request(raw).to_bytes())["evidence"] == bundle
    with pytest.raises(OutOfOrder, match="too long"):
        parse_release_request(
            json.dumps({**json.loads(REQUEST.to_bytes()), "evidence": {**largest, "devices": [full] * 16}}).encode()
        )


def test_report_data_and_gpu_nonce_are_what_the_page_says() -> None:
    """The worked examples of docs/registers.md, computed by the code and by hand."""
    server = ServerIdentity(Digest(b"\4" * 32), "keys.example")
    device = DevicePart(arch="HOPPER", certificate=b"\5" * 3, evidence=b"\6" * 3)
    request = ReleaseRequest(
        Nonce(b"\1" * 32),
        b"\2" * 1216,
        Digest(b"\3" * 32),
        ("model", "weights"),
        EvidenceBundle(cpu=b"quote"),
        run_key=BASE_POINT,
    )
    with_device = replace(request, evidence=replace(request.evidence, devices=(device,)))
    section = PAGE.split("## The wire")[1].split("## The TPM quote document")[0]
    assert re.findall(r"\| `([0-9a-f]{64,128})` \|", section) == [
        request.gpu_nonce.hex(),
        devices_field((device,)).hex(),
        request.report_data(server).hex(),
        with_device.report_data(server).hex(),
        replace(with_device, folders=("model/checkpoints", "weights/outputs")).report_data(server).hex(),
    ]
    assert f"`{base64.b64encode(BASE_POINT).decode()}`" in section

    def lp(raw: bytes) -> bytes:
        return struct.pack(">I", len(raw)) + raw

    common = b"adyton-release/4 report data\0" + lp(b"\1" * 32) + lp(b"\2" * 1216) + lp(b"\3" * 32) + lp(b"\4" * 32)
    common += lp(b"keys.example") + lp(lp(b"model") + lp(b"weights"))
    by_hand = hashlib.sha256(lp(lp(b"HOPPER") + lp(b"\5" * 3) + lp(b"\6" * 3))).digest()
    tail = lp(BASE_POINT) + lp(b"")
    assert request.report_data(server) == hashlib.sha512(common + lp(b"") + tail).digest()
    assert with_device.report_data(server) == hashlib.sha512(common + lp(by_hand) + tail).digest()


def test_report_data_bind_every_byte_of_the_devices() -> None:
    """Another device, another order, one less, or bytes moved between two parts: other report data."""
    one = DevicePart(arch="HOPPER", certificate=b"ab", evidence=b"c")
    others: tuple[tuple[DevicePart, ...], ...] = (
        (replace(one, arch="HOPPE"),),
        (replace(one, certificate=b"a", evidence=b"bc"),),
        (one, one),
        (one, replace(one, evidence=b"d")),
        (replace(one, evidence=b"d"), one),
        (),
    )
    found = {replace(REQUEST, evidence=EvidenceBundle(devices=it)).report_data(SERVER) for it in ((one,), *others)}
    assert len(found) == 1 + len(others)
    assert replace(REQUEST, evidence=EvidenceBundle(cpu=b"x", event_log=b"y")).report_data(SERVER) in found


@pytest.mark.parametrize(
    "changes",
    [
        {"names": []},
        {"names": ["b", "a"]},
        {"names": ["a", "a"]},
        {"names": [""]},
        {"names": ["x" * 65]},
        {"names": [f"n{number:03}" for number in range(MAX_NAMES + 1)]},
        {"evidence": "AAAA"},
        {"evidence": {}},
        *({"evidence": {**BUNDLE, "cpu": text}} for text in ("", "AAAA====", "AB==", _text(MAX_CPU_BYTES + 1), None)),
        *({"evidence": {**BUNDLE, "event_log": text}} for text in ("", "AB==", _text(MAX_EVENT_LOG_BYTES + 1), None)),
        *({"evidence": {**BUNDLE, "devices": found}} for found in DEVICES_OUT_OF_BOUNDS),
        *({"evidence": {name: value for name, value in BUNDLE.items() if name != left}} for left in ("cpu", "devices")),
        *({"evidence": {**BUNDLE, "devices": [{**DEVICE, "arch": arch}]}} for arch in ("", "a b", "a" * 33, "é", 1)),
        *(
            {"evidence": {**BUNDLE, "devices": [{**DEVICE, part: text}]}}
            for part in ("certificate", "evidence")
            for text in ("", "AB==", _text(16 * 1024 + 1), None)
        ),
        *({"evidence": {**BUNDLE, "devices": [{**DEVICE, name: "AAAA"}]}} for name in ("more", "nonce")),
        *(
            {"evidence": {**BUNDLE, "devices": [{name: value for name, value in DEVICE.items() if name != left}]}}
            for left in DEVICE
        ),
        {"evidence": {**BUNDLE, "more": 1}},
        {"manifest_sha256": "AB" * 32},
        {"manifest_sha256": "ab" * 31},
        {"nonce": "AAAA"},
        {"public_key": "AAAA"},
    ],
)
def test_release_request_out_of_bounds_is_refused(changes: dict[str, Any]) -> None:
    """Every length is bounded, and every value has one form."""
    with pytest.raises(OutOfOrder):
        parse_release_request(json.dumps({**json.loads(REQUEST.to_bytes()), **changes}).encode())


def test_protocol_of_another_version_says_so() -> None:
    """Another version is told apart from noise."""
    with pytest.raises(VersionMismatch, match="another protocol"):
        parse_challenge_request(b'{"protocol": "adyton-release/2"}')


def test_refusal_cannot_steer_a_terminal() -> None:
    """Control characters from the other side are shown as such."""
    refusal = Refusal("d-1", "\x1b[2Jgone\x07", "check", "expected", "seen", "remedy\u202e")
    parsed = parse_answer(refusal.to_bytes())
    assert isinstance(parsed, Refusal)
    assert "\x1b" not in parsed.message
    assert "\u202e" not in parsed.remedy


def test_explanation_that_explodes_is_refused() -> None:
    """A small message that decompresses to much is refused before it is much."""
    with pytest.raises(OutOfOrder):
        parse_explain(explain_message("d-1", bytes(20 << 20), {}))


def test_challenge_altered_or_expired_is_refused() -> None:
    """Every bit of a challenge counts."""
    nonce = make_challenge(b"k" * 32, 1000)
    assert check_challenge(b"k" * 32, nonce, 1000) == 1000
    for at in range(32):
        altered = bytearray(nonce.raw)
        altered[at] ^= 1
        with pytest.raises(OutOfOrder):
            check_challenge(b"k" * 32, Nonce(bytes(altered)), 0)
    with pytest.raises(OutOfOrder, match="expired"):
        check_challenge(b"k" * 32, nonce, 1001)
    with pytest.raises(OutOfOrder):
        check_challenge(b"l" * 32, nonce, 0)


@settings(max_examples=40, deadline=None)
@given(st.binary(min_size=1216, max_size=1216))
def test_wrap_to_any_public_key_wraps_or_refuses(raw: bytes) -> None:
    """A public key that is none is refused as malformed, never an internal error."""
    try:
        parse_public_key(raw)
        wrap_to(raw, b"x", b"b" * 64)
    except OutOfOrder:
        pass


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=60))
def test_ra_tls_header_is_taken_exactly(raw: bytes) -> None:
    """Gramine's answer is read strictly: label, terminating zero, a size that is possible."""
    with pytest.raises(KeyReleaseError):
        secret_provisioning.parse_header(raw)
    good = secret_provisioning.response(b"k" * 16)
    assert secret_provisioning.parse_header(good[:41]) == 16
    for size in (0, 65537, 1 << 31, (1 << 32) - 1):
        with pytest.raises(OutOfOrder):
            secret_provisioning.parse_header(good[:37] + size.to_bytes(4, "big"))
