"""The key of a backup in shares. Any N of M give it back, fewer reveal nothing, and a forged share is found.

Shamir's scheme alone accepts any bytes as a share and then gives another key. The backup would seem damaged, and nobody
could say which share was wrong. So the backup's header lists the hash of each share, and each share carries the hash of
that list (its commitment). Shares of one backup agree on the list, and the list shows which share was forged.

::

    hash of share k = SHA-256( "adyton recovery share 2\\0" ‖ "BACKUP|k|NEEDED|TOTAL|" ‖ the share's 16 bytes )
    commitment      = SHA-256( "adyton recovery shares 2\\0" ‖ hash of share 1 ‖ … ‖ hash of share M )

A share is 16 random bytes, so its hash reveals nothing about it.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from adyton.capped_read import read_private_file
from adyton.errors import IntegrityError, UsageError
from adyton.values import KEY_BYTES, Digest, Key128

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

MAX_SHARES: Final = 255
_SHARE_LABEL: Final = b"adyton recovery share 2\0"
_LIST_LABEL: Final = b"adyton recovery shares 2\0"
_TITLES: Final = {"adyton recovery share 1": False, "adyton recovery share 2": True}
"""First line of a share -> whether it carries a commitment. The older form has none."""


@dataclass(frozen=True, slots=True, repr=False)
class Share:
    """One of M shares of a backup's key. Any N of them open it."""

    backup: str
    number: int
    needed: int
    total: int
    raw: bytes
    commitment: str = ""
    """Hex. Empty in the older form."""

    def to_text(self) -> str:
        """The share as text to keep: a few lines. People retype only the lines with digits."""
        titles = {with_one: title for title, with_one in _TITLES.items()}
        lines = [
            titles[bool(self.commitment)],
            f"backup {self.backup}",
            f"share {self.number} of {self.total}, any {self.needed} open it",
            _grouped(self.raw.hex()),
            *([f"made with {_grouped(self.commitment)}"] if self.commitment else []),
            f"check {self._check()}",
        ]
        return "\n".join(lines) + "\n"

    def _check(self) -> str:
        text = f"{self.backup}|{self.number}|{self.needed}|{self.total}|{self.raw.hex()}"
        text += f"|{self.commitment}" if self.commitment else ""
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def sha256(self) -> str:
        """The hash of this share in the backup's header (hex)."""
        text = f"{self.backup}|{self.number}|{self.needed}|{self.total}|".encode()
        return hashlib.sha256(_SHARE_LABEL + text + self.raw).hexdigest()


def _grouped(digits: str) -> str:
    return " ".join(digits[at : at + 8] for at in range(0, len(digits), 8))


def parse_share(text: str) -> Share:
    """Parse the text of `Share.to_text`. Raises UsageError, also for a mistyped character."""
    lines = [line.strip() for line in text.strip().splitlines()]
    share: Share | None = None
    try:
        title, backup, numbers, value, *made_with, _check = lines
        words = numbers.replace(",", "").split()
        (commitment,) = made_with if _TITLES[title] else ("",)
        share = Share(
            backup.removeprefix("backup "),
            int(words[1]),
            int(words[5]),
            int(words[3]),
            bytes.fromhex(value),
            commitment.removeprefix("made with ").replace(" ", ""),
        )
        good = len(share.raw) == KEY_BYTES and bool(share.commitment) == _TITLES[title]
        good = good and 1 <= share.number <= share.total and 2 <= share.needed <= share.total <= MAX_SHARES
        good = good and share.to_text().split() == text.split()
    except (ValueError, IndexError, KeyError):
        good = False
    if not good or share is None:
        raise UsageError(
            "this is not a recovery share, or a character of it is mistyped",
            check="recovery share",
            expected="the lines that adyton backup wrote",
            seen=f"{len(lines)} lines",
        )
    return share


def read_share(path: Path) -> Share:
    """Read a share from a file."""
    return parse_share(read_private_file(path, "recovery share").decode("utf-8", "replace"))


