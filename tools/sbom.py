"""Write the bill of materials (CycloneDX 1.6, JSON): what Adyton is made of, and what runs beside a protected program.

Three sources: requirements/*.txt for the Python packages and the hashes of the files they may come from; the installed
environment for what asks for what; and the runtime identity (adyton.runtime.identity) for the C parts, interpreter,
system libraries and programs, each with its SHA-256 and, on Debian, its package. The same commit on the same machine
gives the same bytes: the time is the commit's (or SOURCE_DATE_EPOCH), the serial number a hash of the content. Usage:
sbom.py [--to FILE]
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.backends.openssl import backend
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import adyton
from adyton.runtime import identity

REPOSITORY = Path(__file__).resolve().parent.parent
LOCKS = ("lock.txt", "torch-cpu.txt", "torch.txt", "cuda.txt")
SELF = "adyton"
Component = dict[str, Any]


def locked(installed: dict[str, importlib.metadata.Distribution]) -> dict[str, tuple[str, list[str]]]:
    """Name -> version and hashes, for this Python; of PyTorch's builds the one that is installed."""
    found: dict[str, tuple[str, list[str]]] = {}
    for lock in LOCKS:
        text = re.sub(r"^#.*\n", "", (REPOSITORY / "requirements" / lock).read_text(), flags=re.MULTILINE)
        for line in text.replace("\\\n", " ").splitlines():
            words, *hashes = line.split(" --hash=sha256:")
            requirement = Requirement(words.strip())
            name, version = canonicalize_name(requirement.name), str(requirement.specifier).removeprefix("==")
            if requirement.marker is not None and not requirement.marker.evaluate():
                continue
            if lock in ("torch-cpu.txt", "cuda.txt") and (name not in installed or installed[name].version != version):
                continue
            found.setdefault(name, (version, sorted(one.strip() for one in hashes)))
    return found


def asked_by(distribution: importlib.metadata.Distribution, extras: frozenset[str] = frozenset()) -> set[str]:
    """The canonical names of what a distribution needs here, with these extras."""
    names: set[str] = set()
    for line in distribution.requires or ():
        wanted = Requirement(line)
        if wanted.marker is None or any(wanted.marker.evaluate({"extra": extra}) for extra in extras | {""}):
            names.add(canonicalize_name(wanted.name))
    return names


def python_components(
    installed: dict[str, importlib.metadata.Distribution], packages: dict[str, tuple[str, list[str]]]
) -> tuple[list[Component], list[dict[str, Any]]]:
    """The locked packages, and who needs whom; what only builds, tests or shows Adyton is `excluded` from what runs."""
    runs: set[str] = set()
    waiting = asked_by(installed[SELF]) - {SELF}
    while waiting:
        name = waiting.pop()
        runs.add(name)
        if name in installed:
            waiting |= asked_by(installed[name]) - runs
    components, edges = (
        [],
        [{"ref": SELF, "dependsOn": sorted(_python(name, packages) for name in asked_by(installed[SELF]))}],
    )
    for name, (version, hashes) in sorted(packages.items()):
        component: Component = {
            "type": "library",
            "bom-ref": _python(name, packages),
            "name": name,
            "version": version,
            "scope": "required" if name in runs else "excluded",
            "purl": _python(name, packages),
            "properties": [{"name": "adyton:locked:sha256", "value": one} for one in hashes],
        }
        if name in installed:
            needs = asked_by(installed[name]) & set(packages)
            edges.append({"ref": component["bom-ref"], "dependsOn": sorted(_python(each, packages) for each in needs)})
            for text in installed[name].metadata.get_all("License-Expression") or ():
                component["licenses"] = [{"expression": text}]
        components.append(component)
    return components, edges


def _python(name: str, packages: dict[str, tuple[str, list[str]]]) -> str:
    return f"pkg:pypi/{name}@{packages[name][0].replace('+', '%2B')}"


