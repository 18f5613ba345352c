"""A program that the manifest calls root tries what the kernel's root may: /proc/sys and its like, other users' files.

No test writes to a file of the machine's /proc: it opens for writing, writes nothing, and looks at the flags of mounts.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults.program.inside import OUT, report
from tests.mount import world

pytestmark = pytest.mark.mount


_WRITABLE = """
def writable(path):
    try: os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
    except OSError as error: return errno.errorcode[error.errno]
    return 'OPENED'
tried, opened, why = 0, [], {}
for top in os.listdir('/proc'):
    if top.isdigit() or top in ('self', 'thread-self'): continue
    for place, folders, names in os.walk(f'/proc/{top}'):
        for name in names:
            found = writable(f'{place}/{name}')
            tried += 1
            why[found] = why.get(found, 0) + 1
            if found == 'OPENED': opened.append(f'{place}/{name}')
for name in os.listdir('/proc'):
    if not name.isdigit() and os.path.isfile(f'/proc/{name}'):
        tried += 1
        if writable(f'/proc/{name}') == 'OPENED': opened.append(name)
"""


def test_nothing_of_the_machines_proc_opens_for_writing(folder: Path) -> None:
    """Every file of it but the program's own processes; core_pattern, whose writer owns the machine, among them."""
    script = _WRITABLE + "core = writable('/proc/sys/kernel/core_pattern')\n"
    script += "print(json.dumps({'tried': tried, 'opened': opened, 'core': core}))"
    told = report(folder, script)
    assert told["opened"] == []
    assert told["core"] in ("EACCES", "EROFS")
    assert isinstance(told["tried"], int)
    assert told["tried"] > 300, "the walk found nothing, and proves nothing"


def test_what_tells_the_kernel_something_is_mounted_read_only(folder: Path) -> None:
    """A second wall behind the first: also who had the kernel's root user could not write there."""
    script = (
        "mounts = {}\n"
        "for line in open('/proc/self/mountinfo'):\n"
        "    words = line.split()\n"
        "    mounts[words[4]] = words[5].split(',')\n"
        "print(json.dumps({name: flags for name, flags in mounts.items() if name.startswith('/proc')}))"
    )
    mounts = report(folder, script)
    here = [
        name for name in ("sys", "sysrq-trigger", "irq", "bus", "fs", "pressure") if os.path.exists(f"/proc/{name}")
    ]
    assert "sys" in here
    for name in here:
        flags = mounts[f"/proc/{name}"]
        assert isinstance(flags, list)
        assert {"ro", "nosuid", "nodev"} <= set(flags), name
    assert "rw" in mounts["/proc"]  # type: ignore[operator]


def test_what_tells_of_the_machine_is_empty(folder: Path) -> None:
    """The kernel's memory, keys, timers, interrupts, devices: nothing to read, and nothing to list."""
    names = ["acpi", "asound", "interrupts", "kcore", "keys", "key-users", "latency_stats", "sched_debug", "scsi"]
    names += ["timer_list", "kallsyms"]
    script = (
        f"found = {{}}\nfor name in {names}:\n"
        "    path = '/proc/' + name\n"
        "    if os.path.isdir(path): found[name] = os.listdir(path)\n"
        "    elif os.path.exists(path): found[name] = list(open(path, 'rb').read(10))\n"
        "print(json.dumps(found))"
    )
    found = report(folder, script)
    assert {name for name in names if os.path.exists(f"/proc/{name}")} == set(found)
    assert all(content == [] for content in found.values()), found


def test_own_processes_can_be_told_things(folder: Path) -> None:
    """/proc/self is as everywhere: a program sets its own oom_score_adj, coredump_filter, comm."""
    script = (
        "found = {}\n"
        "for name, value in (('oom_score_adj', '7'), ('coredump_filter', '0x1'), ('comm', 'renamed')):\n"
        "    open(f'/proc/self/{name}', 'w').write(value)\n"
        "    found[name] = open(f'/proc/self/{name}').read().strip()\n"
        "print(json.dumps(found))"
    )
    assert report(folder, script) == {"oom_score_adj": "7", "coredump_filter": "00000001", "comm": "renamed"}


def _below(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        found += map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split())
    return found[1:]


def _users(pid: int) -> dict[str, set[int]]:
    """The name of each process below `pid`, and the users that the kernel has for those of this name."""
    found: dict[str, set[int]] = {}
    for process in _below(pid):
        facts = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines() if "\t" in line
        )
        for name in ("Uid", "Gid"):
            found.setdefault(facts["Name"], set()).update(map(int, facts[name].split()))
        found.setdefault(facts["Name"] + " groups", set()).update(map(int, facts["Groups"].split()))
    return found


@pytest.mark.skipif(os.getuid() != 0, reason="only root's runs have another user to take")
def test_kernel_never_knows_the_program_as_its_root(folder: Path) -> None:
    """Root's run: bubblewrap and the program have a number that nobody has, another in each run, and no groups."""
    numbers: list[int] = []
    for name in ("one", "two"):
        (folder / name / "out").mkdir(parents=True)
        process = world.start(folder / name, world.shell("id -u; sleep 60", mounts=OUT))
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "0\n"
            while "sleep" not in (users := _users(process.pid)):
                time.sleep(0.05)
            assert users["adyton-keeper"] == {0}
            assert len(users["sleep"]) == 1
            assert users["sleep"] == users["bwrap"]
            assert users["sleep groups"] <= users["sleep"]
            numbers += users["sleep"]
        finally:
            process.send_signal(signal.SIGTERM)
            world.finish(process)
    assert all(number >= 61_184 for number in numbers)
    assert len(set(numbers)) == 2


