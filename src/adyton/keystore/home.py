"""The owner's home: a folder of mode 0700 with her CA, signing key, configuration and store.

::

    <home>/
      config.toml      name, server name, where the store lives, where the master key comes from
      ca.crt  ca.key   her CA; ca.crt goes into manifests
      server.crt  server.key     the key server's certificate under that CA
      grant.crt   grant.key      what signs grants; the key is sealed (keyserver.grant_key)
      audit.crt   audit.key      what signs the audit checkpoints
      signer.pem       RSA-3072, exponent 3: signs manifests (SIGSTRUCT)
      master.key       32 bytes, unless the master key is a passphrase's or a command's
      master.key.new   while it is rotated: the next one; the one that opens the store is kept
      store.db         keys, policies, audit record (SQLite), unless store.url says another place
      collateral/      what evidence is verified against
"""

from __future__ import annotations

import getpass
import hmac
import json
import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from adyton.atomic_file import rename_private_file, replace_private_file, write_private_file
from adyton.capped_read import read_private_file
from adyton.errors import StorageFailed, StoreError, UsageError
from adyton.file_lock import file_lock
from adyton.keystore.wrapping import (
    NO_HOME,
    WrappingKey,
    master_from_command,
    master_from_file,
    master_from_passphrase,
)
from adyton.untrusted import parse_json_object, parse_toml

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

    from adyton.keystore.audit import Checkpoint
    from adyton.keystore.store import Store
    from adyton.values import Key128

HOME_VARIABLE: Final = "ADYTON_HOME"
MASTER_KINDS: Final = ("file", "passphrase", "command")
MAX_CONFIG_BYTES: Final = 64 * 1024
SALT_BYTES: Final = 16
MAX_LIMIT: Final = 1_000_000


def default_home() -> Path:
    """The home that `--home` stands for when it is not given: $ADYTON_HOME, or ~/.adyton."""
    named = os.environ.get(HOME_VARIABLE)
    return Path(named) if named else Path.home() / ".adyton"


def actor() -> str:
    """Who is at the command line, for the audit record."""
    try:
        return f"{getpass.getuser()} (uid {os.getuid()})"
    except (OSError, KeyError):
        return f"uid {os.getuid()}"


@dataclass(frozen=True, slots=True)
class Config:
    """What config.toml says; an entry that is not known is refused by name."""

    name: str
    server_names: tuple[str, ...]
    store_url: str = ""
    master: str = "file"
    master_command: tuple[str, ...] = ()
    master_salt: bytes = b""
    limits: dict[str, int] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Config:
        """Parse the text of config.toml; raises UsageError."""
        document = parse_toml(text, what="config.toml", refuse=UsageError)
        known: dict[str, dict[str, type]] = {
            "owner": {"name": str},
            "server": {"names": list},
            "store": {"url": str},
            "master": {"kind": str, "command": list, "salt": str},
            "limits": dict.fromkeys(LIMITS, int),
        }
        for table, content in document.items():
            if table not in known or not isinstance(content, dict):
                raise UsageError(
                    f"config.toml: unknown entry {table!r}", check="config.toml", expected=", ".join(known), seen=table
                )
            for entry, value in content.items():
                kind = known[table].get(entry)
                if kind is None or type(value) is not kind:
                    raise UsageError(
                        f"config.toml: {table}.{entry} is unknown or ill-typed",
                        check=f"{table}.{entry}",
                        expected=", ".join(f"{name} ({of.__name__})" for name, of in known[table].items()),
                        seen=type(value).__name__,
                    )
        master = document.get("master", {})
        found = cls(
            name=document.get("owner", {}).get("name", ""),
            server_names=_texts("server.names", document.get("server", {}).get("names", [])),
            store_url=document.get("store", {}).get("url", ""),
            master=master.get("kind", "file"),
            master_command=_texts("master.command", master.get("command", [])),
            master_salt=_salt(master.get("salt", ""), needed=master.get("kind") == "passphrase"),
            limits=_limits(document.get("limits", {})),
        )
        if not found.name or not found.server_names or found.master not in MASTER_KINDS:
            raise UsageError(
                "config.toml lacks something",
                check="config.toml",
                expected=f"owner.name, server.names, and master.kind of {', '.join(MASTER_KINDS)}",
                seen=f"name {found.name!r}, {len(found.server_names)} server names, master {found.master!r}",
            )
        return found

    def to_toml(self) -> str:
        """The text of config.toml."""
        import tomli_w

        document: dict[str, Any] = {
            "owner": {"name": self.name},
            "server": {"names": list(self.server_names)},
            "master": {"kind": self.master},
        }
        if self.store_url:
            document["store"] = {"url": self.store_url}
        if self.master_command:
            document["master"]["command"] = list(self.master_command)
        if self.master_salt:
            document["master"]["salt"] = self.master_salt.hex()
        if self.limits:
            document["limits"] = self.limits
        return tomli_w.dumps(document)


