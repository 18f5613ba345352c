"""An observed native run -> a manifest template that a person can read and change, and the list of files it needs.

Files that the program read are sorted by where they lie. Files of the interpreter, its packages and the system are
trusted: the measurement binds them. Files of the project that are neither program text nor written are data, hence
encrypted inputs. Files that the program wrote are encrypted outputs.
"""
# Paths are text here, compared as the trace names them.
# ruff: noqa: PTH110, PTH111, PTH112, PTH113, PTH116, PTH117, PTH118, PTH119, PTH120, PTH123

from __future__ import annotations

import os
import re
import stat
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import tomli_w

from adyton.errors import UsageError
from adyton.manifest.host import interpreter_of
from adyton.manifest.identity_files import ROOT, IdentityFile, User, identity_files
from adyton.manifest.ingress import DEFAULT_LISTEN, TARGET_HOST, ingress_name
from adyton.manifest.native_differences import Difference, differences
from adyton.manifest.observe import Observation
from adyton.manifest.open_folders import (
    SANDBOX_MAKES,
    SYSTEM,
    TEMPORARY,
    TEMPORARY_MOUNTS,
    is_below,
    is_temporary,
    outermost,
    points,
    writing_folders,
)
from adyton.manifest.schema_check import format_size
from adyton.manifest.sizing import Sizing, power_of_two, size_for

WORK_NAMES: Final = ("/work", "/project", "/program", "/adyton-work")
STORAGE: Final = "encrypted"
OUTSIDE: Final = "encrypted-outside"
"""For what lies outside the working folder, where that folder is itself an encrypted one."""
LOOKED_AT_LIMIT_BYTES: Final = 1 << 20
_MAX_INTERPRETERS: Final = 4
_MAX_HEAD_BYTES: Final = 256
_MAX_POINTER_BYTES: Final = 1 << 20

_HOST_STATE: Final = (
    "/etc/ld.so.cache",
    "/etc/ld.so.preload",
    "/etc/passwd",
    "/etc/group",
    "/etc/shadow",
    "/etc/nsswitch.conf",
    "/etc/hosts",
    "/etc/hostname",
    "/etc/host.conf",
    "/etc/resolv.conf",
    "/etc/machine-id",
    "/etc/localtime",
    "/etc/timezone",
    "/etc/mtab",
    "/etc/fstab",
)
_PROGRAMS: Final = ("/usr/local/bin", "/usr/bin", "/bin")
_KEPT: Final = ("USER", "LOGNAME", "TZ", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "LANG", "LANGUAGE")
_LOCALE: Final = re.compile(r"LC_[A-Z]+")
_LOCALTIME: Final = "/etc/localtime"
_ZONES: Final = "/zoneinfo/"
_ORDINARY: Final = re.compile(
    r"_|PATH|HOME|PWD|OLDPWD|SHELL|SHLVL|TERM|COLORTERM|USER|LOGNAME|MAIL|HOSTNAME|LANG|LANGUAGE|LC_\w+|TZ|EDITOR|PAGER"
    r"|LESS\w*|LS_COLORS|DISPLAY|(DBUS|XDG|SSH|GPG|SUDO|VIRTUAL_ENV|TMUX|WAYLAND|ADYTON)(_\w+)?|PS1|TMPDIR|DEBUGINFOD_URLS"
    r"|PYTHON(DONTWRITEBYTECODE|UNBUFFERED|WARNINGS)|[^A-Za-z_].*|.*[^A-Za-z0-9_].*"
)
"""Variables of a person's session, which say nothing about a program."""
_CODE: Final = re.compile(
    r"\.(py|pyi|so|pyd|sh|js|lua|r|jl)$|\.so\.[0-9.]+$|/__pycache__/[^/]+\.pyc$|\.(egg|dist)-info/", re.IGNORECASE
)
_PYC: Final = re.compile(r"^(.*)/__pycache__/([^/]+?)\.([A-Za-z]+-[0-9]+)(?:\.opt-[12])?\.pyc$")
_SEARCHED: Final = re.compile(r"^(/usr)?/lib(64)?(/[a-z0-9_]+-linux-gnu[a-z0-9]*)?$")
_ROOTS: Final = re.compile(r"^(.*/lib/python3(?:\.[0-9]+)?)(?:/|$)")


