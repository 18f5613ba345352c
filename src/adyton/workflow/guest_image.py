"""Read a guest image's document, for the verbs that take one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adyton.capped_read import read_capped
from adyton.image.document import MAX_BYTES, parse_image
from adyton.runtime import identity

if TYPE_CHECKING:
    from pathlib import Path

    from adyton.image.document import GuestImage


def read_image(path: Path) -> GuestImage:
    """The document in this file. Raises StorageFailed where it cannot be read, and UsageError."""
    return parse_image(read_capped(path, MAX_BYTES, "guest image document", regular_only=True))


def runtime_of(image: GuestImage | None) -> identity.RuntimeIdentity:
    """The identity of the Adyton in the image. Without an image, that of the one installed here."""
    return (
        identity.runtime_identity()
        if image is None
        else identity.RuntimeIdentity(image.runtime_identity, image.runtime)
    )
