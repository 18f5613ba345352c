"""What the command line imports before it answers: nothing that the verb does not use. Counted, never timed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from adyton.sim.platform import SimPlatform
from adyton.values import Measurement

NEVER: Final = {
    "pydantic",
    "pydantic_core",
    "sqlalchemy",
    "uvicorn",
    "starlette",
    "jinja2",
    "psycopg",
    "h11",
    "OpenSSL",
}
NEVER_HERE: Final = NEVER | {"click", "rich", "Crypto", "cbor2", "fsspec", "mfusepy", "prometheus_client", "asyncio"}

CODE: Final = """
import json, sys
from adyton.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as ended:
    if ended.code:
        raise
sys.stdout.flush()
sys.stderr.write(json.dumps(sorted(sys.modules)))
"""
UNBOUND = "allow_missing_report_data = true\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A key, a file, its protected form, and evidence with its collateral and a policy."""
    (tmp_path / "key").write_bytes(bytes(range(16)))
    (tmp_path / "key").chmod(0o600)
    (tmp_path / "plain").write_text("plain")
    platform = SimPlatform.create(tmp_path / "platform")
    (tmp_path / "quote").write_bytes(platform.enclave(measurement=Measurement(bytes(32))).quote(bytes(64)))
    loaded(tmp_path, "platform", "export", "platform", "-o", "collateral.json")
    (tmp_path / "policy.toml").write_text(f'tees = ["sim:{platform.root_fingerprint}"]\nany_program = true\n{UNBOUND}')
    return tmp_path


def loaded(folder: Path, *words: str) -> set[str]:
    """The modules that a verb has imported at its end."""
    done = subprocess.run([sys.executable, "-c", CODE, *words], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


def packages(modules: set[str]) -> set[str]:
    """The packages that these modules belong to."""
    return {name.partition(".")[0] for name in modules}


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_words_about_adyton_itself_import_no_library(folder: Path, option: str) -> None:
    """The standard library is enough."""
    found = loaded(folder, option)
    assert packages(found) & (NEVER_HERE | {"typer", "cryptography"}) == set()
    assert len(found) < 100, len(found)


def test_encrypt_and_decrypt_import_what_they_use(folder: Path) -> None:
    """With a key file neither the key store nor anything of attestation is loaded."""
    calls = (
        ("encrypt", "plain", "-o", "sealed", "--key-file", "key"),
        ("decrypt", "sealed", "-o", "again", "--key-file", "key"),
    )
    for words in calls:
        found = loaded(folder, *words)
        assert packages(found) & NEVER_HERE == set()
        rooms = {name.split(".")[1] for name in found if name.startswith("adyton.")}
        ground = {"check", "errors", "values", "untrusted", "os_failure", "atomic_file", "capped_read"}
        assert rooms <= {"cli", "workflow", "storage", "pfile"} | ground
        assert len(found) < 270, len(found)


def test_verify_imports_what_it_uses(folder: Path) -> None:
    """With collateral from a file no key store is loaded, and nothing that fetches."""
    words = ("verify", "quote", "--collateral", "collateral.json", "--policy", "policy.toml", "--json")
    found = loaded(folder, *words)
    assert packages(found) & NEVER_HERE == set()
    assert "adyton.collateral.fetcher" not in found
    assert not any(name.startswith(("adyton.keystore", "adyton.sim", "adyton.tee")) for name in found)
    assert len(found) < 350, len(found)


@pytest.mark.parametrize("verb", ["encrypt", "approve", "run", "serve", "protect"])
def test_help_imports_no_more_than_the_options(folder: Path, verb: str) -> None:
    """The verb itself is imported when it is carried out."""
    found = loaded(folder, verb, "--help")
    assert packages(found) & (NEVER | {"cryptography"}) == set()
