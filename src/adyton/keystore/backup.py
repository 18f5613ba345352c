"""Backup and restore: everything of an owner's home in one sealed file, whatever database it lives in.

::

    FILE (tar)
      header.json    version, id, store id, time, how to get the key: a passphrase, or N of M shares
      content        a protected file (docs/protected-file.md) that holds a tar of
                       home/…         configuration, certificates, keys, master key, collateral, a checkpoint
                       store.sqlite   all tables of the store, as of one moment; keys in it stay wrapped

The key of `content` is 16 bytes: derived from a passphrase by scrypt, or drawn and split by Shamir's scheme, so that
any N of M shares give it back and fewer say nothing about it (`keyserver.shares`).
"""

from __future__ import annotations

import io
import json
import secrets
import shlex
import shutil
import tarfile
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from adyton.atomic_file import atomic_target, sync_directory, sync_file_system, write_private_file
from adyton.capped_read import read_prefix
from adyton.errors import FileFormatError, IntegrityError, StorageFailed, StoreError, UsageError, VersionMismatch
from adyton.keystore import schema
from adyton.keystore.audit import sign_checkpoint
from adyton.keystore.backup_archive import STORE, pack, unpack
from adyton.keystore.backup_header import HEAD_BYTES, VERSION, parse_header
from adyton.keystore.backup_sealed import Part
from adyton.keystore.backup_shares import Share, check_shares, join_key, listed, split_key
from adyton.keystore.clock import now_ms
from adyton.keystore.database import AS_OF_ONE_MOMENT, make_engine, store_error
from adyton.keystore.home import Config, Home, audit_private_key
from adyton.keystore.wrapping import SCRYPT_N, SCRYPT_P, SCRYPT_R
from adyton.os_failure import storage_failed
from adyton.pfile.backing import OSFile
from adyton.pfile.file import ProtectedFile
from adyton.pfile.stream import ProtectedStream
from adyton.values import KEY_BYTES, Key128

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from adyton.keystore.audit import Checkpoint
    from adyton.keystore.store import Store

PIECE_ROWS: Final = 2000
_CONTENT_PATH: Final = "/adyton-backup"
_LEFT_OUT: Final = ("store.db", "store.db-wal", "store.db-shm", "checkpoint.json")
"""Files of the home that are as of another moment than the tables; what stands for them is added by itself."""


def key_from_passphrase(passphrase: bytes, salt: bytes) -> Key128:
    """A backup's key from a passphrase (scrypt, n=2^17, r=8, p=1)."""
    if len(passphrase) < 8:
        raise UsageError("the passphrase is too short", check="passphrase", expected="at least 8 bytes")
    return Key128(Scrypt(salt=salt, length=KEY_BYTES, n=SCRYPT_N, r=SCRYPT_R, p=SCRYPT_P).derive(passphrase))


