"""What was changed in a refused program: one line a thing, the same things that `adyton diff` names."""

from __future__ import annotations

import json

import pytest

from adyton.errors import MalformedManifest
from adyton.keyserver.difference_lines import (
    MAX_CHARACTERS,
    MAX_LINES,
    owner_line,
    owner_lines,
    part_differences,
    read_manifest,
)
from adyton.manifest.difference import compare, differences

LEAST = 'libos.entrypoint = "/app"\n'
MOUNT = LEAST + 'fs.mounts = [{ path = "/data", uri = "file:data" }]\n'


def lines(approved: str, seen: str) -> list[str]:
    """What the owner reads."""
    return [owner_line(item) for item in compare(read_manifest(approved.encode()), read_manifest(seen.encode()))]


def test_changed_mount_is_one_line() -> None:
    """Another host folder behind one mount: it was four lines, of two mounts that had come and gone."""
    changed = MOUNT.replace("file:data", "file:other")
    assert lines(MOUNT, changed) == ["mount /data: approved chroot file:data, seen chroot file:other"]
    assert [str(item) for item in differences(MOUNT, changed)] == ["mount /data: chroot file:data -> chroot file:other"]


@pytest.mark.parametrize(
    "changed",
    [
        MOUNT.replace("/data", "/date"),
        MOUNT + 'loader.argv = ["app", "-x"]\n',
        MOUNT + "sgx.trusted_files = [{ uri = 'file:app', sha256 = '" + "1" * 64 + "' }]\n",
        MOUNT + "# only a comment\n",
    ],
    ids=["mount", "key", "file", "form"],
)
def test_owner_reads_what_diff_says(changed: str) -> None:
    """One engine: whatever differs for the one differs for the other."""
    found = compare(read_manifest(MOUNT.encode()), read_manifest(changed.encode()))
    assert found == differences(MOUNT, changed) != ()


def test_manifest_of_a_newer_version_is_still_compared() -> None:
    """A key that this version does not know makes no manifest of it, and yet the owner learns what was changed."""
    newer = MOUNT.replace("file:data", "file:other") + "adyton.of_tomorrow = 1\n"
    with pytest.raises(MalformedManifest):
        differences(MOUNT, newer)
    found = lines(MOUNT, newer)
    assert found[1] == "adyton.of_tomorrow: approved nothing, seen 1"
    assert found[0].startswith("fs.mounts: approved [{")
    assert "file:other" in found[0]
    assert len(found) == 2


def test_runtime_parts_are_named() -> None:
    """Each part that differs, is new, or is gone."""
    found = part_differences({"adyton": "a", "python": "b"}, {"adyton": "c", "torch": "d"})
    assert [owner_line(item) for item in found] == [
        "runtime: adyton: approved a, seen c",
        "runtime: python: approved b, seen nothing",
        "runtime: torch: approved nothing, seen d",
    ]


def test_mounts_come_before_keys_and_files() -> None:
    """What the program's folders are matters more than a key; the number of lines is bounded."""
    listed = "".join(f'loader.env.A{number} = "1"\n' for number in range(2 * MAX_LINES))
    changed = MOUNT.replace("file:data", "file:other") + listed
    found = owner_lines(compare(read_manifest(MOUNT.encode()), read_manifest(changed.encode())))
    assert found[0].startswith("mount /data: ")
    assert found[1].startswith("loader.env.A0: ")
    assert len(found) == MAX_LINES


def test_long_values_are_cut_around_what_differs() -> None:
    """What differs is shown, wherever in the value it stands."""
    words = ", ".join(f'"word{number}"' for number in range(500))
    argv = LEAST + f"fs.mounts = []\nloader.argv = [{words}]\n"
    (found,) = lines(argv, argv.replace('"word400"', '"evil"'))
    assert "word400" in found.split(", seen ")[0]
    assert "evil" in found.split(", seen ")[1]
    assert len(found) < 3 * MAX_CHARACTERS


@pytest.mark.parametrize("at", [0, 79, 80, 81, 120, 158, 159, 160, 161, 400])
def test_what_differs_first_is_seen_wherever_it_stands(at: int) -> None:
    """A value that is changed at the edge of what is shown would show one character of the change."""
    same = "a" * at
    (line,) = lines(f'{LEAST}loader.env.X = "{same}good"\n', f'{LEAST}loader.env.X = "{same}evil-path{"a" * 300}"\n')
    assert "evil-path" in line


@pytest.mark.parametrize("escape", ["", "\\u202e" * 30])
def test_second_change_behind_the_first_is_not_passed_over(escape: str) -> None:
    """A harmless change that stands first must not look as if it were all of it."""
    listed = [f"file:/data/{number:04}" for number in range(40)]
    approved = LEAST + f"sgx.allowed_files = {json.dumps(listed)}\n"
    listed[0] = "file:/data/first"
    (line,) = lines(approved, LEAST + f"sgx.allowed_files = {json.dumps(listed)}\n")
    assert "more of it" not in line
    listed[39] = "file:/leak"
    (line,) = lines(approved, (LEAST + f"sgx.allowed_files = {json.dumps(listed)}\n").replace("first", f"f{escape}"))
    assert line.endswith("(more of it may differ)")
    assert len(line) < 700
    value, other = "x" + "a" * 300 + "good", "y" + "a" * 300 + "evil"
    (line,) = lines(f'{LEAST}loader.env.X = "{value}"\n', f'{LEAST}loader.env.X = "{other}"\n')
    assert line.endswith("(more of it may differ)")


def test_value_of_several_lines_is_one_line() -> None:
    """No value can pose as a line of its own, nor hide what follows it."""
    (found,) = lines(MOUNT, MOUNT + 'loader.env.X = "1\\n  - loader.argv: approved a, seen a\\u001b[2K"\n')
    assert found == r'loader.env.X: approved nothing, seen "1\n  - loader.argv: approved a, seen a\x1b[2K"'


def test_mounts_at_one_path_are_both_compared() -> None:
    """The second mount at a path does not hide the first."""
    twice = MOUNT.replace("]", ', { path = "/data", uri = "file:more" }]')
    found = lines(twice, twice.replace('"file:data"', '"file:evil"'))
    assert found == ["mount /data: approved chroot file:data, seen chroot file:evil"]
    assert lines(twice, twice.replace('"file:more"', '"file:evil"')) == [
        "mount /data (number 2): approved chroot file:more, seen chroot file:evil"
    ]


def test_what_is_no_text_is_refused() -> None:
    """Bytes that are no UTF-8."""
    with pytest.raises(MalformedManifest):
        read_manifest(b"\xff")
