"""Adyton's final manifest -> the manifest that Gramine (1.8 and later) runs in an SGX enclave.

The `[adyton]` table is left out. Where Gramine has words for its entries, they are used: the owner's CA and server
become secret provisioning. Where Gramine cannot keep an entry, a note says so. Where that would expose something, the
manifest is refused.
"""

from __future__ import annotations

import copy
import hashlib
import ipaddress
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from adyton.address import parse_address
from adyton.errors import ManifestError
from adyton.manifest.document import parse_document, write_document
from adyton.manifest.model import SGX_SEALING_KEYS, Manifest, Owner, TrustedFile, manifest_from
from adyton.manifest.provisioning import LIBRARY, PREFIX, SERVERS, value_of, without_library
from adyton.manifest.schema_check import format_size
from adyton.manifest.signed import decode
from adyton.manifest.sizing import Sizing, power_of_two, size_for
from adyton.values import Digest

LIBRARY_PATH: Final = "/gramine/lib"
CA_PATH: Final = "/gramine/ca.crt"
HOSTS_PATH: Final = "/etc/hosts"
PRELOAD: Final = f"{LIBRARY_PATH}/{LIBRARY}"
DEFAULT_PORT: Final = 4433
LEAST_RELEASE: Final = (1, 8)
RECOVERY_RELEASE: Final = (1, 9)
LOCAL_NAMES: Final = {"localhost": "127.0.0.1"}

_LIBRARY: Final = re.compile(r"\.so(\.[0-9.]+)?$")
_DNS_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
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
    """A manifest for Gramine, the CA and hosts(5) files that it names, and what changed on the way, in words."""

    manifest_bytes: bytes
    manifest: Manifest
    ca_pem: str | None
    hosts: str | None
    key_name: str | None
    sizing: Sizing
    notes: tuple[str, ...]


def render_for_gramine(manifest_bytes: bytes, facts: Facts, *, ca_uri: str, hosts_uri: str, cpus: int = 4) -> Rendering:
    """Render a final manifest for the Gramine of `facts`.

    The owner's CA and the names of hosts will lie at `ca_uri` and `hosts_uri` (`file:…`).

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
    key_name, ca_pem, hosts = None, None, None
    if manifest.key_names:
        key_name = manifest.key_names[0]
        ca_pem = _add_provisioning(rendered, environment, trusted, manifest, ca_uri, notes)
        hosts = _add_key_server(rendered, environment, trusted, manifest, hosts_uri, notes)
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
        hosts=hosts,
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
            remedy="have the program print nothing secret, with results in files, and say so: insecure__stdio = true"
            " under [adyton], or adyton build --gramine --gramine-defaults",
        )
    if manifest.adyton.gpus:
        raise ManifestError(
            "an enclave under Gramine has no GPU: nothing in its evidence would name one",
            check="manifest key adyton.gpus",
            expected="0 under sgx",
            seen=manifest.adyton.gpus,
            remedy="run the program in a trust domain or a guest that a TPM measures, or take adyton.gpus out",
        )
    pinned = [mount.path for mount in manifest.encrypted_mounts if mount.pinned]
    if pinned:
        raise ManifestError(
            "under Gramine no keeper stands beside the program that could hold its folders to a root",
            check="manifest key fs.mounts[].pinned",
            expected="no pinned mount",
            seen=", ".join(pinned),
            remedy="run the program in a confidential machine, or take pinned = true out",
        )
    if manifest.adyton.ingress:
        raise ManifestError(
            "no process stands beside an enclave under Gramine that could prove its connections",
            check="manifest key adyton.ingress",
            expected="none under sgx",
            seen=", ".join(one.name for one in manifest.adyton.ingress),
            remedy="run the program in a confidential machine, or take adyton.ingress out",
        )
    if manifest.adyton.egress:
        raise ManifestError(
            "no process stands beside an enclave under Gramine that could limit where the program connects to",
            check="manifest key adyton.egress",
            expected="none under sgx",
            seen=", ".join(one.address for one in manifest.adyton.egress),
            remedy="run the program in a confidential machine, or take adyton.egress out",
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
    existing = value_of(environment.get("LD_LIBRARY_PATH"))
    environment["LD_LIBRARY_PATH"] = ":".join(part for part in (LIBRARY_PATH, existing) if part)
    trusted.extend(facts.runtime_files)


def _add_provisioning(
    rendered: dict[str, Any],
    environment: dict[str, Any],
    trusted: list[TrustedFile],
    manifest: Manifest,
    ca_uri: str,
    notes: list[str],
) -> str:
    """Have Gramine's library bring the one key before the start, under the pinned CA, whose PEM is returned."""
    owner = _key_owner(manifest)
    library = f"file:{rendered['fs']['mounts'][-1]['uri'][5:]}/{LIBRARY}"
    if all(entry.uri != library for entry in trusted):
        raise ManifestError(
            f"this Gramine has no {LIBRARY}",
            check="Gramine's runtime folder",
            expected=library,
            seen="no such file",
            remedy="install Gramine with DCAP support",
        )
    existing = without_library(value_of(environment.get("LD_PRELOAD")))
    environment["LD_PRELOAD"] = ":".join(part for part in (PRELOAD, existing) if part)
    _set(environment, {"CONSTRUCTOR": "1", "SET_KEY": manifest.key_names[0], "CA_CHAIN_PATH": CA_PATH}, notes)
    pem = owner.ca or ""
    _add_trusted(rendered, trusted, manifest, CA_PATH, ca_uri, pem)
    rendered["sgx"]["remote_attestation"] = "dcap"
    return pem


