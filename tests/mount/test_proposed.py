"""What `adyton new` proposes really runs: each program natively, then under the manifest made from that run."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from adyton.manifest.finalize import finish
from adyton.manifest.observe import observe
from adyton.manifest.propose import DataMount, Proposal, propose
from adyton.storage.files import encrypt_file
from tests.mount.world import KEY, REPOSITORY, decrypt

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed (apt-get install strace)"),
]

RUN = """
import os, pathlib, sys
from adyton.errors import Error
from adyton.manifest.model import parse_manifest
from adyton.runtime.keeper import Delivered
from adyton.runtime.launch import launch
from adyton.runtime.run_plan import plan
from tests.mount.world import KEY
try:
    made = plan(parse_manifest(pathlib.Path(sys.argv[1]).read_text()), read_trusted=lambda entry: b"")
    ended = launch(made, lambda: Delivered({"k": KEY}, {}), simulated=True, note=print)
except Error as error:
    print(error.details())
    sys.exit(getattr(error, "status", 1))
sys.exit(ended.exit_code)
"""


@dataclass(frozen=True)
class Program:
    """A program with its data, and what it must write."""

    files: dict[str, str]
    arguments: tuple[str, ...]
    outputs: dict[str, bytes]
    needs: str | None = None
    command: str | None = None


PROGRAMS = {
    "plain": Program(
        {
            "main.py": "import sys, helper\nopen('out.txt', 'w').write(helper.shout(open(sys.argv[1]).read()))\n",
            "helper.py": "def shout(text):\n    return text.upper()\n",
            "in.txt": "hello",
        },
        ("in.txt",),
        {"out.txt": b"HELLO"},
    ),
    "folders": Program(
        {
            "main.py": "import json, os, pathlib\nos.makedirs('out/deep', exist_ok=True)\n"
            "names = sorted(os.listdir('data'))\n"
            "total = sum(json.loads(pathlib.Path('data', n).read_text())['n'] for n in names)\n"
            "tmp = pathlib.Path('out/deep/sum.tmp')\ntmp.write_text(str(total))\ntmp.rename('out/deep/sum.txt')\n",
            "data/a.json": '{"n": 1}',
            "data/b.json": '{"n": 41}',
        },
        (),
        {"out/deep/sum.txt": b"42"},
    ),
    "multiprocessing": Program(
        {
            "main.py": "import multiprocessing as m\n\ndef f(n):\n    return n * n\n\n"
            "if __name__ == '__main__':\n    with m.get_context('spawn').Pool(2) as pool:\n"
            "        open('squares.txt', 'w').write(' '.join(map(str, pool.map(f, range(5)))))\n",
        },
        (),
        {"squares.txt": b"0 1 4 9 16"},
    ),
    "sqlite": Program(
        {
            "main.py": "import sqlite3\ndb = sqlite3.connect('state/t.db')\n"
            "n = db.execute('select max(n) from t').fetchone()[0]\n"
            "db.execute('insert into t values (?)', (n + 1,))\ndb.commit()\n"
            "open('state/n.txt', 'w').write(str(n + 1))\n",
        },
        (),
        {"state/n.txt": b"3"},
    ),
    "numpy": Program(
        {
            "main.py": "import numpy as np\na = np.loadtxt('m.csv', delimiter=',')\n"
            "np.savetxt('inverse.csv', np.linalg.inv(a), fmt='%g')\n",
            "m.csv": "2,0\n0,4\n",
        },
        (),
        {"inverse.csv": b"0.5 0\n0 0.25\n"},
        needs="numpy",
    ),
    "torch": Program(
        {
            "main.py": "import torch\nw = torch.load('w.pt')\ntorch.set_num_threads(1)\n"
            "open('y.txt', 'w').write(str((w @ torch.ones(3)).tolist()))\n",
        },
        (),
        {"y.txt": b"[3.0, 12.0]"},
        needs="torch",
    ),
    "dash": Program(
        {"in.txt": "from a shell\n"},
        ("-c", "read x < in.txt; echo $x > out.txt"),
        {"out.txt": b"from a shell\n"},
        command="/bin/sh",
    ),
}


def prepare(folder: Path, name: str) -> None:
    """Data that no text can hold."""
    if name == "sqlite":
        import sqlite3

        (folder / "state").mkdir()
        with sqlite3.connect(folder / "state" / "t.db") as db:
            db.execute("create table t (n integer)")
            db.execute("insert into t values (1)")
        db.close()
    if name == "torch":
        code = "import torch; torch.save(torch.arange(6.0).reshape(2, 3), 'w.pt')"
        subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)


def encrypt(folder: Path, mount: DataMount) -> None:
    """What the commands at the head of a template do with an input."""
    source, target = folder / mount.source, folder / mount.encrypted
    if not mount.is_input:
        return
    files = [path for path in source.rglob("*") if path.is_file()] if mount.is_folder else [source]
    for path in files:
        place = target / path.relative_to(source) if mount.is_folder else target
        place.parent.mkdir(parents=True, exist_ok=True)
        encrypt_file(path, place, KEY, path=str(place.relative_to(folder)))


def build(folder: Path, program: Program) -> Proposal:
    """One native run, the proposal, the data encrypted and taken away, the manifest built."""
    command = [program.command] if program.command else [sys.executable, "main.py"]
    seen = observe([*command, *program.arguments], folder)
    found = propose(seen, name="app", script=command[-1], cpus=1, key_name="k")
    (folder / "app.trusted").write_text(found.trusted_list)
    for file in found.files:
        (folder / file.name).write_text(file.text)
    for storage in found.storage:
        (folder / storage).mkdir(parents=True, exist_ok=True)
    for mount in found.data:
        encrypt(folder, mount)
    for mount in found.data:
        source = folder / mount.source
        if not source.is_relative_to(folder):
            raise AssertionError(f"the program used {source}, which is not this test's to take away")
        shutil.rmtree(source) if source.is_dir() else source.unlink(missing_ok=True)
    (folder / "app.manifest").write_bytes(finish(found.template, folder).manifest_bytes)
    return found


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.timeout(240)
def test_proposed_manifest_runs_the_program(tmp_path: Path, name: str) -> None:
    """The same outputs as natively, encrypted; the project's plaintext is gone before the run and stays away."""
    program = PROGRAMS[name]
    if program.needs is not None and importlib.util.find_spec(program.needs) is None:
        pytest.skip(f"the Python package {program.needs} is not installed (make setup-test)")
    folder = tmp_path / "project"
    for path, text in program.files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    prepare(folder, name)
    found = build(folder, program)
    if name == "sqlite":
        assert [(mount.source, mount.is_input, mount.is_output) for mount in found.data] == [("state", True, True)]
    run_proposed(folder)
    for path, content in program.outputs.items():
        assert decrypt(folder, f"encrypted/{path}") == content
        assert not (folder / path).exists()


