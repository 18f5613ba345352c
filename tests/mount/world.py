"""A small world for launching: a shell, a few tools or a Python as the program, folders as the host's storage.

`python -m tests.mount.world SPEC` carries out a JSON spec in the current folder, without attestation, and prints how it
ended as one JSON line on standard error after `ENDED `.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from adyton.attest.report_data import ProgramEvidence
from adyton.errors import Error
from adyton.manifest.egress import Egress
from adyton.manifest.model import AdytonTable, Manifest, Mount, Secret, SGXTable, TrustedFile
from adyton.pfile.backing import OSFile
from adyton.pfile.file import ProtectedFile
from adyton.storage.files import encrypt_file
from adyton.values import Digest, Key128, Measurement
from tests.support import machine

KEY = Key128(bytes(range(16)))
WORKLOAD = Measurement(bytes(range(32)))
REPOSITORY = Path(__file__).parent.parent.parent
TOOLS = ("cat", "ls", "sleep", "id", "mv", "rm", "dd", "touch", "mkdir", "ln", "head", "grep", "readlink", "df", "env")


@cache
def _libraries(program: str) -> tuple[str, ...]:
    shown = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
    return tuple(word for line in shown.splitlines() for word in line.split() if word.startswith("/"))


@cache
def _trusted(path: str) -> TrustedFile:
    info = os.stat(path)
    digest = Digest(hashlib.sha256(Path(path).read_bytes()).digest())
    return TrustedFile("file:" + path, digest, info.st_size, bool(info.st_mode & 0o111), None)


def shell_files() -> list[TrustedFile]:
    """A POSIX shell, tools, and their libraries."""
    programs = [
        os.path.realpath("/bin/sh"),
        *(found for tool in TOOLS if (found := shutil.which(tool, path="/usr/bin"))),
    ]
    listed = {path: None for program in programs for path in (program, *_libraries(program))}
    return [_trusted(path) for path in listed]


@cache
def python_files() -> list[TrustedFile]:
    """Debian's own Python with what a small script imports."""
    program = machine.SYSTEM_PYTHON
    script = "import sys, os, json, time, socket, mmap, ctypes, resource"
    script += ", multiprocessing.queues, multiprocessing.synchronize, multiprocessing.popen_fork"
    script += "\nfor m in list(sys.modules.values()):\n f = getattr(m, '__file__', None)\n if f: print(f)"
    shown = subprocess.run([program, "-I", "-S", "-c", script], capture_output=True, text=True, check=True).stdout
    files = {program: None, **dict.fromkeys(_libraries(program))}
    for line in shown.splitlines():
        files[line] = None
        files.update(dict.fromkeys(_libraries(line) if line.endswith(".so") else ()))
    encodings = next(Path(path).parent for path in files if path.endswith("/encodings/__init__.py"))
    files.update(dict.fromkeys(str(path) for path in encodings.glob("*.py")))
    return [_trusted(path) for path in files]


def manifest(spec: dict[str, Any]) -> Manifest:
    """The manifest of a spec: argv, mounts [(type, path, uri)], read_only, extra trusted files, flags."""
    python = spec.get("python", False)
    mounts = [Mount("chroot", path, "file:" + path) for path in ("/usr", "/lib", "/lib64")]
    mounts += [
        Mount(kind, path, uri, spec.get("key", "k"), spec.get("recovery", False))
        for kind, path, uri in spec.get("mounts", [])
    ]
    if not any(mount.path == "/tmp" for mount in mounts):
        mounts.append(Mount("tmpfs", "/tmp", None))
    files = python_files() if python else shell_files()
    known = {name: Digest(bytes.fromhex(digest)) for name, digest in spec.get("digests", {}).items()}
    files = [
        *files,
        *(
            TrustedFile(
                f"file:{name}",
                known.get(name) or Digest(hashlib.sha256(Path(name).read_bytes()).digest()),
                os.stat(name).st_size if spec.get("facts", False) else None,
            )
            for name in spec.get("trusted", [])
        ),
    ]
    return Manifest(
        entrypoint=machine.SYSTEM_PYTHON if python else os.path.realpath("/bin/sh"),
        argv=tuple(spec["argv"]),
        env=spec.get("env", {"PATH": "/usr/bin", "PYTHONHOME": "/usr"}),
        mounts=tuple(mounts),
        root=Mount("chroot", "/", "file:root"),
        trusted_files=tuple(files),
        allowed_files=tuple(spec.get("allowed", [])),
        uid=spec.get("uid", 0),
        gid=spec.get("gid", 0),
        fds_limit=spec.get("fds_limit", 900),
        domain_names_from_host=spec.get("domain_names", False),
        sgx=SGXTable(remote_attestation="dcap"),
        adyton=AdytonTable(
            read_only=tuple(spec.get("read_only", [])),
            memory_budget_bytes=spec.get("budget", 1 << 30),
            network=spec.get("network", "none"),
            insecure_stdio=spec.get("stdio", True),
            insecure_stdin=spec.get("stdin", False),
            log_uri=spec.get("log"),
            secrets=tuple(Secret(**secret) for secret in spec.get("secrets", [])),
            egress=tuple(Egress(**server) for server in spec.get("egress", [])),
        ),
    )


