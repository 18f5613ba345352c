"""Collateral: what besides the quote is needed to judge it, as one value and as JSON.

The JSON has the field names that dcap-qvl's QuoteCollateralV3 uses: chains are PEM, CRLs and signatures hex, `tcb_info`
and `qe_identity` the exact signed text. Chains are read in either order, CRLs also as PEM and as PEM in hex. For AMD
the JSON is Adyton's own:
`{"amd_leaf": PEM, "amd_chain": PEM (ASK, then ARK), "amd_crl": hex or null}`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Self

from adyton.attest.certificates import decode_crl, leaf_first, parse_certificate, split_pem
from adyton.attest.layout import MAX_CRL_BYTES, MAX_JSON_BYTES
from adyton.errors import MalformedQuote
from adyton.untrusted import parse_json_object

_HEX = ("tcb_info_signature", "qe_identity_signature")
_CRLS = ("pck_crl", "root_ca_crl")
_CHAIN = "_chain"
_OPTIONAL = "pck_certificate_chain"
_NO_MEMBERS = frozenset({"channel"})
"""What is known of collateral and stands in no document."""


def _malformed(what: str) -> MalformedQuote:
    return MalformedQuote(
        f"the collateral does not parse: {what}",
        check="parse of the collateral",
        expected="JSON with " + ", ".join(_members()),
        seen=what,
    )


def _members() -> list[str]:
    return [item.name for item in fields(Collateral) if item.name not in _NO_MEMBERS]


def _member(name: str, value: str) -> str | bytes:
    """A member of the JSON document as it is kept: CRLs in DER, chains with the leaf first."""
    if name in _CRLS:
        return _crl(name, value)
    if name.endswith(_CHAIN):
        return leaf_first(value)
    try:
        return bytes.fromhex(value) if name in _HEX else value
    except ValueError:
        raise _malformed(f"{name} is not hex") from None


def _crl(name: str, value: str) -> bytes:
    try:
        return decode_crl(value.encode())
    except MalformedQuote:
        raise _malformed(f"{name} is neither hex nor PEM") from None


def _load(text: str) -> dict[str, object]:
    return parse_json_object(text, what="collateral", refuse=MalformedQuote, limit_bytes=4 * MAX_CRL_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Collateral:
    """Everything from Intel (or a simulated vendor) that the appraisal of one quote needs. It is unverified."""

    tcb_info: str
    tcb_info_signature: bytes
    tcb_info_issuer_chain: str
    qe_identity: str
    qe_identity_signature: bytes
    qe_identity_issuer_chain: str
    pck_crl: bytes
    pck_crl_issuer_chain: str
    root_ca_crl: bytes
    pck_certificate_chain: str | None = None
    """PEM: PCK certificate, its CA, root. For quotes that do not carry it (certification data types 1 to 4)."""
    channel: str | None = None
    """"early" or "standard": as which TCB info and QE identity were fetched. None where nobody recorded it.

    The maker does not sign it. It is the word of whoever keeps the store.
    """

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Parse one collateral document. Raises MalformedQuote."""
        return cls.from_dict(_load(text))

    @classmethod
    def from_dict(cls, document: dict[str, object]) -> Self:
        """Take the parsed JSON. Every member must be there, and no other."""
        names = _members()
        unknown = set(document) - set(names)
        missing = set(names) - set(document) - {_OPTIONAL}
        if unknown or missing:
            raise _malformed(
                "unknown: " + ", ".join(sorted(unknown))[:160] + "; missing: " + ", ".join(sorted(missing))
            )
        values: dict[str, object] = {}
        for name in names:
            value = document.get(name)
            if name == _OPTIONAL and value is None:
                continue
            if not isinstance(value, str):
                raise _malformed(f"{name} is no text")
            limit = 2 * MAX_CRL_BYTES if name in ("pck_crl", "root_ca_crl") else MAX_JSON_BYTES
            if len(value) > limit:
                raise _malformed(f"{name} has {len(value)} characters")
            values[name] = _member(name, value)
        return cls(**values)  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, str]:
        """As the members of the JSON document."""
        found: dict[str, str] = {}
        for name in _members():
            value = getattr(self, name)
            if value is not None:
                found[name] = value.hex() if isinstance(value, bytes) else value
        return found

    def to_json(self) -> str:
        """As a JSON document. `from_json` gives it back."""
        return json.dumps(self.to_dict(), indent=1)


@dataclass(frozen=True, slots=True)
class NoCollateral:
    """Nothing: evidence that carries its whole chain, and whose maker has no revocation lists."""

    def to_json(self) -> str:
        """As a JSON document: an empty object."""
        return "{}"


_AMD = ("amd_leaf", "amd_chain", "amd_crl")


@dataclass(frozen=True, slots=True, kw_only=True)
class AMDCollateral:
    """The certificates that a SEV-SNP report needs, DER each. They are unverified."""

    leaf: bytes
    """VCEK or VLEK."""
    ask: bytes
    """The certificate that signed it: ASK for a VCEK, ASVK for a VLEK."""
    ark: bytes
    crl: bytes | None = None
    """AMD's CRL of revoked ASKs."""

    @classmethod
    def from_dict(cls, document: dict[str, object]) -> Self:
        """Take the parsed JSON. Raises MalformedQuote."""
        leaf, chain, crl = (document.get(name) for name in _AMD)
        if set(document) - set(_AMD) or not isinstance(leaf, str) or not isinstance(chain, str):
            raise _malformed("AMD collateral has amd_leaf, amd_chain and amd_crl, and nothing else")
        leaves, issuers = split_pem(leaf, "VCEK or VLEK"), split_pem(leaf_first(chain), "AMD chain")
        if len(leaves) != 1 or len(issuers) != 2:
            raise _malformed(f"AMD collateral with {len(leaves)} leaves and {len(issuers)} issuers, expected 1 and 2")
        if crl is not None and (not isinstance(crl, str) or len(crl) > 2 * MAX_CRL_BYTES):
            raise _malformed("amd_crl is no text")
        return cls(leaf=leaves[0], ask=issuers[0], ark=issuers[1], crl=None if crl is None else _crl("amd_crl", crl))

    def to_dict(self) -> dict[str, str | None]:
        """As the members of the JSON document."""
        leaf, ask, ark = (
            parse_certificate(raw, what).pem
            for raw, what in ((self.leaf, "VCEK or VLEK"), (self.ask, "ASK"), (self.ark, "ARK"))
        )
        return {"amd_leaf": leaf, "amd_chain": ask + ark, "amd_crl": None if self.crl is None else self.crl.hex()}

    def to_json(self) -> str:
        """As a JSON document."""
        return json.dumps(self.to_dict(), indent=1)


def collateral_from_dict(document: dict[str, object]) -> Collateral | AMDCollateral | NoCollateral:
    """The collateral of any vendor from the parsed JSON of `to_json`. Raises MalformedQuote."""
    if not document:
        return NoCollateral()
    return Collateral.from_dict(document) if "qe_identity" in document else AMDCollateral.from_dict(document)
