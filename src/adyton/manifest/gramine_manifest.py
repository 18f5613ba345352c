"""Adyton's final manifest -> the manifest that Gramine (1.8 and later) runs in an SGX enclave.

The `[adyton]` table is left out. Where Gramine has words for its entries, they are used: the owner's CA and server
become secret provisioning. Where Gramine cannot keep an entry, a note says so. Where that would expose something, the
manifest is refused.
"""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from adyton.errors import ManifestError
from adyton.manifest.document import parse_document, write_document
from adyton.manifest.model import SGX_SEALING_KEYS, Manifest, TrustedFile, manifest_from
from adyton.manifest.schema import format_size
from adyton.manifest.signed import decode
from adyton.manifest.sizing import Sizing, power_of_two, size_for
from adyton.values import Digest

LIBRARY_PATH: Final = "/gramine/lib"
CA_PATH: Final = "/gramine/ca.crt"
PRELOAD: Final = f"{LIBRARY_PATH}/libsecret_prov_attest.so"
DEFAULT_PORT: Final = 4433
LEAST_RELEASE: Final = (1, 8)
RECOVERY_RELEASE: Final = (1, 9)

_LIBRARY: Final = re.compile(r"\.so(\.[0-9.]+)?$")
_OPENMP: Final = re.compile(r"/lib(gomp|omp|iomp5|torch_cpu)[-.][^/]*$")


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts of a Gramine installation that rendering needs: its release, library OS and C library folder."""

    release: tuple[int, int]
    libos: str
    libos_sha256: Digest
    runtime_folder: str
    runtime_files: tuple[TrustedFile, ...]


@dataclass(frozen=True, slots=True)
class Rendering:
    """A manifest for Gramine, the CA file that it names, and what changed on the way, in words."""

    manifest_bytes: bytes
    manifest: Manifest
    ca_pem: str | None
    key_name: str | None
    sizing: Sizing
    notes: tuple[str, ...]


def render_for_gramine(manifest_bytes: bytes, facts: Facts, *, ca_uri: str, cpus: int = 4) -> Rendering:
    """Render a final manifest for the Gramine of `facts`. The owner's CA will lie at `ca_uri` (`file:…`).

    Raises ManifestError for what an enclave under Gramine could not keep. The same input gives the same bytes.
    """
    document, block = parse_document(decode(manifest_bytes))
    manifest = manifest_from(document, block)
    if not manifest.is_final:
        raise ManifestError("only a final manifest is rendered for Gramine", remedy="run adyton build")
    if facts.release < LEAST_RELEASE:
        raise ManifestError(
            "this Gramine is too old",
            check="Gramine's release",
            expected="1.8 or later",
            seen=".".join(map(str, facts.release)),
        )
    _refuse_unkept(manifest)
    notes: list[str] = []
    rendered = copy.deepcopy({name: table for name, table in document.items() if name != "adyton"})
    trusted = list(manifest.trusted_files)
    environment = rendered.setdefault("loader", {}).setdefault("env", {})
    sgx = rendered.setdefault("sgx", {})
    _add_runtime(rendered, environment, trusted, facts)
    key_name, ca_pem = _add_provisioning(rendered, environment, trusted, manifest, ca_uri, notes)
    sizing = _add_sizes(sgx, environment, manifest, cpus, notes)
    _fit_release(rendered, facts.release, notes)
    _add_defaults(rendered, sgx, facts)
    _note_unkept(manifest, notes)
    unique = {entry.uri: str(entry.sha256) for entry in trusted}
    text = write_document(rendered, list(unique.items()))
    return Rendering(
        manifest_bytes=text.encode(),
        manifest=manifest_from(*parse_document(text)),
        ca_pem=ca_pem,
        key_name=key_name,
        sizing=sizing,
        notes=tuple(notes),
    )


def _refuse_unkept(manifest: Manifest) -> None:
    """Refuse what Adyton's own runtime protects, and what an enclave under Gramine would silently not protect."""
    if not manifest.adyton.insecure_stdio:
        raise ManifestError(
            "under Gramine what the program prints goes to the host in clear",
            check="manifest key adyton.insecure__stdio",
            expected="insecure__stdio = true: printed output is not secret",
            seen="false",
            remedy="have the program print nothing secret and say insecure__stdio = true; results belong in files",
        )
    if manifest.adyton.secrets:
        raise ManifestError(
            "Gramine's secret provisioning brings one file key and no further secrets",
            check="manifest key adyton.secrets",
            expected="none under sgx",
            seen=", ".join(secret.name for secret in manifest.adyton.secrets),
            remedy="put the secret into a file on an encrypted mount",
        )
    keys = manifest.key_names
    if len(keys) > 1:
        raise ManifestError(
            "Gramine's secret provisioning fetches one key at the start, and this manifest needs several",
            check="keys of encrypted mounts",
            expected="one key name",
            seen=", ".join(keys),
            remedy="encrypt what one program needs under one key, or run under tdx, where Adyton fetches them all",
        )
    if keys and manifest.owner_of(keys[0]) is None:
        raise ManifestError(
            f"no owner is pinned for key {keys[0]}: any server could hand out its own key",
            check="manifest key adyton.owners",
            expected="the owner's CA",
            seen="nothing",
            remedy='[adyton.owners.me] ca_file = "file:ca.crt"',
        )


