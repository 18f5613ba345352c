"""MRENCLAVE of a Gramine enclave, computed from its manifest's bytes and libpal.so alone (SDM vol. 3D, "MRENCLAVE").

MRENCLAVE is the SHA-256 over 64-byte records (little-endian, unlisted bytes zero)::

    ECREATE  0 "ECREATE\\0"   8 u32 SSA frame pages   12 u64 enclave size
    EADD     0 "EADD\\0\\0\\0\\0" 8 u64 page offset       16 u64 SECINFO flags
    EEXTEND  0 "EEXTEND\\0"   8 u64 chunk offset       then the 256 bytes of the chunk

One ECREATE, then per page one EADD, followed by sixteen EEXTEND where the page's content is measured. Gramine packs
its areas from the top of the enclave (base 0) downwards: manifest, SSA frames, TCS, TLS, stacks, signal stacks, libpal.
The rest is free memory: it is added but not measured, or with EDMM not even added.
"""

from __future__ import annotations

import hashlib
import struct
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from adyton.errors import MalformedManifest, ManifestError
from adyton.values import Measurement

PAGE: Final = 4096
READ, WRITE, EXECUTE, TCS, REGULAR = 0x1, 0x2, 0x4, 0x100, 0x200
HEAP_MIN: Final = 0x10000
MAX_PAL_BYTES: Final = 64 << 20

_EADD: Final = struct.Struct("<8sQQ40x")
_EEXTEND: Final = struct.Struct("<8sQ48x")
_ECREATE: Final = struct.Struct("<8sIQ44x")
_BATCH_PAGES: Final = 65_536


@dataclass(frozen=True, slots=True)
class Offsets:
    """Sizes and field offsets of one Gramine build. The defaults are those of 1.8 and 1.9."""

    ssa_frame_bytes: int = 16_384
    ssa_frames: int = 2
    gpr_bytes: int = 0xB8
    stack_bytes: int = 262_144
    signal_stack_bytes: int = 65_536
    canary: int = 0x0000BADBADBADBAD
    tls_self: int = 0x000
    tls_canary: int = 0x008
    tls_enclave_size: int = 0x110
    tls_tcs: int = 0x118
    tls_stack: int = 0x120
    tls_signal_low: int = 0x130
    tls_signal_high: int = 0x138
    tls_ssa: int = 0x148
    tls_gpr: int = 0x150
    tls_manifest_size: int = 0x1A0
    tls_heap_min: int = 0x1A8
    tls_heap_max: int = 0x1B0

    @classmethod
    def of(cls, constants: Mapping[str, object]) -> Offsets:
        """Those of a Gramine build, by the names of its `_graminelibos_offsets` module. Defaults for what it lacks."""
        found = {name: constants.get(theirs) for name, theirs in _THEIR_NAMES.items()}
        return cls(**{name: value for name, value in found.items() if isinstance(value, int)})


_THEIR_NAMES: Final = {
    "ssa_frame_bytes": "SSA_FRAME_SIZE",
    "ssa_frames": "SSA_FRAME_NUM",
    "gpr_bytes": "SGX_GPR_SIZE",
    "stack_bytes": "ENCLAVE_STACK_SIZE",
    "signal_stack_bytes": "ENCLAVE_SIG_STACK_SIZE",
    "canary": "STACK_PROTECTOR_CANARY_DEFAULT",
    "tls_self": "SGX_COMMON_SELF",
    "tls_canary": "SGX_COMMON_STACK_PROTECTOR_CANARY",
    "tls_enclave_size": "SGX_ENCLAVE_SIZE",
    "tls_tcs": "SGX_TCS_OFFSET",
    "tls_stack": "SGX_INITIAL_STACK_ADDR",
    "tls_signal_low": "SGX_SIG_STACK_LOW",
    "tls_signal_high": "SGX_SIG_STACK_HIGH",
    "tls_ssa": "SGX_SSA",
    "tls_gpr": "SGX_GPR",
    "tls_manifest_size": "SGX_MANIFEST_SIZE",
    "tls_heap_min": "SGX_HEAP_MIN",
    "tls_heap_max": "SGX_HEAP_MAX",
}


@dataclass(frozen=True, slots=True)
class Segment:
    """One PT_LOAD of an ELF file."""

    offset: int
    address: int
    file_bytes: int
    memory_bytes: int
    flags: int


