"""Back-off after failed fetches, remembered in a process and in the store's folder."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Generic, TypeVar
from urllib.parse import urlsplit

from adyton.collateral.folder import locked, read_json, write_json
from adyton.collateral.stored_time import parse_stamp
from adyton.dates import timestamp
from adyton.errors import FetchFailed

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator
    from pathlib import Path

NEGATIVE_S: Final = 300.0
"""How long a source is not asked again for a document that it did not have."""

BUSY_S: Final = 60.0
"""How long a busy source is not asked again, where it does not say how long."""

MAX_REMEMBERED: Final = 256
_MAX_REASON_CHARACTERS: Final = 300

Key = TypeVar("Key", bound="Hashable")
Reason = TypeVar("Reason")


@dataclass(frozen=True, slots=True)
class Wait(Generic[Reason]):
    """The end of a back-off (seconds, on the caller's clock), and its reason."""

    until_s: float
    reason: Reason


class Backoff(Generic[Key, Reason]):
    """Back-offs by key. At most `limit` keys are kept, and the oldest go first. For one thread."""

    def __init__(self, limit: int = MAX_REMEMBERED) -> None:
        self._limit = limit
        self._waits: dict[Key, Wait[Reason]] = {}

    def get(self, key: Key, now_s: float) -> Wait[Reason] | None:
        """The back-off of this key. None where it may be tried now."""
        wait = self._waits.get(key)
        return wait if wait is not None and now_s < wait.until_s else None

    def note(self, key: Key, until_s: float, reason: Reason, now_s: float) -> None:
        """Back off this key until `until_s`. This replaces an earlier back-off."""
        self._waits.pop(key, None)
        if until_s <= now_s:
            return
        self._waits[key] = Wait(until_s, reason)
        if len(self._waits) > self._limit:
            kept = list(self.items(now_s))[-self._limit :]
            self._waits = dict(kept)

    def items(self, now_s: float) -> Iterator[tuple[Key, Wait[Reason]]]:
        """All back-offs that still last, the oldest first."""
        return (item for item in self._waits.items() if now_s < item[1].until_s)


@dataclass(frozen=True, slots=True)
class SourceBackoff:
    """Recent refusals of a store's sources, kept in its `negative.json` for every process that uses the store.

    A busy source is asked for nothing. A source that did not have a document is asked for other documents.
    """

    directory: Path

    def check(self, url: str, name: str | None, now: datetime) -> FetchFailed | None:
        """Why this source is not asked now: it is busy, or it did not have the document `name`.

        None where it may be asked.
        """
        noted = self._load(now)
        for key in (url, f"{url} {name}" if name else None):
            wait = None if key is None else noted.get(key, now.timestamp())
            if wait is not None:
                return _left_alone(url, wait, now)
        return None

    def note(self, url: str, name: str, error: FetchFailed, now: datetime) -> None:
        """Remember a refusal: a document that is not there for minutes, a busy source for as long as it asks.

        Every answer that asks to wait (`Retry-After`) is one of a busy source, but for a document that is not there.
        """
        if error.status in (404, 410):
            key, seconds = f"{url} {name}", NEGATIVE_S
        elif error.status in (429, 503) or (error.status is not None and error.retry_after_s is not None):
            key, seconds = url, error.retry_after_s if error.retry_after_s is not None else BUSY_S
        else:
            return
        with locked(self.directory):
            noted = self._load(now)
            noted.note(key, now.timestamp() + seconds, error.message, now.timestamp())
            rows = {
                old: {"until": timestamp(_moment(wait)), "why": wait.reason}
                for old, wait in noted.items(now.timestamp())
            }
            write_json(self._path, rows)

    @property
    def _path(self) -> Path:
        return self.directory / "negative.json"

    def _load(self, now: datetime) -> Backoff[str, str]:
        found: Backoff[str, str] = Backoff()
        rows = read_json(self._path, {})
        for key, row in rows.items() if isinstance(rows, dict) else ():
            until = parse_stamp(row.get("until")) if isinstance(row, dict) else None
            if until is not None:
                found.note(key, until.timestamp(), str(row.get("why")), now.timestamp())
        return found


def _moment(wait: Wait[str]) -> datetime:
    return datetime.fromtimestamp(wait.until_s, UTC)


def _left_alone(url: str, wait: Wait[str], now: datetime) -> FetchFailed:
    until = _moment(wait)
    return FetchFailed(
        f"{urlsplit(url).netloc} is left alone until {until:%Y-%m-%d %H:%M:%S} UTC: "
        f"{wait.reason[:_MAX_REASON_CHARACTERS]}",
        check="source in back-off",
        expected=f"not before {timestamp(until)}",
        seen=timestamp(now),
        remedy="wait, or name another source",
        retry_after_s=wait.until_s - now.timestamp(),
    )