@dataclass(frozen=True, slots=True)
class DataMount:
    """A file or folder of data: where the program expects it, and where its encrypted form lies."""

    path: str
    source: str
    encrypted: str
    is_folder: bool
    is_input: bool
    is_output: bool
    is_mounted: bool = True
    """Whether it has a mount of its own. Without, it shows in an open folder."""
    is_writable: bool = True
    is_pinned: bool = False


@dataclass(frozen=True, slots=True)
class Proposal:
    """The template that `adyton new` writes, and its words about it."""

    name: str
    template: str
    trusted_list: str
    trusted: tuple[str, ...]
    left_out: tuple[str, ...]
    files: tuple[IdentityFile, ...]
    """Trusted files to be written beside the template."""
    data: tuple[DataMount, ...]
    storage: tuple[str, ...]
    """Folders of the storage that must be there before the first run."""
    differences: tuple[Difference, ...]
    sizing: Sizing


def propose(
    seen: Observation,
    *,
    name: str,
    script: str | None,
    cpus: int,
    key_name: str = "default",
    environment: Mapping[str, str] | None = None,
    user: User = ROOT,
    pinned: bool = False,
) -> Proposal:
    """Make the proposal. `script` is the program's own file (always trusted), relative to the working folder or not.

    None where it has none, as for a module of Python's. `user` is who ran the program. With `pinned` each folder of
    data is held to the root that the key server keeps.
    """
    program = None if script is None else os.path.normpath(os.path.join(seen.cwd, script))
    code, inputs, left_out = _sort_reads(seen, program)
    written = _written(seen, code)
    trusted = _complete(code, seen)
    if zone := _time_zone(seen):
        trusted = list(dict.fromkeys([*trusted, f"/usr/share{_ZONES}{zone}"]))
    inside = _Inside(seen.cwd, (*trusted, *inputs, *written), stays=_is_named(seen, trusted))
    home = (environment or {}).get("HOME", "")
    files = identity_files(left_out, program=name, user=replace(user, home=inside.argument(user.home)))
    left_out = [path for path in left_out if path not in {file.path for file in files}]
    layout = _layout(seen, inputs, written, trusted, inside, files, home=home, key_name=key_name, pinned=pinned)
    sizing = size_for(seen.peak_bytes, seen.peak_threads, cpus, source="peak of the native run")
    libraries = _library_folders(trusted)
    entry = seen.command[0] if os.path.isabs(seen.command[0]) else seen.executed[0]
    argv = [inside.path(entry), *(inside.argument(text) for text in seen.command[1:])]
    data = layout.data
    read_bytes = _total([mount.source for mount in data if mount.is_input])
    budget = power_of_two(_total(trusted) + 2 * (read_bytes + seen.peak_shared_bytes) + (512 << 20))
    variables = _variables(environment or {}, libraries, sizing, inside, seen, trusted)
    not_taken = sorted(name for name in environment or {} if name not in variables and not _ORDINARY.fullmatch(name))
    template = _template(
        name=name,
        seen=seen,
        entry=inside.path(entry),
        argv=argv,
        variables=variables,
        not_taken=not_taken,
        layout=layout,
        key_name=key_name,
        sizing=sizing,
        budget=max(budget, 1 << 30),
        start_dir=inside.work,
        user=user,
    )
    listed = sorted([*(inside.uri_path(path) for path in trusted), *(file.name for file in files)])
    return Proposal(
        name=name,
        template=template,
        trusted_list=_list_text(name, listed, left_out),
        trusted=tuple(listed),
        left_out=tuple(left_out),
        files=files,
        data=tuple(data),
        storage=layout.storage,
        differences=differences(seen, data=data, not_taken=not_taken, left_out=left_out, identity=files),
        sizing=sizing,
    )


