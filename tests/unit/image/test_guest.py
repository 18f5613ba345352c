"""The guest's first program, step by step, in folders that stand for the machine's."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from adyton.errors import Error, MalformedManifest, RunError
from adyton.image import guest, guest_kernel
from adyton.image.guest_disks import new_output_disk, pack_inputs
from adyton.image.guest_disks import unpack_outputs as unpack_stream
from adyton.image.guest_settings import MEMBER, GuestSettings
from adyton.image.plain_archive import Member, Reader, Writer
from adyton.pack_archive import Item, write_pack

SETTINGS = GuestSettings("app.manifest", "tpm")


def unpack_outputs(disk: Path, folder: Path) -> list[str]:
    """What a guest wrote to a disk, unpacked."""
    with disk.open("rb") as stream:
        return unpack_stream(stream, disk.stat().st_size, folder)


def system(tmp_path: Path, *, lockdown: str = "none integrity [confidentiality]") -> Path:
    """A machine's /proc/sys, /sys and /dev."""
    for name in ("modules_disabled", "core_pattern", "sysrq"):
        path = tmp_path / "proc/sys/kernel" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("0")
    path = tmp_path / "sys/kernel/security/lockdown"
    path.parent.mkdir(parents=True)
    path.write_text(lockdown)
    return tmp_path


def test_door_is_shut(tmp_path: Path) -> None:
    """No module after this, no core file, no keys of the console."""
    guest.shut_the_door(system(tmp_path))
    values = {path.name: path.read_text() for path in (tmp_path / "proc/sys/kernel").iterdir()}
    assert values == {"modules_disabled": "1", "core_pattern": "\n", "sysrq": "0"}


@pytest.mark.parametrize("lockdown", ["[none] integrity confidentiality", "none [integrity] confidentiality"])
def test_kernel_that_is_not_locked_down_ends_the_start(tmp_path: Path, lockdown: str) -> None:
    """The command line asked for it; a kernel that did not obey is not trusted."""
    with pytest.raises(RunError, match="not locked down"):
        guest.shut_the_door(system(tmp_path, lockdown=lockdown))


def test_kernel_without_the_switch_for_modules_ends_the_start(tmp_path: Path) -> None:
    """A check that cannot be made does not pass."""
    (system(tmp_path) / "proc/sys/kernel/modules_disabled").unlink()
    with pytest.raises(RunError, match="not locked down"):
        guest.shut_the_door(tmp_path)


def test_disks_are_found_by_their_first_block(tmp_path: Path) -> None:
    """Not by names, which a host chooses; and never two."""
    for name, content in (("vda", b"EFI"), ("vdb", b"mark more"), ("sr0", b"mark"), ("dm-0", b"mark")):
        (tmp_path / "sys/block" / name).mkdir(parents=True)
        (tmp_path / "dev").mkdir(exist_ok=True)
        (tmp_path / "dev" / name).write_bytes(content)
    disks = guest.block_devices(tmp_path)
    assert [disk.name for disk in disks] == ["vda", "vdb"]
    assert guest.find_disk(disks, "x", lambda first: first.startswith(b"mark")) == tmp_path / "dev/vdb"
    assert guest.find_disk(disks, "x", lambda first: first.startswith(b"nothing")) is None
    (tmp_path / "dev/vda").write_bytes(b"mark too")
    with pytest.raises(RunError, match="two disks"):
        guest.find_disk(disks, "x", lambda first: first.startswith(b"mark"))


def share(tmp_path: Path) -> Path:
    """A folder of files for a guest."""
    folder = tmp_path / "share"
    (folder / "in").mkdir(parents=True)
    (folder / "in/data").write_bytes(b"x" * 100_000)
    (folder / MEMBER).write_bytes(b"what pack_inputs was given counts")
    (folder / "app").write_bytes(b"#!")
    (folder / "app").chmod(0o755)
    (folder / "link").symlink_to("in")
    return folder


