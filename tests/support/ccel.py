"""Event logs of TDX guests under OVMF, made up in the form of the real ones."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

from adyton.attest.tpm.event_log import SHA384
from adyton.image.host_tables import empty_variables
from tests.support.tpm_factory import log_head

HAND_OFF = hashlib.sha384(b"list of memory").digest()
STORE = hashlib.sha384(b"store of variables").digest()
ACPI = tuple(hashlib.sha384(name).digest() for name in (b"loader", b"rsdp", b"tables"))
SEPARATOR = hashlib.sha384(bytes(4)).digest()
BOOT_OPTIONS = (hashlib.sha384(b"\0\0").digest(), hashlib.sha384(b"UiApp").digest())


def settings(
    *,
    store: bytes = STORE,
    variables: Sequence[bytes] | None = None,
    separator: bytes = SEPARATOR,
    acpi: Sequence[bytes] = ACPI,
) -> list[bytes]:
    """The events of RTMR0."""
    return [HAND_OFF, store, *(empty_variables() if variables is None else variables), separator, *acpi, *BOOT_OPTIONS]


def ccel(rtmr0: Sequence[bytes], rtmr1: Sequence[bytes] = (), rtmr2: Sequence[bytes] = ()) -> bytes:
    """A log, as the kernel shows it: filled up with 0xff."""
    found = log_head((SHA384,), 1)
    for index, digests in ((1, rtmr0), (2, rtmr1), (3, rtmr2)):
        for digest in digests:
            found += struct.pack("<IIIH", index, 0x80000003, 1, SHA384) + digest + struct.pack("<I", 0)
    return found + b"\xff" * 256
