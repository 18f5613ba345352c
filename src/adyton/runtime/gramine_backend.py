"""The SGX backend: prepare a manifest for the Gramine that is installed, check the machine, launch, translate errors.

Nothing here has run on SGX hardware yet: what it writes was checked against Gramine's formats (docs/measurement.md),
what it starts was not. Every launch under `sgx` says so.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from adyton.errors import BadSignature, ManifestError, NoDevice, RunError
from adyton.manifest.document import parse_document, write_document
from adyton.manifest.gramine_manifest import CA_PATH, HOSTS_PATH, Facts, Rendering, render_for_gramine
from adyton.manifest.host import Installation, find_gramine
from adyton.manifest.model import MAX_MANIFEST_BYTES, Manifest, TrustedFile, parse_manifest
from adyton.manifest.mrenclave import MAX_PAL_BYTES, Offsets, mrenclave, parse_pal
from adyton.manifest.signed import decode, read_capped, signed_attributes
from adyton.manifest.sigstruct import SIGSTRUCT_BYTES, Sigstruct, parse_sigstruct, sign
from adyton.manifest.trusted import expand
from adyton.tee.machine import Machine, sgx
from adyton.values import Digest, Finding, Key128, Measurement

NEVER_RUN: Final = "Adyton's SGX backend has never run on SGX hardware; what it starts is untested there"
LEAST_UNKNOWN_RELEASE: Final = (1, 8)

_PROVIDER_FOLDERS: Final = ("/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib64")
_TIMEOUT_S: Final = 600


@dataclass(frozen=True, slots=True)
class Prepared:
    """The files for gramine-sgx: NAME.gramine.manifest.sgx, NAME.gramine.sig, CA, hosts, and their identity."""

    stem: Path
    manifest: Manifest
    sigstruct: Sigstruct
    measurement: Measurement
    mrsigner: Digest
    notes: tuple[str, ...] = ()


def installed() -> Installation:
    """The Gramine on PATH. Raises NoDevice where there is none."""
    found = find_gramine()
    if found is None:
        raise NoDevice(
            "Gramine is not installed, and SGX enclaves run under it",
            check="Gramine",
            expected="gramine-direct and gramine-sgx on PATH, release 1.8 or later",
            seen="not on PATH",
            remedy="install Gramine (its own documentation says how), or run under another TEE",
        )
    return found


def facts_of(installation: Installation) -> Facts:
    """Hash what a rendering takes from an installation."""
    runtime = installation.runtime()
    return Facts(
        release=installation.release or LEAST_UNKNOWN_RELEASE,
        libos=str(installation.libos),
        libos_sha256=Digest(hashlib.sha256(read_capped(installation.libos, 256 << 20, "library OS")).digest()),
        runtime_folder=str(runtime),
        runtime_files=expand([TrustedFile(f"file:{runtime}/")], Path("/")),
    )


def stem_of(manifest_path: Path) -> Path:
    """NAME.manifest -> NAME.gramine, which `gramine-sgx` extends by its suffixes."""
    return manifest_path.with_name(manifest_path.name.removesuffix(".manifest") + ".gramine")


def prepare(
    manifest_path: Path,
    manifest_bytes: bytes,
    key: RSAPrivateKey,
    installation: Installation,
    *,
    date: str,
    write: Callable[[Path, bytes], None],
) -> Prepared:
    """Render, measure and sign for `installation`, and write it beside the manifest with `write`.

    Where Gramine's own signer is installed its result is compared. A difference is a BadSignature.
    """
    stem = stem_of(manifest_path)
    ca_path, hosts_path = (stem.with_name(stem.name + suffix) for suffix in ("-ca.crt", "-hosts"))
    rendering = render_for_gramine(
        manifest_bytes,
        facts_of(installation),
        ca_uri=f"file:{ca_path}",
        hosts_uri=f"file:{hosts_path}",
        cpus=os.cpu_count() or 4,
    )
    measurement = measure_for(installation, rendering.manifest_bytes, rendering.manifest)
    manifest = rendering.manifest
    sigstruct = sign(
        measurement,
        key,
        attributes=signed_attributes(manifest),
        isv_prod_id=manifest.sgx.isv_prod_id,
        isv_svn=manifest.sgx.isv_svn,
        date=date,
    )
    if rendering.ca_pem is not None:
        write(ca_path, rendering.ca_pem.encode())
    if rendering.hosts is not None:
        write(hosts_path, rendering.hosts.encode())
    for suffix in (".manifest", ".manifest.sgx"):
        write(stem.with_name(stem.name + suffix), rendering.manifest_bytes)
    write(stem.with_name(stem.name + ".sig"), sigstruct.to_bytes())
    notes = list(rendering.notes)
    if installation.release is None:
        notes.append("this Gramine does not say its release; 1.8 is assumed")
    notes.append(compare_with_gramine(installation, rendering, key))
    return Prepared(stem, manifest, sigstruct, measurement, sigstruct.mrsigner, tuple(notes))


def measure_for(installation: Installation, manifest_bytes: bytes, manifest: Manifest) -> Measurement:
    """MRENCLAVE of a rendered manifest under the libpal.so of an installation."""
    return mrenclave(
        manifest_bytes,
        parse_pal(read_capped(installation.libpal, MAX_PAL_BYTES, "libpal.so")),
        enclave_bytes=manifest.sgx.enclave_size_bytes,
        max_threads=manifest.sgx.max_threads,
        edmm=manifest.sgx.edmm_enable,
        offsets=Offsets.of(installation.constants),
    )


def compare_with_gramine(installation: Installation, rendering: Rendering, key: RSAPrivateKey) -> str:
    """Have gramine-sgx-sign sign the same manifest, and compare MRENCLAVE. Returns the result in words.

    Raises BadSignature where they differ: then Adyton does not know this Gramine's layout, and nothing it signs runs.
    """
    from cryptography.hazmat.primitives import serialization

    signer = installation.programs / "gramine-sgx-sign"
    if not signer.exists():
        return "MRENCLAVE was not compared: gramine-sgx-sign is not installed"
    with tempfile.TemporaryDirectory(prefix="adyton-sign-") as folder:
        paths = {name: Path(folder) / name for name in ("in.manifest", "out.manifest.sgx", "out.sig", "key.pem")}
        paths["in.manifest"].write_bytes(rendering.manifest_bytes)
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
        with os.fdopen(os.open(paths["key.pem"], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(pem)
        command = [str(signer), "-m", str(paths["in.manifest"]), "-o", str(paths["out.manifest.sgx"])]
        command += ["-s", str(paths["out.sig"]), "-k", str(paths["key.pem"]), "-l", str(installation.libpal)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            return "MRENCLAVE was not compared: gramine-sgx-sign took too long"
        if done.returncode:
            raise ManifestError(
                f"Gramine refuses the manifest: {done.stderr.strip()[-400:]}",
                check="gramine-sgx-sign",
                expected="exit status 0",
                seen=done.returncode,
            )
        theirs = parse_sigstruct(read_capped(paths["out.sig"], SIGSTRUCT_BYTES, "signature")).measurement
        written = read_capped(paths["out.manifest.sgx"], MAX_MANIFEST_BYTES, "manifest")
    ours = measure_for(installation, written, parse_manifest(decode(written)))
    if ours != theirs:
        raise BadSignature(
            "Adyton and Gramine compute different MRENCLAVEs for the same manifest",
            check="MRENCLAVE",
            expected=theirs,
            seen=ours,
            remedy="this release of Gramine lays enclaves out in a way Adyton does not know; report it",
        )
    same = "byte for byte the same" if written == rendering.manifest_bytes else "written differently"
    return f"MRENCLAVE agrees with gramine-sgx-sign (manifest {same})"


def read_prepared(manifest_path: Path) -> Prepared:
    """Read and verify what `adyton build --gramine` left beside a manifest. Raises ManifestError without it."""
    stem = stem_of(manifest_path)
    sigstruct = parse_sigstruct(read_capped(stem.with_name(stem.name + ".sig"), SIGSTRUCT_BYTES, "Gramine signature"))
    raw = read_capped(stem.with_name(stem.name + ".manifest.sgx"), MAX_MANIFEST_BYTES, "Gramine manifest")
    return Prepared(stem, parse_manifest(decode(raw)), sigstruct, sigstruct.measurement, sigstruct.verify())


def is_rendered_from(manifest_bytes: bytes, prepared: Prepared, installation: Installation) -> bool:
    """Whether what was prepared is what this Adyton renders from this manifest for this Gramine, byte for byte.

    Where the files of the CA and of the hosts lie may differ, and for how many processors it was built: neither says
    what runs.
    """
    raw = read_capped(prepared.stem.with_name(prepared.stem.name + ".manifest.sgx"), MAX_MANIFEST_BYTES, "manifest")
    placed = {mount.path: mount.uri for mount in prepared.manifest.mounts}
    ca_uri, hosts_uri = placed.get(CA_PATH) or "file:ca.crt", placed.get(HOSTS_PATH) or "file:hosts"
    given = prepared.manifest.env.get("OMP_NUM_THREADS", "")
    cpus = {os.cpu_count() or 4, int(given) if given.isascii() and given.isdigit() and 0 < len(given) < 5 else 4}
    facts = facts_of(installation)
    return any(
        render_for_gramine(manifest_bytes, facts, ca_uri=ca_uri, hosts_uri=hosts_uri, cpus=count).manifest_bytes == raw
        for count in sorted(cpus)
    )


def check_machine(machine: Machine | None = None) -> tuple[Finding, ...]:
    """Check what SGX needs of this machine before an enclave can start and prove itself."""
    machine = machine or Machine()
    epc_bytes = _epc_bytes(machine)
    provider = next((folder for folder in _PROVIDER_FOLDERS if machine.has(f"{folder}/libdcap_quoteprov.so.1")), None)
    return (
        *sgx(machine),
        Finding(
            "sgx",
            "EPC memory",
            "ok" if epc_bytes else "missing",
            f"{epc_bytes >> 20} MiB" if epc_bytes else "none reported",
            None if epc_bytes else "give SGX more memory in the firmware (PRMRR size)",
        ),
        Finding(
            "sgx",
            "DCAP quote provider",
            "ok" if provider else "missing",
            f"{provider}/libdcap_quoteprov.so.1" if provider else "no libdcap_quoteprov.so.1",
            None if provider else "install libsgx-dcap-default-qpl, or your cloud provider's library",
        ),
    )


def _epc_bytes(machine: Machine) -> int:
    texts = (machine.text(f"/sys/devices/system/node/node{node}/x86/sgx_total_bytes").strip() for node in range(64))
    return sum(int(text) for text in texts if text.isdigit())


def _refuse_machine(findings: Iterable[Finding]) -> None:
    missing = [finding for finding in findings if finding.state == "missing"]
    if missing:
        raise NoDevice(
            "this machine cannot run SGX enclaves that prove themselves: "
            + "; ".join(f"{finding.name}: {finding.seen}" for finding in missing),
            check="SGX",
            expected="processor, driver, EPC memory, Gramine, quoting service, quote provider",
            seen="; ".join(finding.name for finding in missing),
            remedy=missing[0].remedy,
        )


def _refuse_stale(installation: Installation, prepared: Prepared) -> None:
    """An enclave whose libpal.so or manifest is not the one that was signed would be refused by the processor."""
    raw = read_capped(prepared.stem.with_name(prepared.stem.name + ".manifest.sgx"), MAX_MANIFEST_BYTES, "manifest")
    found = measure_for(installation, raw, prepared.manifest)
    if found != prepared.measurement:
        raise BadSignature(
            "the enclave that would start is not the one that was signed",
            check="MRENCLAVE",
            expected=prepared.measurement,
            seen=found,
            remedy="Gramine was changed since the build, or the manifest: adyton build --gramine, and approve again",
        )


TRANSLATIONS: Final[tuple[tuple[str, str, str, str], ...]] = (
    (
        r"no available TCS pages left",
        "the program started more threads than the enclave has slots for",
        "sgx.max_threads",
        "raise sgx.max_threads in the manifest (and OMP_NUM_THREADS with care), build and approve again",
    ),
    (
        r"[Ee]nclave size.*power of (2|two)",
        "the enclave's size is no power of two",
        "sgx.enclave_size",
        "round sgx.enclave_size up to the next power of two, build and approve again",
    ),
    (
        r"ENOMEM|[Cc]annot allocate memory|[Oo]ut of memory|can't allocate memory|DefaultCPUAllocator|MemoryError",
        "the enclave ran out of memory",
        "sgx.enclave_size",
        "double sgx.enclave_size in the manifest, build and approve again",
    ),
    (
        r"aesm|AESM|init_quote|SGX quot|sgx_qe",
        "the machine could not produce a quote",
        "SGX quoting service",
        "start aesmd, and install DCAP with a quote provider",
    ),
    (
        r"(Cannot open|open of|[Oo]pening).*sgx|/dev/sgx",
        "the SGX driver could not be opened",
        "SGX driver",
        "switch SGX on in the firmware; be in the group that owns /dev/sgx_enclave",
    ),
    (
        r"-9984|X509.*verif|unknown_ca|bad_certificate",
        "the key server's certificate is not under the owner's CA, or carries another name",
        "adyton.owners.*.ca and server_name",
        "build with the CA of the owner who runs this key server",
    ),
    (
        r"libsecret_prov|[Ss]ecret provision|RA-TLS",
        "the key server did not release the key",
        "secret provisioning",
        "look into the key server's record: `adyton audit` says what was refused and why",
    ),
    (
        r"file is not allowed|not trusted|Permission denied|EACCES|-EPERM|hash.*mismatch",
        "the program asked for a file that the manifest does not list, or a listed file changed",
        "sgx.trusted_files",
        "list the file, or restore it, build and approve again",
    ),
)
"""(pattern in Gramine's output, what it means, what was checked, what to change), the most telling first."""


def translate(output: str) -> RunError | None:
    """Gramine's error output in terms of the manifest. None where it is not a known one."""
    for pattern, message, check, remedy in TRANSLATIONS:
        match = re.search(pattern, output)
        if match is not None:
            start = output.rfind("\n", 0, match.start()) + 1
            end = output.find("\n", match.end())
            line = output[start : end if end >= 0 else None].strip()
            return RunError(message, check=check, seen=line[:200], remedy=remedy)
    return None


def launch(
    manifest_path: Path, *, arguments: Sequence[str] = (), stdin_from_host: bool = False, note: Callable[[str], None]
) -> int:
    """Run a prepared manifest under gramine-sgx. Returns the program's exit code, raises RunError or NoDevice."""
    installation = installed()
    prepared = read_prepared(manifest_path)
    note(NEVER_RUN)
    _refuse_machine(check_machine())
    _refuse_stale(installation, prepared)
    program = installation.programs / "gramine-sgx"
    if not program.exists():
        raise NoDevice("gramine-sgx is not installed", check="gramine-sgx", seen=str(program))
    return _launch([str(program), str(prepared.stem), *arguments], stdin_from_host=stdin_from_host)


def dry_run(
    manifest_path: Path,
    keys: Mapping[str, Key128],
    *,
    arguments: Sequence[str] = (),
    note: Callable[[str], None],
) -> int:
    """Run a prepared manifest under gramine-direct: no enclave, no attestation, the owner's own keys.

    gramine-direct has no quotes, hence no key server: secret provisioning is taken out, and the keys are put into a
    copy of the manifest that lives in memory (/dev/shm, mode 0700) while it starts.
    """
    installation = installed()
    prepared = read_prepared(manifest_path)
    note("gramine-direct rehearses: no enclave, no attestation, nothing is protected from this machine")
    raw = read_capped(prepared.stem.with_name(prepared.stem.name + ".manifest"), MAX_MANIFEST_BYTES, "manifest")
    shared = Path("/dev/shm")  # noqa: S108 - memory, never a disk
    with tempfile.TemporaryDirectory(prefix="adyton-rehearsal-", dir=shared) as folder:
        stem = Path(folder) / prepared.stem.name
        text = dry_run_manifest(raw, keys)
        with os.fdopen(os.open(f"{stem}.manifest", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
        return _launch([str(installation.programs / "gramine-direct"), str(stem), *arguments], stdin_from_host=False)


def dry_run_manifest(raw: bytes, keys: Mapping[str, Key128]) -> str:
    """A rendered manifest without secret provisioning, and with the keys in clear."""
    document, block = parse_document(decode(raw))
    environment = document["loader"]["env"]
    for name in [name for name in environment if name.startswith("SECRET_PROVISION_")]:
        del environment[name]
    preloads = [part for part in str(environment.pop("LD_PRELOAD", "")).split(":") if part]
    kept = [part for part in preloads if not part.endswith("/libsecret_prov_attest.so")]
    if kept:
        environment["LD_PRELOAD"] = ":".join(kept)
    table = document["fs"].setdefault("insecure__keys", {})
    table.update({name: key.reveal().hex() for name, key in keys.items()})
    listed = document["sgx"].get("trusted_files", [])
    return write_document(document, [*((entry["uri"], entry["sha256"]) for entry in listed), *block])


def _launch(command: Sequence[str], *, stdin_from_host: bool) -> int:
    """Run it with our output. Its error output passes through and is kept (64 KiB) to be translated."""
    if shutil.which(command[0]) is None:
        raise NoDevice(f"{command[0]} is not installed", check="Gramine", seen="nothing")
    kept: list[bytes] = []
    stdin = None if stdin_from_host else subprocess.DEVNULL
    with subprocess.Popen(command, stdin=stdin, stderr=subprocess.PIPE) as process:
        reader = threading.Thread(target=_pass_on, args=(process.stderr, kept), daemon=True)
        reader.start()
        try:
            status = process.wait()
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise
        reader.join(5)
    if status:
        found = translate(b"".join(kept).decode(errors="replace"))
        if found is not None:
            raise found
    return status if status >= 0 else 128 - status


def _pass_on(source: IO[bytes] | None, kept: list[bytes]) -> None:
    if source is None:
        return
    size = 0
    for line in source:
        sys.stderr.buffer.write(line)
        sys.stderr.buffer.flush()
        if size < 64 << 10:
            kept.append(line)
            size += len(line)
