"""A TPM 2.0, spoken to by raw commands: what a quote, the workload register and a cloud's NV memory need, no more.

One command is written, one response is read. Both begin with u16 tag, u32 size, u32 command or result code. Integers
are big-endian. Every response is parsed strictly: its size, its handles, its parameters, and nothing behind them.

Source: TCG, Trusted Platform Module Library, revision 1.59, Part 2 (Structures) and Part 3 (Commands); Linux,
drivers/char/tpm (the resource manager /dev/tpmrm0 flushes what a closed file left loaded).
"""

from __future__ import annotations

import errno
import os
import select
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn, Protocol

from cryptography.hazmat.primitives.asymmetric import ec

from adyton.attest.tpm.structures import (
    ALG_ECDSA,
    ALG_SHA256,
    ALL_PCRS,
    MAX_ATTEST_BYTES,
    PCR_BYTES,
    PCRS,
    Reader,
    Signature,
    parse_signature,
)
from adyton.errors import MalformedQuote, NoDevice, Timeout, UsageError
from adyton.tee.system import TPM_DEVICE

if TYPE_CHECKING:
    from collections.abc import Callable

TIMEOUT_S: Final = 60.0
"""A TPM may take that long to make a key. It is the longest that a command is waited for."""
MAX_RESPONSE_BYTES: Final = 4096
MAX_NV_BYTES: Final = 8192
NV_CHUNK_BYTES: Final = 512
MAX_NONCE_BYTES: Final = 64

OWNER: Final = 0x40000001
_PASSWORD_SESSION: Final = 0x40000009
_NO_SESSIONS: Final = 0x8001
_SESSIONS: Final = 0x8002
_ALG_NULL: Final = 0x0010
_ALG_ECC: Final = 0x0023
_CURVE_P256: Final = 0x0003
_PCRS_A_READ: Final = 8

_NV_UNDEFINE: Final = 0x122
_NV_DEFINE: Final = 0x12A
_CREATE_PRIMARY: Final = 0x131
_NV_WRITE: Final = 0x137
_NV_READ: Final = 0x14E
_QUOTE: Final = 0x158
_FLUSH: Final = 0x165
_NV_READ_PUBLIC: Final = 0x169
_PCR_READ: Final = 0x17E
_PCR_EXTEND: Final = 0x182
_NSM_REQUEST: Final = 0x20000001
"""Amazon's vendor command: what an NV index holds goes to the hypervisor, whose answer takes its place."""
_NAMES: Final = {
    _NV_UNDEFINE: "TPM2_NV_UndefineSpace",
    _NV_DEFINE: "TPM2_NV_DefineSpace",
    _CREATE_PRIMARY: "TPM2_CreatePrimary",
    _NV_WRITE: "TPM2_NV_Write",
    _NV_READ: "TPM2_NV_Read",
    _QUOTE: "TPM2_Quote",
    _FLUSH: "TPM2_FlushContext",
    _NV_READ_PUBLIC: "TPM2_NV_ReadPublic",
    _PCR_READ: "TPM2_PCR_Read",
    _PCR_EXTEND: "TPM2_PCR_Extend",
    _NSM_REQUEST: "TPM2_AWS_NSM_Request",
}

_BUSY_S: Final = 0.002
"""How long until a command is offered again while another process's is under way."""
RC_RETRY: Final = frozenset({0x908, 0x90A, 0x922})
"""TPM_RC_YIELDED, TPM_RC_TESTING, TPM_RC_RETRY: send the command again."""
RC_NV_SPACE: Final = 0x14B
RC_NV_DEFINED: Final = 0x14C
"""TPM_RC_NV_SPACE: no memory left for an index. TPM_RC_NV_DEFINED: there is such an index already."""
_ALG_SHA384: Final = 0x000C
_BANKS: Final = {"sha256": (ALG_SHA256, PCR_BYTES), "sha384": (_ALG_SHA384, 48)}
"""Bank -> its algorithm, and the bytes of a PCR."""
RC_NO_HANDLE: Final = 0x18B
"""TPM_RC_HANDLE for the first handle: no such NV index."""
_RETRY_S: Final = 0.05
_ANSWER: Final = "answer of the TPM"
_OTHER: Final = "this is no TPM 2.0, or its software is broken: use another machine"

