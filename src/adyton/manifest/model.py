"""A manifest as frozen values: parsed once, strictly, and never looked at as loose tables again.

`parse_manifest` accepts templates that were rendered (trusted files may still be folders and lack hashes) and final
manifests alike. `Manifest.is_final` tells them apart. `key_table` says what a key means.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from adyton.address import parse_address
from adyton.errors import MalformedManifest, UsageError
from adyton.manifest.document import parse_document
from adyton.manifest.egress import Egress, parse_egress
from adyton.manifest.ingress import Ingress, parse_ingress
from adyton.manifest.key_table import KEYS
from adyton.manifest.pinned_ca import check_ca
from adyton.manifest.schema_check import check_document, parse_size, refuse
from adyton.values import Digest, Key128

MAX_MANIFEST_BYTES: Final = 256 << 20
MAX_PATH_CHARS: Final = 4096
SGX_SEALING_KEYS: Final = ("_sgx_mrenclave", "_sgx_mrsigner")

_DEFAULT: Final = {key.name: key.default for key in KEYS}
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,127}")
_FACT: Final = re.compile(r"(0|[1-9][0-9]{0,17})(x?)(?:@([0-9]{1,12}))?")


class TrustedFile(NamedTuple):
    """A file (or, in a template, a folder) that the program may read. Facts beside the hash are there once built."""

    uri: str
    sha256: Digest | None = None
    size_bytes: int | None = None
    executable: bool = False
    mtime_s: int | None = None

    @property
    def host_path(self) -> str:
        """The path on the host, as the manifest writes it."""
        return self.uri[5:]

    @property
    def fact(self) -> str:
        """The word in `adyton.files` that says size, mode and time."""
        mtime = "" if self.mtime_s is None else f"@{self.mtime_s}"
        return f"{self.size_bytes}{'x' if self.executable else ''}{mtime}"


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount: `type` is chroot, encrypted, tmpfs or untrusted_shm. `uri` is None for tmpfs."""

    type: str
    path: str
    uri: str | None
    key_name: str = "default"
    enable_recovery: bool = False
    pinned: bool = False
    """Whether its folder is held to the root that the key server keeps."""

    @property
    def host_path(self) -> str | None:
        """The path on the host, as the manifest writes it, without `file:` or `dev:`."""
        return None if self.uri is None else self.uri.partition(":")[2]


@dataclass(frozen=True, slots=True)
class Owner:
    """An owner of keys: the name in her key server's certificate, and the one CA that must have issued it (PEM)."""

    name: str
    ca: str | None
    server_name: str = "adyton-key-server"
    address: str | None = None


@dataclass(frozen=True, slots=True)
class Secret:
    """Something other than a file key that a key server delivers into a variable or an in-memory file."""

    name: str
    env: str | None
    file: str | None
    owner: str | None


