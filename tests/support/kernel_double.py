"""A double of the kernel's attestation interfaces. Each behaviour names its source.

Sources (Linux 6.7 to 6.16): Documentation/ABI/testing/configfs-tsm [ABI]; drivers/virt/coco/tsm.c [tsm.c];
fs/configfs/file.c [file.c]; drivers/virt/coco/tdx-guest/tdx-guest.c [tdx-guest.c];
drivers/virt/coco/sev-guest/sev-guest.c and arch/x86/coco/sev/core.c [sev]; include/uapi/linux/sev-guest.h [uapi].
Gramine: "Attestation and Secret Provisioning" and its pseudo-file table [gramine].
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field

from adyton.tee.sev_guest import SNP_GET_EXT_REPORT, SNP_GET_REPORT


def fail(number: int) -> OSError:
    """The OSError for an errno."""
    return OSError(number, os.strerror(number))


@dataclass
class Open:
    """An open file of the double."""

    path: str
    writing: bool
    content: bytes | None = None
    at: int = 0
    written: bytearray = field(default_factory=bytearray)
    wrote: bool = False


class KernelDouble:
    """System calls over pseudo-files. Subclasses define the files.

    Reads hand out at most `read_bytes` at a time, and writes take at most `write_bytes`, as any driver may.
    """

    def __init__(self, *, read_bytes: int = 1000, write_bytes: int = 1 << 20) -> None:
        self.read_bytes = read_bytes
        self.write_bytes = write_bytes
        self.now = 0.0
        self.slept: list[float] = []
        self.calls: list[str] = []
        self.opened: dict[int, Open] = {}
        self._next = 100

    # what subclasses fill in

    def content_of(self, path: str) -> bytes:
        """The content of a file at its first read. Raises OSError."""
        raise fail(errno.ENOENT)

    def take(self, path: str, data: bytes) -> None:
        """The immediate effect of a write. Raises OSError."""
        raise fail(errno.ENOENT)

    def released(self, path: str, data: bytes) -> None:
        """The effect of closing a written file."""

    def exists(self, path: str) -> bool:
        """Whether a path can be opened."""
        return False

    # the calls

    def mkdir(self, path: str) -> None:
        """No folders by default."""
        self.calls.append(f"mkdir {path}")
        raise fail(errno.ENOENT)

    def rmdir(self, path: str) -> None:
        """No folders by default."""
        self.calls.append(f"rmdir {path}")
        raise fail(errno.ENOENT)

    def open(self, path: str, flags: int) -> int:
        """Open what exists."""
        self.calls.append(f"open {path}")
        if not self.exists(path):
            raise fail(errno.ENOENT)
        self._next += 1
        self.opened[self._next] = Open(path, bool(flags & (os.O_WRONLY | os.O_RDWR)))
        return self._next

    def read(self, descriptor: int, size: int) -> bytes:
        """The content is fixed at the first read of an open file [file.c: needs_read_fill]."""
        file = self.opened[descriptor]
        if file.wrote:
            raise fail(errno.ETXTBSY)
        if file.content is None:
            file.content = self.content_of(file.path)
        chunk = file.content[file.at : file.at + min(size, self.read_bytes)]
        file.at += len(chunk)
        return chunk

    def write(self, descriptor: int, data: bytes) -> int:
        """Take a part or all of it."""
        file = self.opened[descriptor]
        taken = data[: self.write_bytes]
        self.take(file.path, taken)
        file.written += taken
        file.wrote = True
        return len(taken)

    def ioctl(self, descriptor: int, request: int, buffer: bytearray) -> int:
        """No ioctls by default."""
        raise fail(errno.ENOTTY)

    def close(self, descriptor: int) -> None:
        """Apply the written bytes. An error is not reported [file.c: result of release is ignored]."""
        file = self.opened.pop(descriptor)
        if file.wrote:
            self.released(file.path, bytes(file.written))

    def monotonic(self) -> float:
        """A clock that only sleeping moves."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Move the clock."""
        self.slept.append(seconds)
        self.now += seconds


@dataclass
class Instance:
    """One report instance [tsm.c: struct tsm_report_state]."""

    write_generation: int = 0
    read_generation: int = 0
    inblob: bytes = b""
    privilege_level: int = 0
    outblob: bytes | None = None


