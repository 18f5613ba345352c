"""The workload measurement: what Adyton's runtime is, and what it was told to run, in 32 bytes.

In `sim` it stands in MRENCLAVE; in `sim-tdx` and `tdx` it is extended into RTMR3. See docs/measurement.md.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Final

from adyton.values import Digest, Measurement

LABEL: Final = b"adyton workload measurement v1\0\0"
"""32 bytes that no other hash of Adyton begins with."""


def workload_measurement(manifest_bytes: bytes, runtime: Digest) -> Measurement:
    """SHA-256 over the label, the runtime's identity, the manifest's length (u64, little-endian) and its SHA-256."""
    digest = hashlib.sha256(LABEL)
    digest.update(runtime.raw)
    digest.update(struct.pack("<Q", len(manifest_bytes)))
    digest.update(hashlib.sha256(manifest_bytes).digest())
    return Measurement(digest.digest())