def _texts(entry: str, values: list[object]) -> tuple[str, ...]:
    if not all(isinstance(value, str) and value for value in values):
        raise UsageError(
            f"config.toml: {entry} is ill-typed", check=entry, expected="a list of texts", seen=str(values)[:80]
        )
    return tuple(str(value) for value in values)


def _salt(written: str, *, needed: bool) -> bytes:
    try:
        salt = bytes.fromhex(written)
    except ValueError:
        salt = b"?"
    if len(salt) != SALT_BYTES and (salt or needed):
        raise UsageError(
            "config.toml: master.salt is no salt",
            check="master.salt",
            expected=f"the {2 * SALT_BYTES} hex digits that adyton init wrote",
            seen=f"{len(written)} characters",
            remedy="take it from a backup of config.toml: with another one the passphrase gives another key",
        )
    return salt


def _limits(written: dict[str, int]) -> dict[str, int]:
    for name, value in written.items():
        if not 1 <= value <= MAX_LIMIT:
            raise UsageError(
                f"config.toml: limits.{name} is out of range",
                check=f"limits.{name}",
                expected=f"1 to {MAX_LIMIT}",
                seen=value,
                remedy=f"leave it out for the default, {LIMITS[name]}",
            )
    return dict(written)


LIMITS: Final[dict[str, int]] = {
    "max_connections": 12_000,
    "max_active": 1024,
    "max_per_address": 2000,
    "max_active_per_address": 256,
    "first_byte_timeout_s": 30,
    "handshake_timeout_s": 10,
    "request_timeout_s": 20,
    "idle_timeout_s": 30,
    "connection_timeout_s": 90,
    "challenge_lifetime_s": 120,
}
"""The bounds of the key server and their defaults, as `[limits]` of config.toml."""


def ask_passphrase(*, confirm: bool) -> bytes:
    """Ask at the terminal; where there is none, read one line of standard input."""
    if sys.stdin.isatty():
        first = getpass.getpass("Passphrase of the key store: ")
        if confirm and getpass.getpass("The same again: ") != first:
            raise UsageError("the passphrases differ", check="passphrase", remedy="type it again")
        return first.encode()
    given = sys.stdin.buffer.readline(4096).rstrip(b"\r\n")
    if not given:
        raise UsageError(
            "no passphrase was given",
            check="passphrase",
            expected="a line on standard input",
            seen="its end",
            remedy="type it at a terminal, or pipe it in; a service that starts by itself needs a master key of kind"
            " file or command (docs/keys.md)",
        )
    return given