class _Inside:
    """Where the paths of the native run are inside: the working folder is `work`, everything else stays.

    `work` is the first of WORK_NAMES below which nothing else lies that the program uses, such as its interpreter. With
    `stays` the working folder keeps its path too.
    """

    def __init__(self, cwd: str, used: Iterable[str], *, stays: bool) -> None:
        self.cwd = cwd.rstrip("/")
        if stays:
            self.work = self.cwd
            return
        taken = {"/" + path.split("/", 2)[1] for path in used if self.below(path) is None}
        self.work = next((name for name in WORK_NAMES if name not in taken), "")
        if not self.work:
            raise UsageError(
                "every name that the working folder could have inside is taken by other files of the program",
                check="top-level folders of the files that the program used",
                expected=f"one of {', '.join(WORK_NAMES)} free",
                seen="all in use",
                remedy="move one of them, or write the template by hand",
            )

    def below(self, path: str) -> str | None:
        """A path relative to the working folder, or None where it is not below it."""
        if path == self.cwd:
            return ""
        return path[len(self.cwd) + 1 :] if path.startswith(self.cwd + "/") else None

    def is_in(self, path: str, folder: str) -> bool:
        """Whether a path shows in this folder: below the working folder only what lies there is in it."""
        return is_below(path, (folder,)) and (self.below(path) is None or self.below(folder) is not None)

    def path(self, path: str) -> str:
        rest = self.below(path)
        return path if rest is None else f"{self.work}/{rest}".rstrip("/")

    def uri_path(self, path: str) -> str:
        rest = self.below(path)
        return path if rest is None else rest or "."

    def argument(self, text: str) -> str:
        return self.path(text) if self.below(text) is not None else text

    def list_of(self, text: str) -> str:
        return ":".join(self.argument(part) for part in text.split(":") if part)


def _sort_reads(seen: Observation, program: str | None) -> tuple[dict[str, None], dict[str, None], list[str]]:
    """(program text and system files, data, host state that was read but is better left out)."""
    code: dict[str, None] = {} if program is None else {program: None}
    inputs: dict[str, None] = {}
    left_out: list[str] = []
    roots = _code_roots(seen)
    for path in (*seen.read, *seen.looked_at):
        if is_below(path, SANDBOX_MAKES) or not _is_file(path) or path in code:
            continue
        only_looked = path not in seen.read
        if path in _HOST_STATE:
            if not only_looked:
                left_out.append(path)
        elif is_below(path, roots) or path in seen.executed or _CODE.search(path):
            if not only_looked or os.stat(path).st_size <= LOOKED_AT_LIMIT_BYTES:
                code[path] = None
        elif not only_looked:
            inputs[path] = None
    return code, inputs, left_out


def _code_roots(seen: Observation) -> tuple[str, ...]:
    """Folders whose files belong to the system, the interpreter or its packages."""
    roots = set(SYSTEM)
    for path in (*seen.read, *seen.executed):
        if match := _ROOTS.match(path):
            roots.add(match[1])
            if Path(match[1]).parent.parent.joinpath("pyvenv.cfg").exists():
                roots.add(str(Path(match[1]).parent.parent))
    return tuple(root for root in roots if root != seen.cwd)


def _written(seen: Observation, code: Mapping[str, None]) -> dict[str, None]:
    """The files that were written and are still there, without caches and temporary files."""
    found: dict[str, None] = {}
    for path in seen.written:
        if is_temporary(path, seen.cwd) or is_below(path, SANDBOX_MAKES) or "/__pycache__" in path or path in code:
            continue
        if os.path.exists(path):
            found[path] = None
    return found