@dataclass(frozen=True)
class Result:
    """How a run in a world ended."""

    status: int
    out: str
    err: str
    ended: dict[str, Any]


def shell(script: str, **more: Any) -> dict[str, Any]:
    """A spec that runs a shell script."""
    return {"argv": ["sh", "-c", script], **more}


def python(script: str, **more: Any) -> dict[str, Any]:
    """A spec that runs a Python script."""
    return {"argv": ["python3", "-S", "-c", script], "python": True, **more}


def start(folder: Path, spec: dict[str, Any], **more: Any) -> subprocess.Popen[str]:
    """Start a run in `folder`; its process is the one that a person would see as `adyton run`."""
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}/src:{REPOSITORY}"}
    words = [sys.executable, "-m", "tests.mount.world", json.dumps(spec)]
    files = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
    return subprocess.Popen(words, cwd=folder, env=environment, text=True, **files)


def finish(process: subprocess.Popen[str], timeout_s: float = 60) -> Result:
    """Wait for a run."""
    out, err = process.communicate(timeout=timeout_s)
    told = [line for line in err.splitlines() if line.startswith("ENDED ")]
    return Result(process.returncode, out, err, json.loads(told[-1][6:]) if told else {})


def run(folder: Path, spec: dict[str, Any]) -> Result:
    """Run to the end."""
    return finish(start(folder, spec))


def encrypt(folder: Path, name: str, content: bytes) -> None:
    """A protected file at folder/name, sealed as `name`."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    plain = folder / "plain.tmp"
    plain.write_bytes(content)
    encrypt_file(plain, folder / name, KEY, path=name)
    plain.unlink()


def decrypt(folder: Path, name: str) -> bytes:
    """What the owner gets of folder/name, sealed as `name`."""
    with ProtectedFile.open(OSFile(folder / name), KEY, path=name) as file:
        return file.read_at(0, file.size)


def snp_report(report_data: bytes) -> bytes:
    """What the test AMD's chip signs for the guest that runs here."""
    from tests.support.amd_factory import SNPScenario

    scenario = SNPScenario()
    scenario.fields["report_data"] = report_data
    return scenario.report()


def main() -> int:
    """Carry out the spec in argv."""
    from adyton.gpu_nodes import DeviceNode
    from adyton.runtime.inherited import begin_anew
    from adyton.runtime.keeper import Delivered
    from adyton.runtime.launch import launch
    from adyton.runtime.run_plan import plan

    begin_anew()  # as `adyton run` does
    spec = json.loads(sys.argv[1])

    def note(text: str) -> None:
        sys.stderr.write(f"NOTE {text}\n")
        sys.stderr.flush()

    def quote(report_data: bytes) -> bytes:
        if spec.get("snp", False):
            return snp_report(report_data)
        return b"\x03\x00" + bytes(46) + bytes(320) + report_data + bytes(100)

    evidence = ProgramEvidence(quote, WORKLOAD, raw=spec.get("raw", False))

    try:
        made = plan(manifest(spec), read_trusted=lambda entry: Path(entry.host_path).read_bytes(), host_env=os.environ)
        nodes = [DeviceNode(path, major, minor) for path, major, minor in spec.get("devices", [])]
        made = replace(made, devices=tuple(nodes))
        secrets = {secret["name"]: spec.get("secret", "a secret").encode() for secret in spec.get("secrets", [])}

        def obtain() -> Delivered:
            sys.stderr.write("OBTAINED\n")
            sys.stderr.flush()
            return Delivered({"k": KEY}, secrets)

        ended = launch(made, obtain, simulated=True, evidence=evidence, note=note, jobs=spec.get("jobs"))
    except Error as error:
        sys.stderr.write(f"ENDED {json.dumps({**error.details(), 'code': error.exit_code})}\n")
        return getattr(error, "status", error.exit_code)
    told = {"exit_code": ended.exit_code, "seconds": dict(ended.seconds), "events": list(ended.events)}
    sys.stderr.write(f"ENDED {json.dumps(told)}\n")
    return ended.exit_code


if __name__ == "__main__":
    sys.exit(main())
