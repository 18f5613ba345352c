"""MRENCLAVE: against a second, plain implementation of the algorithm, and against the worked layout."""

from __future__ import annotations

import hashlib
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adyton.errors import MalformedManifest, ManifestError
from adyton.manifest.mrenclave import Offsets, lay_out, measure, mrenclave, parse_pal

PAGE = 4096


def elf(segments: list[tuple[int, int, int, int, int]], *, entry: int = 0x9092, size: int | None = None) -> bytes:
    """A constructed ELF file with these PT_LOADs (offset, vaddr, filesz, memsz, flags) and some other headers."""
    headers = [struct.pack("<IIQQQQQQ", 4, 4, 0, 0, 0, 0, 0, 0)]  # PT_NOTE, which nobody looks at
    headers += [struct.pack("<IIQQQQQQ", 1, fl, off, va, va, fs, ms, PAGE) for off, va, fs, ms, fl in segments]
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, entry, 64, 0, 0, 64, 56, len(headers), 64, 0, 0)
    raw = header + b"".join(headers)
    total = size or max(off + fs for off, _, fs, _, _ in segments)
    return raw + bytes((at * 7 + at // 251) % 251 for at in range(len(raw), total))


WORKED = elf([(0, 0, 0x501EC, 0x501EC, 5), (0x50E38, 0x51E38, 0x19D8, 0x7548, 6)], size=389_792)


def reference(manifest: bytes, pal: bytes, *, size: int, threads: int, edmm: bool) -> str:
    """The algorithm of the fact sheet written down a second time, record by record, without any of our code."""
    pages: list[tuple[int, int, bytes | None]] = []  # address, flags, content
    top = size

    def down(length: int) -> int:
        nonlocal top
        top -= -(-length // PAGE) * PAGE
        return top

    def put(address: int, length: int, flags: int, content: bytes) -> None:
        content = content.ljust(-(-length // PAGE) * PAGE, b"\0")
        pages.extend((address + at, flags, content[at : at + PAGE]) for at in range(0, len(content), PAGE))

    phoff, phnum = struct.unpack_from("<Q", pal, 32)[0], struct.unpack_from("<H", pal, 56)[0]
    loads = []
    for number in range(phnum):
        kind, flags, offset, address, _, filesz, memsz, _ = struct.unpack_from("<IIQQQQQQ", pal, phoff + 56 * number)
        if kind == 1:
            loads.append((offset, address, filesz, memsz, flags))
    low = min(address // PAGE * PAGE for _, address, _, _, _ in loads)
    high = max(-(-(address + memsz) // PAGE) * PAGE for _, address, _, memsz, _ in loads)
    entry = struct.unpack_from("<Q", pal, 24)[0]

    manifest_at = down(len(manifest) + 1)
    ssa = down(threads * 2 * 16384)
    tcs = down(threads * PAGE)
    tls = down(threads * PAGE)
    stacks = [down(262144) for _ in range(threads)]
    sig_stacks = [down(65536) for _ in range(threads)]
    pal_at = down(high - low)

    put(manifest_at, len(manifest) + 1, 0x201, manifest + b"\0")
    put(ssa, threads * 2 * 16384, 0x203, b"")
    for thread in range(threads):
        page = bytearray(PAGE)
        for at, form, value in (
            (0x10, "<Q", ssa + 0x8000 * thread),
            (0x1C, "<I", 2),
            (0x20, "<Q", pal_at + entry),
            (0x38, "<Q", tls + 0x1000 * thread),
            (0x40, "<I", 0xFFF),
            (0x44, "<I", 0xFFF),
        ):
            struct.pack_into(form, page, at, value)
        put(tcs + PAGE * thread, PAGE, 0x100, bytes(page))
    for thread in range(threads):
        page = bytearray(PAGE)
        for at, value in (
            (0x000, tls + 0x1000 * thread),
            (0x008, 0x0000BADBADBADBAD),
            (0x110, size),
            (0x118, tcs + 0x1000 * thread),
            (0x120, stacks[thread] + 262144),
            (0x130, sig_stacks[thread]),
            (0x138, sig_stacks[thread] + 65536),
            (0x148, ssa + 0x8000 * thread),
            (0x150, ssa + 0x8000 * thread + 0x4000 - 0xB8),
            (0x1A0, len(manifest) + 1),
            (0x1A8, 0x10000),
            (0x1B0, pal_at),
        ):
            struct.pack_into("<Q", page, at, value)
        put(tls + PAGE * thread, PAGE, 0x203, bytes(page))
    for address in stacks:
        put(address, 262144, 0x203, b"")
    for address in sig_stacks:
        put(address, 65536, 0x203, b"")
    for offset, address, filesz, memsz, flags in loads:
        first = address // PAGE * PAGE
        access = 0x200 | (1 if flags & 4 else 0) | (2 if flags & 2 else 0) | (4 if flags & 1 else 0)
        content = bytes(address - first) + pal[offset : offset + filesz]
        put(pal_at - low + first, address + memsz - first, access, content)
    if not edmm:
        pages.extend((address, 0x207, None) for address in range(0x10000, pal_at, PAGE))

    digest = hashlib.sha256(b"ECREATE\0" + struct.pack("<IQ", 4, size) + bytes(44))
    for address, flags, measured in pages:
        digest.update(b"EADD\0\0\0\0" + struct.pack("<QQ", address, flags) + bytes(40))
        if measured is not None:
            for at in range(0, PAGE, 256):
                digest.update(b"EEXTEND\0" + struct.pack("<Q", address + at) + bytes(48) + measured[at : at + 256])
    return digest.hexdigest()


@pytest.mark.parametrize(
    ("size", "threads", "edmm"),
    [(256 << 20, 4, False), (16 << 20, 1, False), (512 << 20, 32, False), (1 << 40, 4, True), (1 << 30, 2, True)],
)
def test_mrenclave_of_the_worked_cases_agrees_with_a_second_implementation(size: int, threads: int, edmm: bool) -> None:
    """The sizes, threads and segments of the six worked cases, on constructed content."""
    manifest = b"x" * 9000
    ours = mrenclave(manifest, parse_pal(WORKED), enclave_bytes=size, max_threads=threads, edmm=edmm)
    assert str(ours) == reference(manifest, WORKED, size=size, threads=threads, edmm=edmm)


def test_layout_of_the_worked_example_has_its_addresses() -> None:
    """Every address that the fact sheet lists for the defaults case."""
    layout = lay_out(b"x" * 9000, parse_pal(WORKED), enclave_bytes=256 << 20, max_threads=4, edmm=False)
    found = [(area.name, area.address) for area in layout.areas]
    assert found == [
        ("manifest", 0xFFFD000),
        ("ssa", 0xFFDD000),
        ("tcs", 0xFFD9000),
        ("tls", 0xFFD5000),
        ("stack", 0xFF95000),
        ("stack", 0xFF55000),
        ("stack", 0xFF15000),
        ("stack", 0xFED5000),
        ("signal stack", 0xFEC5000),
        ("signal stack", 0xFEB5000),
        ("signal stack", 0xFEA5000),
        ("signal stack", 0xFE95000),
        ("pal", 0xFE3B000),
        ("pal", 0xFE3B000 + 0x51000),
        ("free", 0x10000),
    ]
    assert layout.areas[-1].address + layout.areas[-1].size_bytes == 0xFE3B000
    assert layout.areas[0].size_bytes == 3 * PAGE


SEGMENTS = st.lists(
    st.tuples(
        st.integers(0, 3 * PAGE),
        st.integers(0, 2 * PAGE),
        st.integers(0, 5000),
        st.integers(0, 5000),
        st.integers(0, 7),
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=25, deadline=None)
@given(SEGMENTS, st.binary(max_size=9000), st.integers(1, 3), st.booleans())
def test_mrenclave_of_any_segments_agrees_with_a_second_implementation(
    parts: list[tuple[int, int, int, int, int]], manifest: bytes, threads: int, edmm: bool
) -> None:
    """Odd offsets, sizes, gaps between segments, zero-filled ends."""
    segments = []
    address = 0
    for gap, offset, filesz, more, flags in parts:
        address += gap
        segments.append((512 + offset, address, filesz, filesz + more, flags))
        address = -(-(address + filesz + more) // PAGE) * PAGE
    raw = elf(segments, size=20_000)
    ours = mrenclave(manifest, parse_pal(raw), enclave_bytes=4 << 20, max_threads=threads, edmm=edmm)
    assert str(ours) == reference(manifest, raw, size=4 << 20, threads=threads, edmm=edmm)


def test_mrenclave_changes_with_one_byte_of_anything() -> None:
    """Manifest, library, threads, size and EDMM all count."""
    pal = parse_pal(WORKED)

    def of(
        manifest: bytes = b"m", raw: bytes = WORKED, size: int = 16 << 20, threads: int = 1, edmm: bool = False
    ) -> str:
        return str(mrenclave(manifest, parse_pal(raw), enclave_bytes=size, max_threads=threads, edmm=edmm))

    changed = bytearray(WORKED)
    changed[0x1000] ^= 1
    every = [of(), of(b"n"), of(raw=bytes(changed)), of(size=32 << 20), of(threads=2), of(edmm=True)]
    assert len(set(every)) == len(every)
    outside = bytearray(WORKED)
    outside[0x50400] ^= 1  # between the segments: in the file, never in the enclave
    assert of(raw=bytes(outside)) == of()
    assert pal.span_bytes == 0x5A000


def test_enclave_that_is_too_small_is_refused_with_what_it_needs() -> None:
    """The remedy names the key."""
    with pytest.raises(MalformedManifest, match="too small") as refused:
        lay_out(b"", parse_pal(WORKED), enclave_bytes=1 << 20, max_threads=4, edmm=True)
    assert refused.value.check == "manifest key sgx.enclave_size"
    least = int((refused.value.expected or "").split()[2])
    lay_out(b"", parse_pal(WORKED), enclave_bytes=least, max_threads=4, edmm=True)
    with pytest.raises(MalformedManifest):
        lay_out(b"", parse_pal(WORKED), enclave_bytes=least - PAGE, max_threads=4, edmm=True)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"MZ" + bytes(100),
        WORKED[:63],
        b"\x7fELF\x01\x01" + WORKED[6:],
        WORKED[:56] + struct.pack("<H", 60000) + WORKED[58:],
        WORKED[:54] + struct.pack("<H", 55) + WORKED[56:],
        elf([(0, 0, PAGE, PAGE, 5)], size=PAGE)[:2000],
        elf([(0, 0, 100, 50, 5)]),
        elf([(0, 1 << 40, 100, 100, 5)]),
        elf([], size=500),
    ],
)
def test_libpal_that_is_no_such_file_is_refused(raw: bytes) -> None:
    """Headers are checked before anything is computed from them."""
    with pytest.raises(ManifestError, match=r"libpal\.so"):
        parse_pal(raw)


def test_offsets_of_an_installation_replace_the_defaults() -> None:
    """Gramine's own constants count where they are known."""
    assert Offsets.of({}) == Offsets()
    found = Offsets.of({"SGX_GPR": 0x160, "SSA_FRAME_NUM": 3, "PAGESIZE": 4096, "SGX_SSA": "text"})
    assert (found.tls_gpr, found.ssa_frames, found.tls_ssa) == (0x160, 3, Offsets().tls_ssa)
    plain, other = (
        measure(lay_out(b"", parse_pal(WORKED), enclave_bytes=16 << 20, max_threads=1, edmm=True, offsets=offsets))
        for offsets in (Offsets(), found)
    )
    assert plain != other
