"""The file server's words to the keeper: events, and the error that it ends with."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from adyton.errors import MountFailed, WrongPath
from adyton.runtime import host
from adyton.runtime.fileserver import FileServer, Served
from adyton.vfs.owner import Owner

if TYPE_CHECKING:
    from collections.abc import Callable


def _started(monkeypatch: pytest.MonkeyPatch, trees: Callable[..., object]) -> FileServer:
    """A server that ends while it opens its mounts."""
    for name in ("lock_memory", "allow_many_files"):
        monkeypatch.setattr(host, name, lambda: None)
    monkeypatch.setattr(Served, "trees", trees)
    served = Served(owner=Owner.caller(), umask=0o077, mounts=[], files=[], attestation=None)
    return FileServer.start(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC), served)


def test_error_of_the_file_server_keeps_its_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The keeper raises MountFailed with the checks of the error that ended the server."""

    def trees(_self: Served, event: Callable[[str], None], *_rest: object) -> object:
        event("first\nof all, \udce4")
        raise WrongPath("moved\nhere", check="path", expected="/a", seen="/b", remedy="move it back")

    server = _started(monkeypatch, trees)
    failure = server.failure("data/in", OSError(errno.ENOTCONN, "not connected"))
    assert type(failure) is MountFailed
    assert failure.message == "encrypted mount data/in: first of all, ?; moved here"
    assert (failure.check, failure.expected, failure.seen) == ("path", "/a", "/b")
    assert failure.remedy == "move it back"
    end = server.finish(lambda _text: None)
    assert isinstance(end, MountFailed)
    assert end.seen == f"file server ended with status {WrongPath.exit_code}"
    assert [check.name for check in end.failed] == ["flush of the encrypted mounts", "path"]


def test_file_server_that_fails_without_checks_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the system has no checks, and its words are what is seen."""

    def trees(_self: Served, *_rest: object) -> object:
        raise PermissionError(errno.EACCES, "Permission denied", "data/in")

    server = _started(monkeypatch, trees)
    failure = server.failure("data/in", OSError(errno.ECONNABORTED, "aborted"))
    assert (failure.check, failure.seen) == ("served mount", "data/in: Permission denied")
    assert isinstance(server.finish(lambda _text: None), MountFailed)


def test_line_that_is_no_message_is_told_as_it_is() -> None:
    """A line that was cut does not end the keeper."""
    out, into = os.pipe()
    os.write(into, b'{"event": "cu\n[1]\n17\n')
    assert FileServer(0, out).read_events() == ['{"event": "cu', "an error came without its message", "17"]
    os.close(into)
    os.close(out)