def _add_runtime(
    rendered: dict[str, Any], environment: dict[str, Any], trusted: list[TrustedFile], facts: Facts
) -> None:
    """Gramine's C library, found before any other. Its dynamic linker is found in the same folder."""
    rendered["fs"]["mounts"].append({"path": LIBRARY_PATH, "uri": f"file:{facts.runtime_folder}"})
    existing = _value(environment.get("LD_LIBRARY_PATH"))
    environment["LD_LIBRARY_PATH"] = ":".join(part for part in (LIBRARY_PATH, existing) if part)
    trusted.extend(facts.runtime_files)


def _add_provisioning(
    rendered: dict[str, Any],
    environment: dict[str, Any],
    trusted: list[TrustedFile],
    manifest: Manifest,
    ca_uri: str,
    notes: list[str],
) -> tuple[str | None, str | None]:
    keys = manifest.key_names
    if not keys:
        return None, None
    owner = manifest.owner_of(keys[0])
    if owner is None or owner.ca is None:
        raise ManifestError("no owner", check="manifest key adyton.owners")
    library = f"file:{rendered['fs']['mounts'][-1]['uri'][5:]}/libsecret_prov_attest.so"
    if all(entry.uri != library for entry in trusted):
        raise ManifestError(
            "this Gramine has no libsecret_prov_attest.so",
            check="Gramine's runtime folder",
            expected=library,
            seen="no such file",
            remedy="install Gramine with DCAP support",
        )
    address = owner.address or f"{owner.server_name}:{DEFAULT_PORT}"
    existing = _value(environment.get("LD_PRELOAD"))
    environment["LD_PRELOAD"] = ":".join(part for part in (PRELOAD, existing) if part)
    settings = {"CONSTRUCTOR": "1", "SET_KEY": keys[0], "CA_CHAIN_PATH": CA_PATH, "SERVERS": address}
    environment.update({f"SECRET_PROVISION_{name}": value for name, value in settings.items()})
    rendered["fs"]["mounts"].append({"path": CA_PATH, "uri": ca_uri})
    trusted.append(TrustedFile(ca_uri, Digest(hashlib.sha256(owner.ca.encode()).digest())))
    rendered["sgx"]["remote_attestation"] = "dcap"
    rendered.setdefault("sys", {})["enable_extra_runtime_domain_names_conf"] = True
    notes.append(
        f"key {keys[0]!r} comes from {address}, by secret provisioning (RA-TLS), under the CA of owner {owner.name}"
    )
    notes.append(
        "name servers are the host's, so that the key server is found; its certificate is checked all the same"
    )
    return keys[0], owner.ca


def _value(entry: Any) -> str:
    if isinstance(entry, dict):
        return str(entry.get("value", ""))
    return entry or ""


