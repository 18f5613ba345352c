"""The files of NVIDIA's driver in a guest image: a folder of the builder's, taken by the hashes that lie in it. Pure.

Debian has the open kernel modules as source (DKMS) and signs no build of them. So the builder builds them for the
kernel of the lock file, and gives them in a folder with a file SHA256SUMS. The hashes stand in `image.json`, too.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from adyton.errors import UsageError
from adyton.image.document import Input
from adyton.values import Digest

SUMS: Final = "SHA256SUMS"
MODULES: Final = ("nvidia", "nvidia-uvm")
"""In the order in which they are loaded. Left out: nvidia-modeset, nvidia-drm (displays), nvidia-peermem (RDMA)."""
FIRMWARE: Final = "gsp_ga10x.bin"
"""The firmware that the driver loads into the system processor of a Hopper or Blackwell GPU."""
LIBRARY: Final = "libnvidia-ml.so.1"
NAMES: Final = (*(f"{name}.ko" for name in MODULES), FIRMWARE, LIBRARY)
MAX_FILE_BYTES: Final = 256 << 20
MAX_SUMS_BYTES: Final = 4096

_LINE: Final = re.compile(r"([0-9a-f]{64}) [ *](\S{1,64})", re.ASCII)
_VERSION: Final = re.compile(rb"\0version=([0-9]{1,4}(?:\.[0-9]{1,4}){1,3})\0")
_MAGIC: Final = re.compile(rb"\0vermagic=([!-~]{1,128}) ")


@dataclass(frozen=True, slots=True)
class GPUFiles:
    """The files by their names, and the version of the driver that they are of."""

    version: str
    files: Mapping[str, bytes]

    @classmethod
    def parse(cls, files: Mapping[str, bytes], sums: bytes, kernel: str) -> GPUFiles:
        """Check the files of a folder. `kernel` is the release of the image's kernel.

        Raises UsageError where a file is missing, or not the one of `sums`; where the modules are of two versions, or
        for another kernel; and where a file is not of its kind.
        """
        wanted = _sums(sums)
        if set(wanted) != set(NAMES) or set(files) != set(NAMES):
            raise _wrong("its names", ", ".join(sorted(NAMES)), f"{', '.join(sorted(files))}; {SUMS}: {sorted(wanted)}")
        for name, content in files.items():
            seen = hashlib.sha256(content).hexdigest()
            if seen != wanted[name]:
                raise _wrong(name, f"SHA-256 {wanted[name]}, as {SUMS} says", seen)
        versions = set()
        for name in MODULES:
            content = files[f"{name}.ko"]
            version, magic = _VERSION.search(content), _MAGIC.search(content)
            if not content.startswith(b"\x7fELF") or version is None or magic is None:
                raise _wrong(f"{name}.ko", "a kernel module with its version, not compressed", "another file")
            if magic[1].decode("ascii") != kernel:
                raise _wrong(f"{name}.ko", f"a module for the kernel {kernel}", magic[1].decode("ascii"))
            versions.add(version[1].decode("ascii"))
        if len(versions) != 1:
            raise _wrong("version of the modules", "one", ", ".join(sorted(versions)))
        if not files[LIBRARY].startswith(b"\x7fELF\x02\x01"):
            raise _wrong(LIBRARY, "a shared library of x86-64", "another file")
        return cls(versions.pop(), dict(files))

    def modules(self) -> dict[str, bytes]:
        """Name -> module, in the order in which they are loaded."""
        return {name: self.files[f"{name}.ko"] for name in MODULES}

    def placed(self) -> dict[str, bytes]:
        """The other files by their paths in the image. The kernel looks for firmware in /lib/firmware."""
        return {
            f"usr/lib/firmware/nvidia/{self.version}/{FIRMWARE}": self.files[FIRMWARE],
            f"usr/lib/x86_64-linux-gnu/{LIBRARY}": self.files[LIBRARY],
        }

    def inputs(self) -> list[Input]:
        """What `image.json` says of them."""
        return [
            Input(name=f"gpu:{name}", version=self.version, sha256=Digest(hashlib.sha256(content).digest()))
            for name, content in self.files.items()
        ]


def _sums(raw: bytes) -> dict[str, str]:
    """The file as sha256sum writes it: a hash and a name a line, each name once."""
    try:
        lines = raw[: MAX_SUMS_BYTES + 1].decode("ascii").splitlines() if len(raw) <= MAX_SUMS_BYTES else []
    except UnicodeDecodeError:
        lines = []
    found = [_LINE.fullmatch(line) for line in lines]
    rows = [(match[2], match[1]) for match in found if match is not None]
    if len(rows) != len(lines) or not rows or len(dict(rows)) != len(rows):
        raise _wrong(SUMS, "lines of sha256sum, each name once", f"{len(lines)} lines")
    return dict(rows)


def _wrong(what: str, expected: str, seen: str) -> UsageError:
    return UsageError(
        f"the folder with the driver for GPUs cannot be used: {what}: expected {expected}, seen {seen[:160]}",
        check=f"driver for GPUs: {what}",
        expected=expected,
        seen=seen[:160],
        remedy="docs/how-to/guest-image.md says what the folder holds and how it is made",
    )
