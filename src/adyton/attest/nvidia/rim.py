"""Reference integrity manifests (RIM): the measurements that NVIDIA vouches for, as signed XML.

A RIM is a SWID tag (ISO/IEC 19770-2:2015) with an enveloped XML signature. Exactly one form of signature is taken: one
`Signature` as a child of the root, one reference with `URI=""`, the transforms "enveloped signature" and inclusive
C14N 1.1, SHA-384, ECDSA of P-384. After that, values are read from the canonical bytes that were digested, and from
nothing else. So an element outside the digest, or a second signature, has no effect but a refusal.

An XML signature has no trusted time. A RIM whose signers have expired counts only where the collateral store recorded
its SHA-256 while they were valid, or where the policy exempts this SHA-256 until a date.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn

from adyton.attest.certificates import ECDSA_SHA384 as SHA384
from adyton.attest.certificates import ecdsa_is_valid
from adyton.attest.nvidia import canonical_xml
from adyton.attest.nvidia.chain import RIM_CHAIN, check_chain, parse_der_chain
from adyton.attest.nvidia.layout import MAX_MEASUREMENTS, MAX_RIM_BYTES, MEASUREMENT_BYTES
from adyton.attest.nvidia.spdm import SIGNATURE_BYTES
from adyton.errors import BadChain, MalformedQuote
from adyton.values import Digest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from adyton.attest.certificates import Certificate, Known
    from adyton.attest.checks import Checks
    from adyton.attest.nvidia.canonical_xml import Element
    from adyton.attest.roots import TrustRoots

SWID: Final = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd"
DSIG: Final = "http://www.w3.org/2000/09/xmldsig#"
HASHES: Final = "http://www.w3.org/2001/04/xmlenc#sha384"
C14N: Final = "http://www.w3.org/2006/12/xml-c14n11"
ENVELOPED: Final = DSIG + "enveloped-signature"
ECDSA_SHA384: Final = "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384"
DIGEST_SHA384: Final = "http://www.w3.org/2001/04/xmldsig-more#sha384"

_MAX_ALTERNATIVES: Final = 64
_HEX: Final = re.compile(rf"[0-9a-fA-F]{{{2 * MEASUREMENT_BYTES}}}")
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,2}")
_VERSION: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True)
class RIM:
    """One RIM, as its signed bytes say. The signature was checked, and nothing else is verified."""

    fingerprint: Digest
    """SHA-256 of the document as it was served."""
    version: str
    """Version of the driver or VBIOS that it is about."""
    product: str
    """The chip, such as "GH100"."""
    golden: Mapping[int, tuple[bytes, ...]]
    """For each active index: the digests that are good (48 bytes each)."""
    chain: tuple[Certificate, ...]
    """The signer's chain, leaf first."""

    @property
    def valid_from(self) -> datetime:
        """The start of the validity of all its signers."""
        return max(certificate.window.not_before for certificate in self.chain)

    @property
    def valid_until(self) -> datetime:
        """The end of the validity of all its signers."""
        return min(certificate.window.not_after for certificate in self.chain)

    def is_signed_in_time(self, moment: datetime) -> bool:
        """Whether all signers are valid at this moment."""
        return self.valid_from <= moment <= self.valid_until


def _refuse(what: str, expected: object, seen: object) -> NoReturn:
    raise MalformedQuote(
        f"the RIM does not parse: {what}",
        check="parse of the RIM",
        expected=expected,
        seen=str(seen)[:120],
        remedy="fetch it again: adyton collateral fetch --gpu --for EVIDENCE",
    )


def parse_rim(raw: bytes, known: Known | None = None) -> RIM:
    """Parse a RIM and check its signature by the key of the first certificate in it.

    Raises MalformedQuote, and BadChain where the signature or the digest is wrong. `check_signers` judges the chain.
    """
    root = canonical_xml.parse(raw, limit_bytes=MAX_RIM_BYTES)
    signature = _only_signature(root)
    digested = canonical_xml.canonical(root, without=signature)
    chain = _check_signature(signature, digested, known)
    document = canonical_xml.parse(digested, limit_bytes=MAX_RIM_BYTES)
    if document.name != (SWID, "SoftwareIdentity"):
        _refuse("its root", "SoftwareIdentity", document.local)
    meta, payload = _child(document, "Meta"), _child(document, "Payload")
    values = meta.values()
    return RIM(
        fingerprint=Digest(hashlib.sha256(raw).digest()),
        version=_text(values, "colloquialVersion"),
        product=_text(values, "product"),
        golden=_golden(payload),
        chain=chain,
    )


# --- the signature ----------------------------------------------------------------------------------------------------


def _only_signature(root: Element) -> Element:
    """The one Signature in the document, which must be a child of its root."""
    found = [element for element in root.walk() if element.local == "Signature"]
    if len(found) != 1 or found[0].name != (DSIG, "Signature") or not any(child is found[0] for child in root.children):
        _refuse("its signature", "one Signature, as a child of the root", f"{len(found)} in the document")
    return found[0]


def _in_order(parent: Element, names: Sequence[str]) -> list[Element]:
    """The children of an element of the signature: exactly these, in this order."""
    children = parent.elements()
    if [child.name for child in children] != [(DSIG, name) for name in names]:
        _refuse(f"{parent.local} of its signature", ", ".join(names), ", ".join(child.local for child in children))
    return children


def _attributes(element: Element, wanted: Mapping[str, str]) -> None:
    """An element of the signature has exactly these attributes, with these values."""
    seen = {(item.namespace, item.local): item.value for item in element.attributes}
    if seen != {("", name): value for name, value in wanted.items()}:
        _refuse(f"{element.local} of its signature", wanted or "no attributes", sorted(seen))


