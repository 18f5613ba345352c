"""Programs that people run: after `adyton protect` alone they run as they did natively, or are refused at once."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.chain import Ended, Place, until

pytestmark = [
    pytest.mark.mount,
    pytest.mark.timeout(180),
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed (apt-get install strace)"),
]


@dataclass
class Desk:
    """An owner whose key server runs, and folders in which she protects programs."""

    environment: dict[str, str]
    address: str

    def project(self, folder: Path, files: dict[str, str], **environment: str) -> Project:
        """A folder with these files, and a home of its own beside it."""
        for name, text in files.items():
            (folder / "work" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "work" / name).write_text(text)
        (folder / "home").mkdir(exist_ok=True)
        own = {"HOME": str(folder / "home"), "XDG_CACHE_HOME": str(folder / "cache")}
        return Project(folder / "work", {**self.environment, **own, **environment}, self.address)


class Project(Place):
    """A folder with a script."""

    def protect(self, *words: str) -> Ended:
        """Protect a program, which must succeed."""
        ended = self.adyton("protect", "--tee", "sim", *words)
        assert ended.status == 0, ended.out + ended.err
        return ended

    def differences(self, *words: str, stdin: bytes = b"") -> dict[str, dict[str, str]]:
        """What `protect --json` tells, by kind."""
        command = self.command("protect", "--tee", "sim", "--json", *words)
        ended = subprocess.run(
            command, cwd=self.folder, env=self.environment, input=stdin, capture_output=True, timeout=60, check=False
        )
        assert ended.returncode == 0, ended.stderr
        return {entry["kind"]: entry for entry in json.loads(ended.stdout)["differences"]}

    def run_protected(self, name: str) -> Ended:
        """Run the program in the simulated TEE."""
        return self.adyton("run", f"{name}.manifest", "--tee", "sim", "--key-server", self.address)

    def opened(self, path: str) -> bytes:
        """The owner's view of a file that the run has written."""
        ended = self.adyton("decrypt", f"encrypted/{path}", "-o", "opened", "--key", "default")
        assert ended.status == 0, ended.err
        content = (self.folder / "opened").read_bytes()
        (self.folder / "opened").unlink()
        return content

    def runs_as_natively(self, name: str, *outputs: str) -> None:
        """Take the native outputs away, run, and compare what the protected run has written."""
        native = {path: (self.folder / path).read_bytes() for path in outputs}
        for path in outputs:
            (self.folder / path).unlink()
        ended = self.run_protected(name)
        assert ended.status == 0, ended.err + self.log(name)
        assert {path: self.opened(path) for path in outputs} == native

    def log(self, name: str) -> str:
        """What the last run of this program printed."""
        return self.adyton("decrypt", f"{name}.log", "-o", "-", "--key", "default").out


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """Home, key, simulated platform, and a key server until the last test of this file."""
    folder = tmp_path_factory.mktemp("desk")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ADYTON_", "VIRTUAL_ENV"))}
    environment |= {
        "ADYTON_HOME": str(folder / "owner"),
        "ADYTON_SIM_PLATFORM": str(folder / "platform"),
        "OMP_NUM_THREADS": "1",
    }
    place = Place(folder, environment)
    for words in (("init",), ("key", "new", "default")):
        assert place.adyton(*words).status == 0
    ready = folder / "ready"
    server = place.start("serve", "--listen", "127.0.0.1:0", "--ready-file", ready)
    try:
        until(lambda: (ready.exists() and bool(ready.read_text())) or server.poll() is not None)
        yield Desk(environment, json.loads(ready.read_text())["adyton"])
    finally:
        server.terminate()
        server.communicate(timeout=20)


# ---------------------------------------------------------------- which Python


@pytest.fixture
def environment_with_module(tmp_path: Path) -> Path:
    """A virtual environment that has a module which Adyton's own lacks."""
    folder = tmp_path / "own env"
    venv.create(folder, with_pip=False, symlinks=True)
    packages = next((folder / "lib").glob("python3*")) / "site-packages"
    (packages / "only_here.py").write_text("WORD = 'from the environment'\n")
    return folder


USES_MODULE = "import only_here\nopen('out/word', 'w').write(only_here.WORD)\n"


