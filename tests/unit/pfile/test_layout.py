"""Node 0 between bytes and values."""

from __future__ import annotations

import pytest

from adyton.errors import IntegrityError, NotProtectedFile, UnsupportedVersion
from adyton.pfile.layout import MAX_FILE_BYTES, NODE_BYTES, SEALED_BYTES, Envelope, Metadata, parse_envelope


@pytest.mark.parametrize("version", [1, 2])
def test_envelope_round_trips(version: int) -> None:
    """What is built is parsed again, field by field."""
    envelope = Envelope(version, bytes(range(32)), bytes(range(16)), 1 if version == 2 else 0, b"\7" * SEALED_BYTES)
    raw = envelope.to_bytes()
    assert len(raw) == NODE_BYTES
    assert parse_envelope(raw) == envelope
    assert envelope.pending == (version == 2)


def test_envelope_of_other_magic_is_not_a_protected_file() -> None:
    """Plaintext is refused by its first bytes, which are not repeated in the refusal."""
    with pytest.raises(NotProtectedFile, match="magic") as refusal:
        parse_envelope(b"secret!!" + bytes(NODE_BYTES - 8))
    assert b"secret!!".hex() not in str(refusal.value.details())


@pytest.mark.parametrize("size", [0, 1, NODE_BYTES - 1, NODE_BYTES + 1])
def test_envelope_of_other_size_is_refused(size: int) -> None:
    """Node 0 has 4096 bytes."""
    with pytest.raises(NotProtectedFile):
        parse_envelope(bytes(size))


@pytest.mark.parametrize("version", [0, 3, 255])
def test_envelope_of_unknown_version_is_refused(version: int) -> None:
    """Only versions 1 and 2 are known."""
    with pytest.raises(UnsupportedVersion, match=str(version)):
        parse_envelope(b"GRAFS_PF" + bytes([version]) + bytes(NODE_BYTES - 9))


def test_metadata_round_trips_and_blanks_what_the_file_does_not_reach() -> None:
    """Bytes behind the end of the file are not sealed."""
    metadata = Metadata(b"a/b", 3, bytes(range(32)), b"abcSTALE")
    opened = metadata.to_bytes()
    assert len(opened) == SEALED_BYTES
    assert Metadata.parse(opened) == Metadata(b"a/b", 3, bytes(range(32)), b"abc".ljust(3072, b"\0"))


def test_metadata_without_end_of_path_is_refused() -> None:
    """A path field of 772 bytes without NUL cannot come from a right maker."""
    with pytest.raises(IntegrityError, match="path"):
        Metadata.parse(b"a" * 772 + bytes(SEALED_BYTES - 772))


def test_metadata_of_impossible_size_is_refused() -> None:
    """A size beyond 2**63 - 1 is refused before anything is allocated for it."""
    opened = bytearray(Metadata(b"a", 0, bytes(32), b"").to_bytes())
    opened[772:780] = (MAX_FILE_BYTES + 1).to_bytes(8, "little")
    with pytest.raises(IntegrityError, match="bytes"):
        Metadata.parse(bytes(opened))


def test_metadata_does_not_show_its_secrets() -> None:
    """Neither root key nor content stand in its repr."""
    assert "abc" not in repr(Metadata(b"p", 3, b"K" * 32, b"abc"))
    assert "KKK" not in repr(Metadata(b"p", 3, b"K" * 32, b"abc"))
