"""Every key that a manifest may hold: its type, its default, and what it means where Adyton's own runtime enforces it.

This table alone decides which keys exist. `schema_check` reads documents through it, the reference table in
docs/manifest.md is checked against it, and an unknown key is refused with the nearest one that stands here.
"""
# ruff: noqa: E501 - a table, one key a line

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Standing(StrEnum):
    """How Adyton's runtime (sim, tdx, snp) treats a key. Under `sgx` Gramine itself reads Gramine's keys."""

    ENFORCED = "enforced"
    MAPPED = "mapped"
    SGX_ONLY = "SGX only"
    REFUSED = "refused"


class Kind(StrEnum):
    """The TOML shape of a value."""

    STRING = "string"
    BOOL = "bool"
    INTEGER = "integer"
    SIZE = "size"
    STRINGS = "list of strings"
    TABLES = "list of tables"
    TABLE = "table"
    ENVIRONMENT = "string or table"
    ENTRYPOINT = "table (or string)"
    TRUSTED = "list of strings or tables"


@dataclass(frozen=True, slots=True)
class Key:
    """One key: dotted name (`*` stands for a name the author chooses, `[]` for every table of a list)."""

    name: str
    kind: Kind
    default: object
    standing: Standing
    meaning: str
    choices: tuple[str, ...] = ()
    least: int = 0
    most: int = (1 << 63) - 1
    required: bool = False


_E, _M, _S, _R = Standing.ENFORCED, Standing.MAPPED, Standing.SGX_ONLY, Standing.REFUSED

