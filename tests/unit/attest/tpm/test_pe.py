"""The Authenticode hash: equal to another program's over real files, blind to signatures, and strict."""

from __future__ import annotations

import hashlib
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from adyton.attest.tpm.pe import authenticode
from adyton.errors import MalformedQuote

STUBS = Path("/usr/lib/systemd/boot/efi")


def pe(
    *, sections: tuple[tuple[int, int], ...] = ((512, 512), (1024, 256)), tail: bytes = b"", **changed: int
) -> bytes:
    """A small PE32+ file with these sections (start, size of the raw data)."""
    raw = bytearray(max([512, *(start + size for start, size in sections)]))
    raw[:2], raw[0x3C:0x40] = b"MZ", struct.pack("<I", 64)
    raw[64:68] = b"PE\0\0"
    struct.pack_into("<HH", raw, 68, 0x8664, len(sections))
    struct.pack_into("<H", raw, 84, 112 + 8 * 16)
    optional = 88
    struct.pack_into("<H", raw, optional, changed.get("magic", 0x20B))
    struct.pack_into("<I", raw, optional + 60, changed.get("headers", 512))
    struct.pack_into("<I", raw, optional + 108, changed.get("directories", 16))
    struct.pack_into("<II", raw, optional + 112 + 32, changed.get("table", 0), changed.get("table_size", 0))
    for place, (start, size) in enumerate(sections):
        struct.pack_into("<II", raw, optional + 240 + 40 * place + 16, size, start)
    for place in range(512, len(raw)):
        raw[place] = place % 251
    return bytes(raw) + tail


def test_hash_covers_everything_but_checksum_and_signature() -> None:
    """Of a file without a signature it is the hash of the file without two fields."""
    raw = pe()
    wanted = hashlib.sha256(raw[:152] + raw[156:232] + raw[240:]).digest()
    assert authenticode(raw) == wanted
    checksum = raw[:152] + b"abcd" + raw[156:]
    assert authenticode(checksum) == wanted
    assert authenticode(raw, "sha384") != wanted
    assert authenticode(pe(tail=b"more")) != wanted


def test_signature_leaves_the_hash_as_it_is() -> None:
    """The table of certificates, and its entry in the header."""
    signed = pe(table=1280, table_size=16, tail=b"s" * 16)
    assert authenticode(signed) == authenticode(pe())


@pytest.mark.skipif(shutil.which("osslsigncode") is None, reason="osslsigncode is not installed")
@pytest.mark.skipif(not STUBS.is_dir(), reason="systemd-boot-efi is not installed")
@pytest.mark.parametrize("name", ["linuxx64.efi.stub", "systemd-bootx64.efi"])
def test_hash_of_a_real_program_is_that_of_osslsigncode(tmp_path: Path, name: str) -> None:
    """Sign a file with a key of the test, and compare with what the tool says that it signed."""
    key, certificate, signed = tmp_path / "k.pem", tmp_path / "c.pem", tmp_path / "signed.efi"
    made: list[str | Path] = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        key,
        "-out",
        certificate,
    ]
    subprocess.run([*made, "-subj", "/CN=test", "-days", "10"], check=True, capture_output=True)
    sign: list[str | Path] = ["osslsigncode", "sign", "-h", "sha256", "-certs", certificate, "-key", key]
    subprocess.run([*sign, "-in", STUBS / name, "-out", signed], check=True, capture_output=True)
    said = subprocess.run(["osslsigncode", "verify", "-in", signed], check=False, capture_output=True, text=True).stdout
    line = next(line for line in said.splitlines() if line.startswith("Calculated message digest"))
    assert authenticode(signed.read_bytes()).hex().upper() == line.partition(":")[2].strip()


FAULTS = {
    "not-mz": (b"ZM" + pe()[2:], "PE: DOS header"),
    "short": (b"MZ", "PE: DOS header"),
    "no-signature": (pe().replace(b"PE\0\0", b"PX\0\0"), "PE: signature"),
    "pe32": (pe(magic=0x10B), "PE: optional header"),
    "directories": (pe(directories=4), "PE: data directories"),
    "headers-too-short": (pe(headers=64), "PE: headers"),
    "headers-too-long": (pe(headers=5000), "PE: headers"),
    "gap": (pe(sections=((512, 256), (1024, 256))), "PE: sections"),
    "overlap": (pe(sections=((512, 512), (768, 256))), "PE: sections"),
    "outside": (pe()[:-1], "PE: sections"),
    "table-inside": (pe(table=1024, table_size=256), "PE: certificate table"),
    "table-not-last": (pe(table=1280, table_size=8, tail=bytes(16)), "PE: certificate table"),
    "table-unaligned": (pe(table=1284, table_size=12, tail=bytes(16)), "PE: certificate table"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faulty_file_is_refused_by_its_own_check(name: str) -> None:
    """One fault, one check."""
    raw, check = FAULTS[name]
    with pytest.raises(MalformedQuote) as caught:
        authenticode(raw)
    assert caught.value.check == check
