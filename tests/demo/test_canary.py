"""The canary search finds a secret in every form that a leak may take, and nothing where there is none."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import lzma
import random
import zipfile
import zlib
from typing import TYPE_CHECKING

import pytest

from demo.canary import Canary, draw, search

if TYPE_CHECKING:
    from collections.abc import Callable

SECRET = random.Random(1).randbytes(100_000)
CANARIES = draw("weights", SECRET, count=16)
NOISE = random.Random(2).randbytes(3_000)


def _zipped(data: bytes) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data/0", data)
    return archive.getvalue()


PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "raw": lambda data: data,
    "zlib": zlib.compress,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zip": _zipped,
    "base64": base64.b64encode,
    "base64 in lines": base64.encodebytes,
    "hexadecimal": lambda data: data.hex().encode(),
    "gzip in base64": lambda data: base64.b64encode(gzip.compress(data)),
    "base64 in zlib": lambda data: zlib.compress(base64.b64encode(data)),
}


@pytest.mark.parametrize("packing", PACKINGS)
def test_search_finds_secret_in_every_packing(packing: str) -> None:
    """A secret that lies among noise is found whatever it was packed in."""
    found = search(NOISE + PACKINGS[packing](SECRET) + NOISE, CANARIES)
    assert {sighting.secret for sighting in found} == {"weights"}


def test_search_finds_part_of_secret() -> None:
    """A leak of a part of the secret is found as long as a canary lies in it."""
    assert search(NOISE + SECRET[40_000:60_000], CANARIES)


def test_search_finds_base64_that_starts_mid_group() -> None:
    """Base64 inside a larger text is found at each of the four alignments."""
    for lead in range(4):
        assert search(b"x" * lead + base64.b64encode(SECRET[:50_000]), CANARIES)


def test_search_finds_nothing_in_noise() -> None:
    """Noise and broken streams show nothing."""
    broken = zlib.compress(NOISE)[40:] + gzip.compress(NOISE)[:-9]
    assert search(NOISE * 100 + broken, CANARIES) == set()


def test_draw_takes_whole_key() -> None:
    """A 16-byte key is a canary as it is."""
    key = random.Random(3).randbytes(16)
    assert draw("key", key, count=4) == [Canary("key", key)]


def test_draw_passes_over_padding() -> None:
    """Runs of one byte make no canary, or every file would show one."""
    assert draw("padding", bytes(10_000), count=8) == []