def test_trusted_file_below_tmp_shows_in_the_programs_memory(tmp_path: Path) -> None:
    """Code that lies below /tmp is there, cannot be written, and /tmp around it is the program's own memory."""
    folder = tmp_path / "project"
    folder.mkdir()
    with tempfile.TemporaryDirectory(dir="/tmp") as library:
        Path(library, "outside.py").write_text("WORD = 'measured'\n")
        (folder / "main.py").write_text(
            f"import os, sys\nsys.path.insert(0, {library!r})\nimport outside\n"
            "open('/tmp/scratch', 'w').write('x')\n"
            f"try:\n    open({library!r} + '/outside.py', 'a')\n    read_only = False\n"
            "except OSError:\n    read_only = True\n"
            "open('out.txt', 'w').write(f'{outside.WORD} {read_only}')\n"
        )
        (folder / "in.txt").write_text("")
        build(folder, Program({}, (), {}))
        run_proposed(folder)
    assert decrypt(folder, "encrypted/out.txt") == b"measured True"
    Path("/tmp/scratch").unlink(missing_ok=True)


def run_proposed(folder: Path) -> None:
    """Run app.manifest without attestation; fails with the program's log if it does not end well."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, "app.manifest"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}/src:{REPOSITORY}"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    log = decrypt(folder, "app.log").decode() if (folder / "app.log").exists() else ""
    assert done.returncode == 0, done.stdout + done.stderr + log
    assert "Could not find platform" not in log, "a folder that Python looks for at its start is not there"