def _empty(element: Element, algorithm: str) -> None:
    _attributes(element, {"Algorithm": algorithm})
    if element.elements():
        _refuse(f"{element.local} of its signature", "no parameters", "an element")


def _check_signature(signature: Element, digested: bytes, known: Known | None) -> tuple[Certificate, ...]:
    """Check the form of the signature, the digest, and the signature by the first certificate. Returns the chain."""
    _attributes(signature, {})
    signed_info, value, key_info = _in_order(signature, ("SignedInfo", "SignatureValue", "KeyInfo"))
    method, algorithm, reference = _in_order(signed_info, ("CanonicalizationMethod", "SignatureMethod", "Reference"))
    transforms, digest_method, digest_value = _in_order(reference, ("Transforms", "DigestMethod", "DigestValue"))
    first, second = _in_order(transforms, ("Transform", "Transform"))
    for element in (signed_info, value, key_info, transforms, digest_value):
        _attributes(element, {})
    _attributes(reference, {"URI": ""})
    _empty(method, C14N)
    _empty(algorithm, ECDSA_SHA384)
    _empty(first, ENVELOPED)
    _empty(second, C14N)
    _empty(digest_method, DIGEST_SHA384)
    (data,) = _in_order(key_info, ("X509Data",))
    _attributes(data, {})
    certificates = _in_order(data, ["X509Certificate"] * len(RIM_CHAIN))
    for element in certificates:
        _attributes(element, {})
    chain = parse_der_chain([_base64(element) for element in certificates], RIM_CHAIN, "RIM signer chain", known)
    digest = hashlib.sha384(digested).digest()
    if not hmac.compare_digest(digest, _base64(digest_value)):
        raise _bad("the digest of its content", digest.hex(), _base64(digest_value)[:48].hex())
    raw, key = _base64(value), chain[0].p384
    covered = canonical_xml.canonical(signed_info)
    if key is None or len(raw) != SIGNATURE_BYTES or not ecdsa_is_valid(key, raw, covered, SHA384):
        raise _bad("its signature", f"a signature by {chain[0].common_name}", "another, or over other bytes")
    return chain


def _base64(element: Element) -> bytes:
    """The bytes of an element's text in base64. Only white space may stand in it."""
    text = element.text().translate({ord(sign): None for sign in " \n\t"})
    try:
        raw = binascii.a2b_base64(text, strict_mode=True)
    except (binascii.Error, ValueError):
        _refuse(f"{element.local} of its signature", "base64", text[:40])
    if base64.b64encode(raw).decode() != text:
        _refuse(f"{element.local} of its signature", "base64 in its one form", text[:40])
    return raw


def _bad(what: str, expected: str, seen: str) -> BadChain:
    return BadChain(
        f"the RIM was altered: {what} is wrong",
        check="RIM: signature",
        expected=expected,
        seen=seen,
        remedy="fetch it again: adyton collateral fetch --gpu --for EVIDENCE",
    )


# --- the values -------------------------------------------------------------------------------------------------------


def _child(document: Element, name: str) -> Element:
    """The one element of this name in the document, which must be a child of its root."""
    found = [element for element in document.walk() if element.local == name]
    if len(found) != 1 or found[0].namespace != SWID or not any(child is found[0] for child in document.children):
        _refuse(f"its {name}", f"one {name}, as a child of the root", f"{len(found)} in the document")
    return found[0]


def _text(values: Mapping[tuple[str, str], str], name: str) -> str:
    value = values.get(("", name), "")
    if _VERSION.fullmatch(value) is None:
        _refuse(f"{name} of its Meta", "1 to 64 of A-Z, a-z, 0-9, dot, dash and underscore", value)
    return value


def _golden(payload: Element) -> dict[int, tuple[bytes, ...]]:
    """The good digests of each active measurement."""
    found: dict[int, tuple[bytes, ...]] = {}
    seen: set[int] = set()
    for resource in payload.elements():
        if resource.name != (SWID, "Resource") or resource.elements():
            _refuse("its Payload", "only Resource", resource.local)
        values = resource.values()
        plain = {name: value for (namespace, name), value in values.items() if not namespace}
        index, alternatives = plain.get("index", ""), plain.get("alternatives", "")
        if (
            plain.get("type") != "Measurement"
            or plain.get("active") not in ("True", "False")
            or plain.get("size") != str(MEASUREMENT_BYTES)
            or _NUMBER.fullmatch(index) is None
            or int(index) >= MAX_MEASUREMENTS
            or int(index) in seen
            or _NUMBER.fullmatch(alternatives) is None
            or not 1 <= int(alternatives) <= _MAX_ALTERNATIVES
        ):
            _refuse("a Resource", "a measurement of 48 bytes with an index of its own", plain)
        seen.add(int(index))
        hashes = {name: value for (namespace, name), value in values.items() if namespace == HASHES}
        if set(hashes) != {f"Hash{number}" for number in range(int(alternatives))} or any(
            _HEX.fullmatch(value) is None for value in hashes.values()
        ):
            _refuse(f"measurement {index}", f"Hash0 to Hash{int(alternatives) - 1}, 96 hex digits each", sorted(hashes))
        if plain["active"] == "True":
            found[int(index)] = tuple(bytes.fromhex(hashes[f"Hash{number}"]) for number in range(int(alternatives)))
    if not found:
        _refuse("its Payload", "at least one active measurement", "none")
    return found


# --- the signers ------------------------------------------------------------------------------------------------------


def check_signers(checks: Checks, rim: RIM, roots: TrustRoots) -> bool:
    """Check that the chain of a RIM's signers leads to a pinned root. Returns whether the root is simulated.

    Their validity in time is judged by `signed_in_time`.
    """
    return check_chain(checks, rim.chain, roots.nvidia_rim, roots, "RIM")
