"""Counter-signatures: a key server's entry on a statement in its audit record, and how others verify it.

An owner's server signs what it takes: the statement (as DSSE), and a checkpoint of its record with the entry. The entry
names the statement by its SHA-256, the grant with the approval of each key, and the verdict on the evidence at the end.
Its time is by the owner's clock.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from adyton.errors import AuditError, BadChain, Mismatch, Stale
from adyton.keystore.audit import Checkpoint, canonical, entry_hash, verify_checkpoint
from adyton.keystore.audit_facts import RECEIPT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adyton.receipt.document import CounterSignature
    from adyton.receipt.dsse import Signature
    from adyton.receipt.statement import OwnerGrant, Statement

_FOREIGN: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    InvalidSignature,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vouched:
    """What a verified counter-signature says."""

    owner: str
    ca_sha256: str
    granted_at: datetime
    signed_at: datetime
    """By the clock of the owner's key server."""
    keys: tuple[Mapping[str, Any], ...]
    """For each key: `key`, `version`, `approval`, `revision`, `app`, `app_version`."""
    verdict: Mapping[str, Any]
    """The server's verdict on the evidence at the end, in the manner of EAR."""
    collateral: str
    first_collateral: str
    """SHA-256 of the collateral of the evidence at the end, and of the first evidence."""


def entry_body(
    statement_sha256: str,
    grant: str,
    granted_at_ms: int,
    keys: list[dict[str, Any]],
    verdict: Mapping[str, Any],
    *,
    collateral: str,
    first_collateral: str,
) -> dict[str, Any]:
    """The body of the entry."""
    return {
        "receipt": statement_sha256,
        "grant": grant,
        "granted_at_ms": granted_at_ms,
        "keys": keys,
        "verdict": dict(verdict),
        "collateral": collateral,
        "first_collateral": first_collateral,
    }


def verify_counter_signature(
    signed: CounterSignature, signature: Signature, statement: Statement, grant: OwnerGrant, payload: bytes
) -> Vouched:
    """Verify what one owner's server says of a statement. `signature` is its DSSE signature.

    Raises BadChain, Mismatch or Stale with the step that does not hold.
    """
    key = _audit_key(signed, grant)
    signature.check_owner(key, payload)
    first, then = _checkpoint(grant.checkpoint, key, "grant"), _checkpoint(signed.checkpoint, key, "counter-signature")
    digest = entry_hash(signed.previous, signed.seq, signed.at_ms, RECEIPT, signed.body)
    _same("entry of the counter-signature", (then.seq, then.hash), (signed.seq, digest))
    _same("store of the counter-signature", then.store_id, first.store_id)
    if first.seq >= signed.seq or first.at_ms > signed.at_ms:
        raise _mismatch("order of grant and counter-signature", "the grant first", "not so")
    body = _body(signed.body)
    _same("statement in the counter-signature", body["receipt"], statement.sha256)
    _same("grant in the counter-signature", body["grant"], grant.grant)
    versions = {item["key"]: item["version"] for item in body["keys"]}
    _same("versions of the keys in the counter-signature", versions, dict(grant.versions))
    return Vouched(
        owner=grant.name,
        ca_sha256=grant.ca_sha256,
        granted_at=_moment(body["granted_at_ms"]),
        signed_at=_moment(signed.at_ms),
        keys=tuple(body["keys"]),
        verdict=body["verdict"],
        collateral=body["collateral"],
        first_collateral=body["first_collateral"],
    )


def _body(text: str) -> dict[str, Any]:
    """The body of an entry, whose signature is verified. Raises Mismatch where it is none on a receipt."""
    try:
        body = json.loads(text)
        shaped = (
            set(body) == {"receipt", "grant", "granted_at_ms", "keys", "verdict", "collateral", "first_collateral"}
            and all(isinstance(body[name], str) for name in ("receipt", "grant", "collateral", "first_collateral"))
            and isinstance(body["granted_at_ms"], int)
            and isinstance(body["verdict"], dict)
            and all({"key", "version", "approval", "revision"} <= set(item) for item in body["keys"])
            and canonical(body) == text
        )
    except (ValueError, TypeError, AuditError, RecursionError):
        shaped = False
    if not shaped:
        raise _mismatch("text of the counter-signature", "an entry on a receipt", "something else")
    found: dict[str, Any] = body
    return found


def _audit_key(signed: CounterSignature, grant: OwnerGrant) -> Ed25519PublicKey:
    """The audit key of the owner whose CA the statement names. Raises BadChain or Stale."""
    _same("CA of the counter-signature", hashlib.sha256(signed.ca).hexdigest(), grant.ca_sha256, error=BadChain)
    try:
        ca = x509.load_der_x509_certificate(signed.ca)
        certificate = x509.load_der_x509_certificate(signed.certificate)
        certificate.verify_directly_issued_by(ca)
        extensions = certificate.extensions
        purposes = [item for item in extensions if isinstance(item.value, x509.ExtendedKeyUsage)]
        plain = not extensions.get_extension_for_class(x509.BasicConstraints).value.ca and not purposes
        is_ca = ca.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        key = certificate.public_key()
        dates = [(each.not_valid_before_utc, each.not_valid_after_utc) for each in (certificate, ca)]
    except _FOREIGN as error:
        raise _chain(type(error).__name__) from None
    if not isinstance(key, Ed25519PublicKey) or not plain or not is_ca:
        raise _chain("a certificate for another purpose")
    at = _moment(signed.at_ms)
    for begin, end in dates:
        if not begin <= at <= end:
            raise Stale(
                "the certificate of the counter-signature was not valid when it was made",
                check="validity of the audit key's certificate",
                expected=f"{begin:%Y-%m-%d} to {end:%Y-%m-%d}",
                seen=f"{at:%Y-%m-%d %H:%M:%S}",
                remedy="the owner's clock was wrong, or her certificates had expired: ask her",
            )
    return key


def _checkpoint(document: Mapping[str, Any], key: Ed25519PublicKey, what: str) -> Checkpoint:
    try:
        found = Checkpoint.from_dict(document)
        verify_checkpoint(found, key)
    except AuditError as error:
        raise BadChain(
            f"the checkpoint of the {what} does not verify",
            check=f"checkpoint of the {what}",
            expected="a signature of the owner's audit key",
            seen=error.seen or error.message,
            remedy="get the receipt again from whoever started the run",
        ) from None
    return found


def _moment(at_ms: int) -> datetime:
    return datetime.fromtimestamp(min(at_ms, 253_402_300_799_000) / 1000, UTC)


def _same(check: str, seen: object, expected: object, *, error: type[BadChain | Mismatch] = Mismatch) -> None:
    if seen != expected:
        raise error(
            f"the receipt does not hold together: {check}",
            check=check,
            expected=_short(expected),
            seen=_short(seen),
            remedy="parts of two receipts were mixed, or one was altered: get it again from whoever started the run",
        )


def _short(value: object) -> str:
    return (value.hex() if isinstance(value, bytes) else str(value))[:200]


def _mismatch(check: str, expected: str, seen: str) -> Mismatch:
    return Mismatch(
        f"the receipt does not hold together: {check}",
        check=check,
        expected=expected,
        seen=seen,
        remedy="get the receipt again from whoever started the run",
    )


def _chain(seen: str) -> BadChain:
    return BadChain(
        "the counter-signature is not by the owner's audit key",
        check="certificate of the counter-signature",
        expected="an Ed25519 key under the CA that the statement names, for the audit record and for nothing else",
        seen=seen,
        remedy="get the receipt again from whoever started the run",
    )