@dataclass(frozen=True, slots=True)
class Pal:
    """The parts of libpal.so that MRENCLAVE covers: entry point, loadable segments, and their content."""

    raw: bytes = field(repr=False)
    entry: int
    segments: tuple[Segment, ...]

    @property
    def low(self) -> int:
        """Lowest mapped address, rounded down to a page."""
        return min(segment.address for segment in self.segments) // PAGE * PAGE

    @property
    def span_bytes(self) -> int:
        """From the lowest mapped address to the highest end, in whole pages."""
        return _round_up(max(segment.address + segment.memory_bytes for segment in self.segments)) - self.low


@dataclass(frozen=True, slots=True)
class Area:
    """A run of pages of one kind: `content` is measured where it is not None, zeros where it is empty."""

    name: str
    address: int
    size_bytes: int
    flags: int
    content: bytes | None = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Layout:
    """The areas of an enclave in the order in which they are measured."""

    enclave_bytes: int
    ssa_pages: int
    areas: tuple[Area, ...]


def _round_up(size: int) -> int:
    return (size + PAGE - 1) // PAGE * PAGE


def parse_pal(raw: bytes) -> Pal:
    """Parse libpal.so (64-bit little-endian ELF). Raises ManifestError where it is not such a file."""
    if len(raw) > MAX_PAL_BYTES or len(raw) < 64 or raw[:6] != b"\x7fELF\x02\x01":
        raise _bad_pal("header", "a 64-bit little-endian ELF file of at most 64 MiB", f"{len(raw)} bytes")
    entry, table = struct.unpack_from("<QQ", raw, 24)
    size, count = struct.unpack_from("<HH", raw, 54)
    if size != 56 or table + size * count > len(raw):
        raise _bad_pal("program headers", "a table of 56-byte headers inside the file", f"{count} of {size} at {table}")
    segments = []
    for position in range(count):
        kind, flags, offset, address, _, file_bytes, memory_bytes, _ = struct.unpack_from(
            "<IIQQQQQQ", raw, table + size * position
        )
        if kind != 1:
            continue
        if file_bytes > memory_bytes or offset + file_bytes > len(raw) or address + memory_bytes > MAX_PAL_BYTES:
            raise _bad_pal("segment", "file content inside the file and below 64 MiB", f"segment {position}")
        segments.append(Segment(offset, address, file_bytes, memory_bytes, flags))
    if not segments:
        raise _bad_pal("segments", "at least one PT_LOAD", "none")
    return Pal(raw, entry, tuple(segments))


def _bad_pal(what: str, expected: str, seen: str) -> ManifestError:
    return ManifestError(
        f"libpal.so has an unexpected {what}",
        check=f"libpal.so {what}",
        expected=expected,
        seen=seen,
        remedy="name sgx/libpal.so of the Gramine installation that will run it",
    )


