"""The verbs build, new, diff and explain-measurement as a person types them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from adyton.manifest.signed import read_signed
from adyton.manifest.sigstruct import generate_signer
from adyton.runtime.identity import runtime_identity
from tests.unit.runtime.test_gramine_backend import libpal, script, write

TEMPLATE = """
libos.entrypoint = "/app"
loader.argv = ["app", "{{ word }}"]
fs.mounts = [{ path = "/app", uri = "file:app" }, { type = "encrypted", path = "/out", uri = "file:out/" }]
sgx.trusted_files = ["file:app"]
"""


@pytest.fixture(scope="module")
def signer() -> bytes:
    """One signing key for the module."""
    return generate_signer()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signer: bytes) -> Path:
    """A folder with a template, a program, and a home that can sign."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "signer.pem").write_bytes(signer)
    shutil.copy(Path(__file__).parent.parent / "support" / "owner-ca.pem", home / "ca.crt")
    (tmp_path / "app").write_text("program")
    (tmp_path / "app.manifest.template").write_text(TEMPLATE)
    monkeypatch.setenv("ADYTON_HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def adyton(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command line; its exit code must be `status`."""
    command = [sys.executable, "-c", "from adyton.cli.main import main; main()", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr + done.stdout
    return done


def test_build_makes_a_manifest_that_loads(place: Path) -> None:
    """Manifest and signature lie in the folder that was named, and verify under this runtime."""
    said = adyton("build", "app.manifest.template", "-D", "word=hello", "-o", "made")
    signed = read_signed(place / "made" / "app.manifest", runtime_identity().digest)
    assert signed.manifest.argv == ("app", "hello")
    assert signed.manifest.adyton.owners[0].name == "owner"
    assert str(signed.measurement) in said.stdout
    assert str(signed.mrsigner) in said.stdout
    assert "the measurement does not cover:" in said.stdout
    assert "owner        owner: adyton-key-server, CA SHA-256 " in said.stdout
    assert "/out" in said.stdout
    assert sorted(path.name for path in (place / "made").iterdir()) == ["app.manifest", "app.sig"]


def test_build_of_the_same_inputs_gives_the_same_files(place: Path) -> None:
    """Twice the same bytes, signature and all, with and without the cache."""
    results = []
    for folder, more in (("a", []), ("b", []), ("c", ["--no-cache"])):
        adyton("build", "app.manifest.template", "-Dword=x", "-o", folder, *more)
        results.append([(place / folder / name).read_bytes() for name in ("app.manifest", "app.sig")])
    assert results[0] == results[1] == results[2]


def test_build_says_everything_as_json(place: Path) -> None:
    """For programs: one document."""
    (place / "app.manifest.template").write_text(TEMPLATE + "sgx.debug = true\nsys.disallow_subprocesses = true\n")
    document = json.loads(adyton("build", "app.manifest.template", "-Dword=x", "--json").stdout)
    assert document["manifest"] == "app.manifest"
    assert document["keys"] == ["default"]
    assert document["trusted_files"] == 1
    assert [(item["danger"], item["key"]) for item in document["warnings"]] == [
        ("exposed", "sgx.debug"),
        ("weakened", "fs.mounts"),
    ]
    assert [item["key"] for item in document["refused_by_the_runtime"]] == ["sys.disallow_subprocesses"]
    assert document["not_covered"]


def test_build_strict_refuses_what_it_would_warn_of(place: Path) -> None:
    """With --strict nothing insecure is built, and nothing is written."""
    said = adyton("build", "app.manifest.template", "-Dword=x", "--strict", status=70)
    assert "pinned = true" in said.stderr
    (place / "app.manifest.template").write_text(
        TEMPLATE.replace('type = "encrypted"', 'type = "encrypted", pinned = true')
    )
    assert adyton("build", "app.manifest.template", "-Dword=x", "--strict").returncode == 0
    (place / "app.manifest").unlink()
    (place / "app.manifest.template").write_text(TEMPLATE + "adyton.network = 'host'\nsgx.debug = true\n")
    assert "warning (exposed): sgx.debug" in adyton("build", "app.manifest.template", "-Dword=x").stderr
    (place / "app.manifest").unlink()
    said = adyton("build", "app.manifest.template", "-Dword=x", "--strict", status=70)
    assert "sgx.debug" in said.stderr
    assert not (place / "app.manifest").exists()


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ("undefined", 71, ["'word' is undefined", "-D word"]),
        ("key", 71, ["sgx.trusted_file", "sgx.trusted_files"]),
        ("missing", 70, ["file:app", "nothing there"]),
        ("signer", 2, ["signing key", "adyton init"]),
        ("template", 70, ["nowhere.template"]),
        ("output", 114, ["app/app.manifest", "File exists"]),
        ("gramine", 112, ["Gramine is not installed"]),
    ],
)
def test_build_that_cannot_be_says_why(place: Path, change: str, status: int, words: list[str]) -> None:
    """Each failure has its exit code, its reason, what to do, and leaves no half-made files."""
    arguments = ["build", "app.manifest.template", "-Dword=x"]
    if change == "undefined":
        arguments.pop()
    elif change == "key":
        (place / "app.manifest.template").write_text(TEMPLATE.replace("trusted_files", "trusted_file"))
    elif change == "missing":
        (place / "app").unlink()
    elif change == "signer":
        (place / "home" / "signer.pem").unlink()
    elif change == "template":
        arguments[1] = "nowhere.template"
    elif change == "output":
        arguments += ["-o", "app"]
    else:
        arguments.append("--gramine")
        if shutil.which("gramine-direct"):
            pytest.skip("this refusal is for machines without Gramine, and it is installed here")
    said = adyton(*arguments, status=status)
    for word in words:
        assert word in said.stderr
    assert "Traceback" not in said.stderr
    assert not [
        path
        for path in place.iterdir()
        if path.name.startswith((".app", "app.manifest.")) and "template" not in path.name
    ]
    assert not (place / "app.sig").exists()


