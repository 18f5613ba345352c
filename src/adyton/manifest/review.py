"""What a manifest leaves open: warnings in the order of danger, and what its measurement does not cover."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from adyton.errors import MalformedManifest
from adyton.manifest.model import Manifest

RAW_REPORT_DATA: Final = "adyton.insecure__raw_report_data"
RAW_REPORT_DATA_TEES: Final = frozenset({"sim", "sgx", "gramine-direct"})
"""Where a manifest with that key runs and may have keys: a simulated enclave, and where Gramine makes the quotes."""


class Danger(IntEnum):
    """How bad a finding is; the highest comes first."""

    EXPOSED = 3  # plaintext or a key is open to the host
    CONTROLLED = 2  # the host chooses what runs, or what it sees
    WEAKENED = 1  # a defence is off, or something is trusted without a check


@dataclass(frozen=True, slots=True)
class Finding:
    """One warning: the key that causes it, what it means, what to write instead."""

    danger: Danger
    key: str
    what: str
    remedy: str


def findings(manifest: Manifest) -> tuple[Finding, ...]:
    """Every warning about a manifest, the most dangerous first, then in the order of the keys' names."""
    found: list[Finding] = []

    def add(danger: Danger, key: str, what: str, remedy: str) -> None:
        found.append(Finding(danger, key, what, remedy))

    if manifest.sgx.debug:
        add(
            Danger.EXPOSED,
            "sgx.debug",
            "a debug enclave: the host can read its memory, keys and data",
            "leave it out; key servers refuse debug enclaves",
        )
    for name in sorted(manifest.insecure_keys):
        add(
            Danger.EXPOSED,
            f"fs.insecure__keys.{name}",
            "the key stands in the manifest, which everyone may read",
            "take it out and let a key server release the key",
        )
    if manifest.adyton.insecure_stdio:
        add(
            Danger.EXPOSED,
            "adyton.insecure__stdio",
            "what the program prints goes to the host in clear",
            "leave it out: output then goes to an encrypted log",
        )
    if manifest.file_check_policy != "strict":
        add(
            Danger.CONTROLLED,
            "sgx.file_check_policy",
            "every file under the mounts is readable unchecked: the host chooses what the program loads",
            'write "strict", and list the files',
        )
    if manifest.use_cmdline_argv:
        add(
            Danger.CONTROLLED,
            "loader.insecure__use_cmdline_argv",
            "the host chooses the arguments, hence among readable files the script that runs",
            "write the arguments into loader.argv",
        )
    if manifest.use_host_env:
        add(
            Danger.CONTROLLED,
            "loader.insecure__use_host_env",
            "the host chooses the whole environment (LD_PRELOAD, PYTHONPATH, …)",
            "write the variables into loader.env",
        )
    for name in manifest.env_passthrough:
        add(
            Danger.CONTROLLED,
            f"loader.env.{name}",
            f"the host chooses the value of {name}",
            f'write loader.env.{name} = "…"',
        )
    for uri in manifest.allowed_files:
        add(
            Danger.CONTROLLED,
            "sgx.allowed_files",
            f"{uri} is read and written unchecked and in clear",
            "list what is read in sgx.trusted_files, and put what is written on an encrypted mount",
        )
    allowed = tuple(manifest.allowed_files)
    for entry in manifest.trusted_files:
        if entry.uri in allowed or entry.uri.startswith(tuple(uri for uri in allowed if uri.endswith("/"))):
            add(
                Danger.CONTROLLED,
                "sgx.trusted_files",
                f"{entry.uri} is allowed, too, which is looked at first: its hash is never checked",
                "take it, or the folder that it lies in, out of sgx.allowed_files",
            )
    trusted = {entry.uri for entry in manifest.trusted_files}
    for key, source in (
        ("loader.argv_src_file", manifest.argv_src_file),
        ("loader.env_src_file", manifest.env_src_file),
    ):
        if source is not None and source not in trusted:
            add(
                Danger.CONTROLLED,
                key,
                f"{source} is not a trusted file: Adyton refuses to start, Gramine would read it unchecked",
                "list it in sgx.trusted_files",
            )
        elif source is not None:
            add(Danger.WEAKENED, key, f"Gramine reads {source} unchecked although it is listed", "use the inline key")
    if manifest.encrypted_mounts and not manifest.adyton.owners:
        add(
            Danger.CONTROLLED,
            "adyton.owners",
            "no owner is pinned: a false key server could hand out its own key and read the outputs",
            'name the owner\'s CA: [adyton.owners.me] ca_file = "file:ca.crt"',
        )
    if manifest.adyton.network == "host":
        add(
            Danger.CONTROLLED,
            "adyton.network",
            "the program has the host's network: what it sends and receives is the host's to see and change",
            'write network = "none", or have the program use TLS with a pinned peer',
        )
    if manifest.adyton.insecure_stdin:
        add(
            Danger.CONTROLLED,
            "adyton.insecure__stdin",
            "the host writes standard input",
            "read an encrypted file instead",
        )
    if manifest.adyton.raw_report_data:
        add(
            Danger.WEAKENED,
            RAW_REPORT_DATA,
            "whoever takes the program over has evidence over any bytes: it can ask for this program's keys again as"
            " Adyton does, and speak RA-TLS in its name",
            "leave it out, unless Gramine's own RA-TLS library runs in the program; only sim and sgx take it",
        )
    if manifest.domain_names_from_host:
        add(
            Danger.WEAKENED,
            "sys.enable_extra_runtime_domain_names_conf",
            "host name and name servers are the host's",
            "leave it out unless the program uses the network",
        )
    for key, on, what in (
        ("loader.insecure__disable_aslr", manifest.disable_aslr, "address randomisation is off (under SGX)"),
        ("sys.insecure__allow_eventfd", manifest.allow_eventfd, "eventfd goes through the host (under SGX)"),
        ("sys.experimental__enable_flock", manifest.enable_flock, "flock is experimental in Gramine (under SGX)"),
        (
            "sgx.insecure__allow_memfaults_without_exinfo",
            manifest.sgx.allow_memfaults_without_exinfo,
            "fault addresses are the host's word (under SGX)",
        ),
        ("sgx.insecure__rpc_thread_num", manifest.sgx.rpc_thread_num > 0, "exitless system calls (under SGX)"),
        (
            "loader.log_level",
            manifest.log_level in ("warning", "debug", "trace", "all"),
            "the log may show data (under SGX)",
        ),
    ):
        if on:
            add(Danger.WEAKENED, key, what, "leave it out")
    return tuple(sorted(found, key=lambda finding: -finding.danger))


