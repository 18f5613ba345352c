"""Renew the key server's certificate."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from adyton.atomic_file import replace_private_file
from adyton.errors import UsageError
from adyton.keystore.certificate_file import read_certificate
from adyton.keystore.certificates import DEFAULT_SERVER_NAME, Credential, make_server

if TYPE_CHECKING:
    from adyton.keystore.home import Home


def renew_server_certificate(home: Home, names: tuple[str, ...], now: datetime | None = None) -> None:
    """Make a new key and certificate for the key server under the same CA. Manifests stay as they are.

    `names` are its new names, written to config.toml. The first name and the default name stay, since manifests pin
    them.
    """
    pinned = home.config.server_names[0]
    if names and names[0] != pinned:
        raise UsageError(
            "the key server's first name cannot change: every manifest pins it",
            check="--server-name",
            expected=f"{pinned} first, then any others",
            seen=", ".join(names),
            remedy=f"adyton init --renew-server --server-name {pinned} --server-name {names[0]}; a new first name needs"
            " a new home, and programs that are built and approved again",
        )
    if names and DEFAULT_SERVER_NAME in home.config.server_names:
        names = tuple(dict.fromkeys((*names, DEFAULT_SERVER_NAME)))
    ca = Credential(read_certificate(home.path, "ca.crt"), home.private("ca.key"))
    made = make_server(ca, names or home.config.server_names, datetime.now(UTC) if now is None else now)
    replace_private_file(home.path / "server.key", made.key_pem)
    replace_private_file(home.path / "server.crt", made.certificate_pem)
    (home.path / "server.crt").chmod(0o644)
    if names and names != home.config.server_names:
        changed = replace(home.config, server_names=names)
        replace_private_file(home.path / "config.toml", changed.to_toml().encode())
