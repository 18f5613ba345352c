"""What a receipt states: an in-toto Statement v1 with Adyton's own predicate. It has one form only.

The canonical form is JSON in ASCII with sorted names and without spaces. A statement in any other form is refused, and
so is an unknown, missing or ill-typed member. docs/receipts.md has every member.

Outputs and inputs stand in listings beside the statement, which names each by its SHA-256. So a statement stays small
however many files a run reads and writes. Where there are few outputs, each is a subject of its own.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from adyton.errors import MalformedQuote
from adyton.release.run_key import RUN_KEY_BYTES
from adyton.release.wire import b64
from adyton.typed_document import TypedDocument
from adyton.untrusted import parse_json
from adyton.values import NAME_PATTERN

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from adyton.values import Key128

STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://adyton.dev/run-receipt/v1"
MAX_STATEMENT_BYTES: Final = 128 * 1024
MAX_LISTING_BYTES: Final = 16 << 20
MAX_OWNERS: Final = 16
MAX_MOUNTS: Final = 256
MAX_SUBJECTS: Final = 256
MAX_PREDECESSORS: Final = 64
FEW: Final = 16
"""Up to so many outputs, each is a subject. Beyond, each mount is one."""

ROOT_BYTES: Final = 48
"""Nonce (32) and tag (16) of node 0 of a protected file: no other state of any file has them."""

STORED: Final = "sha256"
PLAINTEXT: Final = "sha256_plaintext"
COMMITMENT: Final = "adyton_commitment_v1"
ROOT: Final = "adyton_root_v1"
"""Names of digests of an output: the file as stored; its plaintext, only where asked for; the keyed commitment to the
plaintext; the root of the protected file."""

LIMITS: Final = ("network", "stdin", "stdio", "allowed_files", "names_from_host", "gpus", "clock", "nondeterminism")
_NAME: Final = re.compile(NAME_PATTERN, re.ASCII)
_TIME: Final = re.compile(r"20[0-9]{2}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z", re.ASCII)
_SAFE: Final = "/ !$&'()*+,;=:@[]~"
_COMMITMENT_LABEL: Final = b"adyton receipt/1 commitment\0"


def refuse(place: str, expected: str, seen: str) -> MalformedQuote:
    """The error for a receipt in another form."""
    return MalformedQuote(
        f"this is no receipt: {place}",
        check="form of the receipt",
        expected=expected,
        seen=seen[:120],
        remedy="get the receipt again from whoever started the run, or use a newer Adyton",
    )


def canonical(value: object) -> bytes:
    """The one form of a JSON value: sorted names, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def shown_path(path: str) -> str:
    """A stored path as receipts write it: bytes that are no plain ASCII are percent-encoded, as in a URI."""
    return quote(path.encode("utf-8", "surrogateescape"), safe=_SAFE)


def commitment_key(key: Key128, run_key: bytes) -> bytes:
    """The 32 bytes under which the plaintext of this run's outputs is committed to, from the key of the outputs.

    Who has the key of an output can compute it. It can be given to somebody who gets the plaintext alone. `run_key` is
    the public key of the run (DER).
    """
    return hmac.digest(key.reveal(), _COMMITMENT_LABEL + hashlib.sha256(run_key).digest(), "sha256")


def given_by_host(arguments: Sequence[str], environment: Mapping[str, str]) -> str:
    """SHA-256 over the words and the variables that a program has from the host, as canonical JSON, in hex."""
    given = {"arguments": list(arguments), "environment": dict(environment)}
    return hashlib.sha256(canonical(given)).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One file that the run wrote: its stored path, and digests."""

    name: str
    sha256: str
    commitment: str
    root: str
    plaintext_sha256: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As a subject (in-toto ResourceDescriptor)."""
        digest = {STORED: self.sha256, COMMITMENT: self.commitment, ROOT: self.root}
        if self.plaintext_sha256 is not None:
            digest[PLAINTEXT] = self.plaintext_sha256
        return {"name": self.name, "digest": digest}

    @classmethod
    def from_dict(cls, document: TypedDocument) -> Output:
        """Read one of a listing."""
        document.only({"name", "digest"})
        digest = document.inner("digest")
        digest.only({STORED, COMMITMENT, ROOT}, {PLAINTEXT})
        return cls(
            name=_plain(document, "name", 4096),
            sha256=_hex(digest, STORED, 32),
            commitment=_hex(digest, COMMITMENT, 32),
            root=_hex(digest, ROOT, ROOT_BYTES),
            plaintext_sha256=_hex(digest, PLAINTEXT, 32) if PLAINTEXT in digest else None,
        )


