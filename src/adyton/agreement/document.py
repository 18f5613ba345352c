"""The text of an agreement: which program, whose inputs, who receives outputs, how often, and until when. Pure.

::

    format = "adyton-agreement/1"
    name = "tumour-study"
    measurement = "…"              or: signer = "…", product = 0, min_svn = 1
    runs = 20
    until = 2027-06-30

    [parties.hospital]
    owner = "…"                    SHA-256 of her CA certificate (DER)
    inputs = ["patients"]          names of her keys that the program reads with
    receives = ["results"]         names of her keys that the program writes under

    [parties.vendor]
    owner = "…"
    inputs = ["model"]

    [privacy]                      may be left out: see `budget`
    key = "patients"
    epsilon = 3.0
    delta = 1e-5
    noise_multiplier = 1.1         the most that one run may use
    sampling_probability = 0.01
    steps = 10000

What is signed is not this text but its canonical form: JSON with sorted names, no spaces, ASCII. So comments and order
count for nothing. The id of an agreement is a hash of that form.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from adyton.agreement.budget import Budget, read_budget
from adyton.dates import parse_end, timestamp
from adyton.errors import Error, UsageError
from adyton.typed_document import TypedDocument
from adyton.untrusted import parse_toml
from adyton.values import NAME_PATTERN, Digest, Measurement

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

FORMAT: Final = "adyton-agreement/1"
MAX_DOCUMENT_BYTES: Final = 16 * 1024
MIN_PARTIES: Final = 2
MAX_PARTIES: Final = 8
MAX_NAMES: Final = 64
"""Most names of keys in one list: as many as one request for keys may have."""
MAX_RUNS: Final = 1_000_000
MAX_DEPTH: Final = 4
ID_PATTERN: Final = r"ag-[0-9a-f]{32}"
_ID_LABEL: Final = b"adyton agreement id/1\0"
_NAME: Final = re.compile(NAME_PATTERN, re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """The program: a measurement, or every version of a signer's product from an SVN on."""

    measurement: Measurement | None = None
    signer: Digest | None = None
    product: int = 0
    min_svn: int = 0

    def __str__(self) -> str:
        if self.measurement is not None:
            return f"measurement {self.measurement}"
        return f"signer {self.signer}, product {self.product}, SVN {self.min_svn} or newer"

    def to_dict(self) -> dict[str, Any]:
        """Its members in the document."""
        if self.measurement is not None:
            return {"measurement": self.measurement.hex()}
        signer = "" if self.signer is None else self.signer.hex()
        return {"signer": signer, "product": self.product, "min_svn": self.min_svn}


