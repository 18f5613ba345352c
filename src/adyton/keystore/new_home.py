"""Make an owner's new home with all its keys."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from adyton.atomic_file import write_private_file
from adyton.errors import StorageFailed, UsageError
from adyton.keystore.certificates import make_audit, make_ca, make_server
from adyton.keystore.config import SALT_BYTES, Config
from adyton.keystore.grant_key import make_grant_key
from adyton.keystore.home import Home, actor
from adyton.keystore.store import Store
from adyton.keystore.wrapping import WrappingKey

if TYPE_CHECKING:
    from collections.abc import Callable


def init_home(
    path: Path,
    *,
    name: str,
    server_names: tuple[str, ...],
    master: str = "file",
    master_command: tuple[str, ...] = (),
    store_url: str = "",
    signer_pem: bytes,
    passphrase: Callable[[], bytes] | None = None,
    now: datetime | None = None,
) -> Home:
    """Make a new home with all its keys. Refuses a folder that is a home already."""
    moment = datetime.now(UTC) if now is None else now
    if (path / "config.toml").exists():
        raise UsageError(
            f"there is an owner's home at {path} already",
            check="new home",
            expected="a folder without config.toml",
            seen=str(path / "config.toml"),
            remedy="use it, or name another one with --home",
        )
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.chmod(0o700)
        (path / "collateral").mkdir(exist_ok=True, mode=0o700)
    except OSError as error:
        raise StorageFailed(f"cannot make {path}: {error.strerror}", check="new home") from error
    config = Config(
        name=name,
        server_names=server_names,
        store_url=store_url,
        master=master,
        master_command=master_command,
        master_salt=os.urandom(SALT_BYTES) if master == "passphrase" else b"",
    )
    home = Home(path, config)
    ca = make_ca(name, moment)
    server = make_server(ca, server_names, moment)
    audit = make_audit(ca, name, moment)
    if master == "file":
        write_private_file(path / "master.key", WrappingKey.generate().reveal())
    store = Store.create(home.store_url(), home.master_key(passphrase), actor=actor())
    if home.store_url().startswith("sqlite:///"):
        Path(home.store_url().removeprefix("sqlite:///")).chmod(0o600)
    for stem, credential in (("ca", ca), ("server", server), ("audit", audit)):
        write_private_file(path / f"{stem}.key", credential.key_pem)
        write_private_file(path / f"{stem}.crt", credential.certificate_pem)
        (path / f"{stem}.crt").chmod(0o644)
    try:
        make_grant_key(home, store, actor=actor(), now=moment)
    finally:
        store.close()
    write_private_file(path / "signer.pem", signer_pem)
    write_private_file(path / "config.toml", config.to_toml().encode())
    return home
