"""Write a file whole or not at all: beside its place, made durable, then put there in one step.

Three rules hold for every function here:

- A reader sees the old file, or the whole new file. After a crash there is nothing else under the name.
- When the function returns, the content and the name outlast a power cut. The content reaches the disk before the
  name does. `sync=False` is for two callers: one of many files, which then calls `sync_file_system`, and a cache.
- A link at the target is replaced. It is never followed.

Some writers do not use this module. `pfile.commit` changes a protected file in place, with a log of its own. The
database, `vfs` and the journal of `storage.trees` have their own rules. `runtime` writes to memory that only its child
processes see. `keystore.backup.restore` fills a folder and renames the whole folder. An open file of
`storage.filesystem` (fsspec) lives as long as its user wants. `run --grants` takes its file name before it asks for any
key.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from adyton.errors import StorageFailed, TargetExists, UsageError
from adyton.os_failure import storage_failed

PART_SUFFIX: Final = ".adyton-part"
_NO_LINKS: Final = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_COPY_BYTES: Final = 1 << 20


def check_absent(target: Path) -> None:
    """Raise TargetExists if the target exists, also as a dangling link."""
    if os.path.lexists(target):
        raise _exists(target)


def check_no_link(folder: Path) -> None:
    """Raise UsageError where the target folder is a link: the files would land in another place."""
    if folder.is_symlink():
        raise UsageError(
            f"{folder} is a link, and what is written below it would land in {folder.readlink()}",
            check="folders of the target",
            expected="folders, no links",
            seen="a link",
            remedy="remove it, or choose another target",
        )


def _exists(target: Path) -> TargetExists:
    return TargetExists(
        f"{target} exists already and was left as it is",
        check="target",
        expected="absent",
        seen="present",
        remedy="choose another target, or say --force to replace it",
    )


def is_part(name: str) -> bool:
    """Whether a name is that of an unfinished target."""
    return name.startswith(".") and name.endswith(PART_SUFFIX)


def sync_directory(path: Path) -> None:
    """Make the entries of a directory durable. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file_system(directory: Path) -> None:
    """Make all files on the file system of `directory` durable, in one call. Raises StorageFailed."""
    import ctypes

    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
            if syncfs is None:
                os.sync()
            elif syncfs(fd) != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
        finally:
            os.close(fd)
    except OSError as error:
        raise storage_failed(error, str(directory), "making durable") from error


@contextmanager
def atomic_target(
    target: Path, *, force: bool, sync: bool = True, mode: int = 0o600, make_folders: bool = True
) -> Iterator[int]:
    """Yield a descriptor for the new content. At the end that file becomes the target. After an error it is gone.

    With `force` it replaces an existing file or link. `mode` is cut by the umask. `make_folders` makes the folders
    above the target where they are missing. Raises TargetExists (without `force`) and StorageFailed.
    """
    if not force:
        check_absent(target)
    # a name of fixed length: the target's own may already be as long as a name can be
    part = target.with_name(f".{secrets.token_hex(8)}{PART_SUFFIX}")
    try:
        if make_folders:
            target.parent.mkdir(parents=True, exist_ok=True)
        fd = _open_nameless(target.parent, mode)
        nameless = fd is not None
        if fd is None:
            fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    except OSError as error:
        raise storage_failed(error, str(target), "making") from error
    try:
        try:
            yield fd
            try:
                if sync:
                    os.fsync(fd)
                if not (nameless and _linked(fd, target)):
                    if nameless:
                        _name(fd, part, mode)
                    _put_in_place(part, target, force=force)
                if sync:
                    sync_directory(target.parent)
            except OSError as error:
                raise storage_failed(error, str(target), "putting in place") from error
        finally:
            os.close(fd)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()
        raise


def write_file(
    target: Path, raw: bytes, mode: int = 0o666, *, force: bool = True, sync: bool = True, make_folders: bool = True
) -> None:
    """Write a small file by `atomic_target`. Raises StorageFailed, and TargetExists without `force`."""
    with atomic_target(target, force=force, sync=sync, mode=mode, make_folders=make_folders) as fd:
        try:
            with open(fd, "wb", closefd=False) as file:
                file.write(raw)
        except OSError as error:
            raise storage_failed(error, str(target), "writing") from error


def write_private_file(path: Path, raw: bytes) -> None:
    """Write a new file of mode 0600 in a folder that exists. It never replaces another. Raises StorageFailed."""
    try:
        write_file(path, raw, 0o600, force=False, make_folders=False)
    except TargetExists as error:
        raise StorageFailed(
            f"cannot write {path}: it exists already",
            check="writing a new file",
            expected="a path that does not exist yet",
            seen="a file",
            remedy="choose another path, or remove what is there if it is not needed",
        ) from error


def replace_private_file(path: Path, raw: bytes) -> None:
    """Put new content in a private file's place. The new file has mode 0600. Raises StorageFailed."""
    write_file(path, raw, 0o600, make_folders=False)


def rename_private_file(path: Path, to: Path) -> None:
    """Rename a private file in its folder, and replace a file that has the new name. Durable on return."""
    try:
        path.replace(to)
        sync_directory(to.parent)
    except OSError as error:
        raise StorageFailed(
            f"cannot put {path.name} in the place of {to}: {error.strerror}",
            check="renaming a file",
            expected="a folder that can be written",
            seen=str(error.strerror),
            remedy=f"nothing is lost: it is still in {path}; mend the folder and try again",
        ) from error


def _open_nameless(folder: Path, mode: int) -> int | None:
    """Open a file without a name, which the kernel drops if this process is killed. None where that is not supported.

    It is opened with O_TMPFILE (open(2)), and gets its name through /proc at the end.
    """
    try:
        fd = os.open(folder, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, mode)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOSYS):
            return None
        raise
    if Path(f"/proc/self/fd/{fd}").exists():
        return fd
    os.close(fd)
    return None


def _linked(fd: int, path: Path) -> bool:
    """Name a file of `_open_nameless` in one step. False where the name is taken or hard links are not supported."""
    # with a directory's descriptor Python calls linkat(2), which follows the link of /proc to the file
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.link(f"/proc/self/fd/{fd}", path.name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=True)
    except OSError as error:
        if error.errno == errno.EEXIST or error.errno in _NO_LINKS:
            return False
        raise
    finally:
        os.close(folder)
    return True


def _name(fd: int, path: Path, mode: int) -> None:
    """Name a file of `_open_nameless`. Where the file system has no hard links, a copy of it gets the name."""
    if not _linked(fd, path):
        import shutil

        copy = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
        with os.fdopen(fd, "rb", closefd=False) as source, os.fdopen(copy, "wb") as target:
            source.seek(0)
            shutil.copyfileobj(source, target, _COPY_BYTES)
            target.flush()
            os.fsync(copy)


def _put_in_place(part: Path, target: Path, *, force: bool) -> None:
    if not force:
        try:
            os.link(part, target, follow_symlinks=False)
        except FileExistsError as error:
            raise _exists(target) from error
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            check_absent(target)  # no hard links there: look, then rename
        else:
            part.unlink()
            return
    kind = target.lstat().st_mode if os.path.lexists(target) else stat.S_IFREG
    if stat.S_ISDIR(kind):
        raise StorageFailed(f"{target} is a directory", check="target", expected="a file", seen="a directory")
    if not stat.S_ISREG(kind) and not stat.S_ISLNK(kind):
        raise StorageFailed(
            f"{target} is a device, a pipe or a socket", check="target", expected="a file", seen="something else"
        )
    part.replace(target)