def test_files_go_in_and_new_ones_come_out(tmp_path: Path) -> None:
    """What the run wrote, and only that, is appended; links were followed before they went in."""
    pack_inputs(SETTINGS, share(tmp_path), disk := tmp_path / "in.raw")
    (inside := tmp_path / "inside").mkdir()
    settings, stamps = guest.unpack(disk, inside, 1 << 20)
    assert settings == SETTINGS
    assert (inside / "link/data").read_bytes() == b"x" * 100_000
    assert (inside / "app").stat().st_mode & 0o777 == 0o755
    (inside / "in/data").write_bytes(b"changed")
    (inside / "out").mkdir()
    (inside / "out/result").write_bytes(b"sealed")
    (inside / "out/escape").symlink_to("/etc/passwd")
    (inside / "app").unlink()
    new_output_disk(out := tmp_path / "out.raw", 1 << 20)
    guest.write_outputs(out, inside, stamps, {"exit_code": 3})
    (back := tmp_path / "back").mkdir()
    assert unpack_outputs(out, back) == ["in/data", "out/result", guest.STATUS_MEMBER]
    assert (back / "out/result").read_bytes() == b"sealed"
    assert json.loads((back / guest.STATUS_MEMBER).read_text()) == {"exit_code": 3, "removed": ["app"]}


def test_files_of_a_pack_do_not_come_out_again(tmp_path: Path) -> None:
    """The pack is unpacked first, so that only what the program wrote is new. A manifest alone unpacks nothing."""
    (inside := tmp_path / "inside").mkdir()
    assert guest.unpack_pack(SETTINGS, inside) == {}
    (tmp_path / "lib").write_bytes(b"library")
    items = [Item("work/app.manifest", tmp_path / "lib"), Item("host/usr/lib/x.so", tmp_path / "lib")]
    write_pack(inside / "app.adyton", items, manifest="app.manifest", folders=["work/out"], readme="x\n")
    settings = replace(SETTINGS, manifest="app.adyton")
    stamps = guest.unpack_pack(settings, inside)
    assert "app/host/usr/lib/x.so" in stamps
    (inside / "app/work/out/result").write_bytes(b"sealed")
    assert guest.new_files(inside / "app", {name.removeprefix("app/"): value for name, value in stamps.items()}) == [
        "work/out/result"
    ]
    (inside / "app.adyton").write_bytes(b"no pack")
    with pytest.raises(Error):
        guest.unpack_pack(settings, tmp_path / "inside")


def test_disk_for_outputs_serves_again_where_no_output_is_on_it(tmp_path: Path) -> None:
    """A refused run says only how it ended. A result is never written over."""
    (inside := tmp_path / "inside").mkdir()
    new_output_disk(out := tmp_path / "out.raw", 1 << 20)
    for exit_code in (101, 102):
        assert guest.takes_outputs(out.read_bytes()[:512])
        guest.write_outputs(out, inside, {}, {"exit_code": exit_code})
    (tmp_path / "back").mkdir()
    assert unpack_outputs(out, tmp_path / "back") == [guest.STATUS_MEMBER]
    assert json.loads((tmp_path / "back" / guest.STATUS_MEMBER).read_text())["exit_code"] == 102
    (inside / "result").write_bytes(b"sealed")
    guest.write_outputs(out, inside, {}, {"exit_code": 0})
    assert not guest.takes_outputs(out.read_bytes()[:512])


def archive(*members: tuple[str, bytes]) -> bytes:
    """An archive as bytes."""
    stream = io.BytesIO()
    writer = Writer(stream, 1 << 30)
    for name, content in members:
        writer.add(Member(name, len(content)), io.BytesIO(content))
    writer.close()
    return stream.getvalue()


def test_archive_without_settings_at_its_start_is_refused(tmp_path: Path) -> None:
    """Nothing is unpacked before they were read."""
    (tmp_path / "inside").mkdir()
    for raw in (archive(("a", b"b"), (MEMBER, SETTINGS.to_bytes())), archive((MEMBER, b" " * 70_000)), archive()):
        (tmp_path / "disk").write_bytes(raw)
        with pytest.raises(RunError, match="settings"):
            guest.unpack(tmp_path / "disk", tmp_path / "inside", 1 << 20)
        assert list((tmp_path / "inside").iterdir()) == []


