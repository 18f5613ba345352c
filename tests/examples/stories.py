"""Runs the examples' stories (`run.sh`), each in a folder of its own, with its own copy of Adyton."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import adyton
from demo.canary import draw, search

REPOSITORY = Path(__file__).resolve().parent.parent.parent
EXAMPLES = REPOSITORY / "examples"
LIMIT_S = 500
"""When a story hangs: a CUDA build of PyTorch is 3 GB to hash and stage in each run, and the machine may be busy."""


def environment(runtime: Path | None = None) -> dict[str, str]:
    """This process's environment with one OpenMP thread, the tools in PATH, and Adyton from `runtime` if given.

    Two OpenMP threads that spin on two busy cores cost a factor of ten.
    """
    found = {name: value for name, value in os.environ.items() if not name.startswith("ADYTON_")}
    tools = [] if runtime is None else [str(runtime / "bin")]
    found |= {"OMP_NUM_THREADS": "1", "PATH": ":".join([*tools, str(Path(sys.executable).parent), os.environ["PATH"]])}
    return found


def copy_runtime(target: Path) -> Path:
    """A copy of the Adyton that is installed here: its measurement stays the same while the story runs."""
    source = Path(next(iter(adyton.__path__)))
    shutil.copytree(source, target / "adyton", ignore=shutil.ignore_patterns("__pycache__"))
    command = target / "bin" / "adyton"
    command.parent.mkdir()
    start = f"import sys; sys.path[0] = {str(target)!r}; from adyton.cli.main import main; main()"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{start}" "$@"\n')
    command.chmod(0o755)
    return target


def free_address() -> str:
    """A loopback address with a port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


@dataclass(frozen=True)
class Story:
    """A story that was run: its folder, and what it said."""

    folder: Path
    runtime: Path
    out: str
    err: str

    def adyton(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run one more verb in the story's folder."""
        return subprocess.run(
            [self.runtime / "bin" / "adyton", *words],
            cwd=self.folder,
            env=environment(self.runtime),
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )

    def leaks(self, secrets: list[Path], *, seen_by_the_cloud: tuple[str, ...]) -> set[str]:
        """Which of the secrets show, raw or packed, in what the cloud could see."""
        canaries = [canary for path in secrets for canary in draw(path.name, path.read_bytes(), count=40)]
        assert canaries
        found: set[str] = set()
        for pattern in seen_by_the_cloud:
            files = [path for path in self.folder.glob(pattern) if path.is_file()]
            assert files, f"nothing matches {pattern}"
            for path in files:
                found |= {sighting.secret for sighting in search(path.read_bytes(), canaries)}
        return found


def tell(example: str, work: Path, *, script: str = "run.sh", **addresses: str) -> Story:
    """Run a story to its end; what it prints comes with a failure."""
    runtime = copy_runtime(work / "runtime")
    folder = work / "story"
    shell = subprocess.Popen(
        ["sh", EXAMPLES / example / script, folder],
        env={**environment(runtime), **addresses},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = shell.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        os.killpg(shell.pid, signal.SIGKILL)
        out, err = shell.communicate(timeout=10)
        pytest.fail(f"{example} took more than {LIMIT_S} s\n{out}\n{err}")
    assert shell.returncode == 0, f"{out}\n{err}"
    return Story(folder, runtime, out, err)