@dataclass(frozen=True, slots=True, kw_only=True)
class Party:
    """An owner who takes part: her name here, the SHA-256 of her CA (DER), and the names of her keys by their use."""

    name: str
    owner: Digest
    inputs: tuple[str, ...] = ()
    receives: tuple[str, ...] = ()

    @property
    def keys(self) -> frozenset[str]:
        """All names of her keys."""
        return frozenset({*self.inputs, *self.receives})


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """An agreement as it is signed. `parties` are sorted by name, names of keys within each list too."""

    name: str
    program: Program
    parties: tuple[Party, ...]
    runs: int
    """How many runs there may be. Each key server counts by itself."""
    until: datetime
    """Its last second, which still counts."""
    privacy: Budget | None = None
    """The privacy budget of one party's data."""

    def to_dict(self) -> dict[str, Any]:
        """As plain data: what `from_dict` takes."""
        found: dict[str, Any] = {
            "format": FORMAT,
            "name": self.name,
            **self.program.to_dict(),
            "runs": self.runs,
            "until": timestamp(self.until),
            "parties": {
                party.name: {
                    "owner": party.owner.hex(),
                    "inputs": list(party.inputs),
                    "receives": list(party.receives),
                }
                for party in self.parties
            },
        }
        return found if self.privacy is None else {**found, "privacy": self.privacy.to_dict()}

    def canonical(self) -> bytes:
        """The bytes that are signed."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()

    @property
    def id(self) -> str:
        """`ag-` and the first 16 bytes (hex) of a SHA-256 over the canonical form. It cannot be guessed without it."""
        return "ag-" + hashlib.sha256(_ID_LABEL + self.canonical()).hexdigest()[:32]

    def party_of(self, owner: Digest) -> Party | None:
        """The party whose CA has this SHA-256. None where there is none."""
        return next((party for party in self.parties if party.owner == owner), None)

    def to_toml(self) -> str:
        """The document for people: what `parse_agreement` takes."""
        program = "\n".join(f"{name} = {json.dumps(value)}" for name, value in self.program.to_dict().items())
        head = f'format = "{FORMAT}"\nname = "{self.name}"\n{program}\nruns = {self.runs}\n'
        head += f"until = {_toml_end(self.until)}\n"
        budget = {} if self.privacy is None else self.privacy.to_dict()
        tail = "\n[privacy]\n" if budget else ""
        tail += "".join(f"{name} = {json.dumps(value)}\n" for name, value in budget.items())
        parties = "".join(
            f'\n[parties.{_toml_key(party.name)}]\nowner = "{party.owner}"\ninputs = {json.dumps(list(party.inputs))}\n'
            f"receives = {json.dumps(list(party.receives))}\n"
            for party in self.parties
        )
        return head + parties + tail

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Agreement:
        """Read the data of a document. Raises UsageError for anything unknown, missing, ill-typed or out of range."""
        found = TypedDocument(document, _refuse)
        by_signer = "measurement" not in document
        identity = {"signer", "product", "min_svn"} if by_signer else {"measurement"}
        found.only({"format", "name", "runs", "until", "parties", *identity}, {"privacy"})
        if found.text("format", 64) != FORMAT:
            raise found.wrong("format", FORMAT, "another format")
        if by_signer:
            signer = Digest(found.hexadecimal("signer", 32))
            program = Program(
                signer=signer, product=found.number("product", 0xFFFF), min_svn=found.number("min_svn", 0xFFFF)
            )
        else:
            size = 48 if len(found.text("measurement", 96)) == 96 else 32
            program = Program(measurement=Measurement(found.hexadecimal("measurement", size)))
        runs = found.number("runs", MAX_RUNS)
        if runs == 0:
            raise found.wrong("runs", f"a whole number from 1 to {MAX_RUNS}", "0")
        parties = _parties(found)
        until = parse_end(document["until"], "until of the agreement")
        return cls(
            name=_name(found, "name"),
            program=program,
            parties=parties,
            runs=runs,
            until=until.replace(microsecond=0),
            privacy=_budget(found.inner("privacy"), parties) if "privacy" in found else None,
        )


def parse_agreement(text: str | bytes) -> Agreement:
    """Parse an agreement's TOML. Raises UsageError."""
    what = "agreement"
    document = parse_toml(text, what=what, refuse=UsageError, limit_bytes=MAX_DOCUMENT_BYTES, max_depth=MAX_DEPTH)
    return Agreement.from_dict(document)


def _parties(document: TypedDocument) -> tuple[Party, ...]:
    tables = document.inner("parties")
    if not MIN_PARTIES <= len(tables) <= MAX_PARTIES:
        raise document.wrong("parties", f"{MIN_PARTIES} to {MAX_PARTIES} parties", f"{len(tables)}")
    found = []
    for name in sorted(tables):
        if _NAME.fullmatch(name) is None:
            raise document.wrong("parties", "names of the characters A-Z a-z 0-9 . _ -", "another name")
        table = tables.inner(name)
        table.only({"owner"}, {"inputs", "receives"})
        owner = Digest(table.hexadecimal("owner", 32))
        found.append(Party(name=name, owner=owner, inputs=_names(table, "inputs"), receives=_names(table, "receives")))
    if len({party.owner for party in found}) != len(found):
        raise document.wrong("parties", "each owner once", "an owner twice")
    if sum(len(party.keys) for party in found) != len({key for party in found for key in party.keys}):
        raise document.wrong("parties", "each key with one party", "a key with two")
    return tuple(found)


def _budget(table: TypedDocument, parties: tuple[Party, ...]) -> Budget:
    budget = read_budget(table)
    if not any(budget.key in party.inputs for party in parties):
        raise table.wrong("key", "the name of a key among the inputs of a party", "another name")
    return budget


def _names(table: TypedDocument, name: str) -> tuple[str, ...]:
    names = table.texts(name, MAX_NAMES) if name in table else []
    if len(set(names)) != len(names) or not all(_NAME.fullmatch(each) for each in names):
        raise table.wrong(name, "names of keys, each once", "something else")
    return tuple(sorted(names))


def _name(document: TypedDocument, name: str) -> str:
    value = document.text(name, 64)
    if _NAME.fullmatch(value) is None:
        raise document.wrong(name, "1 to 64 of the characters A-Z a-z 0-9 . _ -", "something else")
    return value


def _toml_key(name: str) -> str:
    return json.dumps(name) if "." in name else name


def _toml_end(until: datetime) -> str:
    whole_day = (until.hour, until.minute, until.second) == (23, 59, 59)
    return f"{until:%Y-%m-%d}" if whole_day and until.year >= 1000 else timestamp(until)


def _refuse(path: str, expected: str, seen: str) -> Error:
    return UsageError(
        f"the agreement is refused: {path}: expected {expected}, found {seen}",
        check=f"{path} of the agreement",
        expected=expected,
        seen=seen,
        remedy="write it as docs/agreements.md says; adyton agreement draft makes a whole one",
    )
