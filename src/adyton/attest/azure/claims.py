"""The runtime claims of Azure's paravisor: JSON that names the TPM's attestation key. Nothing is verified here.

The paravisor writes it and the hardware report binds its exact bytes. Members that are not known are left alone, since
newer paravisors add some; those that are relied on are strict.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from cryptography.hazmat.primitives.asymmetric import rsa

from adyton.errors import MalformedQuote
from adyton.untrusted import parse_json_object

MAX_CLAIMS_BYTES: Final = 4096
MAX_KEYS: Final = 8
AK_KID: Final = "HCLAkPub"
USER_DATA_BYTES: Final = 64

_B64URL: Final = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_USER_DATA: Final = re.compile(r"[0-9A-Fa-f]{128}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeClaims:
    """What the paravisor states, unverified."""

    ak_modulus: int
    ak_exponent: int
    user_data: bytes
    """64 bytes that the guest wrote into NV index 0x01400002; zeros where it wrote none."""
    secure_boot: bool
    console_enabled: bool
    vm_id: str

    @property
    def attestation_key(self) -> rsa.RSAPublicKey:
        """The TPM's attestation key. Raises MalformedQuote where the numbers make none."""
        try:
            return rsa.RSAPublicNumbers(self.ak_exponent, self.ak_modulus).public_key()
        except ValueError:
            _refuse("attestation key", expected="an RSA public key", seen="numbers that make none")


def _refuse(what: str, *, expected: object, seen: object) -> NoReturn:
    raise MalformedQuote(
        f"the runtime claims of Azure's paravisor are wrong: {what}",
        check=f"runtime claims: {what}",
        expected=expected,
        seen=seen,
    )


def parse_claims(raw: bytes) -> RuntimeClaims:
    """Parse the JSON of the runtime claims. Raises MalformedQuote."""
    document = parse_json_object(raw, what="runtime claims", refuse=MalformedQuote, limit_bytes=MAX_CLAIMS_BYTES)
    keys = document.get("keys")
    if not isinstance(keys, list) or len(keys) > MAX_KEYS or not all(isinstance(key, dict) for key in keys):
        _refuse("keys", expected=f"a list of at most {MAX_KEYS} keys", seen=type(keys).__name__)
    attestation = [key for key in keys if key.get("kid") == AK_KID]
    if len(attestation) != 1:
        _refuse("keys", expected=f"exactly one {AK_KID}", seen=len(attestation))
    (key,) = attestation
    if key.get("kty") != "RSA" or key.get("key_ops") != ["sign"]:
        _refuse(AK_KID, expected="an RSA key for signing", seen=f"{key.get('kty')!s}, {key.get('key_ops')!s}"[:80])
    user_data = document.get("user-data")
    if not isinstance(user_data, str) or _USER_DATA.fullmatch(user_data) is None:
        _refuse("user-data", expected=f"{2 * USER_DATA_BYTES} hex digits", seen=str(user_data)[:80])
    machine = document.get("vm-configuration")
    if not isinstance(machine, dict):
        _refuse("vm-configuration", expected="an object", seen=type(machine).__name__)
    vm_id = machine.get("vmUniqueId", "")
    if not isinstance(vm_id, str) or len(vm_id) > 64:
        _refuse("vmUniqueId", expected="a text of at most 64 characters", seen=str(vm_id)[:80])
    return RuntimeClaims(
        ak_modulus=_number(key.get("n"), "n"),
        ak_exponent=_number(key.get("e"), "e"),
        user_data=bytes.fromhex(user_data),
        secure_boot=_flag(machine, "secure-boot"),
        console_enabled=_flag(machine, "console-enabled"),
        vm_id=vm_id,
    )


def _flag(machine: dict[str, Any], name: str) -> bool:
    value = machine.get(name)
    if not isinstance(value, bool):
        _refuse(name, expected="true or false", seen=str(value)[:40])
    return value


def _number(value: object, name: str) -> int:
    """A number of a JWK: base64url of big-endian bytes without padding (RFC 7518, 6.3.1)."""
    what = f"{AK_KID}: {name}"
    if not isinstance(value, str) or len(value) > 1024 or _B64URL.fullmatch(value) is None:
        _refuse(what, expected="base64url without padding", seen=str(value)[:40])
    try:
        raw = base64.urlsafe_b64decode(value + "=" * (-len(value) % 4))
    except binascii.Error:
        raw = b""
    if not raw or raw[0] == 0 or base64.urlsafe_b64encode(raw).rstrip(b"=").decode() != value:
        _refuse(what, expected="base64url in its one form, without leading zeros", seen=value[:40])
    return int.from_bytes(raw, "big")
