"""A whole chain for tests of the verbs: an owner, storage, a cloud, a simulated platform, a program that is tiny."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from adyton.keystore.home import load_key
from adyton.runtime import namespace
from demo.canary import Canary, draw, search
from demo.world import Actor, World

CONFINE: Final = Path(__file__).with_name("confine.py")
KEY: Final = "data"
LIMIT_S: Final = 60
GONE_S: Final = 10
"""So long after a command's end (or its kill) its processes may still take to end."""

NOTES: Final = "".join(f"patient {one}: {one * 7919 % 100_003} and {one**5 % 99_991}\n" for one in range(80))

PROGRAM: Final = '''\
"""Reads private notes, writes a result, and then does what its first argument says."""

import os
import sys
import time

action, *rest = sys.argv[1:]
with open("input/notes.txt", encoding="utf-8") as file:
    notes = file.read()
os.makedirs("output", exist_ok=True)
with open("output/result.txt", "w", encoding="utf-8") as file:
    file.write(notes.upper())
if action == "raise":
    raise ValueError(notes)
if action == "kill":
    os.kill(os.getpid(), int(rest[0]))
if action == "fill":
    with open("output/more.txt", "w", encoding="utf-8") as file:
        while True:
            file.write(notes * 16)
            file.flush()
if action == "wait":
    with open("output/waiting.txt", "w", encoding="utf-8") as file:
        file.write(notes)
    time.sleep(60)
sys.exit(int(rest[0]) if action == "exit" else 0)
'''

_WHAT_TO_DO: Final = re.compile(r"^  (remedy|expected) +\S|must be |^Try 'adyton|^  --help", re.MULTILINE)
_PR_SET_CHILD_SUBREAPER: Final = 36


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str

    def refused(self, status: int, *words: str) -> None:
        """The command must have ended with this status, with these words, with a remedy, and without a traceback."""
        assert self.status == status, f"ended with {self.status}, not {status}:\n{self.out}{self.err}"
        assert "Traceback" not in self.out + self.err, self.err
        for word in words:
            assert word in self.err, f"{word!r} is not in:\n{self.err}"
        assert any(line.startswith(("adyton: ", "Usage: ")) for line in self.err.splitlines()), self.err
        assert _WHAT_TO_DO.search(self.err), f"no remedy in:\n{self.err}"


@dataclass
class Place:
    """A folder in which somebody types Adyton's verbs."""

    folder: Path
    environment: dict[str, str]
    address: str = ""
    patience_s: int = LIMIT_S

    def command(self, *words: str | Path, confined: Sequence[str | Path] = ()) -> list[str]:
        """The words that start a verb, on a machine that lacks what `confined` says (confine.py)."""
        adyton = [sys.executable, "-m", "adyton", *map(str, words)]
        return [sys.executable, str(CONFINE), *map(str, confined), "--", *adyton] if confined else adyton

    def adyton(self, *words: str | Path, confined: Sequence[str | Path] = (), **environment: str) -> Ended:
        """Run a verb to its end."""
        return self.execute(self.command(*words, confined=confined), **environment)

    def run(self, *action: str, server: str | None = None, confined: Sequence[str | Path] = ()) -> Ended:
        """Run the protected program with these arguments."""
        return self.adyton(*self.words_to_run(*action, server=server), confined=confined)

    def words_to_run(self, *action: str, server: str | None = None) -> list[str]:
        """The words after `adyton` that run the protected program with these arguments."""
        address = self.address if server is None else server
        return ["run", "app.manifest", "--tee", "sim", "--key-server", address, "--", "app.py", *action]

    def execute(self, command: list[str], **environment: str) -> Ended:
        """Run any command here to its end."""
        ended = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=self.patience_s,
            check=False,
        )
        return Ended(ended.returncode, ended.stdout, ended.stderr)

    def start(self, *words: str | Path) -> subprocess.Popen[str]:
        """Start a verb as a terminal does: in a process group of its own."""
        return subprocess.Popen(
            self.command(*words),
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
            preexec_fn=_heed_interrupts,
        )

    def files(self, below: str = ".") -> dict[str, bytes]:
        """Every file below a folder of this place, by its path there."""
        root = self.folder / below
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def _heed_interrupts() -> None:
    """A shell ignores Ctrl-C in what it runs in the background; what is to be interrupted must not inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for(process: subprocess.Popen[str]) -> Ended:
    """Wait until a started verb has ended."""
    out, err = process.communicate(timeout=LIMIT_S)
    return Ended(process.returncode, out, err)


def send(process: subprocess.Popen[str], number: int) -> None:
    """Send a signal: SIGINT to the whole group, as the terminal's Ctrl-C does, any other to the one process."""
    try:
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
    except ProcessLookupError:
        return