class TSM(KernelDouble):
    """configfs-tsm under /sys/kernel/config/tsm/report with one provider."""

    ROOT = "/sys/kernel/config/tsm/report"

    def __init__(
        self,
        provider: str | None,
        make: Callable[[bytes, int], bytes] = lambda inblob, _level: inblob,
        *,
        read_bytes: int = 1000,
        write_bytes: int = 1 << 20,
    ) -> None:
        super().__init__(read_bytes=read_bytes, write_bytes=write_bytes)
        self.provider = provider
        self.make = make
        self.instances: dict[str, Instance] = {}
        self.first_generation = 0
        self.report_errors: list[int] = []
        """Errors of the next reads of outblob."""
        self.drop_writes = 0
        """Number of next writes to inblob that are lost with EBUSY at the close of the file."""
        self.other_writers: list[Callable[[Instance], None]] = []
        """Acts of another process on the instance just after our writes."""
        self.after_report: list[Callable[[Instance], None]] = []
        """Acts of another process on the instance just after a report was made."""
        self.privlevel_floor = 0
        self.auxblob = b""
        self.has_auxblob = True

    def mkdir(self, path: str) -> None:
        """ENXIO while no provider is registered [tsm.c: tsm_report_make_item]."""
        self.calls.append(f"mkdir {path}")
        if os.path.dirname(path) != self.ROOT:
            raise fail(errno.ENOENT)
        if self.provider is None:
            raise fail(errno.ENXIO)
        if path in self.instances:
            raise fail(errno.EEXIST)
        self.instances[path] = Instance(self.first_generation, self.first_generation)

    def rmdir(self, path: str) -> None:
        """The instance and its report are gone [tsm.c: tsm_report_item_release]."""
        self.calls.append(f"rmdir {path}")
        if path not in self.instances:
            raise fail(errno.ENOENT)
        del self.instances[path]

    def exists(self, path: str) -> bool:
        """The attributes of an instance. Auxblob and privlevel are visible by provider [tsm.c: is_visible]."""
        folder, name = os.path.split(path)
        names = {"inblob", "outblob", "generation", "provider"}
        if self.has_auxblob:
            names.add("auxblob")
        if self.provider == "sev_guest":
            names |= {"privlevel", "privlevel_floor"}
        return folder in self.instances and name in names

    def content_of(self, path: str) -> bytes:
        """Generation and provider as text with a newline. Outblob makes the report [tsm.c]."""
        folder, name = os.path.split(path)
        instance = self.instances[folder]
        if name == "generation":
            return f"{instance.write_generation}\n".encode()
        if name == "provider":
            return f"{self.provider}\n".encode()
        if name == "auxblob":
            return self.auxblob
        if name != "outblob":
            raise fail(errno.EACCES)
        return self._report(instance)

    def _report(self, instance: Instance) -> bytes:
        """EINVAL without inblob. The provider's own errors otherwise [tsm.c: tsm_report_read]."""
        if not instance.inblob:
            raise fail(errno.EINVAL)
        if self.report_errors:
            raise fail(self.report_errors.pop(0))
        if instance.outblob is None or instance.read_generation != instance.write_generation:
            if len(instance.inblob) != 64:
                raise fail(errno.EINVAL)
            instance.outblob = self.make(instance.inblob, instance.privilege_level)
            instance.read_generation = instance.write_generation
        made = instance.outblob
        if self.after_report:
            self.after_report.pop(0)(instance)
        return made

    def _advance(self, instance: Instance) -> None:
        """EBUSY once the writes have lapped the reads [tsm.c: try_advance_write_generation]."""
        if instance.write_generation == (instance.read_generation - 1) % (1 << 64):
            raise fail(errno.EBUSY)
        instance.write_generation = (instance.write_generation + 1) % (1 << 64)

    def take(self, path: str, data: bytes) -> None:
        """Text attributes act at once. Binary ones are only gathered, up to their size [file.c]."""
        folder, name = os.path.split(path)
        instance = self.instances[folder]
        if name == "inblob":
            if len(data) > 64:
                raise fail(errno.EFBIG)
            return
        if name != "privlevel":
            raise fail(errno.EACCES)
        level = int(data)
        if not self.privlevel_floor <= level <= 3:
            raise fail(errno.EINVAL)
        self._advance(instance)
        instance.privilege_level = level

    def released(self, path: str, data: bytes) -> None:
        """inblob takes effect at close, and errors there are not reported [file.c]."""
        folder, name = os.path.split(path)
        if name != "inblob":
            return
        instance = self.instances[folder]
        if self.drop_writes:
            self.drop_writes -= 1
            return
        try:
            self._advance(instance)
        except OSError:
            return
        instance.inblob = data
        if self.other_writers:
            self.other_writers.pop(0)(instance)


