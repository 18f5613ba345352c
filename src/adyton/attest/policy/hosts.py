"""Which machines a policy accepts: lists of ids with end dates, lists that somebody signed, answers of a provider.

A signed list is a DSSE envelope (github.com/secure-systems-lab/dsse, protocol version 1) with one Ed25519 signature
over this payload of type `application/vnd.adyton.hosts+json`::

    {"format": "adyton-hosts/1", "until": "2027-01-31", "ppids": [{"id": "…", "until": "2027-01-31", "note": "rack 4"}]}
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ed25519

from adyton.attest.policy.read import listed, only, text_of, wrong
from adyton.dates import is_over, parse_end
from adyton.errors import UsageError
from adyton.untrusted import parse_json_object

PAYLOAD_TYPE: Final = "application/vnd.adyton.hosts+json"
FORMAT: Final = "adyton-hosts/1"
MAX_ENVELOPE_CHARACTERS: Final = 1 << 20
MAX_SIGNED: Final = 16
"""Most signed lists of one policy."""
KINDS: Final[Mapping[str, tuple[int, ...]]] = {"chip_ids": (64, 8), "ppids": (16,), "piids": (16,)}
"""Lists of ids, and the sizes of their ids in bytes. Turin's chip ids have 8 bytes, which reports fill up to 64."""
PROVIDERS: Final[Mapping[str, str]] = {
    "gcp": "ask https://storage.googleapis.com/confidential-host-registry/{ppid} (200: the machine is Google's)",
}
"""Providers that answer whose a machine is, and how to ask them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One machine, until a day."""

    id: bytes
    until: datetime
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryAnswers:
    """The machines that a provider's registry said are its own, as somebody asked, until a day."""

    provider: str
    ppids: frozenset[bytes]
    until: datetime
    note: str = ""


@dataclass(frozen=True, slots=True)
class SignedHosts:
    """A list under a signature that was verified."""

    key: bytes
    """The Ed25519 public key, 32 bytes."""
    envelope: str
    until: datetime
    hosts: tuple[tuple[str, Host], ...]
    """Kind of the id, and the machine."""

    @classmethod
    def parse(cls, key: bytes, envelope: str) -> Self:
        """Verify the signature of an envelope, then read its payload. Raises UsageError."""
        payload = _verified_payload(key, envelope)
        name = "hosts.signed"
        table = only(name, parse_json_object(payload, what="signed list of hosts", refuse=UsageError), _MEMBERS)
        if table.get("format") != FORMAT:
            raise wrong(f"{name}: format", FORMAT, table.get("format"))
        until = parse_end(table.get("until"), f"{name}: until")
        kinds = [kind for kind in KINDS if kind in table]
        if not kinds:
            raise wrong(name, "at least one of " + ", ".join(KINDS), "none")
        hosts = tuple((kind, host) for kind in kinds for host in read_hosts(f"{name}: {kind}", table[kind], kind))
        return cls(key, envelope, until, hosts)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRules:
    """The machines that a policy accepts. Empty lists accept none: a policy without this rule accepts any."""

    chip_ids: tuple[Host, ...] = ()
    ppids: tuple[Host, ...] = ()
    piids: tuple[Host, ...] = ()
    signed: tuple[SignedHosts, ...] = ()
    registries: tuple[RegistryAnswers, ...] = ()

    def listed(self) -> Iterator[tuple[str, Host, datetime]]:
        """Kind, machine and end of every entry. An entry of a signed list ends with that list at the latest."""
        for kind in KINDS:
            for host in getattr(self, kind):
                yield kind, host, host.until
        for signed in self.signed:
            for kind, host in signed.hosts:
                yield kind, host, min(host.until, signed.until)

    @property
    def has_list(self) -> bool:
        """Whether it lists machines itself, and not only a provider's answers."""
        return bool(self.chip_ids or self.ppids or self.piids or self.signed)


_MEMBERS: Final = ("format", "until", *KINDS)


def padded(kind: str, identifier: bytes) -> bytes:
    """An id as reports write it."""
    return identifier.ljust(64, b"\0") if kind == "chip_ids" else identifier


def read_id(name: str, value: object, kind: str) -> bytes:
    """An id of a machine in hex. Zeros are refused: they stand for a machine that hides its id."""
    sizes = KINDS[kind]
    expected = " or ".join(f"{2 * size} hex digits" for size in sizes)
    text = text_of(name, value)
    if re.fullmatch(r"[0-9a-fA-F]+", text, re.ASCII) is None or len(text) not in {2 * size for size in sizes}:
        raise wrong(name, expected, text)
    raw = bytes.fromhex(text)
    if not any(raw):
        raise wrong(name, "the id of a machine", "zeros, which a machine shows that hides its id")
    return padded(kind, raw)


