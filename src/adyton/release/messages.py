"""Adyton's release protocol, version 4: messages, report data, and the wrapping of keys.

The messages are JSON in HTTP over TLS 1.3, under the owner's pinned CA. The page docs/release-protocol.md has every
byte.

::

    enclave                                             key server
      POST /adyton/v4/challenge   {}                 ->
                                                     <-   nonce (32 bytes, single use, lives two minutes)
      evidence over report data = SHA-512 of
        label, nonce, fresh public key, manifest hash,
        owner's CA hash, server name, names asked for,
        devices' evidence, run key, pinned folders
      POST /adyton/v4/release     evidence, …        ->   verify, decide, record
                                                     <-   keys wrapped to the public key (HPKE), signed
                                                          (release.grants), or a refusal and a denial id
      POST /adyton/v4/used        grant, token       ->   record
      POST /adyton/v4/explain/ID  after a refusal    ->   what changed, for the owner's record
      POST /adyton/v4/run/ACTION  after a grant      ->   release.run_messages

This module is pure. Both sides use it. A label keeps the number of the protocol version that introduced it.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

from adyton.attest.bundle import (
    ARCH_PATTERN,
    MAX_CPU_BYTES,
    MAX_DEVICE_CERTIFICATE_BYTES,
    MAX_DEVICE_EVIDENCE_BYTES,
    MAX_EVENT_LOG_BYTES,
    DevicePart,
    EvidenceBundle,
    devices_field,
    gpu_nonce,
)
from adyton.attest.devices import MAX_DEVICES
from adyton.attest.report_data import RELEASE, framed
from adyton.errors import OutOfOrder
from adyton.release.run_key import RUN_KEY_BYTES, parse_run_key
from adyton.release.wire import (
    PROTOCOL,
    b64,
    check_protocol,
    identifier,
    malformed,
    parse_object,
    to_bytes,
)
from adyton.typed_document import TypedDocument
from adyton.values import NAME_PATTERN, Digest, Nonce

if TYPE_CHECKING:
    from collections.abc import Mapping

PATH_CHALLENGE: Final = "/adyton/v4/challenge"
PATH_RELEASE: Final = "/adyton/v4/release"
PATH_USED: Final = "/adyton/v4/used"

MAX_REQUEST_BYTES: Final = 1 << 20
MAX_RESPONSE_BYTES: Final = 1 << 20
MAX_NAMES: Final = 64
MAX_FOLDERS: Final = 64
MAX_FOLDER_CHARACTERS: Final = 200
MAX_IN_FORCE: Final = 16
MAX_IN_FORCE_BYTES: Final = 4096
MLKEM_BYTES: Final = 1184
PUBLIC_KEY_BYTES: Final = MLKEM_BYTES + 32
TOKEN_BYTES: Final = 32
PADDED_TO: Final = 256
NOT_KEPT: Final = "not kept"
"""Stands in place of a denial's id where the owner's log only counts the refusal, because there were too many."""

_NAME: Final = re.compile(NAME_PATTERN, re.ASCII)
"""The pattern of a key's name. Other names are refused and never reach the record."""

_FOLDER: Final = re.compile(rf"[\x21-\x7e]{{1,{MAX_FOLDER_CHARACTERS}}}", re.ASCII)
"""The characters of a pinned folder's id: printable ASCII without spaces."""

_ARCH: Final = re.compile(ARCH_PATTERN, re.ASCII)

_HPKE_LABEL: Final = b"adyton-release/1 keys\0"
_RUN_LABEL: Final = b"adyton-release/1 run\0"
_CHALLENGE_LABEL: Final = b"adyton-release/1 challenge\0"
_SUITE: Final = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


# --- what evidence is bound to -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """The identity of a key server: its owner's CA (SHA-256 of the DER) and the name in its certificate."""

    ca_sha256: Digest
    server_name: str


def report_data(
    *,
    nonce: Nonce,
    public_key: bytes,
    manifest_sha256: Digest,
    server: ServerIdentity,
    names: tuple[str, ...],
    run_key: bytes,
    devices: tuple[DevicePart, ...] = (),
    folders: tuple[str, ...] = (),
) -> bytes:
    """The 64 bytes that the CPU's evidence must carry: SHA-512 over the label and nine length-prefixed fields."""
    fields = framed(
        nonce.raw,
        public_key,
        manifest_sha256.raw,
        server.ca_sha256.raw,
        server.server_name.encode(),
        framed(*(name.encode() for name in names)),
        devices_field(devices),
        run_key,
        framed(*(folder.encode() for folder in folders)),
    )
    return hashlib.sha512(RELEASE + fields).digest()


