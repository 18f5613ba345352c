"""Whoever prepared the folder that an owner writes to put links in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from adyton.atomic_file import write_file
from adyton.errors import StorageFailed, UsageError
from adyton.storage.trees import decrypt_tree, encrypt_tree, rekey_tree
from adyton.values import Key128

if TYPE_CHECKING:
    from collections.abc import Callable

KEY, OTHER = Key128(bytes(16)), Key128(bytes(15) + b"\1")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A sealed tree, and a target folder with a link in it that leads to the owner's home."""
    (tmp_path / "plain" / "sub").mkdir(parents=True)
    (tmp_path / "plain" / "sub" / "authorized_keys").write_text("the stranger's key")
    encrypt_tree(tmp_path / "plain", tmp_path / "sealed", KEY)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "authorized_keys").write_text("mine")
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "sub").symlink_to(tmp_path / "home")
    return tmp_path


@pytest.mark.parametrize("force", [False, True])
def test_no_tree_is_written_through_a_link_below_its_target(place: Path, force: bool) -> None:
    """Decrypting, encrypting and sealing anew: refused before anything is written."""
    works: list[Callable[[], object]] = [
        lambda: decrypt_tree(place / "sealed", place / "target", KEY, force=force),
        lambda: encrypt_tree(place / "plain", place / "target", KEY, force=force),
        lambda: rekey_tree(place / "sealed", place / "target", KEY, OTHER, force=force),
    ]
    for work in works:
        with pytest.raises(UsageError, match="link") as refused:
            work()
        assert refused.value.remedy
    assert (place / "home" / "authorized_keys").read_text() == "mine"
    assert [each.name for each in (place / "home").iterdir()] == ["authorized_keys"]
    assert [each.name for each in (place / "target").iterdir()] == ["sub"]


@pytest.mark.parametrize("leads", ["{home}/authorized_keys", "../home/authorized_keys", "up/../home/authorized_keys"])
def test_link_in_an_output_leads_to_no_file_of_the_owners(tmp_path: Path, leads: str) -> None:
    """A program's output may hold any link. One that leads out of the folder is made only if she says so."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home/authorized_keys").write_text("mine")
    (tmp_path / "plain/d").mkdir(parents=True)
    (tmp_path / "plain/up").symlink_to(".")
    (tmp_path / "plain/result.csv").symlink_to(leads.format(home=tmp_path / "home"))
    encrypt_tree(tmp_path / "plain", tmp_path / "sealed", KEY, all_links=True)
    (tmp_path / "key").write_bytes(bytes(16))
    (tmp_path / "key").chmod(0o600)
    verb = [sys.executable, "-m", "adyton", "decrypt", "sealed", "-o", "out", "--key-file", "key"]
    done = subprocess.run(verb, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == UsageError.exit_code
    assert "--all-links" in done.stderr
    assert not (tmp_path / "out").exists()
    subprocess.run([*verb, "--all-links"], cwd=tmp_path, capture_output=True, check=True, timeout=120)
    assert (tmp_path / "out/result.csv").read_text() == "mine"


def test_several_trees_are_not_written_through_a_link_in_the_folder_for_them(place: Path) -> None:
    """`-o DIR` with several sources: each goes to DIR/NAME, and a link of that name is refused."""
    (place / "target" / "sealed").symlink_to(place / "home")
    (place / "key").write_bytes(bytes(16))
    (place / "key").chmod(0o600)
    (place / "more").write_bytes(b"")
    verb = [sys.executable, "-m", "adyton", "decrypt", "sealed", "more", "-o", "target", "--key-file", "key", "--force"]
    done = subprocess.run(verb, cwd=place, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == UsageError.exit_code, done.stderr
    assert "is a link" in done.stderr
    assert [each.name for each in (place / "home").iterdir()] == ["authorized_keys"]


def test_target_itself_may_be_a_link_that_its_user_names(place: Path) -> None:
    """Only what lies below it is the stranger's."""
    (place / "mine").symlink_to(place / "home")
    decrypt_tree(place / "sealed", place / "mine", KEY)
    assert (place / "home" / "sub" / "authorized_keys").read_text() == "the stranger's key"


def test_whole_file_replaces_a_link_and_writes_through_none(tmp_path: Path) -> None:
    """What audit, verify, build and serve write: the link goes, what it led to stays."""
    (tmp_path / "secret").write_text("mine")
    (tmp_path / "export").symlink_to(tmp_path / "secret")
    write_file(tmp_path / "export", b"record")
    assert (tmp_path / "secret").read_text() == "mine"
    assert (tmp_path / "export").read_bytes() == b"record"
    assert not (tmp_path / "export").is_symlink()


def test_whole_file_replaces_no_device_and_no_pipe(tmp_path: Path) -> None:
    """Neither is a file that could be whole."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageFailed, match="pipe"):
        write_file(tmp_path / "pipe", b"record")
    assert (tmp_path / "pipe").is_fifo()
    assert len(list(tmp_path.iterdir())) == 1


def test_temporary_names_of_what_the_owner_writes_are_no_ones_to_guess(tmp_path: Path) -> None:
    """`.export.part` was a name that could lie there already, as a link to a file of hers."""
    (tmp_path / "secret").write_text("mine")
    home = tmp_path / "home"
    environment = {**os.environ, "ADYTON_HOME": str(home)}

    def adyton(*words: str) -> None:
        verb = [sys.executable, "-m", "adyton", *words]
        subprocess.run(verb, env=environment, cwd=tmp_path, check=True, capture_output=True, timeout=120)

    adyton("init")
    names = [".export.part", ".export.new", "export"]
    for name in names:
        (tmp_path / name).symlink_to(tmp_path / "secret")
    adyton("audit", "export", "-o", "export")
    assert (tmp_path / "secret").read_text() == "mine"
    assert '"checkpoint"' in (tmp_path / "export").read_text()
    adyton("audit", "verify", "--export", "export")
    (tmp_path / "export").unlink()
    (tmp_path / "export").symlink_to(tmp_path / "secret")
    adyton("audit", "checkpoint", "-o", "export")
    assert (tmp_path / "secret").read_text() == "mine"
    adyton("audit", "verify", "--checkpoint", "export")
