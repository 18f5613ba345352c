"""A certificate of the owner's home, as it lies in its file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from adyton.capped_read import read_capped
from adyton.errors import StoreError

if TYPE_CHECKING:
    from pathlib import Path

MAX_CERTIFICATE_BYTES: Final = 16 * 1024


def read_certificate(folder: Path, name: str) -> bytes:
    """The certificate `name` (PEM) in the home `folder`.

    Raises StorageFailed where it cannot be read, and StoreError where it is longer than MAX_CERTIFICATE_BYTES.
    """
    return read_capped(folder / name, MAX_CERTIFICATE_BYTES, name, too_large=StoreError)