_KEY_ATTRIBUTES: Final = sum(1 << bit for bit in (1, 4, 5, 6, 10, 16, 18))
"""fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, restricted, sign."""
_NV_ATTRIBUTES: Final = sum(1 << bit for bit in (1, 2, 17, 18, 25))
"""TPMA_NV: ownerWrite, authWrite, ownerRead, authRead, noDA."""
_NV_OWN_ATTRIBUTES: Final = sum(1 << bit for bit in (2, 18))
"""TPMA_NV: authWrite, authRead."""


class Transport(Protocol):
    """Takes a whole command, and gives the whole response."""

    def exchange(self, command: bytes, timeout_s: float) -> bytes:
        """Send one command. Raises OSError, and Timeout after `timeout_s` seconds."""
        ...

    def close(self) -> None:
        """Let the TPM go."""
        ...


class DeviceFile:
    """The kernel's resource manager for a TPM: each write is a command, the next read its response.

    Processes of one run share the open file: who asks for keys, who proves connections, who serves the program. The
    kernel answers EBUSY to a command until the response to the one before it was read. So no process gets another's.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def open(cls, path: str = TPM_DEVICE) -> DeviceFile:
        """Open a TPM's device file. Raises NoDevice where there is none."""
        try:
            return cls(os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))
        except OSError as error:
            raise NoDevice(
                f"there is no TPM to use: {path}: {error.strerror}",
                check="TPM",
                expected=f"{path}, readable and writable",
                seen=error.strerror,
                remedy="give the machine a virtual TPM 2.0 (QEMU: swtpm; clouds: a confidential machine or vTPM), and"
                " run as root or in the group tss",
            ) from error

    def exchange(self, command: bytes, timeout_s: float) -> bytes:
        """Write a command, once no other is under way, and wait for the response."""
        end_s = time.monotonic() + timeout_s
        while True:
            try:
                written = os.write(self._descriptor, command)
                break
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() >= end_s:
                    raise
                time.sleep(_BUSY_S)
        if written != len(command):
            raise OSError(f"the device took {written} of {len(command)} bytes")
        waiting = select.poll()
        waiting.register(self._descriptor, select.POLLIN)
        if not waiting.poll(max(0.0, end_s - time.monotonic()) * 1000):
            raise silent(timeout_s)
        return os.read(self._descriptor, MAX_RESPONSE_BYTES + 1)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def silent(timeout_s: float) -> Timeout:
    """The error for a TPM that does not answer."""
    return Timeout(
        f"the TPM did not answer within {timeout_s:.0f} seconds",
        check="answer of the TPM",
        expected=f"a response within {timeout_s:.0f} seconds",
        seen="none",
        remedy="boot the machine again; a host that stops its TPM can stop the machine as well",
    )


@dataclass(frozen=True, slots=True)
class PrimaryKey:
    """A restricted ECDSA P-256 signing key in the owner's hierarchy. The same TPM and template give the same key."""

    handle: int
    public: ec.EllipticCurvePublicKey


@dataclass(frozen=True, slots=True)
class NVPublic:
    """What a TPM says about an NV index."""

    index: int
    attributes: int
    size_bytes: int


