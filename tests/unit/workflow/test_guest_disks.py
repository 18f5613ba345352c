"""The disks of a guest without a shared folder, by the functions behind `adyton image disk` and `image outputs`."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from adyton.errors import MalformedManifest, RunError, StorageFailed, TargetExists, UsageError
from adyton.image.guest import unpack, write_outputs
from adyton.image.guest_disks import new_output_disk
from adyton.image.guest_settings import DHCP, MEMBER, GuestSettings
from adyton.workflow.guest_disks import (
    GuestNetwork,
    open_output_disk,
    read_output_disk,
    settings_for,
    write_input_disk,
)


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    """A file with the name of a pack."""
    path = tmp_path / "train.adyton"
    path.write_bytes(b"pack" * 1000)
    return path


def test_pack_becomes_a_disk_that_a_guest_reads(pack: Path, tmp_path: Path) -> None:
    """Whole MiB, the same bytes twice, and DHCP where nothing else is said."""
    settings = settings_for(pack, tee="tdx", key_servers=["keys.example:1"], hosts={"keys.example": "10.0.0.9"})
    assert settings.network == DHCP()
    assert write_input_disk(pack, tmp_path / "disk", settings) == 1 << 20
    write_input_disk(pack, tmp_path / "again", settings)
    assert (tmp_path / "disk").read_bytes() == (tmp_path / "again").read_bytes()
    (tmp_path / "inside").mkdir()
    found, stamps = unpack(tmp_path / "disk", tmp_path / "inside", 1 << 20)
    assert found == settings
    assert list(stamps) == ["train.adyton"]
    assert (tmp_path / "inside/train.adyton").read_bytes() == pack.read_bytes()
    with pytest.raises(TargetExists):
        write_input_disk(pack, tmp_path / "disk", settings)
    write_input_disk(pack, tmp_path / "disk", settings, force=True)


def test_folder_brings_its_own_settings(tmp_path: Path) -> None:
    """Options beside them are refused, because one of the two would be forgotten."""
    settings = GuestSettings("app.manifest", "tpm")
    (tmp_path / MEMBER).write_bytes(settings.to_bytes())
    assert settings_for(tmp_path) == settings
    assert settings_for(tmp_path / "x.adyton", tmp_path / MEMBER) == settings
    with pytest.raises(UsageError, match="has all settings"):
        settings_for(tmp_path, tee="tpm")
    with pytest.raises(UsageError, match="settings of the guest"):
        settings_for(tmp_path, tmp_path / "missing")


def test_settings_that_no_guest_would_take_are_refused_at_home(pack: Path, tmp_path: Path) -> None:
    """By the same parser as in the guest."""
    with pytest.raises(UsageError, match="where the guest will run"):
        settings_for(pack)
    with pytest.raises(UsageError, match="is no pack"):
        settings_for(tmp_path, tee="tdx")
    with pytest.raises(MalformedManifest, match="tee"):
        settings_for(pack, tee="sim")
    with pytest.raises(MalformedManifest, match="key_servers"):
        settings_for(pack, tee="tdx", key_servers=["no port"])
    with pytest.raises(UsageError, match="no IPv4 address"):
        settings_for(pack, tee="tdx", hosts={"keys": "keys2"})
    with pytest.raises(MalformedManifest, match="hosts"):
        settings_for(pack, tee="tdx", hosts={"a b": "10.0.0.1"})


@pytest.mark.parametrize(
    ("network", "match"),
    [
        (GuestNetwork(gateway="10.0.0.1"), "without an address"),
        (GuestNetwork(address="10.0.0"), "no IPv4 address"),
        (GuestNetwork(address="10.0.0.1/24", gateway="x"), "no IPv4 address"),
        (GuestNetwork(name_servers=["::1"]), "no IPv4 address"),
    ],
)
def test_wrong_network_is_named(network: GuestNetwork, match: str) -> None:
    """By its option."""
    with pytest.raises(UsageError, match=match) as refused:
        network.to_network()
    assert (refused.value.check or "").startswith("--")


def written(tmp_path: Path) -> Path:
    """A disk to which a guest appended a result."""
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside/result").write_bytes(b"sealed")
    new_output_disk(tmp_path / "out.raw", 1 << 20)
    write_outputs(tmp_path / "out.raw", tmp_path / "inside", {}, {"exit_code": 0})
    return tmp_path / "out.raw"


def test_outputs_come_from_a_disk_and_from_a_pipe(tmp_path: Path) -> None:
    """A pipe that gives few bytes at once is no other disk."""
    disk = written(tmp_path)

    class Slow(io.RawIOBase):
        raw = disk.read_bytes()

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
            size = min(7, len(buffer))
            piece, self.raw = self.raw[:size], self.raw[size:]
            buffer[: len(piece)] = piece
            return len(piece)

    for name, path in (("file", disk), ("pipe", Path("-"))):
        with open_output_disk(path, io.BufferedReader(Slow(), 16)) as stream:
            names = read_output_disk(stream, tmp_path / name)
        assert names == ["result", "adyton-status.json"]
        assert (tmp_path / name / "result").read_bytes() == b"sealed"
        assert json.loads((tmp_path / name / "adyton-status.json").read_text())["exit_code"] == 0


def test_outputs_replace_nothing(tmp_path: Path) -> None:
    """The guest chooses the names, and it may be anybody's."""
    disk = written(tmp_path)
    (tmp_path / "home").mkdir()
    (tmp_path / "home/train.manifest").write_text("mine")
    with disk.open("rb") as stream, pytest.raises(TargetExists, match="not empty"):
        read_output_disk(stream, tmp_path / "home")
    with pytest.raises(StorageFailed, match="reading"), open_output_disk(tmp_path / "none", io.BytesIO()):
        pass


def test_guest_that_wrote_nothing_and_a_cut_disk_are_named(tmp_path: Path) -> None:
    """An empty disk, one that ends within a file, and something else."""
    new_output_disk(tmp_path / "empty", 1 << 20)
    raw = written(tmp_path).read_bytes()
    for content, error, match in (
        ((tmp_path / "empty").read_bytes(), RunError, "wrote no outputs"),
        (raw[:600], MalformedManifest, "cut"),
        (raw[:1024], MalformedManifest, "header"),
        (b"conectix" * 200, MalformedManifest, "header"),
        (b"", MalformedManifest, "header"),
    ):
        with pytest.raises(error, match=match):
            read_output_disk(io.BytesIO(content), tmp_path / f"to{len(content)}")
