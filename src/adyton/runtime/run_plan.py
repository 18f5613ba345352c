"""From a manifest to a plan: what is staged, served and mounted where, and what is started with which words.

Pure but for `read_trusted`, through which the two `…_src_file` keys are read (verified). A plan names everything that
the program will see. `launch` carries it out and adds nothing.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from adyton.errors import MalformedManifest, UsageError
from adyton.gpu_nodes import DeviceNode
from adyton.manifest.driver_files import CUDA_LIBRARY
from adyton.manifest.egress import Egress
from adyton.manifest.findings import check_runtime
from adyton.manifest.model import Manifest, Secret, TrustedFile
from adyton.pfile.paths import normalise
from adyton.roots.folder_id import folder_id
from adyton.values import Key128
from adyton.vfs.mount_lookup import MountTable, Place, below
from adyton.vfs.stage import StagedFile

MAX_WORDS_BYTES: Final = 1 << 20
DEFAULT_LOG: Final = "adyton.log"
RESERVED: Final = ("/dev", "/proc", "/sys")
"""Directories that the sandbox makes itself."""
HOSTS_FILE: Final = "/etc/hosts"
NAME_SERVICE_FILE: Final = "/etc/nsswitch.conf"
NAME_FILES: Final = (HOSTS_FILE, NAME_SERVICE_FILE)
"""What Adyton writes itself where the manifest names servers outside, in place of whatever is listed there."""
SHARED_MEMORY: Final = "/dev/shm"  # noqa: S108 - the sandbox's own


@dataclass(frozen=True, slots=True)
class Point:
    """Where another mount shows in this one: its path, relative to this one's, and what it shows there."""

    path: str
    is_folder: bool


@dataclass(frozen=True, slots=True)
class EncryptedMount:
    """A folder or file of protected files. Their stored paths begin with `source`, the normalised host path."""

    path: str
    source: str
    key_name: str
    read_only: bool
    recovery: bool
    is_folder: bool = False
    """Whether its URI ends in /, so that it must be a folder. Without, it may be a file still to be written."""
    points: tuple[Point, ...] = ()
    """Where trusted files and other encrypted mounts show in it."""
    pinned: str = ""
    """The id of the folder, where it is held to the root that the key server keeps."""


@dataclass(frozen=True, slots=True)
class MemoryMount:
    """Memory of the program's own (tmpfs)."""

    path: str
    points: tuple[Point, ...] = ()


@dataclass(frozen=True, slots=True)
class AllowedFile:
    """A host file or folder that the program may use unchecked."""

    source: str
    target: str
    is_folder: bool


