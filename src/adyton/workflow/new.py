"""A manifest template for a program, proposed from one native run of it."""

from __future__ import annotations

import grp
import os
import pwd
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adyton.atomic_file import write_file
from adyton.errors import TargetExists, UsageError
from adyton.keystore.names import check_name
from adyton.manifest.identity_files import User
from adyton.manifest.observe import observe
from adyton.manifest.propose import propose
from adyton.workflow.program import find_program
from adyton.workflow.progress import unheard
from adyton.workflow.server_watch import DEFAULT_WATCH_S, ServerWatch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from adyton.manifest.native_differences import Difference
    from adyton.manifest.propose import DataMount
    from adyton.workflow.progress import Notice


@dataclass(frozen=True, slots=True)
class Proposed:
    """The template and the list of trusted files that were written, and what the run showed."""

    template: Path
    trusted_list: Path
    trusted_files: int
    data: tuple[DataMount, ...]
    storage: tuple[str, ...]
    """Folders of the encrypted storage that must be there before the first run."""
    left_out: tuple[str, ...]
    differences: tuple[Difference, ...]
    """What the program will find otherwise than in this run."""
    peak_bytes: int
    peak_threads: int
    wall_s: float

    def to_dict(self) -> dict[str, Any]:
        """As `adyton new --json` says it."""
        return {
            "template": str(self.template),
            "list": str(self.trusted_list),
            "trusted_files": self.trusted_files,
            "data": [
                {
                    "path": mount.path,
                    "source": mount.source,
                    "encrypted": mount.encrypted,
                    "input": mount.is_input,
                    "output": mount.is_output,
                }
                for mount in self.data
            ],
            "left_out": list(self.left_out),
            "differences": [difference.to_dict() for difference in self.differences],
            "peak_bytes": self.peak_bytes,
            "peak_threads": self.peak_threads,
            "wall_s": self.wall_s,
        }


def new(
    script: str | Path,
    *arguments: str,
    name: str | None = None,
    python: str | Path | None = None,
    key: str = "default",
    force: bool = False,
    serve: int | None = None,
    watch: float | None = None,
    client: str | None = None,
    pinned: bool = False,
    notice: Notice = unheard,
) -> Proposed:
    """Run a program once in the current folder and write NAME.manifest.template, as `adyton new` does.

    `script` is a Python script, a folder with __main__.py, any program, or `-m` before a module's name. `python` is the
    interpreter; without it, that of the active environment is taken, else the one that runs Adyton. The run is a real
    one: the program's outputs are written. `key` names the key of its inputs and outputs.

    With `serve` the program is a server on this port of 127.0.0.1. It is ended by SIGTERM once it has answered a
    request (GET /), after `watch` seconds (120 by default) at the latest. The template then has an ingress for clients.
    `client` is a command that is run before that end, `{addr}` in it the server's address. Its requests make the server
    load what it loads late.

    With `pinned` each folder of data is pinned: the program refuses an older or missing file in it (`adyton pin`).

    Raises UsageError, TargetExists, and RunError where the program fails.
    """
    program = find_program(script, arguments, python=python)
    name = check_name(name or program.name, "--name")
    template, listing = Path(f"{name}.manifest.template"), Path(f"{name}.trusted")
    if not force:
        _check_absent((template, listing))
    server = _watch(serve, watch, client)
    notice(f"running {' '.join(program.command[:2])} once, natively")
    cpus = len(os.sched_getaffinity(0))
    seen = observe(program.command, Path.cwd(), server)
    found = propose(
        seen,
        name=name,
        script=program.file,
        cpus=cpus,
        key_name=key,
        environment=os.environ,
        user=_user(os.environ),
        pinned=pinned,
    )
    if not force:
        _check_absent(Path(file.name) for file in found.files)
    for file in found.files:
        write_file(Path(file.name), file.text.encode())
    write_file(template, found.template.encode())
    write_file(listing, found.trusted_list.encode())
    return Proposed(
        template,
        listing,
        len(found.trusted),
        found.data,
        found.storage,
        found.left_out,
        found.differences,
        seen.peak_bytes,
        seen.peak_threads,
        seen.wall_s,
    )


def _watch(serve: int | None, seconds: float | None, client: str | None) -> ServerWatch | None:
    if serve is not None:
        return ServerWatch(serve, DEFAULT_WATCH_S if seconds is None else seconds, client)
    if seconds is not None or client is not None:
        raise UsageError(
            "only a server is watched for a time, and has clients",
            check="--watch" if seconds is not None else "--client",
            expected="--serve PORT, too",
            seen="alone",
            remedy="name the server's port: --serve PORT",
        )
    return None


def _check_absent(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.exists():
            raise TargetExists(
                f"{path} exists already", check="target", expected="no such file", seen=str(path), remedy="give --force"
            )


def _user(environment: Mapping[str, str]) -> User:
    """Who runs this, as the system knows it; where it knows nobody of this id, the name that the session has."""
    uid, gid = os.getuid(), os.getgid()
    try:
        entry = pwd.getpwuid(uid)
        name, home = entry.pw_name, entry.pw_dir
    except KeyError:
        name, home = environment.get("USER", ""), environment.get("HOME", "/")
    try:
        group = grp.getgrgid(gid).gr_name
    except KeyError:
        group = name
    return User(name, group, uid, gid, home)
