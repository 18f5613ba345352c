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
    """A service: its address, and the CA file for its TLS certificate, if it needs one."""

    url: str
    ca_file: str | None = None

    def client(self, channel: Channel, api_key: str | None = None) -> PCSClient:
        """A client of Intel's service, of a PCCS, or of a simulated platform."""
        return PCSClient(self.url, self._fetcher(), channel, api_key)

    def kds_client(self) -> KDSClient:
        """A client of AMD's key distribution service."""
        return KDSClient(self.url, self._fetcher())

    def _fetcher(self) -> HTTPFetcher:
        return HTTPFetcher(ca_file=Path(self.ca_file) if self.ca_file else None)


@dataclass(frozen=True, slots=True)
class SourceList:
    """A store's sources, in the order in which they are asked (`sources.json`)."""

    directory: Path

    def known(self) -> tuple[Source, ...]:
        """The listed sources, or Intel's service where the list is empty."""
        return self._remembered() or (Source(INTEL_PCS),)

    def remember(self, sources: Iterable[Source]) -> None:
        """Put these sources first in the list."""
        with locked(self.directory):
            merged = list(dict.fromkeys([*sources, *self._remembered()]))[:MAX_SOURCES]
            write_json(self._path, [{"url": source.url, "ca_file": source.ca_file} for source in merged])

    @property
    def _path(self) -> Path:
        return self.directory / "sources.json"

    def _remembered(self) -> tuple[Source, ...]:
        rows = read_json(self._path, [])
        return tuple(
            Source(str(row["url"]), row.get("ca_file"))
            for row in (rows if isinstance(rows, list) else [])
            if isinstance(row, dict) and "url" in row
        )