class Gramine(KernelDouble):
    """Gramine's /dev/attestation."""

    ROOT = "/dev/attestation"

    def __init__(
        self, kind: bytes, make: Callable[[bytes], bytes], *, read_bytes: int = 1000, write_bytes: int = 1 << 20
    ) -> None:
        super().__init__(read_bytes=read_bytes, write_bytes=write_bytes)
        self.kind = kind
        self.make = make
        self.user_report_data = bytes(64)
        self.before_quote: list[Callable[[], None]] = []
        self.quote_error: int | None = None

    def exists(self, path: str) -> bool:
        """`quote` is missing where attestation is off [gramine]."""
        folder, name = os.path.split(path)
        names = {"attestation_type", "user_report_data"} | (set() if self.kind == b"none" else {"quote"})
        return folder == self.ROOT and name in names

    def open(self, path: str, flags: int) -> int:
        """The quote is made when the file is opened [gramine]."""
        descriptor = super().open(path, flags)
        if path.endswith("/quote"):
            if self.before_quote:
                self.before_quote.pop(0)()
            if self.quote_error is not None:
                del self.opened[descriptor]
                raise fail(self.quote_error)
            self.opened[descriptor].content = self.make(self.user_report_data)
        return descriptor

    def content_of(self, path: str) -> bytes:
        """The type has no newline [gramine]."""
        return self.kind if path.endswith("attestation_type") else b""

    def take(self, path: str, data: bytes) -> None:
        """Each write replaces all 64 bytes, filled up with zeros, at once [gramine]."""
        self.user_report_data = data[:64].ljust(64, b"\0")


class TDXGuest(TSM):
    """A TDX guest: configfs-tsm, and RTMR3 in sysfs."""

    RTMR3 = "/sys/devices/virtual/misc/tdx_guest/measurements/rtmr3:sha384"

    def __init__(self, make: Callable[[bytes, int], bytes] = lambda inblob, _level: inblob, **sizes: int) -> None:
        super().__init__("tdx_guest", make, **sizes)
        self.rtmr3: bytes | None = bytes(48)
        self.extended: list[bytes] = []
        """Every digest that was written to extend the register."""

    def exists(self, path: str) -> bool:
        """The register is there on newer kernels only."""
        if path == self.RTMR3:
            return self.rtmr3 is not None
        return super().exists(path)

    def content_of(self, path: str) -> bytes:
        """The register's present value, 48 raw bytes."""
        if path == self.RTMR3 and self.rtmr3 is not None:
            return self.rtmr3
        return super().content_of(path)

    def take(self, path: str, data: bytes) -> None:
        """Writing a digest extends: RTMR = SHA-384(RTMR, digest). EINVAL for another length."""
        if path != self.RTMR3 or self.rtmr3 is None:
            super().take(path, data)
            return
        if len(data) != 48:
            raise fail(errno.EINVAL)
        self.extended.append(data)
        self.rtmr3 = hashlib.sha384(self.rtmr3 + data).digest()


class SEVGuest(TSM):
    """A SEV-SNP guest: /dev/sev-guest, and configfs-tsm where the kernel has it."""

    def __init__(
        self,
        make: Callable[[bytes, int], bytes],
        *,
        configfs: bool = True,
        certificates: bytes = b"",
        read_bytes: int = 1000,
    ) -> None:
        super().__init__("sev_guest" if configfs else None, make, read_bytes=read_bytes)
        self.auxblob = certificates
        self.status = 0
        self.size = 1184
        self.error: tuple[int, int, int] | None = None
        """errno, firmware error and host error of the next ioctls."""

    def exists(self, path: str) -> bool:
        """The device is always there."""
        return path == "/dev/sev-guest" or super().exists(path)

    def ioctl(self, descriptor: int, request: int, buffer: bytearray) -> int:
        """Reads the request and writes the response through the pointers of the argument [uapi, sev]."""
        if self.error is not None:
            number, firmware, host = self.error
            buffer[24:28], buffer[28:32] = firmware.to_bytes(4, "little"), host.to_bytes(4, "little")
            raise fail(number)
        if buffer[0] == 0:
            raise fail(errno.EINVAL)
        request_at = int.from_bytes(buffer[8:16], "little")
        response_at = int.from_bytes(buffer[16:24], "little")
        asked = ctypes.string_at(request_at, 112 if request == SNP_GET_EXT_REPORT else 96)
        if request == SNP_GET_EXT_REPORT:
            self._certificates(asked, request_at, buffer)
        elif request != SNP_GET_REPORT:
            raise fail(errno.ENOTTY)
        level = int.from_bytes(asked[64:68], "little")
        report = self.make(asked[:64], level) if self.status == 0 else b""
        answer = self.status.to_bytes(4, "little") + self.size.to_bytes(4, "little") + bytes(24) + report
        ctypes.memmove(response_at, answer.ljust(4000, b"\0"), 4000)
        return 0

    def _certificates(self, asked: bytes, request_at: int, buffer: bytearray) -> None:
        """Too little room: EIO, host error 1, and the length that is needed [sev: get_ext_report]."""
        at, room = int.from_bytes(asked[96:104], "little"), int.from_bytes(asked[104:108], "little")
        if room % 4096:
            raise fail(errno.EINVAL)
        if len(self.auxblob) > room:
            needed = -(-len(self.auxblob) // 4096) * 4096
            ctypes.memmove(request_at + 104, needed.to_bytes(4, "little"), 4)
            buffer[28:32] = (1).to_bytes(4, "little")
            raise fail(errno.EIO)
        ctypes.memmove(at, self.auxblob, len(self.auxblob))
