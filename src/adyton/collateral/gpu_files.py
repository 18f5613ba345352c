"""Collateral for GPUs, taken from a store or from files. Nothing is fetched."""

from __future__ import annotations

import base64
import binascii
import hashlib
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Final

from adyton.attest.nvidia.collateral import GPUCollateral, KnownRIM
from adyton.attest.nvidia.layout import MAX_RIM_BYTES
from adyton.attest.nvidia.ocsp import parse_answer
from adyton.attest.nvidia.rim import parse_rim
from adyton.capped_read import read_capped
from adyton.collateral.bundle import parse_bundle
from adyton.collateral.documents import Document, verify_document
from adyton.errors import EvidenceError, MalformedQuote
from adyton.untrusted import parse_json_object

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from adyton.collateral.store import CollateralStore

MAX_FILES: Final = 4096
MAX_FILE_BYTES: Final = 64 << 20


# --- from a store -----------------------------------------------------------------------------------------------------


def gpu_collateral(store: CollateralStore) -> GPUCollateral:
    """Every RIM and every OCSP answer of a store. What has ended is judged with the evidence.

    Raises StorageFailed where a document was altered on disk.
    """
    recorded = store.rims_recorded()
    rims = []
    for verified in store.of_kind("nvidia-rim"):
        rim = parse_rim(verified.document.body)
        rims.append(KnownRIM(rim, verified.document.request, recorded.get(rim.fingerprint.hex())))
    answers = tuple(parse_answer(verified.document.body) for verified in store.of_kind("nvidia-ocsp"))
    return GPUCollateral(rims=tuple(rims), answers=answers)


# --- from files -------------------------------------------------------------------------------------------------------


def gpu_collateral_from(paths: Iterable[Path]) -> GPUCollateral:
    """RIMs and OCSP answers in files and folders: XML, DER, answers of the RIM service, bundles, documents of a store.

    A bare file has no record of when it came, so an expired signer of its RIM takes an exemption. Raises
    MalformedQuote or BadChain where a named file holds none. Other files in a folder are skipped.
    """
    rims: list[KnownRIM] = []
    answers: list[bytes] = []
    for path in paths:
        folder = path.is_dir()
        files = islice(sorted(item for item in path.rglob("*") if item.is_file()), MAX_FILES) if folder else [path]
        for file in files:
            raw = read_capped(file, MAX_FILE_BYTES, "collateral")
            try:
                _take(raw, file, rims, answers)
            except EvidenceError:
                if not folder:
                    raise
    return GPUCollateral(rims=tuple(rims), answers=tuple(map(parse_answer, answers)))


def _take(raw: bytes, path: Path, rims: list[KnownRIM], answers: list[bytes]) -> None:
    head = raw[:64].lstrip()
    if head.startswith(b"<"):
        rims.append(KnownRIM(parse_rim(raw)))
    elif head.startswith(b"{"):
        for document in _documents(raw, path):
            if document.kind == "nvidia-rim":
                verify_document(document)
                rims.append(KnownRIM(parse_rim(document.body), document.request))
            elif document.kind == "nvidia-ocsp":
                parse_answer(document.body)
                answers.append(document.body)
    elif raw[:1] == b"\x30":
        parse_answer(raw)
        answers.append(raw)
    else:
        raise MalformedQuote(
            f"{path} is no collateral for GPUs",
            check="parse of the collateral",
            expected="a RIM (XML), an OCSP answer (DER), or JSON",
            seen=raw[:8].hex(),
        )


def _documents(raw: bytes, path: Path) -> Sequence[Document]:
    data = parse_json_object(raw, what=f"collateral {path}", refuse=MalformedQuote, limit_bytes=MAX_FILE_BYTES)
    if "rim" in data:
        body = rim_in_answer(raw)
        return [Document("nvidia-rim", body, "", "", datetime.fromtimestamp(0, UTC), request=str(data.get("id"))[:100])]
    return [Document.from_dict(data)] if "kind" in data else parse_bundle(raw)


def rim_in_answer(raw: bytes, rim_id: str | None = None) -> bytes:
    """The RIM (XML) in an answer of the service: JSON with `id`, `rim` (base64) and perhaps `sha256`."""
    data = parse_json_object(raw, what="RIM answer", refuse=MalformedQuote, limit_bytes=2 * MAX_RIM_BYTES)
    text, digest = data.get("rim"), data.get("sha256")
    if not isinstance(text, str) or (rim_id is not None and data.get("id") != rim_id):
        raise _malformed("another id, or no RIM")
    try:
        found = base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        raise _malformed("a RIM that is no base64") from None
    if digest is not None and digest != hashlib.sha256(found).hexdigest():
        raise _malformed("a RIM with another SHA-256 than it says")
    return found


def _malformed(seen: str) -> MalformedQuote:
    return MalformedQuote(
        f"the answer of the RIM service does not parse: {seen}",
        check="parse of the RIM answer",
        expected="JSON with id, rim and sha256",
        seen=seen,
    )
