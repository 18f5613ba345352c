"""Digests of a protected file as it is stored, and of its plaintext, from one reading of it.

The bytes that are hashed are the very bytes that are verified. So a host that changes the file meanwhile cannot have
other bytes hashed than those that hold the content.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from adyton.errors import IntegrityError, StorageFailed
from adyton.os_failure import storage_failed
from adyton.storage.files import decrypt_stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from adyton.values import Key128

_READ_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class StoredDigest:
    """SHA-256 of the stored file, HMAC-SHA-256 and SHA-256 of the plaintext, and the root that verified."""

    sha256: bytes
    commitment: bytes
    plaintext_sha256: bytes
    root: bytes


def stored_digest(
    path: str,
    key: Key128,
    commitment_key: bytes,
    *,
    sealed_as: str,
    progress: Callable[[], object] = lambda: None,
) -> StoredDigest:
    """Read a protected file once, verify all of it, and hash it. Raises what the format raises, and StorageFailed.

    `sealed_as` is the path that is sealed in. `progress` is called after each piece.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise storage_failed(error, path, "reading") from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise StorageFailed(f"{path} is no regular file", check="kind of file", expected="a file", seen="another")
        return _digest(fd, path, key, commitment_key, sealed_as, progress)
    finally:
        os.close(fd)


def _digest(
    fd: int, path: str, key: Key128, commitment_key: bytes, sealed_as: str, progress: Callable[[], object]
) -> StoredDigest:
    stored, plain, commitment = hashlib.sha256(), hashlib.sha256(), hmac.new(commitment_key, digestmod="sha256")
    out, into = os.pipe2(os.O_CLOEXEC)
    failures: list[OSError] = []

    def feed() -> None:
        try:
            with open(into, "wb", buffering=0) as pipe:  # noqa: PTH123 - a descriptor
                while piece := os.read(fd, _READ_BYTES):
                    stored.update(piece)
                    view = memoryview(piece)
                    while view:
                        view = view[pipe.write(view) :]
        except BrokenPipeError:
            pass  # the reader refused the content
        except OSError as error:
            failures.append(error)

    def take(piece: memoryview) -> None:
        plain.update(piece)
        commitment.update(piece)
        progress()

    feeding = threading.Thread(target=feed, name="adyton-digest")
    feeding.start()
    try:
        done = decrypt_stream(out, take, key, path=sealed_as)
    except IntegrityError as error:
        raise IntegrityError(f"{path}: {error.message}", checks=error.checks) from None
    finally:
        os.close(out)
        feeding.join()
        if failures:
            raise storage_failed(failures[0], path, "reading") from failures[0]
    return StoredDigest(stored.digest(), commitment.digest(), plain.digest(), done.root)