def run_id(public_key: bytes) -> str:
    """The id of a run: a hash of the enclave's fresh public key. No other run can claim it."""
    return hashlib.sha256(_RUN_LABEL + public_key).hexdigest()[:32]


# --- challenges -------------------------------------------------------------------------------------------------


def make_challenge(key: bytes, expires_at_s: int) -> Nonce:
    """A nonce with its own expiry: u32 expiry ‖ 12 random bytes ‖ HMAC-SHA-256 over both, cut to 16 bytes.

    The server stores nothing before the answer to a challenge. So a flood of requests fills no memory, and servers with
    the same store accept each other's challenges.
    """
    head = struct.pack(">I", expires_at_s) + secrets.token_bytes(12)
    return Nonce(head + _challenge_mac(key, head))


def check_challenge(key: bytes, nonce: Nonce, now_s: float) -> int:
    """Check that a server of this store made the challenge and that it has not expired. Returns its expiry."""
    head, mac = nonce.raw[:16], nonce.raw[16:]
    if not hmac.compare_digest(mac, _challenge_mac(key, head)):
        raise OutOfOrder(
            "this challenge is not one of this key server's",
            check="challenge",
            expected="a challenge that this key server made",
            seen="another one",
            remedy="ask for a challenge first, at the same key server",
        )
    expires_at_s = int(struct.unpack(">I", head[:4])[0])
    if now_s > expires_at_s:
        raise OutOfOrder(
            "the challenge has expired",
            check="age of the challenge",
            expected="an answer before it expires",
            seen=f"{now_s - expires_at_s:.0f} s too late",
            remedy="ask for a new one; if that does not help, compare the clocks of both machines",
        )
    return expires_at_s


def _challenge_mac(key: bytes, head: bytes) -> bytes:
    return hmac.digest(key, _CHALLENGE_LABEL + head, "sha256")[:16]


# --- the enclave's key ------------------------------------------------------------------------------------------


class EnclaveKey:
    """The enclave's key pair for one run: X25519 with ML-KEM-768. It never leaves this process."""

    __slots__ = ("_private", "public_bytes")

    def __init__(self) -> None:
        lattice, curve = MLKEM768PrivateKey.generate(), X25519PrivateKey.generate()
        self._private = MLKEM768X25519PrivateKey(lattice, curve)
        self.public_bytes: bytes = lattice.public_key().public_bytes_raw() + curve.public_key().public_bytes_raw()

    def unwrap(self, wrapped: bytes, binding: bytes) -> bytes:
        """Decrypt the output of `wrap_to` for this key and these 64 bytes of report data. Raises OutOfOrder."""
        try:
            return _SUITE.decrypt(wrapped, self._private, info=_HPKE_LABEL + binding)
        except (InvalidTag, ValueError):
            raise OutOfOrder(
                "the key server's answer does not open",
                check="HPKE tag of the wrapped keys",
                expected="keys wrapped to this enclave's own key, for this very request",
                seen="something else",
                remedy="something between enclave and key server altered the answer: start again",
            ) from None

    def __repr__(self) -> str:
        return "EnclaveKey(<secret>)"


def parse_public_key(raw: bytes) -> MLKEM768X25519PublicKey:
    """The enclave's public key: ML-KEM-768 encapsulation key (1184 bytes) ‖ X25519 (32 bytes). Raises OutOfOrder."""
    if len(raw) != PUBLIC_KEY_BYTES:
        raise malformed("public key", f"{PUBLIC_KEY_BYTES} bytes", f"{len(raw)} bytes")
    try:
        lattice = MLKEM768PublicKey.from_public_bytes(raw[:MLKEM_BYTES])
        return MLKEM768X25519PublicKey(lattice, X25519PublicKey.from_public_bytes(raw[MLKEM_BYTES:]))
    except ValueError:
        raise malformed("public key", "an ML-KEM-768 key and an X25519 key", "no such keys") from None


def wrap_to(public_key: bytes, payload: bytes, binding: bytes) -> bytes:
    """HPKE base mode (RFC 9180) to the enclave's key. `binding`, the request's report data, goes into `info`."""
    try:
        return _SUITE.encrypt(payload, parse_public_key(public_key), info=_HPKE_LABEL + binding)
    except ValueError:
        raise malformed("public key", "a key that can be wrapped to", "one that cannot") from None