@dataclass(frozen=True, slots=True)
class Input:
    """One protected file whose content the run took: its stored path and its root."""

    name: str
    root: str

    def to_dict(self) -> dict[str, str]:
        """As JSON."""
        return {"name": self.name, "root": self.root}

    @classmethod
    def from_dict(cls, document: TypedDocument) -> Input:
        """Read one of a listing."""
        document.only({"name", "root"})
        return cls(_plain(document, "name", 4096), _hex(document, "root", ROOT_BYTES))


def listing_bytes(entries: Sequence[Output] | Sequence[Input]) -> bytes:
    """The canonical form of a listing, sorted by name."""
    found: list[Mapping[str, Any]] = [entry.to_dict() for entry in entries]
    return canonical(sorted(found, key=lambda entry: str(entry["name"])))


def parse_outputs(raw: bytes) -> tuple[Output, ...]:
    """Parse a listing of outputs, in its canonical form. Raises MalformedQuote."""
    return tuple(Output.from_dict(item) for item in _listing(raw))


def parse_inputs(raw: bytes) -> tuple[Input, ...]:
    """Parse a listing of inputs, in its canonical form. Raises MalformedQuote."""
    return tuple(Input.from_dict(item) for item in _listing(raw))


def _listing(raw: bytes) -> list[TypedDocument]:
    found = parse_json(raw, what="listing", refuse=MalformedQuote, limit_bytes=MAX_LISTING_BYTES, max_depth=4)
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found) or canonical(found) != raw:
        raise refuse("listing", "a list in canonical JSON", "something else")
    names = [item.get("name") for item in found]
    if not all(isinstance(name, str) for name in names) or names != sorted(set(names)):
        raise refuse("listing", "files sorted by name, each once", "not so")
    return [TypedDocument(item, refuse, f"listing[{number}]") for number, item in enumerate(found)]