def _complete(code: Mapping[str, None], seen: Observation) -> list[str]:
    """Sources beside their cached bytecode and the other way round, and the ELF interpreters of programs."""
    found = dict(code)
    tags = {match[3] for path in code if (match := _PYC.match(path))}
    for path in list(code):
        match = _PYC.match(path)
        if match and _is_file(f"{match[1]}/{match[2]}.py"):
            found[f"{match[1]}/{match[2]}.py"] = None
        elif path.endswith(".py") and not is_below(path, (seen.cwd,)):
            folder, _, base = path.rpartition("/")
            for tag in tags:
                cached = f"{folder}/__pycache__/{base[:-3]}.{tag}.pyc"
                if _is_file(cached):
                    found[cached] = None
    for path in seen.executed:
        for interpreter in _interpreters(path):
            found[interpreter] = None
    for path in _compiled_modules(found):
        found[path] = None
    return [path for path in found if not (_PYC.match(path) and is_below(path, (seen.cwd,)))]


def _compiled_modules(trusted: Iterable[str]) -> list[str]:
    """One file of each standard library's `lib-dynload` that would be empty, and so would not be there.

    Python looks for that folder when it starts. Without it Python prints that it could not find platform dependent
    libraries.
    """
    files = tuple(trusted)
    found = []
    for root in sorted({match[1] for path in files if (match := _ROOTS.match(path))}):
        folder = f"{root}/lib-dynload"
        if not os.path.isdir(folder) or any(path.startswith(f"{folder}/") for path in files):
            continue
        held = sorted(path for path in map(str, Path(folder).iterdir()) if _is_file(path))
        if held:
            found.append(min(held, key=os.path.getsize))
    return found


def _interpreters(path: str) -> list[str]:
    """What the kernel opens to run a file, and no trace shows: programs after `#!`, and ELF interpreters."""
    found: list[str] = []
    while len(found) < _MAX_INTERPRETERS and _is_file(path):
        words = _first_line(path)
        loader = words[0] if words else interpreter_of(Path(path))
        if loader is None:
            break
        found.append(loader)
        path = loader
    return found


def _first_line(path: str) -> list[str]:
    """The words after `#!` at a file's head; none where there is no such head."""
    try:
        with open(path, "rb") as file:
            head = file.read(_MAX_HEAD_BYTES)
    except OSError:
        return []
    return os.fsdecode(head[2:].partition(b"\n")[0]).split() if head.startswith(b"#!") else []


def _is_named(seen: Observation, trusted: list[str]) -> bool:
    """Whether files of the program name the working folder by its path, so that it must keep it inside.

    An editable installation does (a .pth file, or a module that finds it), and so does the `#!` of a program that an
    environment in this folder holds.
    """
    cwd = seen.cwd.rstrip("/")
    if any(is_below(word, (cwd,)) for path in seen.executed if _is_file(path) for word in _first_line(path)):
        return True
    for path in trusted:
        name = os.path.basename(path)
        if (name.endswith(".pth") or name.startswith("__editable__")) and "__pycache__" not in path:
            with open(path, "rb") as file:
                if os.fsencode(cwd) in file.read(_MAX_POINTER_BYTES):
                    return True
    return False


@dataclass(frozen=True, slots=True)
class _Group:
    """Data that belongs together: a file, or a folder that holds nothing but data."""

    path: str
    is_folder: bool
    is_input: bool
    is_output: bool


@dataclass(frozen=True, slots=True)
class _Layout:
    """The lines of the template for the mounts, outer mounts first; the data; folders of the storage to make."""

    lines: tuple[str, ...]
    data: tuple[DataMount, ...]
    storage: tuple[str, ...]


