"""Documents in one file: a bundle, or one collateral file in the form of QuoteCollateralV3."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from adyton.attest.collateral import Collateral
from adyton.capped_read import read_capped
from adyton.collateral.documents import (
    SIGNED_MEMBER,
    Channel,
    Document,
    Kind,
    VerifiedDocument,
    last_certificate,
    malformed,
    verify_document,
)
from adyton.errors import EvidenceError, MalformedQuote, UsageError
from adyton.untrusted import parse_json_object

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from adyton.values import Digest

BUNDLE_FORMAT: Final = "adyton-collateral-bundle-1"
MAX_BUNDLE_BYTES: Final = 64 << 20
MAX_BUNDLE_DOCUMENTS: Final = 4096


def documents_of(collateral: Collateral, url: str, fetched_at: datetime) -> tuple[Document, ...]:
    """Split a `Collateral` (the form of QuoteCollateralV3) into single documents."""
    root = last_certificate(collateral.pck_crl_issuer_chain)

    def signed(kind: Kind, text: str, signature: bytes, chain: str) -> Document:
        body = f'{{"{SIGNED_MEMBER[kind]}":{text},"signature":"{signature.hex()}"}}'
        return Document(kind, body.encode(), chain, url, fetched_at)

    found = [
        signed("tcb-info", collateral.tcb_info, collateral.tcb_info_signature, collateral.tcb_info_issuer_chain),
        signed(
            "qe-identity",
            collateral.qe_identity,
            collateral.qe_identity_signature,
            collateral.qe_identity_issuer_chain,
        ),
        Document("pck-crl", collateral.pck_crl, collateral.pck_crl_issuer_chain, url, fetched_at),
        Document("root-crl", collateral.root_ca_crl, root, url, fetched_at),
    ]
    return tuple(found)


def parse_bundle(raw: bytes) -> tuple[Document, ...]:
    """Parse a bundle, or one collateral file in the form of QuoteCollateralV3. Raises MalformedQuote."""
    data = parse_json_object(raw, what="bundle", refuse=MalformedQuote, limit_bytes=MAX_BUNDLE_BYTES)
    if data.get("format") != BUNDLE_FORMAT:
        if "format" in data:
            raise malformed("bundle", f"the format {str(data['format'])[:60]!r}")
        collateral = Collateral.from_dict(data)
        return documents_of(collateral, "", datetime.fromtimestamp(0, UTC))
    rows = data.get("documents")
    if set(data) != {"format", "documents"} or not isinstance(rows, list) or len(rows) > MAX_BUNDLE_DOCUMENTS:
        raise malformed("bundle", "no list of documents")
    return tuple(Document.from_dict(row) for row in rows)


def build_bundle(documents: Iterable[Document]) -> bytes:
    """A bundle: one JSON file with the documents as they were served."""
    rows = [document.to_dict() for document in documents]
    return json.dumps({"format": BUNDLE_FORMAT, "documents": rows}, indent=1).encode() + b"\n"


def index(
    documents: Iterable[Document], root: Digest, channel: Channel = "standard"
) -> dict[tuple[Kind, str], VerifiedDocument]:
    """Verify documents and keep those of this root and channel. Of two with the same name, the newer is kept.

    Documents that do not verify are left out, since a bundle may hold more than is needed. `assemble` refuses a missing
    one.
    """
    found: dict[tuple[Kind, str], VerifiedDocument] = {}
    for document in documents:
        try:
            verified = verify_document(document)
        except EvidenceError:
            continue
        key = (document.kind, verified.subject)
        if verified.root != root or document.channel != channel:
            continue
        if key not in found or (verified.number or 0, verified.issued_at) > (
            found[key].number or 0,
            found[key].issued_at,
        ):
            found[key] = verified
    return found


def read_bundle_files(paths: Iterable[Path]) -> list[bytes]:
    """Read the bundles in these files and folders (every *.json of a folder)."""
    found: list[bytes] = []
    for path in paths:
        files = sorted(path.glob("*.json")) if path.is_dir() else [path]
        if not files:
            raise UsageError(f"{path} holds no *.json", check="bundle", expected="a bundle or collateral file")
        found += [read_capped(file, MAX_BUNDLE_BYTES, "collateral", too_large=MalformedQuote) for file in files]
    return found