def test_script_runs_with_the_interpreter_of_the_active_environment(
    desk: Desk, tmp_path: Path, environment_with_module: Path
) -> None:
    """`python own.py` works natively, so that `protect own.py` does."""
    project = desk.project(tmp_path, {"own.py": USES_MODULE, "out/.keep": ""}, VIRTUAL_ENV=str(environment_with_module))
    assert "own.manifest" in project.protect("own.py").out
    project.runs_as_natively("own", "out/word")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("app", ("app/",)),
        ("app", ("-m", "app")),
        ("own", ("own.py",)),
    ],
)
def test_python_is_named_for_scripts_modules_and_folders(
    desk: Desk, tmp_path: Path, environment_with_module: Path, name: str, words: tuple[str, ...]
) -> None:
    """With --python EXE, or with the word `python` before the script; the program's name is its own."""
    files = {"own.py": USES_MODULE, "app/__init__.py": "", "app/__main__.py": USES_MODULE, "out/.keep": ""}
    project = desk.project(tmp_path, files)
    python = str(environment_with_module / "bin" / "python")
    assert f"{name}.manifest" in project.protect("--python", python, *words).out
    project.runs_as_natively(name, "out/word")
    if name == "own":
        project.protect("--force", python, *words)
        assert not list(project.folder.glob("python*"))


def test_editable_installation_in_the_project_runs(desk: Desk, tmp_path: Path) -> None:
    """Its path stands in the environment, so that the project's folder keeps its path inside."""
    project = desk.project(tmp_path, {"src/mine.py": "WORD = 'edited'\n", "out/.keep": ""})
    folder = project.folder / ".venv"
    venv.create(folder, with_pip=False, symlinks=True)
    packages = next((folder / "lib").glob("python3*")) / "site-packages"
    (packages / "__editable__.mine.pth").write_text(f"{project.folder}/src\n")
    (project.folder / "main.py").write_text("import mine\nopen('out/word', 'w').write(mine.WORD)\n")
    project.environment["VIRTUAL_ENV"] = str(folder)
    project.protect("main.py")
    project.runs_as_natively("main", "out/word")


@pytest.mark.parametrize("head", ["#!/bin/sh", "#!/usr/bin/env sh", "#!{python}"])
def test_programs_that_begin_with_their_interpreter_run(desk: Desk, tmp_path: Path, head: str) -> None:
    """The kernel opens what stands after `#!`, and no trace shows it."""
    is_python = "python" in head
    text = head.format(python=sys.executable) + "\n"
    text += "open('out/word', 'w').write('word')\n" if is_python else "echo word > out/word\n"
    project = desk.project(tmp_path, {"tool": text, "out/.keep": ""})
    (project.folder / "tool").chmod(0o755)
    project.protect("tool")
    project.runs_as_natively("tool", "out/word")


def test_script_with_an_odd_name_gets_a_plain_one(desk: Desk, tmp_path: Path) -> None:
    """Blanks and letters with accents work, in the script's name and in those of its files."""
    script = "open('aus gabe/größe', 'w').write(open('ein gabe/maß.txt').read().upper())\n"
    files = {"mein größtes.py": script, "ein gabe/maß.txt": "zwölf\n", "aus gabe/.keep": ""}
    project = desk.project(tmp_path, files)
    assert "decrypt 'encrypted/aus gabe" in project.protect("mein größtes.py").out
    project.runs_as_natively("mein-grotes", "aus gabe/größe")
    refused = project.adyton("protect", "--tee", "sim", "--name", "mein Name", "mein größtes.py")
    refused.refused(2, "--name")
    assert not (project.folder / "mein Name.manifest.template").exists()


def test_what_cannot_be_run_is_refused_at_once(desk: Desk, tmp_path: Path) -> None:
    """With what to do about it."""
    project = desk.project(tmp_path, {"script": "print(1)\n", "folder/x": ""})
    for words, said in (
        (("script",), "--python"),
        (("folder",), "__main__.py"),
        (("sh",), "/sh"),
        (("--python", "no-such-python", "script"), "no-such-python"),
        (("-m",), "-m MODULE"),
    ):
        project.adyton("protect", "--tee", "sim", *words).refused(2, said)
    assert not (project.folder / "encrypted").exists()


# ---------------------------------------------------------------- outputs beside the program

