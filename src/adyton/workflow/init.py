"""Make an owner's identity: her CA, her signing key, the key server's certificates, and an empty key store."""

from __future__ import annotations

import hashlib
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adyton.errors import UsageError
from adyton.keystore.certificate_file import read_certificate
from adyton.keystore.certificates import DEFAULT_SERVER_NAME
from adyton.keystore.config import MASTER_KINDS
from adyton.keystore.grant_key import make_grant_key
from adyton.keystore.home import actor, default_home
from adyton.keystore.names import check_name
from adyton.keystore.new_home import init_home
from adyton.keystore.sealed_key import AGREEMENT, IN_FORCE_KEY, make_sealed_key
from adyton.keystore.server_certificate import renew_server_certificate
from adyton.manifest import sigstruct
from adyton.workflow.owner import owner_store

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Initialized:
    """The new home, its CA certificate with its SHA-256 in hex, and the key server's first name."""

    home: Path
    ca: Path
    ca_sha256: str
    server_name: str

    def to_dict(self) -> dict[str, Any]:
        """The document of `adyton init --json`."""
        return {
            "home": str(self.home),
            "ca": str(self.ca),
            "ca_sha256": self.ca_sha256,
            "server_name": self.server_name,
        }


def init(
    home: Path | None = None,
    *,
    name: str = "owner",
    server_names: Sequence[str] = (),
    master: str = "file",
    master_command: Sequence[str] = (),
    store_url: str = "",
    passphrase: Callable[[], bytes] | None = None,
) -> Initialized:
    """Make an owner's identity in a new home, as `adyton init` does.

    `passphrase` is called once if `master` is "passphrase". Raises UsageError where the home holds an identity.
    """
    if (
        master not in MASTER_KINDS
        or (master == "command") != bool(master_command)
        or (master == "passphrase") != (passphrase is not None)
    ):
        raise UsageError(
            "say where the master key comes from",
            check="--master",
            expected="file, passphrase, or command with --master-command",
            seen=f"{master}{' with' if master_command else ' without'} --master-command",
        )
    check_name(name, "owner's name")
    names: tuple[str, ...] = (DEFAULT_SERVER_NAME, "localhost", "127.0.0.1")
    if server_names:
        names = tuple(dict.fromkeys((*server_names, DEFAULT_SERVER_NAME)))
    given = None if passphrase is None else passphrase()
    made = init_home(
        home if home is not None else default_home(),
        name=name,
        server_names=names,
        master=master,
        master_command=tuple(master_command),
        store_url=store_url,
        signer_pem=sigstruct.generate_signer(),
        passphrase=None if given is None else lambda: given,
    )
    pem = read_certificate(made.path, "ca.crt").decode("ascii")
    fingerprint = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()
    return Initialized(made.path, made.ca_path, fingerprint, names[0])


def renew_server(home: Path | None = None, *, server_names: Sequence[str] = ()) -> Path:
    """Make new keys and certificates for a home's key server. Returns the home's folder."""
    with owner_store(home) as (found, store):
        renew_server_certificate(found, tuple(server_names))
        make_grant_key(found, store, actor=actor())
        for kind in (AGREEMENT, IN_FORCE_KEY):
            if (found.path / kind.certificate).exists():
                make_sealed_key(found, store, kind, actor=actor())
    return found.path