@pytest.mark.skipif(os.getuid() != 0, reason="only root has files that others may not read")
def test_roots_files_are_not_the_programs(folder: Path) -> None:
    """But those that the manifest allows it are as root's for it, and another user's are as for anyone."""
    (folder / "shared").mkdir(mode=0o755)
    (folder / "shared/roots").write_text("root's\n")
    (folder / "shared/roots").chmod(0o600)
    (folder / "shared/others").write_text("another's\n")
    (folder / "shared/others").chmod(0o600)
    os.chown(folder / "shared/others", 12_345, 12_345)
    script = "cat /shared/roots; echo more >> /shared/roots; cat /shared/others; echo x > /shared/new; ls -ln /shared"
    spec = world.shell(script, mounts=[["chroot", "/shared", "file:shared"]], allowed=["file:shared/"])
    result = world.run(folder, spec)
    assert "root's" in result.out
    assert "another's" not in result.out
    assert "others: Permission denied" in result.err
    assert (folder / "shared/roots").read_text() == "root's\nmore\n"
    made = (folder / "shared/new").stat()
    assert (made.st_uid, made.st_gid) == (0, 0)
    owners = {words[-1]: words[2] for words in map(str.split, result.out.splitlines()) if len(words) > 8}
    assert (owners["roots"], owners["new"], owners["others"]) == ("0", "0", "65534")


def test_every_file_of_the_program_is_its_own(folder: Path) -> None:
    """Staged, served and made in memory: what looks at owners (git, ssh) finds the user that the program is."""
    world.encrypt(folder, "in/deep/data", b"x")
    (folder / "script").write_text("echo hi")
    spec = world.shell(
        "echo a > /out/a; echo b > /tmp/b; ls -lnd / /in /in/deep /in/deep/data /out /out/a /tmp /tmp/b /script /run/s"
        " /run /usr /usr/bin/cat /dev/shm /sys /proc/self/ /dev/attestation",
        mounts=[["encrypted", "/in", "file:in"], ["chroot", "/script", "file:script"], *OUT],
        trusted=["script"],
        read_only=["/in"],
        secrets=[{"name": "token", "env": None, "file": "/run/s", "owner": None}],
        uid=1234,
        gid=5678,
    )
    result = world.run(folder, spec)
    assert result.status == 0, result.err
    owners = {line.split()[8]: tuple(line.split()[2:4]) for line in result.out.splitlines()}
    assert len(owners) == 17
    assert set(owners.values()) == {("1234", "5678")}, owners


@pytest.mark.parametrize("mask", [0o000, 0o077, 0o777])
def test_file_mode_mask_of_the_starter_closes_nothing_to_the_program(folder: Path, mask: int) -> None:
    """It holds for what is made on the host, and says nothing about the program's own files."""
    script = "umask; echo a > /out/a; mkdir /tmp/d; ls /usr/bin/cat; ls -ld /tmp/d"
    process = world.start(folder, world.shell(script, mounts=OUT), umask=mask)
    result = world.finish(process)
    lines = result.out.splitlines()
    assert lines[0] == "0022", result.err
    assert lines[2].startswith("drwxr-xr-x")
    assert (folder / "out/a").stat().st_mode & 0o077 & mask == 0
    (folder / "out/a").chmod(0o600)  # with mask 0777 it is closed to an ordinary user himself
    assert world.decrypt(folder, "out/a") == b"a\n"


@pytest.mark.skipif(os.getuid() != 0, reason="only root shows files as another's")
def test_allowed_file_that_cannot_be_shown_as_the_programs_own_is_said(folder: Path) -> None:
    """A file system without ID-mapped mounts, as FUSE: the program may what others may, and the run says so."""
    (folder / "key").touch(0o600)
    (folder / "key").write_bytes(bytes(16))
    for name in ("enc", "top"):
        (folder / name).mkdir()
    adyton = [sys.executable, "-m", "adyton"]
    subprocess.run([*adyton, "mount", "enc", "top", "--key-file", "key"], cwd=folder, check=True, timeout=60)
    try:
        (folder / "top/a").write_text("root's")
        spec = world.shell("cat /shown/a", mounts=[["chroot", "/shown", "file:top"]], allowed=["file:top/"])
        result = world.run(folder, spec)
    finally:
        subprocess.run([*adyton, "umount", "top"], cwd=folder, check=True, timeout=60)
    assert "NOTE allowed file top/: its file system cannot show it as the program's own" in result.err
    assert "Permission denied" in result.err
    assert result.out == ""


@pytest.mark.skipif(os.getuid() != 0, reason="only root's runs have another user to take")
def test_program_of_another_user_opens_its_output_anew(folder: Path) -> None:
    """/dev/stdout and /dev/stderr, where they are pipes: the log's, or the starter's."""
    spec = world.shell("echo out > /dev/stdout; echo err > /dev/stderr", mounts=OUT)
    result = world.run(folder, spec)
    assert (result.status, result.out, "err\n" in result.err) == (0, "out\n", True)
    result = world.run(folder, {**spec, "stdio": False, "log": "file:app.log"})
    assert world.decrypt(folder, "app.log") == b"out\nerr\n", result.err


@pytest.mark.skipif(os.getuid() != 0, reason="only root's runs have another user to take")
def test_named_pipe_of_the_host_stays_its_owners(folder: Path) -> None:
    """A pipe that the starter's shell made is given to the program; one that has a name on the host is not."""
    os.mkfifo(folder / "named", 0o600)
    held = os.open(folder / "named", os.O_RDWR)
    try:
        process = world.start(folder, world.shell("echo hi", mounts=OUT), stdout=held)
        assert world.finish(process).status == 0
        assert os.read(held, 10) == b"hi\n"
    finally:
        os.close(held)
    assert (folder / "named").stat().st_uid == 0