@dataclass(frozen=True, slots=True)
class AdytonTable:
    """The `[adyton]` table, which only Adyton knows."""

    read_only: tuple[str, ...] = ()
    memory_budget_bytes: int = 4 << 30
    network: str = "none"
    gpus: int = 0
    insecure_stdio: bool = False
    insecure_stdin: bool = False
    raw_report_data: bool = False
    ra_tls: bool = False
    log_uri: str | None = None
    log_key_name: str | None = None
    owners: tuple[Owner, ...] = ()
    keys: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    secrets: tuple[Secret, ...] = ()
    ingress: tuple[Ingress, ...] = ()
    egress: tuple[Egress, ...] = ()
    trusted_from: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SGXTable:
    """Entries for the SIGSTRUCT, and those for Gramine alone. `mpx` and `pkru` default to disabled."""

    enclave_size_bytes: int = 256 << 20
    enclave_size_given: bool = False
    max_threads: int = 4
    max_threads_given: bool = False
    edmm_enable: bool = False
    debug: bool = False
    isv_prod_id: int = 0
    isv_svn: int = 0
    remote_attestation: str = "none"
    use_exinfo: bool = False
    rpc_thread_num: int = 0
    allow_memfaults_without_exinfo: bool = False
    cpu_features: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything that will run and all that it may touch."""

    entrypoint: str
    argv: tuple[str, ...] | None = None
    argv_src_file: str | None = None
    use_cmdline_argv: bool = False
    env: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    env_passthrough: tuple[str, ...] = ()
    env_src_file: str | None = None
    use_host_env: bool = False
    disable_aslr: bool = False
    uid: int = 0
    gid: int = 0
    log_level: str = "error"
    log_file: str | None = None
    mounts: tuple[Mount, ...] = ()
    root: Mount = Mount("chroot", "/", "file:.")
    start_dir: str = "/"
    insecure_keys: Mapping[str, Key128] = field(default_factory=lambda: MappingProxyType({}))
    stack_size_bytes: int = 256 << 10
    fds_limit: int = 900
    domain_names_from_host: bool = False
    sigterm_injection: bool = False
    disallow_subprocesses: bool = False
    allow_eventfd: bool = False
    enable_flock: bool = False
    mock_syscalls: tuple[str, ...] = ()
    allowed_ioctls: tuple[int, ...] = ()
    trusted_files: tuple[TrustedFile, ...] = ()
    allowed_files: tuple[str, ...] = ()
    file_check_policy: str = "strict"
    sgx: SGXTable = SGXTable()
    adyton: AdytonTable = AdytonTable()

    @property
    def is_final(self) -> bool:
        """Whether every trusted entry is a file with its hash, and every CA is there, as `adyton build` leaves it."""
        hashed = all(entry.sha256 is not None and not entry.uri.endswith("/") for entry in self.trusted_files)
        pinned = all(one.is_final for one in self.adyton.ingress) and all(one.is_final for one in self.adyton.egress)
        return hashed and pinned and not self.adyton.trusted_from

    @property
    def all_mounts(self) -> tuple[Mount, ...]:
        """The root, then the mounts in order."""
        return (self.root, *self.mounts)

    @property
    def encrypted_mounts(self) -> tuple[Mount, ...]:
        """The mounts of protected files, the root among them where it is one."""
        return tuple(mount for mount in self.all_mounts if mount.type == "encrypted")

    @property
    def log_key_name(self) -> str | None:
        """Key of the encrypted log: as given, or that of the first encrypted mount that is written, or of any."""
        if self.adyton.insecure_stdio:
            return None
        if self.adyton.log_key_name is not None:
            return self.adyton.log_key_name
        mounts = self.encrypted_mounts
        written = [mount for mount in mounts if mount.path not in self.adyton.read_only]
        return next((mount.key_name for mount in (*written, *mounts)), None)

    @property
    def key_names(self) -> tuple[str, ...]:
        """The keys that must come from key servers before the start, sorted: of encrypted mounts and of the log."""
        names = {mount.key_name for mount in self.encrypted_mounts}
        if self.log_key_name is not None:
            names.add(self.log_key_name)
        return tuple(sorted(names - set(self.insecure_keys) - set(SGX_SEALING_KEYS)))

    def owner_of(self, key_name: str) -> Owner | None:
        """The owner whose key server holds a key: as `[adyton.keys]` says, or the only owner. None without one."""
        owners = {owner.name: owner for owner in self.adyton.owners}
        named = self.adyton.keys.get(key_name)
        if named is not None:
            return owners[named]
        return self.adyton.owners[0] if len(owners) == 1 else None


def parse_manifest(text: str) -> Manifest:
    """Parse a rendered template or a final manifest. Raises MalformedManifest with the key's name."""
    document, block = parse_document(text)
    return manifest_from(document, block)


