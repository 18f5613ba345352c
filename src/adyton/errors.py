"""The error tree of Adyton. Every leaf has one exit code, which is never reused.

::

    Error
    ├─ UsageError                                                             2
    ├─ ManifestError     70   MalformedManifest 71 · DigestMismatch 72 · BadSignature 73
    ├─ FileFormatError   80   NotProtectedFile 81 · UnsupportedVersion 82 · IntegrityError 83
    │                         WrongPath 84 · SourceChanged 85 · TargetExists 86
    ├─ EvidenceError     90   MalformedQuote 91 · BadChain 92 · Revoked 93 · Stale 94 · AppraisalFailed 95
    │                         Mismatch 96
    ├─ KeyReleaseError  100   Denied 101 · UnknownKey 102 · OutOfOrder 103 · VersionMismatch 104
    │                         StoreError 105 · AuditError 106
    ├─ Unavailable      110   FetchFailed 111 · NoDevice 112 · Timeout 113 · StorageFailed 114
    └─ RunError         120   MountFailed 121 · SandboxFailed 122 · ScriptFailed (the script's own code)

`Unavailable` means *could not check*: it is never a parent or a child of a verdict. Three places translate an `Error`:
the command line to an exit code, the key server to an HTTP status, the file system to an errno.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypedDict

from adyton.check import Check, text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Self, Unpack

MAX_TEXT_CHARS: Final = 16_384
MAX_CHECKS: Final = 64
MAX_ENCODED_BYTES: Final = 1 << 20
"""Limits of an encoded error, sent or received: characters of one text, number of checks, bytes in all."""

_LONE_SURROGATE: Final = re.compile("[\ud800-\udc7f\udd00-\udfff]")
_MAX_WAIT_S: Final = 10**9
_NO_MESSAGE: Final = "an error came without its message"


class Parts(TypedDict, total=False):
    """The arguments of an error beside its message: the four parts of the one failed check, or all `checks`."""

    check: str | None
    expected: object
    seen: object
    remedy: str | None
    checks: Iterable[Check]


class Error(Exception):
    """A refusal or a failure. It says what was checked, what was expected and seen, and what to do.

    An error never changes after it was made. `checks` are all its checks, in their order. Without them, `check`,
    `expected`, `seen` and `remedy` make one failed check.
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        message: str,
        *,
        check: str | None = None,
        expected: object = None,
        seen: object = None,
        remedy: str | None = None,
        checks: Iterable[Check] = (),
    ) -> None:
        super().__init__(message)
        self.message: Final = message
        self.checks: Final = tuple(checks) or _one_check(check, expected, seen, remedy)

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that did not hold."""
        return tuple(check for check in self.checks if not check.ok)

    @property
    def check(self) -> str | None:
        """The name of the first check that failed."""
        return next((check.name or None for check in self.failed), None)

    @property
    def expected(self) -> str | None:
        """The expected value of the first failed check."""
        return next((_shown(check.expected) for check in self.failed), None)

    @property
    def seen(self) -> str | None:
        """The seen value of the first failed check."""
        return next((_shown(check.seen) for check in self.failed), None)

    @property
    def remedy(self) -> str | None:
        """The remedy of the first failed check."""
        return next((check.remedy for check in self.failed), None)

    def details(self) -> dict[str, str]:
        """The text for people and scripts: `error`, `message`, and those of the four parts that are known."""
        found = {
            "check": self.check,
            "expected": self.expected,
            "seen": self.seen,
            "remedy": self.remedy,
        }
        return {
            "error": type(self).__name__,
            "message": self.message,
            **{name: shown for name, shown in found.items() if shown is not None},
        }

    def to_dict(self) -> dict[str, Any]:
        """The whole error as JSON, for `from_dict` at the other end of a pipe: `details` and all checks.

        Each text is cut to MAX_TEXT_CHARS characters. Of more than MAX_CHECKS checks only the failed ones are kept.
        """
        found: dict[str, Any] = {name: _cut(shown) for name, shown in self.details().items()}
        if self.checks != self.failed[:1]:
            listed = self.checks if len(self.checks) <= MAX_CHECKS else self.failed[:MAX_CHECKS]
            found["checks"] = [_check_to_dict(check) for check in listed]
        return found | self._facts()

    def to_bytes(self) -> bytes:
        """`to_dict` as one line of JSON, without a newline."""
        return json.dumps(self.to_dict()).encode()

    @classmethod
    def from_dict(cls, document: object, *, unknown: type[Self] | None = None) -> Self:
        """Make an error from the JSON of `to_dict`. Never raises, even if `document` is hostile.

        The class comes from the name in `document`, and must be `cls` or below it in the tree. Any other name gives
        `unknown`, or `cls` without it. Members of the wrong type and members beyond the limits are left out.
        """
        told = document if isinstance(document, dict) else {}
        kind = _TREE.get(told["error"]) if isinstance(told.get("error"), str) else None
        if kind is None or not issubclass(kind, cls):
            kind = unknown or cls
        message = _text(told.get("message"))
        return kind._rebuilt(_NO_MESSAGE if message is None else message, _checks(told), told)

    @classmethod
    def parse(cls, raw: bytes, *, unknown: type[Self] | None = None) -> Self:
        """Make an error from the bytes of `to_bytes`, as `from_dict` does.

        Bytes that are no JSON give an error without a message.
        """
        try:
            document = json.loads(raw) if len(raw) <= MAX_ENCODED_BYTES else None
        except (ValueError, RecursionError):
            document = None
        return cls.from_dict(document, unknown=unknown)

    def _facts(self) -> dict[str, Any]:
        """Members of this class beside message and checks, as JSON."""
        return {}

    @classmethod
    def _rebuilt(cls, message: str, checks: tuple[Check, ...], _told: Mapping[str, object]) -> Self:
        """Make an error of this class. `_told` holds the members of `_facts`, and they are untrusted."""
        return cls(message, checks=checks)


def _one_check(check: str | None, expected: object, seen: object, remedy: str | None) -> tuple[Check, ...]:
    if check is None and expected is None and seen is None and remedy is None:
        return ()
    wanted, found = (None if value is None else str(value) for value in (expected, seen))
    return (Check(check or "", wanted, found, False, remedy),)


def _shown(value: object) -> str | None:
    return None if value is None else text(value)


def _cut(shown: str) -> str:
    return shown if len(shown) <= MAX_TEXT_CHARS else shown[: MAX_TEXT_CHARS - 1] + "…"


def _check_to_dict(check: Check) -> dict[str, Any]:
    parts = {"expected": _shown(check.expected), "seen": _shown(check.seen), "remedy": check.remedy}
    known = {name: _cut(shown) for name, shown in parts.items() if shown is not None}
    return {"name": _cut(check.name), "ok": check.ok, **known}


def _text(value: object) -> str | None:
    """A text from an untrusted document. Only the lone surrogates that stand for bytes of a file name are kept."""
    return _LONE_SURROGATE.sub("\N{REPLACEMENT CHARACTER}", _cut(value)) if isinstance(value, str) else None


def _whole(value: object, low: int, high: int) -> int | None:
    return value if type(value) is int and low <= value <= high else None


def _seconds(value: object) -> float | None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    return value if 0 <= value <= _MAX_WAIT_S else None


def _checks(told: Mapping[str, object]) -> tuple[Check, ...]:
    """The checks in an untrusted document. Without a list of checks, its four parts make one."""
    rows = told.get("checks")
    if not isinstance(rows, list):
        expected, seen = _text(told.get("expected")), _text(told.get("seen"))
        return _one_check(_text(told.get("check")), expected, seen, _text(told.get("remedy")))
    return tuple(
        Check(
            _text(row.get("name")) or "",
            _text(row.get("expected")),
            _text(row.get("seen")),
            row.get("ok") is True,
            _text(row.get("remedy")),
        )
        for row in rows[:MAX_CHECKS]
        if isinstance(row, dict)
    )


class UsageError(Error):
    """The arguments of the command are wrong."""

    exit_code = 2


class ManifestError(Error):
    """The manifest, its template, or a file in it is wrong."""

    exit_code = 70


class MalformedManifest(ManifestError):
    """The manifest does not parse, or holds a key or value that is not allowed."""

    exit_code = 71


class DigestMismatch(ManifestError):
    """A file differs from the hash that the manifest gives."""

    exit_code = 72


class BadSignature(ManifestError):
    """The manifest's signature is not the signer's."""

    exit_code = 73


class FileFormatError(Error):
    """A protected file or a pack cannot be read or written."""

    exit_code = 80


class NotProtectedFile(FileFormatError):
    """The bytes are not a protected file at all."""

    exit_code = 81


class UnsupportedVersion(FileFormatError):
    """A protected file of a format version that is not known."""

    exit_code = 82


class IntegrityError(FileFormatError):
    """The key is wrong, or the file was altered. No plaintext is released."""

    exit_code = 83


class WrongPath(FileFormatError):
    """The path sealed into the file is not the one expected."""

    exit_code = 84


class SourceChanged(FileFormatError):
    """A file changed while it was being read."""

    exit_code = 85


class TargetExists(FileFormatError):
    """The target exists already and was left as it is."""

    exit_code = 86


class EvidenceError(Error):
    """Attestation evidence was checked and refused."""

    exit_code = 90


class MalformedQuote(EvidenceError):
    """The evidence or its collateral does not parse."""

    exit_code = 91


class BadChain(EvidenceError):
    """A signature or certificate chain does not lead to a trusted root."""

    exit_code = 92


class Revoked(EvidenceError):
    """A certificate or a platform has been revoked."""

    exit_code = 93


class Stale(EvidenceError):
    """Collateral is expired or not yet valid at the time of verification."""

    exit_code = 94


class AppraisalFailed(EvidenceError):
    """The evidence is genuine, and the policy does not accept it. `failed` are all the checks that failed."""

    exit_code = 95


class Mismatch(EvidenceError):
    """Parts of the evidence, or evidence and collateral, do not belong together."""

    exit_code = 96


class KeyReleaseError(Error):
    """A key was not released."""

    exit_code = 100


class Denied(KeyReleaseError):
    """The key server refused the request."""

    exit_code = 101

    def __init__(self, message: str, *, denials: Iterable[str] = (), **parts: Unpack[Parts]) -> None:
        super().__init__(message, **parts)
        self.denials: Final = tuple(denials)
        """The ids of the refusal in the owners' records."""

    def _facts(self) -> dict[str, Any]:
        return {"denials": [_cut(denial) for denial in self.denials[:MAX_CHECKS]]} if self.denials else {}

    @classmethod
    def _rebuilt(cls, message: str, checks: tuple[Check, ...], told: Mapping[str, object]) -> Self:
        ids = told.get("denials")
        found = [_text(value) for value in ids[:MAX_CHECKS]] if isinstance(ids, list) else []
        return cls(message, denials=[value for value in found if value is not None], checks=checks)