def lay_out(
    manifest_bytes: bytes, pal: Pal, *, enclave_bytes: int, max_threads: int, edmm: bool, offsets: Offsets | None = None
) -> Layout:
    """Place every area. Raises MalformedManifest where the enclave is too small for them."""
    known = offsets or Offsets()
    top = enclave_bytes
    placed: dict[str, list[tuple[int, int]]] = {}

    def place(name: str, size: int) -> int:
        nonlocal top
        top -= _round_up(size)
        placed.setdefault(name, []).append((top, _round_up(size)))
        return top

    frames = known.ssa_frame_bytes * known.ssa_frames
    manifest = place("manifest", len(manifest_bytes) + 1)
    ssa = place("ssa", max_threads * frames)
    tcs = place("tcs", max_threads * PAGE)
    tls = place("tls", max_threads * PAGE)
    stacks = [place("stack", known.stack_bytes) for _ in range(max_threads)]
    signal_stacks = [place("signal stack", known.signal_stack_bytes) for _ in range(max_threads)]
    pal_start = place("pal", pal.span_bytes)
    if pal_start < HEAP_MIN:
        raise MalformedManifest(
            "the enclave is too small for the manifest, the threads and Gramine itself",
            check="manifest key sgx.enclave_size",
            expected=f"at least {enclave_bytes - pal_start + HEAP_MIN} bytes",
            seen=f"{enclave_bytes} bytes, {max_threads} threads, a manifest of {len(manifest_bytes)} bytes",
            remedy="give sgx.enclave_size a larger power of two, or sgx.max_threads a smaller number",
        )
    tcs_pages, tls_pages = bytearray(max_threads * PAGE), bytearray(max_threads * PAGE)
    for thread in range(max_threads):
        at = thread * PAGE
        frame = ssa + frames * thread
        entry = pal_start + pal.entry
        tcs_fields = (0, frame, 0, known.ssa_frames, entry, 0, 0, tls + at, 0xFFF, 0xFFF)
        struct.pack_into("<QQIIQQQQII", tcs_pages, at + 0x08, *tcs_fields)
        fields = {
            known.tls_self: tls + at,
            known.tls_canary: known.canary,
            known.tls_enclave_size: enclave_bytes,
            known.tls_tcs: tcs + at,
            known.tls_stack: stacks[thread] + known.stack_bytes,
            known.tls_signal_low: signal_stacks[thread],
            known.tls_signal_high: signal_stacks[thread] + known.signal_stack_bytes,
            known.tls_ssa: frame,
            known.tls_gpr: frame + known.ssa_frame_bytes - known.gpr_bytes,
            known.tls_manifest_size: len(manifest_bytes) + 1,
            known.tls_heap_min: HEAP_MIN,
            known.tls_heap_max: pal_start,
        }
        for offset, value in fields.items():
            struct.pack_into("<Q", tls_pages, at + offset, value)
    data = READ | WRITE | REGULAR
    areas = [
        Area("manifest", manifest, placed["manifest"][0][1], READ | REGULAR, manifest_bytes + b"\0"),
        Area("ssa", ssa, placed["ssa"][0][1], data),
        Area("tcs", tcs, placed["tcs"][0][1], TCS, bytes(tcs_pages)),
        Area("tls", tls, placed["tls"][0][1], data, bytes(tls_pages)),
        *(Area("stack", address, size, data) for address, size in placed["stack"]),
        *(Area("signal stack", address, size, data) for address, size in placed["signal stack"]),
        *_pal_areas(pal, pal_start),
    ]
    if not edmm and pal_start > HEAP_MIN:
        areas.append(Area("free", HEAP_MIN, pal_start - HEAP_MIN, READ | WRITE | EXECUTE | REGULAR, None))
    return Layout(enclave_bytes, known.ssa_frame_bytes // PAGE, tuple(areas))


def _pal_areas(pal: Pal, start: int) -> Iterator[Area]:
    for segment in pal.segments:
        first = segment.address // PAGE * PAGE
        size = _round_up(segment.address + segment.memory_bytes) - first
        content = bytes(segment.address - first) + pal.raw[segment.offset : segment.offset + segment.file_bytes]
        flags = REGULAR
        for bit, flag in ((4, READ), (2, WRITE), (1, EXECUTE)):
            flags |= flag if segment.flags & bit else 0
        yield Area("pal", start - pal.low + first, size, flags, content)


def measure(layout: Layout) -> Measurement:
    """Hash the records of a layout."""
    digest = hashlib.sha256(_ECREATE.pack(b"ECREATE\0", layout.ssa_pages, layout.enclave_bytes))
    for area in layout.areas:
        if area.content is None:
            _add_unmeasured(digest, area)
            continue
        content = area.content.ljust(area.size_bytes, b"\0")
        for at in range(0, area.size_bytes, PAGE):
            records = bytearray(_EADD.pack(b"EADD\0\0\0\0", area.address + at, area.flags))
            for chunk in range(at, at + PAGE, 256):
                records += _EEXTEND.pack(b"EEXTEND\0", area.address + chunk)
                records += content[chunk : chunk + 256]
            digest.update(records)
    return Measurement(digest.digest())


def _add_unmeasured(digest: hashlib._Hash, area: Area) -> None:
    """EADD records of many pages at once: a record repeated, with the eight bytes of its offset put in by stride."""
    for first in range(area.address, area.address + area.size_bytes, PAGE * _BATCH_PAGES):
        end = min(first + PAGE * _BATCH_PAGES, area.address + area.size_bytes)
        pages = array("Q", range(first, end, PAGE))
        offsets = pages.tobytes()
        records = bytearray(_EADD.pack(b"EADD\0\0\0\0", 0, area.flags) * len(pages))
        for byte in range(8):
            records[8 + byte :: 64] = offsets[byte::8]
        digest.update(records)


def mrenclave(
    manifest_bytes: bytes, pal: Pal, *, enclave_bytes: int, max_threads: int, edmm: bool, offsets: Offsets | None = None
) -> Measurement:
    """MRENCLAVE of the enclave that Gramine builds from these."""
    return measure(
        lay_out(
            manifest_bytes,
            pal,
            enclave_bytes=enclave_bytes,
            max_threads=max_threads,
            edmm=edmm,
            offsets=offsets,
        )
    )
