"""What `make dist` gives out: a wheel that installs in a clean environment, and a source archive that tests itself."""

from __future__ import annotations

import email.parser
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.conftest import REPOSITORY

if TYPE_CHECKING:
    from email.message import Message
    from pathlib import Path

pytestmark = [
    pytest.mark.skipif(
        shutil.which("git") is None or not (REPOSITORY / ".git").exists(), reason="no git, or no repository to build"
    ),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler (apt-get install gcc)"),
    pytest.mark.timeout(600),
]


@dataclass(frozen=True)
class Built:
    """The wheel and the source archive of the last commit."""

    wheel: Path
    source: Path

    @property
    def metadata(self) -> Message:
        """What the wheel says of itself."""
        with zipfile.ZipFile(self.wheel) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
            return email.parser.BytesParser().parsebytes(archive.read(name))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Both, built as `make dist` does."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, str(REPOSITORY / "tools" / "dist.py"), "--to", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return Built(wheel, source)


def test_metadata_says_whose_and_for_what(built: Built) -> None:
    """Author, licence, addresses and classifiers are there; no address is a machine's or a package index's."""
    found = built.metadata
    assert found["Author"]
    assert found["License-Expression"] == "Apache-2.0"
    classifiers = found.get_all("Classifier", [])
    assert {"Operating System :: POSIX :: Linux", "Typing :: Typed"} < set(classifiers)
    for minor in (11, 12, 13):
        assert f"Programming Language :: Python :: 3.{minor}" in classifiers
    addresses = [line.partition(", ")[2] for line in found.get_all("Project-URL", [])]
    assert addresses
    assert all(re.match(r"https://[a-z.]+\.[a-z]+(/|$)", address) for address in addresses)


def test_description_has_no_relative_link(built: Built) -> None:
    """A page of a package index shows it, where `docs/` leads nowhere."""
    text = built.metadata.get_payload()
    assert isinstance(text, str)
    assert "## Two commands" in text
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert [link for link in links if not link.startswith(("https://", "#"))] == []
    assert "`docs/threat-model.md` in the source archive" in text


@pytest.mark.skipif(importlib.util.find_spec("auditwheel") is None, reason="auditwheel is not installed (make setup)")
def test_wheel_is_for_every_distribution_and_brings_no_openssl(built: Built) -> None:
    """Its name says from which C library on; the system's OpenSSL is used, which the system updates."""
    assert re.search(r"-cp3\d+-cp3\d+-(manylinux_2_\d+_\w+)\.whl$", built.wheel.name)
    with zipfile.ZipFile(built.wheel) as archive:
        names = archive.namelist()
    assert sum(name.endswith(".so") for name in names) == 4
    assert not [name for name in names if "libcrypto" in name or name.startswith("adyton.libs/")]


def installed(built: Built, folder: Path, *more: str) -> Path:
    """A clean environment with the wheel in it; its programs' folder."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "--disable-pip-version-check"]
    for words in ([*more], ["--no-index", str(built.wheel)]):
        if words:
            command = [*pip, "install", "-q", "--no-deps", *words]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
    return folder / "bin"


def test_wheel_installs_in_a_clean_environment(built: Built, tmp_path: Path) -> None:
    """The command is there and says its version, far from the repository; the C parts are in place."""
    programs = installed(built, tmp_path / "clean")
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    command = [str(programs / "adyton"), "--version"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"adyton {built.metadata['Version']}\n"
    (package,) = (tmp_path / "clean").glob("lib/python3*/site-packages/adyton")
    assert {path.name.partition(".")[0] for path in package.rglob("*.so")} == {"_gcm", "_reads", "_init", "_launcher"}
    assert (package / "server/dashboard/templates/style.css").exists()


@pytest.mark.slow
def test_wheel_works_with_the_locked_packages_alone(built: Built, tmp_path: Path) -> None:
    """With what requirements/run.txt holds and nothing else, a file is encrypted and opened again."""
    lock = str(REPOSITORY / "requirements" / "run.txt")
    programs = installed(built, tmp_path / "clean", "--require-hashes", "--only-binary", ":all:", "-r", lock)
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    (tmp_path / "notes").write_text("private")
    for words in (
        "init",
        "key new default",
        "encrypt notes -o sealed --key default",
        "decrypt sealed -o opened --key default",
        "doctor",
    ):
        command = [str(programs / "adyton"), *words.split()]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0 or words == "doctor", done.stderr
        assert "Traceback" not in done.stderr
    assert (tmp_path / "opened").read_text() == "private"


@pytest.fixture
def unpacked(built: Built, tmp_path: Path) -> Path:
    """The source archive, unpacked."""
    subprocess.run(["tar", "-xzf", str(built.source), "-C", str(tmp_path)], check=True)
    (folder,) = tmp_path.iterdir()
    return folder


def test_source_archive_holds_the_whole_commit(unpacked: Path) -> None:
    """Every file that git has, unchanged, the tests and what they read among them; nothing that was built."""
    command = ["git", "-C", str(REPOSITORY), "ls-tree", "-r", "--name-only", "-z", "HEAD"]
    tracked = subprocess.run(command, capture_output=True, text=True, check=True).stdout.rstrip("\0").split("\0")
    held = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    assert set(tracked) - held == set()
    more = {path for path in held - set(tracked) if ".egg-info/" not in path}
    assert more == {"PKG-INFO", "setup.cfg"}


@pytest.mark.slow
def test_source_archive_tests_itself(unpacked: Path) -> None:
    """Tests that read sources, pages and the package pass in the unpacked archive."""
    environment = {**os.environ, "PYTHONPATH": str(unpacked / "src")}
    chosen = [
        "tests/test_layers.py",
        "tests/docs/test_links.py",
        "tests/unit/test_values.py",
        "tests/cli/test_cli_abi.py",
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen]
    done = subprocess.run(command, cwd=unpacked, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
