"""Judge a policy itself: what it leaves open. And sign the lists of machines that policies name by their key."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from adyton.attest.policy.hosts import sign_hosts
from adyton.attest.policy.open import DANGERS, Open, accepts_nothing, left_open, never_excluded
from adyton.capped_read import read_capped
from adyton.errors import UsageError
from adyton.untrusted import parse_json_object, parse_toml
from adyton.workflow.verify import read_policy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adyton.attest.evidence_policy import Policy

_MAX_LIST_BYTES: Final = 1 << 20
_MAX_KEY_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class PolicyChecked:
    """What a policy leaves open, the most dangerous first."""

    policy: Policy
    left_open: tuple[Open, ...]

    @property
    def accepts_nothing(self) -> bool:
        """Whether no evidence can meet it."""
        return accepts_nothing(self.policy)

    @property
    def never_excluded(self) -> tuple[str, ...]:
        """The attacks on its TEEs that no evidence can exclude."""
        return never_excluded(self.policy)

    def to_dict(self) -> dict[str, Any]:
        """The document of `adyton policy check --json`."""
        return {
            "accepts_nothing": self.accepts_nothing,
            "open": [item.to_dict() for item in self.left_open],
            "counts": {danger: sum(item.danger == danger for item in self.left_open) for danger in DANGERS},
            "never_excluded": list(self.never_excluded),
        }


def check_policy(path: str | Path, *, hosts: Sequence[str | Path] = (), at: datetime | None = None) -> PolicyChecked:
    """Say what the policy in a file leaves open at a time, by default now, as `adyton policy check` does.

    `hosts` are files with the signed lists of hosts that it names by their key. Raises UsageError where it is no
    policy, and StorageFailed.
    """
    if at is not None and at.tzinfo is None:
        raise UsageError("the time needs a zone", check="at", expected="a time with its zone", seen=at.isoformat())
    policy = read_policy(Path(path), hosts)
    return PolicyChecked(policy, left_open(policy, datetime.now(UTC) if at is None else at))


def sign_host_list(path: str | Path, key: str | Path, output: str | Path) -> str:
    """Sign the list of machines in a file (TOML or JSON) with an Ed25519 key (PEM), as `adyton policy sign-hosts` does.

    The list has `until` and at least one of `chip_ids`, `ppids` and `piids`. Returns the public key in hex, by which a
    policy names the list. Raises UsageError where the list or the key is none.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    from adyton.atomic_file import write_file

    raw = read_capped(Path(path), _MAX_LIST_BYTES, "list of hosts")
    parse = parse_json_object if raw.lstrip().startswith(b"{") else parse_toml
    document = _with_texts(parse(raw, what=f"list of hosts {path}", refuse=UsageError))
    try:
        signer = load_pem_private_key(read_capped(Path(key), _MAX_KEY_BYTES, "key"), None)
    except (ValueError, TypeError):
        signer = None
    if not isinstance(signer, Ed25519PrivateKey):
        raise UsageError(
            "the key is no Ed25519 private key in PEM without a password",
            check="--key",
            expected="Ed25519, PEM",
            seen="another key, or none",
            remedy="make one: openssl genpkey -algorithm ed25519 -out hosts.key",
        )
    write_file(Path(output), sign_hosts(document, signer).encode() + b"\n")
    return signer.public_key().public_bytes_raw().hex()


def _with_texts(value: Any) -> Any:
    """The same data with the dates of TOML as texts: what is signed is JSON."""
    if isinstance(value, dict):
        return {name: _with_texts(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_with_texts(item) for item in value]
    return value.isoformat() if isinstance(value, date | datetime) else value
