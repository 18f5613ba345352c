"""The lock: complete, exact, hashed, and the only source of what set-up installs."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tomllib
import zipfile
from typing import TYPE_CHECKING

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import REPOSITORY
from tests.supply.locked import FILES, FOLDER, PYTHONS, environment, for_python, read

if TYPE_CHECKING:
    from pathlib import Path

SETUP = REPOSITORY / "tools" / "setup.sh"
COVERAGE = REPOSITORY / "tools" / "coverage.sh"


def asked_for() -> list[Requirement]:
    """All that pyproject.toml names: to run, for every extra, and to build."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    lines = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    lines += [line for extra in project["project"]["optional-dependencies"].values() for line in extra]
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize("file", [*FILES, "coverage.txt", "page.txt"])
def test_lock_pins_exactly_and_hashes_everything(file: str) -> None:
    """No range, no address, no option; a hash for each, and no hash twice."""
    rows = list(read(FOLDER / file))
    assert rows
    for row in rows:
        assert row.version
        assert row.requirement.url is None
        assert row.hashes
        assert len(set(row.hashes)) == len(row.hashes)


@pytest.mark.parametrize("python", PYTHONS)
def test_lock_holds_every_dependency_of_the_project(python: str) -> None:
    """At a version that pyproject.toml accepts."""
    held = for_python(python, "lock.txt", "torch.txt")
    for wanted in asked_for():
        row = held[canonicalize_name(wanted.name)]
        assert wanted.specifier.contains(row.version), f"{wanted} but {row.requirement}"


@pytest.mark.parametrize("python", PYTHONS)
def test_lock_is_closed(python: str) -> None:
    """What a locked package itself asks for is locked too, at a version that it accepts.

    Read off the packages that are installed here; pip installs with --no-deps, so a gap would show only when it runs.
    """
    held = for_python(python, "lock.txt", "torch.txt", "cuda.txt")
    here = {str(canonicalize_name(one.metadata["Name"])): one for one in importlib.metadata.distributions()}
    looked_at = 0
    for name, row in held.items():
        if name not in here or here[name].version.partition("+")[0] != row.version:
            continue  # another Python's version
        looked_at += 1
        for line in here[name].requires or ():
            wanted = Requirement(line)
            extras = row.requirement.extras or {""}
            if wanted.marker is None or any(
                wanted.marker.evaluate(environment(python) | {"extra": extra}) for extra in extras
            ):
                needed = held[canonicalize_name(wanted.name)]
                assert wanted.specifier.contains(needed.version), f"{name} asks for {line}"
    assert looked_at > 60


@pytest.mark.parametrize("python", PYTHONS)
def test_what_runs_is_a_part_of_the_lock(python: str) -> None:
    """run.txt has the very lines of lock.txt, of what Adyton's own dependencies need and nothing else."""
    whole, runs = for_python(python, "lock.txt"), for_python(python, "run.txt")
    assert {name: (row.version, row.hashes) for name, row in runs.items()}.items() <= {
        name: (row.version, row.hashes) for name, row in whole.items()
    }.items()
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert {canonicalize_name(Requirement(line).name) for line in project["dependencies"]} <= set(runs)
    assert not {"pytest", "ruff", "mkdocs", "numpy", "setuptools"} & set(runs)


def test_torch_is_one_version_everywhere() -> None:
    """pyproject.toml, both locks, and what `make lock` is told of it."""
    (torch,) = (row for row in asked_for() if row.name == "torch")
    told = tomllib.loads((FOLDER / "uv.toml").read_text())["dependency-metadata"][0]["version"]
    versions = {row.version.partition("+")[0] for file in ("torch.txt", "torch-cpu.txt") for row in read(FOLDER / file)}
    assert versions == {told}
    assert str(torch.specifier) == f"=={told}"


def test_setup_installs_nothing_without_hashes() -> None:
    """Each pip of set-up demands hashes, or installs Adyton itself with nothing beside it; each names a lock."""
    text = SETUP.read_text()
    calls = re.findall(r"^.*\bpip install\b.*$", text + COVERAGE.read_text(), re.MULTILINE)
    assert calls
    for call in calls:
        assert "--no-deps" in call
        assert "--require-hashes --only-binary :all:" in call or call.endswith("--no-build-isolation -e .")
    used = set(re.findall(r"\blocked (\S+?);?(?=\s)", text))
    assert used == {f"requirements/{file}" for file in FILES if file != "run.txt"} | {
        "examples/search-private/requirements.txt"
    }


def test_locked_package_with_another_content_is_refused(tmp_path: Path) -> None:
    """An index that serves another file under a locked name and version: set-up's own pip call ends."""
    wheel = tmp_path / "h11-0.16.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("h11/__init__.py", "print('planted')\n")
        archive.writestr("h11-0.16.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: h11\nVersion: 0.16.0\n")
        archive.writestr("h11-0.16.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("h11-0.16.0.dist-info/RECORD", "")
    (call,) = re.findall(r"-m (pip install .*--require-hashes .*) -r", SETUP.read_text())
    row = for_python("3.11.2", "lock.txt")["h11"]
    lock = tmp_path / "lock.txt"

    def install(hashes: tuple[str, ...], to: str) -> subprocess.CompletedProcess[str]:
        lock.write_text(f"{row.requirement} {' '.join(f'--hash={one}' for one in hashes)}\n")
        where = ["--isolated", "--no-index", "--find-links", str(tmp_path), "--target", str(tmp_path / to)]
        command = [sys.executable, "-m", *call.split(), *where, "-r", str(lock)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    refused = install(row.hashes, "refused")
    assert refused.returncode != 0
    assert "DO NOT MATCH THE HASHES" in refused.stderr
    assert not (tmp_path / "refused").exists()
    unhashed = install((), "unhashed")
    assert unhashed.returncode != 0
    assert "Hashes are required" in unhashed.stderr


def test_locks_and_set_up_name_no_place_to_download_from() -> None:
    """Which index pip asks is the machine's own setting."""
    for path in (*sorted(FOLDER.iterdir()), SETUP, COVERAGE, REPOSITORY / "tools" / "lock.sh", REPOSITORY / "Makefile"):
        assert not re.search(r"https?://|index-url|find-links| @ ", path.read_text()), path


def test_system_packages_are_recorded() -> None:
    """Each package that set-up installs from Debian is in the record of what this was tested with, and no other."""
    text = SETUP.read_text()
    named = {
        word
        for line in re.findall(r'(?:packages|for_tests)="([^"]*)"', text)
        for word in line.split()
        if "$" not in word
    }
    lines = (FOLDER / "debian-12.txt").read_text().splitlines()
    recorded = dict(line.split() for line in lines if not line.startswith("#"))
    assert named <= set(recorded)
    assert all(re.search(rf"\b{re.escape(name)}\b", text) for name in recorded)
    assert all(re.match(r"[0-9]", version) for version in recorded.values())
