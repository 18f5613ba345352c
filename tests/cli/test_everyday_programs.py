"""Programs that people run: after `adyton protect` alone they run as they did natively, or are refused at once."""

from __future__ import annotations

import json
import os
import shutil
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
        assert ended.status == 0, ended.err + self._log(name)
        assert {path: self.opened(path) for path in outputs} == native

    def _log(self, name: str) -> str:
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
    project.protect("mein größtes.py")
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