class UnknownKey(KeyReleaseError):
    """No key of that name exists."""

    exit_code = 102


class OutOfOrder(KeyReleaseError):
    """A protocol message came malformed, twice, or out of order."""

    exit_code = 103


class VersionMismatch(KeyReleaseError):
    """The other side speaks another version of the protocol."""

    exit_code = 104


class StoreError(KeyReleaseError):
    """The key store cannot be opened, or refuses the operation."""

    exit_code = 105


class AuditError(KeyReleaseError):
    """The audit record was altered or cut."""

    exit_code = 106


class Unavailable(Error):
    """The check could not be made. This says nothing about whether the thing is good."""

    exit_code = 110

    def __init__(self, message: str, *, public: bool = False, **parts: Unpack[Parts]) -> None:
        super().__init__(message, **parts)
        self.public: Final = public
        """Whether the text may be shown to clients over the network. All other text is for the owner only.

        The flag is not encoded: an error that came over a pipe is never public.
        """


class FetchFailed(Unavailable):
    """Something from another machine could not be fetched."""

    exit_code = 111

    def __init__(
        self, message: str, *, status: int | None = None, retry_after_s: float | None = None, **parts: Unpack[Parts]
    ) -> None:
        super().__init__(message, **parts)
        self.status: Final = status
        """The HTTP status of the refusal, if there was one."""
        self.retry_after_s: Final = retry_after_s
        """The pause in seconds that the service asked for."""

    def _facts(self) -> dict[str, Any]:
        found = {"status": self.status, "retry_after_s": self.retry_after_s}
        return {name: value for name, value in found.items() if value is not None}

    @classmethod
    def _rebuilt(cls, message: str, checks: tuple[Check, ...], told: Mapping[str, object]) -> Self:
        wait_s = _seconds(told.get("retry_after_s"))
        return cls(message, status=_whole(told.get("status"), 100, 999), retry_after_s=wait_s, checks=checks)


