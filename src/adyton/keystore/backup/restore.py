"""Restore a home from a backup. The backup is untrusted: everything in it is verified before use."""

from __future__ import annotations

import shlex
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adyton.atomic_file import sync_directory, sync_file_system, write_private_file
from adyton.capped_read import read_prefix
from adyton.errors import FileFormatError, IntegrityError, StorageFailed, UsageError
from adyton.keystore.backup.archive import unpack
from adyton.keystore.backup.header import CONTENT_PATH, HEAD_BYTES, VERSION, parse_header
from adyton.keystore.backup.key import key_from_passphrase
from adyton.keystore.backup.sealed import Part
from adyton.keystore.backup.shares import Share, check_shares, join_key
from adyton.keystore.backup.tables import check_shared, drop_tables, load_tables
from adyton.keystore.config import Config
from adyton.keystore.home import Home
from adyton.os_failure import storage_failed
from adyton.pfile.file import ProtectedFile
from adyton.pfile.stream import ProtectedStream

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from adyton.values import Key128


def read_header(path: Path) -> dict[str, Any]:
    """Read a backup's header. Raises FileFormatError where the file is no backup."""
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
    """Restore a home from a backup: unpack and verify it beside `home`, then rename it into place.

    A backup is untrusted. So its master key command runs only where `master_command` is the same command. A local file
    that it names as its store is opened only where `store_url` names it too.

    With `join` the store is not restored. The database holds it already, for another key server. `verify` opens the
    restored home and raises where it finds a fault. Then nothing is left behind.
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
            check_shared(url, str(header.get("store")))
        elif not url:
            (beside / "store.sqlite").replace(beside / "home" / "store.db")
        else:
            load_tables(beside / "store.sqlite", url)
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
            drop_tables(url)
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
    """Refuse a command or local store of the backup that the caller did not name. Raises UsageError."""
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
    """Whether a part of a backup is a plain file without holes (sparse regions)."""
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
        sealed = ProtectedFile.open(part, key, path=CONTENT_PATH, recover=False)
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
