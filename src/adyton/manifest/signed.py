"""A manifest that its signer vouches for, bound to the very runtime that will enforce it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from adyton import capped_read
from adyton.errors import BadSignature, MalformedManifest, ManifestError, UsageError
from adyton.manifest.measure import workload_measurement
from adyton.manifest.model import MAX_MANIFEST_BYTES, Manifest, parse_manifest
from adyton.manifest.sigstruct import SIGSTRUCT_BYTES, Attributes, Sigstruct, parse_sigstruct
from adyton.values import Digest, Measurement

_SEAL: Final = object()


@dataclass(frozen=True, slots=True)
class SignedManifest:
    """A final manifest whose signature was verified. Only `load_signed` can make one."""

    manifest_bytes: bytes = field(repr=False)
    manifest: Manifest = field(repr=False)
    sigstruct: Sigstruct = field(repr=False)
    runtime: Digest
    measurement: Measurement
    manifest_sha256: Digest
    mrsigner: Digest
    _seal: object = field(repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        if self._seal is not _SEAL:
            raise UsageError("a SignedManifest is made by load_signed only, which verifies it")


def load_signed(manifest_bytes: bytes, sigstruct_bytes: bytes, runtime: Digest) -> SignedManifest:
    """Verify signature and measurement of a final manifest under the runtime's identity, then parse it.

    Raises BadSignature where the signature, the signed measurement or an attribute differs, and MalformedManifest where
    the manifest does not parse or is a template still.
    """
    if len(manifest_bytes) > MAX_MANIFEST_BYTES:
        raise MalformedManifest(
            "the manifest is too large", expected=f"at most {MAX_MANIFEST_BYTES} bytes", seen=len(manifest_bytes)
        )
    sigstruct = parse_sigstruct(sigstruct_bytes)
    mrsigner = sigstruct.verify()
    measurement = workload_measurement(manifest_bytes, runtime)
    if sigstruct.measurement != measurement:
        raise BadSignature(
            "the signature was made for another manifest or another runtime",
            check="signed workload measurement",
            expected=sigstruct.measurement,
            seen=measurement,
            remedy="a manifest for a guest image is built with adyton build --runtime image.json, and approved with"
            " --guest-image image.json; else, if you changed neither, Adyton here is not the Adyton that built it:"
            " build with this one, and have the owner approve the new measurement",
        )
    manifest = parse_manifest(decode(manifest_bytes))
    if not manifest.is_final:
        raise MalformedManifest(
            "this is a template, not a final manifest",
            check="trusted files",
            expected="a hash for every trusted file, no folders",
            seen="entries without a hash",
            remedy="run adyton build on it",
        )
    wanted = signed_attributes(manifest)
    if (sigstruct.attributes, sigstruct.isv_prod_id, sigstruct.isv_svn) != (
        wanted,
        manifest.sgx.isv_prod_id,
        manifest.sgx.isv_svn,
    ):
        raise BadSignature(
            "the SIGSTRUCT's attributes are not those of the manifest",
            check="SIGSTRUCT attributes, product id, security version",
            expected=f"debug {manifest.sgx.debug}, product {manifest.sgx.isv_prod_id}, version {manifest.sgx.isv_svn}",
            seen=f"debug {sigstruct.debug}, product {sigstruct.isv_prod_id}, version {sigstruct.isv_svn}",
        )
    return SignedManifest(
        manifest_bytes=manifest_bytes,
        manifest=manifest,
        sigstruct=sigstruct,
        runtime=runtime,
        measurement=measurement,
        manifest_sha256=Digest(hashlib.sha256(manifest_bytes).digest()),
        mrsigner=mrsigner,
        _seal=_SEAL,
    )


def decode(manifest_bytes: bytes) -> str:
    """A manifest's text. Raises MalformedManifest where it is not UTF-8."""
    try:
        return manifest_bytes.decode()
    except UnicodeDecodeError as error:
        raise MalformedManifest(
            "the manifest is not UTF-8", check="text encoding", expected="UTF-8", seen=f"byte {error.start}"
        ) from None


def signed_attributes(manifest: Manifest) -> Attributes:
    """The attributes that a manifest's SIGSTRUCT must carry."""
    sgx = manifest.sgx
    return Attributes.of(debug=sgx.debug, use_exinfo=sgx.use_exinfo, cpu_features=sgx.cpu_features)


def signature_path(manifest_path: Path) -> Path:
    """Where the SIGSTRUCT of a manifest lies: NAME.manifest -> NAME.sig, in the same folder."""
    return manifest_path.with_name(manifest_path.name.removesuffix(".manifest") + ".sig")


def read_named(path: Path, limit_bytes: int, what: str) -> bytes:
    """`read_capped` for a file that a template names: a regular one, so that no pipe or device is waited for."""
    return read_capped(path, limit_bytes, what, regular_only=True)


def read_capped(path: Path, limit_bytes: int, what: str, *, regular_only: bool = False) -> bytes:
    """A whole file. Raises ManifestError where it cannot be read, MalformedManifest where it is larger."""
    return capped_read.read_capped(
        path,
        limit_bytes,
        what,
        unreadable=ManifestError,
        too_large=MalformedManifest,
        regular_only=regular_only,
        remedy="adyton build TEMPLATE makes NAME.manifest and NAME.sig",
    )


def read_signed(path: Path, runtime: Digest) -> SignedManifest:
    """Read NAME.manifest and NAME.sig and verify them with `load_signed`."""
    manifest_bytes = read_capped(path, MAX_MANIFEST_BYTES, "manifest")
    return load_signed(manifest_bytes, read_capped(signature_path(path), SIGSTRUCT_BYTES, "signature"), runtime)
