"""Real programs on a mounted encrypted folder."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.mount.served import Served, serve
from tests.support import machine

pytestmark = pytest.mark.mount

_INSERTS = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute(f"pragma journal_mode={sys.argv[2]}")
db.execute("pragma synchronous=full")
db.execute("create table if not exists t (n integer primary key, filler blob)")
n = (db.execute("select max(n) from t").fetchone()[0] or 0)
while True:
    n += 1
    db.execute("insert into t values (?, randomblob(3000))", (n,))
    print(n, flush=True)
"""


def _insert_for(database: Path, mode: str, seconds: float) -> tuple[subprocess.Popen[bytes], float]:
    process = subprocess.Popen([sys.executable, "-c", _INSERTS, str(database), mode], stdout=subprocess.PIPE)
    time.sleep(seconds)
    return process, seconds


def _acknowledged(process: subprocess.Popen[bytes]) -> int:
    out, _ = process.communicate()
    whole = [line for line in out.split(b"\n")[:-1] if line.isdigit()]
    return int(whole[-1]) if whole else 0


def _check(database: Path, at_least: int) -> None:
    with contextlib.closing(sqlite3.connect(database)) as db:
        assert db.execute("pragma integrity_check").fetchone() == ("ok",)
        count, last = db.execute("select count(*), max(n) from t").fetchone()
        assert count == (last or 0) >= at_least


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_sqlite_killed_in_the_middle_keeps_every_commit(served: Served, mode: str) -> None:
    """kill -9 of the program again and again: the database is whole and has every row that was acknowledged."""
    database = served.top / "t.db"
    chance = random.Random(5)
    last = 0
    for _ in range(4):
        process, _ = _insert_for(database, mode, 0.3 + chance.random() * 0.4)
        process.send_signal(signal.SIGKILL)
        last = max(last, _acknowledged(process))
        _check(database, last)
    assert last > 10
    assert served.unmount() == 0
    assert served.events() == ""


def test_sqlite_survives_the_killed_file_server(tmp_path: Path) -> None:
    """kill -9 of the file server: after mounting again the database is whole and has every acknowledged row."""
    last = 0
    for _ in range(3):
        served = serve(tmp_path)
        try:
            process, _ = _insert_for(served.top / "t.db", "delete", 0.8)
            served.process.kill()
            served.process.wait()
            process.wait(20)
            last = max(last, _acknowledged(process))
        finally:
            served.destroy()
        served = serve(tmp_path)
        try:
            _check(served.top / "t.db", last)
        finally:
            served.destroy()
    assert last > 10


def test_git_clones_and_commits_in_the_mount(served: Served, tmp_path: Path) -> None:
    """git init, commit, clone, gc and fsck."""
    machine.need_program("git")
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"}
    for name in ("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"):
        environment[name] = "a@example.org"

    def git(folder: Path, *words: str) -> str:
        done = subprocess.run(["git", *words], cwd=folder, env=environment, capture_output=True, text=True, check=True)
        return done.stdout

    origin = tmp_path / "origin"
    origin.mkdir()
    git(origin, "init", "-q", "-b", "main")
    for number in range(120):
        folder = origin / f"d{number % 7}"
        folder.mkdir(exist_ok=True)
        (folder / f"f{number}.txt").write_text(f"{number}\n" * number)
        if number % 40 == 39:
            git(origin, "add", ".")
            git(origin, "commit", "-qm", f"Add {number}")
    git(served.top, "clone", "-q", str(origin), "clone")
    clone = served.top / "clone"
    assert git(clone, "status", "--porcelain") == ""
    (clone / "d1/new.txt").write_text("new")
    (clone / "d0/f0.txt").unlink()
    git(clone, "add", "-A")
    git(clone, "commit", "-qm", "Change")
    git(clone, "gc", "-q")
    git(clone, "fsck", "--strict")
    assert git(clone, "rev-list", "--count", "HEAD").strip() == "4"
    shutil.rmtree(clone)
    assert os.listdir(served.top) == []


def test_pytest_runs_in_the_mount(served: Served) -> None:
    """A small suite with its own temporary files and bytecode inside the mount."""
    (served.top / "test_it.py").write_text(
        textwrap.dedent(
            """
            import pytest
            @pytest.mark.parametrize("n", range(20))
            def test_file(tmp_path, n):
                (tmp_path / "x").write_text(str(n))
                assert (tmp_path / "x").read_text() == str(n)
            """
        )
    )
    command = [sys.executable, "-m", "pytest", "-q", "--basetemp=tmp", "-p", "no:xdist", "test_it.py"]
    done = subprocess.run(command, cwd=served.top, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "20 passed" in done.stdout


def test_fio_verifies_random_writes(served: Served) -> None:
    """fio writes at random places, several jobs at once, and verifies what it reads back."""
    machine.need_program("fio")
    command = [
        "fio",
        "--verify_state_save=0",
        "--name=v",
        f"--directory={served.top}",
        "--rw=randrw",
        "--bsrange=512-64k",
        "--size=6M",
    ]
    command += [
        "--numjobs=2",
        "--verify=crc32c",
        "--do_verify=1",
        "--verify_fatal=1",
        "--ioengine=psync",
        "--randseed=1",
    ]
    done = subprocess.run(
        [*command, "--end_fsync=1", "--output-format=terse"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_torch_trains_with_workers_and_checkpoints(served: Served) -> None:
    """A training loop whose DataLoader workers read the mount and whose checkpoints go there."""
    pytest.importorskip("torch")
    script = textwrap.dedent(
        """
        import os, sys, torch
        from torch.utils.data import DataLoader, Dataset
        top = sys.argv[1]
        torch.manual_seed(0)
        torch.save(torch.randn(64, 10), top + "/data.pt")
        class Data(Dataset):
            def __init__(self): self.x = torch.load(top + "/data.pt", mmap=True)
            def __len__(self): return 64
            def __getitem__(self, i): return self.x[i], self.x[i].sum()
        model = torch.nn.Linear(10, 1)
        optimiser = torch.optim.SGD(model.parameters(), 0.01)
        for epoch in range(3):
            for x, y in DataLoader(Data(), batch_size=16, num_workers=2, shuffle=True):
                loss = ((model(x).squeeze() - y) ** 2).mean()
                optimiser.zero_grad(); loss.backward(); optimiser.step()
            torch.save(model.state_dict(), top + "/checkpoint.tmp")
            os.replace(top + "/checkpoint.tmp", top + "/checkpoint.pt")
        again = torch.load(top + "/checkpoint.pt", weights_only=True)
        assert all(torch.equal(again[name], value) for name, value in model.state_dict().items())
        print("trained")
        """
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(served.top)], env=environment, capture_output=True, text=True, check=False
    )
    assert "trained" in done.stdout, done.stderr
    assert sorted(os.listdir(served.top)) == ["checkpoint.pt", "data.pt"]
    assert served.unmount() == 0
    assert served.events() == ""
    assert served.decrypted("checkpoint.pt")[:2] == b"PK"
