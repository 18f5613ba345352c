"""The unified kernel image: a stub with kernel, command line and initrd as sections of one PE file. Pure.

The stub is systemd's (version 257). It measures each section that it knows into PCR 11, in an order of its own:
src/fundamental/uki.c and src/boot/measure.c of systemd. An image has exactly the sections below. One that the stub
knows and this module does not would change what boots, so it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from adyton.errors import UsageError
from adyton.image.document import MAX_COMMAND_LINE_CHARACTERS
from adyton.image.pe import PEFile, add_sections

MEASURED: Final = (".linux", ".osrel", ".cmdline", ".initrd", ".uname", ".sbat")
"""The sections that are measured, in the stub's order."""
ADDED: Final = (".osrel", ".cmdline", ".uname", ".initrd", ".linux")
"""Those that the build adds to the stub, in the order in which they lie in the file."""
OF_THE_STUB: Final = frozenset({".text", ".rodata", ".data", ".sbat", ".sdmagic", ".reloc"})


@dataclass(frozen=True, slots=True)
class UKI:
    """A unified kernel image that was parsed."""

    file: PEFile
    sections: Mapping[str, bytes] = field(repr=False)
    command_line: str

    @property
    def linux(self) -> bytes:
        """The kernel, which is a PE file too."""
        return self.sections[".linux"]

    @classmethod
    def parse(cls, raw: bytes) -> UKI:
        """Parse a UKI. Raises UsageError where it is none, or has other sections than an image of Adyton."""
        file = PEFile.parse(raw)
        sections = file.contents()
        expected = OF_THE_STUB | set(ADDED)
        if set(sections) != expected:
            raise _wrong("sections of the kernel image", ", ".join(sorted(expected)), ", ".join(sorted(sections)))
        raw_line = sections[".cmdline"]
        if not raw_line.isascii() or len(raw_line) > MAX_COMMAND_LINE_CHARACTERS or b"\0" in raw_line:
            raise _wrong(
                "command line of the kernel image", "ASCII within the kernel's limit", f"{len(raw_line)} bytes"
            )
        return cls(file, sections, raw_line.decode("ascii"))


def build_uki(stub: bytes, *, linux: bytes, initrd: bytes, command_line: str, os_release: str, kernel: str) -> bytes:
    """Put a UKI together. `kernel` is the kernel's release as `uname -r` says it. Raises UsageError."""
    contents = {
        ".osrel": os_release.encode(),
        ".cmdline": command_line.encode("ascii"),
        ".uname": kernel.encode("ascii"),
        ".initrd": initrd,
        ".linux": linux,
    }
    raw = add_sections(stub, {name: contents[name] for name in ADDED})
    UKI.parse(raw)
    return raw


def _wrong(check: str, expected: str, seen: str) -> UsageError:
    return UsageError(
        f"{check}: expected {expected}, seen {seen[:400]}",
        check=check,
        expected=expected,
        seen=seen[:400],
        remedy="take the adyton.efi that `adyton image build` wrote",
    )
