"""Other people's programs, confined: what they read and write is nowhere on the host but sealed.

Each runs once as it is, then under the manifest that `adyton new` makes of that run. Its secret is searched for in all
that the host could see afterwards: raw, packed, and in whatever was written to the host's own temporary folders.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from demo.canary import draw, search
from tests.mount.java_class import copying_class
from tests.mount.test_proposed import Program, build, run_proposed
from tests.mount.world import decrypt
from tests.support import machine

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed (apt-get install strace)"),
]

_TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")
_MOST_BYTES = 64 << 20

_TRAIN = """
import os, torch
from torch.utils.data import DataLoader, Dataset
torch.manual_seed(0)
class Data(Dataset):
    text = open("secret.txt", "rb").read()
    def __len__(self): return 64
    def __getitem__(self, i):
        x = torch.tensor(list(self.text[i * 10 : i * 10 + 10]), dtype=torch.float32)
        return x, x.sum()
if __name__ == "__main__":
    os.makedirs("out", exist_ok=True)
    model = torch.nn.Linear(10, 1)
    optimiser = torch.optim.SGD(model.parameters(), 1e-6)
    for epoch in range(2):
        for x, y in DataLoader(Data(), batch_size=16, num_workers=2):
            loss = ((model(x).squeeze() - y) ** 2).mean()
            optimiser.zero_grad(); loss.backward(); optimiser.step()
        torch.save({"model": model.state_dict(), "secret": Data.text}, "out/checkpoint.tmp")
        os.replace("out/checkpoint.tmp", "out/checkpoint.pt")
"""

_PYTEST = """
import os, pytest, sys
os.makedirs("out", exist_ok=True)
sys.exit(pytest.main(["-q", "-p", "no:xdist", "-p", "no:cacheprovider", "--basetemp=out/tmp", "test_it.py"]))
"""

_PROCESSES = """
import multiprocessing as m, os, threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import shared_memory

def part(n):
    text = open("secret.txt").read()
    return text[n * 1000 : n * 1000 + 1000]

def put(queue, n):
    queue.put((n, part(n)))

if __name__ == "__main__":
    whole = open("secret.txt").read()
    for method in ("fork", "spawn", "forkserver"):
        context = m.get_context(method)
        queue, done = context.Queue(), context.Semaphore(0)
        children = [context.Process(target=put, args=(queue, n)) for n in range(4)]
        for child in children:
            child.start()
        assert "".join(text for _, text in sorted(queue.get() for _ in children)) == whole
        for child in children:
            child.join()
            assert child.exitcode == 0
        with ProcessPoolExecutor(2, mp_context=context) as pool:
            assert "".join(pool.map(part, range(4))) == whole
    block = shared_memory.SharedMemory(create=True, size=4000)
    block.buf[:4000] = whole.encode()
    child = m.get_context("fork").Process(target=lambda: open("out.txt", "wb").write(bytes(block.buf[:4000])))
    child.start()
    child.join()
    block.close()
    block.unlink()
"""

_TEST_IT = """
import pytest
@pytest.mark.parametrize("n", range(5))
def test_file(tmp_path, n):
    (tmp_path / "x").write_text(open("secret.txt").read() * n)
    assert len((tmp_path / "x").read_text()) % 4000 == 0