def split_key(key: Key128, backup: str, needed: int, total: int) -> list[Share]:
    """Split a key so that any `needed` of `total` shares give it back (Shamir's scheme, from PyCryptodome)."""
    from Crypto.Protocol.SecretSharing import Shamir

    if not 2 <= needed <= total <= MAX_SHARES:
        raise UsageError(
            "impossible number of shares",
            check="--split",
            expected=f"N/M with 2 <= N <= M <= {MAX_SHARES}",
            seen=f"{needed}/{total}",
        )
    found = [Share(backup, number, needed, total, raw) for number, raw in Shamir.split(needed, total, key.reveal())]
    commitment = _commitment([share.sha256() for share in found])
    return [replace(share, commitment=commitment) for share in found]


def _commitment(hashes: Sequence[str]) -> str:
    return hashlib.sha256(_LIST_LABEL + b"".join(map(bytes.fromhex, hashes))).hexdigest()


def listed(shares: Sequence[Share]) -> dict[str, Any]:
    """The table of shares for a backup's header."""
    return {
        "needed": shares[0].needed,
        "total": shares[0].total,
        "sha256": [share.sha256() for share in shares],
    }


def check_shares(shares: Sequence[Share], backup: str, header: Mapping[str, Any]) -> None:
    """Compare shares with each other and with the list in the backup's header. A forged one is named.

    Raises UsageError for shares of another backup, IntegrityError for a forged share. Where all shares have the older
    form, and the header lists none, there is nothing to compare.
    """
    foreign = [share.number for share in shares if share.backup != backup]
    if foreign:
        raise UsageError(
            "a share belongs to another backup",
            check="recovery shares",
            expected=f"shares of {backup}",
            seen=f"share {foreign[0]} is of another",
        )
    hashes = header.get("sha256")
    if hashes is None and not any(share.commitment for share in shares):
        return
    if not isinstance(hashes, list) or not all(_is_hash(item) for item in hashes):
        hashes = []
    expected = _commitment(hashes)
    agree = [share for share in shares if hmac.compare_digest(share.commitment.encode(), expected.encode())]
    for share in agree:
        position = share.number - 1
        if not (0 <= position < len(hashes) and hmac.compare_digest(hashes[position], share.sha256())):
            raise IntegrityError(
                f"share {share.number} is not the one that was made with this backup",
                check=f"hash of recovery share {share.number}",
                expected="the hash in the backup's header",
                seen="another: it was forged, or is damaged",
                remedy="use another share in its place, and ask who gave this one",
            )
    if len(agree) != len(shares):
        wrong = [str(share.number) for share in shares if share not in agree]
        raise IntegrityError(
            "these shares, or the backup's header, were not made together",
            check="commitment of the recovery shares",
            expected="the hash of the list in the backup's header, in every share",
            seen=f"another in share {', '.join(wrong)}",
            remedy="either these shares are forged, or the header and all others are: compare the line 'made with' of"
            " all shares that there are, and take those, and that copy of the backup, on which their holders agree",
        )


def _is_hash(item: object) -> bool:
    try:
        return isinstance(item, str) and item == Digest.from_hex(item).hex()
    except UsageError:
        return False


def join_key(shares: Sequence[Share]) -> Key128:
    """Combine shares into the key. Raises UsageError where they are too few or do not belong together."""
    from Crypto.Protocol.SecretSharing import Shamir

    first = shares[0] if shares else None
    distinct = {share.number: share for share in shares}
    if first is None or len(distinct) < first.needed:
        raise UsageError(
            "there are too few shares",
            check="recovery shares",
            expected=f"{first.needed if first else 2} different shares",
            seen=f"{len(distinct)}",
        )
    if any((share.backup, share.needed, share.total) != (first.backup, first.needed, first.total) for share in shares):
        raise UsageError("these shares belong to different backups", check="recovery shares")
    chosen = [(share.number, share.raw) for share in list(distinct.values())[: first.needed]]
    return Key128(Shamir.combine(chosen))