def manifest_from(document: Mapping[str, Any], block: Sequence[tuple[str, str]] = ()) -> Manifest:
    """The model of a parsed document. `block` holds (uri, sha256) that follow the document's own trusted files."""

    check_document(document)
    value = _Reader(document)
    root = _mount(value.table("fs.root"), "fs.root", path="/")
    mounts = tuple(_mount(table, f"fs.mounts[{position}]") for position, table in enumerate(value.get("fs.mounts")))
    environment = value.table("loader.env")
    argv = value.get("loader.argv")
    manifest = Manifest(
        entrypoint=_inside(value.get("libos.entrypoint"), "libos.entrypoint", relative=True),
        argv=None if argv is None else tuple(argv),
        argv_src_file=_file_uri(value.get("loader.argv_src_file"), "loader.argv_src_file"),
        use_cmdline_argv=value.get("loader.insecure__use_cmdline_argv"),
        env=MappingProxyType(dict(_fixed_environment(environment))),
        env_passthrough=tuple(n for n, v in environment.items() if isinstance(v, dict) and "passthrough" in v),
        env_src_file=_file_uri(value.get("loader.env_src_file"), "loader.env_src_file"),
        use_host_env=value.get("loader.insecure__use_host_env"),
        disable_aslr=value.get("loader.insecure__disable_aslr"),
        uid=value.get("loader.uid"),
        gid=value.get("loader.gid"),
        log_level=value.get("loader.log_level"),
        log_file=value.get("loader.log_file"),
        mounts=mounts,
        root=root,
        start_dir=_inside(value.get("fs.start_dir"), "fs.start_dir"),
        insecure_keys=MappingProxyType(dict(_insecure_keys(value.table("fs.insecure__keys")))),
        stack_size_bytes=parse_size(value.get("sys.stack.size")),
        fds_limit=value.get("sys.fds.limit"),
        domain_names_from_host=value.get("sys.enable_extra_runtime_domain_names_conf"),
        sigterm_injection=value.get("sys.enable_sigterm_injection"),
        disallow_subprocesses=value.get("sys.disallow_subprocesses"),
        allow_eventfd=value.get("sys.insecure__allow_eventfd"),
        enable_flock=value.get("sys.experimental__enable_flock"),
        mock_syscalls=tuple(table["name"] for table in value.get("sys.debug__mock_syscalls") or ()),
        allowed_ioctls=tuple(table["request_code"] for table in value.get("sys.allowed_ioctls") or ()),
        trusted_files=_trusted(value.get("sgx.trusted_files"), block, value.get("adyton.files")),
        allowed_files=tuple(
            _uri(uri, f"sgx.allowed_files[{position}]") for position, uri in enumerate(value.get("sgx.allowed_files"))
        ),
        file_check_policy=value.get("sgx.file_check_policy"),
        sgx=_sgx(value),
        adyton=_adyton(value),
    )
    _check_together(manifest)
    return manifest


class _Reader:
    """Looks keys up by their dotted names, with the schema's defaults."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document

    def get(self, name: str) -> Any:
        found: Any = self._document
        for segment in name.split("."):
            if not isinstance(found, Mapping) or segment not in found:
                return _DEFAULT[name]
            found = found[segment]
        return found

    def table(self, name: str) -> Mapping[str, Any]:
        found: Any = self._document
        for segment in name.split("."):
            found = found.get(segment, {})
        return found if isinstance(found, dict) else {}


def _inside(path: str, name: str, *, relative: bool = False) -> str:
    if not path or len(path) > MAX_PATH_CHARS or not (relative or path.startswith("/")):
        wanted = "a path" if relative else "an absolute path"
        raise refuse(name, f"not {wanted}", expected=f"{wanted} inside, at most {MAX_PATH_CHARS} characters", seen=path)
    return path


def _uri(uri: str, name: str, schemes: tuple[str, ...] = ("file:", "dev:")) -> str:
    for scheme in schemes:
        if uri.startswith(scheme) and len(uri) > len(scheme):
            if len(uri) > MAX_PATH_CHARS:
                raise refuse(name, "too long", expected=f"at most {MAX_PATH_CHARS} characters", seen=len(uri))
            return uri
    wanted = " or ".join(f'"{scheme}…"' for scheme in schemes)
    remedy = f'write "file:{uri}"' if uri and ":" not in uri else None
    raise refuse(name, "unsupported URI type", expected=wanted, seen=uri, remedy=remedy)


def _file_uri(uri: str | None, name: str) -> str | None:
    return None if uri is None else _uri(uri, name, ("file:",))


def _key_name(text: str, name: str) -> str:
    if not _NAME.fullmatch(text):
        raise refuse(name, "not a name of a key", expected="letters, digits and _ . @ + -, at most 128", seen=text)
    return text


def _address(text: str | None, owner: str) -> str | None:
    """The address as it is written, for Gramine's own client, which knows no IPv6 addresses."""
    if text is None:
        return None
    name = f"adyton.owners.{owner}.address"
    try:
        host, _ = parse_address(text, name)
    except UsageError:
        host = ""
    if not re.fullmatch(r"[A-Za-z0-9.-]{1,253}", host):
        raise refuse(name, "not an address", expected="HOST:PORT", seen=text)
    return text


