"""Write the lock file anew: look up what apt and the package index have now. Nothing is built here."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Sequence
from email.parser import HeaderParser
from pathlib import Path
from typing import Final

from adyton.errors import FetchFailed, UsageError
from adyton.image.lock import Lock, Package, Wheel
from adyton.image.pool import call, download_wheels, sha256_of, system_mirrors
from adyton.image.recipe import FIRMWARE, KERNEL_META, STUB, SUITES, SYSTEM, WHEELS
from adyton.values import Digest

KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_KERNEL: Final = re.compile(r"\blinux-image-([0-9][a-z0-9.+~-]*-cloud-amd64)\b", re.ASCII)
_REQUIREMENT: Final = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)((?:[^\n]*\\\n)*[^\n]*)", re.MULTILINE)


def new_lock(requirements: Path, mirrors: Sequence[str], note: Callable[[str], None]) -> Lock:
    """The newest packages of the recipe's suites, and the wheels of `requirements`, a file of pip with hashes.

    Raises FetchFailed, NoDevice and UsageError.
    """
    mirrors = tuple(mirrors) or tuple(system_mirrors())
    note(f"looking up packages at {', '.join(mirrors)}")
    packages = _lookup(SUITES["system"], SYSTEM, mirrors)
    packages += _lookup(SUITES["boot"], (STUB, FIRMWARE), mirrors)
    meta, depends = _world(SUITES["kernel"], (KERNEL_META,), mirrors, depends=True)
    found = _KERNEL.search(depends)
    if not meta or found is None:
        raise FetchFailed(f"the mirrors have no {KERNEL_META}", check="kernel of the image", seen="none")
    kernel = found[1]
    packages += _lookup(SUITES["kernel"], (f"linux-binary-{kernel}", f"linux-modules-{kernel}"), mirrors)
    note("looking up wheels")
    return Lock(int(time.time()), kernel, tuple(packages), tuple(_wheels(requirements)))


def _lookup(suites: Sequence[str], names: Sequence[str], mirrors: Sequence[str]) -> list[Package]:
    found, _ = _world(suites, names, mirrors)
    missing = sorted(set(names) - set(found))
    if missing:
        raise FetchFailed(
            f"{', '.join(suites)} lack packages of the image: {', '.join(missing)}",
            check="packages of the image",
            expected=", ".join(names),
            seen=f"without {', '.join(missing)}",
            remedy="give a mirror of Debian that has these suites with --mirror",
        )
    return [found[name] for name in names]


def _world(
    suites: Sequence[str], names: Sequence[str], mirrors: Sequence[str], *, depends: bool = False
) -> tuple[dict[str, Package], str]:
    """What apt finds in these suites alone: apt runs in a folder of its own and knows nothing of this machine."""
    if not KEYRING.is_file():
        raise UsageError(
            "Debian's keys are not on this machine",
            check="keys for Debian's packages",
            expected=str(KEYRING),
            seen="nothing",
            remedy="install debian-archive-keyring",
        )
    with tempfile.TemporaryDirectory(prefix="adyton-apt-") as temporary:
        folder = Path(temporary)
        for name in ("lists/partial", "cache/archives/partial"):
            (folder / name).mkdir(parents=True)
        (folder / "status").touch()
        lines = []
        for suite in suites:
            wanted = "debian-security" if suite.endswith("-security") else "debian"
            lines += [
                f"deb [signed-by={KEYRING}] {m} {suite} main\n" for m in mirrors if m.rpartition("/")[2] == wanted
            ]
        (folder / "sources.list").write_text("".join(lines), encoding="utf-8")
        (folder / "apt.conf").write_text(
            f'Dir::State "{folder}"; Dir::State::lists "lists"; Dir::State::status "{folder}/status";\n'
            f'Dir::Cache "{folder}/cache"; Dir::Etc::sourcelist "{folder}/sources.list";\n'
            'Dir::Etc::sourceparts "/dev/null"; Dir::Etc::parts "/dev/null"; APT::Architecture "amd64";\n'
            'APT::Sandbox::User ""; Acquire::Languages "none";\n',
            encoding="utf-8",
        )
        environment = {"APT_CONFIG": str(folder / "apt.conf")}
        call(["apt-get", "update", "--quiet", "--error-on=any"], "apt", environment=environment)
        text = call(["apt-cache", "--no-all-versions", "show", *names], "apt", environment=environment, fails=False)
    records = [HeaderParser().parsestr(part) for part in text.split("\n\n") if part.strip()]
    found = {}
    for record in records:
        if record["Package"] in names:
            found[record["Package"]] = Package(
                name=record["Package"],
                version=record["Version"],
                sha256=Digest.from_hex(record["SHA256"]),
                bytes=int(record["Size"]),
                path=record["Filename"],
            )
    return found, "\n".join(record["Depends"] or "" for record in records) if depends else ""


def _wheels(requirements: Path) -> list[Wheel]:
    wanted = _chosen(requirements.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(prefix="adyton-wheels-") as temporary:
        folder = Path(temporary)
        (folder / "wheels.txt").write_text("\n".join(wanted.values()) + "\n", encoding="utf-8")
        download_wheels(folder / "wheels.txt", folder)
        found = []
        for path in sorted(folder.glob("*.whl")):
            name, version = path.name.split("-")[:2]
            plain = name.lower().replace("_", "-")
            found.append(Wheel(name=plain, version=version, sha256=Digest(sha256_of(path)), file=path.name))
    missing = sorted(set(WHEELS) - {item.name for item in found})
    if missing:
        raise FetchFailed(f"the package index lacks {', '.join(missing)} for the image's Python", seen="none")
    return found


def _chosen(text: str) -> dict[str, str]:
    """The lines of a file of pip for these packages: without conditions, with all their hashes."""
    found = {}
    for match in _REQUIREMENT.finditer(text):
        name = match[1].lower().replace("_", "-")
        hashes = re.findall(r"--hash=sha256:[0-9a-f]{64}", match[3])
        if name in WHEELS and hashes:
            found[name] = " ".join([f"{match[1]}=={match[2]}", *hashes])
    missing = sorted(set(WHEELS) - set(found))
    if missing:
        raise UsageError(
            f"the requirements have no hashes of {', '.join(missing)}",
            check="requirements of the image",
            expected=", ".join(WHEELS),
            seen=f"without {', '.join(missing)}",
        )
    return found
