"""What strace's output means, and that a real run is observed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from adyton.errors import NoDevice, ScriptFailed, UsageError
from adyton.manifest.observe import observe, read_trace

TRACE = r"""
100 execve("/usr/bin/app", ["app", "AT_FDCWD</x>, \"y\""], 0x7ffd /* 3 vars */) = 0
100 access("/etc/ld.so.preload", R_OK) = -1 ENOENT (No such file or directory)
100 openat(AT_FDCWD</work>, "in.txt", O_RDONLY|O_CLOEXEC) = 3</work/in.txt>
100 newfstatat(3</work/in.txt>, "", {st_mode=S_IFREG|0644, st_size=3, ...}, AT_EMPTY_PATH) = 0
100 newfstatat(AT_FDCWD</work>, "/usr/lib/x", {st_mode=S_IFREG|0644, ...}, 0) = 0
100 openat(AT_FDCWD</work>, "dir", O_RDONLY|O_NONBLOCK|O_CLOEXEC|O_DIRECTORY) = 3</work/dir>
100 openat(3</work/dir>, "\303\244\n\"q\"\\", O_RDONLY) = 4</work/dir/\303\244\n\"q\"\\>
100 openat(AT_FDCWD</work>, "missing", O_RDONLY) = -1 ENOENT (No such file or directory)
100 openat(AT_FDCWD</work>, "out.tmp", O_WRONLY|O_CREAT|O_TRUNC|O_CLOEXEC, 0666) = 5</work/out.tmp>
100 rename("out.tmp", "out") = 0
100 openat(AT_FDCWD</work>, "scratch", O_RDWR|O_CREAT|O_EXCL, 0600) = 5</work/scratch>
100 unlink("scratch") = 0
100 openat(AT_FDCWD</work>, "both", O_RDWR) = 5</work/both>
100 openat(AT_FDCWD</work>, "out", O_RDONLY) = 6</work/out>
100 clone3({flags=CLONE_VM|CLONE_THREAD, child_tid=0x7f}, 88) = 101
100 clone3({flags=CLONE_VM|CLONE_THREAD, child_tid=0x7f} <unfinished ...>
101 openat(AT_FDCWD</work>, "cut", O_RDONLY <unfinished ...>
100 <... clone3 resumed>, 88) = 102
101 <... openat resumed>) = 7</work/cut>
101 +++ exited with 0 +++
100 clone3({flags=CLONE_VM|CLONE_THREAD, child_tid=0x7f}, 88) = 103
100 clone(child_stack=NULL, flags=CLONE_CHILD_CLEARTID|SIGCHLD, child_tidptr=0x7f) = 104
104 chdir("sub") = 0
104 execve("./tool", ["./tool"], 0x7ffd /* 3 vars */) = 0
104 mkdir("made", 0777) = 0
104 readlink("/proc/self/exe", "/usr/bin/app", 4096) = 12
nonsense
"""


def test_trace_of_a_run_says_what_became_of_each_path() -> None:
    """Reads, writes, looks and programs; names relative to folders, descriptors and each process's own folder."""
    found = read_trace(TRACE.strip().splitlines(), "/work")
    assert list(found.reads) == [
        "/usr/bin/app",
        "/work/in.txt",
        '/work/dir/ä\n"q"\\',
        "/work/both",
        "/work/cut",
        "/work/sub/tool",
    ]
    assert list(found.writes) == ["/work/out", "/work/both", "/work/sub/made"]
    assert list(found.looks) == ["/usr/lib/x", "/work/dir", "/proc/self/exe"]
    assert list(found.execs) == ["/usr/bin/app", "/work/sub/tool"]
    assert found.peak_threads == 3  # 100, 101 and 102, then 100, 102 and 103


@pytest.mark.parametrize(
    ("flags", "is_input"),
    [
        ("O_RDWR|O_CREAT|O_CLOEXEC", True),
        ("O_WRONLY|O_CREAT|O_APPEND", True),
        ("O_RDWR|O_CREAT|O_TRUNC", False),
        ("O_WRONLY|O_CREAT|O_TRUNC", False),
    ],
)
def test_trace_of_a_file_that_existed_says_whether_its_content_counts(flags: str, is_input: bool) -> None:
    """A database or a log that goes on is an input too; a file that is cut is not."""
    line = f'1 openat(AT_FDCWD</w>, "a", {flags}, 0644) = 3</w/a>'
    found = read_trace([line], "/w", frozenset({"/w/a"}))
    assert list(found.writes) == ["/w/a"]
    assert list(found.reads) == (["/w/a"] if is_input else [])
    assert not read_trace([line], "/w").reads


def test_trace_that_is_cut_or_foreign_is_no_error() -> None:
    """Lines that mean nothing are passed over."""
    found = read_trace(["", "100 openat(", "x", "100 <... openat resumed>) = 3", '7 open("a"..., O_RDONLY) = 3'], "/w")
    assert not any((found.reads, found.writes, found.looks))


needs_strace = pytest.mark.skipif(
    shutil.which("strace") is None, reason="strace is not installed (apt-get install strace)"
)


@needs_strace
def test_run_is_observed_with_its_memory_and_threads(tmp_path: Path) -> None:
    """A real program: what it read and wrote, its peak, its threads, its working folder."""
    (tmp_path / "in.txt").write_text("hello")
    (tmp_path / "p.py").write_text(
        "import threading, time, sys\n"
        "block = bytearray(60 << 20)\n"
        "ts = [threading.Thread(target=time.sleep, args=(2.0,)) for _ in range(3)]\n"
        "[t.start() for t in ts]\n"
        "open('out.txt', 'w').write(open(sys.argv[1]).read())\n"
        "[t.join() for t in ts]\n"
    )
    # from a small process: Linux counts to a program's peak what its starter held until the program began
    code = (
        "import json, sys; from pathlib import Path; from adyton.manifest.observe import observe\n"
        "seen = observe([sys.executable, 'p.py', 'in.txt'], Path.cwd())\n"
        "print(json.dumps([list(seen.read), list(seen.written), seen.peak_bytes, seen.peak_threads]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    read, written, peak_bytes, peak_threads = json.loads(done.stdout)
    assert {str(tmp_path / "in.txt"), str(tmp_path / "p.py")} <= set(read)
    assert written == [str(tmp_path / "out.txt")]
    assert 60 << 20 < peak_bytes < 400 << 20
    assert peak_threads == 4
    assert (tmp_path / "out.txt").read_text() == "hello"


@needs_strace
def test_run_that_fails_is_no_proposal(tmp_path: Path) -> None:
    """A program that fails natively says so with its own exit code."""
    (tmp_path / "p.py").write_text("raise SystemExit(5)")
    with pytest.raises(ScriptFailed) as failed:
        observe([sys.executable, "p.py"], tmp_path)
    assert failed.value.status == 5


def test_run_without_strace_is_no_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without strace nothing can be observed."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoDevice, match="strace"):
        observe(["true"], tmp_path)


@needs_strace
def test_run_of_no_program_is_a_usage_error(tmp_path: Path) -> None:
    """A name that is nothing is the caller's mistake."""
    with pytest.raises(UsageError, match="no program"):
        observe(["/nonexistent/program"], tmp_path)