def _groups(
    inputs: Mapping[str, None], written: Mapping[str, None], trusted: list[str], inside: _Inside
) -> list[_Group]:
    """Group data by folder where a folder holds nothing but data, else file by file."""
    folders_of_code = {str(parent) for path in trusted for parent in Path(path).parents}
    groups: dict[str, list[str]] = {}
    for path in (*inputs, *written):
        folder = path if os.path.isdir(path) else os.path.dirname(path)
        rest = inside.below(folder)
        shared = rest == "" or folder in folders_of_code or folder in ("/", os.path.expanduser("~"))
        groups.setdefault(path if shared and not os.path.isdir(path) else folder, []).append(path)
    found = []
    for top in sorted(outermost(groups)):
        members = [path for group, paths in groups.items() if is_below(group, (top,)) for path in paths]
        is_input, is_output = (any(path in among for path in members) for among in (inputs, written))
        found.append(_Group(top, os.path.isdir(top), is_input, is_output))
    return found


def _layout(
    seen: Observation,
    inputs: Mapping[str, None],
    written: Mapping[str, None],
    trusted: list[str],
    inside: _Inside,
    files: tuple[IdentityFile, ...],
    *,
    home: str,
    key_name: str,
    pinned: bool,
) -> _Layout:
    """Find where everything shows.

    A folder of nothing but data has a mount of its own. Any other folder in which the run made, replaced or removed
    files is an encrypted folder too. In it lie the data that is written, and mounts that show trusted files and data
    that is only read. The home is memory around what was used of it, where nothing was written in it.
    """
    writing = writing_folders(seen)
    groups = _groups(inputs, written, trusted, inside)
    writable = {group.path for group in groups if group.is_output or any(is_below(w, (group.path,)) for w in writing)}
    folders = outermost(writing + [group.path for group in groups if group.is_folder and group.path in writable])
    alone = {group.path for group in groups if group.path in folders}
    opened = [folder for folder in folders if folder not in alone]
    memory = [home] if _is_memory(home, [*folders, seen.cwd]) else []
    temporary = _temporary(seen)
    outside = OUTSIDE if inside.cwd in opened else STORAGE

    def encrypted(path: str) -> str:
        rest = inside.below(path)
        return f"{outside}/{path.lstrip('/')}" if rest is None else f"{STORAGE}/{rest}".rstrip("/")

    data = [
        DataMount(
            path=inside.path(group.path),
            source=inside.below(group.path) or group.path,
            encrypted=encrypted(group.path),
            is_folder=group.is_folder,
            is_input=group.is_input,
            is_output=group.is_output,
            is_mounted=group.path in alone or group.path not in writable or not is_below(group.path, opened),
            is_writable=group.path in writable,
            is_pinned=pinned and group.is_folder and (group.path in alone or group.path not in writable),
        )
        for group in groups
    ]
    mounts: list[tuple[str, tuple[str, ...]]] = [
        (path, (_mount_line(path, uri),)) for path, uri in _chroots(trusted, inside, [*opened, *memory], temporary)
    ]
    mounts += [(path, (_memory_line(path),)) for path in (*temporary, *memory)]
    mounts += [(file.path, (_mount_line(file.path, f"file:{file.name}"),)) for file in files]
    for folder in opened:
        lines = _encrypted_lines(inside.path(folder), encrypted(folder), "written", key_name, is_folder=True)
        mounts.append((inside.path(folder), lines))
    for folder in (*opened, *memory):
        mine = [path for path in trusted if inside.is_in(path, folder)]
        for path, _ in points(folder, mine, [group.path for group in groups if inside.is_in(group.path, folder)]):
            mounts.append((inside.path(path), (_mount_line(inside.path(path), f"file:{inside.uri_path(path)}"),)))
    for item in data:
        if item.is_mounted:
            role = "read and written" if item.is_input and item.is_output else "read" if item.is_input else "written"
            lines = _encrypted_lines(
                item.path,
                item.encrypted,
                role,
                key_name,
                is_folder=item.is_folder,
                pinned=item.is_pinned,
                can_pin=item.is_folder and item.is_writable,
            )
            mounts.append((item.path, lines))
    holding = [group.path for group in groups if group.is_input]  # the folders of what is encrypted come with it
    empty = [
        folder for folder in writing if is_below(folder, opened) and not any(is_below(h, (folder,)) for h in holding)
    ]
    made = {encrypted(folder) for folder in (*opened, *empty)}
    made |= {item.encrypted for item in data if item.is_mounted and not item.is_input}
    mounts.sort(key=lambda mount: mount[0].count("/"))
    return _Layout(tuple(line for _, lines in mounts for line in lines), tuple(data), tuple(sorted(made)))


