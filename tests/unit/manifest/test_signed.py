"""A signed manifest: what load_signed accepts, and each thing it refuses."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from adyton.errors import BadSignature, MalformedManifest, ManifestError, UsageError
from adyton.manifest.measure import LABEL, workload_measurement
from adyton.manifest.model import Manifest
from adyton.manifest.signed import SignedManifest, load_signed, read_signed, signature_path
from adyton.manifest.sigstruct import Attributes, generate_signer, load_signer, sign
from adyton.values import Digest

RUNTIME = Digest(bytes(range(32)))
TEXT = b"""libos.entrypoint = "/app"
[fs]
mounts = []
[sgx]
isvprodid = 5
[[sgx.trusted_files]]
uri = "file:app"
sha256 = "0000000000000000000000000000000000000000000000000000000000000000"

"""


@pytest.fixture(scope="module")
def key() -> rsa.RSAPrivateKey:
    """One signing key for the module."""
    return load_signer(generate_signer())


def signature(key: rsa.RSAPrivateKey, text: bytes = TEXT, **other: Any) -> bytes:
    """The SIGSTRUCT of a text, with some of its fields as given."""
    fields: dict[str, Any] = {"attributes": Attributes.of(debug=False), "isv_prod_id": 5, **other}
    return sign(workload_measurement(text, RUNTIME), key, **fields).to_bytes()


def test_measurement_is_the_documented_hash() -> None:
    """Label, runtime, length, hash of the manifest, in this order."""
    expected = hashlib.sha256(
        LABEL + RUNTIME.raw + len(TEXT).to_bytes(8, "little") + hashlib.sha256(TEXT).digest()
    ).hexdigest()
    assert str(workload_measurement(TEXT, RUNTIME)) == expected
    assert len(LABEL) == 32


def test_measurement_of_a_worked_example_stays_as_documented() -> None:
    """The worked number of docs/measurement.md."""
    assert (
        str(workload_measurement(b"", Digest(bytes(32))))
        == hashlib.sha256(LABEL + bytes(32) + bytes(8) + hashlib.sha256(b"").digest()).hexdigest()
    )


def test_signed_manifest_is_loaded_with_its_identity(key: rsa.RSAPrivateKey) -> None:
    """What was signed for this runtime is loaded."""
    signed = load_signed(TEXT, signature(key), RUNTIME)
    assert signed.measurement == workload_measurement(TEXT, RUNTIME)
    assert signed.manifest_sha256.raw == hashlib.sha256(TEXT).digest()
    assert signed.manifest.entrypoint == "/app"
    assert signed.sigstruct.isv_prod_id == 5


def test_signed_manifest_is_made_by_load_signed_only(key: rsa.RSAPrivateKey) -> None:
    """Nobody else can make one, not even from another one."""
    signed = load_signed(TEXT, signature(key), RUNTIME)
    with pytest.raises(UsageError, match="load_signed"):
        SignedManifest(
            TEXT,
            Manifest("/app"),
            signed.sigstruct,
            RUNTIME,
            signed.measurement,
            signed.manifest_sha256,
            signed.mrsigner,
        )


def test_signed_manifest_changed_by_one_byte_is_refused(key: rsa.RSAPrivateKey) -> None:
    """The measurement that was signed is of other bytes."""
    with pytest.raises(BadSignature, match="another manifest or another runtime") as refused:
        load_signed(TEXT.replace(b"/app", b"/apq"), signature(key), RUNTIME)
    assert refused.value.expected == str(workload_measurement(TEXT, RUNTIME))
    assert refused.value.seen == str(workload_measurement(TEXT.replace(b"/app", b"/apq"), RUNTIME))


def test_signed_manifest_under_another_runtime_is_refused(key: rsa.RSAPrivateKey) -> None:
    """One changed module of Adyton, and the signature is for another measurement."""
    with pytest.raises(BadSignature, match="another manifest or another runtime"):
        load_signed(TEXT, signature(key), Digest(bytes(32)))


@pytest.mark.parametrize(
    "other",
    [
        {"isv_prod_id": 6},
        {"isv_svn": 1},
        {"attributes": Attributes.of(debug=True)},
        {"attributes": replace(Attributes.of(debug=False), xfrm=7)},
    ],
)
def test_signed_manifest_with_other_attributes_is_refused(key: rsa.RSAPrivateKey, other: dict[str, Any]) -> None:
    """A signature for a debug enclave, or another product, is not this manifest's."""
    with pytest.raises(BadSignature, match="attributes"):
        load_signed(TEXT, signature(key, **other), RUNTIME)


def test_signed_template_is_refused(key: rsa.RSAPrivateKey) -> None:
    """A template signed by hand is still a template."""
    text = b'libos.entrypoint = "/app"\nfs.mounts = []\nsgx.trusted_files = ["file:app"]\nsgx.isvprodid = 5\n'
    with pytest.raises(MalformedManifest, match="template"):
        load_signed(text, signature(key, text), RUNTIME)


def test_signed_manifest_that_is_not_utf8_is_refused(key: rsa.RSAPrivateKey) -> None:
    """Manifests are UTF-8."""
    with pytest.raises(MalformedManifest, match="UTF-8"):
        load_signed(b"\xff", signature(key, b"\xff"), RUNTIME)


def test_signed_manifest_is_read_from_two_files(key: rsa.RSAPrivateKey, tmp_path: Path) -> None:
    """NAME.sig lies beside NAME.manifest; either missing is said by name."""
    manifest = tmp_path / "app.manifest"
    manifest.write_bytes(TEXT)
    with pytest.raises(ManifestError, match=r"app\.sig"):
        read_signed(manifest, RUNTIME)
    assert signature_path(manifest) == tmp_path / "app.sig"
    (tmp_path / "app.sig").write_bytes(signature(key))
    assert read_signed(manifest, RUNTIME).manifest.entrypoint == "/app"
    (tmp_path / "app.sig").write_bytes(signature(key) + b"\0")
    with pytest.raises(MalformedManifest, match="is longer than"):
        read_signed(manifest, RUNTIME)
    manifest.unlink()
    with pytest.raises(ManifestError, match=r"app\.manifest"):
        read_signed(manifest, RUNTIME)
