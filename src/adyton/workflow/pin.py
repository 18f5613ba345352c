"""An encrypted folder is pinned: from now on its key server knows its newest root, and nothing older is taken."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from adyton.errors import IntegrityError, UsageError
from adyton.keystore.clock import now_ms
from adyton.keystore.stored_folder import PINNED, StoredFolder
from adyton.pfile.paths import normalise
from adyton.roots.first_root import pin_folder
from adyton.roots.folder_id import folder_id, key_of
from adyton.roots.journal import journal_of, read_journal
from adyton.roots.judge import CHECK
from adyton.roots.pinned_folder import Checked, check_folder
from adyton.workflow.owner import owner_store

if TYPE_CHECKING:
    from adyton.keystore.reader import Reader
    from adyton.roots.root import Root
    from adyton.values import Key128

ACTOR: Final = "adyton pin"


@dataclass(frozen=True, slots=True)
class Pinned:
    """A pinned folder, and its root."""

    folder: str
    """Its id: the name of the key, a slash, the path that its files were sealed under."""
    source: Path
    root: Root

    def to_dict(self) -> dict[str, Any]:
        """The document of `adyton pin --json`."""
        return {"folder": self.folder, "source": str(self.source), "root": self.root.to_dict()}


def pin(
    source: str | Path,
    *,
    key: str,
    sealed_as: str | None = None,
    accept: bool = False,
    home: Path | None = None,
) -> Pinned:
    """Pin an encrypted folder as it is now, as `adyton pin` does.

    A folder that is pinned already is checked, and stays as it is. With `accept` what is there now becomes the newest
    state, whatever the key server knew. Raises IntegrityError (check `root of the folder`), UsageError, StorageFailed,
    and the errors of the key store.
    """
    place = _place(source)
    if not Path(place).is_dir():
        raise UsageError(
            f"{place} is no folder",
            check="folder to pin",
            expected="a folder of protected files, or an empty one",
            seen="something else" if os.path.lexists(place) else "nothing",
            remedy=f"mkdir {place}, if a program is to write there",
        )
    stored_path = normalise(place if sealed_as is None else sealed_as)
    folder = folder_id(key, stored_path)
    with owner_store(home) as (_, store):
        with store.read() as view:
            wrap_key, known = view.load_key(key), view.folder(folder)
        if known is not None and not accept:
            checked = check_folder(place, wrap_key, folder, known.root, sealed_as=stored_path)
            return Pinned(folder, Path(place), checked.history.root)
        root = pin_folder(place, wrap_key, folder, sealed_as=stored_path, known=None if known is None else known.root)
        with store.write() as change:
            fence = 0 if known is None else known.fence + 1  # a run that still writes is no longer the writer
            change.set_folder(StoredFolder(folder, root, fence, ""), PINNED, now_ms(), actor=ACTOR)
    return Pinned(folder, Path(place), root)


def check_if_pinned(
    source: str | Path, key: str | Key128 | None, wrap_key: Key128, *, home: Path | None, demanded: bool = False
) -> Checked | None:
    """Hold the folder that is or holds `source` to the root in the owner's store, if it is pinned. None if it is not.

    The folder may have been moved: its history beside it says which one it is. With `demanded` what is not in a pinned
    folder is refused. Raises IntegrityError (check `root of the folder`), StorageFailed, and the errors of the store.
    """
    given = _place(source)
    above = [given, *map(str, Path(given).parents)]
    place = next((each for each in above if os.path.lexists(journal_of(each))), given)
    has_history = os.path.lexists(journal_of(place))
    if not isinstance(key, str):
        if demanded or has_history:
            raise UsageError(
                f"{place} is pinned, and only the owner's store knows its root",
                check=CHECK,
                expected="the key by its name in the store: --key NAME",
                seen="the key itself, or a file of it",
                remedy=f"name the key; to open the folder unchecked, move {journal_of(place)} away",
            )
        return None
    name = key.partition("@")[0]
    with owner_store(home) as (_, store), store.read() as view:
        known = _which(place, name, wrap_key, view)
        if known is None and not has_history:
            pinned = {stored.folder for stored in view.folders()}
            place = next((each for each in above if f"{name}/{normalise(each)}" in pinned), given)
            known = _which(place, name, wrap_key, view)
    if known is not None:
        return check_folder(place, wrap_key, known.folder, known.root, sealed_as=known.folder.partition("/")[2])
    if demanded or has_history:
        raise IntegrityError(
            f"the owner's store keeps no root of {place}",
            check=CHECK,
            expected=f"a pinned folder under the key {name}",
            seen="none that is this one",
            remedy=f"pin it: adyton pin {place} --key {name}",
        )
    return None


def _place(source: str | Path) -> str:
    return os.fspath(source).rstrip("/") or "/"


def _which(place: str, key: str, wrap_key: Key128, view: Reader) -> StoredFolder | None:
    """The pinned folder that lies at a place: by its history, else by its path."""
    under_key = [stored for stored in view.folders() if key_of(stored.folder) == key]
    if os.path.lexists(journal_of(place)):
        for stored in under_key:
            try:
                read_journal(journal_of(place), wrap_key, stored.folder)
            except IntegrityError:
                continue
            return stored
    return next((stored for stored in under_key if stored.folder == f"{key}/{normalise(place)}"), None)
