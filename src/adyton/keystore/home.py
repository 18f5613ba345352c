"""The owner's home: a folder of mode 0700 with her CA, signing key, configuration and store.

::

    <home>/
      config.toml      name, server name, where the store lives, where the master key comes from
      ca.crt  ca.key   her CA; ca.crt goes into manifests
      server.crt  server.key     the key server's certificate under that CA
      grant.crt   grant.key      what signs grants; the key is sealed (keystore.sealed_key)
      agreement.crt  agreement.key   what signs agreements, and in-force.crt  in-force.key; sealed, too
      audit.crt   audit.key      what signs the audit checkpoints
      signer.pem       RSA-3072, exponent 3: signs manifests (SIGSTRUCT)
      master.key       32 bytes, unless the master key is a passphrase's or a command's
      master.key.new   while it is rotated: the next one; the one that opens the store is kept
      store.db         keys, policies, audit record (SQLite), unless store.url says another place
      collateral/      what evidence is verified against
"""

from __future__ import annotations

import getpass
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from adyton.capped_read import read_capped, read_private_file
from adyton.errors import StorageFailed, StoreError, UsageError
from adyton.keystore.audit_key import audit_private_key
from adyton.keystore.checkpoint_file import CheckpointFile
from adyton.keystore.config import LIMITS, Config
from adyton.keystore.master_file import CURRENT, finish_rotation, next_master
from adyton.keystore.passphrase import ask_passphrase
from adyton.keystore.wrapping import NO_HOME, WrappingKey, master_from_command, master_from_file, master_from_passphrase

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from adyton.keystore.audit import Checkpoint
    from adyton.keystore.store import Store
    from adyton.values import Key128

HOME_VARIABLE: Final = "ADYTON_HOME"
MAX_CONFIG_BYTES: Final = 64 * 1024


def default_home() -> Path:
    """The home without `--home`: $ADYTON_HOME, or ~/.adyton."""
    named = os.environ.get(HOME_VARIABLE)
    return Path(named) if named else Path.home() / ".adyton"


def actor() -> str:
    """The name of the user at the command line, for the audit record."""
    try:
        return f"{getpass.getuser()} (uid {os.getuid()})"
    except (OSError, KeyError):
        return f"uid {os.getuid()}"


@dataclass(frozen=True, slots=True)
class Home:
    """An owner's home that exists."""

    path: Path
    config: Config

    @classmethod
    def open(cls, path: Path) -> Home:
        """Open a home. Raises StorageFailed where there is none."""
        file = path / "config.toml"
        try:
            raw = read_capped(file, MAX_CONFIG_BYTES, "config.toml")
        except StorageFailed as error:
            raise StorageFailed(
                f"there is no owner's home at {path}",
                check="owner's home",
                expected=f"{file}",
                seen=error.seen,
                remedy="make one with adyton init, or name it with --home or ADYTON_HOME",
            ) from error
        return cls(path, Config.parse(raw.decode("utf-8", "replace")))

    @property
    def ca_path(self) -> Path:
        """The CA certificate, which manifests pin."""
        return self.path / "ca.crt"

    @property
    def signer_path(self) -> Path:
        """The key that signs manifests."""
        return self.path / "signer.pem"

    @property
    def collateral_path(self) -> Path:
        """The folder of collateral."""
        return self.path / "collateral"

    def store_url(self) -> str:
        """The URL of the store. A relative SQLite path is relative to the home."""
        return self.config.store_url or f"sqlite:///{self.path / 'store.db'}"

    def limit(self, name: str) -> int:
        """One of the key server's limits."""
        return self.config.limits.get(name, LIMITS[name])

    def master_key(self, passphrase: Callable[[], bytes] | None = None) -> WrappingKey:
        """Get the master key from its configured place."""
        config = self.config
        if config.master == "file":
            return master_from_file(self.path / CURRENT)
        if config.master == "command":
            if not config.master_command:
                raise UsageError("config.toml: master.command is empty", check="master.command")
            return master_from_command(config.master_command)
        text = passphrase() if passphrase is not None else ask_passphrase(confirm=False)
        return master_from_passphrase(text, config.master_salt)

    def _masters(self) -> Iterator[WrappingKey]:
        """The master keys that the home has now: its own, and one that a rotation is about to put in its place."""
        yield self.master_key()
        coming = next_master(self.path) if self.config.master == "file" else None
        if coming is not None:
            yield coming

    def open_store(self, passphrase: Callable[[], bytes] | None = None) -> Store:
        """Open the key store. Imports the database layer only now."""
        from adyton.keystore.store import Store

        url = self.store_url()
        if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
            raise StoreError(
                "the key store is missing",
                check="store.db",
                expected=url.removeprefix("sqlite:///"),
                seen="no such file",
                remedy="bring it back from a backup with adyton restore; without it no key is released",
            )
        reload = None if self.config.master == "passphrase" else self._masters
        store = Store.open(url, self.master_key(passphrase), reload, CheckpointFile(self.path).verified)
        self.keep_head_of(store)  # of a store that was just brought to this version's form
        finish_rotation(self.path, store)
        return store

    @property
    def checkpoint_path(self) -> Path:
        """Where the last checkpoint is kept."""
        return CheckpointFile(self.path).path

    def keep_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Keep where the audit record stands outside the store, so that an older copy of it is noticed."""
        CheckpointFile(self.path).keep(checkpoint)

    def keep_head_of(self, store: Store) -> None:
        """Write a checkpoint, if this process has written to the store."""
        from adyton.keystore.audit import sign_checkpoint
        from adyton.keystore.clock import now_ms

        if store.has_written:
            self.keep_checkpoint(sign_checkpoint(audit_private_key(self.path), store.id, store.head(), now_ms()))

    def kept_checkpoint(self) -> Checkpoint | None:
        """The last checkpoint that was kept, its signature not verified; None where the key server never ran."""
        return CheckpointFile(self.path).read()

    def check_not_older(self, store: Store) -> None:
        """Refuse a store that was altered, or that does not contain the last checkpoint in the home.

        The whole record is verified, so that everything the store uses from now on is verified.
        """
        with store.read():
            pass  # holds it against the checkpoint first: what is older is told apart from what is altered
        kept = self.kept_checkpoint()
        store.verify_audit([] if kept is None else [kept])

    def private(self, name: str) -> bytes:
        """Read one of the home's secret files."""
        return read_private_file(self.path / name, name, remedy=NO_HOME)


def load_key(home: Path, name: str, *, version: int | None = None) -> Key128:
    """A protected-file key from the owner's store, by name: its newest version, or the one that is named."""
    store = Home.open(home).open_store()
    try:
        with store.read() as reader:
            return reader.load_key(name, version=version)
    finally:
        store.close()