def back_up(
    home: Home, store: Store, target: Path, *, passphrase: bytes | None, split: tuple[int, int] | None, actor: str
) -> list[Share]:
    """Write a sealed backup of the whole home to a new file; returns the shares where it was split.

    The store goes on serving meanwhile: the copy is as of one moment.
    """
    if (passphrase is None) == (split is None):
        raise UsageError("a backup is sealed with a passphrase, or split into shares", check="backup")
    if target.exists():
        raise StorageFailed(
            f"{target} exists already",
            check="the new backup",
            expected="a file that does not exist yet",
            seen=str(target),
            remedy="choose another name: a backup never replaces another",
        )
    backup_id = secrets.token_hex(6)
    header: dict[str, Any] = {"adyton_backup": VERSION, "id": backup_id, "store": store.id.hex(), "at_ms": now_ms()}
    shares: list[Share] = []
    if passphrase is not None:
        salt = secrets.token_bytes(16)
        key = key_from_passphrase(passphrase, salt)
        header["salt"] = salt.hex()
    else:
        needed, total = split or (0, 0)
        key = Key128.generate()
        shares = split_key(key, backup_id, needed, total)
        header["shares"] = listed(shares)
    with store.write() as change:
        change.record("backup", backup_id, {"backup": backup_id, "actor": actor[:128]}, now_ms())
    with (
        home.alone("making a backup"),  # the tables are read before the files: the master key must be that of both
        tempfile.TemporaryDirectory(prefix=".backup-", dir=target.parent) as name,
    ):
        folder = Path(name)
        _copy_tables(store.engine, folder / "store.sqlite")
        checkpoint = json.dumps(_checkpoint(home, store, folder / "store.sqlite").to_dict()).encode()
        sealed = ProtectedFile.create(OSFile(folder / "content", writable=True, create=True), key, path=_CONTENT_PATH)
        with ProtectedStream(sealed) as stream, _buffered_tar(stream) as inner:
            packed: set[str] = set()
            for path in sorted(home.path.rglob("*")):
                relative = path.relative_to(home.path)
                hidden = any(part.startswith(".") for part in relative.parts)
                if path.is_file() and not hidden and relative.name not in _LEFT_OUT:
                    pack(inner, f"home/{relative}", path, packed)
            _add_bytes(inner, "home/checkpoint.json", checkpoint)
            pack(inner, STORE, folder / "store.sqlite", packed)
        with (
            atomic_target(target, force=False) as fd,
            open(fd, "wb", closefd=False) as file,
            tarfile.open(fileobj=file, mode="w") as outer,
        ):
            _add_bytes(outer, "header.json", json.dumps(header, indent=1).encode())
            outer.add(folder / "content", "content")
    return shares


def _add_bytes(archive: tarfile.TarFile, name: str, raw: bytes) -> None:
    information = tarfile.TarInfo(name)
    information.size = len(raw)
    archive.addfile(information, io.BytesIO(raw))


def _checkpoint(home: Home, store: Store, path: Path) -> Checkpoint:
    """A checkpoint of the copy: the key server's own may be newer than it, and a restored store would seem too old.

    The copy is verified: who wrote to the database would else spoil every backup from then on, and nobody knew.
    """
    copy = sa.create_engine(f"sqlite:///{path}")
    try:
        head = store.verify_copy(copy)
    finally:
        copy.dispose()
    return sign_checkpoint(audit_private_key(home), store.id, head, now_ms())


def _buffered_tar(stream: ProtectedStream) -> tarfile.TarFile:
    """A tar of contents only: a file that is a link is written as the file that it leads to."""
    return tarfile.open(fileobj=stream, mode="w|", bufsize=1 << 20, dereference=True)


def _copy_tables(engine: sa.Engine, path: Path) -> None:
    """Copy every table, as of one moment, into a new SQLite file."""
    target = sa.create_engine(f"sqlite:///{path}")
    try:
        with (
            engine.connect().execution_options(**AS_OF_ONE_MOMENT[engine.dialect.name]) as source,
            source.begin(),
            target.connect() as sink,
            sink.begin(),
        ):
            schema.metadata.create_all(sink)
            for table in schema.metadata.sorted_tables:
                _copy_rows(source, sink, table)
    except sa.exc.SQLAlchemyError as error:
        raise store_error(error) from error
    finally:
        target.dispose()
    path.chmod(0o600)


def _copy_rows(source: sa.Connection, sink: sa.Connection, table: sa.Table) -> None:
    with source.execute(sa.select(table), execution_options={"yield_per": PIECE_ROWS}) as found:
        for piece in found.mappings().partitions(PIECE_ROWS):
            sink.execute(sa.insert(table), [dict(row) for row in piece])


def read_header(path: Path) -> dict[str, Any]:
    """What a backup says about itself; raises FileFormatError where it is none."""
    try:
        start = read_prefix(path, HEAD_BYTES)
    except OSError as error:
        raise StorageFailed(f"{path} cannot be read: {error.strerror}", check="backup") from error
    header = parse_header(start)
    if header is None:
        raise FileFormatError(
            f"{path} is no backup of version {VERSION}",
            check="backup",
            expected="a file that adyton backup made",
            seen="something else",
        )
    return header