KEYS: Final[tuple[Key, ...]] = (
    # libos, loader
    Key("libos.entrypoint", Kind.STRING, None, _E, "first executable, a path inside, relative to `fs.start_dir`", required=True),
    Key("libos.check_invalid_pointers", Kind.BOOL, True, _S, "the kernel checks the pointers of system calls anyway"),
    Key("loader.entrypoint", Kind.ENTRYPOINT, None, _S, "the library OS; filled in when Adyton renders for Gramine"),
    Key("loader.entrypoint.uri", Kind.STRING, None, _S, "file of the library OS"),
    Key("loader.entrypoint.sha256", Kind.STRING, None, _S, "its SHA-256"),
    Key("loader.argv", Kind.STRINGS, None, _E, "the complete argv; an empty list is refused"),
    Key("loader.argv_src_file", Kind.STRING, None, _E, "argv from a file of NUL-terminated strings; it must be a trusted file, or the start is refused (Gramine reads it unchecked)"),
    Key("loader.insecure__use_cmdline_argv", Kind.BOOL, False, _E, "argv[1:] from whoever starts the program; not measured"),
    Key("loader.env.*", Kind.ENVIRONMENT, None, _E, "one variable of the program's environment: a value, `{value = …}` or `{passthrough = true}`"),
    Key("loader.env_src_file", Kind.STRING, None, _E, "environment from a file of NUL-terminated `K=V`; it must be a trusted file, or the start is refused (Gramine reads it unchecked)"),
    Key("loader.insecure__use_host_env", Kind.BOOL, False, _E, "the whole environment of whoever starts the program; not measured"),
    Key("loader.insecure__disable_aslr", Kind.BOOL, False, _M, "address randomisation is the kernel's and stays on"),
    Key("loader.uid", Kind.INTEGER, 0, _E, "user id that the program sees", most=(1 << 32) - 2),
    Key("loader.gid", Kind.INTEGER, 0, _E, "group id that the program sees", most=(1 << 32) - 2),
    Key("loader.log_level", Kind.STRING, "error", _S, "level of the library OS's own log; Adyton's runtime logs refusals, never data", choices=("none", "error", "warning", "debug", "trace", "all")),
    Key("loader.log_file", Kind.STRING, None, _S, "host file of the library OS's own log"),
    # fs
    Key("fs.mounts", Kind.TABLES, None, _E, "mounts, applied in order", required=True),
    Key("fs.mounts[].type", Kind.STRING, "chroot", _E, "`chroot`: host files, visible as the lists of trusted and allowed files say; `encrypted`: protected files; `tmpfs`: memory; `untrusted_shm`: refused, memory shared with the host exists only under SGX", choices=("chroot", "encrypted", "tmpfs", "untrusted_shm")),
    Key("fs.mounts[].path", Kind.STRING, None, _E, "absolute path inside, not `/`", required=True),
    Key("fs.mounts[].uri", Kind.STRING, None, _E, "`file:` or `dev:` path on the host; ignored for tmpfs"),
    Key("fs.mounts[].key_name", Kind.STRING, "default", _E, "name of the key of an encrypted mount"),
    Key("fs.mounts[].enable_recovery", Kind.BOOL, False, _E, "keep a recovery log beside each file of an encrypted mount, so that a crash in the middle of a flush is undone"),
    Key("fs.mounts[].pinned", Kind.BOOL, False, _E, "hold the encrypted folder to the root that the key server keeps: an older or missing file or folder is refused; never under SGX"),
    Key("fs.root.type", Kind.STRING, "chroot", _E, "type of the mount at `/`; an encrypted root is refused", choices=("chroot", "encrypted", "tmpfs")),
    Key("fs.root.uri", Kind.STRING, "file:.", _E, "host directory at `/`; only what trusted and allowed files name is visible of it"),
    Key("fs.root.key_name", Kind.STRING, "default", _S, "key of an encrypted root (under SGX)"),
    Key("fs.root.enable_recovery", Kind.BOOL, False, _S, "as for mounts"),
    Key("fs.start_dir", Kind.STRING, "/", _E, "working directory inside at the start"),
    Key("fs.insecure__keys.*", Kind.STRING, None, _E, "a key in clear, 32 hex digits, in a manifest that everyone may read: for trying out only"),
    # sys
    Key("sys.stack.size", Kind.SIZE, "256K", _M, "the kernel grows stacks; the limit is set to this size or the kernel's default, whichever is larger"),
    Key("sys.brk.max_size", Kind.SIZE, "256K", _S, "the kernel grows the heap"),
    Key("sys.fds.limit", Kind.INTEGER, 900, _E, "RLIMIT_NOFILE", least=3, most=1 << 20),
    Key("sys.enable_extra_runtime_domain_names_conf", Kind.BOOL, False, _E, "host name and resolv.conf, made safe, are taken from the host; not measured"),
    Key("sys.enable_sigterm_injection", Kind.BOOL, False, _M, "whoever runs `adyton run` may signal it; signals are passed on"),
    Key("sys.disallow_subprocesses", Kind.BOOL, False, _R, "refused where true: Adyton's sandbox does not forbid new processes"),
    Key("sys.insecure__allow_eventfd", Kind.BOOL, False, _M, "eventfd is the kernel's own and not the host's; always there"),
    Key("sys.experimental__enable_flock", Kind.BOOL, False, _M, "flock is the kernel's; always there"),
    Key("sys.debug__mock_syscalls", Kind.TABLES, None, _R, "refused where not empty: made-up results of system calls exist only under Gramine"),
    Key("sys.debug__mock_syscalls[].name", Kind.STRING, None, _R, "name of the system call", required=True),
    Key("sys.debug__mock_syscalls[].return", Kind.INTEGER, 0, _R, "what it returns", least=-(1 << 63)),
    Key("sys.ioctl_structs.*", Kind.TABLES, None, _R, "see `sys.allowed_ioctls`; not looked into"),
    Key("sys.allowed_ioctls", Kind.TABLES, None, _R, "refused where not empty: no host device is visible to which an ioctl could pass"),
    Key("sys.allowed_ioctls[].request_code", Kind.INTEGER, None, _R, "ioctl number", required=True),
    Key("sys.allowed_ioctls[].struct", Kind.STRING, None, _R, "name of its structure"),
    Key("libos.sync.enable", Kind.BOOL, False, _S, "internal to Gramine, undocumented there"),
    # sgx
    Key("sgx.enclave_size", Kind.SIZE, "256M", _S, "size of the enclave, a power of two (default with EDMM: 1024G)"),
    Key("sgx.max_threads", Kind.INTEGER, 4, _S, "thread slots of the enclave", least=1, most=1 << 16),
    Key("sgx.edmm_enable", Kind.BOOL, False, _S, "SGX2 dynamic memory"),
    Key("sgx.preheat_enclave", Kind.BOOL, False, _S, "touch the heap at the start"),
    Key("sgx.debug", Kind.BOOL, False, _E, "a debug enclave: its memory can be read; in `sim` and `tdx` the evidence says so, and a policy refuses it unless told otherwise"),
    Key("sgx.isvprodid", Kind.INTEGER, 0, _E, "product id in the SIGSTRUCT and in the evidence", most=65_535),
    Key("sgx.isvsvn", Kind.INTEGER, 0, _E, "security version in the SIGSTRUCT and in the evidence", most=65_535),
    Key("sgx.remote_attestation", Kind.STRING, "none", _M, "what /dev/attestation/attestation_type says; Adyton's own release works either way. `epid` is refused: Intel ended it", choices=("none", "dcap")),
    Key("sgx.trusted_files", Kind.TRUSTED, (), _E, "files that the program may read, each bound to its SHA-256"),
    Key("sgx.allowed_files", Kind.STRINGS, (), _E, "`file:` or `dev:` paths open to the program unchecked, readable and writable by the host"),
    Key("sgx.file_check_policy", Kind.STRING, "strict", _E, "`allow_all_but_log` is refused: a file that no list names is not there at all", choices=("strict", "allow_all_but_log")),
    Key("sgx.use_exinfo", Kind.BOOL, False, _S, "fault addresses"),
    Key("sgx.insecure__allow_memfaults_without_exinfo", Kind.BOOL, False, _S, "memory faults without checked addresses"),
    Key("sgx.insecure__rpc_thread_num", Kind.INTEGER, 0, _S, "exitless system calls", most=1 << 16),
    Key("sgx.cpu_features.avx", Kind.STRING, "unspecified", _S, "AVX", choices=("unspecified", "disabled", "required")),
    Key("sgx.cpu_features.avx512", Kind.STRING, "unspecified", _S, "AVX-512", choices=("unspecified", "disabled", "required")),
    Key("sgx.cpu_features.amx", Kind.STRING, "unspecified", _S, "AMX", choices=("unspecified", "disabled", "required")),
    Key("sgx.cpu_features.mpx", Kind.STRING, "disabled", _S, "MPX", choices=("disabled", "required")),
    Key("sgx.cpu_features.pkru", Kind.STRING, "disabled", _S, "protection keys", choices=("disabled", "required")),
    Key("sgx.seal_key.flags_mask", Kind.STRING, "0xffffffffffffffff", _S, "sealing key derivation"),
    Key("sgx.seal_key.xfrm_mask", Kind.STRING, "0xfffffffffff9ff1b", _S, "sealing key derivation"),
    Key("sgx.seal_key.misc_mask", Kind.STRING, "0xffffffff", _S, "sealing key derivation"),
    Key("sgx.enable_stats", Kind.BOOL, False, _S, "statistics of debug builds"),
    Key("sgx.profile.enable", Kind.STRING, "none", _S, "profiling of debug builds", choices=("none", "main", "all")),
    Key("sgx.profile.mode", Kind.STRING, "aex", _S, "profiling of debug builds", choices=("aex", "ocall_inner", "ocall_outer")),
    Key("sgx.profile.with_stack", Kind.BOOL, False, _S, "profiling of debug builds"),
    Key("sgx.profile.frequency", Kind.INTEGER, 50, _S, "profiling of debug builds", least=1),
    Key("sgx.vtune_profile", Kind.BOOL, False, _S, "profiling of debug builds"),
    # adyton
    Key("adyton.read_only", Kind.STRINGS, (), _E, "paths of encrypted mounts that the program only reads: staged into private memory at the start"),
    Key("adyton.memory_budget", Kind.SIZE, "4G", _E, "how much private memory staging may take; what exceeds it is served block by block"),
    Key("adyton.gpus", Kind.INTEGER, 0, _E, "how many GPUs the program has. They are verified before it starts, and with each request for keys. The program sees their device nodes, and the libraries of NVIDIA's driver become trusted files ([GPUs](gpu.md))", most=8),
    Key("adyton.network", Kind.STRING, "none", _E, "`none`: a loopback of its own; `host`: the host's network, whose every byte the host sees and can change, with [what listens on its loopback](sandbox.md#other-processes-of-the-machine)", choices=("none", "host")),
    Key("adyton.ingress", Kind.TABLES, None, _E, "ports through which clients reach the program, each connection proved by evidence of its own ([attested endpoints](endpoint.md)); needs `network = \"none\"`"),
    Key("adyton.ingress[].name", Kind.STRING, None, _E, "name that clients see: lower-case letters, digits, inner hyphens", required=True),
    Key("adyton.ingress[].listen", Kind.STRING, "0.0.0.0:8443", _E, "`HOST:PORT` on the host's network"),
    Key("adyton.ingress[].target", Kind.STRING, None, _E, "`127.0.0.1:PORT` where the program listens, in its own network", required=True),
    Key("adyton.ingress[].max_connections", Kind.INTEGER, 1024, _E, "connections at once; one more is closed", least=1, most=65_536),
    Key("adyton.ingress[].client_ca", Kind.STRING, None, _E, "PEM certificate of the one CA whose certificates clients must show; without it anybody may connect"),
    Key("adyton.ingress[].client_ca_file", Kind.STRING, None, _E, "only in a template: file of that certificate, which `adyton build` puts in its place"),
    Key("adyton.ingress[].client_policy", Kind.STRING, None, _E, "text of a policy, as `adyton verify --policy` takes it, which must accept the evidence that clients show of their own machine"),
    Key("adyton.ingress[].client_policy_file", Kind.STRING, None, _E, "only in a template: file of that policy, which `adyton build` puts in its place"),
    Key("adyton.egress", Kind.TABLES, None, _E, "servers outside that the program may reach; without it there are none ([attested endpoints](endpoint.md#servers-that-the-program-reaches)); needs `network = \"none\"`"),
    Key("adyton.egress[].host", Kind.STRING, None, _E, "name or IP address that is dialled on the host's network; where a CA is pinned, the server's certificate must name it", required=True),
    Key("adyton.egress[].port", Kind.INTEGER, None, _E, "port that is dialled, and port inside", least=1, most=65_535, required=True),
    Key("adyton.egress[].name", Kind.STRING, None, _E, "name under which the program reaches it (default: `host`); needed where `host` is an address"),
    Key("adyton.egress[].plain", Kind.BOOL, False, _E, "carry bytes as they are: the host reads and changes them, unless the program encrypts them itself"),
    Key("adyton.egress[].ca", Kind.STRING, None, _E, "PEM certificate of the one CA for this server; TLS is then made outside the program, which speaks in clear inside"),
    Key("adyton.egress[].ca_file", Kind.STRING, None, _E, "only in a template: file of that certificate, which `adyton build` puts in its place"),
    Key("adyton.egress[].max_connections", Kind.INTEGER, 64, _E, "connections at once; one more is closed", least=1, most=4096),
    Key("adyton.insecure__stdio", Kind.BOOL, False, _E, "standard output and error go to the host in clear instead of the encrypted log"),
    Key("adyton.insecure__stdin", Kind.BOOL, False, _E, "standard input comes from the host; not measured"),
    Key("adyton.insecure__raw_report_data", Kind.BOOL, False, _E, "`sim` only: evidence that the program asks for carries its 64 bytes as they are, as Gramine's RA-TLS library needs it; other TEEs of Adyton's runtime refuse such a manifest"),
    Key("adyton.insecure__ra_tls", Kind.BOOL, False, _E, "whoever starts the program may have it ask for keys over RA-TLS (`--provisioning ra-tls`), whose answers nobody signs; under `sgx` Gramine always does"),
    Key("adyton.log.uri", Kind.STRING, None, _E, "host file of the encrypted log of standard output and error (default: `file:adyton.log`, as the manifest's own name is not measured)"),
    Key("adyton.log.key_name", Kind.STRING, None, _E, "key of that log (default: the key of the first encrypted mount that is written)"),
    Key("adyton.owners.*.ca", Kind.STRING, None, _E, "PEM certificate of the CA under which this owner's key server must show itself"),
    Key("adyton.owners.*.ca_file", Kind.STRING, None, _E, "only in a template: file of that certificate, which `adyton build` puts in its place"),
    Key("adyton.owners.*.server_name", Kind.STRING, "adyton-key-server", _E, "name that the server's certificate must carry"),
    Key("adyton.owners.*.address", Kind.STRING, None, _S, "`HOST:PORT` where Gramine's own client finds this key server; it must be in the measured manifest (default: the server's name and port 4433). Under Adyton's runtime `--key-server` names the address, which needs no trust"),
    Key("adyton.keys.*", Kind.STRING, None, _E, "key name to owner, needed where there are several owners"),
    Key("adyton.secrets.*.env", Kind.STRING, None, _E, "environment variable that receives this secret from the key server"),
    Key("adyton.secrets.*.file", Kind.STRING, None, _E, "file inside, in memory, that receives this secret from the key server"),
    Key("adyton.secrets.*.owner", Kind.STRING, None, _E, "whose key server delivers it, needed where there are several owners"),
    Key("adyton.trusted_from", Kind.STRINGS, (), _E, "only in a template: text files with one trusted path a line (`#` begins a comment), which `adyton build` puts into `sgx.trusted_files`"),
    Key("adyton.files", Kind.STRING, None, _E, "written by `adyton build`: one word per trusted file, in their order: its size in bytes, `x` if executable, `@` and its time in seconds where cached bytecode depends on it"),
)  # fmt: skip