class TPMDevice:
    """The commands. Each raises NoDevice where the TPM refuses or answers wrongly, and Timeout where it is silent."""

    def __init__(
        self,
        transport: Transport,
        *,
        timeout_s: float = TIMEOUT_S,
        clock_s: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._transport = transport
        self._timeout_s = timeout_s
        self._clock_s = clock_s
        self._sleep = sleep
        self._is_silent = False

    def close(self) -> None:
        """Let the TPM go. The kernel flushes what was loaded."""
        self._transport.close()

    def create_primary(self) -> PrimaryKey:
        """Make the attestation key (TPM2_CreatePrimary). Flush it after use."""
        scheme = struct.pack(">HHHHHH", _ALG_NULL, ALG_ECDSA, ALG_SHA256, _CURVE_P256, _ALG_NULL, 0) + bytes(2)
        public = struct.pack(">HHIH", _ALG_ECC, ALG_SHA256, _KEY_ATTRIBUTES, 0) + scheme
        sensitive = struct.pack(">HHH", 4, 0, 0)
        body = sensitive + _sized(public) + struct.pack(">HI", 0, 0)
        handles, reader = self._command(_CREATE_PRIMARY, body, handles=(OWNER,), answers=1)
        area = reader.sized(MAX_RESPONSE_BYTES, "public area")
        for limit, name in ((1024, "creation data"), (64, "creation hash")):
            reader.sized(limit, name)
        reader.take(6, "creation ticket")
        reader.sized(64, "creation ticket")
        reader.sized(66, "name")
        reader.finish()
        return PrimaryKey(handles[0], _public_key(area))

    def flush(self, handle: int) -> None:
        """Unload a key (TPM2_FlushContext)."""
        _, reader = self._command(_FLUSH, struct.pack(">I", handle))
        reader.finish()

    def extend(self, pcr: int, digest: bytes, *, bank: str = "sha256") -> None:
        """Extend one PCR of a bank with a digest of the bank's size (TPM2_PCR_Extend)."""
        algorithm, size = _BANKS[bank]
        if not 0 <= pcr < PCRS or len(digest) != size:
            raise UsageError(f"PCR {pcr} is not extended with {len(digest)} bytes", check="extension of a PCR")
        body = struct.pack(">IH", 1, algorithm) + digest
        _, reader = self._command(_PCR_EXTEND, body, handles=(pcr,), authorized=True)
        reader.finish()

    def read_pcrs(self, *, bank: str = "sha256") -> list[bytes]:
        """All 24 PCRs of a bank (TPM2_PCR_Read), 32 or 48 bytes each. They may change between two reads."""
        algorithm, size = _BANKS[bank]
        found: list[bytes] = []
        for place in range(PCRS // _PCRS_A_READ):
            bitmap = bytearray(3)
            bitmap[place] = 0xFF
            chosen = _selection(bytes(bitmap), algorithm)
            _, reader = self._command(_PCR_READ, chosen)
            reader.number(4, "update counter")
            if reader.take(len(chosen), "selection") != chosen or reader.number(4, "number of PCRs") != _PCRS_A_READ:
                raise _wrong_answer(_PCR_READ, f"the {bank} bank with all its PCRs", "another selection")
            for _ in range(_PCRS_A_READ):
                value = reader.sized(64, "PCR")
                if len(value) != size:
                    raise _wrong_answer(_PCR_READ, f"{size} bytes for each PCR", f"{len(value)} bytes")
                found.append(value)
            reader.finish()
        return found

    def quote(self, handle: int, nonce: bytes) -> tuple[bytes, Signature]:
        """A quote over all 24 PCRs and a nonce (TPM2_Quote): TPMS_ATTEST, and the signature by the key's own scheme."""
        if not 1 <= len(nonce) <= MAX_NONCE_BYTES:
            raise UsageError(f"a nonce has 1 to {MAX_NONCE_BYTES} bytes, got {len(nonce)}", check="nonce of a quote")
        body = _sized(nonce) + struct.pack(">H", _ALG_NULL) + _selection(ALL_PCRS.bitmap)
        _, reader = self._command(_QUOTE, body, handles=(handle,), authorized=True)
        message = reader.sized(MAX_ATTEST_BYTES, "quoted message")
        try:
            return message, parse_signature(reader.rest())
        except MalformedQuote as error:
            raise _wrong_answer(_QUOTE, "a signature with SHA-256", error.message) from error

    def nv_public(self, index: int) -> NVPublic | None:
        """What an NV index is (TPM2_NV_ReadPublic). None where there is none."""
        found = self._command_or_none(_NV_READ_PUBLIC, struct.pack(">I", index))
        if found is None:
            return None
        area = Reader(found.sized(256, "public area"), _ANSWER, _refuse)
        named, _, attributes = (area.number(size, "NV index") for size in (4, 2, 4))
        area.sized(64, "policy")
        size = area.number(2, "size")
        area.finish()
        found.sized(66, "name")
        found.finish()
        if named != index or size > MAX_NV_BYTES:
            raise _wrong_answer(
                _NV_READ_PUBLIC, f"index {index:#x}, at most {MAX_NV_BYTES} bytes", f"{named:#x}, {size}"
            )
        return NVPublic(named, attributes, size)

    def nv_read(self, index: int, *, authority: int = OWNER) -> bytes | None:
        """Everything that an NV index holds (TPM2_NV_Read, by an empty password). None where there is none.

        `authority` is who allows it: the owner, or the index itself.
        """
        public = self.nv_public(index)
        if public is None:
            return None
        found = b""
        while len(found) < public.size_bytes:
            size = min(NV_CHUNK_BYTES, public.size_bytes - len(found))
            body = struct.pack(">HH", size, len(found))
            _, reader = self._command(_NV_READ, body, handles=(authority, index), authorized=True)
            chunk = reader.sized(NV_CHUNK_BYTES, "NV data")
            reader.finish()
            if len(chunk) != size:
                raise _wrong_answer(_NV_READ, f"{size} bytes", f"{len(chunk)} bytes")
            found += chunk
        return found

    def nv_define(self, index: int, size_bytes: int) -> None:
        """Make an NV index for the owner, with an empty password (TPM2_NV_DefineSpace)."""
        _check_result(_NV_DEFINE, self._define(index, size_bytes, _NV_ATTRIBUTES))

    def nv_define_own(self, index: int, size_bytes: int) -> bool:
        """As `nv_define`, for an index that its own empty password opens. False where index or memory are taken."""
        result = self._define(index, size_bytes, _NV_OWN_ATTRIBUTES)
        if result in (RC_NV_SPACE, RC_NV_DEFINED):
            return False
        _check_result(_NV_DEFINE, result)
        return True

    def _define(self, index: int, size_bytes: int, attributes: int) -> int:
        """The result code of TPM2_NV_DefineSpace."""
        if not 1 <= size_bytes <= MAX_NV_BYTES:
            raise UsageError(
                f"an NV index has 1 to {MAX_NV_BYTES} bytes, not {size_bytes}", check="size of an NV index"
            )
        public = struct.pack(">IHIHH", index, ALG_SHA256, attributes, 0, size_bytes)
        return self._send(_NV_DEFINE, struct.pack(">H", 0) + _sized(public), (OWNER,), with_session=True)[0]

    def nv_undefine(self, index: int) -> None:
        """Remove an NV index of the owner (TPM2_NV_UndefineSpace)."""
        _, reader = self._command(_NV_UNDEFINE, b"", handles=(OWNER, index), authorized=True)
        reader.finish()

    def nv_write(self, index: int, data: bytes, *, authority: int = OWNER) -> None:
        """Write an NV index from its beginning (TPM2_NV_Write). `authority` is as for `nv_read`."""
        for offset in range(0, len(data), NV_CHUNK_BYTES):
            body = _sized(data[offset : offset + NV_CHUNK_BYTES]) + struct.pack(">H", offset)
            _, reader = self._command(_NV_WRITE, body, handles=(authority, index), authorized=True)
            reader.finish()

    def nsm_request(self, index: int) -> None:
        """Have Amazon's hypervisor take the request in an NV index, and put its answer there (vendor command)."""
        _, reader = self._command(_NSM_REQUEST, b"", handles=(index, index), authorized=True)
        reader.finish()

    # --- one command

    def _command_or_none(self, code: int, body: bytes) -> Reader | None:
        """The parameters of the answer. None where the TPM knows no such handle."""
        result, raw = self._result(code, struct.pack(">HII", _NO_SESSIONS, 10 + len(body), code) + body)
        if result == RC_NO_HANDLE:
            return None
        _check_result(code, result)
        return Reader(raw, _ANSWER, _refuse)

    def _command(
        self, code: int, body: bytes, *, handles: tuple[int, ...] = (), answers: int = 0, authorized: bool | None = None
    ) -> tuple[tuple[int, ...], Reader]:
        """Send a command. Returns the handles and the parameters of the answer, without its sessions."""
        with_session = bool(handles) if authorized is None else authorized
        result, raw = self._send(code, body, handles, with_session=with_session)
        _check_result(code, result)
        reader = Reader(raw, _ANSWER, _refuse)
        found = tuple(reader.number(4, "handle") for _ in range(answers))
        if not with_session:
            return found, reader
        size = reader.number(4, "size of the parameters")
        return found, Reader(reader.take(size, "parameters"), _ANSWER, _refuse)

    def _send(self, code: int, body: bytes, handles: tuple[int, ...], *, with_session: bool) -> tuple[int, bytes]:
        """Send a command with its handles, and a session of the empty password. Result code, and what follows it."""
        area = struct.pack(">IHBH", _PASSWORD_SESSION, 0, 0, 0)
        session = struct.pack(">I", len(area)) + area if with_session else b""
        payload = b"".join(struct.pack(">I", handle) for handle in handles) + session + body
        tag = _SESSIONS if with_session else _NO_SESSIONS
        return self._result(code, struct.pack(">HII", tag, 10 + len(payload), code) + payload)

    def _result(self, code: int, command: bytes) -> tuple[int, bytes]:
        """The result code, and what follows the head of the response. A TPM that is busy is asked again."""
        end = self._clock_s() + self._timeout_s
        while True:
            raw = self._exchange(code, command, max(0.001, end - self._clock_s()))
            if not 10 <= len(raw) <= MAX_RESPONSE_BYTES:
                raise _wrong_answer(code, f"10 to {MAX_RESPONSE_BYTES} bytes", f"{len(raw)} bytes")
            tag, size, result = struct.unpack_from(">HII", raw)
            if size != len(raw) or tag not in (_NO_SESSIONS, _SESSIONS):
                raise _wrong_answer(code, f"a response of {len(raw)} bytes", f"tag {tag:#x}, {size} bytes")
            if result not in RC_RETRY:
                return result, raw[10:]
            if self._clock_s() >= end:
                raise silent(self._timeout_s)
            self._sleep(_RETRY_S)

    def _exchange(self, code: int, command: bytes, timeout_s: float) -> bytes:
        if self._is_silent:  # a late answer to that command must not be taken for one to this
            raise silent(self._timeout_s)
        try:
            return self._transport.exchange(command, timeout_s)
        except Timeout:
            self._is_silent = True
            raise
        except OSError as error:
            raise NoDevice(
                f"the TPM cannot be reached: {_NAMES[code]}: {error.strerror or error}",
                check="connection to the TPM",
                expected="a response",
                seen=error.strerror or str(error),
                remedy="boot the machine again; a TPM that went away does not come back",
            ) from error


def _refuse(message: str, *, check: str, expected: object, seen: object, remedy: str | None = None) -> NoReturn:
    raise NoDevice(message, check=check, expected=expected, seen=seen, remedy=remedy or _OTHER)


def _sized(raw: bytes) -> bytes:
    return struct.pack(">H", len(raw)) + raw


def _selection(bitmap: bytes, algorithm: int = ALG_SHA256) -> bytes:
    """TPML_PCR_SELECTION of one bank."""
    return struct.pack(">IHB", 1, algorithm, len(bitmap)) + bitmap


def _check_result(code: int, result: int) -> None:
    if result != 0:
        raise NoDevice(
            f"the TPM refused {_NAMES[code]}: result code {result:#x}",
            check=f"result of {_NAMES[code]}",
            expected="0 (TPM_RC_SUCCESS)",
            seen=f"{result:#x}",
            remedy="see TCG's TPM library, part 2, for the code; clear the owner's password where one was set",
        )


def _wrong_answer(code: int, expected: str, seen: str) -> NoDevice:
    return NoDevice(
        f"the TPM's answer to {_NAMES[code]} is wrong: expected {expected}, seen {seen}",
        check=f"answer to {_NAMES[code]}",
        expected=expected,
        seen=seen,
        remedy=_OTHER,
    )


def _public_key(area: bytes) -> ec.EllipticCurvePublicKey:
    """The key in a TPM2B_PUBLIC of the template: TPMT_PUBLIC with P-256 coordinates."""
    reader = Reader(area, _ANSWER, _refuse)
    head = struct.unpack(">HHI", reader.take(8, "head"))
    reader.sized(64, "policy")
    scheme = struct.unpack(">HHHHH", reader.take(10, "scheme"))
    x, y = (reader.sized(32, "coordinate") for _ in range(2))
    reader.finish()
    wanted = (_ALG_ECC, ALG_SHA256, _KEY_ATTRIBUTES)
    if head != wanted or scheme != (_ALG_NULL, ALG_ECDSA, ALG_SHA256, _CURVE_P256, _ALG_NULL):
        raise _wrong_answer(_CREATE_PRIMARY, "the key of the template", f"{head}, {scheme}")
    try:
        numbers = ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), ec.SECP256R1())
        return numbers.public_key()
    except ValueError:
        raise _wrong_answer(_CREATE_PRIMARY, "a point of P-256", "another point") from None