@dataclass(frozen=True, slots=True)
class LogPlan:
    """The encrypted log of standard output and error."""

    source: str
    key_name: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that `launch` needs but the keys."""

    entrypoint: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    uid: int
    gid: int
    start_dir: str
    staged: tuple[StagedFile, ...]
    encrypted: tuple[EncryptedMount, ...]
    memory: tuple[MemoryMount, ...]
    allowed: tuple[AllowedFile, ...]
    budget_bytes: int
    network: str
    log: LogPlan | None
    stdin_from_host: bool
    fds_limit: int
    stack_bytes: int
    attestation_type: str
    domain_names_from_host: bool
    secrets: tuple[Secret, ...]
    insecure_keys: Mapping[str, Key128]
    notes: tuple[str, ...]
    devices: tuple[DeviceNode, ...] = ()
    """Device nodes that the program sees in /dev, beside those that every program has."""
    egress: tuple[Egress, ...] = ()
    """Servers outside that the program reaches."""

    @property
    def pinned(self) -> tuple[EncryptedMount, ...]:
        """The encrypted mounts that are held to a root."""
        return tuple(mount for mount in self.encrypted if mount.pinned)

    @property
    def key_names(self) -> tuple[str, ...]:
        """Every key that must be there before the start, sorted."""
        names = {mount.key_name for mount in self.encrypted}
        if self.log is not None:
            names.add(self.log.key_name)
        return tuple(sorted(names))

    @property
    def sources(self) -> tuple[str, ...]:
        """Every file and folder of the host that it names."""
        found = [one.source for one in self.staged]
        found += [one.source for one in self.encrypted]
        found += [one.source for one in self.allowed]
        return (*found, *(() if self.log is None else (self.log.source,)))

    @property
    def reaches_host_files(self) -> bool:
        """Whether the program has files of the host before it: allowed ones, or what its standard files lead to."""
        return bool(self.allowed) or self.log is None or self.stdin_from_host


def plan(
    manifest: Manifest,
    *,
    read_trusted: Callable[[TrustedFile], bytes],
    host_args: Sequence[str] = (),
    host_env: Mapping[str, str] | None = None,
) -> Plan:
    """Work out the plan of a final manifest. Raises MalformedManifest for what Adyton's runtime cannot honour."""
    _refuse_unsupported(manifest)
    notes: list[str] = []
    table = MountTable(manifest.all_mounts)
    for number, place in enumerate(table.places):
        _check_place(place, table.places[:number], manifest)
    entrypoint = _absolute(manifest.entrypoint, manifest.start_dir)
    staged = _staged(manifest, table)
    allowed = _allowed(manifest, table)
    files = {target for entry in staged for target in entry.targets}
    files |= {entry.target for entry in allowed if not entry.is_folder}
    for place in table.places:
        for entry in allowed:
            if below(place.path, entry.target):
                raise MalformedManifest(
                    f"mount {place.path}: it lies in the allowed folder {entry.target}",
                    check="path of the mount",
                    expected="a path outside allowed folders: the host could put a link or a file there",
                    seen=place.path,
                    remedy="mount it beside the allowed folder",
                )
    if table.serving(entrypoint).mount.type == "chroot" and not (
        any(entrypoint in entry.targets for entry in staged)
        or any(below(entrypoint, entry.target) is not None for entry in allowed)
    ):
        raise MalformedManifest(
            f"the entrypoint {entrypoint} is in no trusted file",
            check="libos.entrypoint",
            expected="a trusted file that a mount shows at this path",
            seen=f"{len(staged)} trusted files, none of them seen at {entrypoint}",
            remedy="add it to sgx.trusted_files, and a mount that shows it there",
        )
    for secret in manifest.adyton.secrets:
        if secret.file is not None:
            _check_secret(secret.file, table, staged, allowed)
    if manifest.adyton.egress:
        for path in NAME_FILES:
            _check_name_file(path, table, allowed, manifest.adyton.secrets)
        staged = _without(staged, NAME_FILES)
    return Plan(
        entrypoint=entrypoint,
        argv=_argv(manifest, entrypoint, host_args, read_trusted, notes),
        env=_environment(manifest, host_env or {}, read_trusted),
        uid=manifest.uid,
        gid=manifest.gid,
        start_dir=normalise(manifest.start_dir) or "/",
        staged=staged,
        encrypted=_encrypted(manifest, table, files),
        memory=tuple(
            MemoryMount(place.path, _points(table, place, files))
            for place in table.places
            if place.mount.type == "tmpfs" and place.path
        ),
        allowed=allowed,
        budget_bytes=manifest.adyton.memory_budget_bytes,
        network=manifest.adyton.network,
        log=log_plan(manifest),
        stdin_from_host=manifest.adyton.insecure_stdin,
        fds_limit=manifest.fds_limit,
        stack_bytes=manifest.stack_size_bytes,
        attestation_type=manifest.sgx.remote_attestation,
        domain_names_from_host=manifest.domain_names_from_host,
        secrets=manifest.adyton.secrets,
        insecure_keys=manifest.insecure_keys,
        notes=tuple(notes),
        egress=manifest.adyton.egress,
    )


def with_devices(plan: Plan, nodes: Sequence[DeviceNode]) -> Plan:
    """The plan with device nodes of GPUs. The files of the driver that the program loads must be measured.

    Raises MalformedManifest where libcuda.so.1 is no trusted file that a mount shows.
    """
    shown = {target.rpartition("/")[2] for entry in plan.staged for target in entry.targets}
    if nodes and CUDA_LIBRARY not in shown:
        raise MalformedManifest(
            f"the program has GPUs, and no trusted file shows it {CUDA_LIBRARY}",
            check="files of the GPU's driver",
            expected=f"{CUDA_LIBRARY} and what it loads, among the trusted files, and a mount that shows them",
            seen="no such file",
            remedy="build the manifest where the driver's libraries are installed, in the version of the guest's"
            " driver, with a mount for their folder",
        )
    return replace(plan, devices=tuple(nodes))


