"""The members of every verb's `--json`: their names and the types of their values, held against a record.

The record is json_members.json beside this file. Delete it and run this file twice to make it anew: the first run
writes it and fails. Scripts rely on these documents, so a change of the record needs a line in CHANGELOG.md.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from adyton.cli import main as command_line
from adyton.sim.platform import SimPlatform
from tests.cli.chain import Place
from tests.support.image_files import AMD_SEV, KERNEL_HASHES, firmware, write_small_image
from tests.unit.runtime.test_gramine_backend import libpal, script, write

RECORD: Final = Path(__file__).with_name("json_members.json")
Documents = dict[str, Any]

TEMPLATE: Final = """
libos.entrypoint = "/app"
loader.argv = ["app"]
fs.mounts = [{ path = "/app", uri = "file:app" }, { type = "encrypted", path = "/out", uri = "file:out/" }]
sgx.trusted_files = ["file:app"]
sgx.debug = true
sys.disallow_subprocesses = true
"""


def shape(value: Any) -> Any:
    """The names and types in a document: an object by its members, a list by the shapes that its items have."""
    if isinstance(value, dict):
        return {name: shape(inner) for name, inner in sorted(value.items())}
    if isinstance(value, list):
        found = {json.dumps(shape(item), sort_keys=True) for item in value}
        return [json.loads(text) for text in sorted(found)]
    return "null" if value is None else type(value).__name__


def check(found: Documents) -> None:
    """Compare the shapes of these documents with the record; what is not recorded yet is written, and fails."""
    shapes = {name: shape(document) for name, document in found.items()}
    recorded: Documents = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    new = {name: found for name, found in shapes.items() if name not in recorded}
    if new:
        text = json.dumps({**recorded, **new}, indent=1, sort_keys=True)
        RECORD.write_text(text + "\n", encoding="utf-8")
        pytest.fail(f"recorded for the first time: {', '.join(sorted(new))}")
    assert shapes == {name: recorded[name] for name in shapes}


@pytest.fixture
def documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Documents:
    """The documents of all verbs but `run`, called one after the other in one folder."""
    for name, value in {
        "ADYTON_HOME": str(tmp_path / "home"),
        "ADYTON_SIM_PLATFORM": str(tmp_path / "platform"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "A_SETTING": "which the program does not get",
        "PATH": f"{tmp_path / 'gramine' / 'bin'}:{os.environ['PATH']}",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    found: Documents = {}

    def call(name: str | None, *words: str, status: int = 0) -> Any:
        with pytest.raises(SystemExit) as ended:
            command_line.main(list(words))
        shown = capsys.readouterr()
        assert int(ended.value.code or 0) == status, shown.out + shown.err
        if name is None:
            return None
        found[name] = json.loads(shown.out)
        return found[name]

    _owner(tmp_path, call)
    _programs(tmp_path, call)
    _protected_files(tmp_path, call)
    _judging(tmp_path, call)
    _keeping(call)
    return found


Call = Callable[..., Any]


def _owner(folder: Path, call: Call) -> None:
    call("init", "init", "--json")
    call("key new", "key", "new", "default", "--json")
    call("key rotate", "key", "rotate", "default", "--json")
    call("key list", "key", "list", "--json")
    call("platform new", "platform", "new", "platform", "--json")
    call("platform raise-tcb", "platform", "raise-tcb", "platform", "--status", "UpToDate", "--json")
    call("platform upgrade", "platform", "upgrade", "platform", "--json")
    call("platform show", "platform", "show", "--json")
    call(None, "platform", "export", "platform", "-o", "collateral.json")
    call("collateral import", "collateral", "import", "collateral.json", "--json")
    call("collateral show", "collateral", "show", "--json")
    (folder / "broken").write_text("{}")
    call("error", "collateral", "import", "broken", "--json", status=91)


def _programs(folder: Path, call: Call) -> None:
    libraries = folder / "gramine" / "lib" / "gramine"
    write(libraries / "libsysdb.so", b"library OS")
    write(libraries / "sgx" / "libpal.so", libpal())
    write(libraries / "runtime" / "glibc" / "libc.so.6", b"C library")
    script(folder / "gramine" / "bin" / "gramine-direct", "#!/bin/sh\nexit 0\n")
    (folder / "notes").write_text("private\n")
    (folder / "small.py").write_text("open('result', 'w').write(open('notes').read())\n")
    call("new", "new", "--json", "small.py")
    (folder / "app").write_text("program")
    (folder / "app.manifest.template").write_text(TEMPLATE)
    call("build", "build", "app.manifest.template", "--json")
    # The template above holds what Gramine itself refuses, so the one that is prepared for it is another.
    plain = TEMPLATE.replace("sys.disallow_subprocesses = true\n", "").replace(
        ', { type = "encrypted", path = "/out", uri = "file:out/" }', ""
    )
    (folder / "enclave.manifest.template").write_text(plain + "adyton.insecure__stdio = true\n")
    call("build --gramine", "build", "--gramine", "enclave.manifest.template", "--json")
    call("explain-measurement", "explain-measurement", "app.manifest", "--json")
    call("explain-measurement --gramine", "explain-measurement", "enclave.manifest", "--json")
    call("diff", "diff", "app.manifest", "enclave.manifest", "--json", status=1)
    root = SimPlatform.load(folder / "platform").root_fingerprint
    words = ("--key", "default", "--tee", f"sim:{root}", "--allow", "debug", "--json")
    approval = call("approve", "approve", "app.manifest", *words)["approvals"][0]["id"]
    call("policy show", "policy", "show", "--history", "--json")
    call("revoke", "revoke", approval, "--json")


def _protected_files(folder: Path, call: Call) -> None:
    key = ("--key", "default")
    (folder / "tree").mkdir()
    (folder / "tree" / "one").write_text("1")
    call("encrypt", "encrypt", "notes", "-o", "sealed", *key, "--json")
    call("encrypt tree", "encrypt", "tree", "-o", "sealed-tree", *key, "--json")
    call("inspect", "inspect", "sealed", "--json")
    call("inspect --verify", "inspect", "sealed", "--verify", *key, "--json")
    call("rekey", "rekey", "sealed", *key, "--json")
    call("rekey tree", "rekey", "sealed-tree", *key, "--json")
    call("decrypt", "decrypt", "sealed", "-o", "notes-again", *key, "--json")
    call("pin", "pin", "sealed-tree", *key, "--json")
    call("decrypt tree", "decrypt", "sealed-tree", "-o", "tree-again", *key, "--json")


def _judging(folder: Path, call: Call) -> None:
    call(None, "platform", "quote", "platform", "-o", "quote.bin")
    root = SimPlatform.load(folder / "platform").root_fingerprint
    (folder / "policy.toml").write_text(
        f'tees = ["sim:{root}"]\nany_program = true\nallow_missing_report_data = true\n'
    )
    given = ("--collateral", "collateral.json")
    call("verify accepted", "verify", "quote.bin", *given, "--policy", "policy.toml", "--json")
    (folder / "strict.toml").write_text(f'tees = ["sim:{root}"]\nmeasurements = ["{"1" * 64}"]\n')
    call("policy check", "policy", "check", "policy.toml", "--json")
    call("verify refused", "verify", "quote.bin", *given, "--policy", "strict.toml", "--json", status=95)
    call("verify untrusted", "verify", "quote.bin", *given, "--json", status=92)
    (folder / "noise").write_bytes(b"noise" * 100)
    call("verify malformed", "verify", "noise", *given, "--json", status=91)
    call("verify unchecked", "verify", "quote.bin", "--collateral", "nowhere", "--json", status=114)
    call("doctor", "doctor", "--json")
    write_small_image(folder / "image")
    (folder / "OVMF.fd").write_bytes(firmware(sev=(*AMD_SEV, KERNEL_HASHES), tdx=((0, 4096, 0xFFFFF000, 4096, 0, 1),)))
    call("image measure", "image", "measure", "image", "--firmware", "OVMF.fd", "--json")


def _keeping(call: Call) -> None:
    call("audit list", "audit", "list", "--kind", "policy", "--json")
    call("audit show", "audit", "show", "default", "--json")
    call("audit checkpoint", "audit", "checkpoint")
    call("audit verify", "audit", "verify", "--json")
    call("audit prune", "audit", "prune", "--before", "2020-01-01", "--json")
    call("backup", "backup", "-o", "backup", "--split", "2/2", "--shares", "shares", "--json")
    shares = sorted(str(path) for path in Path("shares").iterdir())
    words = [word for share in shares for word in ("--share", share)]
    call("restore", "restore", "backup", *words, "--home", "restored", "--json")
    call("protect", "protect", "--tee", "sim", "--json", "--name", "second", "--pack", "second.adyton", "small.py")
    call("pack", "pack", "second.manifest", "-o", "again.adyton", "--json")


def test_json_members_of_the_verbs_are_the_recorded_ones(documents: Documents) -> None:
    """No member came, went, or changed its type."""
    check(documents)


@pytest.mark.mount
def test_json_members_of_a_run_are_the_recorded_ones(cloud: Place) -> None:
    """The same for `adyton run --json`, with a key that was granted."""
    words = cloud.words_to_run("exit", "0")
    ended = cloud.adyton(words[0], "--json", *words[1:])
    assert ended.status == 0, ended.err
    check({"run": json.loads(ended.out)})


@pytest.mark.mount
def test_json_members_of_receipts_are_the_recorded_ones(cloud: Place, owner: Place) -> None:
    """The same for the verbs of receipts."""
    (cloud.folder / "receipts").mkdir()
    words = cloud.words_to_run("exit", "0")
    assert cloud.adyton(words[0], "--receipt", "receipts/one.json", *words[1:]).status == 0
    receipt = cloud.folder / "receipts" / "one.json"
    found = {}
    for name, place in (("verify", receipt), ("show", receipt), ("graph", receipt.parent)):
        ended = owner.adyton("receipt", name, place, "--json")
        assert ended.status == 0, ended.err
        found[f"receipt {name}"] = json.loads(ended.out)
    check(found)