def _is_memory(home: str, used: list[str]) -> bool:
    """Whether the home inside is memory: it is a home, and nothing else has its place."""
    return (
        os.path.isabs(home)
        and home == os.path.normpath(home) != "/"
        and os.path.isdir(home)
        and not is_below(home, [*used, *SYSTEM, *SANDBOX_MAKES, *TEMPORARY])
    )


def _temporary(seen: Observation) -> tuple[str, ...]:
    """The folders for temporary files that are memory inside: /tmp always, /var/tmp where the run used it."""
    used = (*seen.touched, *seen.read, *seen.looked_at)
    return tuple(
        folder
        for folder in TEMPORARY_MOUNTS
        if folder == TEMPORARY_MOUNTS[0]
        or any(is_below(path, (folder,)) and is_temporary(path, seen.cwd) for path in used)
    )


def _mount_line(path: str, uri: str) -> str:
    return f"  {{ path = {_toml(path)}, uri = {_toml(uri)} }},"


def _memory_line(path: str) -> str:
    return f'  {{ type = "tmpfs", path = {_toml(path)} }},'


def _encrypted_lines(
    path: str, encrypted: str, role: str, key_name: str, *, is_folder: bool, pinned: bool = False, can_pin: bool = False
) -> tuple[str, ...]:
    uri = _toml(f"file:{encrypted}{'/' if is_folder else ''}")
    more = ", pinned = true" if pinned else ""
    words = f"  # To notice older or missing files: pinned = true here, and adyton pin {encrypted} --key {key_name}"
    proposed = (words,) if can_pin and not pinned else ()
    return (
        f"  # {role} by the program as {path}; the host sees only {encrypted}",
        *proposed,
        f'  {{ type = "encrypted", path = {_toml(path)}, uri = {uri}, key_name = {_toml(key_name)}{more} }},',
    )


def _chroots(trusted: list[str], inside: _Inside, others: list[str], temporary: Iterable[str]) -> list[tuple[str, str]]:
    """(path, uri) of the mounts that show the trusted files outside these other folders where the program expects them.

    Below a folder for temporary files they are one folder longer: it is memory, in which they are mounted.
    """
    tops = set()
    for path in trusted:
        if inside.below(path) is None and not is_below(path, others):
            depth = next((folder.count("/") for folder in temporary if is_below(path, (folder,))), 0)
            tops.add("/".join(path.split("/")[: depth + 2]))
    found = [(top, f"file:{top}") for top in sorted(tops)]
    return found if inside.cwd in others else [*found, (inside.work, "file:.")]


def _library_folders(trusted: list[str]) -> list[str]:
    """Folders of the system's shared libraries that the dynamic linker does not search by itself."""
    folders = {os.path.dirname(path) for path in trusted if re.search(r"\.so(\.[0-9.]+)?$", path)}
    return sorted(
        folder
        for folder in folders
        if is_below(folder, ("/usr", "/lib"))
        and not _SEARCHED.match(folder)
        and not re.search(r"python|/(gconv|ossl-modules|engines-3)$", folder)
    )


