"""Whole runs without attestation: what the program sees, what it cannot, and what is left afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from adyton.attest.report_data import program_report_data
from adyton.runtime import namespace
from adyton.runtime.absent_files import AbsentFiles
from adyton.runtime.resolver_config import HOSTS, host_name, resolv_conf
from tests.mount import world
from tests.support import machine

pytestmark = pytest.mark.mount

OUT = [["encrypted", "/out", "file:out"]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where `adyton run` is started: an empty output folder and nothing else."""
    (tmp_path / "out").mkdir()
    return tmp_path


def _processes_below(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        try:
            children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        except OSError:
            continue
        found += [int(child) for child in children]
    return found[1:]


def _wait_until(condition: object, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def _gone(pids: list[int]) -> bool:
    def alive(pid: int) -> bool:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        return state != "Z"

    return not any(alive(pid) for pid in pids)


def _mounts() -> str:
    return Path("/proc/self/mounts").read_text()


def test_program_sees_only_what_the_manifest_names(folder: Path) -> None:
    """The root holds the mounts and the sandbox's own folders, and nothing of the host's."""
    (folder / "secret.txt").write_text("host")
    result = world.run(
        folder, world.shell("ls -a / /dev /tmp; ls /etc /home /root; cat /proc/1/comm; id -u", mounts=OUT)
    )
    assert result.ended["exit_code"] == 0
    shown = result.out.split()
    assert "secret.txt" not in result.out
    assert {"out", "usr", "tmp", "proc", "dev"} <= set(shown)
    for name in ("home", "etc", "root", "boot", "var", "srv"):
        assert name not in shown
    assert "bwrap" in result.out
    assert "sda" not in result.out
    assert "No such file" in result.err


def test_program_reads_inputs_and_writes_outputs(folder: Path) -> None:
    """A staged input and a served output, both encrypted on the host."""
    world.encrypt(folder, "in/data", b"some input")
    mounts = [["encrypted", "/in", "file:in"], *OUT]
    result = world.run(folder, world.shell("cat /in/data /in/data > /out/result", mounts=mounts, read_only=["/in"]))
    assert result.status == 0, result.err
    assert world.decrypt(folder, "out/result") == b"some inputsome input"
    assert b"some input" not in (folder / "out/result").read_bytes()


def test_nothing_but_memory_and_outputs_can_be_written(folder: Path) -> None:
    """Staged files, inputs, the root, /dev and /sys are read-only."""
    world.encrypt(folder, "in/data", b"x")
    script = "for f in /usr/x /in/data /in/new /x /dev/x /sys/x /lib/x /proc/x; do echo a > $f && echo WROTE $f; done;"
    script += "echo a > /tmp/x && echo a > /dev/shm/x && echo a > /out/x && echo fine"
    mounts = [["encrypted", "/in", "file:in"], *OUT]
    result = world.run(folder, world.shell(script, mounts=mounts, read_only=["/in"]))
    assert "WROTE" not in result.out
    assert result.out.strip() == "fine"


NESTED = [
    ["encrypted", "/out", "file:out/"],
    ["chroot", "/out/app.txt", "file:app.txt"],
    ["chroot", "/out/src/lib", "file:lib"],
    ["encrypted", "/out/in", "file:in/"],
    ["encrypted", "/out/more", "file:more/"],
]


@pytest.mark.parametrize("budget", [1 << 30, 16 << 20], ids=["staged", "served"])
def test_trusted_files_show_in_an_encrypted_folder(folder: Path, budget: int) -> None:
    """Beside them the program writes as it likes; what the host has under their names is never seen."""
    for name, text in {"app.txt": "trusted", "lib/m.txt": "module"}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    (folder / "big").write_bytes(bytes(20 << 20))
    (folder / "more").mkdir()
    world.encrypt(folder, "in/data", b"input")
    world.encrypt(folder, "out/app.txt", b"planted")
    world.encrypt(folder, "out/src/lib/m.txt", b"planted")
    script = "cd /out; cat app.txt src/lib/m.txt in/data; echo; ls . src src/lib;"
    script += "for a in 'rm -f app.txt' 'mv app.txt b' 'mv src other' 'rm -rf src' 'mv in b' 'mv -T src more'; do"
    script += " $a 2>/dev/null && echo DID $a; done; for f in app.txt src/lib/m.txt src/lib/n in/data in/n; do"
    script += " echo x 2>/dev/null > $f && echo WROTE $f; done; cat app.txt src/lib/m.txt in/data; echo;"
    script += "echo 1 > t.tmp && mv t.tmp t && echo 2 > src/t && echo 3 > more/t && echo fine"
    is_served = budget < 1 << 30
    result = world.run(
        folder,
        world.shell(
            script,
            mounts=[*NESTED, *([["chroot", "/out/big", "file:big"]] if is_served else [])],
            read_only=["/out/in"],
            trusted=["app.txt", "lib/m.txt", *(["big"] if is_served else [])],
            facts=True,
            budget=budget,
        ),
    )
    words = result.out.split()
    assert words.count("trustedmoduleinput") == 2, result.out + result.err
    assert {"app.txt", "src", "in", "more", "lib", "m.txt"} <= set(words)
    assert "DID" not in words
    assert "WROTE" not in words
    assert "fine" in words, result.out + result.err
    assert (world.decrypt(folder, "out/t"), world.decrypt(folder, "out/src/t")) == (b"1\n", b"2\n")
    assert world.decrypt(folder, "more/t") == b"3\n"
    assert result.ended["events"] == []


def test_folder_in_an_encrypted_one_without_trusted_files_is_empty(folder: Path) -> None:
    """What the host has under its name is not seen, and nothing can be written there."""
    world.encrypt(folder, "out/lib/planted", b"planted")
    script = "ls -A /out/lib; echo x 2>/dev/null > /out/lib/new && echo WROTE; echo 1 > /out/t; echo end"
    mounts = [["encrypted", "/out", "file:out/"], ["chroot", "/out/lib", "file:lib"]]
    assert world.run(folder, world.shell(script, mounts=mounts)).out == "end\n"
    assert world.decrypt(folder, "out/t") == b"1\n"


@pytest.mark.parametrize("planted", ["link", "file", "sealed"])
def test_what_the_host_puts_above_a_trusted_file_is_refused(folder: Path, planted: str) -> None:
    """In an encrypted folder the trusted file's own folder is the host's name: a link there is not followed."""
    (folder / "evil/lib").mkdir(parents=True)
    (folder / "evil/lib/m.txt").write_text("evil")
    (folder / "lib").mkdir()
    (folder / "lib/m.txt").write_text("trusted")
    if planted == "link":
        (folder / "out/src").symlink_to(folder / "evil")
    elif planted == "file":
        (folder / "out/src").write_text("x")
    else:
        world.encrypt(folder, "out/src", b"sealed")
    mounts = [["encrypted", "/out", "file:out/"], ["chroot", "/out/src/lib", "file:lib"]]
    result = world.run(folder, world.shell("cat /out/src/lib/m.txt", mounts=mounts, trusted=["lib/m.txt"]))
    assert "mount /out/src/lib: a folder above it can be neither made nor entered" in result.ended["message"]
    assert result.out == ""


def test_links_of_a_program_are_there_in_its_next_run(folder: Path) -> None:
    """Written to an output, read again where it is served, staged, and served read-only beyond the memory budget."""
    script = "cd /out && mkdir d && echo content > d/a && ln -s d/a link && ln -s /out/d abs && ln -s nowhere lost"
    assert world.run(folder, world.shell(script, mounts=OUT)).status == 0
    assert sorted(os.listdir(folder / "out")) == ["abs.adyton.link", "d", "link.adyton.link", "lost.adyton.link"]
    world.encrypt(folder, "out/big", os.urandom(3_000_000))
    script = "cd /out && ls && readlink link abs lost && cat link abs/a lost; ln -s x new && echo WROTE"
    for more in ({}, {"read_only": ["/out"]}, {"read_only": ["/out"], "budget": 7 << 20}):
        result = world.run(folder, world.shell(script, mounts=OUT, **more))
        expected = ["abs", "big", "d", "link", "lost", "d/a", "/out/d", "nowhere", "content", "content"]
        assert result.out.split() == expected + ([] if more else ["WROTE"]), result.err
        assert "lost: No such file" in result.err
        (folder / "out/new.adyton.link").unlink(missing_ok=True)


def test_link_of_a_program_above_a_mount_of_its_next_run_is_not_followed(folder: Path) -> None:
    """Where another mount is to show, there is a folder: what a link there leads to is never touched by the keeper."""
    (folder / "victim").mkdir()
    (folder / "lib").mkdir()
    (folder / "lib/m.txt").write_text("trusted")
    assert world.run(folder, world.shell(f"ln -s {folder}/victim /out/src", mounts=OUT)).status == 0
    mounts = [["encrypted", "/out", "file:out/"], ["chroot", "/out/src/lib", "file:lib"]]
    script = "cat /out/src/lib/m.txt; ls /out; ln -sT /etc /out/src; mv -T /out/src /out/other"
    result = world.run(folder, world.shell(script, mounts=mounts, trusted=["lib/m.txt"]))
    assert result.out == "trustedsrc\n", result.err
    assert os.listdir(folder / "victim") == []
    assert "File exists" in result.err
    assert "cannot move" in result.err


def test_encrypted_folder_shows_in_memory_below_trusted_files(folder: Path) -> None:
    """What is mounted later shows in memory that was mounted before, whatever lies between."""
    (folder / "lib").mkdir()
    (folder / "lib" / "m.txt").write_text("module")
    mounts = [
        ["tmpfs", "/home", None],
        ["chroot", "/home/u/lib", "file:lib"],
        ["encrypted", "/home/u/lib/o", "file:out"],
    ]
    script = "cat /home/u/lib/m.txt; echo 1 > /home/u/lib/o/t; echo 2 > /home/u/new; echo 3 > /home/u/lib/new"
    result = world.run(folder, world.shell(script, mounts=mounts, trusted=["lib/m.txt"]))
    assert result.out == "module"
    assert world.decrypt(folder, "out/t") == b"1\n"
    assert "/home/u/lib/new" in result.err
    assert "/home/u/new" not in result.err


@pytest.mark.parametrize("code", [0, 1, 42, 255])
def test_exit_code_of_the_program_is_passed_on(folder: Path, code: int) -> None:
    """Whatever it is."""
    assert world.run(folder, world.shell(f"exit {code}")).status == code


def test_program_ended_by_a_signal_gives_128_and_its_number(folder: Path) -> None:
    """As shells say it."""
    assert world.run(folder, world.shell("kill -9 $$")).status == 137


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signal_to_run_reaches_the_program(folder: Path, number: signal.Signals) -> None:
    """The program handles it, and its exit code comes back."""
    name = number.name.removeprefix("SIG")
    process = world.start(
        folder, world.shell(f"trap 'echo got; exit 7' {name}; echo ready; while :; do sleep 0.1; done")
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    result = world.finish(process)
    assert (result.status, result.out) == (7, "got\n")


def test_program_that_ignores_signals_is_ended_by_the_third(folder: Path) -> None:
    """Nobody needs kill -9 to leave."""
    process = world.start(folder, world.shell("trap '' INT; echo ready; while :; do sleep 0.1; done"))
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    assert world.finish(process).status == 137


def test_missing_program_is_named(folder: Path) -> None:
    """A script whose interpreter is not listed cannot start, and the entrypoint is named."""
    (folder / "tool").write_text("#!/usr/bin/perl\n")
    (folder / "tool").chmod(0o755)
    spec = world.shell("exit 0", trusted=["tool"], mounts=[["chroot", "/tool", "file:tool"]])
    result = world.run(folder, {**spec, "argv": ["sh", "-c", "/tool"]})
    assert result.status == 127 or result.status == 126


def test_altered_trusted_file_stops_the_start(folder: Path) -> None:
    """Changed between build and run."""
    (folder / "script").write_text("echo hi")
    spec = world.shell("cat /script", trusted=["script"], mounts=[["chroot", "/script", "file:script"]])
    assert world.run(folder, spec).out == "echo hi"
    from adyton.errors import DigestMismatch
    from adyton.runtime.keeper import Delivered
    from adyton.runtime.launch import launch
    from adyton.runtime.run_plan import plan

    before = os.getcwd()
    os.chdir(folder)
    try:
        made = plan(world.manifest(spec), read_trusted=lambda _: b"")
        (folder / "script").write_text("echo ho")
        with pytest.raises(DigestMismatch, match="script"):
            launch(made, lambda: Delivered({}), simulated=True)
    finally:
        os.chdir(before)


def test_output_goes_to_the_encrypted_log(folder: Path) -> None:
    """Without insecure__stdio nothing of it reaches the host in clear."""
    result = world.run(
        folder, world.shell("echo to the log; echo and this >&2", mounts=OUT, stdio=False, log="file:app.log")
    )
    assert result.status == 0, result.err
    assert "to the log" not in result.out + result.err
    assert b"to the log" not in (folder / "app.log").read_bytes()
    assert world.decrypt(folder, "app.log") == b"to the log\nand this\n"
    assert not (folder / "app.log.gramine.recovery").exists()


def test_log_of_a_killed_run_is_whole_as_of_its_last_flush(folder: Path) -> None:
    """kill -9 of everything: the log opens, and has what was printed a while before."""
    process = world.start(folder, world.shell("echo early; sleep 60", mounts=OUT, stdio=False, log="file:app.log"))

    def logged() -> bool:
        try:
            return world.decrypt(folder, "app.log") == b"early\n"
        except Exception:
            return False

    _wait_until(logged)
    process.kill()
    world.finish(process)
    assert world.decrypt(folder, "app.log") == b"early\n"


def test_standard_input_is_empty_unless_the_manifest_says_so(folder: Path) -> None:
    """stdin is not measured, so it is closed by default."""
    for allowed, expected in ((False, ""), (True, "from the host")):
        process = world.start(folder, world.shell("cat", stdin=allowed), stdin=subprocess.PIPE)
        out, _ = process.communicate("from the host", timeout=30)
        assert out == expected


def test_environment_is_the_manifests_alone(folder: Path) -> None:
    """Nothing of the host's environment comes through; secrets do."""
    os.environ["ADYTON_TEST_LEAK"] = "1"
    try:
        secrets = [{"name": "token", "env": "TOKEN", "file": None, "owner": None}]
        result = world.run(folder, world.shell("env", env={"PATH": "/usr/bin", "A": "b c"}, secrets=secrets))
    finally:
        del os.environ["ADYTON_TEST_LEAK"]
    assert set(result.out.splitlines()) == {"PATH=/usr/bin", "A=b c", "TOKEN=a secret", "PWD=/"}


def test_secret_that_ends_in_nul_is_the_text_before_it(folder: Path) -> None:
    """As Gramine's clients want it: a variable is a C string, and a file has every byte."""
    secrets = [
        {"name": "token", "env": "TOKEN", "file": None, "owner": None},
        {"name": "token2", "env": None, "file": "/run/token", "owner": None},
    ]
    result = world.run(folder, world.shell('echo "$TOKEN"; cat /run/token', secrets=secrets, secret="a secret\0"))
    assert result.out == "a secret\na secret\0"


def test_secret_that_would_be_options_of_the_sandbox_is_refused(folder: Path) -> None:
    """A null byte in it would end the word it stands in: one owner could open the sandbox around another's data."""
    secrets = [{"name": "token", "env": "TOKEN", "file": None, "owner": None}]
    spec = world.shell("ls /tmp", secrets=secrets, secret="x\0--ro-bind\0/etc\0/tmp\0--share-net")
    result = world.run(folder, spec)
    assert "null byte" in result.ended["message"]
    assert result.ended["check"] == "what follows 'TOKEN'"
    assert (result.out, "share-net" in result.err) == ("", False)


def test_resolvers_of_the_host_are_made_safe(folder: Path) -> None:
    """What is not of the right form is left out, /etc/hosts is not the host's, and the name is."""
    script = "cat /etc/resolv.conf /etc/hosts; cat /proc/sys/kernel/hostname"
    result = world.run(folder, world.shell(script, domain_names=True))
    expected = resolv_conf(Path("/etc/resolv.conf").read_bytes()) + HOSTS
    assert result.out.encode() == expected + host_name(os.uname().nodename).encode() + b"\n"
    assert world.run(folder, world.shell("cat /proc/sys/kernel/hostname; ls /etc")).out == "adyton\n"


def test_memory_for_sharing_is_bounded_like_all_other(folder: Path) -> None:
    """More than the budget does not fit into /dev/shm."""
    script = "dd if=/dev/zero of=/dev/shm/x bs=1M count=200 2>/dev/null; ls -s /dev/shm | head -1"
    result = world.run(folder, world.shell(script, budget=64 << 20))
    assert int(result.out.split()[1]) <= 64 << 10


def test_secret_file_is_in_memory(folder: Path) -> None:
    """A secret may be a file; the host has none such."""
    secrets = [{"name": "token", "env": None, "file": "/run/secrets/token", "owner": None}]
    assert world.run(folder, world.shell("cat /run/secrets/token", secrets=secrets)).out == "a secret"


def test_program_has_no_capabilities_no_new_privileges_and_no_network(folder: Path) -> None:
    """The sandbox's ground rules, as the kernel tells them."""
    script = "grep -E '^(CapEff|CapBnd|NoNewPrivs):' /proc/self/status; cat /proc/net/dev; readlink /proc/self/ns/net"
    result = world.run(folder, world.shell(script))
    fields = dict(line.split(":\t") for line in result.out.splitlines() if line.startswith(("Cap", "NoNew")))
    assert fields == {"CapEff": "0" * 16, "CapBnd": "0" * 16, "NoNewPrivs": "1"}
    assert "eth" not in result.out
    assert os.readlink("/proc/self/ns/net") not in result.out
    with_network = world.run(folder, world.shell("readlink /proc/self/ns/net", network="host"))
    assert with_network.out.strip() == os.readlink("/proc/self/ns/net")


def test_program_cannot_see_or_trace_who_holds_the_keys(folder: Path) -> None:
    """In the program's /proc there is only itself and the sandbox's first process; nothing can be attached to."""
    script = (
        "import os, ctypes\n"
        "pids = sorted(int(n) for n in os.listdir('/proc') if n.isdigit())\n"
        "names = [open(f'/proc/{p}/comm').read().strip() for p in pids]\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "attached = [p for p in range(3, 4000) if libc.ptrace(16, p, 0, 0) == 0]\n"
        "print(names, attached)\n"
    )
    result = world.run(folder, world.python(script, mounts=OUT))
    assert result.out.strip() == f"['bwrap', '{Path(machine.SYSTEM_PYTHON).name}'] []", result.err


def test_key_holders_leave_no_core_and_cannot_be_dumped(folder: Path) -> None:
    """Keeper and file server are undumpable: their memory files belong to root alone, and no core leaves them."""
    process = world.start(folder, world.shell("echo ready; sleep 30", mounts=OUT))
    assert process.stdout is not None
    process.stdout.readline()
    try:
        named = {Path(f"/proc/{pid}/comm").read_text().strip(): pid for pid in _processes_below(process.pid)}
        for name in ("adyton-keeper", "adyton-files"):
            limits = Path(f"/proc/{named[name]}/limits").read_text()
            core = next(line for line in limits.splitlines() if "core file" in line)
            allowed = "0" if resource.getrlimit(resource.RLIMIT_CORE)[1] == 0 else "1"
            assert core.split()[4:6] == [allowed, allowed]
        command_lines = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in named.values()]
        environments = [Path(f"/proc/{pid}/environ").read_bytes() for pid in named.values()]
        key = world.KEY.reveal()
        assert not any(key in text or key.hex().encode() in text for text in command_lines + environments)
    finally:
        process.send_signal(signal.SIGTERM)
        world.finish(process)


@pytest.mark.parametrize("victim", ["adyton run", "adyton-keeper", "adyton-files", "bwrap"])
def test_killing_any_part_leaves_nothing(folder: Path, victim: str) -> None:
    """kill -9 of any process of a run: every process ends, no mount is left, what was flushed is readable."""
    mounts_before = _mounts()
    script = "echo kept > /out/kept; echo ready; while :; do echo x >> /out/more; sleep 0.01; done"
    process = world.start(folder, world.shell(script, mounts=OUT))
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    _wait_until((folder / "out/more").exists)
    time.sleep(0.3)
    below = _processes_below(process.pid)
    named: dict[str, int] = {}
    for pid in below:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # one of the script's own, which has ended
            named[Path(f"/proc/{pid}/comm").read_text().strip()] = pid
    os.kill(process.pid if victim == "adyton run" else named[victim], signal.SIGKILL)
    result = world.finish(process)
    assert result.status != 0
    _wait_until(lambda: _gone(below))
    assert _mounts() == mounts_before
    assert world.decrypt(folder, "out/kept") == b"kept\n"
    assert set(world.decrypt(folder, "out/more")) <= set(b"x\n")
    if victim == "adyton-files":
        assert "ended" in result.ended["message"]


def test_run_leaves_no_file_but_its_outputs(folder: Path) -> None:
    """No folder, no temporary file, in the run's folder or in /tmp."""
    before = set(os.listdir("/tmp"))
    assert world.run(folder, world.shell("echo a > /out/a; echo b > /tmp/b", mounts=OUT)).status == 0
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) == ["out", "out/a"]
    assert {name for name in set(os.listdir("/tmp")) - before if name.startswith(("adyton", "tmp"))} == set()


def test_interrupt_before_the_program_starts_ends_at_once(folder: Path) -> None:
    """Ctrl-C while keys are asked for: nothing is left, the status says so."""
    script = (
        "import sys, json, time\n"
        "from tests.mount import world\n"
        "from adyton.runtime.launch import launch\nfrom adyton.runtime.run_plan import plan\n"
        "from adyton.errors import ScriptFailed\n"
        "def slow():\n    print('asking', flush=True)\n    time.sleep(60)\n"
        "made = plan(world.manifest(world.shell('exit 0')), read_trusted=lambda e: b'')\n"
        "try:\n    launch(made, slow, simulated=True)\n"
        "except ScriptFailed as error:\n    sys.exit(error.status)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{world.REPOSITORY}/src:{world.REPOSITORY}"}
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "asking\n"
    below = _processes_below(process.pid)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130
    _wait_until(lambda: _gone(below))


@pytest.mark.parametrize("raw", [False, True])
def test_attestation_files_are_as_gramine_has_them(folder: Path, raw: bool) -> None:
    """Data in, quote out, over a hash of the data (or over the data, where the manifest says so); keys; the type."""
    script = (
        "d = '/dev/attestation/'\nimport os\n"
        "open(d + 'user_report_data', 'wb').write(b'hello')\n"
        "q = open(d + 'quote', 'rb').read()\n"
        "r = open(d + 'report', 'rb').read()\n"
        "print(q[368:432].hex(), len(r), open(d + 'attestation_type').read(), "
        "open(d + 'keys/k', 'rb').read() == bytes(range(16)), sorted(os.listdir(d)))\n"
    )
    result = world.run(folder, world.python(script, mounts=OUT, raw=raw))
    over = b"hello" + bytes(59) if raw else program_report_data(world.WORKLOAD, b"hello")
    assert result.out.strip() == (
        f"{over.hex()} 432 dcap True ['attestation_type', 'keys', 'quote', 'report', 'user_report_data']"
    ), result.err


def test_processes_and_shared_memory_work_inside(folder: Path) -> None:
    """fork, POSIX semaphores and queues, as DataLoader workers use them."""
    script = (
        "import multiprocessing as m\nc = m.get_context('fork')\nq = c.Queue()\n"
        "p = [c.Process(target=q.put, args=(n,)) for n in range(4)]\n"
        "[x.start() for x in p]\nprint(sorted(q.get() for _ in p))\n[x.join() for x in p]\n"
    )
    result = world.run(folder, world.python(script))
    assert result.out.strip() == "[0, 1, 2, 3]", result.err


def test_user_and_group_are_the_manifests(folder: Path) -> None:
    """loader.uid and gid, and the outputs belong to them."""
    result = world.run(folder, world.shell("id -u; id -g; echo a > /out/a; ls -n /out", mounts=OUT, uid=1234, gid=5678))
    assert result.out.split()[:2] == ["1234", "5678"]
    assert " 1234 " in result.out
    assert world.decrypt(folder, "out/a") == b"a\n"


def test_limit_of_open_files_is_the_manifests(folder: Path) -> None:
    """sys.fds.limit."""
    assert world.run(folder, world.shell("ulimit -n", fds_limit=77)).out.strip() == "77"


def test_what_exceeds_the_budget_is_served_verified(folder: Path) -> None:
    """A large trusted file and a large input: served block by block, as whole as when they are staged."""
    content = os.urandom(3_000_000)
    (folder / "big").write_bytes(content)
    world.encrypt(folder, "in/big", content)
    spec = world.shell(
        "cat /big /in/big > /out/both; echo x > /big; echo x > /in/big; df /big | grep -c tmpfs",
        trusted=["big"],
        mounts=[["chroot", "/big", "file:big"], ["encrypted", "/in", "file:in"], *OUT],
        read_only=["/in"],
        budget=7 << 20,
    )
    result = world.run(folder, spec)
    assert "Read-only" in result.err
    assert result.out == "0\n", result.err
    assert world.decrypt(folder, "out/both") == content * 2
    assert result.ended["seconds"]["staged MB"] < 7


def test_served_trusted_file_that_changes_is_refused(folder: Path) -> None:
    """Altered before it is first opened, or between two reads: EIO, and named; never served again."""
    (folder / "big").write_bytes(os.urandom(3_000_000))
    spec = world.shell(
        "echo ready; read go; cat /big > /dev/null || echo refused; read go; cat /big > /dev/null || echo refused",
        trusted=["big"],
        mounts=[["chroot", "/big", "file:big"]],
        stdin=True,
        budget=6 << 20,
    )
    process = world.start(folder, spec, stdin=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "ready\n"
    good = (folder / "big").read_bytes()
    (folder / "big").write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    process.stdin.write("go\n")
    process.stdin.flush()
    assert process.stdout.readline() == "refused\n"
    (folder / "big").write_bytes(good)
    out, err = process.communicate("go\n", timeout=30)
    assert out == "refused\n"
    assert "big is not the file that the manifest lists" in err


def test_program_itself_beyond_the_budget_is_refused_with_the_remedy(folder: Path) -> None:
    """The entrypoint runs from memory, or not at all."""
    result = world.run(folder, world.shell("exit 0", budget=64 << 10))
    assert result.ended["error"] == "MountFailed"
    assert "memory_budget" in result.ended["remedy"]


def test_missing_output_folder_is_refused_with_the_remedy(tmp_path: Path) -> None:
    """Named, with what to do."""
    result = world.run(tmp_path, world.shell("exit 0", mounts=OUT))
    assert result.ended["error"] == "MountFailed"
    assert "mkdir -p out" in result.ended["remedy"]


def test_output_folder_in_use_is_refused(folder: Path) -> None:
    """Two runs on one output folder would destroy each other's files."""
    process = world.start(folder, world.shell("echo ready; sleep 30", mounts=OUT))
    assert process.stdout is not None
    process.stdout.readline()
    try:
        second = world.run(folder, world.shell("exit 0", mounts=OUT))
        assert "in use" in second.ended["message"]
    finally:
        process.send_signal(signal.SIGTERM)
        world.finish(process)


def test_allowed_file_is_the_hosts_own(folder: Path) -> None:
    """Unchecked, readable and writable, at its mount."""
    (folder / "shared").mkdir()
    (folder / "shared/a").write_text("host")
    spec = world.shell(
        "cat /shared/a; echo program > /shared/b",
        mounts=[["chroot", "/shared", "file:shared"]],
        allowed=["file:shared/"],
    )
    assert world.run(folder, spec).out == "host"
    assert (folder / "shared/b").read_text() == "program\n"


def test_allowed_file_that_does_not_exist_is_the_programs_to_write(folder: Path) -> None:
    """A result, a log and a folder are made and written, what stays unused is gone, and /etc is left as it is."""
    (folder / "logs").mkdir()
    absent, made = "/etc/adyton-no-such-file", ("result.txt", "logs/log", "new/", "emptied")
    spec = world.shell(
        "echo result > /work/result.txt; echo 1 > /work/logs/log; echo 2 > /work/new/file; : > /work/emptied;"
        f" ls /work /etc; cat {absent}; echo x > {absent}; echo end",
        mounts=[["chroot", "/work", "file:."], ["chroot", "/etc", "file:/etc"]],
        allowed=[f"file:{name}" for name in (*made, "unused", "unused.d/", "no/where", absent)],
    )
    result = world.run(folder, spec)
    assert result.ended["exit_code"] == 0, result.err
    assert result.out.endswith("end\n")
    assert (folder / "result.txt").read_text() == "result\n"
    assert (folder / "logs/log").read_text() == "1\n"
    assert (folder / "new/file").read_text() == "2\n"
    assert sorted(os.listdir(folder)) == ["emptied", "logs", "new", "out", "result.txt"]
    assert not os.path.lexists(absent)
    assert "NOTE allowed file result.txt did not exist: made" in result.err
    assert f"NOTE allowed file {absent} is not there (it belongs to the system)" in result.err
    assert "NOTE allowed file no/where is not there (No such file or directory)" in result.err


def test_allowed_file_is_not_made_through_a_link_to_the_system(folder: Path) -> None:
    """A folder that leads to /etc is /etc."""
    (folder / "work").symlink_to("/etc")
    spec = world.shell("true", mounts=[["chroot", "/w", "file:work"]], allowed=["file:work/adyton-no-such-file"])
    result = world.run(folder, spec)
    assert result.ended["exit_code"] == 0
    assert "is not there (it belongs to the system)" in result.err
    assert not os.path.lexists("/etc/adyton-no-such-file")


def test_allowed_file_that_was_made_goes_where_the_run_never_starts(folder: Path) -> None:
    """A run that is refused leaves no file of its making."""
    (folder / "loop").symlink_to("/proc")
    spec = world.shell("true", mounts=[["chroot", "/work", "file:."]], allowed=["file:new", "file:loop"])
    result = world.run(folder, spec)
    assert "would show the program" in result.ended["message"]
    assert sorted(os.listdir(folder)) == ["loop", "out"]


def test_allowed_file_is_not_made_in_the_runs_memory(tmp_path: Path) -> None:
    """Through a link of the host it would be a new file among the program's trusted ones."""
    private, notes = tmp_path / "private", list[str]()
    (private / "root/usr").mkdir(parents=True)
    (tmp_path / "work").symlink_to(private / "root/usr")
    assert not AbsentFiles(notes.append, private=str(private)).make(f"{tmp_path}/work/new", is_folder=False)
    assert not os.listdir(private / "root/usr")
    assert len(notes) == 1


@pytest.mark.parametrize("below", ["", "/root", "/root/usr", "/served"])
def test_allowed_file_cannot_lead_into_the_runs_memory(folder: Path, below: str) -> None:
    """A link that the host puts in its place is refused, wherever in the private memory it leads."""
    anchor = next(place for place in namespace.ANCHORS if os.path.isdir(place))
    (folder / "shared").symlink_to(anchor + below)
    spec = world.shell(
        "ls /shared", mounts=[*OUT, ["chroot", "/shared", "file:shared"]], allowed=["file:shared/"], trusted=[]
    )
    result = world.run(folder, spec)
    assert "private memory" in result.ended["message"]
    assert result.out == ""


def test_many_outputs_survive_the_end_without_close(folder: Path) -> None:
    """A program that exits without closing, and one that leaves a mapping dirty: everything is flushed at the end."""
    script = (
        "import mmap, os\n"
        "f = os.open('/out/m', os.O_RDWR | os.O_CREAT)\nos.ftruncate(f, 100000)\n"
        "m = mmap.mmap(f, 100000)\nm[50000:50005] = b'dirty'\n"
        "k = [open(f'/out/{n}', 'w') for n in range(50)]\n[x.write('y' * 5000) for x in k]\n[x.flush() for x in k]\n"
        "os._exit(0)\n"
    )
    assert world.run(folder, world.python(script, mounts=OUT)).status == 0
    assert world.decrypt(folder, "out/m")[50000:50005] == b"dirty"
    assert world.decrypt(folder, "out/49") == b"y" * 5000


def test_ordinary_user_runs_it_too() -> None:
    """Without root: in a user namespace of his own, given a /dev/fuse that he may open."""
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    machine.need_program("setpriv", "util-linux")
    machine.need_open_checkout()
    with tempfile.TemporaryDirectory() as name:
        _run_as_nobody(Path(name))


def _run_as_nobody(folder: Path) -> None:
    (folder / "out").mkdir()
    device = folder / "fuse"
    subprocess.run(["mknod", "-m", "666", str(device), "c", "10", "229"], check=True)
    for path in (folder, folder / "out"):
        path.chmod(0o777)
    packages = next(path for path in map(Path, sys.path) if path.name == "site-packages")
    places = [str(world.REPOSITORY / "src"), str(world.REPOSITORY), str(packages)]
    (folder / "go.py").write_text(
        f"import sys\nsys.path[:0] = {places!r}\nfrom tests.mount import world\nsys.exit(world.main())\n"
    )
    spec = json.dumps(world.shell("id -u; echo hi > /out/a; cat /out/a; touch /usr/x", mounts=OUT))
    user = f"setpriv --reuid 65534 --regid 65534 --clear-groups {machine.open_python()} -B go.py"
    command = ["unshare", "-m", "sh", "-c", f'mount --bind {device} /dev/fuse && exec {user} "$0"', spec]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.stdout == "0\nhi\n", done.stderr
    assert "Read-only" in done.stderr
    assert (folder / "out/a").stat().st_uid == 65534
    assert world.decrypt(folder, "out/a") == b"hi\n"


def test_output_folder_that_is_missing_costs_no_release(folder: Path) -> None:
    """It is noticed before a key is asked for, so that no run is counted and no lease taken."""
    result = world.run(folder, world.shell("exit 0", mounts=[["encrypted", "/out", "file:nowhere/"]]))
    assert "nowhere" in result.ended["message"]
    assert "OBTAINED" not in result.err
    assert "OBTAINED" in world.run(folder, world.shell("exit 0", mounts=OUT)).err
