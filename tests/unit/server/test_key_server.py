"""The running key server and the enclave's client: what is released, and every attempt that is refused."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from adyton.attest.bundle import EvidenceBundle
from adyton.attest.ratls import make_certificate
from adyton.errors import Denied, Error, FetchFailed, OutOfOrder, StorageFailed, Timeout, VersionMismatch
from adyton.keystore.approval import REVOKED
from adyton.keystore.certificates import Credential, make_server
from adyton.manifest.signed import SignedManifest
from adyton.release import secret_provisioning
from adyton.release.client import obtain_keys
from adyton.release.messages import (
    PATH_CHALLENGE,
    PATH_RELEASE,
    PATH_USED,
    EnclaveKey,
    Payload,
    ReleaseRequest,
    challenge_request,
    make_challenge,
    parse_challenge,
    used_message,
)
from adyton.release.tls import client_context, use_certificate
from adyton.release.wire import PROTOCOL
from adyton.server.listener import Limits
from adyton.server.process import server_identity
from adyton.sim.platform import SimPlatform
from adyton.values import Digest
from tests.support.owner_world import RA_TLS, RUNTIME_PARTS, Running, World, make_world, now, running
from tests.support.release_by_hand import (
    Logged,
    answer,
    credential,
    entries,
    explanation,
    https,
    key_pem,
    obtain,
    post,
    provision,
    reason,
    release,
    wait_until,
)
from tests.support.run_keys import RUN_KEY
from tests.support.servers import raw_server, saying

KEY = bytes(range(16))


def refused(world: World, server: Running, signed: SignedManifest, **changes: Any) -> dict[str, str]:
    """The refusal of an attempt that must be refused, in all its parts."""
    with pytest.raises(Denied) as caught:
        obtain(world, server, signed, **changes)
    details = caught.value.details()
    assert {"check", "expected", "seen", "remedy"} <= set(details)
    return details


# --- what is released ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["adyton", "ra-tls"])
def test_obtain_approved_program_gets_its_key(world: World, server: Running, protocol: str) -> None:
    """An approved program gets its key over either protocol, and the record says so."""
    signed = world.program(tables=RA_TLS)
    world.approve(signed, protocols=(protocol,))
    released = obtain(world, server, signed, protocol=protocol)
    assert released.keys["weights"].reveal() == KEY
    assert "weights" in repr(released)
    assert KEY.hex() not in repr(released)
    (entry,) = entries(world, "release")
    assert entry["protocol"] == protocol
    assert entry["keys"][0]["key"] == "weights"
    assert ("used" in world.kinds()) is (protocol == "adyton")
    world.store.verify_audit()


def test_obtain_on_a_machine_that_is_only_tracked_stands_in_the_record_with_a_warning(
    world: World, server: Running
) -> None:
    """Released, since the approval only warns of machines that it does not list; the owner's record has the warning."""
    other = [{"id": "ab" * 16, "until": "2090-01-01T00:00:00+00:00"}]
    tracked = [{"name": "hosts", "owner": "alice"}]
    signed = world.program()
    world.approve(signed, evidence={"hosts": {"ppids": other}, "tracked": tracked})
    assert obtain(world, server, signed).keys["weights"].reveal() == KEY
    (entry,) = entries(world, "release")
    (warned,) = entry["warnings"]
    assert warned["name"] == "host"
    assert entry["platform"]["ppid"] in warned["seen"]
    world.store.verify_audit()


def test_obtain_several_keys_and_secrets(world: World, server: Running) -> None:
    """Keys and secrets come in one grant, all or nothing."""
    tables = '[adyton.secrets.token]\nenv = "TOKEN"\n'
    signed = world.program(keys=("photo", "weights"), tables=tables)
    with world.store.write() as change:
        change.add_key("photo", b"p" * 16, "key", actor="test")
        change.add_key("token", b"hush", "secret", actor="test")
    world.approve(signed, key="weights")
    world.approve(signed, key="photo")
    assert "token" in refused(world, server, signed)["message"]
    assert entries(world, "release") == []
    world.approve(signed, key="token")
    released = obtain(world, server, signed)
    assert {name: key.reveal() for name, key in released.keys.items()} == {"weights": KEY, "photo": b"p" * 16}
    assert released.secrets == {"token": b"hush"}