def _variables(
    environment: Mapping[str, str],
    libraries: list[str],
    sizing: Sizing,
    inside: _Inside,
    seen: Observation,
    trusted: list[str],
) -> dict[str, str]:
    """The program's environment: what programs expect, and what names a file or folder that the run used."""
    folders = {os.path.dirname(path) for path in trusted}
    searched = [folder for folder in environment.get("PATH", "").split(":") if folder in folders]
    found = {
        "PATH": inside.list_of(":".join(dict.fromkeys([*searched, *_PROGRAMS]))),
        "HOME": inside.argument(environment.get("HOME") or inside.work),
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": environment.get("OMP_NUM_THREADS") or str(sizing.omp_threads),
    }
    found |= {
        name: value for name, value in environment.items() if value and (name in _KEPT or _LOCALE.fullmatch(name))
    }
    if "TZ" not in found and (zone := _time_zone(seen)):
        found["TZ"] = zone
    used = {parent for path in (*seen.read, *seen.touched) for parent in _and_parents(path)}
    found |= {
        name: inside.argument(value)
        for name, value in environment.items()
        if name not in found and os.path.isabs(value) and value.rstrip("/") in used and not _ORDINARY.fullmatch(name)
    }
    if environment.get("LD_LIBRARY_PATH") or libraries:
        parts = [part for part in environment.get("LD_LIBRARY_PATH", "").split(":") if part]
        found["LD_LIBRARY_PATH"] = inside.list_of(":".join(dict.fromkeys([*parts, *libraries])))
    if environment.get("PYTHONPATH"):
        found["PYTHONPATH"] = inside.list_of(environment["PYTHONPATH"])
    return found


def _and_parents(path: str) -> Iterable[str]:
    while path != "/":
        yield path
        path = os.path.dirname(path)


def _time_zone(seen: Observation) -> str | None:
    """The name of the machine's time zone, where the program asked for local time and it is not UTC."""
    if _LOCALTIME not in seen.read:
        return None
    _, found, name = os.path.realpath(_LOCALTIME).partition(_ZONES)
    return name if found and name not in ("UTC", "Etc/UTC") else None


def _total(paths: list[str]) -> int:
    total = 0
    for path in paths:
        try:
            found = os.stat(path)
        except OSError:
            continue
        if stat.S_ISDIR(found.st_mode):
            total += sum(entry.stat().st_size for entry in Path(path).rglob("*") if entry.is_file())
        else:
            total += found.st_size
    return total


def _is_file(path: str) -> bool:
    return os.path.isfile(path) and os.access(path, os.R_OK) and path.isprintable() and path == path.strip()


def _toml(value: object) -> str:
    return tomli_w.dumps({"x": value})[4:].rstrip("\n").replace("\n    ", "\n  ")


