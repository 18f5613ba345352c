"""Write an image, or a guest's disk for inputs, in the form in which a cloud takes it."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from adyton.atomic_file import write_file
from adyton.capped_read import read_capped
from adyton.errors import UsageError
from adyton.image import guest_settings
from adyton.image.cloud_export import CLOUDS, Cloud, Written, export_disk
from adyton.image.document import MAX_BYTES, parse_image
from adyton.image.guest_disks import new_output_disk, settings_on
from adyton.os_failure import storage_failed
from adyton.workflow.image import DOCUMENT

FORMAT: Final = "adyton-cloud-export/1"
_SMALL_DISK_BYTES: Final = 1 << 20
"""Of the disk for outputs. The cloud makes a larger one of it."""


@dataclass(frozen=True, slots=True)
class Exported:
    """The files that were written, and what the cloud has to be told."""

    cloud: Cloud
    files: tuple[Written, ...]

    def to_dict(self) -> dict[str, Any]:
        """As export.json has it."""
        files = {
            item.name: {
                "bytes": item.size_bytes,
                "disk_bytes": item.disk_bytes,
                "raw_sha256": str(item.source_sha256),
            }
            for item in self.files
        }
        return {
            "format": FORMAT,
            "cloud": self.cloud.name,
            "files": files,
            "uefi": True,
            "tpm": "2.0",
            "secure_boot": False,
            "image_command": list(self.cloud.image),
            "machine_command": list(self.cloud.machine),
        }


def export(source: Path, cloud_name: str, folder: Path, *, force: bool = False) -> Exported:
    """Write an image and an empty disk for outputs, or a disk for inputs, as `adyton image export` does.

    `source` is an image's folder, or a disk as `adyton image disk` writes it. Beside an image, export.json says what
    the cloud has to be told. Raises UsageError, MalformedManifest, DigestMismatch, TargetExists and StorageFailed.
    """
    cloud = CLOUDS.get(cloud_name)
    if cloud is None:
        raise UsageError(
            f"no export for a cloud {cloud_name!r}", check="--cloud", expected=" or ".join(CLOUDS), seen=cloud_name
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not source.is_dir():
            _check_inputs(cloud, source)
            return Exported(cloud, (export_disk(cloud, source, folder, "inputs", force=force),))
        exported = Exported(cloud, _image(cloud, source, folder, force=force))
    except OSError as error:
        raise storage_failed(error, str(error.filename or source), "exporting") from error
    write_file(folder / "export.json", (json.dumps(exported.to_dict(), indent=2) + "\n").encode("ascii"))
    return exported


def _image(cloud: Cloud, source: Path, folder: Path, *, force: bool) -> tuple[Written, ...]:
    stated = parse_image(read_capped(source / DOCUMENT, MAX_BYTES, "guest image document", unreadable=UsageError))
    expected = stated.files["disk.raw"].sha256
    disk = export_disk(cloud, source / "disk.raw", folder, "disk", expected=expected, force=force)
    with tempfile.TemporaryDirectory(prefix="adyton-export-") as temporary:
        empty = Path(temporary, "outputs.raw")
        new_output_disk(empty, _SMALL_DISK_BYTES)
        return disk, export_disk(cloud, empty, folder, "outputs", force=force)


def _check_inputs(cloud: Cloud, disk: Path) -> None:
    """Refuse what no guest would read, and settings for a machine that this cloud does not have."""
    with disk.open("rb") as stream:
        settings = settings_on(stream)
    if settings.tee not in cloud.tees:
        raise UsageError(
            f"this disk is for a guest on {settings.tee}, which gets no keys at {cloud.name}",
            check=f"`tee` in {guest_settings.MEMBER}",
            expected=" or ".join(cloud.tees),
            seen=settings.tee,
            remedy=f"write the disk again: `adyton image disk PACK -o FILE --tee {cloud.tees[0]}`",
        )