def _add_key_server(
    rendered: dict[str, Any],
    environment: dict[str, Any],
    trusted: list[TrustedFile],
    manifest: Manifest,
    hosts_uri: str,
    notes: list[str],
) -> str | None:
    """Say where the key server is. Gramine's client checks its certificate against the host that stands there.

    An IP address goes into a trusted hosts(5) file, as the address of the pinned server name. So does `localhost`, for
    which an enclave has no file of its own. Returns the text of that file, or None where none is needed.
    """
    owner = _key_owner(manifest)
    given = value_of(environment.get(SERVERS))
    host, port = parse_address(owner.address, "address") if owner.address else (owner.server_name, DEFAULT_PORT)
    names = dict(LOCAL_NAMES)
    if _is_ip(host) and _DNS_NAME.fullmatch(owner.server_name) and not _is_ip(owner.server_name):
        names[owner.server_name] = host
        servers = f"{owner.server_name}:{port}"
        notes.append(f"the key server is at {host}: a trusted {HOSTS_PATH} says so for {owner.server_name}")
    else:
        servers = f"{host}:{port}" if owner.address or not given else given
    asked = sorted({part.partition(":")[0] for part in re.split("[,; ]+", servers) if part})
    unlike = [name for name in asked if name != owner.server_name]
    if unlike:
        notes.append(
            f"the key server's certificate must carry {' or '.join(unlike)}, against which Gramine's client checks it:"
            f" adyton init --renew-server --server-name {owner.server_name} --server-name {unlike[0]}, unless it"
            " does already (localhost and 127.0.0.1 are in it by default)"
        )
    elif servers == f"{owner.server_name}:{DEFAULT_PORT}" and not owner.address:
        notes.append(
            f"{owner.server_name} must be a name that the host's name servers know; if it is none, say where the"
            f' server is: [adyton.owners.{owner.name}] address = "IP:PORT"'
        )
    _set(environment, {"SERVERS": servers}, notes)
    rendered.setdefault("sys", {})["enable_extra_runtime_domain_names_conf"] = True
    notes.append(
        f"key {manifest.key_names[0]!r} comes from {servers}, by secret provisioning (RA-TLS), under the CA of owner"
        f" {owner.name}"
    )
    notes.append(
        "name servers are the host's, so that the key server is found; its certificate is checked all the same"
    )
    if not names.keys() & set(asked) or (names == LOCAL_NAMES and _shows_hosts(manifest)):
        return None
    if _shows_hosts(manifest):
        notes.append(f"the manifest's own {HOSTS_PATH} is covered by this one")
    text = "".join(f"{address} {name}\n" for name, address in names.items())
    _add_trusted(rendered, trusted, manifest, HOSTS_PATH, hosts_uri, text)
    return text


def _add_trusted(
    rendered: dict[str, Any], trusted: list[TrustedFile], manifest: Manifest, path: str, uri: str, text: str
) -> None:
    """Show a trusted file of this text. Raises ManifestError where it would lie among allowed files, never checked."""
    place = posixpath.normpath(uri[5:])
    for allowed in manifest.allowed_files:
        folder = posixpath.normpath(allowed.partition(":")[2])
        beside = folder == "." and not place.startswith(("/", "../"))
        if place == folder or place.startswith(folder.rstrip("/") + "/") or beside:
            raise ManifestError(
                f"{path} of the enclave would be an allowed file, whose hash Gramine never checks",
                check="sgx.allowed_files",
                expected=f"nothing that holds {place}",
                seen=allowed,
                remedy="build in a folder that is not allowed, or allow less",
            )
    rendered["fs"]["mounts"].append({"path": path, "uri": uri})
    trusted.append(TrustedFile(uri, Digest(hashlib.sha256(text.encode()).digest())))


def _key_owner(manifest: Manifest) -> Owner:
    owner = manifest.owner_of(manifest.key_names[0])
    if owner is None or owner.ca is None:
        raise ManifestError("no owner", check="manifest key adyton.owners")
    return owner


def _set(environment: dict[str, Any], settings: Mapping[str, str], notes: list[str]) -> None:
    """Set variables of Gramine's library. What the manifest said instead is told."""
    for name, value in settings.items():
        before = environment.get(PREFIX + name)
        if before is not None and value_of(before) != value:
            notes.append(f"{PREFIX}{name} of the manifest is replaced by {value}")
        environment[PREFIX + name] = value


def _shows_hosts(manifest: Manifest) -> bool:
    """Whether the manifest itself shows the program a file at /etc/hosts."""
    listed = {entry.uri for entry in manifest.trusted_files}.union(manifest.allowed_files)
    for mount in manifest.all_mounts:
        base = mount.path.rstrip("/")
        if mount.type == "chroot" and mount.uri is not None and (HOSTS_PATH + "/").startswith(base + "/"):
            uri = mount.uri.rstrip("/") + HOSTS_PATH[len(base) :]
            folders = (uri[: at + 1] for at, char in enumerate(uri) if char == "/")
            if uri in listed or any(folder in manifest.allowed_files for folder in folders):
                return True
    return False


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


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