def restore(
    path: Path,
    home: Path,
    *,
    passphrase: Callable[[], bytes] | None,
    shares: Sequence[Share] = (),
    store_url: str | None = None,
    master_command: Sequence[str] = (),
    join: bool = False,
    verify: Callable[[Home], None],
) -> Home:
    """Make a home from a backup: unpacked and verified beside it, then renamed into place.

    A backup may be another's making. So a command that prints its master key runs only where `master_command` is that
    very command, and a file on this machine that it names as its store is opened only where `store_url` names it.

    With `join` the store is not brought back but shared: the database holds it already, for another key server.
    `verify` opens the restored home and raises where something is wrong with it; nothing is left then.
    """
    header = read_header(path)
    if home.exists() and any(home.iterdir()):
        raise UsageError(
            f"{home} exists and is not empty",
            check="the restored home",
            expected="a folder that does not exist yet",
            seen=str(home),
            remedy="restore to another folder, or move this one away",
        )
    if "salt" in header:
        if passphrase is None:
            raise UsageError("this backup opens with a passphrase", check="restore", expected="a passphrase")
        key = key_from_passphrase(passphrase(), bytes.fromhex(header["salt"]))
    else:
        told = header.get("shares")
        check_shares(shares, str(header.get("id")), told if isinstance(told, dict) else {})
        key = join_key(shares)
    home.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=".restore-", dir=home.parent))
    loaded = False
    try:
        _unpack(path, beside, key)
        config = Home.open(beside / "home").config
        _check_named(config, store_url, master_command)
        url = config.store_url if store_url is None else store_url
        made = Home(beside / "home", _with_store(config, url))
        if join:
            _check_shared(url, str(header.get("store")))
        elif not url:
            (beside / "store.sqlite").replace(beside / "home" / "store.db")
        else:
            _load_tables(beside / "store.sqlite", url)
            loaded = True
        (beside / "home" / "config.toml").unlink()
        write_private_file(beside / "home" / "config.toml", made.config.to_toml().encode())
        (beside / "home" / "collateral").mkdir(exist_ok=True)
        (beside / "home").chmod(0o700)
        verify(made)
        sync_file_system(beside)
        if home.exists():
            home.rmdir()
        (beside / "home").replace(home)
    except BaseException as error:
        if loaded:
            _drop_tables(url)
        if isinstance(error, OSError):  # also where a hostile backup has a folder where a file should be
            raise StorageFailed(
                f"the home cannot be put together from the backup: {error.strerror}",
                check="restoring the home",
                expected=f"a folder that can be written, and the files of a home in {path}",
                seen=error.strerror,
                remedy="make room beside the new home, or take a backup that adyton backup made",
            ) from None
        raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    try:
        sync_directory(home.parent)
    except OSError as error:
        raise storage_failed(error, str(home), "making durable") from error
    return Home.open(home)


def _check_named(config: Config, store_url: str | None, master_command: Sequence[str]) -> None:
    """Refuse what a backup would have run or opened here and nobody named; raises UsageError."""
    if config.master_command and tuple(master_command) != config.master_command:
        shown = shlex.join(config.master_command)
        raise UsageError(
            "this backup's master key comes from a command, which runs only where you name it",
            check="command of the master key",
            expected=shown[:400],
            seen=shlex.join(master_command)[:400] or "none",
            remedy="where you know this command, name it: --master-command " + shlex.quote(shown)[:400],
        )
    if store_url is None and config.store_url.startswith("sqlite"):
        raise UsageError(
            "this backup names a file on this machine as its store",
            check="database of the backup",
            expected="a file that you name: --store-url, '' for the home's own",
            seen=config.store_url[:400],
            remedy="say where the store is to lie: --store-url ''",
        )


def _is_plain(member: tarfile.TarInfo, most_bytes: int) -> bool:
    """Whether a part of a backup is a file that lies there byte by byte, without gaps that a reader would fill."""
    plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and member.sparse is None
    return plain and member.size <= most_bytes


def _with_store(config: Config, url: str) -> Config:
    return Config(
        config.name, config.server_names, url, config.master, config.master_command, config.master_salt, config.limits
    )


