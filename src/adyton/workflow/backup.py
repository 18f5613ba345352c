"""Back up an owner's home in one sealed file, and restore it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adyton.atomic_file import write_private_file
from adyton.errors import UsageError
from adyton.keystore.backup.create import back_up
from adyton.keystore.backup.restore import restore as restore_home
from adyton.keystore.backup.shares import read_share
from adyton.keystore.home import actor, default_home
from adyton.workflow.owner import owner_store

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from adyton.keystore.home import Home


@dataclass(frozen=True, slots=True)
class BackedUp:
    """The sealed file, its size, and the files of the recovery shares, if there are any."""

    backup: Path
    size_bytes: int
    shares: tuple[Path, ...]

    def to_dict(self) -> dict[str, Any]:
        """The document of `adyton backup --json`."""
        return {
            "backup": str(self.backup),
            "size_bytes": self.size_bytes,
            "shares": [str(path) for path in self.shares],
        }


def backup(
    output: Path,
    *,
    passphrase: bytes | None = None,
    split: tuple[int, int] | None = None,
    shares: Path | None = None,
    home: Path | None = None,
) -> BackedUp:
    """Write keys, policies, record, certificates and configuration to one sealed file, as `adyton backup` does.

    It is sealed with a passphrase, or with a key that `split` (N, M) turns into M shares in the folder `shares`. Any N
    of them open it. Raises UsageError, StoreError, StorageFailed.
    """
    if (split is None) != (shares is None) or (split is None) == (passphrase is None):
        raise UsageError(
            "say how the backup is sealed",
            check="backup",
            expected="a passphrase, or how to split and the folder for the shares",
            seen="both" if passphrase is not None else "neither",
        )
    with owner_store(home) as (found, store):
        made = back_up(found, store, output, passphrase=passphrase, split=split, actor=actor())
    files = []
    if shares is not None and made:
        shares.mkdir(parents=True, exist_ok=True, mode=0o700)
        for share in made:
            path = shares / f"share-{share.backup}-{share.number}-of-{share.total}.txt"
            write_private_file(path, share.to_text().encode())
            files.append(path)
    return BackedUp(output, output.stat().st_size, tuple(files))


@dataclass(frozen=True, slots=True)
class Restored:
    """The restored home, and the content of its store."""

    home: Path
    entries: int
    keys: int
    approvals: int

    def to_dict(self) -> dict[str, Any]:
        """The document of `adyton restore --json`."""
        return {"home": str(self.home), "entries": self.entries, "keys": self.keys, "approvals": self.approvals}


def restore(
    backup: Path,
    *,
    passphrase: Callable[[], bytes],
    shares: Sequence[Path] = (),
    store_url: str | None = None,
    master_command: Sequence[str] = (),
    join: bool = False,
    home: Path | None = None,
) -> Restored:
    """Restore a home from a backup, as `adyton restore` does. It is verified before it is put in place.

    `passphrase` is called if the backup is sealed with one. Raises UsageError, IntegrityError, StoreError.
    """
    counts: dict[str, int] = {}

    def verify(made: Home) -> None:
        store = made.open_store()
        try:
            made.check_not_older(store)
            with store.read() as view:
                counts["entries"] = view.head().seq
                keys = view.keys()
                for key in keys:
                    view.reveal(key.name)
                counts["keys"], counts["approvals"] = len(keys), len(view.approvals())
        finally:
            store.close()

    made = restore_home(
        backup,
        home if home is not None else default_home(),
        passphrase=passphrase,
        shares=[read_share(path) for path in shares],
        store_url=store_url,
        master_command=tuple(master_command),
        join=join,
        verify=verify,
    )
    return Restored(made.path, **counts)