def _refuse_unsupported(manifest: Manifest) -> None:
    if not manifest.is_final:
        raise MalformedManifest(
            "this manifest is a template: its trusted files have no hashes yet",
            check="trusted files",
            expected="a file and its SHA-256 each",
            seen="folders, or files without a hash",
            remedy="run `adyton build` on it, and give `adyton run` what that writes",
        )
    check_runtime(manifest)


def _check_place(place: Place, earlier: Sequence[Place], manifest: Manifest) -> None:
    for other in earlier:
        if other.mount.type == "encrypted" and below(place.path, other.path) is not None:
            _check_nested(place, other, manifest)
        covers = other.path and below(other.path, place.path) is not None
        if covers and other.mount.type != "chroot" and place.mount.type != "tmpfs":
            raise MalformedManifest(
                f"mount {place.path or '/'}: it covers the earlier mount {other.path}, which would show in it",
                check="order of the mounts",
                expected="a mount after the one in whose path it lies",
                seen=f"{other.path} before {place.path or '/'}",
                remedy=f"write the mount {other.path} after it, or leave it out",
            )
    for reserved in RESERVED:
        if place.path != SHARED_MEMORY and (place.path == reserved or place.path.startswith(reserved + "/")):
            raise MalformedManifest(
                f"mount {place.path}: the sandbox makes {reserved} itself",
                check="path of the mount",
                expected="a path outside /dev, /proc and /sys",
                seen=place.path,
                remedy="leave this mount out",
            )


def _check_nested(place: Place, outer: Place, manifest: Manifest) -> None:
    """Trusted files and other encrypted mounts may show in an encrypted folder that is served."""
    if place.path == outer.path or not (outer.mount.uri or "").endswith("/"):
        expected = "a path outside encrypted mounts, or below one whose URI ends in /"
    elif place.mount.type not in ("chroot", "encrypted"):
        expected = "a mount of type chroot or encrypted, or a path outside encrypted mounts"
    elif outer.path in {normalise(path) for path in manifest.adyton.read_only}:
        expected = "a path outside encrypted mounts that adyton.read_only names"
    else:
        return
    raise MalformedManifest(
        f"mount {place.path}: it lies in the encrypted mount {outer.path}",
        check="path of the mount",
        expected=expected,
        seen=place.path,
        remedy="mount it beside the encrypted folder",
    )


def _points(table: MountTable, outer: Place, files: Container[str]) -> tuple[Point, ...]:
    """Where later mounts show in this one. `files` are the paths of single trusted and allowed files."""
    found = []
    for place in table.points(outer):
        uri = place.mount.uri or "/"
        is_folder = place.path not in files if place.mount.type == "chroot" else uri.endswith("/")
        found.append(Point(below(place.path, outer.path) or "", is_folder))
    return tuple(found)


def _check_secret(path: str, table: MountTable, staged: Sequence[StagedFile], allowed: Sequence[AllowedFile]) -> None:
    """A secret's file must be in the program's memory, and nothing else's place."""
    serving = table.serving(path)
    taken = {target for entry in staged for target in entry.targets}
    if serving.mount.type == "encrypted":
        problem = f"it would lie in the encrypted mount {serving.path}"
    elif any(below(path, entry.target) is not None for entry in allowed):
        problem = "it would lie in an allowed folder, where the host reads it"
    elif path in taken or any(below(target, path) is not None for target in taken):
        problem = "a trusted file is there"
    elif serving.mount.type == "tmpfs" or any(below(path, reserved) is not None for reserved in RESERVED):
        problem = "what is mounted there would hide it"
    else:
        return
    raise MalformedManifest(
        f"the secret's file {path} cannot be there: {problem}",
        check="adyton.secrets",
        expected="a path of its own, such as /run/secrets/NAME",
        seen=path,
        remedy="give it another path",
    )


