"""A release: the same bytes from any clone, signed, and refused where one byte is another."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from typing import TYPE_CHECKING

import pytest

from tests.conftest import REPOSITORY

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.skipif(
        shutil.which("git") is None or not (REPOSITORY / ".git").exists(), reason="no git, or no repository to clone"
    ),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler (apt-get install gcc)"),
    pytest.mark.timeout(600),
]
PAGE = REPOSITORY / "docs" / "releasing.md"


def clone(to: Path) -> Path:
    """The last commit, cloned."""
    subprocess.run(["git", "clone", "-q", str(REPOSITORY), str(to)], check=True)
    return to


def in_shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A line as a person types it."""
    return subprocess.run(["bash", "-c", line], cwd=folder, capture_output=True, text=True, check=False)


def new_key(folder: Path, name: str) -> Path:
    """A throw-away key."""
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(folder / name)]
    subprocess.run(command, check=True)
    return folder / name


@pytest.mark.slow
def test_two_clones_give_the_same_files(tmp_path: Path) -> None:
    """Other folders, other times, another umask, another time zone and language: wheel and archive, bit for bit."""
    built = []
    for number, words in enumerate(("umask 022", "umask 077; export TZ=Asia/Tokyo LC_ALL=C CFLAGS='-g -O1'; sleep 3")):
        folder = clone(tmp_path / ("x" * 20 * number + "clone"))
        done = in_shell(f"{words}; {sys.executable} tools/dist.py", folder)
        assert done.returncode == 0, done.stderr
        built.append({path.name: path.read_bytes() for path in (folder / "dist").iterdir()})
    assert sorted(name.rpartition(".")[2] for name in built[0]) == ["gz", "whl"]
    assert built[0] == built[1]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A signed release of the last commit, beside its maker's public key in `allowed_signers`."""
    if shutil.which("ssh-keygen") is None:
        pytest.skip("ssh-keygen is missing (apt-get install openssh-client)")
    folder = tmp_path_factory.mktemp("release")
    key = new_key(folder, "maker")
    repository = clone(folder / "clone")
    command = ["sh", str(repository / "tools" / "release.sh"), str(key), sys.executable, str(folder / "given")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    public = key.with_suffix(".pub").read_text().split()
    (folder / "given" / "allowed_signers").write_text(f"adyton {public[0]} {public[1]}\n")
    return folder / "given"


@pytest.fixture
def received(release: Path, tmp_path: Path) -> Path:
    """A user's copy of it."""
    return shutil.copytree(release, tmp_path / "received")


def verification() -> str:
    """The commands by which docs/releasing.md has a user verify a release."""
    found = re.search(r"^## Verify a release.*?^```sh\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None
    return "set -e\n" + found[1]


def test_release_verifies_as_the_page_says(received: Path) -> None:
    """Wheel, source archive, bill of materials, every lock and the commit are under the signature."""
    done = in_shell(verification(), received)
    assert done.returncode == 0, done.stderr
    listed = {line.split("  ")[1] for line in (received / "SHA256SUMS").read_text().splitlines()}
    there = {path.relative_to(received).as_posix() for path in received.rglob("*") if path.is_file()}
    assert listed == there - {"SHA256SUMS", "SHA256SUMS.sig", "allowed_signers"}
    assert {"adyton.cdx.json", "COMMIT", "requirements/run.txt", "requirements/lock.txt"} < listed
    (wheel,) = received.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert {"adyton/pfile/gcm.c", "adyton/server/dashboard/templates/home.html"} < set(archive.namelist())
    (source,) = received.glob("*.tar.gz")
    with tarfile.open(source) as members:
        told = {(member.uid, member.gid, member.uname, member.gname, member.mtime) for member in members}
    assert len(told) == 1
    assert next(iter(told))[:4] == (0, 0, "", "")


@pytest.mark.parametrize(
    "name", ["*.whl", "*.tar.gz", "adyton.cdx.json", "requirements/run.txt", "COMMIT", "SHA256SUMS"]
)
def test_changed_release_is_refused(received: Path, name: str) -> None:
    """One more byte in any of its files."""
    (path,) = received.glob(name)
    path.write_bytes(path.read_bytes() + b"\n")
    assert in_shell(verification(), received).returncode != 0


def test_release_with_a_file_missing_is_refused(received: Path) -> None:
    """A lock that was left out is noticed."""
    (received / "requirements" / "run.txt").unlink()
    assert in_shell(verification(), received).returncode != 0


def test_release_signed_by_another_is_refused(received: Path, tmp_path: Path) -> None:
    """Whoever serves the files can make sums and sign them, but not with the maker's key."""
    (received / "COMMIT").write_text("0" * 40 + "\n")
    other = new_key(tmp_path, "other")
    files = "find . -type f ! -name 'SHA256SUMS*' ! -name allowed_signers -printf '%P\\0'"
    sums = f"{files} | xargs -0 sha256sum >../sums"
    sign = f"ssh-keygen -q -Y sign -f {other} -n adyton-release SHA256SUMS"
    done = in_shell(f"set -e; rm SHA256SUMS.sig; {sums}; mv ../sums SHA256SUMS; {sign}", received)
    assert done.returncode == 0, done.stderr
    done = in_shell(verification(), received)
    assert done.returncode != 0
    assert "Could not verify signature" in done.stdout


def test_signature_for_another_purpose_is_refused(received: Path, release: Path) -> None:
    """A signature that the same key gave for something else, as a commit, is none for a release."""
    key = release.parent / "maker"
    done = in_shell(f"rm SHA256SUMS.sig; ssh-keygen -q -Y sign -f {key} -n git SHA256SUMS", received)
    assert done.returncode == 0
    assert in_shell(verification(), received).returncode != 0


@pytest.mark.parametrize("trouble", ["a change that is not committed", "a release that is there", "no key"])
def test_release_is_not_made_with(tmp_path: Path, trouble: str) -> None:
    """A release is a commit, is signed, and is never written over another."""
    repository = clone(tmp_path / "clone")
    key, to = str(tmp_path / "key"), tmp_path / "to"
    if trouble == "a change that is not committed":
        (repository / "setup.py").write_text("")
    elif trouble == "a release that is there":
        to.mkdir()
    else:
        key = ""
    command = ["sh", str(repository / "tools" / "release.sh"), key, sys.executable, str(to)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert {"no key": "signing key", "a release that is there": "already"}.get(trouble, "not committed") in done.stderr
    assert not to.exists() or not list(to.iterdir())