"""

_GIT = (
    "git init -q repo && cp secret.txt repo/ && cd repo && git add . && "
    "git -c user.name=a -c user.email=a@example.org commit -qm first && git gc -q && git fsck --strict && "
    "git show HEAD:secret.txt > ../out.txt"
)

_SQLITE = (
    "sqlite3 db/t.db \"create table t (x); insert into t values (readfile('secret.txt')); "
    'insert into t select randomblob(100000) from t; vacuum; pragma integrity_check;" && '
    "sqlite3 db/t.db \"select writefile('out.txt', x) from t limit 1\""
)

_FIO = (
    "mkdir -p out && fio --verify_state_save=0 --name=v --directory=out --rw=randrw --bsrange=512-64k --size=8M "
    "--numjobs=2 --verify=crc32c --do_verify=1 --verify_fatal=1 --ioengine={engine} --randseed=1 --end_fsync=1 "
    "--output-format=terse > out/report && cp secret.txt out.txt"
)


@dataclass(frozen=True)
class Confined:
    """A program, the tool that it needs, and the output that must hold the secret."""

    words: tuple[str, ...]
    output: str
    needs: str
    files: tuple[tuple[str, str], ...] = ()
    is_python: bool = False
    command: str = "/bin/sh"


PROGRAMS = {
    "git": Confined(("-c", _GIT), "out.txt", "git"),
    "sqlite3": Confined(("-c", _SQLITE), "out.txt", "sqlite3"),
    "fio": Confined(("-c", _FIO.format(engine="psync")), "out.txt", "fio"),
    "fio-mmap": Confined(("-c", _FIO.format(engine="mmap")), "out.txt", "fio"),
    "static-go": Confined(("-c", "pup -f secret.txt 'text{}' > out.txt"), "out.txt", "pup"),
    "java": Confined(("-Xmx64m", "-Xshare:auto", "-cp", ".", "Copy"), "out.txt", "java", command="java"),
    "multiprocessing": Confined((), "out.txt", "", (("main.py", _PROCESSES),), is_python=True),
    "pytest": Confined(
        (), "out/tmp/test_file_1_0/x", "", (("main.py", _PYTEST), ("test_it.py", _TEST_IT)), is_python=True
    ),
    "torch": Confined((), "out/checkpoint.pt", "", (("main.py", _TRAIN),), is_python=True),
}


def _secret() -> bytes:
    """4,000 letters that occur nowhere else."""
    chance = random.Random()
    return bytes(chance.choices(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", k=3999)) + b"\n"


def _host_files(folder: Path) -> dict[Path, tuple[int, int, int]]:
    """What the host has, with inode, time and size: the project's folder, and the machine's temporary folders."""
    found = {}
    for top in (str(folder), *_TEMPORARY):
        for place, folders, names in os.walk(top):
            if place != str(folder) and not place.startswith(f"{folder}/") and "pytest-of-" in place:
                folders.clear()
                continue
            for name in names:
                path = Path(place, name)
                with contextlib.suppress(OSError):
                    facts = path.lstat()
                    if stat.S_ISREG(facts.st_mode) and facts.st_size <= _MOST_BYTES:
                        found[path] = (facts.st_ino, facts.st_mtime_ns, facts.st_size)
    return found


def _leaks(secret: bytes, folder: Path, before: dict[Path, tuple[int, int, int]]) -> list[str]:
    """Where the secret shows in what is new on the host, or changed, or lies in the project's folder."""
    canaries = draw("secret", secret, count=40)
    found = []
    for path, facts in _host_files(folder).items():
        if before.get(path) != facts or path.is_relative_to(folder):
            with contextlib.suppress(OSError):
                if search(path.read_bytes(), canaries):
                    found.append(str(path))
    return found


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.timeout(300)
def test_program_runs_confined_and_leaves_nothing_in_clear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Its output is right, and the secret shows nowhere, though the same search finds it in the plain run."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # no settings of whoever runs the tests
    program = PROGRAMS[name]
    if program.needs:
        machine.need_program(program.needs)
    if name == "torch":
        pytest.importorskip("torch")
    if name == "static-go":
        head = Path(shutil.which("pup") or "").read_bytes()
        assert b"Go build" in head
        assert b"ld-linux" not in head[:4096], "not a static program"
    folder = tmp_path / "project"
    folder.mkdir()
    secret = _secret()
    (folder / "secret.txt").write_bytes(secret)
    for path, text in program.files:
        (folder / path).write_text(text)
    for made in ("db",) if name == "sqlite3" else ():
        (folder / made).mkdir()
    if name == "java":
        (folder / "Copy.class").write_bytes(copying_class("Copy", "secret.txt", "out.txt"))
    before = _host_files(folder)
    command = None if program.is_python else os.path.realpath(shutil.which(program.command) or program.command)
    rehearsal = tmp_path / "rehearsal"
    shutil.copytree(folder, rehearsal)
    subprocess.run([command or sys.executable, *(program.words or ("main.py",))], cwd=rehearsal, check=True)
    assert _leaks(secret, rehearsal, before), "the search finds nothing: it proves nothing"
    shutil.rmtree(rehearsal)

    build(folder, Program({}, program.words, {}, command=command))
    for left in (folder / "secret.txt", folder / program.output):
        assert not left.exists()
    before = _host_files(folder)
    run_proposed(folder)
    assert secret[:-1] in decrypt(folder, f"encrypted/{program.output}")
    assert _leaks(secret, folder, before) == []