def system_components() -> list[Component]:
    """C parts, interpreter, libraries and programs that the runtime identity measures, each by its own bytes."""
    measured = identity.measured_files()
    files = {name: Path(path) for name, members in measured.items() for shown, path in members if not shown}
    files |= {f"C part {shown}": Path(path) for shown, path in measured["adyton"] if shown.endswith(".so")}
    components = []
    for name, path in sorted(files.items()):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        component: Component = {
            "type": "application" if name.startswith(("program", "python")) else "library",
            "bom-ref": f"file:{name}",
            "name": name.removeprefix("library ").removeprefix("program "),
            "scope": "required",
            "hashes": [{"alg": "SHA-256", "content": digest}],
        }
        component |= debian(path) or ({"version": sys.version.split()[0]} if name == "python interpreter" else {})
        components.append(component)
    bundled = backend.openssl_version_text().split()[1]
    components.append(
        {
            "type": "library",
            "bom-ref": "bundled:openssl",
            "name": "OpenSSL, within the package cryptography",
            "version": bundled,
            "scope": "required",
            "purl": f"pkg:generic/openssl@{bundled}",
        }
    )
    return components


def debian(path: Path) -> Component:
    """Version and package of a file that Debian's package manager put there; nothing for another."""
    names = [str(path)]
    if str(path).startswith("/usr/"):
        names.append(str(path).removeprefix("/usr"))  # packages older than the merge of /usr name it so
    for name in names:
        try:
            owner = _output("dpkg-query", "-S", name).partition(": ")[0]
            version, architecture, source = _output(
                "dpkg-query", "-W", "-f", "${Version}\n${Architecture}\n${source:Package}", owner
            ).split("\n")
        except (OSError, subprocess.CalledProcessError):
            continue
        package = owner.partition(":")[0]
        quoted = version.replace("+", "%2B").replace("~", "~").replace(":", "%3A")
        purl = f"pkg:deb/debian/{package}@{quoted}?arch={architecture}"
        return {"version": version, "purl": purl, "properties": [{"name": "adyton:debian:source", "value": source}]}
    return {}


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def moment() -> datetime:
    """SOURCE_DATE_EPOCH, or the time of the commit that is checked out."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    epoch = int(given) if given else int(_output("git", "-C", str(REPOSITORY), "show", "-s", "--format=%ct", "HEAD"))
    return datetime.fromtimestamp(epoch, UTC)


def document() -> dict[str, Any]:
    """The whole bill."""
    installed = {str(canonicalize_name(one.metadata["Name"])): one for one in importlib.metadata.distributions()}
    components, edges = python_components(installed, locked(installed))
    measured = identity.runtime_identity()
    system = system_components()
    edges[0]["dependsOn"] += sorted(each["bom-ref"] for each in system)
    subject: Component = {
        "type": "application",
        "bom-ref": SELF,
        "name": SELF,
        "version": adyton.__version__,
        "purl": f"pkg:pypi/{SELF}@{adyton.__version__}",
        "licenses": [{"license": {"id": "Apache-2.0"}}],
        "properties": [
            {"name": "adyton:runtime-identity", "value": str(measured.digest)},
            *({"name": f"adyton:part:{name}", "value": str(digest)} for name, digest in sorted(measured.parts.items())),
        ],
    }
    bill: dict[str, Any] = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": moment().strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": subject,
            "properties": [{"name": "adyton:python", "value": sys.version.split()[0]}],
        },
        "components": components + system,
        "dependencies": edges,
    }
    digest = hashlib.sha256(json.dumps(bill, sort_keys=True).encode()).digest()
    return {"serialNumber": f"urn:uuid:{uuid.UUID(bytes=digest[:16], version=4)}", **bill}


def main() -> None:
    """Write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = REPOSITORY / "dist" / f"adyton-{adyton.__version__}.cdx.json"
    parser.add_argument("--to", type=Path, default=default)
    options = parser.parse_args()
    options.to.parent.mkdir(parents=True, exist_ok=True)
    options.to.write_text(json.dumps(document(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(options.to)


if __name__ == "__main__":
    main()