def _mount(table: Mapping[str, Any], name: str, *, path: str | None = None) -> Mount:
    kind = table.get("type", "chroot")
    if path is None:
        path = _inside(table["path"], f"{name}.path")
        if path.strip("/") == "":
            raise refuse(f"{name}.path", "is the root", expected="a path below /", seen=path, remedy="use fs.root")
        if any(part in (".", "..") for part in path.split("/")):
            raise refuse(f"{name}.path", "holds . or ..", expected="a plain absolute path", seen=path)
    uri = table.get("uri", "file:." if name == "fs.root" else None)
    if kind == "tmpfs":
        uri = None
    elif uri is None:
        raise refuse(f"{name}.uri", "is missing", expected=f"a URI, since the mount is {kind}", seen="nothing")
    elif kind == "encrypted":
        _uri(uri, f"{name}.uri", ("file:",))
    elif kind == "untrusted_shm":
        _uri(uri, f"{name}.uri", ("dev:",))
    else:
        _uri(uri, f"{name}.uri")
    if kind != "encrypted":
        for only in ("key_name", "enable_recovery", "pinned"):
            if table.get(only):
                raise refuse(f"{name}.{only}", "belongs to encrypted mounts", expected='type = "encrypted"', seen=kind)
    key_name = _key_name(table.get("key_name", "default"), f"{name}.key_name")
    return Mount(kind, path, uri, key_name, table.get("enable_recovery", False), table.get("pinned", False))


def _fixed_environment(table: Mapping[str, Any]) -> list[tuple[str, str]]:
    for name in table:
        if "=" in name:
            raise refuse(f"loader.env.{name}", "not a name of a variable", expected="a name without =", seen=name)
    texts = ((name, value if isinstance(value, str) else value.get("value")) for name, value in table.items())
    return [(name, text) for name, text in texts if text is not None]


def _insecure_keys(table: Mapping[str, str]) -> list[tuple[str, Key128]]:
    found = []
    for name, text in table.items():
        _key_name(name, f"fs.insecure__keys.{name}")
        if not re.fullmatch(r"[0-9a-fA-F]{32}", text):
            raise refuse(
                f"fs.insecure__keys.{name}", "not a key", expected="32 hex digits", seen=f"{len(text)} characters"
            )
        found.append((name, Key128(bytes.fromhex(text))))
    return found


def _trusted(listed: Sequence[Any], block: Sequence[tuple[str, str]], facts: str | None) -> tuple[TrustedFile, ...]:
    pairs: list[tuple[str, str | None]] = []
    for position, entry in enumerate(listed):
        name = f"sgx.trusted_files[{position}]"
        if isinstance(entry, str):
            pairs.append((entry, None))
        elif isinstance(entry, dict) and {"uri"} <= set(entry) <= {"uri", "sha256"}:
            pairs.append((entry["uri"], entry.get("sha256")))
        else:
            raise refuse(name, "not a trusted file", expected='"file:…" or {uri, sha256}', seen=entry)
    pairs += block
    words: Sequence[tuple[str, str, str]] | None = None
    if facts is not None:
        split = facts.split(" ") if facts else []
        matches = [_FACT.fullmatch(word) for word in split]
        if len(split) != len(pairs) or None in matches:
            raise refuse(
                "adyton.files",
                "does not fit the trusted files",
                expected=f"{len(pairs)} words such as 4096, 4096x or 4096@1700000000",
                seen=f"{len(split)} words",
                remedy="build the manifest again; this key is not written by hand",
            )
        words = [(match[1], match[2], match[3]) for match in matches if match]
    found: list[TrustedFile] = []
    for position, (uri, text) in enumerate(pairs):
        if not isinstance(uri, str) or not uri.startswith("file:") or not 5 < len(uri) <= MAX_PATH_CHARS or "\0" in uri:
            name = f"sgx.trusted_files[{position}]"
            raise refuse(name, "unsupported URI", expected='"file:…"', seen=uri)
        digest = None
        if text is not None:
            if not isinstance(text, str) or len(text) != 64 or text.strip("0123456789abcdef"):
                name = f"sgx.trusted_files[{position}].sha256"
                raise refuse(name, "not a hash", expected="64 lower-case hex digits", seen=text)
            if uri.endswith("/"):
                raise refuse(f"sgx.trusted_files[{position}]", "a folder has no hash", expected="no sha256", seen=uri)
            digest = Digest(bytes.fromhex(text))
        if words is None:
            found.append(TrustedFile(uri, digest))
        else:
            size, executable, mtime = words[position]
            found.append(TrustedFile(uri, digest, int(size), bool(executable), int(mtime) if mtime else None))
    return tuple(found)