def test_diff_names_what_changed(place: Path) -> None:
    """A changed file and a changed argument, by name; exit code 1, or 0 where nothing differs."""
    adyton("build", "app.manifest.template", "-Dword=x", "-o", "a")
    (place / "app").write_text("another")
    adyton("build", "app.manifest.template", "-Dword=y", "-o", "b")
    said = adyton("diff", "a/app.manifest", "b/app.manifest", status=1).stdout
    assert "file app: SHA-256 " in said
    assert "key loader.argv: ['app', 'x'] -> ['app', 'y']" in said
    assert "measurement: " in said
    document = json.loads(adyton("diff", "a/app.manifest", "b/app.manifest", "--json", status=1).stdout)
    assert {item["kind"] for item in document["differences"]} == {"file", "key"}
    assert not document["same"]
    assert adyton("diff", "a/app.manifest", "a/app.manifest").stdout == ""


def test_explain_measurement_says_what_is_in_it(place: Path) -> None:
    """Words for a person, JSON for a program, and whether a measurement is this one's."""
    adyton("build", "app.manifest.template", "-Dword=x")
    signed = read_signed(place / "app.manifest", runtime_identity().digest)
    said = adyton("explain-measurement", "app.manifest").stdout
    for word in (str(signed.measurement), "'app' 'x'", "/out: encrypted files", "package cryptography", "clock"):
        assert word in said
    document = json.loads(adyton("explain-measurement", "app.manifest", "--json").stdout)
    assert document["sections"]["program"]
    assert "MRSIGNER" in adyton("explain-measurement", "app.sig").stdout
    adyton("explain-measurement", "app.manifest", "--measurement", str(signed.measurement))
    refused = adyton("explain-measurement", "app.manifest", "--measurement", "00" * 32, status=73)
    assert "not the manifest of that measurement" in refused.stderr


def test_build_for_gramine_prepares_what_run_launches(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a constructed Gramine: prepared, explained area by area, and handed to gramine-direct, exit code and all."""
    libraries = place / "gramine" / "lib" / "gramine"
    write(libraries / "libsysdb.so", b"library OS")
    write(libraries / "sgx" / "libpal.so", libpal())
    write(libraries / "runtime" / "glibc" / "libc.so.6", b"C library")
    script(place / "gramine" / "bin" / "gramine-direct", '#!/bin/sh\necho "under gramine: $@"\nexit 4\n')
    monkeypatch.setenv("PATH", f"{place / 'gramine' / 'bin'}:{os.environ['PATH']}")
    template = TEMPLATE.replace(', { type = "encrypted", path = "/out", uri = "file:out/" }', "")
    (place / "app.manifest.template").write_text(template + "adyton.insecure__stdio = true\n")
    said = adyton("build", "--gramine", "app.manifest.template", "-Dword=x")
    assert "MRENCLAVE " in said.stdout
    assert "gramine: sgx.enclave_size = 256M: " in said.stderr
    explained = json.loads(adyton("explain-measurement", "app.manifest", "--json").stdout)
    measurements = explained["measurements"]
    assert measurements["MRENCLAVE (Gramine)"] == measurements["MRENCLAVE computed with the Gramine installed here"]
    assert any("free" in line for line in explained["sections"]["enclave"])
    done = adyton("run", "app.manifest", "--tee", "gramine-direct", status=4)
    assert "under gramine: " in done.stdout
    assert "nothing is protected" in done.stderr
    refused = adyton("run", "app.manifest", "--tee", "sgx", status=112)
    assert "never run on SGX hardware" in refused.stderr


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed (apt-get install strace)")
def test_new_writes_a_template_that_builds(place: Path) -> None:
    """One native run, a short template and a list; built, it names only what the run used."""
    (place / "job.py").write_text("import sys, json; json.dump(open(sys.argv[1]).read(), open('answer.json', 'w'))\n")
    (place / "question.txt").write_text("why")
    document = json.loads(adyton("new", "--json", "job.py", "question.txt").stdout)
    assert {(mount["source"], mount["input"], mount["output"]) for mount in document["data"]} == {
        ("question.txt", True, False),
        ("answer.json", False, True),
    }
    assert 20 < document["trusted_files"] < 400
    adyton("build", "job.manifest.template")
    signed = read_signed(place / "job.manifest", runtime_identity().digest)
    assert signed.manifest.argv is not None
    assert signed.manifest.argv[1:] == ("job.py", "question.txt")
    assert adyton("new", "job.py", "question.txt", status=86).stderr.count("--force") == 1
    assert "trusted files" in adyton("new", "--force", "job.py", "question.txt").stdout


def test_new_of_a_script_that_fails_passes_its_exit_code(place: Path) -> None:
    """A program that does not run natively is not proposed."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed (apt-get install strace)")
    (place / "job.py").write_text("raise SystemExit(9)\n")
    assert "stand before SCRIPT" in adyton("new", "job.py", "--key", "k", status=9).stderr
    assert not (place / "job.manifest.template").exists()
    assert "there is no file" in adyton("new", "nothing.py", status=2).stderr
    assert os.environ["ADYTON_HOME"] == str(place / "home")