def read_hosts(name: str, value: object, kind: str) -> tuple[Host, ...]:
    """A list of machines: `id`, `until` and `note` each."""
    found = []
    for item in listed(name, value):
        table = only(name, item, ("id", "until", "note"))
        note = text_of(f"{name}.note", table["note"]) if "note" in table else ""
        found.append(
            Host(
                id=read_id(f"{name}.id", table.get("id"), kind),
                until=parse_end(table.get("until"), f"{name}.until"),
                note=note,
            )
        )
    return tuple(found)


def _read_signed(name: str, value: object) -> tuple[SignedHosts, ...]:
    found = []
    lists = listed(name, value)
    if len(lists) > MAX_SIGNED:
        raise wrong(name, f"at most {MAX_SIGNED} signed lists", len(lists))
    for item in lists:
        table = only(name, item, ("key", "envelope"))
        key = text_of(f"{name}.key", table.get("key"))
        if re.fullmatch(r"[0-9a-fA-F]{64}", key, re.ASCII) is None:
            raise wrong(f"{name}.key", "an Ed25519 public key, 64 hex digits", key)
        if "envelope" not in table:
            raise wrong(name, "the signed list itself: --hosts FILE, or its text as `envelope`", "only its key")
        envelope = text_of(f"{name}.envelope", table.get("envelope"), MAX_ENVELOPE_CHARACTERS, one_line=False)
        found.append(SignedHosts.parse(bytes.fromhex(key), envelope))
    return tuple(found)


def _read_registries(name: str, value: object) -> tuple[RegistryAnswers, ...]:
    found = []
    for item in listed(name, value):
        table = only(name, item, ("provider", "ppids", "until", "note"))
        provider = text_of(f"{name}.provider", table.get("provider"))
        if provider not in PROVIDERS:
            raise wrong(f"{name}.provider", ", ".join(sorted(PROVIDERS)), provider)
        ppids = [read_id(f"{name}.ppids", item, "ppids") for item in listed(f"{name}.ppids", table.get("ppids"))]
        found.append(
            RegistryAnswers(
                provider=provider,
                ppids=frozenset(ppids),
                until=parse_end(table.get("until"), f"{name}.until"),
                note=text_of(f"{name}.note", table["note"]) if "note" in table else "",
            )
        )
    return tuple(found)


def read_host_rules(name: str, value: object) -> HostRules:
    """The table `hosts` of a policy. Raises UsageError."""
    table = only(name, value, (*KINDS, "signed", "registries"))
    if not any(table.values()):
        raise wrong(name, "at least one machine: " + ", ".join((*KINDS, "signed", "registries")), "none")
    lists = {kind: read_hosts(f"{name}.{kind}", table[kind], kind) for kind in KINDS if kind in table}
    return HostRules(
        **lists,
        signed=_read_signed(f"{name}.signed", table.get("signed", [])),
        registries=_read_registries(f"{name}.registries", table.get("registries", [])),
    )


# --- the signed form ---------------------------------------------------------------------------------------------


def _signed_bytes(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: the type is signed with the payload, and both with their lengths."""
    return b"DSSEv1 %d %b %d %b" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)


def _decoded(name: str, value: object) -> bytes:
    try:
        return base64.b64decode(text_of(name, value, MAX_ENVELOPE_CHARACTERS), validate=True)
    except (binascii.Error, ValueError):
        raise wrong(name, "base64", value) from None


def _verified_payload(key: bytes, envelope: str) -> bytes:
    name = "hosts.signed"
    table = only(
        name,
        parse_json_object(envelope, what="signed list of hosts", refuse=UsageError),
        ("payloadType", "payload", "signatures"),
    )
    if table.get("payloadType") != PAYLOAD_TYPE:
        raise wrong(f"{name}: payloadType", PAYLOAD_TYPE, table.get("payloadType"))
    payload = _decoded(f"{name}: payload", table.get("payload"))
    signatures = listed(f"{name}: signatures", table.get("signatures"))
    if len(signatures) != 1:
        raise wrong(f"{name}: signatures", "one signature", len(signatures))
    signature = _decoded(f"{name}: sig", only(name, signatures[0], ("keyid", "sig")).get("sig"))
    try:
        ed25519.Ed25519PublicKey.from_public_bytes(key).verify(signature, _signed_bytes(payload))
    except (InvalidSignature, ValueError):
        raise wrong(f"{name}: signature", f"one by the key {key.hex()}", "another key's, or over other bytes") from None
    return payload


def sign_hosts(document: Mapping[str, object], key: ed25519.Ed25519PrivateKey) -> str:
    """The envelope of a list of machines. The list is read first, so only a good one is signed. Raises UsageError."""
    payload = json.dumps({"format": FORMAT, **document}, separators=(",", ":")).encode()
    signature = key.sign(_signed_bytes(payload))
    envelope = json.dumps(
        {
            "payloadType": PAYLOAD_TYPE,
            "payload": base64.b64encode(payload).decode("ascii"),
            "signatures": [{"sig": base64.b64encode(signature).decode("ascii")}],
        }
    )
    SignedHosts.parse(key.public_key().public_bytes_raw(), envelope)
    return envelope


def still(end: datetime, now: datetime) -> bool:
    """Whether an entry still counts."""
    return not is_over(end, now)