@dataclass
class Chain:
    """The owner's side, ready to serve, and what the cloud needs, to be copied for every test."""

    world: World
    key: bytes
    canaries: list[Canary]
    address: str

    @property
    def owner(self) -> Place:
        """The owner's folder, with her home."""
        return Place(self.world.owner.folder, self.world.owner.environment(), self.address)

    def cloud(self, folder: Path) -> Place:
        """A fresh cloud in this folder: manifest, program, ciphertext, an empty output folder."""
        shutil.copytree(self.world.cloud.folder, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("runtime"))
        shutil.copytree(self.world.platform, folder / "platform")
        actor = Actor("cloud", folder, folder / "log", {**self.world.cloud.extra, **_own(folder)})
        return Place(folder, actor.environment(), self.address)

    def check_secret(self, *folders: Path, but: Sequence[Path] = ()) -> None:
        """Neither plaintext nor key may stand anywhere below these folders, raw or packed, but in the files named."""
        for folder in folders:
            for path in folder.rglob("*"):
                if path.is_file() and not path.is_symlink() and path not in but:
                    found = search(path.read_bytes(), self.canaries)
                    assert not found, f"{path}: {found}"


def _own(folder: Path) -> dict[str, str]:
    return {"ADYTON_SIM_PLATFORM": str(folder / "platform"), "XDG_CACHE_HOME": str(folder / "cache")}


@contextmanager
def make_chain(folder: Path) -> Iterator[Chain]:
    """Do everything that an owner does before the first run; her key server serves until the block ends."""
    with World(folder) as world:
        shutil.rmtree(world.cloud.folder / "encrypted", ignore_errors=True)
        (world.cloud.folder / "encrypted").unlink(missing_ok=True)
        owner, cloud = world.owner, world.cloud
        (owner.folder / "input").mkdir()
        (owner.folder / "output").mkdir()  # there before the watched run, so that it alone is mounted for outputs
        (owner.folder / "input" / "notes.txt").write_text(NOTES)
        (owner.folder / "app.py").write_text(PROGRAM)
        owner.adyton("new", "--key", KEY, "app.py", "exit", "0")
        template = owner.folder / "app.manifest.template"
        text, count = re.subn(
            r"^loader\.argv = .*$",
            "loader.insecure__use_cmdline_argv = true",
            re.sub(r"^loader\.env\.PYTHONPATH.*\n", "", template.read_text(), flags=re.MULTILINE),
            flags=re.MULTILINE,
        )
        assert count == 1
        template.write_text(text)
        root = cloud.adyton("platform", "new", world.platform, "--json").document["root_fingerprint"]
        tee = f"sim:{root}"
        owner.adyton("init")
        owner.adyton("key", "new", KEY)
        owner.adyton("encrypt", "input", "-o", "encrypted/input", "--key", KEY)
        owner.adyton("build", template.name)
        owner.adyton("approve", "app.manifest", "--key", KEY, "--tee", tee, "--allow", "arguments-from-host")
        cloud.adyton("platform", "export", world.platform, "-o", "collateral.json")
        owner.adyton("collateral", "import", "--root", root, cloud.folder / "collateral.json")
        ready = owner.folder / "ready.json"
        started = owner.start("serve", "--listen", "127.0.0.1:0", "--ready-file", ready, ready=ready)
        for name in ("app.manifest", "app.sig", "app.py"):
            shutil.copy(owner.folder / name, cloud.folder)
        shutil.copytree(world.storage, cloud.folder / "encrypted")
        (cloud.folder / "encrypted" / "output").mkdir()
        key = load_key(Path(owner.extra["ADYTON_HOME"]), KEY).reveal()
        canaries = [
            *draw("notes", NOTES.encode(), count=30),
            *draw("result", NOTES.upper().encode(), count=30),
            Canary("key", key),
        ]
        yield Chain(world, key, canaries, started["adyton"])


# ---------------------------------------------------------------- what is left on the machine


@contextmanager
def adopting_orphans() -> Iterator[None]:
    """For as long as this lasts, processes whose parent ended become this one's children, so that none is lost."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    assert prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    try:
        yield
    finally:
        prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def _children() -> set[int]:
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        found |= {int(pid) for pid in (task / "children").read_text().split()}
    return found


def _mounts(folder: Path) -> list[str]:
    """Mounts that this process sees below `folder`, and those of a run that is no longer private."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        place, source = line.split()[4], line.partition(" - ")[2].split()[1]
        if str(folder) in line or (source == "adyton" and place in namespace.ANCHORS):
            found.append(line)
    return found


@contextmanager
def nothing_left(folder: Path) -> Iterator[None]:
    """Whatever the block starts, no process of it and no mount may be left soon after the block's end."""
    processes, mounts = _children(), _mounts(folder)
    yield
    deadline = time.monotonic() + GONE_S
    while left := _children() - processes:
        for pid in left:
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                continue
        if time.monotonic() > deadline:
            names = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in left}
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            raise AssertionError(f"processes are left: {names}")
        time.sleep(0.02)
    assert _mounts(folder) == mounts


def until(condition: Callable[[], bool], *, limit_s: float = 20) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
