"""Symbolic links and extended attributes as protected files of their own. Pure.

The format has no room for either. So a link `NAME` is the protected file `NAME.adyton.link`, which holds the bytes of
its target. The attributes of `NAME` are the protected file `NAME.adyton.xattr` beside it. The suffix is part of the
path that is sealed into the file. So nobody without the key can turn a file into a link, a link into a file, or either
into attributes. To Gramine they are plain files of those names.

The content of an attribute file is canonical: `adyton-xattrs/1`, a NUL, and for each attribute, in ascending order of
the names: length of the name (one byte), name, length of the value (u32, little-endian), value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from adyton.errors import IntegrityError
from adyton.pfile.backing import RECOVERY_SUFFIX

if TYPE_CHECKING:
    from collections.abc import Mapping

LINK_SUFFIX: Final = ".adyton.link"
XATTR_SUFFIX: Final = ".adyton.xattr"
ROOTS_SUFFIX: Final = ".adyton-roots"
"""Of the history beside a pinned folder (`adyton.roots.journal`). It is no protected file."""

MAX_NAME_BYTES: Final = 255 - len(XATTR_SUFFIX) - len(RECOVERY_SUFFIX)
"""A longer name leaves no room for the suffix and the recovery log of its attribute file: Linux allows 255 bytes."""

MAX_TARGET_BYTES: Final = 4095
"""Of a link's target, as in Linux (PATH_MAX, with the NUL)."""

USER_PREFIX: Final = b"user."
MAX_ATTRIBUTE_NAME_BYTES: Final = 255
MAX_ATTRIBUTES_BYTES: Final = 48 << 10
"""Of the whole attribute file. It must fit the cache of an open file, so that a change of it is one commit."""

_MAGIC: Final = b"adyton-xattrs/1\0"


def is_reserved(name: str) -> bool:
    """Whether a name is that of a link's file, of attributes or of a history. No program may use such a name itself."""
    return name.endswith((LINK_SUFFIX, XATTR_SUFFIX, ROOTS_SUFFIX))


def parse_target(raw: bytes, name: str) -> bytes:
    """The target of a link from the content of its file, 1 to 4095 bytes without a NUL. Raises IntegrityError.

    `name` is that of the file, for the error.
    """
    if not 1 <= len(raw) <= MAX_TARGET_BYTES or b"\0" in raw:
        raise IntegrityError(
            f"{name} is no symbolic link",
            check="content of a link's file",
            expected=f"1 to {MAX_TARGET_BYTES} bytes without a NUL",
            seen=f"{len(raw)} bytes" + (", with a NUL" if b"\0" in raw else ""),
            remedy=f"no program of Adyton's writes such a file: rename it so that it does not end in {LINK_SUFFIX}",
        )
    return raw


def encode_attributes(attributes: Mapping[bytes, bytes]) -> bytes:
    """The content of an attribute file."""
    parts = [_MAGIC]
    for name, value in sorted(attributes.items()):
        parts += (bytes([len(name)]), name, len(value).to_bytes(4, "little"), value)
    return b"".join(parts)


def parse_attributes(raw: bytes, name: str) -> dict[bytes, bytes]:
    """The attributes from the content of their file. Raises IntegrityError for every other content.

    `name` is that of the file, for the error.
    """
    if len(raw) > MAX_ATTRIBUTES_BYTES or not raw.startswith(_MAGIC):
        raise _malformed(name, f"{len(raw)} bytes that begin otherwise or are too many")
    found: dict[bytes, bytes] = {}
    last = b""
    at = len(_MAGIC)
    while at < len(raw):
        begin = at + 1
        end = begin + raw[at]
        attribute, size = raw[begin:end], raw[end : end + 4]
        value = raw[end + 4 : end + 4 + int.from_bytes(size, "little")]
        at = end + 4 + int.from_bytes(size, "little")
        if len(size) < 4 or at > len(raw):
            raise _malformed(name, "an attribute that is cut off")
        if not attribute.startswith(USER_PREFIX) or attribute == USER_PREFIX or b"\0" in attribute:
            raise _malformed(name, f"the name {attribute[:40]!r}")
        if attribute <= last:
            raise _malformed(name, f"{attribute[:40]!r} out of order")
        found[attribute] = value
        last = attribute
    return found


def _malformed(name: str, seen: str) -> IntegrityError:
    return IntegrityError(
        f"{name} is no file of extended attributes",
        check="content of an attribute file",
        expected=f"user. attributes in ascending order, {MAX_ATTRIBUTES_BYTES} bytes at most",
        seen=seen,
        remedy=f"no program of Adyton's writes such a file: rename it so that it does not end in {XATTR_SUFFIX}",
    )