PROGRAMS = {
    "resumes": (
        "import os\nassert not os.path.exists('ck.pt'), os.path.getsize('ck.pt')\nopen('ck.pt', 'x').write('state')\n",
        ("ck.pt",),
    ),
    "replaces": (
        (
            "import os\nfor n in range(3):\n    with open('out.txt.tmp', 'w') as f:\n"
            "        f.write(f'epoch {n}\\n'); f.flush(); os.fsync(f.fileno())\n"
            "    os.replace('out.txt.tmp', 'out.txt')\n"
        ),
        ("out.txt",),
    ),
    "rotates": (
        (
            "import logging.handlers as h, logging\nl = logging.getLogger('t'); l.setLevel(20)\n"
            "a = h.RotatingFileHandler('train.log', maxBytes=400, backupCount=2); l.addHandler(a)\n"
            "for i in range(40): l.info('step %d loss %.3f', i, 1 / (i + 1))\n"
        ),
        ("train.log", "train.log.1"),
    ),
    "folder": (
        (
            "import os, shutil\nos.mkdir('run-tmp'); open('run-tmp/w', 'w').write('w'); os.rename('run-tmp', 'run')\n"
            "os.mkdir('gone'); open('gone/x', 'w').close(); shutil.rmtree('gone')\n"
        ),
        ("run/w",),
    ),
    "sqlite": (
        (
            "import sqlite3\nd = sqlite3.connect('t.db'); d.execute('create table t (n integer)')\n"
            "for n in range(9):\n    d.execute('insert into t values (?)', (n,)); d.commit()\n"
            "open('sum', 'w').write(str(d.execute('select sum(n) from t').fetchone()))\n"
        ),
        ("sum",),
    ),
    "memmap": (
        (
            "import mmap\nwith open('m.bin', 'w+b') as f:\n    f.truncate(8192)\n"
            "    m = mmap.mmap(f.fileno(), 0)\n    m[4000:4004] = b'here'\n    m.flush()\n"
        ),
        ("m.bin",),
    ),
    "deep": (
        "import pkg.mod\nopen('pkg/made.txt', 'w').write(pkg.mod.table())\n",
        ("pkg/made.txt",),
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_outputs_beside_the_program_are_written_as_natively(desk: Desk, tmp_path: Path, name: str) -> None:
    """Fresh names, replaced and rotated files, journals, folders: in the folder where the program itself lies."""
    text, outputs = PROGRAMS[name]
    files = {
        f"{name}.py": text,
        "pkg/__init__.py": "",
        "pkg/table.csv": "1,2\n",
        "pkg/mod.py": "import os\ndef table():\n"
        "    return open(os.path.join(os.path.dirname(__file__), 'table.csv')).read() * 2\n",
    }
    project = desk.project(tmp_path, files)
    project.protect(f"{name}.py")
    for path in outputs:
        assert not (project.folder / "encrypted" / path).exists()
    project.runs_as_natively(name, *outputs)


def test_checkpoint_that_was_read_and_replaced_goes_on(desk: Desk, tmp_path: Path) -> None:
    """It is an input as well: every run goes on where the last one ended."""
    script = "import os\nn = int(open('n').read())\nopen('n.tmp', 'w').write(str(n + 1))\nos.replace('n.tmp', 'n')\n"
    project = desk.project(tmp_path, {"count.py": script, "n": "1"})
    project.protect("count.py")
    for expected in (b"3", b"4"):
        assert project.run_protected("count").status == 0
        assert project.opened("n") == expected


def test_home_is_one_inside_as_outside(desk: Desk, tmp_path: Path) -> None:
    """What lies in it is read there, what is written there is kept, and a cache that was not there is memory."""
    script = (
        "import os, pathlib\nhome = pathlib.Path.home()\n"
        "(home / 'result.txt').write_text((home / '.cache/words').read_text().upper())\n"
        "(home / '.cache/new').mkdir(exist_ok=True)\n"
        "open('home.txt', 'w').write(f'{home} {os.environ[\"USER\"]}')\n"
    )
    home = Path(os.environ.get("XDG_RUNTIME_DIR") or "/var/lib") / f"adyton-test-{os.getpid()}"
    home.mkdir()
    try:
        project = desk.project(tmp_path, {"at_home.py": script}, HOME=str(home), USER="somebody")
        (home / ".cache").mkdir()
        (home / ".cache" / "words").write_text("cached words")
        project.protect("at_home.py")
        shutil.rmtree(home)
        project.runs_as_natively("at_home", "home.txt")
        words = ("decrypt", f"encrypted-outside{home}/result.txt", "-o", "-", "--key", "default")
        assert project.adyton(*words).out == "CACHED WORDS"
    finally:
        shutil.rmtree(home, ignore_errors=True)


def test_home_without_outputs_is_memory_around_what_was_read(desk: Desk, tmp_path: Path) -> None:
    """A cache that the watched run found, and another run has to make, does not stop the program."""
    script = (
        "import os, pathlib\nhome = pathlib.Path.home()\n"
        "(home / '.config/x').mkdir(parents=True, exist_ok=True)\n"
        "print((home / '.cache/words').read_text())\n"
    )
    home = Path("/var/lib") / f"adyton-test-{os.getpid()}"
    home.mkdir()
    try:
        project = desk.project(tmp_path, {"reads.py": script}, HOME=str(home))
        (home / ".config" / "x").mkdir(parents=True)
        (home / ".cache").mkdir()
        (home / ".cache" / "words").write_text("cached words")
        project.protect("reads.py")
        ended = project.run_protected("reads")
        assert ended.status == 0, ended.err
    finally:
        shutil.rmtree(home, ignore_errors=True)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed (apt-get install gcc)")
def test_what_the_run_made_is_made_again_inside(desk: Desk, tmp_path: Path) -> None:
    """A compiler runs inside as natively; the library that it makes is never a trusted file."""
    script = (
        "import ctypes, os, subprocess\nos.makedirs('tmp-build')\n"
        "open('tmp-build/m.c', 'w').write('int twice(int x){return 2*x;}')\n"
        "subprocess.run(['gcc', '-shared', '-fPIC', 'tmp-build/m.c', '-o', 'tmp-build/m.so'], check=True)\n"
        "os.rename('tmp-build', 'build')\n"
        "open('answer', 'w').write(str(ctypes.CDLL('./build/m.so').twice(21)))\n"
    )
    project = desk.project(tmp_path, {"makes.py": script})
    project.protect("makes.py")
    assert "/m.so" not in (project.folder / "makes.trusted").read_text()
    project.runs_as_natively("makes", "answer")


def test_links_among_the_inputs_are_taken_for_what_they_lead_to(desk: Desk, tmp_path: Path) -> None:
    """A file and a folder by a link, and a link in a folder of data."""
    script = "open('out', 'w').write(open('data/link').read() + open('single').read() + open('folder/a').read())\n"
    files = {"links.py": script, "data/a": "1", "store/b": "2", "store/f/a": "3"}
    project = desk.project(tmp_path, files)
    for name, target in {"data/link": "../store/b", "single": "store/b", "folder": "store/f"}.items():
        (project.folder / name).symlink_to(target)
    project.protect("links.py")
    project.runs_as_natively("links", "out")


def test_local_time_is_the_zones(desk: Desk, tmp_path: Path) -> None:
    """TZ of the native run is kept."""
    script = "import time\nopen('zone', 'w').write(time.strftime('%Z %H', time.localtime(0)))\n"
    project = desk.project(tmp_path, {"zone.py": script}, TZ="Asia/Tokyo")
    project.protect("zone.py")
    project.runs_as_natively("zone", "zone")


FINDS_ITSELF = {
    "user": (
        "import getpass, grp, os, pwd\nu = pwd.getpwuid(os.getuid())\n"
        "home = os.path.expanduser('~' + u.pw_name)\n"
        "found = (u.pw_name, u.pw_uid, u.pw_dir, home, grp.getgrgid(os.getgid()).gr_name, getpass.getuser())\n"
        "open('out', 'w').write(str(found))\n"
    ),
    "localhost": (
        "import socket\ns = socket.create_server(('localhost', 0))\n"
        "c = socket.create_connection(('localhost', s.getsockname()[1]))\n"
        "open('out', 'w').write(socket.gethostbyname('localhost')); socket.gethostbyname(socket.gethostname())\n"
    ),
    "temporary": (
        "import tempfile\nf = tempfile.NamedTemporaryFile(dir='/var/tmp'); f.write(b'1'); f.flush()\n"
        "open('out', 'wb').write(open(f.name, 'rb').read())\n"
    ),
}


@pytest.mark.parametrize("name", FINDS_ITSELF)
def test_program_finds_its_user_and_its_machine(desk: Desk, tmp_path: Path, name: str) -> None:
    """By name and by number, whatever the other machine's /etc holds; and each folder for temporary files."""
    project = desk.project(tmp_path, {f"{name}.py": FINDS_ITSELF[name]}, USER="", LOGNAME="")
    project.protect(f"{name}.py")
    project.runs_as_natively(name, "out")


def test_processes_share_memory_as_natively(desk: Desk, tmp_path: Path) -> None:
    """Managers, pools and shared memory, which need sockets, semaphores and /dev/shm."""
    script = (
        "import multiprocessing as mp\nfrom multiprocessing import shared_memory\n"
        "def square(x): return x * x\n"
        "if __name__ == '__main__':\n    mp.set_start_method('spawn')\n"
        "    with mp.Manager() as m, mp.Pool(2) as p:\n        found = [*m.list([7]), *p.map(square, range(4))]\n"
        "    s = shared_memory.SharedMemory(create=True, size=30_000_000); s.buf[-1] = 9; found.append(s.buf[-1])\n"
        "    s.close(); s.unlink(); open('out', 'w').write(str(found))\n"
    )
    project = desk.project(tmp_path, {"shares.py": script})
    project.protect("shares.py")
    project.runs_as_natively("shares", "out")


FILLS = (
    "import mmap, os, sys\n"
    "f = open(sys.argv[1], 'w+b')\n"
    "if sys.argv[2] == 'write':\n    for _ in range(90): f.write(bytes(1 << 20)); f.flush()\n"
    "else:\n    f.truncate(90 << 20); m = mmap.mmap(f.fileno(), 0)\n"
    "    for at in range(0, 90 << 20, 4096): m[at] = 1\n"
    "os.unlink(sys.argv[1]); open('out', 'w').write('done')\n"
)


@pytest.mark.parametrize(("place", "how"), [("/dev/shm/x", "write"), ("/dev/shm/x", "map"), ("/tmp/x-fills", "write")])
def test_memory_that_is_too_small_is_named_with_its_key(desk: Desk, tmp_path: Path, place: str, how: str) -> None:
    """A failed write or a bus error says nothing of a manifest; the run does, and what it says to do helps."""
    project = desk.project(tmp_path, {"fills.py": FILLS})
    project.protect("fills.py", place, how)
    native = (project.folder / "out").read_bytes()
    template = project.folder / "fills.manifest.template"
    proposed = template.read_text()
    platform = project.adyton("platform", "name", project.environment["ADYTON_SIM_PLATFORM"]).out.strip()
    for budget in ("64M", "256M"):
        template.write_text(re.sub(r"memory_budget = .*", f'memory_budget = "{budget}"', proposed))
        for words in (("build", template.name), ("approve", "fills.manifest", "--key", "default", "--tee", platform)):
            assert project.adyton(*words).status == 0
        ended = project.run_protected("fills")
        if budget == "64M":
            assert ended.status in (1, 135)
            assert f"memory at {os.path.dirname(place)} was full: 64 MiB of 64 MiB" in ended.err
            assert "adyton.memory_budget" in ended.err
            assert "adyton.memory_budget" in project.log("fills")
    assert ended.status == 0, ended.err
    assert "memory at" not in ended.err
    assert project.opened("out") == native


CACHES = {
    "matplotlib": (
        "import matplotlib; matplotlib.use('Agg')\nimport matplotlib.pyplot as plt\n"
        "plt.plot([1, 3, 2]); plt.title('loss'); plt.savefig('out', format='png', metadata={'Software': None})\n"
    ),
    "numba": (
        "import numba\n@numba.njit(cache=True)\ndef f(n):\n    s = 0\n    for i in range(n): s += i * i\n    return s\n"
        "open('out', 'w').write(str(f(9)))\n"
    ),
    "joblib": (
        "import joblib\ndef f(x): return x * x\n"
        "if __name__ == '__main__':\n"
        "    open('out', 'w').write(str(joblib.Parallel(2)(joblib.delayed(f)(i) for i in range(5))))\n"
    ),
}
HEAVY = {
    "compiles": (
        "import torch\n@torch.compile\ndef f(x, y): return (torch.sin(x) @ y).relu().sum()\n"
        "x = torch.arange(12.).reshape(3, 4)\nopen('out', 'w').write(f'{f(x, x.T.contiguous()).item():.4f}')\n"
    ),
    "extends": (
        "import torch\nfrom torch.utils.cpp_extension import load_inline\n"
        "m = load_inline('m', 'torch::Tensor twice(torch::Tensor x) { return 2 * x; }', functions=['twice'])\n"
        "open('out', 'w').write(str(m.twice(torch.ones(3)).tolist()))\n"
    ),
    "distributes": (
        "import os, torch, torch.distributed as d, torch.multiprocessing as mp\n"
        "def main(rank):\n"
        "    os.environ.update(MASTER_ADDR='localhost', MASTER_PORT='29571')\n"
        "    d.init_process_group('gloo', rank=rank, world_size=2)\n"
        "    t = torch.ones(3) * (rank + 1); d.all_reduce(t)\n"
        "    if rank == 0: open('out', 'w').write(str(t.tolist()))\n"
        "    d.destroy_process_group()\n"
        "if __name__ == '__main__': mp.spawn(main, nprocs=2)\n"
    ),
    "loads": (
        "import torch\n"
        "class D(torch.utils.data.Dataset):\n"
        "    def __len__(self): return 4\n"
        "    def __getitem__(self, i): return torch.full((8, 1024, 1024), float(i))\n"
        "if __name__ == '__main__':\n"
        "    loader = torch.utils.data.DataLoader(D(), batch_size=2, num_workers=2)\n"
        "    open('out', 'w').write(str([x.mean().item() for x in loader]))\n"
    ),
}
NEEDS = {"compiles": "g++", "extends": "ninja"}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", HEAVY)
def test_heavy_program_runs_as_natively(desk: Desk, tmp_path: Path, name: str) -> None:
    """torch.compile, C++ extensions, processes that meet at localhost, and workers that give batches in /dev/shm."""
    pytest.importorskip("torch")
    if name in NEEDS and shutil.which(NEEDS[name]) is None:
        pytest.skip(f"{NEEDS[name]} is not installed (apt-get install {NEEDS[name].replace('ninja', 'ninja-build')})")
    project = desk.project(tmp_path, {f"{name}.py": HEAVY[name]})
    project.patience_s = 400
    project.protect(f"{name}.py")
    project.runs_as_natively(name, "out")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("library", ["matplotlib", "numba", "joblib"])
def test_library_that_keeps_a_cache_runs_as_natively(desk: Desk, tmp_path: Path, library: str) -> None:
    """In a fresh home: the cache that the watched run made is there, or is made again."""
    pytest.importorskip(library)
    project = desk.project(tmp_path, {"caches.py": CACHES[library]})
    project.patience_s = 300
    project.protect("caches.py")
    project.runs_as_natively("caches", "out")


# ---------------------------------------------------------------- what is told


def test_what_will_be_otherwise_is_told_with_its_remedy(desk: Desk, tmp_path: Path) -> None:
    """Before anything is encrypted: variables, input, network, temporary files, files that were not read."""
    left = f"/tmp/adyton-left-{os.getpid()}"
    script = (
        "import os, pwd, socket, sys, time\nprint('spoken')\n"
        "assert sys.stdin.read() == 'typed'\nos.environ['A_SETTING']\n"
        "s = socket.socket(); s.setblocking(False); s.connect_ex(('192.0.2.1', 9)); s.close()\n"
        f"open('{left}', 'w').write(open('data/read').read()); pwd.getpwuid(0); open('/etc/hostname').close()\n"
    )
    files = {"tells.py": script, "data/read": "1", "data/not-read": "22"}
    project = desk.project(tmp_path, files, A_SETTING="hidden value", OMP_NUM_THREADS="3")
    (project.folder / "data" / "read").unlink()
    (project.folder / "data" / "read").symlink_to("../tells.py")
    try:
        found = project.differences("tells.py", stdin=b"typed")
    finally:
        Path(left).unlink(missing_ok=True)
    assert set(found) == {
        "environment",
        "stdin",
        "network",
        "temporary-files",
        "host-state",
        "identity",
        "links",
        "unread-files",
    }
    for kind, words in {
        "environment": "A_SETTING",
        "stdin": "insecure__stdin",
        "network": "192.0.2.1",
        "temporary-files": left,
        "host-state": "/etc/hostname",
        "identity": "tells.passwd",
        "links": "data/read",
        "unread-files": "1 files",
    }.items():
        assert words in found[kind]["what"] + found[kind]["remedy"]
        assert found[kind]["remedy"]
    assert "hidden value" not in str(found)
    assert 'OMP_NUM_THREADS = "3"' in (project.folder / "tells.manifest.template").read_text()


def test_differences_are_shown_before_anything_is_encrypted(desk: Desk, tmp_path: Path) -> None:
    """A person reads them between the run and the first ciphertext."""
    project = desk.project(tmp_path, {"quiet.py": "open('in').read()\n", "in": "1"}, A_SETTING="x")
    lines = project.protect("quiet.py").out.splitlines()
    told = next(number for number, line in enumerate(lines) if "A_SETTING" in line)
    assert told < next(number for number, line in enumerate(lines) if line.startswith("$ adyton encrypt"))
