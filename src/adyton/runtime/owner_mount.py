"""`adyton mount`: an encrypted folder as an ordinary one, on its owner's own machine.

The host is trusted here, so its modes and times are shown. The server keeps a lock on the encrypted folder until
everything is flushed. So a process that gets the lock after an unmount knows that it is.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import syslog
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from adyton.errors import MAX_ENCODED_BYTES, Error, MountFailed, NotProtectedFile, StorageFailed, WrongPath
from adyton.file_lock import file_lock
from adyton.pfile.backing import RECOVERY_SUFFIX
from adyton.pfile.paths import normalise
from adyton.runtime.host import allow_many_files, harden_process, lock_memory
from adyton.runtime.owners_mounts import OwnersMount, owners_mounts
from adyton.values import Key128
from adyton.vfs import syscalls

UNMOUNT_LIMIT_S: Final = 60.0
_STARTING_S: Final = 3.0
"""So long a run that is just being started may show the mount, before it lets go of it."""
_PROBED_FILES: Final = 1000
_SHOWN_HOLDERS: Final = 3
_MOUNTED: Final = b"+"
"""What the server in the background says once it is mounted; anything else is an error (`Error.to_bytes`)."""


def mount(
    source: Path,
    target: Path,
    key: Key128,
    *,
    sealed_as: str | None,
    foreground: bool,
    read_only: bool,
    event: Callable[[str], None],
) -> None:
    """Mount `source` at `target`. Returns once it is mounted, or in the foreground once it was unmounted again."""
    stored = normalise(os.fspath(source) if sealed_as is None else sealed_as)
    _check_target(target)
    _probe(source, key, stored, chosen=sealed_as is not None)
    if foreground:
        _serve(source, target, key, stored, read_only=read_only, event=event, ready=lambda: None)
        return
    report_out, report_in = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        _run_in_background(
            lambda ready: _serve(source, target, key, stored, read_only=read_only, event=_to_syslog, ready=ready),
            report_in,
        )
    os.close(report_in)
    with os.fdopen(report_out, "rb") as pipe:
        raw = pipe.read(MAX_ENCODED_BYTES + 1)
    if raw != _MOUNTED:
        os.waitpid(child, 0)
        raise Error.parse(raw, unknown=MountFailed) if raw else MountFailed("the file server ended without a word")


def _run_in_background(serve: Callable[[Callable[[], None]], None], report: int) -> None:
    status = 1
    try:
        os.setsid()

        def ready() -> None:
            os.write(report, _MOUNTED)
            os.close(report)
            nothing = os.open(os.devnull, os.O_RDWR)
            for fd in (0, 1, 2):
                os.dup2(nothing, fd)

        try:
            serve(ready)
            status = 0
        except Error as error:
            with contextlib.suppress(OSError):
                os.write(report, error.to_bytes())
            _to_syslog(error.message)
            status = error.exit_code
    finally:
        os._exit(status)


def _to_syslog(text: str) -> None:
    syslog.openlog("adyton-mount", syslog.LOG_PID, syslog.LOG_USER)
    syslog.syslog(syslog.LOG_ERR, text)


def _serve(
    source: Path,
    target: Path,
    key: Key128,
    stored: str,
    *,
    read_only: bool,
    event: Callable[[str], None],
    ready: Callable[[], None],
) -> None:
    from adyton.vfs import fuse
    from adyton.vfs.linked import LinkedTree
    from adyton.vfs.storage_watchdog import SYNC_S, StorageWatchdog

    harden_process()
    lock_memory()
    allow_many_files()
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    watchdog = StorageWatchdog(answer_s=SYNC_S)  # the owner's own disk, which may have to wake up
    tree = LinkedTree(
        os.fspath(source), key, sealed_as=stored, read_only=read_only, believe_host=True, event=event, watchdog=watchdog
    )
    options = ["default_permissions", "auto_unmount"] + (["ro"] if read_only else [])
    fuse.serve(
        {"": tree},
        os.fspath(target),
        event=event,
        watchdog=watchdog,
        options=options,
        ready=ready,
        name=os.path.abspath(source),
    )


def _check_target(target: Path) -> None:
    try:
        occupied = any(target.iterdir())
    except OSError as error:
        raise MountFailed(
            f"{target} cannot be mounted on: {error.strerror}",
            check="mount point",
            expected="an empty folder",
            seen=error.strerror,
            remedy=f"mkdir -p {target}" if error.errno == errno.ENOENT else f"fusermount3 -u {target}, if it is dead",
        ) from error
    if occupied:
        raise MountFailed(
            f"{target} is not empty",
            check="mount point",
            expected="an empty folder",
            seen="a folder with something in it",
        )


def _files(source: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(source):
        folders.sort()
        for name in sorted(names):
            if not name.endswith(RECOVERY_SUFFIX):
                yield Path(folder) / name


def _probe(source: Path, key: Key128, stored: str, *, chosen: bool) -> None:
    """Open the first protected file found, so that a wrong key or a moved folder is said now and not at every file."""
    from adyton.pfile.backing import OSFile
    from adyton.pfile.file import ProtectedFile

    if not source.is_dir():
        raise MountFailed(
            f"{source} is no folder",
            check="encrypted folder",
            expected="a folder of protected files (or an empty one)",
            seen="a file" if source.exists() else "nothing",
            remedy=f"mkdir {source}, or `adyton decrypt` for a single file",
        )
    for number, path in enumerate(_files(source)):
        if number >= _PROBED_FILES:
            return
        try:
            with ProtectedFile.open(OSFile(path), key) as file:
                sealed = file.path
        except NotProtectedFile:
            continue
        rest = os.fspath(path.relative_to(source))
        expected = f"{stored}/{rest}" if stored else rest
        if sealed == expected:
            return
        base = sealed[: -len(rest) - 1] if sealed.endswith("/" + rest) else "" if sealed == rest else None
        raise WrongPath(
            f"the files of {source} were sealed under another path" + (" than --as says" if chosen else ""),
            check=f"path sealed into {path}",
            expected=expected,
            seen=sealed,
            remedy=f"the folder was moved or is named otherwise here: mount it with --as {base or '.'!r}"
            if base is not None
            else "this file was renamed or moved by itself; put it back where it was, or `adyton rekey --as` it",
        )


def unmount(target: Path) -> None:
    """Unmount, and wait until the server has flushed everything and let go of the encrypted folder.

    Raises MountFailed where nothing is mounted, where it is in use, and soon where the mount shows elsewhere, too (in
    another mount namespace, by a bind mount): the server goes on for the processes there.
    """
    mounted = _mounted_at(target)
    done = subprocess.run(["fusermount3", "-u", "--", os.fspath(target)], capture_output=True, text=True, check=False)
    if done.returncode:
        try:
            syscalls.unmount(os.fspath(target))
        except OSError as error:
            if not os.path.ismount(target):
                raise MountFailed(
                    f"nothing is mounted at {target}",
                    check="unmount",
                    expected="the folder that `adyton mount` was given",
                    seen="an ordinary folder" if target.is_dir() else "no folder",
                ) from error
            raise MountFailed(
                f"{target} cannot be unmounted: {done.stderr.strip() or error.strerror}",
                check="unmount",
                expected="a mount that nothing uses any more",
                seen=error.strerror,
                remedy="close what is open in it (`fuser -vm` shows it), leave it with every shell, then try again",
            ) from error
    if mounted is not None:
        _wait_for_lock(mounted, target)


def _mounted_at(target: Path) -> OwnersMount | None:
    wanted = os.path.realpath(target)
    found = [mount for place, mount in owners_mounts("self") if place == wanted]
    return found[-1] if found else None


def _holders(mounted: OwnersMount) -> list[str]:
    """The processes that see a file system still, each as its number, name and mount point."""
    found = []
    for process in filter(str.isdigit, os.listdir("/proc")):
        for place, mount in owners_mounts(process):
            if mount.device == mounted.device:
                try:
                    name = Path(f"/proc/{process}/comm").read_text(errors="replace").strip()
                except OSError:
                    continue
                found.append(f"{process} ({name}) at {place}")
                break
    return found


def _wait_for_lock(mounted: OwnersMount, target: Path) -> None:
    starting_s = time.monotonic() + _STARTING_S
    deadline = time.monotonic() + UNMOUNT_LIMIT_S
    while not _is_free(Path(mounted.source)):
        holders = _holders(mounted)
        if holders and time.monotonic() > starting_s:
            first = holders[0].partition(" ")[0]
            raise MountFailed(
                f"{target} is unmounted, and the same mount still shows elsewhere, to {len(holders)}"
                f" process{'es' if len(holders) > 1 else ''}",
                check="other mounts of the same folder",
                expected="none, so that its server ends",
                seen=", ".join(holders[:_SHOWN_HOLDERS]) + (" and more" if len(holders) > _SHOWN_HOLDERS else ""),
                remedy=f"end these processes, or unmount it there (nsenter -t {first} -m umount PLACE); until then"
                f" {mounted.source} is in use",
            )
        if time.monotonic() > deadline:
            raise MountFailed(
                f"{target} is unmounted, and its server is still writing after {UNMOUNT_LIMIT_S:.0f} s",
                check="flush after the unmount",
                expected="the encrypted folder let go of",
                seen="still in use",
                remedy="wait before you touch the encrypted folder; `fuser -v` shows who uses it",
            )
        time.sleep(0.02)


def _is_free(source: Path) -> bool:
    """Whether nobody holds the lock of an encrypted folder. One that cannot be opened counts as free."""
    try:
        with file_lock(source, wait=False) as free:
            return free
    except StorageFailed:
        return True