def _unpack(path: Path, folder: Path, key: Key128) -> None:
    cut = FileFormatError(
        f"{path} is no whole backup",
        check="length of the backup",
        expected="all of what adyton backup wrote",
        seen="a part of it",
        remedy="copy it again, or take another backup",
    )
    try:
        with tarfile.open(path, "r:") as outer:
            member = next((item for item in outer if item.name == "content"), None)
        if member is None or not _is_plain(member, path.stat().st_size):
            raise cut
        part = Part(path, member.offset_data, member.size)  # nothing is written before its key is shown to be right
        sealed = ProtectedFile.open(part, key, path=_CONTENT_PATH, recover=False)
        with ProtectedStream(sealed) as stream, tarfile.open(fileobj=stream, mode="r|", bufsize=1 << 20) as inner:
            unpack(inner, folder)
    except IntegrityError as error:
        raise IntegrityError(
            "the backup does not open: the passphrase or the shares are wrong, or it was altered",
            check="authentication tag of the backup",
            expected="the key that it was sealed with, and no altered byte",
            seen=error.message,
            remedy="try the right passphrase or other shares; otherwise take another backup",
        ) from None
    except tarfile.TarError:
        raise cut from None


def _load_tables(path: Path, url: str) -> None:
    source, target = make_engine(f"sqlite:///{path}"), make_engine(url)
    try:
        with (
            source.connect() as reading,
            reading.begin(),
            target.connect().execution_options(adyton_write=True) as sink,
            sink.begin(),
        ):
            written = reading.execute(sa.select(schema.meta.c.value).where(schema.meta.c.name == "schema")).scalar_one()
            if bytes(written) != str(schema.SCHEMA_VERSION).encode():
                raise VersionMismatch(
                    "this backup was made by another version of Adyton, and goes to SQLite only",
                    check="schema of the backup",
                    expected=schema.SCHEMA_VERSION,
                    seen=bytes(written).decode("ascii", "replace")[:20],
                    remedy="restore it with --store-url '', make a backup of that, and restore that one here",
                )
            if sa.inspect(sink).has_table("meta"):
                raise StoreError(
                    "there is a store in that database already",
                    check="database",
                    expected="no store in it",
                    seen="one",
                    remedy="a machine that is to share it: adyton restore --join; otherwise name another database with"
                    " --store-url",
                )
            schema.metadata.create_all(sink)
            for table in schema.metadata.sorted_tables:
                _copy_rows(reading, sink, table)
    except sa.exc.SQLAlchemyError as error:
        raise store_error(error) from error
    finally:
        source.dispose()
        target.dispose()


def _drop_tables(url: str) -> None:
    """Take away what was just loaded, and did not verify: the database had no store before."""
    engine = make_engine(url)
    try:
        with suppress(sa.exc.SQLAlchemyError), engine.connect() as connection, connection.begin():
            schema.metadata.drop_all(connection)
    finally:
        engine.dispose()


def _check_shared(url: str, store_id: str) -> None:
    """Refuse to join a store that no other machine can have, or another one than the backup's."""
    if not url or sa.make_url(url).get_backend_name() != "postgresql":
        raise UsageError(
            "a store in SQLite belongs to one machine",
            check="--join",
            expected="a store in PostgreSQL, as postgresql+psycopg://…",
            seen=url.partition(":")[0] or "SQLite in the home",
            remedy="leave --join out to bring the store back, or move it to PostgreSQL: adyton restore --store-url",
        )
    engine = make_engine(url)
    try:
        with engine.connect() as connection:
            there = sa.inspect(connection).has_table("meta")
            query = sa.select(schema.meta.c.value).where(schema.meta.c.name == "id")
            seen = bytes(connection.execute(query).scalar_one()).hex() if there else "no store"
    except sa.exc.SQLAlchemyError as error:
        raise store_error(error) from error
    finally:
        engine.dispose()
    if seen != store_id:
        raise StoreError(
            "that database does not hold the store of this backup",
            check="--join",
            expected=store_id,
            seen=seen,
            remedy="name the database that the other key server uses (--store-url), or leave --join out to bring the"
            " store back",
        )
