"""The one error tree of Adyton; every leaf owns one exit code, never reused.

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

`Unavailable` means *could not check*: it is never a parent or a child of a verdict.
Only three edges translate an `Error`: the command line to an exit code, the key
server to a status, the file system to an errno.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence


class Error(Exception):
    """Anything that Adyton refuses or fails at; says what was checked, expected, seen, and what to do."""

    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        message: str,
        *,
        check: str | None = None,
        expected: object = None,
        seen: object = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.check = check
        self.expected = None if expected is None else str(expected)
        self.seen = None if seen is None else str(seen)
        self.remedy = remedy

    def details(self) -> dict[str, str]:
        """The refusal as data: `error`, `message`, and whichever of check, expected, seen, remedy are known."""
        found = {
            "check": self.check,
            "expected": self.expected,
            "seen": self.seen,
            "remedy": self.remedy,
        }
        return {
            "error": type(self).__name__,
            "message": self.message,
            **{name: text for name, text in found.items() if text is not None},
        }


class UsageError(Error):
    """The command was given arguments that cannot be meant."""

    exit_code = 2


class ManifestError(Error):
    """The manifest, its template, or what it lists is wrong."""

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
    """A protected file cannot be read or written."""

    exit_code = 80


class NotProtectedFile(FileFormatError):
    """The bytes are not a protected file at all."""

    exit_code = 81


class UnsupportedVersion(FileFormatError):
    """A protected file of a format version that is not known."""

    exit_code = 82


class IntegrityError(FileFormatError):
    """The key is wrong, or the file was altered; no plaintext is released."""

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


class Reason(Protocol):
    """A check that failed, as data; `adyton.attest.checks.Check` is one."""

    @property
    def name(self) -> str:
        """Which check."""

    @property
    def remedy(self) -> str | None:
        """What repairs it."""

    def to_dict(self) -> dict[str, str | bool]:
        """Name, expected, seen, ok and remedy."""


class AppraisalFailed(EvidenceError):
    """The evidence is genuine, and the policy does not accept it; `reasons` are all the checks that failed."""

    exit_code = 95

    def __init__(
        self,
        message: str,
        *,
        check: str | None = None,
        expected: object = None,
        seen: object = None,
        remedy: str | None = None,
        reasons: Sequence[Reason] = (),
        checks: Sequence[Reason] = (),
    ) -> None:
        super().__init__(message, check=check, expected=expected, seen=seen, remedy=remedy)
        self.reasons = tuple(reasons)
        self.checks = tuple(checks)


class Mismatch(EvidenceError):
    """Parts of the evidence, or evidence and collateral, do not belong together."""

    exit_code = 96


class KeyReleaseError(Error):
    """A key was not released."""

    exit_code = 100


class Denied(KeyReleaseError):
    """The key server refused the request."""

    exit_code = 101


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
    """The key store cannot be opened, or refuses what was asked of it."""

    exit_code = 105


class AuditError(KeyReleaseError):
    """The audit record was altered or cut."""

    exit_code = 106


class Unavailable(Error):
    """It could not be checked: nothing is said about whether it is good."""

    exit_code = 110

    for_strangers: bool = False
    """Whether its text was made for whoever asked over the network; all other text is the owner's."""


class FetchFailed(Unavailable):
    """Something that lives elsewhere could not be fetched."""

    exit_code = 111

    status: int | None = None
    """The HTTP status that refused it, where one did."""
    retry_after_s: float | None = None
    """How long the service asked to be left alone."""


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
    """The program's files could not be laid out."""

    exit_code = 121


class SandboxFailed(RunError):
    """The sandbox could not be made."""

    exit_code = 122


class ScriptFailed(RunError):
    """The program itself ended with an error; its own exit code is passed on."""

    def __init__(self, message: str, *, status: int, remedy: str | None = None) -> None:
        super().__init__(message, check="exit status of the program", expected=0, seen=status, remedy=remedy)
        self.status = status