def _sgx(value: _Reader) -> SGXTable:
    features = ("avx", "avx512", "amx", "mpx", "pkru")
    edmm = value.get("sgx.edmm_enable")
    size = value.table("sgx").get("enclave_size", "1024G" if edmm else _DEFAULT["sgx.enclave_size"])
    for name, digits in (("flags_mask", 16), ("xfrm_mask", 16), ("misc_mask", 8)):
        mask = value.get(f"sgx.seal_key.{name}")
        if not re.fullmatch(rf"0x[0-9a-fA-F]{{{digits}}}", mask):
            raise refuse(f"sgx.seal_key.{name}", "not a mask", expected=f"0x and {digits} hex digits", seen=mask)
    return SGXTable(
        enclave_size_bytes=parse_size(size),
        enclave_size_given="enclave_size" in value.table("sgx"),
        max_threads=value.get("sgx.max_threads"),
        max_threads_given="max_threads" in value.table("sgx"),
        edmm_enable=edmm,
        debug=value.get("sgx.debug"),
        isv_prod_id=value.get("sgx.isvprodid"),
        isv_svn=value.get("sgx.isvsvn"),
        remote_attestation=value.get("sgx.remote_attestation"),
        use_exinfo=value.get("sgx.use_exinfo"),
        rpc_thread_num=value.get("sgx.insecure__rpc_thread_num"),
        allow_memfaults_without_exinfo=value.get("sgx.insecure__allow_memfaults_without_exinfo"),
        cpu_features=MappingProxyType({name: value.get(f"sgx.cpu_features.{name}") for name in features}),
    )


def _adyton(value: _Reader) -> AdytonTable:
    owners = []
    for name, table in value.table("adyton.owners").items():
        _key_name(name, f"adyton.owners.{name}")
        ca = table.get("ca")
        owners.append(
            Owner(
                name,
                None if ca is None else check_ca(ca, f"adyton.owners.{name}.ca"),
                table.get("server_name", "adyton-key-server"),
                _address(table.get("address"), name),
            )
        )
    secrets = []
    for name, table in value.table("adyton.secrets").items():
        _key_name(name, f"adyton.secrets.{name}")
        if ("env" in table) == ("file" in table):
            raise refuse(f"adyton.secrets.{name}", "must have env or file", expected="exactly one of them", seen=table)
        file = table.get("file")
        if file is not None:
            place = f"adyton.secrets.{name}.file"
            if any(part in ("", ".", "..") for part in _inside(file, place).split("/")[1:]):
                raise refuse(
                    place, "is no plain path of a file", expected="an absolute path without . or ..", seen=file
                )
        secrets.append(Secret(name, table.get("env"), file, table.get("owner")))
    log_uri = value.get("adyton.log.uri")
    log_key_name = value.get("adyton.log.key_name")
    return AdytonTable(
        read_only=tuple(value.get("adyton.read_only")),
        memory_budget_bytes=parse_size(value.get("adyton.memory_budget")),
        network=value.get("adyton.network"),
        gpus=value.get("adyton.gpus"),
        insecure_stdio=value.get("adyton.insecure__stdio"),
        insecure_stdin=value.get("adyton.insecure__stdin"),
        raw_report_data=value.get("adyton.insecure__raw_report_data"),
        ra_tls=value.get("adyton.insecure__ra_tls"),
        log_uri=_file_uri(log_uri, "adyton.log.uri"),
        log_key_name=None if log_key_name is None else _key_name(log_key_name, "adyton.log.key_name"),
        owners=tuple(owners),
        keys=MappingProxyType(dict(value.table("adyton.keys"))),
        secrets=tuple(secrets),
        ingress=parse_ingress(value.get("adyton.ingress") or (), network=value.get("adyton.network")),
        egress=parse_egress(value.get("adyton.egress") or (), network=value.get("adyton.network")),
        trusted_from=tuple(
            _uri(uri, f"adyton.trusted_from[{position}]", ("file:",))
            for position, uri in enumerate(value.get("adyton.trusted_from"))
        ),
    )