# --- what is wrapped -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, repr=False)
class Payload:
    """The secret part of a grant: keys, other secrets, and the token that acknowledges it."""

    keys: Mapping[str, bytes]
    secrets: Mapping[str, bytes]
    token: bytes

    def to_bytes(self) -> bytes:
        """JSON, padded with spaces to a multiple of 256 bytes so that its length reveals little."""
        raw = to_bytes(
            {
                "keys": {name: b64(value) for name, value in self.keys.items()},
                "secrets": {name: b64(value) for name, value in self.secrets.items()},
                "token": b64(self.token),
            }
        )
        return raw + b" " * (-len(raw) % PADDED_TO)

    def __repr__(self) -> str:
        return f"Payload(keys={sorted(self.keys)}, secrets={sorted(self.secrets)}, <secret>)"


def parse_payload(raw: bytes) -> Payload:
    """Parse an unwrapped payload. Raises OutOfOrder, which quotes nothing of it."""
    try:
        document = parse_object(raw, MAX_RESPONSE_BYTES)
        document.only({"keys", "secrets", "token"})
        found: list[dict[str, bytes]] = []
        for name in ("keys", "secrets"):
            table = document.inner(name)
            if len(table) > MAX_NAMES:
                raise document.wrong(name, f"at most {MAX_NAMES} members")
            low, high = (16, 16) if name == "keys" else (1, 64 * 1024)
            found.append({entry: table.binary(entry, low, high) for entry in table})
        return Payload(found[0], found[1], document.binary("token", TOKEN_BYTES, TOKEN_BYTES))
    except OutOfOrder:
        raise OutOfOrder("the wrapped keys are malformed", check="form of the wrapped keys") from None


# --- messages -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ChallengeAnswer:
    """The server's challenge. The answer to `nonce` must come within `lifetime_s` seconds."""

    nonce: Nonce
    lifetime_s: int

    def to_bytes(self) -> bytes:
        """As JSON."""
        return to_bytes({"protocol": PROTOCOL, "nonce": b64(self.nonce.raw), "lifetime_s": self.lifetime_s})


def parse_challenge_request(raw: bytes) -> None:
    """Parse a request for a challenge. It holds only the protocol's name."""
    document = parse_object(raw, 1024)
    check_protocol(document)
    document.only({"protocol"})


def challenge_request() -> bytes:
    """A request for a challenge."""
    return to_bytes({"protocol": PROTOCOL})


def parse_challenge(raw: bytes) -> ChallengeAnswer:
    """Parse a challenge."""
    document = parse_object(raw, 4096)
    check_protocol(document)
    document.only({"protocol", "nonce", "lifetime_s"})
    return ChallengeAnswer(Nonce(document.binary("nonce", 32, 32)), document.number("lifetime_s", 86400))


@dataclass(frozen=True, slots=True)
class ReleaseRequest:
    """The enclave's request for keys. The CPU's evidence covers all other members but `in_force`.

    The owners who made the statements in `in_force` signed them over a challenge, so evidence need not cover them.
    """

    nonce: Nonce
    public_key: bytes
    manifest_sha256: Digest
    names: tuple[str, ...]
    evidence: EvidenceBundle
    run_key: bytes
    """The public key of the run (`release.run_key`): 91 bytes."""
    folders: tuple[str, ...] = ()
    """Ids of the pinned folders whose roots are asked for: KEY/FOLDER, sorted, each once."""
    in_force: tuple[bytes, ...] = ()
    """Signed statements of other owners that an agreement is in force."""

    def to_bytes(self) -> bytes:
        """As JSON."""
        return to_bytes(
            {
                "protocol": PROTOCOL,
                "nonce": b64(self.nonce.raw),
                "public_key": b64(self.public_key),
                "manifest_sha256": self.manifest_sha256.hex(),
                "names": list(self.names),
                "evidence": _bundle_to_dict(self.evidence),
                "run_key": b64(self.run_key),
                "folders": list(self.folders),
                "in_force": [b64(statement) for statement in self.in_force],
            }
        )

    @property
    def gpu_nonce(self) -> bytes:
        """The 32 bytes that the GPUs sign for this request."""
        return gpu_nonce(self.nonce, self.public_key)

    def report_data(self, server: ServerIdentity) -> bytes:
        """The report data of evidence that was made for this request to this server."""
        return report_data(
            nonce=self.nonce,
            public_key=self.public_key,
            manifest_sha256=self.manifest_sha256,
            server=server,
            names=self.names,
            run_key=self.run_key,
            devices=self.evidence.devices,
            folders=self.folders,
        )