def test_obtain_over_ra_tls_several_keys_are_chosen_by_server_name(world: World, server: Running) -> None:
    """Gramine's protocol names no key: with several, the server name that the client asks for does."""
    signed = world.program(keys=("photo", "weights"), tables=RA_TLS)
    with world.store.write() as change:
        change.add_key("photo", b"p" * 16, "key", actor="test")
    for key in ("weights", "photo"):
        world.approve(signed, key=key, protocols=("ra-tls",))
    released = obtain(world, server, signed, protocol="ra-tls")
    assert {name: key.reveal() for name, key in released.keys.items()} == {"weights": KEY, "photo": b"p" * 16}


def test_release_retry_of_the_same_run_is_free(world: World, server: Running) -> None:
    """A limit of one run holds for other runs, and a retry within the lease is none."""
    signed = world.program()
    world.approve(signed, max_runs=1)
    key = EnclaveKey()
    for _ in range(2):
        status, _document = release(world, server, signed, key=key)
        assert status == 200
    assert release(world, server, signed)[0] == 403
    assert reason(world)["check"] == "number of runs"


def test_release_runs_at_a_time_are_counted_until_their_lease_ends(world: World) -> None:
    """With one run at a time another waits until the lease ends, while the first may ask again."""
    signed = world.program()
    world.approve(signed, max_active=1, lease_s=60)
    times = [now()]
    with running(world, service=world.service(clock=lambda: times[0])) as server:
        first = EnclaveKey()
        assert release(world, server, signed, key=first)[0] == 200
        assert release(world, server, signed)[0] == 403
        assert reason(world)["check"] == "runs at a time"
        assert release(world, server, signed, key=first)[0] == 200
        times[0] += timedelta(seconds=61)
        assert release(world, server, signed)[0] == 200
        assert release(world, server, signed, key=first)[0] == 403


def test_release_answer_carries_a_checkpoint_that_verifies(world: World, server: Running) -> None:
    """Every grant says where the audit record stands, signed."""
    from adyton.keystore.audit import Checkpoint, verify_checkpoint
    from adyton.keystore.audit_key import audit_public_key

    signed = world.program()
    world.approve(signed)
    grant = obtain(world, server, signed).grants[0]
    checkpoint = Checkpoint.from_dict(dict(grant.checkpoint))
    verify_checkpoint(checkpoint, audit_public_key(world.home.path))
    world.store.verify_audit([checkpoint])


# --- what the server refuses --------------------------------------------------------------------------------------


def runtime_parts(changed: str | None = None) -> dict[str, str]:
    """The runtime's parts as the client shows them."""
    return {name: (Digest(b"c" * 32) if name == changed else digest).hex() for name, digest in RUNTIME_PARTS.items()}


@pytest.mark.parametrize(
    ("attempt", "changed"),
    [
        (
            {"argument": "leak.py"},
            "loader.argv: approved ['python3', 'classify.py'], seen ['python3', 'leak.py']",
        ),
        ({"extra": 'loader.env.LEAK = "1"'}, 'loader.env.LEAK: approved nothing, seen "1"'),
        ({"extra": 'loader.env.LD_PRELOAD = "evil.so"'}, 'loader.env.LD_PRELOAD: approved nothing, seen "evil.so"'),
        ({"extra": "sys.stack.size = '8M'"}, 'sys.stack.size: approved nothing, seen "8M"'),
        ({"debug": True}, "sgx.debug: approved false, seen true"),
    ],
    ids=["argument", "environment", "preload", "stack", "debug"],
)
def test_obtain_changed_manifest_is_refused_and_explained_to_the_owner(
    world: World, server: Running, attempt: dict[str, Any], changed: str
) -> None:
    """One changed thing is another program: no key. The owner's record says what was changed, the answer does not."""
    world.approve(world.program())
    details = refused(world, server, world.program(**attempt), runtime_parts=runtime_parts)
    assert reason(world)["check"] == "measurement of the program"
    explained = explanation(world)
    assert changed in explained["changed"]
    assert explained["against"] == "classify v1"
    assert not any(line.split(":")[0] in str(details) for line in explained["changed"])
    assert "classify v1" not in str(details)


