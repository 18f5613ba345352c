"""The three actors of the paper, each with a folder and processes of its own, and the wires between them.

owner/      trusted: identity, keys, plain files, key server
storage/    untrusted: what the owner sent away, ciphertext only
cloud/      untrusted: a host with a TEE, its own copy of Adyton, the program, the manifest
platform/   the simulated TEE: what its maker and the machine's fuses hold
"""

from __future__ import annotations

import compileall
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import adyton

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

REPOSITORY: Final = Path(__file__).resolve().parent.parent
STEP_LIMIT_S: Final = 180
CORES: Final = max(2, min(8, os.cpu_count() or 2))
"""The number of commands that run at once."""

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one command: its exit status, output and duration."""

    status: int
    out: str
    err: str
    seconds: float

    @property
    def document(self) -> dict[str, Any]:
        """Standard output as one JSON object."""
        document: dict[str, Any] = json.loads(self.out)
        return document


class StepFailed(Exception):
    """A command of the demo that had to work did not."""

    def __init__(self, command: str, outcome: Outcome) -> None:
        super().__init__(f"`{command}` ended with status {outcome.status}\n{outcome.out}{outcome.err}".rstrip())


@dataclass
class Actor:
    """A party with a folder, in which it runs Adyton's verbs."""

    name: str
    folder: Path
    log: Path
    extra: dict[str, str] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)
    _running: list[subprocess.Popen[str]] = field(default_factory=list)

    def environment(self) -> dict[str, str]:
        """The environment of the actor's commands. Of this process's environment it has only the path."""
        (self.folder / "tmp").mkdir(parents=True, exist_ok=True)
        return {
            "PATH": f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.folder),
            "TMPDIR": str(self.folder / "tmp"),
            "LANG": "C.UTF-8",
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            **self.extra,
        }

    def adyton(
        self, *args: str | Path, expect: int | None = 0, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> Outcome:
        """Run one verb to its end. Raises StepFailed if it does not end as expected (None: any end will do)."""
        words = [str(arg) for arg in args]
        return self._run([sys.executable, "-m", "adyton", *words], "adyton " + shlex.join(words), expect, env, cwd)

    def python(self, *args: str | Path, expect: int | None = 0) -> Outcome:
        """Run a Python script to its end, outside of any TEE."""
        words = [str(arg) for arg in args]
        return self._run([sys.executable, *words], "python " + shlex.join(words), expect, None, None)

    def _run(
        self, command: list[str], shown: str, expect: int | None, env: Mapping[str, str] | None, cwd: Path | None
    ) -> Outcome:
        self.commands.append(shown)
        began = time.monotonic()
        ended = subprocess.run(
            command,
            cwd=cwd or self.folder,
            env={**self.environment(), **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=STEP_LIMIT_S,
        )
        outcome = Outcome(ended.returncode, ended.stdout, ended.stderr, time.monotonic() - began)
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"$ {shown}\n{outcome.out}{outcome.err}")
        if expect is not None and outcome.status != expect:
            raise StepFailed(shown, outcome)
        return outcome

    def start(self, *args: str | Path, ready: Path) -> dict[str, Any]:
        """Start a verb that keeps running. Wait for its ready file, and return its content."""
        words = [str(arg) for arg in args]
        shown = "adyton " + shlex.join(words)
        self.commands.append(shown + " &")
        ready.unlink(missing_ok=True)
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"$ {shown} &\n")
            log.flush()
            process = subprocess.Popen(
                [sys.executable, "-m", "adyton", *words],
                cwd=self.folder,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                text=True,
            )
        self._running.append(process)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if ready.exists():
                document: dict[str, Any] = json.loads(ready.read_text(encoding="utf-8"))
                return document
            if process.poll() is not None:
                break
            time.sleep(0.02)
        tail = self.log.read_text(encoding="utf-8")[-2000:]
        raise StepFailed(shown, Outcome(process.poll() or -1, "", tail, 30.0))

    def stop(self) -> None:
        """End every process that the actor started."""
        for process in reversed(self._running):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(timeout=5)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait(timeout=5)
        self._running.clear()


class World:
    """One folder with all actors in it. Leaving the context ends their processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.storage = folder / "storage"
        self.platform = folder / "platform"
        logs = folder / "logs"
        for made in (self.storage, logs, folder / "owner", folder / "cloud"):
            made.mkdir(parents=True, exist_ok=True)
        self.owner = Actor(
            "owner",
            folder / "owner",
            logs / "owner.log",
            {"ADYTON_HOME": str(folder / "owner" / "home"), "PYTHONPATH": str(folder / "owner" / "runtime")},
        )
        self.cloud = Actor(
            "cloud",
            folder / "cloud",
            logs / "cloud.log",
            {
                "ADYTON_SIM_PLATFORM": str(self.platform),
                "PYTHONPATH": str(folder / "cloud" / "runtime"),
                "XDG_CACHE_HOME": str(folder / "cloud" / "cache"),
            },
        )
        for actor in (self.owner, self.cloud):
            install_runtime(actor.folder / "runtime")
            (actor.folder / "encrypted").symlink_to(self.storage)
        self._others: list[Actor] = []

    def actor(self, name: str, **extra: str) -> Actor:
        """One more actor, with a folder of its own."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        extra = {"PYTHONPATH": self.owner.extra["PYTHONPATH"], **extra}
        actor = Actor(name, folder, self.folder / "logs" / f"{name}.log", extra)
        self._others.append(actor)
        return actor

    @property
    def actors(self) -> tuple[Actor, ...]:
        """Everybody, the owner first."""
        return (self.owner, self.cloud, *self._others)

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        for actor in reversed(self.actors):
            actor.stop()


def install_runtime(target: Path) -> None:
    """Give an actor a compiled copy of its own of the Adyton that is installed here.

    Without compiled modules each of the demo's sixty commands would compile them again.
    """
    shutil.copytree(Path(adyton.__path__[0]), target / "adyton", dirs_exist_ok=True)
    compileall.compile_dir(target / "adyton", quiet=1)


def at_once(*parts: Callable[[], _Result]) -> list[_Result]:
    """Do parts that do not need each other at the same time. Raises what the first of them that failed did."""
    with ThreadPoolExecutor(CORES) as pool:
        return list(pool.map(lambda part: part(), parts))
