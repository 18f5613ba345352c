"""A program leaves something on the host's files: what would give whoever starts it the rights of the run's starter.

As root's program it owns root's allowed files, so a set-user-ID file of its making would make any user root.
"""

from __future__ import annotations

import errno
import json
import platform
import stat
from pathlib import Path

import pytest

from adyton.runtime.calls import NUMBERS
from tests.faults.program.inside import OUT
from tests.mount import world

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(platform.machine() not in NUMBERS, reason="there is no filter for this processor"),
]

_TRY = """
import ctypes, errno, json, os, struct
libc = ctypes.CDLL(None, use_errno=True)
N = json.loads(%r)
def call(name, *words):
    held = [ctypes.c_long(word) if isinstance(word, int) else word for word in words]
    ctypes.set_errno(0)
    return 0 if libc.syscall(ctypes.c_long(N[name]), *held) >= 0 else ctypes.get_errno()
def tried(name, *words): found[f'{name} {words}'] = call(name, *words)
open('/shared/made', 'w').write('#!/bin/sh')
fd, found = os.open('/shared/made', os.O_RDWR), {}
for mode in (0o4755, 0o2755, 0o6755, 0o104755, 0o4755 | 1 << 32):
    tried('fchmod', fd, mode)
    tried('fchmodat', -100, b'/shared/made', mode)
    tried('mknodat', -100, b'/shared/node', mode, 0)
    tried('openat', -100, b'/shared/opened', os.O_CREAT | os.O_WRONLY, mode)
    tried('openat', -100, b'/shared', os.O_TMPFILE | os.O_WRONLY, mode)
    if 'chmod' in N:
        tried('chmod', b'/shared/made', mode)
        tried('creat', b'/shared/created', mode)
        tried('mknod', b'/shared/node', mode, 0)
        tried('open', b'/shared/opened', os.O_CREAT | os.O_WRONLY, mode)
    tried('fchmodat2', -100, b'/shared/made', mode, 0)
openat2 = call('openat2', -100, b'/shared/opened', struct.pack('QQQ', os.O_CREAT | os.O_WRONLY, 0o4755, 0), 24)
fine = [call('fchmod', fd, 0o755), call('fchmodat', -100, b'/shared', 0o1777)]
fine += [call('openat', -100, b'/shared/made', os.O_RDONLY, 0o4755)]
print(json.dumps({'found': found, 'openat2': openat2, 'fine': fine}))
"""


def test_program_marks_no_file_to_run_as_its_owner(folder: Path) -> None:
    """By none of the ways to a mode, also with bits that the kernel cuts off; ordinary modes are set as ever."""
    (folder / "shared").mkdir()
    mounts = [["chroot", "/shared", "file:shared"], *OUT]
    script = _TRY % json.dumps(dict(NUMBERS[platform.machine()]))
    result = world.run(folder, world.python(script, mounts=mounts, allowed=["file:shared/"]))
    assert result.status == 0, result.err
    told = json.loads(result.out)
    assert set(told["found"].values()) == {errno.EPERM}, told["found"]
    assert (told["openat2"], told["fine"]) == (errno.ENOSYS, [0, 0, 0])
    marked = [path for path in (folder / "shared").iterdir() if path.stat().st_mode & (stat.S_ISUID | stat.S_ISGID)]
    assert marked == []
    assert (folder / "shared/made").stat().st_mode & 0o777 == 0o755


def test_program_marks_not_its_own_output(folder: Path) -> None:
    """A file that the starter's shell made for it (`> file`), by the descriptor that it has of it."""
    script = "import os\ntry: os.fchmod(1, 0o4755)\nexcept OSError as error: print(error.errno)"
    with (folder / "printed").open("wb") as printed:
        process = world.start(folder, world.python(script, mounts=OUT), stdout=printed)
        assert world.finish(process).status == 0
    assert (folder / "printed").read_text() == f"{errno.EPERM}\n"
    assert not (folder / "printed").stat().st_mode & stat.S_ISUID


def test_program_whose_files_are_no_hosts_may_mark_them(folder: Path) -> None:
    """Modes of an archive, of git: in memory and in sealed files they mean nothing to the host, and are kept."""
    script = "import os\nfor path in ('/tmp/a', '/out/a'):\n open(path, 'w').close(); os.chmod(path, 0o6755)\n"
    script += " assert os.stat(path).st_mode & 0o7777 == 0o6755\n"
    result = world.run(folder, world.python(script, mounts=OUT, stdio=False, log="file:app.log"))
    assert result.status == 0, world.decrypt(folder, "app.log")
    assert not (folder / "out/a").stat().st_mode & 0o7000