def test_obtain_changed_runtime_is_refused_and_named(world: World, server: Running) -> None:
    """Another Adyton is another program, and the part that differs is named in the owner's record."""
    world.approve(world.program())
    parts = {**RUNTIME_PARTS, "adyton": Digest(b"c" * 32)}
    refused(world, server, world.program(parts=parts), runtime_parts=lambda: runtime_parts(changed="adyton"))
    changed = explanation(world)["changed"]
    assert [line.split(": approved")[0] for line in changed] == ["runtime: adyton"]


def test_explain_with_another_manifest_than_was_measured_is_not_believed(world: World, server: Running) -> None:
    """An explanation counts only where it gives the very measurement that was refused."""
    world.approve(world.program())
    with Logged() as logged:
        refused(world, server, world.program(argument="x.py"), runtime_parts=lambda: runtime_parts(changed="adyton"))
        wait_until(lambda: any(item["event"] == "not explained" for item in logged.records), within_s=120)
    assert entries(world, "explanation") == []


def test_explain_beyond_the_days_bound_keeps_no_manifest(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that shows one program after another does not fill the disk; it is compared all the same."""
    monkeypatch.setattr("adyton.keyserver.refused_programs.MAX_SHOWN_BYTES_PER_DAY", 1)
    world.approve(world.program())
    signed = world.program(argument="x.py")
    with running(world) as server:
        refused(world, server, signed, runtime_parts=runtime_parts)
        assert any("loader.argv" in line for line in explanation(world)["changed"])
    with world.store.read() as view:
        assert view.behind(signed.measurement) is None


def test_obtain_unapproved_program_becomes_a_candidate(world: World, server: Running) -> None:
    """What asked from a genuine platform and was refused stands ready for the owner to look at."""
    signed = world.program()
    world.approve(world.program(argument="other.py"))
    details = refused(world, server, signed)
    assert reason(world)["expected"] == "a program that the owner approved for key 'weights'"
    assert signed.measurement.hex() in details["seen"]
    with world.store.read() as view:
        (candidate,) = view.candidates()
    assert candidate.measurement == signed.measurement
    assert candidate.denial in details["message"]


def test_obtain_revoked_program_is_refused_at_the_next_request(world: World, server: Running) -> None:
    """A change of policy counts from the next request on, without restart."""
    signed = world.program()
    approval = world.approve(signed)
    obtain(world, server, signed)
    with world.store.write() as change:
        change.change_approval(approval, actor="test", state=REVOKED)
    refused(world, server, signed)
    assert "revoked" in reason(world)["message"]


def test_obtain_after_newer_tcb_info_the_platform_is_refused(world: World, server: Running) -> None:
    """The same platform after newer signed TCB info is out of date, and that is what the refusal says."""
    signed = world.program()
    world.approve(signed)
    obtain(world, server, signed)
    world.platform.raise_tcb()
    details = refused(world, server, signed)
    assert "TCB status OutOfDate" in details["seen"]
    found = reason(world)
    assert (found["check"], found["expected"]) == ("TCB status", "UpToDate")
    assert found["seen"].startswith("OutOfDate; platform: SGX component 1 ")  # the owner reads what is short
    assert "component" not in details["seen"]


def test_obtain_from_another_simulated_root_is_refused(world: World, server: Running, tmp_path: Path) -> None:
    """Another simulated platform's evidence is not even verified to the end."""
    signed = world.program()
    world.approve(signed)
    other = SimPlatform.create(tmp_path / "other")
    details = refused(world, server, signed, source=world.enclave(signed, platform=other))
    assert "root" in details["message"]
    assert str(other.root_fingerprint) in details["seen"]


def test_obtain_debug_enclave_of_the_approved_program_is_refused(world: World, server: Running) -> None:
    """Debug is refused although the measurement is the approved one."""
    signed = world.program()
    world.approve(signed)
    assert "debug" in refused(world, server, signed, source=world.enclave(signed, debug=True))["seen"]
    assert reason(world)["check"] == "debug"


def test_obtain_protocol_that_is_not_allowed_is_refused(world: World, server: Running) -> None:
    """RA-TLS has no freshness, so it counts only where it is allowed by name; the owner's log says why."""
    signed = world.program(tables=RA_TLS)
    world.approve(signed)
    details = refused(world, server, signed, protocol="ra-tls")
    assert "no reasons" in details["seen"]
    assert reason(world)["check"] == "protocol"


def test_obtain_evidence_for_another_owner_is_refused(world: World, server: Running, tmp_path: Path) -> None:
    """Evidence that was made for another owner's server does not count here, whoever relays it."""
    signed = world.program()
    world.approve(signed)
    other = replace(server_identity(world.home), ca_sha256=Digest(b"o" * 32))
    status, document = release(world, server, signed, identity=other)
    assert (status, document["check"]) == (403, "report data")


# --- what the enclave refuses -------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["adyton", "ra-tls"])
def test_obtain_man_in_the_middle_with_his_own_key_server(
    world: World, server: Running, tmp_path: Path, protocol: str
) -> None:
    """A key server under another CA gets nothing from the enclave, although it would release a key of its own."""
    signed = world.program(tables=RA_TLS)
    with make_world(tmp_path / "mallory") as mallory, running(mallory) as his:
        mallory.approve(signed, protocols=(protocol,), tees=(world.tee,))
        with pytest.raises(Denied) as caught:
            obtain(world, his, signed, protocol=protocol)
        assert caught.value.check == "identity of the key server"
        assert "pinned" in caught.value.message
        assert his.server.counters.requests.total() == 0


def test_obtain_server_with_another_name_under_the_same_ca_is_refused(world: World, tmp_path: Path) -> None:
    """The name counts as well as the CA."""
    signed = world.program()
    ca = Credential(world.home.ca_path.read_bytes(), world.home.private("ca.key"))
    other = make_server(ca, ("another-server",), now())
    (world.home.path / "server.crt").write_bytes(other.certificate_pem)
    (world.home.path / "server.key").write_bytes(other.key_pem)
    with running(world) as server, pytest.raises(Denied, match="not the key server"):
        obtain(world, server, signed)


def test_obtain_answer_with_other_names_than_asked_for_is_refused(
    world: World, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key under another name than was asked for is not taken, though it was wrapped to this very enclave."""
    signed = world.program()
    world.approve(signed)
    honest = Payload.to_bytes

    def renamed(payload: Payload) -> bytes:
        return honest(Payload({f"{name}-other": value for name, value in payload.keys.items()}, {}, payload.token))

    monkeypatch.setattr(Payload, "to_bytes", renamed)
    with pytest.raises(OutOfOrder, match="other keys than were asked for"):
        obtain(world, server, signed)


def test_obtain_over_older_tls_is_refused_by_the_enclave(world: World) -> None:
    """The enclave speaks TLS 1.3 only, also to a server under the pinned CA that offers less."""
    signed = world.program()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(world.home.path / "server.crt", world.home.path / "server.key")
    with raw_server(saying(b""), context) as address, pytest.raises(FetchFailed, match="TLS"):
        obtain(world, address.removeprefix("https://"), signed)


def test_obtain_expired_server_certificate_is_refused(world: World) -> None:
    """A certificate that has ended is refused by the enclave's clock."""
    signed = world.program()
    ca = Credential(world.home.ca_path.read_bytes(), world.home.private("ca.key"))
    old = make_server(ca, ("adyton-key-server",), now())
    certificate = x509.load_pem_x509_certificate(old.certificate_pem)
    assert certificate.not_valid_after_utc > now() + timedelta(days=800)
    key = serialization.load_pem_private_key(world.home.private("ca.key"), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    builder = x509.CertificateBuilder(
        certificate.issuer,
        certificate.subject,
        certificate.public_key(),
        5,
        now() - timedelta(days=2),
        now() - timedelta(days=1),
        list(certificate.extensions),
    )
    from cryptography.hazmat.primitives import hashes

    expired = builder.sign(key, hashes.SHA384()).public_bytes(serialization.Encoding.PEM)
    (world.home.path / "server.crt").write_bytes(expired)
    (world.home.path / "server.key").write_bytes(old.key_pem)
    with running(world) as server, pytest.raises(Denied, match="not the key server"):
        obtain(world, server, signed)


def test_obtain_nobody_listens_says_so(world: World) -> None:
    """No server is no refusal: it could not be asked."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(FetchFailed, match="cannot be reached"):
            obtain(world, f"127.0.0.1:{port}", world.program())


def test_obtain_silent_server_times_out(world: World) -> None:
    """A server that accepts and says nothing ends in a timeout."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        signed = world.program()
        with pytest.raises(Timeout):
            obtain_keys(signed, world.enclave(signed), {"": address}, timeout_s=0.3)


def test_client_imports_neither_database_nor_web_framework() -> None:
    """The enclave's side starts with every program, so it stays light."""
    import subprocess
    import sys

    code = "import sys, adyton.release.client, adyton.release.messages; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"sqlalchemy", "uvicorn", "starlette", "typer", "h11", "jinja2", "asyncio"} & set(loaded)


# --- the messages, by hand ----------------------------------------------------------------------------------------


def test_release_challenge_answered_twice_is_refused(world: World, server: Running) -> None:
    """A challenge counts once: a replayed request gets nothing."""
    signed = world.program()
    world.approve(signed)
    key = EnclaveKey()
    with https(world, server.adyton) as connection:
        _, challenge = post(connection, PATH_CHALLENGE, challenge_request())
        nonce = parse_challenge(json.dumps(challenge).encode()).nonce
        unsigned = ReleaseRequest(
            nonce, key.public_bytes, signed.manifest_sha256, ("weights",), EvidenceBundle(), run_key=RUN_KEY
        )
        binding = unsigned.report_data(server_identity(world.home))
        request = replace(unsigned, evidence=EvidenceBundle(cpu=world.enclave(signed).quote(binding))).to_bytes()
        assert post(connection, PATH_RELEASE, request)[0] == 200
        status, document = post(connection, PATH_RELEASE, request)
    assert (status, document["check"]) == (403, "challenge")


def test_release_challenge_of_another_server_or_too_old_is_refused(world: World, server: Running) -> None:
    """A challenge must be this server's and must not have expired."""
    signed = world.program()
    world.approve(signed)
    alien = make_challenge(b"k" * 32, int(time.time()) + 60)
    status, document = release(world, server, signed, nonce=alien)
    assert (status, document["check"]) == (400, "challenge")
    old = make_challenge(world.store.keyring.challenge_key, int(time.time()) - 1)
    status, document = release(world, server, signed, nonce=old)
    assert (status, document["check"]) == (400, "age of the challenge")
    assert entries(world, "release") == []


def test_used_with_another_token_is_not_believed(world: World, server: Running) -> None:
    """Only the enclave that opened the grant can acknowledge it."""
    signed = world.program()
    world.approve(signed)
    _, document = release(world, server, signed)
    with https(world, server.adyton) as connection:
        status, _ = post(connection, PATH_USED, used_message(document["grant"], bytes(32)))
    assert status == 409
    assert "used" not in world.kinds()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'{"protocol": "adyton-release/4", "extra": 1}',
        b'{"protocol": "adyton-release/4", "protocol": "adyton-release/4"}',
        b"\xff\xfe",
        b"[" * 900,
        b'{"protocol": NaN}',
    ],
)
def test_challenge_malformed_message_is_refused(world: World, server: Running, body: bytes) -> None:
    """What is not exactly the message is refused, and the connection may go on."""
    with https(world, server.adyton) as connection:
        status, document = post(connection, PATH_CHALLENGE, body)
        assert status in (400, 426)
        assert document["status"] == "error"
        assert post(connection, PATH_CHALLENGE, challenge_request())[0] == 200


def test_http_other_paths_methods_and_versions_are_refused(world: World, server: Running) -> None:
    """Only the protocol's own paths answer, and only to POST."""
    with https(world, server.adyton) as connection:
        assert post(connection, "/release", b"")[0] == 404
    for older in ("/adyton/v1/release", "/adyton/v2/release", "/adyton/v2/challenge"):
        with https(world, server.adyton) as connection:
            status, document = post(connection, older, b"")
            assert (status, document["expected"], document["seen"]) == (426, PROTOCOL, older)
            assert "same version of Adyton on both sides" in document["remedy"]
    with https(world, server.adyton) as connection:
        connection.sendall(b"GET /adyton/v4/challenge HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer(connection)[0] == 405
    with https(world, server.adyton) as connection:
        assert post(connection, PATH_CHALLENGE, b'{"protocol": "adyton-release/9"}')[0] == 426
    with https(world, server.adyton) as connection:
        assert post(connection, PATH_CHALLENGE, b'{"protocol": "adyton-release/2"}')[0] == 426
    with https(world, server.adyton) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer(connection) == (200, {"status": "ok"})


@pytest.mark.parametrize("path", ["/adyton/v9/challenge", "/challenge"], ids=["newer server", "older server"])
def test_obtain_from_another_version_says_what_to_do(
    world: World, server: Running, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """A server that knows another version of the protocol, or this path not at all: both sides need the same Adyton."""
    monkeypatch.setattr("adyton.release.messages.PATH_CHALLENGE", path)
    with pytest.raises(VersionMismatch) as caught:
        obtain(world, server, world.program())
    assert caught.value.check == "protocol version"
    assert "same version of Adyton" in str(caught.value.remedy)


def test_refusal_is_told_also_where_the_runtimes_parts_cannot_be_read(world: World, server: Running) -> None:
    """To explain a refusal is extra: what fails there does not stand in its place."""

    def unreadable() -> dict[str, str]:
        raise StorageFailed("a part of the runtime cannot be read")

    assert "denial" in refused(world, server, world.program(argument="other.py"), runtime_parts=unreadable)["message"]


def test_http_too_long_body_is_refused_before_it_is_read(world: World, server: Running) -> None:
    """A body over its limit is refused, however it is framed."""
    with https(world, server.adyton) as connection:
        status, document = post(connection, PATH_CHALLENGE, b" " * 2000)
        assert (status, document["check"]) == (400, "length of the message")
    with https(world, server.adyton) as connection:
        connection.sendall(
            f"POST {PATH_CHALLENGE} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
            + b"7d0\r\n"
            + b" " * 2000
            + b"\r\n0\r\n\r\n"
        )
        assert answer(connection)[0] == 400


@pytest.mark.parametrize(
    "raw",
    [
        b"\x00" * 100,
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST / HTTP/1.1\r\n" + b"A: " + b"b" * 40_000,
        b"POST /adyton/v4/challenge HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"POST /adyton/v4/challenge HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /adyton/v4/challenge HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n",
    ],
)
def test_http_garbage_is_dropped(world: World, server: Running, raw: bytes) -> None:
    """What is not HTTP ends the connection, and the server serves the next one."""
    with https(world, server.adyton) as connection:
        connection.sendall(raw)
        assert answer(connection)[0] in (0, 400, 404)
    signed = world.program()
    world.approve(signed)
    obtain(world, server, signed)


# --- TLS ---------------------------------------------------------------------------------------------------------


def test_ra_tls_answer_is_gramines_byte_for_byte(world: World, server: Running) -> None:
    """The answer is the one that Gramine's clients read: label, length big-endian, secret."""
    signed = world.program()
    world.approve(signed, protocols=("ra-tls",))
    expected = b"SECRET_PROVISION_RA_TLS_RESPONSE_V1:\0" + struct.pack(">I", 16) + KEY
    assert provision(world, server, *credential(world, signed)) == expected


def test_ra_tls_without_a_certificate_is_refused(world: World, server: Running) -> None:
    """The handshake demands a certificate."""
    with contextlib.suppress(ssl.SSLError, ConnectionError):
        assert provision(world, server, None) == b""
    wait_until(lambda: server.server.counters.closed["handshake"] == 1)
    assert server.server.counters.requests.total() == 0
    assert entries(world, "release") == []


def test_ra_tls_two_certificates_are_refused(world: World, server: Running) -> None:
    """Exactly one certificate, as the protocol says."""
    signed = world.program()
    world.approve(signed, protocols=("ra-tls",))
    certificate, key = credential(world, signed)
    assert provision(world, server, certificate + credential(world, signed)[0], key) == b""
    assert entries(world, "denial")[0]["reason"]["seen"] == "2 certificates"


def test_ra_tls_replayed_certificate_with_another_key_is_refused(world: World, server: Running) -> None:
    """Evidence seen on the wire is of no use without the key that it binds.

    OpenSSL's own client will not load such a pair, so the quote is put into a certificate over another key.
    """
    signed = world.program()
    world.approve(signed, protocols=("ra-tls",))
    victim = ec.generate_private_key(ec.SECP384R1())
    seen: list[bytes] = []

    def record(report_data: bytes) -> bytes:
        seen.append(world.enclave(signed).quote(report_data))
        return seen[-1]

    times = {"not_before": now() - timedelta(hours=1), "not_after": now() + timedelta(hours=1)}
    make_certificate(victim, record, **times)
    thief = ec.generate_private_key(ec.SECP384R1())
    replayed = iter(seen)
    der = make_certificate(thief, lambda _report_data: next(replayed), **times)
    assert provision(world, server, ssl.DER_cert_to_PEM_cert(der).encode(), key_pem(thief)) == b""
    assert entries(world, "denial")[0]["reason"]["check"] == "report data"


def test_ra_tls_certificate_without_evidence_or_expired_is_refused(world: World, server: Running) -> None:
    """A certificate of another kind, or one whose time is over, gets nothing."""
    signed = world.program()
    world.approve(signed, protocols=("ra-tls",))
    plain = make_server(Credential(world.home.ca_path.read_bytes(), world.home.private("ca.key")), ("client",), now())
    assert provision(world, server, plain.certificate_pem, plain.key_pem) == b""
    old = credential(world, signed, not_before=now() - timedelta(days=3), not_after=now() - timedelta(days=2))
    assert provision(world, server, *old) == b""
    checks = [entry["reason"]["check"] for entry in entries(world, "denial")]
    assert checks[1] == "validity of the RA-TLS certificate"
    assert len(checks) == 2


def test_ra_tls_another_request_is_not_answered(world: World, server: Running) -> None:
    """The 35 bytes are compared whole."""
    signed = world.program()
    world.approve(signed, protocols=("ra-tls",))
    pair = credential(world, signed)
    assert provision(world, server, *pair, send=b"SECRET_PROVISION_RA_TLS_REQUEST_V2\0") == b""
    assert provision(world, server, *pair, send=b"G" * 35) == b""
    assert provision(world, server, *pair) != b""


def test_tls_older_version_is_refused(world: World, server: Running) -> None:
    """TLS 1.2 would send the client's quote in clear: both ports speak 1.3 only."""
    for address in (server.adyton, server.ra_tls):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=world.ca_pem)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=10) as plain, pytest.raises((ssl.SSLError, OSError)):
            context.wrap_socket(plain, server_hostname="adyton-key-server")


def test_tls_server_sends_no_session_ticket(world: World, server: Running) -> None:
    """Gramine 1.8's client takes a ticket for a failure, and resumption would outlive a revocation."""
    signed = world.program()
    world.approve(signed, protocols=("ra-tls",))
    context = client_context(world.ca_pem)
    use_certificate(context, *credential(world, signed))
    host, _, port = server.ra_tls.rpartition(":")
    plain = socket.create_connection((host, int(port)), timeout=10)
    with context.wrap_socket(plain, server_hostname="adyton-key-server") as connection:
        connection.sendall(secret_provisioning.REQUEST)
        connection.recv(1000)
        assert connection.session is None or not connection.session.has_ticket


def test_tls_stalled_clients_harm_nobody(world: World) -> None:
    """Clients that stall before, in, and after the handshake are dropped in time, and others are served meanwhile."""
    limits = Limits(first_byte_timeout_s=1, handshake_timeout_s=1, request_timeout_s=1, idle_timeout_s=1)
    signed = world.program()
    world.approve(signed)
    with running(world, limits=limits) as server:
        host, _, port = server.adyton.rpartition(":")
        silent = [socket.create_connection((host, int(port))) for _ in range(20)]
        partial = [socket.create_connection((host, int(port))) for _ in range(20)]
        for item in partial:
            item.sendall(b"\x16\x03\x01\x02\x00\x01")
        idle = [https(world, server.adyton) for _ in range(10)]
        slow = [https(world, server.adyton) for _ in range(10)]
        for connection in slow:
            connection.sendall(b"POST /adyton/v4/challenge HTTP/1.1\r\nHost: x\r\n")
        began = time.monotonic()
        obtain(world, server, signed)
        assert time.monotonic() - began < 5
        wait_until(lambda: server.server.counters.open == 0)
        assert server.server.counters.closed["silent"] == 40
        for item in [*silent, *partial, *idle, *slow]:
            item.close()


def test_tls_what_is_not_tls_is_dropped_at_once(world: World, server: Running) -> None:
    """Plain HTTP, or noise, never reaches OpenSSL."""
    for raw in (b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 64, b"\x16\x03\x01\xff\xff" + b"x" * 100):
        host, _, port = server.adyton.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=5) as plain:
            plain.sendall(raw)
            with contextlib.suppress(ConnectionResetError):
                assert plain.recv(100) == b""
    wait_until(lambda: server.server.counters.closed["not TLS"] == 3)