def _check_together(manifest: Manifest) -> None:
    """Rules that span several keys."""
    given = [
        name
        for name, here in (
            ("loader.argv", manifest.argv is not None),
            ("loader.argv_src_file", manifest.argv_src_file is not None),
            ("loader.insecure__use_cmdline_argv", manifest.use_cmdline_argv),
        )
        if here
    ]
    if len(given) > 1:
        raise refuse(given[1], "several sources of argv", expected="one of them", seen=" and ".join(given))
    if manifest.argv is not None and not manifest.argv:
        raise refuse("loader.argv", "is empty", expected="at least the program's name", seen=[])
    if manifest.use_host_env and manifest.env_src_file is not None:
        raise refuse(
            "loader.env_src_file",
            "together with loader.insecure__use_host_env",
            expected="one of them",
            seen="both",
        )
    encrypted = {mount.path for mount in manifest.encrypted_mounts}
    for position, path in enumerate(manifest.adyton.read_only):
        if path not in encrypted:
            raise refuse(
                f"adyton.read_only[{position}]",
                "not the path of an encrypted mount",
                expected=" or ".join(sorted(encrypted)) or "an encrypted mount in fs.mounts",
                seen=path,
            )
    owners = {owner.name for owner in manifest.adyton.owners}
    for key_name, owner in manifest.adyton.keys.items():
        if owner not in owners:
            raise refuse(
                f"adyton.keys.{key_name}",
                "names no owner",
                expected=" or ".join(sorted(owners)) or "a table adyton.owners.NAME",
                seen=owner,
            )
    file_keys = {*manifest.key_names, *manifest.insecure_keys, *manifest.adyton.keys, *SGX_SEALING_KEYS}
    for secret in manifest.adyton.secrets:
        if secret.name in file_keys:  # two owners could each bring one, and what is shown names one
            raise refuse(
                f"adyton.secrets.{secret.name}",
                "has the name of a file key",
                expected="a name of its own",
                seen=secret.name,
                remedy="rename the secret, here and in its key server",
            )
        if secret.owner is not None and secret.owner not in owners:
            raise refuse(
                f"adyton.secrets.{secret.name}.owner",
                "names no owner",
                expected=" or ".join(sorted(owners)) or "a table adyton.owners.NAME",
                seen=secret.owner,
            )
    if len(owners) > 1:
        for name in manifest.key_names:
            if name not in manifest.adyton.keys:
                raise MalformedManifest(
                    f"adyton.keys.{name} is missing: there are several owners",
                    check=f"manifest key adyton.keys.{name}",
                    expected=" or ".join(sorted(owners)),
                    seen="nothing",
                )
    seen: dict[str, Digest | None] = {}
    for entry in manifest.trusted_files:
        if entry.uri in seen and None not in (entry.sha256, seen[entry.uri]) and entry.sha256 != seen[entry.uri]:
            raise refuse("sgx.trusted_files", "two hashes for one file", expected="one hash", seen=entry.uri)
        seen.setdefault(entry.uri, entry.sha256)