def _template(
    *,
    name: str,
    seen: Observation,
    entry: str,
    argv: list[str],
    variables: Mapping[str, str],
    not_taken: list[str],
    layout: _Layout,
    key_name: str,
    sizing: Sizing,
    budget: int,
    start_dir: str,
    user: User,
) -> str:
    data = layout.data
    steps = ["adyton init", f"adyton key new {key_name}"]
    steps += [
        f"adyton encrypt {_shell(m.source)} -o {_shell(m.encrypted)} --key {key_name}" for m in data if m.is_input
    ]
    if layout.storage:
        steps.append(f"mkdir -p {' '.join(map(_shell, layout.storage))}")
    steps += [f"adyton build {name}.manifest.template", f"adyton approve {name}.manifest --key {key_name} --tee TEE"]
    steps += [
        "adyton serve --listen 127.0.0.1:4433",
        f"adyton run {name}.manifest --tee TEE --key-server 127.0.0.1:4433",
    ]
    steps += [
        f"adyton decrypt {_shell(m.encrypted)} -o {_shell(m.source)} --key {key_name}" for m in data if m.is_output
    ]
    lines = [f"# {name}: made by `adyton new` from one native run ({seen.wall_s:.1f} s). Change it freely.", "#"]
    lines += [f"#   {step}" for step in steps]
    lines += ["", f"libos.entrypoint = {_toml(entry)}", "# The arguments are measured: the host cannot change them."]
    lines += [f"loader.argv = [{', '.join(_toml(text) for text in argv)}]", f"fs.start_dir = {_toml(start_dir)}"]
    if user.uid or user.gid:
        lines.append("# The user and group that the program sees itself as, as in the native run.")
        lines += [f"loader.uid = {user.uid}", f"loader.gid = {user.gid}"]
    lines.append("")
    lines.append("# The whole environment of the program; nothing comes from the host.")
    for variable, value in variables.items():
        if variable == "OMP_NUM_THREADS":
            lines.append(f"# {sizing.omp_reason}.")
        lines.append(f"loader.env.{variable} = {_toml(value)}")
    if not_taken:
        told = f"Set in the native run, and not taken over; name here what the program needs: {', '.join(not_taken)}."
        lines += textwrap.wrap(told, 112, initial_indent="# ", subsequent_indent="#   ", break_on_hyphens=False)
    lines += ["", "fs.mounts = [", "  # Of folders without a type only the trusted files are visible."]
    lines += layout.lines
    lines += [
        "]",
        "",
        "[adyton]",
        "# The files that the program may read, each bound to its hash by `adyton build`: one path a line in",
        f"# {name}.trusted.",
        f"trusted_from = [{_toml(f'file:{name}.trusted')}]",
    ]
    read_only = [mount.path for mount in data if not mount.is_writable]
    if read_only:
        lines.append("# Inputs that are only read are decrypted once, into private memory, before the start.")
        lines.append(f"read_only = [{', '.join(_toml(path) for path in read_only)}]")
    lines.append("# Private memory for trusted files and read-only inputs; what exceeds it is read block by block.")
    lines.append(f"memory_budget = {_toml(format_size(budget))}")
    lines.append('# "host" gives the program the host\'s network, which sees and can change every byte.')
    lines.append('network = "none"')
    if not layout.storage and not data:
        lines.append("# No key, hence no encrypted log: what the program prints goes to the host in clear.")
        lines.append("insecure__stdio = true")
    lines += [
        "",
        "[sgx]",
        "# These matter under --tee sgx only, but for remote_attestation.",
        'remote_attestation = "dcap"',
    ]
    lines += [f"# {sizing.enclave_reason}", f"enclave_size = {_toml(format_size(sizing.enclave_bytes))}"]
    lines += [f"# {sizing.threads_reason}", f"max_threads = {sizing.max_threads}", ""]
    if seen.server is not None:
        lines += _ingress_lines(name, seen.server.port)
    return _escape_jinja("\n".join(lines))


def _ingress_lines(name: str, port: int) -> list[str]:
    return [
        "# Where clients reach the server, each connection proved to them (adyton connect).",
        "[[adyton.ingress]]",
        f"name = {_toml(ingress_name(name))}",
        "# On the host's network; and where the server listens, in its own network.",
        f"listen = {_toml(DEFAULT_LISTEN)}",
        f"target = {_toml(f'{TARGET_HOST}:{port}')}",
        "",
    ]


def _escape_jinja(text: str) -> str:
    """Text that renders to itself."""
    if not any(mark in text for mark in ("{{", "{%", "{#")):
        return text
    return "{% raw %}" + text + "{% endraw %}\n"


def _shell(text: str) -> str:
    return text if re.fullmatch(r"[A-Za-z0-9_./@%+=:,-]+", text) else "'" + text.replace("'", "'\"'\"'") + "'"


def _list_text(name: str, listed: list[str], left_out: list[str]) -> str:
    lines = [
        f"# Files that {name} may read, found by `adyton new`: one path a line, `/` at the end means all below.",
        "# Relative paths are relative to the folder where `adyton build` and `adyton run` are started.",
        *(f"./{path}" if path.startswith("#") else path for path in listed),
    ]
    if left_out:
        lines += ["# Read by the native run, but the host's own state; take the # away where the program needs it:"]
        lines += [f"# {path}" for path in left_out]
    return "\n".join(lines) + "\n"
