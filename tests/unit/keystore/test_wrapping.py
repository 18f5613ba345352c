"""Where master keys come from, and how private files are read."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from adyton.capped_read import read_private_file
from adyton.errors import StorageFailed, StoreError, UsageError
from adyton.keystore.home import Home
from adyton.keystore.new_home import init_home
from adyton.keystore.wrapping import master_from_command, master_from_passphrase
from tests.support.owner_world import signer_pem


def test_master_key_from_passphrase_file_and_command(tmp_path: Path) -> None:
    """All three sources open the store they made, and a wrong passphrase does not."""
    names = ("adyton-key-server",)
    home = init_home(
        tmp_path / "a",
        name="a",
        server_names=names,
        master="passphrase",
        signer_pem=signer_pem(),
        passphrase=lambda: b"correct horse",
    )
    assert not (home.path / "master.key").exists()
    Home.open(home.path).open_store(lambda: b"correct horse").close()
    with pytest.raises(StoreError):
        home.open_store(lambda: b"wrong horse!")
    with pytest.raises(UsageError, match="too short"):
        master_from_passphrase(b"short", b"s" * 16)
    command = (sys.executable, "-c", "print('ab' * 32)")
    home = init_home(
        tmp_path / "b", name="b", server_names=names, master="command", master_command=command, signer_pem=signer_pem()
    )
    Home.open(home.path).open_store().close()
    for bad in ("print('xyz')", "raise SystemExit(3)"):
        with pytest.raises(StoreError):
            master_from_command((sys.executable, "-c", bad))
    with pytest.raises(StorageFailed):
        master_from_command(("/nonexistent/command",))


def test_read_private_file_refuses_what_is_no_file(tmp_path: Path) -> None:
    """A folder, a FIFO or a huge file in a secret's place is refused."""
    with pytest.raises((StoreError, StorageFailed)):
        read_private_file(tmp_path, "secret")
    big = tmp_path / "big"
    big.write_bytes(bytes(20_000))
    big.chmod(0o600)
    with pytest.raises(StoreError, match="longer"):
        read_private_file(big, "secret")
