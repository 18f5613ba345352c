"""The workload measurement: 32 bytes that identify Adyton's runtime and the manifest that it runs.

In `sim` it stands in MRENCLAVE. In `sim-tdx` and `tdx` it is extended into RTMR3. See docs/measurement.md.
"""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING, Final

from adyton.values import Digest, Measurement

if TYPE_CHECKING:
    from collections.abc import Mapping

LABEL: Final = b"adyton workload measurement v1\0\0"
"""32 bytes that no other hash of Adyton begins with."""

RUNTIME_LABEL: Final = b"adyton runtime identity v1\0\0\0\0\0\0"


def workload_measurement(manifest_bytes: bytes, runtime: Digest) -> Measurement:
    """SHA-256 over the label, the runtime's identity, the manifest's length (u64, little-endian) and its SHA-256."""
    digest = hashlib.sha256(LABEL)
    digest.update(runtime.raw)
    digest.update(struct.pack("<Q", len(manifest_bytes)))
    digest.update(hashlib.sha256(manifest_bytes).digest())
    return Measurement(digest.digest())


def combine(parts: Mapping[str, Digest]) -> Digest:
    """The runtime's identity: SHA-256 over its label and, in the order of their names, each part's name and digest.

    A name goes in as its length (u32, little-endian) and its UTF-8.
    """
    digest = hashlib.sha256(RUNTIME_LABEL)
    for name in sorted(parts):
        encoded = name.encode()
        digest.update(struct.pack("<I", len(encoded)) + encoded + parts[name].raw)
    return Digest(digest.digest())
