"""The bill of materials: valid, complete, the same twice, and true of this machine."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from adyton.pfile import seal
from adyton.runtime import identity
from tests.conftest import REPOSITORY
from tests.supply.locked import read

EPOCH = "1790000000"


def write(target: Path, **environment: str) -> str:
    """The bill that tools/sbom.py writes."""
    command = [sys.executable, str(REPOSITORY / "tools" / "sbom.py"), "--to", str(target)]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, **environment}, cwd=target.parent)
    return target.read_text()


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One bill, of this installation."""
    return write(tmp_path_factory.mktemp("sbom") / "bill.json", SOURCE_DATE_EPOCH=EPOCH)


@pytest.fixture(scope="module")
def bill(text: str) -> dict[str, Any]:
    """The same, read."""
    read: dict[str, Any] = json.loads(text)
    return read


def test_bill_is_valid_cyclonedx(text: str) -> None:
    """By the standard's own schema, strictly; a key that it does not know is found."""
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(text) is None
    assert validator.validate_str(text.replace('"components"', '"parts"', 1)) is not None


def test_bill_is_the_same_twice(text: str, tmp_path: Path) -> None:
    """No time of the day, no random number: the serial is a hash of the content, the time the commit's or as given."""
    assert write(tmp_path / "again.json", SOURCE_DATE_EPOCH=EPOCH) == text
    later = json.loads(write(tmp_path / "later.json", SOURCE_DATE_EPOCH=str(int(EPOCH) + 60)))
    assert later["metadata"]["timestamp"] == "2026-09-21T14:14:20Z"
    assert later["serialNumber"] != json.loads(text)["serialNumber"]


def test_bill_has_every_locked_package_of_this_python(bill: dict[str, Any]) -> None:
    """With the locked hashes; what runs beside a program is marked as required, what only tests Adyton is not."""
    packages = {row["name"]: row for row in bill["components"] if row.get("purl", "").startswith("pkg:pypi/")}
    for row in read(REPOSITORY / "requirements" / "lock.txt"):
        if row.requirement.marker is None or row.requirement.marker.evaluate():
            held = packages[row.name]
            assert held["version"] == row.version
            assert {f"sha256:{each['value']}" for each in held["properties"]} == set(row.hashes)
    assert "torch" in packages
    for row in read(REPOSITORY / "requirements" / "run.txt"):
        if row.requirement.marker is None or row.requirement.marker.evaluate():
            assert packages[row.name]["scope"] == "required"
    assert packages["pytest"]["scope"] == packages["torch"]["scope"] == "excluded"


def test_bill_has_the_bytes_that_the_runtime_identity_measures(bill: dict[str, Any]) -> None:
    """C parts, interpreter, libraries and programs, each with the SHA-256 of the file that is used here."""
    found = {row["bom-ref"]: row["hashes"][0]["content"] for row in bill["components"] if "hashes" in row}
    measured = identity.measured_files()
    files = {name: path for name, members in measured.items() for shown, path in members if not shown}
    assert {"library libc.so.6", "library libcrypto.so.3", "python interpreter", "program bwrap"} <= set(files)
    package = Path(identity.__file__).parent.parent
    files |= {f"C part {path.relative_to(package)}": str(path) for path in package.glob("*/*.so")}
    assert len([name for name in files if name.startswith("C part")]) == (4 if seal.NATIVE else 0)
    assert found == {
        f"file:{name}": hashlib.sha256(Path(path).read_bytes()).hexdigest() for name, path in files.items()
    }
    properties = {row["name"]: row["value"] for row in bill["metadata"]["component"]["properties"]}
    assert properties["adyton:runtime-identity"] == str(identity.runtime_identity().digest)


def test_bill_names_debian_packages_of_system_libraries(bill: dict[str, Any]) -> None:
    """Where Debian's package manager put them."""
    library = next(row for row in bill["components"] if row["name"] == "libc.so.6")
    if not Path("/var/lib/dpkg/status").exists():
        pytest.skip("this machine has no dpkg (no Debian): system packages cannot be named")
    assert re.fullmatch(r"pkg:deb/debian/libc6@[^?]+\?arch=\w+", library["purl"])
    assert any(row["name"].startswith("OpenSSL, within") for row in bill["components"])


def test_bill_has_a_graph_without_loose_ends(bill: dict[str, Any]) -> None:
    """Every reference is a component; Adyton leads to each that is required."""
    known = {row["bom-ref"] for row in bill["components"]} | {bill["metadata"]["component"]["bom-ref"]}
    assert len(known) == len(bill["components"]) + 1
    needs = {row["ref"]: row["dependsOn"] for row in bill["dependencies"]}
    assert {each for row in needs.values() for each in row} | set(needs) <= known
    reached, waiting = set(), ["adyton"]
    while waiting:
        one = waiting.pop()
        reached.add(one)
        waiting += [each for each in needs.get(one, ()) if each not in reached]
    assert {row["bom-ref"] for row in bill["components"] if row["scope"] == "required"} <= reached


def test_bill_names_no_place_of_this_machine(text: str) -> None:
    """No folder, no user, no address to download from."""
    assert not re.search(r"https?://|/usr/|/home/|/root/|/tmp/", text)
    assert str(REPOSITORY) not in text