@dataclass(frozen=True, slots=True)
class Home:
    """An owner's home that exists."""

    path: Path
    config: Config

    @classmethod
    def open(cls, path: Path) -> Home:
        """Open a home; raises StorageFailed where there is none."""
        file = path / "config.toml"
        try:
            with file.open("rb") as stream:
                raw = stream.read(MAX_CONFIG_BYTES + 1)
        except OSError as error:
            raise StorageFailed(
                f"there is no owner's home at {path}",
                check="owner's home",
                expected=f"{file}",
                seen=str(error.strerror),
                remedy="make one with adyton init, or name it with --home or ADYTON_HOME",
            ) from error
        if len(raw) > MAX_CONFIG_BYTES:
            raise UsageError(f"{file} is longer than {MAX_CONFIG_BYTES} bytes", check="config.toml")
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
        """Where collateral is kept."""
        return self.path / "collateral"

    def store_url(self) -> str:
        """Where the store lives; a relative SQLite path is relative to the home."""
        return self.config.store_url or f"sqlite:///{self.path / 'store.db'}"

    def limit(self, name: str) -> int:
        """One of the key server's bounds."""
        return self.config.limits.get(name, LIMITS[name])

    def master_key(self, passphrase: Callable[[], bytes] | None = None) -> WrappingKey:
        """Get the master key from where the configuration says it is."""
        config = self.config
        if config.master == "file":
            return master_from_file(self.path / "master.key")
        if config.master == "command":
            if not config.master_command:
                raise UsageError("config.toml: master.command is empty", check="master.command")
            return master_from_command(config.master_command)
        text = passphrase() if passphrase is not None else ask_passphrase(confirm=False)
        return master_from_passphrase(text, config.master_salt)

    def open_store(self, passphrase: Callable[[], bytes] | None = None) -> Store:
        """Open the key store; imports the database layer only now."""
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
        store = Store.open(url, self.master_key(passphrase), reload, Kept(self).checkpoint)
        self.keep_head_of(store)  # of a store that was just brought to this version's form
        if self._next_master.exists():
            self._finish_rotation(store)
        return store

    @property
    def _next_master(self) -> Path:
        return self.path / "master.key.new"

    def _masters(self) -> Iterator[WrappingKey]:
        """The master keys that the home has now: its own, and one that a rotation is about to put in its place."""
        yield self.master_key()
        if self.config.master == "file" and self._next_master.exists():
            yield master_from_file(self._next_master)

    def _finish_rotation(self, store: Store) -> None:
        """Put the next master key in its place where it is the one that opens the store: a rotation was cut short."""
        with file_lock(self.path, wait=False) as mine:  # otherwise the rotation is under way, and finishes by itself
            if mine and self._next_master.exists() and _same(self._next_master, store.keyring.master):
                rename_private_file(self._next_master, self.path / "master.key")

    @contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """Keep other processes from exchanging the home's master key meanwhile; raises StoreError where one does."""
        with file_lock(self.path, wait=False) as mine:
            if not mine:
                raise StoreError(
                    f"another process has this home to itself: {self.path}",
                    check=what,
                    expected="no backup and no rotation of the master key under way",
                    seen="one",
                    remedy="wait until it has ended, and try again",
                )
            yield

    @property
    def checkpoint_path(self) -> Path:
        """Where the last checkpoint is kept."""
        return self.path / "checkpoint.json"

    def keep_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Keep where the audit record stands outside the store, so that an older copy of it is noticed.

        A newer one that another process has kept meanwhile stays.
        """
        with file_lock(self.path / ".checkpoint.lock", create=True):
            there = self.kept_checkpoint()
            if there is None or there.store_id != checkpoint.store_id or there.seq < checkpoint.seq:
                replace_private_file(self.checkpoint_path, json.dumps(checkpoint.to_dict()).encode())

    def keep_head_of(self, store: Store) -> None:
        """Keep a checkpoint of what this process has written to the store, if it has."""
        from adyton.keystore.audit import sign_checkpoint
        from adyton.keystore.clock import now_ms

        if store.has_written:
            self.keep_checkpoint(sign_checkpoint(audit_private_key(self), store.id, store.head(), now_ms()))

    def kept_checkpoint(self) -> Checkpoint | None:
        """The last checkpoint that was kept; None where the key server never ran."""
        from adyton.keystore.audit import Checkpoint

        path = self.checkpoint_path
        if not path.exists():
            return None
        raw = read_private_file(path, "checkpoint", remedy=NO_HOME)
        return Checkpoint.from_dict(parse_json_object(raw, what="checkpoint.json", refuse=StoreError))

    def check_not_older(self, store: Store) -> None:
        """Refuse a store that is older than, or another than, the last checkpoint beside it, or that was altered.

        The whole record is verified, so that what the store goes by from now on is what was once written in it.
        """
        with store.read():
            pass  # holds it against the checkpoint first: what is older is told apart from what is altered
        kept = self.kept_checkpoint()
        store.verify_audit([] if kept is None else [kept])

    def private(self, name: str) -> bytes:
        """Read one of the home's secret files."""
        return _read_pem(self.path / name)


