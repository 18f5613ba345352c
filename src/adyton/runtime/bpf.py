"""Programs for the kernel's classic BPF machine, as seccomp(2) takes them: each made of smaller whole programs.

A fragment always ends in an answer, whichever way it is taken. So a fragment can stand anywhere, there are no labels,
and nothing can run off the end. The machine has one register. `load` fills it, and the tests look at it.

Source: linux/filter.h, and the kernel's Documentation/networking/filter.rst.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
JUMP: Final = 0x05  # BPF_JMP | BPF_JA
IF_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
IF_AT_LEAST: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
IF_ANY_BIT: Final = 0x45  # BPF_JMP | BPF_JSET | BPF_K
ANSWER: Final = 0x06  # BPF_RET | BPF_K

MAX_INSTRUCTIONS: Final = 4096
_MAX_SKIP: Final = 255
_INSTRUCTION: Final = struct.Struct("<HBBI")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: its code, how many to skip where its test holds and where not, and its constant (32 bits)."""

    code: int
    if_true: int
    if_false: int
    constant: int


Fragment = tuple[Instruction, ...]


def answer(value: int) -> Fragment:
    """End with this answer."""
    return (Instruction(ANSWER, 0, 0, value),)


def load(offset: int, then: Fragment) -> Fragment:
    """Put the 32 bits at `offset` (bytes) of the data into the register, and go on."""
    return (Instruction(LOAD, 0, 0, offset), *then)


def keep_bits(mask: int, then: Fragment) -> Fragment:
    """Clear all bits of the register but these, and go on."""
    return (Instruction(AND, 0, 0, mask), *then)


def if_equal(value: int, then: Fragment, otherwise: Fragment) -> Fragment:
    """Go on with `then` where the register is `value`."""
    return _branch(IF_EQUAL, value, then, otherwise)


def if_at_least(value: int, then: Fragment, otherwise: Fragment) -> Fragment:
    """Go on with `then` where the register, without a sign, is `value` or more."""
    return _branch(IF_AT_LEAST, value, then, otherwise)


def if_any_bit(mask: int, then: Fragment, otherwise: Fragment) -> Fragment:
    """Go on with `then` where any bit of `mask` is set in the register."""
    return _branch(IF_ANY_BIT, mask, then, otherwise)


def if_one_of(values: Sequence[int], then: Fragment, otherwise: Fragment) -> Fragment:
    """Go on with `then` where the register is any of the values."""
    for value in reversed(values):
        otherwise = if_equal(value, then, otherwise)
    return otherwise


def encode(program: Fragment) -> bytes:
    """The program as an array of struct sock_filter. Raises ValueError where it is longer than the kernel takes."""
    if len(program) > MAX_INSTRUCTIONS:
        raise ValueError(f"{len(program)} instructions; the kernel takes {MAX_INSTRUCTIONS}")
    return b"".join(_INSTRUCTION.pack(one.code, one.if_true, one.if_false, one.constant) for one in program)


def _branch(code: int, constant: int, then: Fragment, otherwise: Fragment) -> Fragment:
    if len(otherwise) <= _MAX_SKIP:
        return (Instruction(code, len(otherwise), 0, constant), *otherwise, *then)
    far = Instruction(JUMP, 0, 0, len(otherwise))  # a test skips 255 at most, a jump any number
    return (Instruction(code, 0, 1, constant), far, *otherwise, *then)