def _add_sizes(
    sgx: dict[str, Any], environment: dict[str, Any], manifest: Manifest, cpus: int, notes: list[str]
) -> Sizing:
    """Sizes that the manifest leaves out, from what it lists: libraries are mapped whole, other files read in part."""
    libraries = sum(entry.size_bytes or 0 for entry in manifest.trusted_files if _LIBRARY.search(entry.uri))
    others = sum(entry.size_bytes or 0 for entry in manifest.trusted_files) - libraries
    data = manifest.adyton.memory_budget_bytes // 2 if manifest.encrypted_mounts else 0
    peak = libraries + others // 8 + data + (64 << 20)
    openmp = any(_OPENMP.search(entry.uri) for entry in manifest.trusted_files)
    threads = cpus * 2 + 2 if openmp else 4
    source = (
        f"{libraries >> 20} MiB of shared libraries, an eighth of {others >> 20} MiB of other trusted files,"
        f" {data >> 20} MiB for data (half of adyton.memory_budget), 64 MiB for the program itself"
    )
    sizing = size_for(peak, threads, cpus, source=source)
    if not manifest.sgx.enclave_size_given:
        sgx["enclave_size"] = "1024G" if manifest.sgx.edmm_enable else format_size(sizing.enclave_bytes)
        notes.append(
            "sgx.enclave_size = 1024G: with EDMM it is only a range of addresses"
            if manifest.sgx.edmm_enable
            else f"sgx.enclave_size = {format_size(sizing.enclave_bytes)}: {sizing.enclave_reason}"
        )
    elif power_of_two(manifest.sgx.enclave_size_bytes) != manifest.sgx.enclave_size_bytes:
        raise ManifestError(
            "the enclave's size is no power of two, which Gramine's loader refuses",
            check="manifest key sgx.enclave_size",
            expected=format_size(power_of_two(manifest.sgx.enclave_size_bytes)),
            seen=format_size(manifest.sgx.enclave_size_bytes),
        )
    if not manifest.sgx.max_threads_given:
        sgx["max_threads"] = sizing.max_threads
        notes.append(f"sgx.max_threads = {sizing.max_threads}: {sizing.threads_reason}")
    if openmp and "OMP_NUM_THREADS" not in environment:
        environment["OMP_NUM_THREADS"] = str(sizing.omp_threads)
        notes.append(f"OMP_NUM_THREADS = {sizing.omp_threads}: {sizing.omp_reason}")
    return sizing


def _fit_release(rendered: dict[str, Any], release: tuple[int, int], notes: list[str]) -> None:
    if release >= RECOVERY_RELEASE:
        return
    tables: Sequence[dict[str, Any]] = [*rendered["fs"]["mounts"], rendered["fs"].get("root", {})]
    notes.extend(
        f"enable_recovery of {table.get('path', '/')} is left out: Gramine {_text(release)} lacks it"
        for table in tables
        if table.pop("enable_recovery", False)
    )
    if any(table.get("type") == "encrypted" for table in tables):
        notes.append(f"Gramine {_text(release)} reads protected files of format version 1: adyton encrypt --format 1")


def _text(release: tuple[int, int]) -> str:
    return ".".join(map(str, release))


def _add_defaults(rendered: dict[str, Any], sgx: dict[str, Any], facts: Facts) -> None:
    """The defaults that Gramine's tools append, in their order, so that they find nothing to add."""
    defaults: Mapping[str, Any] = {
        "max_threads": 4,
        "isvprodid": 0,
        "isvsvn": 0,
        "remote_attestation": "none",
        "debug": False,
        "enable_stats": False,
        "edmm_enable": False,
        "enclave_size": "256M",
        "use_exinfo": False,
        "cpu_features": {
            "avx": "unspecified",
            "avx512": "unspecified",
            "amx": "unspecified",
            "mpx": "disabled",
            "pkru": "disabled",
        },
    }
    for name, value in defaults.items():
        if isinstance(value, dict):
            table = sgx.setdefault(name, {})
            for below, text in value.items():
                table.setdefault(below, text)
        else:
            sgx.setdefault(name, value)
    rendered["loader"]["entrypoint"] = {"uri": f"file:{facts.libos}", "sha256": str(facts.libos_sha256)}


def _note_unkept(manifest: Manifest, notes: list[str]) -> None:
    if manifest.adyton.network == "none":
        notes.append('adyton.network = "none" is not enforced: a program under Gramine can open connections')
    if not manifest.adyton.insecure_stdin:
        notes.append("standard input is /dev/null only by the launcher's word: a host can connect another")
    if manifest.argv_src_file is not None or manifest.env_src_file is not None:
        notes.append("Gramine reads argv_src_file and env_src_file unchecked: the host can write them")
    notes.extend(
        f"{mount.path} is sealed to this machine with {mount.key_name}"
        for mount in manifest.encrypted_mounts
        if mount.key_name in SGX_SEALING_KEYS
    )