class NoDevice(Unavailable):
    """This machine lacks the device that was asked for."""

    exit_code = 112


class Timeout(Unavailable):
    """The other side did not answer in time."""

    exit_code = 113


class StorageFailed(Unavailable):
    """The operating system failed at reading or writing (disk full, no permission, I/O error)."""

    exit_code = 114


class RunError(Error):
    """The protected program could not be started or did not end well."""

    exit_code = 120


class MountFailed(RunError):
    """The program's files could not be mounted."""

    exit_code = 121


class SandboxFailed(RunError):
    """The sandbox could not be made."""

    exit_code = 122


class ScriptFailed(RunError):
    """The program itself ended with an error. Its own exit code is passed on."""

    def __init__(self, message: str, *, status: int, remedy: str | None = None) -> None:
        super().__init__(message, check="exit status of the program", expected=0, seen=status, remedy=remedy)
        self.status: Final = status

    def _facts(self) -> dict[str, Any]:
        return {"status": self.status}

    @classmethod
    def _rebuilt(cls, message: str, checks: tuple[Check, ...], told: Mapping[str, object]) -> Self:
        status = _whole(told.get("status"), 1, 255) or 1  # never 0: that would pass for success
        return cls(message, status=status, remedy=next((check.remedy for check in checks if not check.ok), None))


_TREE: Final[dict[str, type[Error]]] = {
    name: kind for name, kind in globals().items() if isinstance(kind, type) and issubclass(kind, Error)
}
"""Every class by its name. Errors from other processes and machines become one of these and nothing else."""