def test_server_more_connections_than_allowed_are_turned_away(world: World) -> None:
    """The bound on connections holds, in all and per address."""
    with running(world, limits=Limits(max_per_address=5)) as server:
        host, _, port = server.adyton.rpartition(":")
        held = [socket.create_connection((host, int(port))) for _ in range(12)]
        wait_until(lambda: server.server.counters.rejected["address"] == 7)
        assert server.server.counters.open == 5
        for item in held:
            item.close()


def test_server_one_address_cannot_hold_every_place(world: World) -> None:
    """An address that holds its share of places is turned away, and a busy connection ends after its time."""
    limits = Limits(max_active_per_address=3, connection_timeout_s=1.5)
    with running(world, limits=limits) as server:
        held = [https(world, server.adyton) for _ in range(3)]
        with pytest.raises((ssl.SSLError, OSError)):
            https(world, server.adyton)
        wait_until(lambda: server.server.counters.closed["address busy"] == 1)
        with contextlib.suppress(ssl.SSLError, OSError):
            while post(held[0], PATH_CHALLENGE, challenge_request())[0] == 200:
                time.sleep(0.1)
        wait_until(lambda: server.server.counters.closed["too long"] == 3)
        signed = world.program()
        world.approve(signed)
        obtain(world, server, signed)
        for connection in held:
            connection.close()