def test_archive_larger_than_the_memory_is_refused(tmp_path: Path) -> None:
    """Before its bytes are read."""
    (tmp_path / "inside").mkdir()
    (tmp_path / "disk").write_bytes(archive((MEMBER, SETTINGS.to_bytes()), ("big", bytes(5000))))
    with pytest.raises(MalformedManifest, match="size in all"):
        guest.unpack(tmp_path / "disk", tmp_path / "inside", 4096)
    assert not (tmp_path / "inside/big").exists()


def test_outputs_that_do_not_fit_leave_an_archive_without_an_end(tmp_path: Path) -> None:
    """So that nobody takes a part for the whole."""
    (inside := tmp_path / "inside").mkdir()
    (inside / "result").write_bytes(bytes(8192))
    new_output_disk(out := tmp_path / "out.raw", 4096)
    with pytest.raises(Exception, match="does not fit"):
        guest.write_outputs(out, inside, {}, {})
    with pytest.raises(Exception, match="wrote no outputs"):
        unpack_outputs(out, tmp_path)


def test_hostile_outputs_do_not_leave_the_folder(tmp_path: Path) -> None:
    """A guest may be anybody's: names are plain, and a link in the folder is not followed."""
    (folder := tmp_path / "folder").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (folder / "out").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "disk").write_bytes(archive(("out/evil", b"x")))
    with pytest.raises(Exception, match="is a link"):
        unpack_outputs(tmp_path / "disk", folder)
    assert list((tmp_path / "elsewhere").iterdir()) == []
    (folder / "result").symlink_to(tmp_path / "elsewhere/target")
    (tmp_path / "disk").write_bytes(archive(("result", b"x")))
    unpack_outputs(tmp_path / "disk", folder)
    assert not (tmp_path / "elsewhere/target").exists()
    assert (folder / "result").read_bytes() == b"x"


def test_device_that_shows_late_is_waited_for() -> None:
    """The kernel looks for disks and networks while the first program runs."""
    found = iter([None, None, "disk"])
    assert guest_kernel.wait_for(lambda: next(found)) == "disk"
    assert guest_kernel.wait_for(lambda: None, 0.0) is None


def test_console_shows_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    """A message may hold a name that the host chose."""
    guest.say("a\x1b[2Jb\nü")
    assert capsys.readouterr().err == "adyton guest: a?[2Jb\n\\xfc\n"


def test_registers_are_read_where_there_is_a_tpm(tmp_path: Path) -> None:
    """For diagnosis only."""
    folder = tmp_path / "sys/class/tpm/tpm0/pcr-sha256"
    folder.mkdir(parents=True)
    for number in range(24):
        (folder / str(number)).write_text(f"{number:064X}\n")
    assert guest.registers(tmp_path) == {"sha256": {str(number): f"{number:064x}" for number in range(24)}}
    assert guest.registers(tmp_path / "nothing") == {}


def test_first_program_needs_no_relocation() -> None:
    """Nobody would carry one out: the kernel starts it as it is."""
    import struct

    from adyton.errors import NoDevice
    from adyton.image.build import init_program

    try:
        raw = init_program()
    except NoDevice:
        pytest.skip("the C parts were not built (no compiler)")
    start, count = struct.unpack_from("<Q", raw, 32)[0], struct.unpack_from("<H", raw, 56)[0]
    kinds = [struct.unpack_from("<IIQQQQQQ", raw, start + 56 * number) for number in range(count)]
    assert all(kind[0] != 3 for kind in kinds), "an interpreter"
    (dynamic,) = [kind for kind in kinds if kind[0] == 2]
    tags = {struct.unpack_from("<Q", raw, at)[0] for at in range(dynamic[2], dynamic[2] + dynamic[5], 16)}
    assert not tags & {7, 17, 23, 1}, "relocations, or a library"


def test_reader_of_the_inputs_goes_through_them_once(tmp_path: Path) -> None:
    """A host that changes the disk later changes nothing: each byte is read once."""
    pack_inputs(SETTINGS, share(tmp_path), disk := tmp_path / "in.raw")

    class Counted(io.BytesIO):
        asked = 0

        def read(self, size: int | None = -1, /) -> bytes:
            found = super().read(size)
            Counted.asked += len(found)
            return found

    reader = Reader(Counted(disk.read_bytes()), 1 << 30)
    for _ in reader:
        pass
    assert disk.stat().st_size >= Counted.asked
