"""The services that serve collateral, and a store's list of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from adyton.collateral.folder import locked, read_json, write_json
from adyton.collateral.http_client import HTTPFetcher
from adyton.collateral.kds import KDSClient
from adyton.collateral.pcs import INTEL_PCS, PCSClient

if TYPE_CHECKING:
    from collections.abc import Iterable

    from adyton.collateral.documents import Channel

MAX_SOURCES: Final = 16


@dataclass(frozen=True, slots=True)
class Source:
    """A service to ask: its address, and what its TLS certificate is held against.

    That is a CA file beside the system's CAs, or the SHA-256 (hex digits) of the one certificate that is accepted.
    """

    url: str
    ca_file: str | None = None
    pin: str | None = None

    def client(self, channel: Channel, api_key: str | None = None) -> PCSClient:
        """A client of Intel's service, of a PCCS, or of a simulated platform."""
        return PCSClient(self.url, self.fetcher(), channel, api_key)

    def kds_client(self) -> KDSClient:
        """A client of AMD's key distribution service."""
        return KDSClient(self.url, self.fetcher())

    def fetcher(self) -> HTTPFetcher:
        """The HTTP client for this source."""
        return HTTPFetcher(ca_file=Path(self.ca_file) if self.ca_file else None, pin=self.pin)


@dataclass(frozen=True, slots=True)
class SourceList:
    """A store's sources, in the order in which they are asked (`sources.json`)."""

    directory: Path

    def known(self) -> tuple[Source, ...]:
        """The listed sources, or Intel's service where the list is empty."""
        return self._remembered() or (Source(INTEL_PCS),)

    def remember(self, sources: Iterable[Source]) -> None:
        """Put these sources first in the list; each replaces what was remembered of its address."""
        with locked(self.directory):
            merged: dict[str, Source] = {}
            for source in (*sources, *self._remembered()):
                merged.setdefault(source.url, source)
            write_json(self._path, [_row(source) for source in list(merged.values())[:MAX_SOURCES]])

    def named(self, source: Source) -> Source:
        """A source as the user names it; named by its address alone, with the certificate that was remembered."""
        if source.ca_file is None and source.pin is None:
            return next((known for known in self._remembered() if known.url == source.url), source)
        return source

    @property
    def _path(self) -> Path:
        return self.directory / "sources.json"

    def _remembered(self) -> tuple[Source, ...]:
        rows = read_json(self._path, [])
        return tuple(
            Source(str(row["url"]), row.get("ca_file"), None if row.get("pin") is None else str(row["pin"]))
            for row in (rows if isinstance(rows, list) else [])
            if isinstance(row, dict) and "url" in row
        )


def _row(source: Source) -> dict[str, str | None]:
    found = {"url": source.url, "ca_file": source.ca_file}
    return found if source.pin is None else {**found, "pin": source.pin}