RETIRED: Final[Mapping[str, str]] = {
    "sgx.protected_files": "use an encrypted mount in fs.mounts",
    "sgx.encrypted_files": "use an encrypted mount in fs.mounts",
    "sgx.protected_mrenclave_files": 'use an encrypted mount with key_name = "_sgx_mrenclave" (under SGX)',
    "sgx.protected_mrsigner_files": 'use an encrypted mount with key_name = "_sgx_mrsigner" (under SGX)',
    "sgx.insecure__protected_files_key": "use fs.insecure__keys.default, or better a key server",
    "fs.mount": "use the list fs.mounts",
    "loader.preload": "use loader.entrypoint, which Adyton fills in by itself",
    "loader.exec": "use libos.entrypoint",
    "loader.pal_internal_mem_size": "leave it out",
    "loader.argv0_override": "use loader.argv",
    "sgx.thread_num": "use sgx.max_threads",
    "sgx.nonpie_binary": "leave it out",
    "sgx.sigfile": "leave it out; the signature lies beside the manifest",
    "sgx.ra_client_spid": "leave it out; EPID attestation has ended, use DCAP",
    "sgx.ra_client_linkable": "leave it out; EPID attestation has ended, use DCAP",
    "sgx.zero_heap_on_demand": "leave it out",
    "sgx.enable_pf": "leave it out",
}
"""Keys of older Gramine releases, each with what to write instead."""


def reference_table() -> str:
    """The table of docs/manifest.md: every key, its type, default, standing and meaning, in Markdown."""
    lines = ["| key | type | default | here | meaning |", "| --- | --- | --- | --- | --- |"]
    for key in KEYS:
        kind = " or ".join(f"`{choice}`" for choice in key.choices) if key.choices else str(key.kind)
        if key.required:
            default = "required"
        elif key.default is None or key.default == ():
            default = ""
        elif isinstance(key.default, bool):
            default = f"`{str(key.default).lower()}`"
        else:
            default = f"`{key.default}`"
        lines.append(f"| `{key.name}` | {kind} | {default} | {key.standing} | {key.meaning} |")
    return "\n".join(lines) + "\n"
