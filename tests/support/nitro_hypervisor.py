"""A made-up Nitro hypervisor behind a real software TPM: it takes the vendor command, and signs under a test root.

swtpm allows indices of at most 2048 bytes, so the index of the messages is kept here. Everything else is swtpm's: the
document shows the PCRs that the software TPM holds.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import cbor2

from adyton.sim.software_tpm import SoftwareTPM
from adyton.tee.nitrotpm_guest import MESSAGE_INDEX
from adyton.tee.tpm_device import TPMDevice
from tests.support.nitro_factory import NitroScenario

_DEFINE, _UNDEFINE, _WRITE, _READ, _PUBLIC, _NSM = 0x12A, 0x122, 0x137, 0x14E, 0x169, 0x20000001
_OWNER = 0x40000001
NV_DEFINED, HANDLE, COMMAND_CODE, AUTH = 0x14C, 0x18B, 0x143, 0x12F
_AUTH_WRITE_READ = 1 << 2 | 1 << 18


class Hypervisor:
    """A transport for `TPMDevice`. A test may change the document before it is signed, or the answer after."""

    def __init__(self, tpm: SoftwareTPM) -> None:
        self._tpm = tpm
        self._memory: bytearray | None = None
        self.scenario = NitroScenario(tpm=True)
        self.change: Callable[[NitroScenario], None] = lambda _scenario: None
        self.answer: Callable[[bytes], bytes] = lambda raw: raw
        self.refuses = 0
        """The result code of the vendor command, for a TPM that does not know it."""
        self.requests: list[dict[str, Any]] = []

    def exchange(self, command: bytes, timeout_s: float) -> bytes:
        """One command."""
        _, _, code = struct.unpack_from(">HII", command)
        handles = struct.unpack_from(">II", command, 10) if len(command) >= 18 else (0, 0)
        if code == _DEFINE and struct.unpack_from(">I", command, len(command) - 14)[0] == MESSAGE_INDEX:
            return self._define(command)
        if code == _PUBLIC and command[10:14] == _index():
            return self._public()
        if code in (_UNDEFINE, _WRITE, _READ, _NSM) and handles[1] == MESSAGE_INDEX:
            return self._own(code, handles[0], command[27 + 4 :])
        return self._tpm.exchange(command, timeout_s)

    def close(self) -> None:
        """End."""
        self._tpm.close()

    def _define(self, command: bytes) -> bytes:
        index, algorithm, attributes, policy, size = struct.unpack(">IHIHH", command[-14:])
        assert (index, algorithm, attributes, policy, size) == (MESSAGE_INDEX, 0x0B, _AUTH_WRITE_READ, 0, 8192)
        if self._memory is not None:
            return _failed(NV_DEFINED)
        self._memory = bytearray(b"\xff" * size)
        return _answered(b"")

    def _public(self) -> bytes:
        if self._memory is None:
            return _failed(HANDLE)
        area = struct.pack(">IHIHH", MESSAGE_INDEX, 0x0B, _AUTH_WRITE_READ, 0, len(self._memory))
        payload = struct.pack(">H", len(area)) + area + struct.pack(">H", 34) + bytes(34)
        return struct.pack(">HII", 0x8001, 10 + len(payload), 0) + payload

    def _own(self, code: int, authority: int, body: bytes) -> bytes:
        if self._memory is None:
            return _failed(HANDLE)
        if authority != (_OWNER if code == _UNDEFINE else MESSAGE_INDEX):
            return _failed(AUTH)  # the index has authRead and authWrite alone
        if code == _UNDEFINE:
            self._memory = None
            return _answered(b"")
        if code == _WRITE:
            (size,) = struct.unpack_from(">H", body)
            (offset,) = struct.unpack_from(">H", body, 2 + size)
            self._memory[offset : offset + size] = body[2 : 2 + size]
            return _answered(b"")
        if code == _READ:
            size, offset = struct.unpack(">HH", body)
            return _answered(struct.pack(">H", size) + bytes(self._memory[offset : offset + size]))
        if self.refuses:
            return _failed(self.refuses)
        raw = self.answer(self._document(cbor2.loads(bytes(self._memory))))
        self._memory[: len(raw)] = raw
        return _answered(b"")

    def _document(self, request: dict[str, Any]) -> bytes:
        (inner,) = request.values()
        assert set(request) == {"Attestation"}
        assert set(inner) == {"user_data", "nonce", "public_key"}
        self.requests.append(inner)
        scenario = self.scenario
        scenario.members |= inner
        scenario.pcrs.update(enumerate(TPMDevice(self._tpm).read_pcrs(bank="sha384")))
        self.change(scenario)
        return cbor2.dumps({"Attestation": {"document": scenario.built().raw}})


def _index() -> bytes:
    return struct.pack(">I", MESSAGE_INDEX)


def _failed(code: int) -> bytes:
    return struct.pack(">HII", 0x8001, 10, code)


def _answered(parameters: bytes) -> bytes:
    body = struct.pack(">I", len(parameters)) + parameters + b"\0\0\x01\0\0"
    return struct.pack(">HII", 0x8002, 10 + len(body), 0) + body
