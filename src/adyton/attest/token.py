"""Signed attestation results: a claims set as a compact JWS (RFC 7515) with ES256, ES384 or EdDSA."""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import TYPE_CHECKING, Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, utils

from adyton.errors import BadChain, MalformedQuote, UsageError
from adyton.untrusted import parse_json_object

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes

MAX_TOKEN_BYTES: Final = 1 << 20
_CURVES: Final = {"secp256r1": ("ES256", 32, hashes.SHA256()), "secp384r1": ("ES384", 48, hashes.SHA384())}


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise MalformedQuote("the token is not base64url", check="token encoding") from None
    if _encode(raw) != text:
        raise MalformedQuote("the token is not in its one base64url form", check="token encoding")
    return raw


def _algorithm(key: object) -> str:
    if isinstance(key, (ed25519.Ed25519PrivateKey, ed25519.Ed25519PublicKey)):
        return "EdDSA"
    if isinstance(key, (ec.EllipticCurvePrivateKey, ec.EllipticCurvePublicKey)) and key.curve.name in _CURVES:
        return _CURVES[key.curve.name][0]
    raise UsageError("a token is signed with a key of P-256, P-384 or Ed25519", seen=type(key).__name__)


def sign_token(claims: Mapping[str, Any], key: PrivateKeyTypes) -> str:
    """Sign a claims set. The key decides the algorithm."""
    header = {"alg": _algorithm(key), "typ": "JWT"}
    parts = [_encode(json.dumps(part, separators=(",", ":")).encode()) for part in (header, claims)]
    data = ".".join(parts).encode()
    if isinstance(key, ed25519.Ed25519PrivateKey):
        signature = key.sign(data)
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        _, size, digest = _CURVES[key.curve.name]
        r, s = utils.decode_dss_signature(key.sign(data, ec.ECDSA(digest)))
        signature = r.to_bytes(size, "big") + s.to_bytes(size, "big")
    else:
        raise UsageError("a token is signed with a key of P-256, P-384 or Ed25519", seen=type(key).__name__)
    return ".".join([*parts, _encode(signature)])


def _is_signed(key: PublicKeyTypes, data: bytes, signature: bytes) -> bool:
    try:
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, data)
            return True
        if isinstance(key, ec.EllipticCurvePublicKey):
            _, size, digest = _CURVES[key.curve.name]
            if len(signature) != 2 * size:
                return False
            pair = utils.encode_dss_signature(
                int.from_bytes(signature[:size], "big"), int.from_bytes(signature[size:], "big")
            )
            key.verify(pair, data, ec.ECDSA(digest))
            return True
    except InvalidSignature:
        return False
    return False


def verify_token(token: str, key: PublicKeyTypes) -> dict[str, Any]:
    """The claims of a token that this key has signed. Raises MalformedQuote or BadChain.

    The algorithm is the key's. A token that names another one is refused.
    """
    if len(token) > MAX_TOKEN_BYTES or re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+", token, re.ASCII) is None:
        raise MalformedQuote("the token is not three base64url parts", check="token encoding")
    head, body, signature = token.split(".")
    header, claims = (parse_json_object(_decode(part), what="token", refuse=MalformedQuote) for part in (head, body))
    if header.get("alg") != _algorithm(key):
        raise MalformedQuote(
            "the token is of another algorithm than the key", check="token algorithm", expected=_algorithm(key)
        )
    if not _is_signed(key, f"{head}.{body}".encode(), _decode(signature)):
        raise BadChain("the token is not signed by this key", check="token signature")
    return claims