def parse_release_request(raw: bytes) -> ReleaseRequest:
    """Parse a request for keys. Raises OutOfOrder or VersionMismatch."""
    document = parse_object(raw, MAX_REQUEST_BYTES)
    check_protocol(document)
    document.only(
        {"protocol", "nonce", "public_key", "manifest_sha256", "names", "evidence", "run_key", "folders", "in_force"}
    )
    names = document["names"]
    if (
        not isinstance(names, list)
        or not 1 <= len(names) <= MAX_NAMES
        or not all(isinstance(name, str) and _NAME.fullmatch(name) for name in names)
        or names != sorted(set(names))
    ):
        raise malformed("names", f"1 to {MAX_NAMES} names of keys, sorted, each once", type(names).__name__)
    run_key = document.binary("run_key", RUN_KEY_BYTES, RUN_KEY_BYTES)
    parse_run_key(run_key)
    return ReleaseRequest(
        nonce=Nonce(document.binary("nonce", 32, 32)),
        public_key=document.binary("public_key", PUBLIC_KEY_BYTES, PUBLIC_KEY_BYTES),
        manifest_sha256=_digest(document, "manifest_sha256"),
        names=tuple(names),
        evidence=_parse_bundle(document.inner("evidence")),
        run_key=run_key,
        folders=_parse_folders(document, names),
        in_force=document.binaries("in_force", MAX_IN_FORCE, 1, MAX_IN_FORCE_BYTES),
    )


def _parse_folders(document: TypedDocument, names: list[str]) -> tuple[str, ...]:
    """The ids of pinned folders. The key of each is among the names that are asked for."""
    folders = document.texts("folders", MAX_FOLDERS)
    for folder in folders:
        key, slash, place = folder.partition("/")
        if key not in names or not slash or not place or not _FOLDER.fullmatch(folder):
            raise malformed("folders", "KEY/FOLDER in ASCII, with a key that is asked for", "something else")
    if folders != sorted(set(folders)):
        raise malformed("folders", "sorted, each once", "not so")
    return tuple(folders)


def _parse_bundle(document: TypedDocument) -> EvidenceBundle:
    document.only({"cpu", "devices"}, {"event_log"})
    return EvidenceBundle(
        cpu=document.binary("cpu", 1, MAX_CPU_BYTES),
        event_log=document.binary("event_log", 1, MAX_EVENT_LOG_BYTES) if "event_log" in document else None,
        devices=tuple(_parse_device(device) for device in document.inner_list("devices", MAX_DEVICES)),
    )


def _parse_device(document: TypedDocument) -> DevicePart:
    document.only({"arch", "certificate", "evidence"})
    arch = document.text("arch", 32)
    if _ARCH.fullmatch(arch) is None:
        raise document.wrong("arch", ARCH_PATTERN, "something else")
    return DevicePart(
        arch=arch,
        certificate=document.binary("certificate", 1, MAX_DEVICE_CERTIFICATE_BYTES),
        evidence=document.binary("evidence", 1, MAX_DEVICE_EVIDENCE_BYTES),
    )


def _bundle_to_dict(bundle: EvidenceBundle) -> dict[str, object]:
    found: dict[str, object] = {
        "cpu": b64(bundle.cpu),
        "devices": [
            {"arch": device.arch, "certificate": b64(device.certificate), "evidence": b64(device.evidence)}
            for device in bundle.devices
        ],
    }
    if bundle.event_log is not None:
        found["event_log"] = b64(bundle.event_log)
    return found


def _digest(document: TypedDocument, name: str) -> Digest:
    value = document.text(name, 64)
    try:
        raw = bytes.fromhex(value)
    except ValueError:
        raw = b""
    if len(raw) != 32 or raw.hex() != value:
        raise malformed(name, "64 lower-case hex digits", "something else")
    return Digest(raw)


@dataclass(frozen=True, slots=True)
class Refusal:
    """The server's refusal, as much of it as the client may know. The owner's log has all of it under the same id.

    `denial` is that id, or NOT_KEPT.
    """

    denial: str
    message: str
    check: str
    expected: str
    seen: str
    remedy: str

    def parts(self) -> dict[str, str]:
        """All members but the id."""
        return {
            "message": self.message,
            "check": self.check,
            "expected": self.expected,
            "seen": self.seen,
            "remedy": self.remedy,
        }

    def to_bytes(self) -> bytes:
        """As JSON."""
        return to_bytes({"protocol": PROTOCOL, "status": "denied", "denial": self.denial, **self.parts()})


def used_message(grant: str, token: bytes) -> bytes:
    """The acknowledgement of a grant."""
    return to_bytes({"protocol": PROTOCOL, "grant": grant, "token": b64(token)})


def parse_used(raw: bytes) -> tuple[str, bytes]:
    """Parse an acknowledgement: (grant id, token)."""
    document = parse_object(raw, 1024)
    check_protocol(document)
    document.only({"protocol", "grant", "token"})
    return identifier(document, "grant"), document.binary("token", TOKEN_BYTES, TOKEN_BYTES)
