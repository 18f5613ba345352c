"""Manifests of programs, by measurement. Each is checked against its measurement on every read and write."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

import sqlalchemy as sa

from adyton.errors import Error, StoreError
from adyton.keystore import schema
from adyton.keystore.audit import canonical
from adyton.keystore.clock import now_ms
from adyton.manifest.measure import combine, workload_measurement
from adyton.values import Digest, Measurement

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class Kept(NamedTuple):
    """A stored manifest. Its size is that of manifest and runtime parts together."""

    measurement: bytes
    size_bytes: int
    added_at_ms: int


class ManifestReader:
    """The manifests as of one moment."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def get(self, measurement: Measurement) -> tuple[bytes, dict[str, str]] | None:
        """The manifest and runtime parts that give a measurement, if they are stored.

        Raises StoreError where they do not give it.
        """
        row = self._connection.execute(
            sa.select(schema.manifests).where(schema.manifests.c.measurement == measurement.raw)
        ).one_or_none()
        return None if row is None else measured(measurement, bytes(row.manifest), row.runtime_parts)

    def check_every(self) -> None:
        """Check that each manifest gives its measurement. Raises StoreError."""
        for row in self._connection.execute(sa.select(schema.manifests)):
            measured(row.measurement, bytes(row.manifest), row.runtime_parts)


class ManifestWriter(ManifestReader):
    """The manifests while a transaction has the record's lock."""

    def keep(self, measurement: Measurement, manifest: bytes, runtime_parts: Mapping[str, str]) -> None:
        """Store the manifest and runtime parts of a measurement. Raises StoreError where they do not give it."""
        parts = canonical(runtime_parts)
        measured(measurement, manifest, parts)
        known = self._connection.execute(
            sa.select(schema.manifests.c.added_at).where(schema.manifests.c.measurement == measurement.raw)
        ).one_or_none()
        if known is None:
            self._connection.execute(
                sa.insert(schema.manifests).values(
                    measurement=measurement.raw,
                    manifest=manifest,
                    runtime_parts=parts,
                    added_at=now_ms(),
                )
            )

    def sizes(self) -> list[Kept]:
        """All stored manifests with their sizes."""
        table = schema.manifests
        size = sa.func.length(table.c.manifest) + sa.func.length(table.c.runtime_parts)
        rows = self._connection.execute(sa.select(table.c.measurement, size, table.c.added_at)).all()
        return [Kept(bytes(row[0]), int(row[1]), int(row[2])) for row in rows]

    def forget(self, measurements: Iterable[bytes]) -> None:
        """Remove the manifests of these measurements."""
        for measurement in measurements:
            self._connection.execute(sa.delete(schema.manifests).where(schema.manifests.c.measurement == measurement))


def too_much(kept: Iterable[Kept], most_bytes: int, *, approved: set[bytes], waiting: set[bytes]) -> list[bytes]:
    """The measurements whose manifests must go, so that those of unapproved programs fit into `most_bytes`.

    The oldest go first, and those of programs that wait for the owner last. Approved ones stay and do not count.
    """
    shown = sorted(
        (item.measurement in waiting, item.added_at_ms, item.measurement, item.size_bytes)
        for item in kept
        if item.measurement not in approved
    )
    excess = sum(size_bytes for *_, size_bytes in shown) - most_bytes
    going: list[bytes] = []
    for _, _, measurement, size_bytes in shown:
        if excess <= 0:
            break
        going.append(measurement)
        excess -= size_bytes
    return going


def measured(measurement: Measurement | bytes, manifest: bytes, written_parts: str) -> tuple[bytes, dict[str, str]]:
    """Manifest and runtime parts, once it is checked that they give this measurement."""
    try:
        parts = {str(name): str(value) for name, value in json.loads(written_parts).items()}
        found = workload_measurement(manifest, combine({name: Digest.from_hex(text) for name, text in parts.items()}))
    except (ValueError, AttributeError, RecursionError, Error):
        found = None
    raw = measurement if isinstance(measurement, bytes) else measurement.raw
    if found is None or found.raw != raw:
        raise StoreError(
            "the manifest that is kept for a measurement is another program's",
            check="measurement of the kept manifest",
            expected=raw.hex(),
            seen="parts that are no hashes" if found is None else found.hex(),
            remedy="something other than Adyton wrote to the database: do not approve what it shows; restore the newest"
            " backup (adyton restore), and look for who did",
        )
    return manifest, parts