def not_covered(manifest: Manifest) -> tuple[str, ...]:
    """What a measurement of this manifest says nothing about, in words for the owner who approves it."""
    found = [
        f"the contents of {mount.path} (encrypted, key {mount.key_name}): whoever holds that key wrote them, and an"
        " older whole file cannot be told from the newest"
        for mount in manifest.encrypted_mounts
    ]
    found += [f"{uri}: read and written unchecked" for uri in manifest.allowed_files]
    if manifest.file_check_policy != "strict":
        found.append("every other file under the mounts: allow_all_but_log")
    if manifest.use_cmdline_argv:
        found.append("the program's arguments: given by the host")
    if manifest.use_host_env:
        found.append("the environment: given by the host")
    found += [f"the environment variable {name}: given by the host" for name in manifest.env_passthrough]
    if manifest.adyton.insecure_stdin:
        found.append("standard input: given by the host")
    if manifest.adyton.network == "host":
        found.append("whatever comes over the network")
    if manifest.domain_names_from_host:
        found.append("host name and name servers")
    if manifest.adyton.raw_report_data:
        found.append("what the program asks evidence over: its own 64 bytes, which Adyton's protocols would take")
    found += [f"the secret {secret.name}: delivered by the key server" for secret in manifest.adyton.secrets]
    found.append("the clock, the number of processors, scheduling, and when the program is stopped: the host's")
    found.append(
        "the kernel under the program (in tdx and snp the guest image's measurement says it; in sim nothing does)"
    )
    return tuple(found)


def tee_refusals(manifest: Manifest, tee: str) -> tuple[tuple[str, str], ...]:
    """Keys (with the reason) for which this manifest neither runs nor has keys on a TEE, as policies name TEEs."""
    if manifest.adyton.raw_report_data and tee.partition(":")[0] not in RAW_REPORT_DATA_TEES:
        return ((RAW_REPORT_DATA, "evidence over bytes of the program's choice could be taken for the runtime's own"),)
    return ()


def check_tee(manifest: Manifest, tee: str) -> None:
    """Raise MalformedManifest where `tee_refusals` has any."""
    for key, reason in tee_refusals(manifest, tee):
        name = tee.partition(":")[0]
        raise MalformedManifest(
            f"a manifest with {key} is refused under {name}: {reason}",
            check=f"manifest key {key}",
            expected=f"false, unless under {', '.join(sorted(RAW_REPORT_DATA_TEES))}",
            seen=f"true, under {name}",
            remedy="leave it out and build again; Adyton's own RA-TLS (--provisioning ra-tls) does not need it",
        )


def runtime_refusals(manifest: Manifest) -> tuple[tuple[str, str], ...]:
    """Keys (with the reason) that Adyton's own runtime cannot honour and hence refuses; under `sgx` Gramine may."""
    found = []
    if manifest.disallow_subprocesses:
        found.append(("sys.disallow_subprocesses", "the sandbox does not forbid new processes"))
    if manifest.mock_syscalls:
        found.append(("sys.debug__mock_syscalls", "made-up results of system calls exist only under Gramine"))
    if manifest.allowed_ioctls:
        found.append(("sys.allowed_ioctls", "no host device is visible to which an ioctl could pass"))
    if manifest.file_check_policy != "strict":
        found.append(("sgx.file_check_policy", "a file that no list names is not there at all"))
    if manifest.root.type == "encrypted":
        found.append(("fs.root.type", "an encrypted folder needs a path of its own in fs.mounts"))
    found += [("sgx.allowed_files", f"{uri} is a device") for uri in manifest.allowed_files if uri.startswith("dev:")]
    for position, mount in enumerate(manifest.mounts):
        if mount.type == "untrusted_shm":
            found.append((f"fs.mounts[{position}]", "memory shared with the host exists only under SGX"))
        if mount.type == "encrypted" and mount.key_name.startswith("_sgx_"):
            found.append((f"fs.mounts[{position}].key_name", f"the sealing key {mount.key_name} exists only under SGX"))
    return tuple(found)
