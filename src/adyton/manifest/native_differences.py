"""What a program will find otherwise inside than in the native run that was watched, and what to do about it."""
# Paths are text here, compared as the trace names them.
# ruff: noqa: PTH113, PTH114, PTH116, PTH118

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from adyton.manifest.identity_files import IdentityFile
from adyton.manifest.observe import Observation
from adyton.manifest.open_folders import is_temporary

_SHOWN: Final = 8
_TOLD: Final = ("/etc/hostname", "/etc/resolv.conf", "/etc/machine-id", "/etc/shadow")


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference: a word for programs, what it is, and what to do where the program needs it as it was."""

    kind: str
    what: str
    remedy: str

    def to_dict(self) -> dict[str, str]:
        return {"kind": self.kind, "what": self.what, "remedy": self.remedy}


class Data(Protocol):
    """What is asked of a file or folder of data."""

    @property
    def source(self) -> str: ...
    @property
    def is_folder(self) -> bool: ...
    @property
    def is_input(self) -> bool: ...


def differences(
    seen: Observation,
    *,
    data: Iterable[Data],
    not_taken: Sequence[str],
    left_out: Sequence[str],
    identity: Sequence[IdentityFile] = (),
) -> tuple[Difference, ...]:
    """Every difference that the watched run shows."""
    return tuple(_differences(seen, list(data), not_taken, left_out, identity))


def _differences(
    seen: Observation,
    data: list[Data],
    not_taken: Sequence[str],
    left_out: Sequence[str],
    identity: Sequence[IdentityFile],
) -> Iterator[Difference]:
    if not_taken:
        yield Difference(
            "environment",
            f"variables that were set and are not there inside: {_few(not_taken)}",
            "name those that the program needs in the template: loader.env.NAME",
        )
    if seen.read_stdin:
        yield Difference(
            "stdin",
            "standard input was read, and is empty inside",
            "give the input as a file, or let the host give it: adyton.insecure__stdin = true in the template",
        )
    if seen.network:
        yield Difference(
            "network",
            f"the network was used ({_few(seen.network)}), and there is none inside",
            "fetch what the program needs before, or name the servers in the template: [[adyton.egress]]",
        )
    yield from _of_server(seen)
    if left := [path for path in seen.written if is_temporary(path, seen.cwd) and os.path.isfile(path)]:
        yield Difference(
            "temporary-files",
            f"files that were left behind where the program has only memory inside: {_few(left)}",
            "let the program write what is to be kept below the current folder",
        )
    made = set(seen.touched)
    found = [path for path in seen.read if is_temporary(path, seen.cwd) and path not in made and os.path.isfile(path)]
    if found:
        yield Difference(
            "earlier-files",
            f"files that lay in a folder for temporary files before the run were read: {_few(found)}",
            "if an earlier run left them there (a cache), remove them and watch the program again: with them it did not"
            " do all that it does inside",
        )
    if identity:
        yield Difference(
            "identity",
            "files that name users and machines are short ones inside, with this user and this machine alone: "
            + _few([file.path for file in identity]),
            f"add what the program looks for to {_few([file.name for file in identity])}",
        )
    if state := [path for path in left_out if path in _TOLD]:
        yield Difference(
            "host-state",
            f"files that describe this machine were read, and are not there inside: {_few(state)}",
            "take the # away before them in NAME.trusted where the program needs them",
        )
    links = [path for path in seen.read if _is_data(path, data, seen.cwd) and os.path.islink(path)]
    if links:
        yield Difference("links", f"symbolic links are ordinary files inside: {_few(links)}", "nothing, as a rule")
    yield from _whole_folders(seen, data)


def _of_server(seen: Observation) -> Iterator[Difference]:
    if seen.server is None:
        return
    if not seen.server.answered:
        yield Difference(
            "unanswered",
            f"the server accepted connections on port {seen.server.port} and answered no HTTP request (GET /): what it"
            " needs for a request was not seen",
            "watch it longer (--watch), or compare what it needs with the template",
        )
    if not seen.server.stopped:
        how = f"ended on SIGTERM with status {seen.server.status}"
        if seen.server.killed:
            how = "was killed some seconds after SIGTERM"
        yield Difference(
            "ending",
            f"the server {how}: what it does at its end was not seen whole",
            "let it end on SIGTERM with status 0",
        )


def _whole_folders(seen: Observation, data: list[Data]) -> Iterator[Difference]:
    read: Mapping[str, None] = dict.fromkeys((*seen.read, *seen.written))
    for item in data:
        if not (item.is_folder and item.is_input):
            continue
        unread, size = 0, 0
        for folder, _, names in os.walk(os.path.join(seen.cwd, item.source)):
            for path in (os.path.join(folder, name) for name in names):
                if path not in read and os.path.isfile(path):
                    unread += 1
                    size += os.stat(path).st_size
        if unread:
            yield Difference(
                "unread-files",
                f"{item.source} is encrypted whole: {unread} files in it ({size / 1e6:.1f} MB) were not read",
                "move what the program does not need out of this folder",
            )


def _is_data(path: str, data: list[Data], cwd: str) -> bool:
    places = [os.path.join(cwd, item.source) for item in data]
    return any(path == place or path.startswith(place + "/") for place in places)


def _few(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