def _check_name_file(path: str, table: MountTable, allowed: Sequence[AllowedFile], secrets: Sequence[Secret]) -> None:
    """A file that says what names mean must be in the program's memory, where Adyton writes it."""
    serving = table.serving(path)
    if serving.mount.type != "chroot" and serving.path:
        problem = f"it would lie in the {serving.mount.type} mount {serving.path}"
    elif any(below(path, entry.target) is not None for entry in allowed):
        problem = "it is an allowed file, or in an allowed folder, where the host writes it"
    elif any(secret.file == path for secret in secrets):
        problem = "a secret's file is there"
    else:
        return
    raise MalformedManifest(
        f"{path} says where the program finds the servers of adyton.egress, and cannot be written: {problem}",
        check="adyton.egress",
        expected=f"{path} as Adyton writes it",
        seen=problem,
        remedy="take this mount, allowed file or secret out of the manifest, or give it another path",
    )


def _absolute(path: str, start_dir: str) -> str:
    return normalise(path if path.startswith("/") else posixpath.join(start_dir, path))


def _staged(manifest: Manifest, table: MountTable) -> tuple[StagedFile, ...]:
    allowed = [(normalise(uri[5:]), uri.endswith("/")) for uri in manifest.allowed_files]
    found: dict[tuple[str, ...], StagedFile] = {}
    for entry in manifest.trusted_files:
        if entry.sha256 is None:
            raise UsageError(f"{entry.uri} has no hash")
        path = normalise(entry.host_path)
        if any(path == source or (folder and path.startswith(source + "/")) for source, folder in allowed):
            continue
        targets = tuple(table.inside(entry.host_path))
        if targets:
            # a file may be listed twice, by itself and through its folder
            before = found.setdefault(
                targets,
                StagedFile(entry.host_path, entry.sha256, targets, entry.size_bytes, entry.executable, entry.mtime_s),
            )
            if before.digest != entry.sha256:
                raise MalformedManifest(
                    f"{path} is listed twice, with two contents",
                    check="sgx.trusted_files",
                    expected=before.digest.hex(),
                    seen=entry.sha256.hex(),
                    remedy="list it once, and build the manifest again",
                )
    return tuple(found.values())


def _without(staged: Sequence[StagedFile], paths: Container[str]) -> tuple[StagedFile, ...]:
    """The staged files that show elsewhere than at these paths."""
    kept = (
        replace(entry, targets=tuple(target for target in entry.targets if target not in paths)) for entry in staged
    )
    return tuple(entry for entry in kept if entry.targets)


def _encrypted(manifest: Manifest, table: MountTable, files: Container[str]) -> tuple[EncryptedMount, ...]:
    read_only = {normalise(path) for path in manifest.adyton.read_only}
    found = [
        EncryptedMount(
            place.path,
            place.source or "",
            place.mount.key_name,
            place.path in read_only,
            place.mount.enable_recovery or place.mount.pinned,  # a power cut must not take what a root names
            (place.mount.uri or "").endswith("/"),
            _points(table, place, files),
            folder_id(place.mount.key_name, place.source or "") if place.mount.pinned else "",
        )
        for place in table.places
        if place.mount.type == "encrypted"
    ]
    unknown = read_only - {mount.path for mount in found}
    if unknown:
        raise MalformedManifest(
            f"adyton.read_only names {', '.join(sorted(unknown))}, where no encrypted mount is",
            check="adyton.read_only",
            expected="paths of encrypted mounts",
            seen=", ".join(sorted(unknown)),
            remedy="write the mount's path exactly as in fs.mounts",
        )
    for mount in found:
        if mount.pinned:
            _check_pinned(mount, found)
    return tuple(found)


def _check_pinned(mount: EncryptedMount, every: Sequence[EncryptedMount]) -> None:
    """A pinned folder is one mount's alone, and so is its history beside it."""
    inside = [other.source for other in every if other is not mount and _shares(mount.source, other.source)]
    if not mount.points and not inside:
        return
    raise MalformedManifest(
        f"the pinned folder {mount.source} is not that of one mount alone",
        check=f"pinned mount {mount.path}",
        expected="a folder of its own, with nothing mounted in it",
        seen=", ".join([*inside, *(f"{mount.path}/{point.path}" for point in mount.points)]),
        remedy="give each pinned mount a folder of its own beside the others, and mount nothing in it",
    )


def _shares(folder: str, other: str) -> bool:
    """Whether one of two folders of the host lies in the other, or has the other's history in it."""
    return folder == other or below(other, folder) is not None or below(folder, other) is not None


