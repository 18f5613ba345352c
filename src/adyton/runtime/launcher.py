"""A program of a few instructions that starts another under a name of the manifest's choice (argv[0]).

bubblewrap before 0.9 cannot give a program another argv[0] than its path. `LAUNCHER PATH ARGV0 ARGS...` calls
execve(PATH, [ARGV0, ARGS...], environ), and exits with 127 where that fails. Gramine gives argv[0] as the manifest has
it, and interpreters look at it, so it is given here too.
"""

from __future__ import annotations

import os
import struct
from typing import Final

_LOAD_ADDRESS: Final = 0x400000
_ELF_BYTES: Final = 64
_SEGMENT_BYTES: Final = 56

_X86_64: Final = bytes.fromhex(
    "488b0424"  # mov rax, [rsp]              argc
    "488b7c2410"  # mov rdi, [rsp+16]           argv[1]: the path
    "488d742418"  # lea rsi, [rsp+24]           argv+2: its argv
    "488d54c410"  # lea rdx, [rsp+8*rax+16]     the environment
    "b83b000000"  # mov eax, 59                 execve
    "0f05"  # syscall
    "bf7f000000"  # mov edi, 127
    "b83c000000"  # mov eax, 60                 exit
    "0f05"  # syscall
)


def program() -> bytes | None:
    """The launcher as an ELF executable for this machine. None where there is none for its processor."""
    if os.uname().machine != "x86_64":
        return None
    size = _ELF_BYTES + _SEGMENT_BYTES + len(_X86_64)
    entry = _LOAD_ADDRESS + _ELF_BYTES + _SEGMENT_BYTES
    identification = b"\x7fELF" + bytes((2, 1, 1, 0)) + bytes(8)
    header = identification + struct.pack(
        "<HHIQQQIHHHHHH", 2, 62, 1, entry, _ELF_BYTES, 0, 0, _ELF_BYTES, _SEGMENT_BYTES, 1, 0, 0, 0
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _LOAD_ADDRESS, _LOAD_ADDRESS, size, size, 0x1000)
    return header + segment + _X86_64
