"""Collateral: what besides the quote is needed to judge it, as one value and as JSON.

The JSON has the field names that dcap-qvl's QuoteCollateralV3 uses: chains are PEM (signer first, then root), CRLs
and signatures hex, `tcb_info` and `qe_identity` the exact signed text.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Self

from adyton.attest.layout import MAX_CRL_BYTES, MAX_JSON_BYTES
from adyton.errors import MalformedQuote

_HEX = ("tcb_info_signature", "qe_identity_signature", "pck_crl", "root_ca_crl")
_OPTIONAL = "pck_certificate_chain"


def _malformed(what: str) -> MalformedQuote:
    return MalformedQuote(
        f"the collateral does not parse: {what}",
        check="parse of the collateral",
        expected="JSON with " + ", ".join(item.name for item in fields(Collateral)),
        seen=what,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Collateral:
    """Everything from Intel (or a simulated vendor) that the appraisal of one quote needs; unverified."""

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
    """PEM: PCK certificate, its CA, root; for quotes that do not carry it (certification data types 1 to 4)."""

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Parse one collateral document; raises MalformedQuote."""
        if len(text) > 4 * MAX_CRL_BYTES:
            raise _malformed(f"{len(text)} characters")
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            raise _malformed("not JSON") from None
        if not isinstance(document, dict):
            raise _malformed("no JSON object")
        return cls.from_dict(document)

    @classmethod
    def from_dict(cls, document: dict[str, object]) -> Self:
        """Take the parsed JSON; every member must be there, and no other."""
        names = [item.name for item in fields(cls)]
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
            try:
                values[name] = bytes.fromhex(value) if name in _HEX else value
            except ValueError:
                raise _malformed(f"{name} is not hex") from None
        return cls(**values)  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, str]:
        """As the members of the JSON document."""
        found: dict[str, str] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if value is not None:
                found[item.name] = value.hex() if isinstance(value, bytes) else value
        return found

    def to_json(self) -> str:
        """As a JSON document; `from_json` gives it back."""
        return json.dumps(self.to_dict(), indent=1)