@dataclass(frozen=True, slots=True, kw_only=True)
class MountFiles:
    """The files of one encrypted mount (or the log) that the run took or wrote."""

    source: str
    """The stored path of the mount."""
    key: str
    owner: str
    """Whose key it is. "" for a key that stands in the manifest, which everybody knows."""
    version: int
    files: int
    listing: str
    """SHA-256 of the listing, hex."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "source": self.source,
            "key": self.key,
            "owner": self.owner,
            "version": self.version,
            "files": self.files,
            "listing": self.listing,
        }

    @classmethod
    def from_dict(cls, document: TypedDocument) -> MountFiles:
        """Read the members."""
        document.only({"source", "key", "owner", "version", "files", "listing"})
        return cls(
            source=_plain(document, "source", 4096),
            key=_plain(document, "key", 128),
            owner=_plain(document, "owner", 128),
            version=document.number("version", (1 << 32) - 1),
            files=document.number("files", 10_000_000),
            listing=_hex(document, "listing", 32),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerGrant:
    """An owner whose key server released keys to the run, as the measured manifest pins her, and the grant."""

    name: str
    ca_sha256: str
    server_name: str
    grant: str
    versions: Mapping[str, int]
    checkpoint: Mapping[str, Any]
    """The signed head of her record after the grant (`keystore.audit.Checkpoint`)."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "name": self.name,
            "ca_sha256": self.ca_sha256,
            "server_name": self.server_name,
            "grant": self.grant,
            "versions": dict(self.versions),
            "checkpoint": dict(self.checkpoint),
        }

    @classmethod
    def from_dict(cls, document: TypedDocument) -> OwnerGrant:
        """Read the members. The checkpoint is parsed where it is verified."""
        document.only({"name", "ca_sha256", "server_name", "grant", "versions", "checkpoint"})
        versions = document.inner("versions")
        if not 1 <= len(versions) <= 64 or not all(_NAME.fullmatch(name) for name in versions):
            raise document.wrong("versions", "the version of each key")
        return cls(
            name=_plain(document, "name", 128),
            ca_sha256=_hex(document, "ca_sha256", 32),
            server_name=_plain(document, "server_name", 255),
            grant=_plain(document, "grant", 40),
            versions={name: versions.number(name, (1 << 32) - 1) for name in versions},
            checkpoint=dict(document.inner("checkpoint")),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """Everything that a run states of itself."""

    run_key: bytes
    tee: str
    measurement: str
    """The workload measurement."""
    manifest_sha256: str
    runtime: str
    """The identity of Adyton's runtime."""
    adyton: str
    device_digest: str
    arguments: str
    """SHA-256 over what the host gave the program, where the manifest lets it (`given_by_host`)."""
    exit_code: int
    started_at: str
    finished_at: str
    """By the machine's clock, which is the host's."""
    owners: tuple[OwnerGrant, ...]
    inputs: tuple[MountFiles, ...]
    outputs: tuple[MountFiles, ...]
    limits: Mapping[str, Any]
    predecessors: tuple[str, ...] = ()
    """SHA-256 of the statements of the runs that made inputs of this one."""
    subjects: tuple[Mapping[str, Any], ...] = ()

    def to_bytes(self) -> bytes:
        """The canonical form, which is the payload of the envelope."""
        return canonical(
            {
                "_type": STATEMENT_TYPE,
                "subject": [dict(subject) for subject in self.subjects],
                "predicateType": PREDICATE_TYPE,
                "predicate": {
                    "run": {
                        "key": b64(self.run_key),
                        "tee": self.tee,
                        "exit_code": self.exit_code,
                        "host_claimed": {"started_at": self.started_at, "finished_at": self.finished_at},
                        "arguments": self.arguments,
                    },
                    "program": {
                        "measurement": self.measurement,
                        "manifest_sha256": self.manifest_sha256,
                        "runtime": self.runtime,
                        "adyton": self.adyton,
                        "device_digest": self.device_digest,
                    },
                    "owners": [owner.to_dict() for owner in self.owners],
                    "inputs": [mount.to_dict() for mount in self.inputs],
                    "outputs": [mount.to_dict() for mount in self.outputs],
                    "limits": dict(self.limits),
                    "predecessors": list(self.predecessors),
                },
            }
        )

    @property
    def sha256(self) -> str:
        """SHA-256 of the canonical form: the name of this statement."""
        return hashlib.sha256(self.to_bytes()).hexdigest()


def subjects_of(
    outputs: Sequence[tuple[MountFiles, Sequence[Output]]], run_key: bytes
) -> tuple[Mapping[str, Any], ...]:
    """The subjects of a statement: its few outputs, or its mounts, or the run itself where it wrote nothing.

    A mount as a subject has the SHA-256 of its listing. The run as a subject has that of its key.
    """
    entries = [entry for _, listed in outputs for entry in listed]
    if not entries:
        return ({"name": "run", "digest": {"sha256": hashlib.sha256(run_key).hexdigest()}},)
    if len(entries) <= FEW:
        return tuple(entry.to_dict() for entry in entries)
    return tuple({"name": mount.source + "/", "digest": {"sha256": mount.listing}} for mount, _ in outputs)


def parse_statement(raw: bytes) -> Statement:
    """Parse a statement in its canonical form. Raises MalformedQuote."""
    found = parse_json(raw, what="statement", refuse=MalformedQuote, limit_bytes=MAX_STATEMENT_BYTES, max_depth=8)
    if not isinstance(found, dict):
        raise refuse("statement", "one JSON object", type(found).__name__)
    document = TypedDocument(found, refuse)
    document.only({"_type", "subject", "predicateType", "predicate"})
    for name, wanted in (("_type", STATEMENT_TYPE), ("predicateType", PREDICATE_TYPE)):
        if document.text(name, 128) != wanted:
            raise document.wrong(name, wanted, "another type")
    statement = _predicate(document.inner("predicate"), document.inner_list("subject", MAX_SUBJECTS))
    if statement.to_bytes() != raw:
        raise refuse("statement", "its canonical form: sorted names, no spaces, ASCII", "another form")
    return statement


def _predicate(document: TypedDocument, subjects: list[TypedDocument]) -> Statement:
    document.only({"run", "program", "owners", "inputs", "outputs", "limits", "predecessors"})
    run, program, limits = document.inner("run"), document.inner("program"), document.inner("limits")
    run.only({"key", "tee", "exit_code", "host_claimed", "arguments"})
    program.only({"measurement", "manifest_sha256", "runtime", "adyton", "device_digest"})
    limits.only(LIMITS)
    claimed = run.inner("host_claimed")
    claimed.only({"started_at", "finished_at"})
    for name, value in limits.items():
        if isinstance(value, str):
            _plain(limits, name, 64)
        elif type(value) not in (bool, int):
            raise limits.wrong(name, "a text, a number, true or false")
    predecessors = document.texts("predecessors", MAX_PREDECESSORS)
    if predecessors != sorted(set(predecessors)) or not all(re.fullmatch("[0-9a-f]{64}", it) for it in predecessors):
        raise document.wrong("predecessors", "SHA-256 values in hex, sorted, each once")
    for subject in subjects:
        subject.only({"name", "digest"})
        digest = subject.inner("digest")
        digest.only({STORED}, {COMMITMENT, ROOT, PLAINTEXT})
        _plain(subject, "name", 4097)
        for name in digest:
            _hex(digest, name, ROOT_BYTES if name == ROOT else 32)
    return Statement(
        run_key=run.binary("key", RUN_KEY_BYTES, RUN_KEY_BYTES),
        tee=_plain(run, "tee", 32),
        measurement=_hex(program, "measurement", 32),
        manifest_sha256=_hex(program, "manifest_sha256", 32),
        runtime=_hex(program, "runtime", 32),
        adyton=_plain(program, "adyton", 64),
        device_digest=_hex(program, "device_digest", 48),
        arguments=_hex(run, "arguments", 32),
        exit_code=run.number("exit_code", 255),
        started_at=_time(claimed, "started_at"),
        finished_at=_time(claimed, "finished_at"),
        owners=tuple(OwnerGrant.from_dict(item) for item in document.inner_list("owners", MAX_OWNERS)),
        inputs=tuple(MountFiles.from_dict(item) for item in document.inner_list("inputs", MAX_MOUNTS)),
        outputs=tuple(MountFiles.from_dict(item) for item in document.inner_list("outputs", MAX_MOUNTS)),
        limits=dict(limits),
        predecessors=tuple(predecessors),
        subjects=tuple({"name": item["name"], "digest": dict(item.inner("digest"))} for item in subjects),
    )


def _hex(document: TypedDocument, name: str, size: int) -> str:
    """Lower-case hex digits of exactly `size` bytes."""
    raw = document.hexadecimal(name, size)
    if raw.hex() != document[name]:
        raise document.wrong(name, "lower-case hex digits", "others")
    return raw.hex()


def _plain(document: TypedDocument, name: str, limit: int) -> str:
    """Printable ASCII, so that it is safe on any terminal."""
    value = document.text(name, limit)
    if not value.isascii() or not value.isprintable():
        raise document.wrong(name, "printable ASCII", "something else")
    return value


def _time(document: TypedDocument, name: str) -> str:
    value = document.text(name, 20)
    if not _TIME.fullmatch(value):
        raise document.wrong(name, "YYYY-MM-DDThh:mm:ssZ", "something else")
    return value