def _allowed(manifest: Manifest, table: MountTable) -> tuple[AllowedFile, ...]:
    found: list[AllowedFile] = []
    for uri in manifest.allowed_files:
        if not uri.startswith("file:"):
            raise MalformedManifest(
                f"sgx.allowed_files: {uri} is no file", check="sgx.allowed_files", expected="file:…", seen=uri
            )
        source = uri[5:]
        found += [AllowedFile(source, target, source.endswith("/")) for target in table.inside(source)]
    # what lies in an allowed folder shows there already, and a mount there would follow the host's links
    return tuple(one for one in found if not any(below(one.target, other.target) for other in found))


def log_plan(manifest: Manifest) -> LogPlan | None:
    """The encrypted log of a manifest's program. None where the host reads its output. Raises MalformedManifest."""
    if manifest.adyton.insecure_stdio:
        return None
    key_name = manifest.log_key_name
    if key_name is None:
        raise MalformedManifest(
            "the program's output has nowhere to go: there is no key to encrypt the log with",
            check="adyton.log.key_name",
            expected="a key, named there or by an encrypted mount",
            seen="no key at all",
            remedy="name one in adyton.log.key_name, or let the host read all output: adyton.insecure__stdio = true",
        )
    uri = manifest.adyton.log_uri
    return LogPlan(DEFAULT_LOG if uri is None else normalise(uri.partition(":")[2]), key_name)


def _words(content: bytes, name: str) -> list[str]:
    if len(content) > MAX_WORDS_BYTES or (content and not content.endswith(b"\0")):
        raise MalformedManifest(
            f"{name} does not name a list of NUL-terminated strings",
            check=name,
            expected=f"strings that each end in NUL, at most {MAX_WORDS_BYTES} bytes",
            seen=f"{len(content)} bytes",
        )
    return [part.decode("utf-8", "surrogateescape") for part in content.split(b"\0")[:-1]]


def _trusted_source(manifest: Manifest, path: str, name: str) -> TrustedFile:
    wanted = normalise(path)
    for entry in manifest.trusted_files:
        if normalise(entry.host_path) == wanted:
            return entry
    raise MalformedManifest(
        f"{name} names {path}, which is no trusted file",
        check=name,
        expected="a file that sgx.trusted_files lists",
        seen=path,
        remedy="list it there: read unchecked, it would be the host's to choose",
    )


def _argv(
    manifest: Manifest,
    entrypoint: str,
    host_args: Sequence[str],
    read_trusted: Callable[[TrustedFile], bytes],
    notes: list[str],
) -> tuple[str, ...]:
    if manifest.use_cmdline_argv:
        return (entrypoint, *host_args)
    if manifest.argv is not None:
        found = manifest.argv
    elif manifest.argv_src_file is not None:
        path = manifest.argv_src_file.removeprefix("file:")
        content = read_trusted(_trusted_source(manifest, path, "loader.argv_src_file"))
        found = tuple(_words(content, "loader.argv_src_file"))
        if not found:
            raise MalformedManifest(
                "loader.argv_src_file is empty", check="argv", expected="at least one string", seen=0
            )
    elif host_args:
        raise UsageError(
            "this manifest takes no arguments",
            check="arguments of the program",
            expected="none: the manifest says neither loader.argv nor loader.insecure__use_cmdline_argv",
            seen=" ".join(host_args)[:160],
            remedy="write them into loader.argv, so that they are measured",
        )
    else:
        return (entrypoint,)
    if host_args:
        notes.append("arguments on the command line are ignored: the manifest gives the program its own")
    return found


def _environment(
    manifest: Manifest, host_env: Mapping[str, str], read_trusted: Callable[[TrustedFile], bytes]
) -> dict[str, str]:
    if manifest.use_host_env:
        found = dict(host_env)
    elif manifest.env_src_file is not None:
        path = manifest.env_src_file.removeprefix("file:")
        content = read_trusted(_trusted_source(manifest, path, "loader.env_src_file"))
        found = {}
        for word in _words(content, "loader.env_src_file"):
            name, equals, value = word.partition("=")
            if not name or not equals:
                raise MalformedManifest(
                    "loader.env_src_file holds a string that sets no variable",
                    check="environment",
                    expected="NAME=value",
                )
            found[name] = value
    else:
        found = {name: host_env[name] for name in manifest.env_passthrough if name in host_env}
    found.update(manifest.env)
    return found
