"""What the builder writes by itself, read by the tools that everybody has; skipped by name where one is missing."""

from __future__ import annotations

import os
import random
import shutil
import stat
import subprocess
import uuid
from pathlib import Path

import pytest

from adyton.errors import UsageError
from adyton.image import verity
from adyton.image.cpio import archive
from adyton.image.disk import ALIGNMENT, disk_parts
from adyton.image.erofs import Node, place, walk, write
from adyton.image.fat import system_partition
from adyton.image.gpt import SECTOR, TABLE_SECTORS, measured_table

SALT = bytes(range(32))
UUID = uuid.UUID(int=7)


def tool(name: str, package: str) -> str:
    """A program; the test is skipped by name where it is missing."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed (apt-get install {package})")
    return found


def sh(*words: str | Path) -> str:
    """What a program prints; it must succeed."""
    return subprocess.run([str(word) for word in words], check=True, capture_output=True, text=True).stdout


def tree() -> Node:
    """Folders of many sizes, an empty file and a large one, a link, a long name, a program."""
    root, draw = Node.folder(), random.Random(1)
    for number in range(700):
        place(root, f"many/file-with-a-name-{number:05}", Node.file(draw.randbytes(number * 7)))
    place(root, "empty", Node.file(b""))
    place(root, "large", Node.file(draw.randbytes(1_000_001)))
    place(root, "a/b/c/" + "x" * 255, Node.file(b"deep"))
    place(root, "bin/program", Node.file(b"#!", executable=True))
    place(root, "link", Node.link("bin/program"))
    place(root, "void", Node.folder())
    return root


def test_root_file_system_is_read_by_erofs_utils(tmp_path: Path) -> None:
    """Every file, mode and link comes out as it went in."""
    fsck = tool("fsck.erofs", "erofs-utils")
    image = tmp_path / "image"
    image.write_bytes(write(tree(), epoch=1_700_000_000, identifier=UUID))
    sh(fsck, f"--extract={tmp_path / 'out'}", image)
    for path, node in walk(tree()):
        found = tmp_path / "out" / path
        if node.is_folder:
            assert found.is_dir()
        elif stat.S_ISLNK(node.mode):
            assert os.readlink(found).encode() == node.content
        else:
            assert found.read_bytes() == node.content
            assert stat.S_IMODE(found.stat().st_mode) == stat.S_IMODE(node.mode)
            assert found.stat().st_mtime == 1_700_000_000
    assert len(list((tmp_path / "out").rglob("*"))) == len(list(walk(tree())))


@pytest.mark.parametrize("blocks", [1, 2, 127, 128, 129, 16384, 16385])
def test_verity_tree_is_that_of_veritysetup(tmp_path: Path, blocks: int) -> None:
    """The same bytes and the same root hash, with one, two and three levels."""
    program = tool("veritysetup", "cryptsetup-bin")
    data = tmp_path / "data"
    data.write_bytes(random.Random(blocks).randbytes(4096) * blocks)
    ours, root = verity.verity_tree(data.read_bytes(), SALT, UUID)
    words = ("format", data, tmp_path / "theirs", f"--salt={SALT.hex()}", f"--uuid={UUID}")
    printed = sh(program, *words)
    assert f"Root hash:      \t{root.hex()}" in printed
    assert (tmp_path / "theirs").read_bytes() == ours


def test_data_that_is_no_whole_blocks_is_refused() -> None:
    """A tree over a part of the data would leave the rest unchecked."""
    for data in (b"", b"x" * 4097):
        with pytest.raises(UsageError, match="whole blocks"):
            verity.verity_tree(data, SALT, UUID)


def test_every_bit_of_the_data_counts_in_the_root_hash() -> None:
    """And so does the salt."""
    data = bytes(4096 * 300)
    _, root = verity.verity_tree(data, SALT, UUID)
    for at in (0, 4096 * 128, len(data) - 1):
        changed = bytearray(data)
        changed[at] ^= 1
        assert verity.verity_tree(bytes(changed), SALT, UUID)[1] != root
    assert verity.verity_tree(data, bytes(32), UUID)[1] != root


@pytest.mark.parametrize("size", [1, 4096, 3_000_000, 20_000_001])
def test_system_partition_is_read_by_mtools(tmp_path: Path, size: int) -> None:
    """The file comes out as it went in, and dosfstools finds nothing to mend."""
    copy, check = tool("mcopy", "mtools"), tool("fsck.fat", "dosfstools")
    content = random.Random(size).randbytes(size)
    image = tmp_path / "esp"
    image.write_bytes(system_partition(content, 0x12345678))
    sh(copy, "-i", image, "::EFI/BOOT/BOOTX64.EFI", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == content
    assert "differ" not in sh(check, "-n", "-v", image)


def test_kernel_image_that_does_not_fit_is_refused() -> None:
    """FAT16 has a limit."""
    for size in (0, 300_000_000):
        with pytest.raises(UsageError, match="does not fit"):
            system_partition(bytes(size), 0)


def test_disk_is_read_by_sfdisk(tmp_path: Path) -> None:
    """Two partitions, at whole MiB, with names; both copies of the table are good."""
    sfdisk = tool("sfdisk", "fdisk")
    root = os.urandom(40960)
    hashes, _ = verity.verity_tree(root, SALT, UUID)
    raw = b"".join(disk_parts(b"kernel image", root, hashes))
    disk = tmp_path / "disk"
    disk.write_bytes(raw)
    printed = sh(sfdisk, "--dump", disk)
    assert 'name="adyton-esp"' in printed
    assert 'name="adyton-root"' in printed
    assert "C12A7328-F81F-11D2-BA4B-00A0C93EC93B" in printed
    checked = subprocess.run([sfdisk, "--verify", str(disk)], capture_output=True, text=True, check=True)
    assert "No errors detected" in checked.stdout
    assert len(raw) % ALIGNMENT == 0
    assert (root + hashes) in raw
    assert raw.index(root) % ALIGNMENT == 0


def test_measured_table_is_header_count_and_entries_in_use() -> None:
    """UEFI_GPT_DATA. Any change of the table is refused or seen."""
    raw = b"".join(disk_parts(b"kernel image", bytes(4096), bytes(8192)))[: TABLE_SECTORS * SECTOR]
    measured = measured_table(raw)
    assert measured == raw[512 : 512 + 92] + (2).to_bytes(8, "little") + raw[1024 : 1024 + 256]
    for at in (512 + 80, 512 + 20, 1024 + 56, 1024 + 4000):
        changed = bytearray(raw)
        changed[at] ^= 1
        with pytest.raises(UsageError, match="partition table"):
            measured_table(bytes(changed))
    for short in (b"", raw[:-1]):
        with pytest.raises(UsageError, match="partition table"):
            measured_table(short)


def test_initrd_is_read_by_cpio(tmp_path: Path) -> None:
    """Names, modes and contents."""
    cpio = tool("cpio", "cpio")
    raw = archive({"dev": 0o755}, {"init": (0o755, b"program"), "etc": (0o644, b"")})
    printed = subprocess.run([cpio, "-tv"], input=raw, capture_output=True, check=True).stdout.decode()
    assert [line.split()[0] for line in printed.splitlines()] == ["drwxr-xr-x", "-rw-r--r--", "-rwxr-xr-x"]


@pytest.mark.parametrize("path", ["", "a//b", "../x", "a/./b", "a\0b"])
def test_path_that_is_not_plain_is_refused(path: str) -> None:
    """A package cannot write beside the tree."""
    with pytest.raises(UsageError, match="path in the root"):
        place(Node.folder(), path, Node.file(b""))


def test_file_in_a_folders_place_is_refused() -> None:
    """And the other way round."""
    root = Node.folder()
    place(root, "a/b", Node.file(b""))
    with pytest.raises(UsageError, match="what is at"):
        place(root, "a", Node.file(b""))
    with pytest.raises(UsageError, match="what is above"):
        place(root, "a/b/c", Node.file(b""))
