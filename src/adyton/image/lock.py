"""The lock file: every package and wheel that an image is built from, by version, size and SHA-256. Pure.

An image is built from nothing else. docs/how-to/guest-image.md says how the file is made anew.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final

from adyton.errors import Error, UsageError
from adyton.typed_document import TypedDocument
from adyton.untrusted import parse_json_object
from adyton.values import Digest

FORMAT: Final = "adyton-image-lock/1"
MAX_BYTES: Final = 1 << 20
MAX_PACKAGES: Final = 512
MAX_PACKAGE_BYTES: Final = 256 << 20

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9+._-]{0,95}", re.ASCII)
_VERSION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+:~_-]{0,95}", re.ASCII)
_WHEEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,150}\.whl", re.ASCII)
_POOL: Final = re.compile(r"pool(?:/[A-Za-z0-9+_~][A-Za-z0-9+._~-]{0,150}){3,6}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A Debian package. `path` is its place below a mirror's address."""

    name: str
    version: str
    sha256: Digest
    bytes: int
    path: str

    @property
    def file(self) -> str:
        """The name of its file in the local pool: the hash comes first, so no two packages meet."""
        return f"{self.sha256.hex()[:16]}-{self.name}.deb"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """A wheel of the package index, by its file name."""

    name: str
    version: str
    sha256: Digest
    file: str


@dataclass(frozen=True, slots=True)
class Lock:
    """The whole file. `kernel` is the release of the kernel, as `uname -r` says it."""

    source_date_epoch: int
    kernel: str
    packages: tuple[Package, ...]
    wheels: tuple[Wheel, ...]

    def package(self, name: str) -> Package:
        """The package of that name. Raises UsageError."""
        for item in self.packages:
            if item.name == name:
                return item
        raise _wrong("packages", name, "none of that name")

    def to_bytes(self) -> bytes:
        """The file's one form: packages and wheels by name. It is parsed again first. Raises UsageError."""
        document: dict[str, Any] = {
            "format": FORMAT,
            "source_date_epoch": self.source_date_epoch,
            "kernel": self.kernel,
            "packages": [
                {"name": i.name, "version": i.version, "sha256": i.sha256.hex(), "bytes": i.bytes, "path": i.path}
                for i in sorted(self.packages, key=lambda item: item.name)
            ],
            "wheels": [
                {"name": i.name, "version": i.version, "sha256": i.sha256.hex(), "file": i.file}
                for i in sorted(self.wheels, key=lambda item: item.name)
            ],
        }
        raw = (json.dumps(document, indent=1) + "\n").encode("ascii")
        parse_lock(raw)
        return raw


def parse_lock(raw: bytes) -> Lock:
    """Parse a lock file. Raises UsageError for everything that is not exactly one."""
    top = TypedDocument(
        parse_json_object(raw, what="image lock file", refuse=UsageError, limit_bytes=MAX_BYTES), _wrong
    )
    top.only({"format", "source_date_epoch", "kernel", "packages", "wheels"})
    if top["format"] != FORMAT:
        raise _wrong("format", FORMAT, str(top["format"]))
    packages = tuple(_package(item) for item in top.inner_list("packages", MAX_PACKAGES))
    wheels = tuple(_wheel(item) for item in top.inner_list("wheels", MAX_PACKAGES))
    for names in ([item.name for item in packages], [item.name for item in wheels]):
        if not names or len(set(names)) != len(names):
            raise _wrong("names", "each once, and at least one", f"{len(names)} names")
    return Lock(top.number("source_date_epoch", 1 << 40), _match(top, "kernel", _VERSION), packages, wheels)


def _package(item: TypedDocument) -> Package:
    item.only({"name", "version", "sha256", "bytes", "path"})
    path = _match(item, "path", _POOL)
    return Package(
        name=_match(item, "name", _NAME),
        version=_match(item, "version", _VERSION),
        sha256=Digest(item.hexadecimal("sha256", 32)),
        bytes=item.number("bytes", MAX_PACKAGE_BYTES),
        path=path,
    )


def _wheel(item: TypedDocument) -> Wheel:
    item.only({"name", "version", "sha256", "file"})
    return Wheel(
        name=_match(item, "name", _NAME),
        version=_match(item, "version", _VERSION),
        sha256=Digest(item.hexadecimal("sha256", 32)),
        file=_match(item, "file", _WHEEL),
    )


def _match(document: TypedDocument, name: str, pattern: re.Pattern[str]) -> str:
    value = document.text(name, 1024)
    if pattern.fullmatch(value) is None:
        raise document.wrong(name, f"a text like {pattern.pattern}", value[:80])
    return value


def _wrong(place: str, expected: str, seen: str) -> Error:
    return UsageError(
        f"the lock file of the image is wrong: {place}: expected {expected}, seen {seen[:160]}",
        check=f"image lock file: {place}",
        expected=expected,
        seen=seen[:160],
        remedy="write it anew with `adyton image build --update-lock`",
    )
