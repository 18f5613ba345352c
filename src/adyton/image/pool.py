"""The local pool: packages and wheels as the lock file names them, fetched once by apt and pip, and always checked.

apt and pip are used as anybody uses them: with this machine's own mirrors and index. Their word counts for nothing: a
file enters the pool only with the size and SHA-256 of the lock file.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from adyton.errors import FetchFailed, NoDevice
from adyton.image.lock import MAX_PACKAGE_BYTES, Lock, Package, Wheel
from adyton.image.recipe import PYTHON

APT_HELPER: Final = "/usr/lib/apt/apt-helper"
_TIMEOUT_S: Final = 1800
_KEPT: Final = ("PATH", "HOME", "TMPDIR", "LANG", "http_proxy", "https_proxy", "no_proxy")
_PIP: Final = ("PIP_", "SSL_CERT_")


def default_pool() -> Path:
    """Where packages are kept between builds: below XDG_CACHE_HOME."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adyton" / "image-pool"


class Pool:
    """A folder of packages and wheels. Nothing in it is believed before it was hashed."""

    def __init__(self, folder: Path, mirrors: Sequence[str], note: Callable[[str], None]) -> None:
        self._folder = folder
        self._mirrors = tuple(mirrors)
        self._note = note

    def fetch(self, lock: Lock) -> None:
        """Get what is missing. Raises FetchFailed with the names of what no mirror has any more."""
        self._folder.mkdir(parents=True, exist_ok=True)
        missing = [item for item in lock.packages if self._good(item.file, item) is None]
        if missing:
            self._note(f"fetching {len(missing)} packages, {sum(item.bytes for item in missing) / 1e6:.0f} MB")
            mirrors = self._mirrors or system_mirrors()
            for mirror in mirrors:
                missing = self._fetch_from(mirror, missing)
        if missing:
            names = ", ".join(f"{item.name} {item.version}" for item in missing)
            raise FetchFailed(
                f"no mirror has these packages of the lock file any more: {names}",
                check="packages of the image",
                expected="every package with the SHA-256 of the lock file",
                seen=f"{len(missing)} missing",
                remedy="`adyton image build --update-lock` takes newer ones: another image with other measurements."
                " Or give a mirror that keeps old packages with --mirror",
            )
        wheels = [item for item in lock.wheels if self._good(item.file, item) is None]
        if wheels:
            self._note(f"fetching {len(wheels)} wheels")
            self._fetch_wheels(wheels)

    def read(self, item: Package | Wheel) -> bytes:
        """The content of a package or wheel. Raises FetchFailed where it is not in the pool, or not the one locked."""
        raw = self._good(item.file, item)
        if raw is None:
            raise FetchFailed(
                f"{item.name} {item.version} in the pool is not the one of the lock file",
                check=f"package {item.name}",
                expected=f"SHA-256 {item.sha256}",
                seen="another or none",
                remedy=f"remove {self._folder} and build again",
            )
        return raw

    def _good(self, name: str, item: Package | Wheel) -> bytes | None:
        try:
            with (self._folder / name).open("rb") as file:
                raw = file.read(MAX_PACKAGE_BYTES + 1)
        except OSError:
            return None
        return raw if hashlib.sha256(raw).digest() == item.sha256.raw else None

    def _fetch_from(self, mirror: str, wanted: Sequence[Package]) -> list[Package]:
        """Ask one mirror for packages. Gives those that it did not have."""
        if not wanted:
            return []
        with tempfile.TemporaryDirectory(dir=self._folder, prefix=".fetching-") as temporary:
            for item in wanted:
                call(
                    [
                        APT_HELPER,
                        "download-file",
                        f"{mirror.rstrip('/')}/{item.path}",
                        f"{temporary}/{item.file}",
                        f"SHA256:{item.sha256.hex()}",
                    ],
                    "apt",
                    fails=False,
                )
            return self._take(Path(temporary), wanted)

    def _fetch_wheels(self, wheels: Sequence[Wheel]) -> None:
        with tempfile.TemporaryDirectory(dir=self._folder, prefix=".fetching-") as temporary:
            wanted = Path(temporary) / "wheels.txt"
            lines = [f"{item.name}=={item.version} --hash=sha256:{item.sha256.hex()}\n" for item in wheels]
            wanted.write_text("".join(lines), encoding="ascii")
            download_wheels(wanted, Path(temporary))
            for item in wheels:  # pip may spell a name otherwise
                found = _by_hash(Path(temporary), item)
                if found is not None:
                    found.replace(self._folder / item.file)
        missing = [item for item in wheels if self._good(item.file, item) is None]
        if missing:
            raise FetchFailed(
                "the package index lacks wheels of the lock file: "
                + ", ".join(f"{item.name} {item.version}" for item in missing),
                check="wheels of the image",
                expected="every wheel with the SHA-256 of the lock file",
                seen=f"{len(missing)} missing",
                remedy="`adyton image build --update-lock` takes newer ones",
            )

    def _take(self, folder: Path, items: Iterable[Package]) -> list[Package]:
        missing = []
        for item in items:
            found = folder / item.file
            if found.is_file():
                found.replace(self._folder / item.file)
            if self._good(item.file, item) is None:
                missing.append(item)
        return missing


def download_wheels(requirements: Path, to: Path) -> None:
    """Have pip download these requirements (with hashes) as wheels for the image's Python. Raises FetchFailed."""
    command = [sys.executable, "-I", "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--require-hashes", "--only-binary", ":all:", "--implementation", "cp", "--python-version", PYTHON]
    for platform in ("manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux_2_28_x86_64", "manylinux_2_34_x86_64"):
        command += ["--platform", platform]
    call([*command, "--dest", str(to), "--requirement", str(requirements)], "pip")


def system_mirrors() -> list[str]:
    """The addresses of this machine's own mirrors of Debian, as apt knows them. Raises NoDevice without apt."""
    text = call(["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"], "apt")
    found = list(dict.fromkeys(line.strip().rstrip("/") for line in text.splitlines()))
    return [address for address in found if address.rpartition("/")[2] in ("debian", "debian-security")]


def sha256_of(path: Path) -> bytes:
    """SHA-256 of a file, 32 bytes."""
    return hashlib.sha256(path.read_bytes()).digest()


def _by_hash(folder: Path, item: Wheel) -> Path | None:
    return next((path for path in folder.glob("*.whl") if sha256_of(path) == item.sha256.raw), None)


def call(command: Sequence[str], what: str, *, fails: bool = True, environment: Mapping[str, str] | None = None) -> str:
    """Run a program that fetches. Raises NoDevice where it is missing, and FetchFailed where it fails and `fails`."""
    kept = {name: value for name, value in os.environ.items() if name in _KEPT or name.startswith(_PIP)}
    try:
        done = subprocess.run(
            command,
            env=kept | dict(environment or {}),
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
            errors="replace",
        )
    except FileNotFoundError as error:
        raise NoDevice(
            f"{what} is not installed on this machine",
            check=f"{what} for the packages of the image",
            expected=command[0],
            seen="nothing",
            remedy="build the image on Debian 12 or later, or bring a filled pool",
        ) from error
    except subprocess.TimeoutExpired as error:
        raise FetchFailed(f"{what} did not end within {_TIMEOUT_S} s") from error
    if fails and done.returncode != 0:
        raise FetchFailed(
            f"{what} failed: {(done.stderr or done.stdout).strip()[-800:]}",
            check=f"{what} for the packages of the image",
            expected="exit code 0",
            seen=str(done.returncode),
            remedy="look at the network, and at the mirrors and the index of this machine",
        )
    return done.stdout
