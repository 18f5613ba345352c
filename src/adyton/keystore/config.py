"""The content of config.toml in the owner's home. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from adyton.errors import UsageError
from adyton.untrusted import parse_toml

MASTER_KINDS: Final = ("file", "passphrase", "command")
SALT_BYTES: Final = 16
MAX_LIMIT: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Config:
    """The content of config.toml. An unknown entry is refused by name."""

    name: str
    server_names: tuple[str, ...]
    store_url: str = ""
    master: str = "file"
    master_command: tuple[str, ...] = ()
    master_salt: bytes = b""
    limits: dict[str, int] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Config:
        """Parse the text of config.toml. Raises UsageError."""
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
"""The limits of the key server and their defaults, as in `[limits]` of config.toml."""