class Kept:
    """The checkpoint beside the store, read again where the file is another than before; thread-safe."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._read: tuple[tuple[int, int, int], Checkpoint | None] | None = None

    def checkpoint(self) -> Checkpoint | None:
        """The last checkpoint that was kept, its signature verified; None where there is none."""
        from adyton.keystore.audit import verify_checkpoint

        try:
            status = self._home.checkpoint_path.stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageFailed(f"checkpoint.json cannot be read: {error.strerror}", check="checkpoint.json") from error
        which = (status.st_ino, status.st_mtime_ns, status.st_size)
        known = self._read
        if known is None or known[0] != which:
            kept = self._home.kept_checkpoint()
            if kept is not None:
                verify_checkpoint(kept, audit_public_key(self._home))
            known = self._read = (which, kept)
        return known[1]


def _read_pem(path: Path) -> bytes:
    return read_private_file(path, path.name, remedy=NO_HOME)


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
    """Make a new home with all its keys; refuses a folder that holds one already."""
    from adyton.keystore.certificates import make_audit, make_ca, make_server
    from adyton.keystore.grant_key import make_grant_key
    from adyton.keystore.store import Store

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


def audit_private_key(home: Home) -> Ed25519PrivateKey:
    """The key that signs audit checkpoints."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = load_pem_private_key(home.private("audit.key"), password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise StoreError("audit.key is not an Ed25519 key", check="audit.key")
    return key


def audit_public_key(home: Home) -> Ed25519PublicKey:
    """The key that checkpoints are verified with, from audit.crt, which must stand under the CA."""
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        certificate = x509.load_pem_x509_certificate((home.path / "audit.crt").read_bytes())
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(home.ca_path.read_bytes()))
        key = certificate.public_key()
    except (OSError, ValueError, TypeError, InvalidSignature) as error:
        raise StoreError(
            "audit.crt cannot be used", check="audit.crt", expected="a certificate under ca.crt", seen=error
        ) from None
    if not isinstance(key, Ed25519PublicKey):
        raise StoreError("audit.crt holds no Ed25519 key", check="audit.crt")
    return key


def renew_server_certificate(home: Home, names: tuple[str, ...], now: datetime | None = None) -> None:
    """Make a new key and certificate for the key server under the same CA; manifests stay as they are.

    `names` are its names from now on, kept in config.toml; the first must stay, since manifests pin it.
    """
    from adyton.keystore.certificates import Credential, make_server

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
    ca = Credential(home.ca_path.read_bytes(), home.private("ca.key"))
    made = make_server(ca, names or home.config.server_names, datetime.now(UTC) if now is None else now)
    replace_private_file(home.path / "server.key", made.key_pem)
    replace_private_file(home.path / "server.crt", made.certificate_pem)
    (home.path / "server.crt").chmod(0o644)
    if names and names != home.config.server_names:
        changed = replace(home.config, server_names=names)
        replace_private_file(home.path / "config.toml", changed.to_toml().encode())


def rotate_master_file(home: Home, store: Store) -> None:
    """Make a new master key in the file, wrap the store under it, and forget the old one.

    The new key is written beside the old one first, then the store is wrapped under it, then it takes the old one's
    place. Wherever this is cut short, one of the two files opens the store, and opening it finishes the exchange. A key
    server that runs finds the new key when it next needs one.
    """
    if home.config.master != "file":
        raise UsageError(
            "only a master key in a file is rotated here",
            check="master.kind",
            expected="file",
            seen=home.config.master,
            remedy="for a passphrase or a command: adyton backup, and adyton restore with the new one",
        )
    current, beside = home.path / "master.key", home.path / "master.key.new"
    new = WrappingKey.generate()
    with home.alone("rotating the master key"):
        with store.write() as change:
            if not _same(current, change.current_master()):
                raise StoreError(
                    "master.key is not the key that opens the store",
                    check="master.key",
                    expected="the key that the store is wrapped under",
                    seen="another: it was rotated meanwhile",
                    remedy="run it again: opening the store finishes a rotation that was cut short",
                )
            beside.unlink(missing_ok=True)  # what is there opens nothing: master.key does
            write_private_file(beside, new.reveal())
            change.rewrap(new, actor=actor())
        _check_opens(home, new)
        rename_private_file(beside, current)
    store.keyring.master = new


def _check_opens(home: Home, master: WrappingKey) -> None:
    """Raise StoreError where the store does not open under its new master key: the old one is kept then."""
    from adyton.keystore.store import Store

    store = Store.open(home.store_url(), master)
    try:
        with store.read() as view:
            every = view.keys()
            for key in every:
                view.reveal(key.name)
    finally:
        store.close()


def _same(path: Path, key: WrappingKey) -> bool:
    return hmac.compare_digest(master_from_file(path).reveal(), key.reveal())


def load_key(home: Path, name: str) -> Key128:
    """A protected-file key from the owner's store, by name."""
    store = Home.open(home).open_store()
    try:
        with store.read() as view:
            return view.load_key(name)
    finally:
        store.close()