def test_server_more_than_it_can_serve_at_once_waits_and_is_dropped_in_time(world: World) -> None:
    """With every place taken a connection waits for one, and is dropped when that takes too long."""
    limits = Limits(max_active=2, handshake_timeout_s=0.7, connection_timeout_s=30, idle_timeout_s=30)
    with running(world, limits=limits) as server:
        held = [https(world, server.adyton) for _ in range(2)]
        try:
            with pytest.raises((ssl.SSLError, OSError)):
                https(world, server.adyton).close()
            wait_until(lambda: server.server.counters.closed["overloaded"] == 1)
            held[0].close()
            https(world, server.adyton).close()
        finally:
            for connection in held:
                connection.close()


def test_server_stops_gracefully_what_is_under_way_is_answered(world: World) -> None:
    """A request that was taken is answered although the server was told to stop."""
    signed = world.program()
    world.approve(signed)
    with running(world) as server:
        released = obtain(world, server, signed)
    assert released.keys
    with pytest.raises(Error):
        obtain(world, server, signed)


def test_answer_that_does_not_open_is_refused_by_the_enclave() -> None:
    """An altered answer, or one for another request, opens to nothing."""
    from adyton.release.messages import wrap_to

    key = EnclaveKey()
    wrapped = wrap_to(key.public_bytes, b"x" * 100, b"b" * 64)
    assert key.unwrap(wrapped, b"b" * 64) == b"x" * 100
    flipped = bytes([wrapped[0] ^ 1]) + wrapped[1:]
    for altered, binding in ((wrapped, b"c" * 64), (flipped, b"b" * 64), (wrapped[:-1], b"b" * 64), (b"", b"b" * 64)):
        with pytest.raises(OutOfOrder, match="does not open"):
            key.unwrap(altered, binding)
    with pytest.raises(OutOfOrder):
        EnclaveKey().unwrap(wrapped, b"b" * 64)
