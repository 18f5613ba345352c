"""Keys and secrets, each wrapped under the store's data key. The audit record says which versions exist."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from adyton.errors import StoreError, UnknownKey, UsageError
from adyton.keystore import schema
from adyton.keystore.audit_facts import DATA_KEY_ROTATED, KEY_ADDED, MASTER_KEY_ROTATED
from adyton.keystore.clock import moment, now_ms
from adyton.keystore.database import LOOK_FOR_WRITER
from adyton.keystore.names import check_name
from adyton.keystore.wrapping import WrappingKey
from adyton.values import KEY_BYTES, Key128

if TYPE_CHECKING:
    from datetime import datetime

    from adyton.keystore.current_facts import RecordedFacts
    from adyton.keystore.keyring import Keyring
    from adyton.keystore.tables.record import RecordWriter

KEY: Final = "key"
SECRET: Final = "secret"  # noqa: S105 - a kind of entry, not a secret
"""Kinds: a key of protected files (16 bytes), or a secret of any other kind."""

MAX_SECRET_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """The public facts of a key: its name, newest version, kind and age. Never its value."""

    name: str
    kind: str
    version: int
    created_at: datetime


class KeyReader:
    """The keys and secrets as of one moment."""

    def __init__(self, connection: sa.Connection, keyring: Keyring, facts: RecordedFacts) -> None:
        self._connection = connection
        self._keyring = keyring
        self._facts = facts

    def newest(self) -> list[KeyInfo]:
        """The newest version of every key and secret, by name. Raises StoreError where one is missing or extra.

        The audit record says which versions exist.
        """
        names = self._facts.key_names()
        found = {name: self._facts.versions(name) for name in names}
        by_record = {(name, item.version, item.kind) for name, versions in found.items() for item in versions}
        query = sa.select(schema.keys.c.name, schema.keys.c.version, schema.keys.c.kind)
        there = {(row.name, row.version, row.kind) for row in self._connection.execute(query)}
        for name, version, kind in sorted(by_record ^ there):
            missing = (name, version, kind) in by_record
            raise _key_not_as_recorded(name, f"{kind}, version {version}", missing=missing)
        newest = [(name, versions[-1]) for name, versions in found.items()]
        return [KeyInfo(name, item.kind, item.version, moment(item.at_ms)) for name, item in newest]

    def has(self, name: str) -> bool:
        """Whether a key or secret of this name exists."""
        return bool(self._facts.versions(name))

    def reveal(self, name: str, *, version: int | None = None) -> tuple[KeyInfo, bytes]:
        """Unwrap a key or secret (by default its newest version). Raises UnknownKey."""
        return self._opened(self._key_row(name, version))

    def _key_row(self, name: str, version: int | None) -> Any:
        versions = self._facts.versions(name)
        recorded = next((item for item in reversed(versions) if version in (None, item.version)), None)
        if recorded is None and versions:
            raise UnknownKey(
                f"key {name!r} has no version {version}",
                check="version of the key",
                expected=f"1 to {versions[-1].version}",
                seen=version,
                remedy="`adyton key list` shows the newest version of each key",
            )
        if recorded is None:
            known = ", ".join(self._facts.key_names()) or "none"
            raise UnknownKey(
                f"no key {name!r}",
                check="name of the key",
                expected=f"one of: {known}",
                seen=name,
                remedy=f"make it with: adyton key new {name}",
            )
        query = sa.select(schema.keys).where(schema.keys.c.name == name, schema.keys.c.version == recorded.version)
        row = self._connection.execute(query).one_or_none()
        if row is None or row.kind != recorded.kind:
            raise _key_not_as_recorded(name, f"{recorded.kind}, version {recorded.version}", missing=True)
        self._check_data_key(name, row.data_key)
        return row

    def _check_data_key(self, name: str, version: int) -> None:
        newest = self._facts.data_key()
        if version != newest:
            raise StoreError(
                f"key {name!r} is wrapped as it was before the store's data key was rotated",
                check=f"data key of key {name!r}",
                expected=f"data key {newest}, by the audit record",
                seen=f"data key {version}",
                remedy=LOOK_FOR_WRITER,
            )

    def _opened(self, row: Any) -> tuple[KeyInfo, bytes]:
        data_key = self._data_key(row.data_key)
        bound = self._keyring.key_binding(row.name, row.version, row.kind)
        value = data_key.unwrap(bytes(row.wrapped), bound, f"key {row.name!r}")
        at_ms = next(item.at_ms for item in self._facts.versions(row.name) if item.version == row.version)
        return KeyInfo(row.name, row.kind, row.version, moment(at_ms)), value

    def load_key(self, name: str, *, version: int | None = None) -> Key128:
        """A protected-file key by name. Raises UnknownKey, also where the name is a secret of another kind."""
        info, value = self.reveal(name, version=version)
        if info.kind != KEY:
            raise UnknownKey(f"{name!r} is a secret, not a key of protected files", check="kind", seen=info.kind)
        return Key128(value)

    def _data_key(self, version: int) -> WrappingKey:
        cached = self._keyring.data_keys.get(version)
        if cached is None:
            row = self._connection.execute(
                sa.select(schema.data_keys.c.wrapped).where(schema.data_keys.c.version == version)
            ).one_or_none()
            if row is None:
                raise StoreError(
                    f"data key {version} is missing from the store",
                    check="data keys of the store",
                    expected=f"data key {version}",
                    seen="no such row",
                    remedy=LOOK_FOR_WRITER,
                )
            cached = self._keyring.data_keys[version] = self._keyring.open_data_key(version, bytes(row.wrapped))
        return cached

    def hold_against_record(self) -> None:
        """Check that the database has exactly the versions in the record, and unwrap them all. Raises StoreError."""
        for name in [key.name for key in self.newest()]:
            for item in self._facts.versions(name):
                self._opened(self._key_row(name, item.version))


class KeyWriter(KeyReader):
    """The keys and secrets while a transaction has the record's lock."""

    def __init__(self, connection: sa.Connection, keyring: Keyring, record: RecordWriter) -> None:
        super().__init__(connection, keyring, record.facts)
        self._record = record
        self._made_data_keys: dict[int, WrappingKey] = {}
        """Data keys that this transaction made, by version. Others see them after the commit."""
        self.known_rows: dict[str, Any] = {}
        """Rows that earlier transactions read, by name. Valid until a key or an approval changes."""

    def reveal(self, name: str, *, version: int | None = None) -> tuple[KeyInfo, bytes]:
        """As for a reader, with a cache of wrapped values that lasts until a key or an approval changes."""
        if version is not None or self._facts.has_changes:
            return super().reveal(name, version=version)
        row = self.known_rows.get(name)
        if row is None:
            row = self.known_rows[name] = self._key_row(name, None)
        return self._opened(row)

    def add(self, name: str, value: bytes, kind: str, *, actor: str, new_version: bool = False) -> KeyInfo:
        """Store a key or secret under a new name, or (`new_version`) as the newest version of an existing one."""
        check_name(name)
        if kind == KEY and len(value) != KEY_BYTES:
            raise UsageError(f"a key has {KEY_BYTES} bytes, got {len(value)}", check="length of the key")
        if not 1 <= len(value) <= MAX_SECRET_BYTES:
            raise UsageError(
                f"a secret has 1 to {MAX_SECRET_BYTES} bytes, got {len(value)}", check="length of the secret"
            )
        known = self._facts.versions(name)
        if bool(known) != new_version:
            raise UsageError(
                f"key {name!r} {'exists already' if known else 'does not exist'}",
                check="name of the key",
                expected="a new name" if known else "an existing key",
                seen=name,
                remedy=f"choose another name, or make a new version of it: adyton key rotate {name}"
                if known
                else f"make it with: adyton key new {name}",
            )
        if any(item.kind != kind for item in known):
            raise UsageError(f"{name!r} is a {known[0].kind}", check="kind", expected=known[0].kind, seen=kind)
        version = 1 + max((item.version for item in known), default=0)
        data_key = self._facts.data_key()
        wrapped = self._data_key(data_key).wrap(value, self._keyring.key_binding(name, version, kind))
        at = now_ms()
        self._connection.execute(
            sa.insert(schema.keys).values(
                name=name, version=version, kind=kind, data_key=data_key, wrapped=wrapped, created_at=at
            )
        )
        self._record.append(KEY_ADDED, name, {"key": name, "version": version, "kind": kind, "actor": actor[:128]}, at)
        return KeyInfo(name, kind, version, moment(at))

    def _data_key(self, version: int) -> WrappingKey:
        own = self._made_data_keys.get(version)
        return super()._data_key(version) if own is None else own

    def current_master(self) -> WrappingKey:
        """The master key that opens the store now, also after a rotation by another process. Raises StoreError."""
        state = sa.select(schema.meta.c.value).where(schema.meta.c.name == "state")
        return self._keyring.current_master(bytes(self._connection.execute(state).scalar_one()))

    def rotate_data_key(self, *, actor: str) -> int:
        """Make a new data key and wrap every key and secret again under it. Returns its version."""
        self.newest()  # raises where a key is missing, or is one too many: it would be wrapped as if it were ours
        version = self._facts.data_key() + 1
        data_key = self._made_data_keys[version] = WrappingKey.generate()
        wrapped = self.current_master().wrap(data_key.reveal(), self._keyring.data_key_binding(version))
        at = now_ms()
        self._connection.execute(sa.insert(schema.data_keys).values(version=version, wrapped=wrapped, created_at=at))
        for row in self._connection.execute(sa.select(schema.keys)).all():
            self._check_data_key(row.name, row.data_key)  # else what an older, leaked one wraps would count again
            bound = self._keyring.key_binding(row.name, row.version, row.kind)
            value = self._data_key(row.data_key).unwrap(bytes(row.wrapped), bound, f"key {row.name!r}")
            self._connection.execute(
                sa.update(schema.keys)
                .where(schema.keys.c.name == row.name, schema.keys.c.version == row.version)
                .values(wrapped=data_key.wrap(value, bound), data_key=version)
            )
        self._connection.execute(sa.delete(schema.data_keys).where(schema.data_keys.c.version < version))
        self._record.append(DATA_KEY_ROTATED, "", {"version": version, "actor": actor[:128]}, at)
        return version

    def rewrap(self, new_master: WrappingKey, *, actor: str) -> None:
        """Wrap the data keys under another master key. The caller then replaces the old one."""
        version = self._facts.data_key()
        wrapped = new_master.wrap(self._data_key(version).reveal(), self._keyring.data_key_binding(version))
        table = schema.data_keys
        self._connection.execute(sa.update(table).where(table.c.version == version).values(wrapped=wrapped))
        self._connection.execute(sa.delete(table).where(table.c.version != version))
        state = self._keyring.state_under(new_master)
        self._connection.execute(sa.update(schema.meta).where(schema.meta.c.name == "state").values(value=state))
        self._record.append(MASTER_KEY_ROTATED, "", {"actor": actor[:128]}, now_ms())


def _key_not_as_recorded(name: str, what: str, *, missing: bool) -> StoreError:
    return StoreError(
        f"key {name!r} is not as it was left: {what} {'is missing' if missing else 'was never made'}",
        check=f"versions of key {name!r} against the audit record",
        expected=f"{what}, as the record says" if missing else "only what the record says",
        seen="no such row" if missing else what,
        remedy=LOOK_FOR_WRITER,
    )
