"""A served tree that nothing can be changed in: every operation that would is refused with one errno."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Any, ClassVar

from adyton.vfs.node import Node


class ReadOnlyTree:
    """The half of `fuse.Tree` that changes something. A tree of this kind adds the half that looks and reads."""

    refusal: ClassVar[int] = errno.EROFS
    """The errno of whatever would change the tree."""

    def _refuse(self, path: str = "") -> OSError:
        return OSError(self.refusal, os.strerror(self.refusal), path)

    def create(self, path: str, mode: int) -> Any:  # noqa: ARG002 - the adapter's interface
        """Refused."""
        raise self._refuse(path)

    def write(self, opened: Any, data: memoryview, offset: int) -> int:  # noqa: ARG002
        """Refused."""
        raise self._refuse()

    def truncate(self, path: str, size: int) -> None:  # noqa: ARG002
        """Refused."""
        raise self._refuse(path)

    def resize(self, opened: Any, size: int) -> None:  # noqa: ARG002
        """Refused."""
        raise self._refuse()

    def reserve(self, opened: Any, size: int) -> None:  # noqa: ARG002
        """Refused."""
        raise self._refuse()

    def make_link(self, path: str, target: bytes) -> None:  # noqa: ARG002
        """Refused."""
        raise self._refuse(path)

    def attributes(self, path: str) -> Mapping[bytes, bytes]:  # noqa: ARG002
        """Nothing here has any."""
        return {}

    def set_attribute(self, path: str, name: bytes, value: bytes, flags: int) -> None:  # noqa: ARG002
        """Refused."""
        raise self._refuse(path)

    def remove_attribute(self, path: str, name: bytes) -> None:  # noqa: ARG002
        """Refused."""
        raise self._refuse(path)

    def make_folder(self, path: str, mode: int) -> None:  # noqa: ARG002
        """Refused."""
        raise self._refuse(path)

    def remove(self, path: str) -> None:
        """Refused."""
        raise self._refuse(path)

    def remove_folder(self, path: str) -> None:
        """Refused."""
        raise self._refuse(path)

    def rename(self, old: str, new: str, flags: int) -> None:  # noqa: ARG002
        """Refused."""
        raise self._refuse(old)

    def set_mode(self, path: str, mode: int) -> None:  # noqa: ARG002
        """Refused."""
        raise self._refuse(path)

    def set_node_mode(self, opened: Any, mode: int) -> None:  # noqa: ARG002
        """Refused."""
        raise self._refuse()

    def set_times(self, path: str, atime_ns: int | None, mtime_ns: int | None) -> None:  # noqa: ARG002
        """Refused."""
        raise self._refuse(path)

    def set_node_times(self, node: Node, atime_ns: int | None, mtime_ns: int | None) -> None:
        """Times stay fixed."""

    def flush(self, opened: Any, *, sync: bool) -> None:
        """Nothing waits to be written."""

    def sync_folder(self, path: str) -> None:
        """Nothing waits to be written."""

    def room(self) -> os.statvfs_result | None:
        """No room for anything."""
        return None
