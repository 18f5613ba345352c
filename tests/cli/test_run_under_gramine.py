"""`adyton run --tee sgx` and `--tee gramine-direct` hand over to the Gramine on PATH, or say that there is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import tomli_w

from tests.unit.runtime.test_gramine_backend import libpal, script, write

TEMPLATE = """
libos.entrypoint = "/usr/bin/app"
loader.argv = ["app"]
fs.mounts = [
  { path = "/usr", uri = "file:usr" },
  { type = "encrypted", path = "/data", uri = "file:enc/", key_name = "default" },
]
sgx.trusted_files = ["file:usr/bin/app"]
[adyton]
insecure__stdio = true
"""


AS_A_GRAMINE_USER_HAS_IT = """
libos.entrypoint = "/client"
loader.log_level = "error"
loader.env.LD_LIBRARY_PATH = "/lib"
loader.env.LD_PRELOAD = "libsecret_prov_attest.so"
loader.env.SECRET_PROVISION_CONSTRUCTOR = "1"
loader.env.SECRET_PROVISION_SET_KEY = "default"
loader.env.SECRET_PROVISION_CA_CHAIN_PATH = "/ca.crt"
loader.env.SECRET_PROVISION_SERVERS = "nowhere:80;localhost:4433"
loader.insecure__use_cmdline_argv = true
fs.mounts = [
  { path = "/lib", uri = "file:{{ gramine.runtimedir() }}" },
  { path = "/etc", uri = "file:/etc" },
  { path = "/client", uri = "file:usr/bin/app" },
  { path = "/ca.crt", uri = "file:owner/ca.crt" },
  { path = "/input.txt", uri = "file:enc/input.txt", type = "encrypted" },
]
sgx.enclave_size = "512M"
sgx.remote_attestation = "dcap"
sgx.trusted_files = [
  "file:{{ gramine.libos }}", "file:usr/bin/app", "file:{{ gramine.runtimedir() }}/", "file:owner/ca.crt",
]
sgx.allowed_files = ["file:/etc/nsswitch.conf", "file:/etc/ethers", "file:/etc/host.conf"]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program built for a constructed Gramine, whose starters leave word of how they were called; an owner's key."""
    tmp_path = tmp_path_factory.mktemp("gramine")
    libraries = tmp_path / "gramine" / "lib" / "gramine"
    write(tmp_path / "usr" / "bin" / "app", b"program")
    write(libraries / "libsysdb.so", b"library OS")
    write(libraries / "sgx" / "libpal.so", libpal())
    for name in ("libc.so.6", "ld-linux-x86-64.so.2", "libsecret_prov_attest.so"):
        write(libraries / "runtime" / "glibc" / name, name.encode())
    write(
        tmp_path / "gramine" / "lib" / "python3" / "dist-packages" / "_graminelibos_offsets.py",
        b"SGX_GPR = 0x150\nSSA_FRAME_NUM = 2\nPAGESIZE = 4096\n",
    )
    programs = tmp_path / "gramine" / "bin"
    script(
        programs / "gramine-direct",
        '#!/bin/sh\n[ "$1" = --version ] && echo Gramine 1.9 && exit\ncp "$1.manifest" rehearsed\nexit 3\n',
    )
    script(programs / "gramine-sgx", "#!/bin/sh\ntouch started\n")
    (tmp_path / "app.manifest.template").write_text(TEMPLATE)
    for words in (("init",), ("key", "new", "default"), ("build", "--gramine", "app.manifest.template")):
        ended = adyton(tmp_path, *words)
        assert ended.returncode == 0, ended.stderr
    return tmp_path


def adyton(folder: Path, *words: str, with_gramine: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a verb in the folder, with or without the constructed Gramine first on PATH."""
    path = f"{folder / 'gramine' / 'bin'}:{os.environ['PATH']}" if with_gramine else os.environ["PATH"]
    return subprocess.run(
        [sys.executable, "-m", "adyton", *words],
        cwd=folder,
        env={**os.environ, "PATH": path, "ADYTON_HOME": str(folder / "owner"), "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_run_gramine_direct_rehearses_with_the_owners_key(folder: Path) -> None:
    """gramine-direct gets the key of the owner's own store; its exit code is passed on; the word rehearsal is said."""
    ended = adyton(folder, "run", "app.manifest", "--tee", "gramine-direct")
    assert ended.returncode == 3, ended.stderr
    assert "rehearses" in ended.stderr
    assert "insecure__keys" in (folder / "rehearsed").read_text()


def test_run_sgx_checks_the_machine_before_anything_starts(folder: Path) -> None:
    """Where there is no SGX device the run is refused, says that it has never run on hardware, and starts nothing."""
    if any(Path(device).exists() for device in ("/dev/sgx_enclave", "/dev/sgx/enclave")):
        pytest.skip("this refusal is for machines without SGX, and this one has it")
    ended = adyton(folder, "run", "app.manifest", "--tee", "sgx")
    assert ended.returncode == 112, ended.stderr
    assert "never run on SGX hardware" in ended.stderr
    assert not (folder / "started").exists()


@pytest.mark.parametrize("tee", ["sgx", "gramine-direct"])
def test_run_under_gramine_that_is_not_installed_is_refused(folder: Path, tee: str) -> None:
    """No Gramine on PATH: *could not check*, with what to install."""
    ended = adyton(folder, "run", "app.manifest", "--tee", tee, with_gramine=False)
    assert ended.returncode == 112, ended.stderr
    assert "install Gramine" in ended.stderr


def test_approve_for_sgx_approves_the_mrenclave(folder: Path) -> None:
    """The approval names the measurement of what was prepared for Gramine, not the workload's."""
    built = (folder / "app.gramine.sig").read_bytes()[960:992].hex()
    ended = adyton(
        folder,
        "approve",
        "app.manifest",
        "--key",
        "default",
        "--tee",
        "sgx",
        "--protocol",
        "ra-tls",
        "--allow",
        "output-in-clear",
        "--json",
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["measurement"] == built
    found = {item["name"]: item["exposes"] for item in json.loads(ended.stdout)["findings"]}
    assert found == {
        "output-in-clear": True,
        "no-freshness": False,
        "names-from-host": False,
        "unpinned-folder=/data": False,
    }
    assert json.loads(ended.stdout)["approvals"][0]["tees"] == ["sgx"]


@pytest.mark.parametrize(
    ("words", "check"),
    [
        (("--tee", "sgx"), "--protocol"),
        (("--tee", "sgx", "--protocol", "adyton"), "--protocol"),
        (("--tee", "sgx", "--tee", "tdx", "--protocol", "ra-tls"), "--tee"),
    ],
)
def test_approve_for_sgx_that_could_never_match_is_refused(folder: Path, words: tuple[str, ...], check: str) -> None:
    """Gramine speaks only ra-tls, and its measurement is another one than elsewhere."""
    ended = adyton(folder, "approve", "app.manifest", "--key", "default", *words, "--json")
    assert ended.returncode == 2, ended.stderr
    assert json.loads(ended.stdout)["check"] == check


def test_approve_for_sgx_of_a_changed_manifest_is_refused(folder: Path) -> None:
    """A manifest for Gramine that is not the one that was signed does not get its signature's approval."""
    path = folder / "app.gramine.manifest.sgx"
    good = path.read_bytes()
    path.write_bytes(good.replace(b'"app"', b'"bad"'))
    try:
        words = ("approve", "app.manifest", "--key", "default", "--tee", "sgx", "--protocol", "ra-tls")
        ended = adyton(folder, *words)
    finally:
        path.write_bytes(good)
    assert ended.returncode == 73, ended.stderr
    assert "MRENCLAVE in the signature" in ended.stderr


def test_approve_for_sgx_of_what_another_manifest_prepared_is_refused(folder: Path) -> None:
    """A harmless manifest to read, and an enclave of another one to approve, both well signed: nothing is approved."""
    harmless = {name: (folder / name).read_bytes() for name in ("app.manifest", "app.sig", "app.manifest.template")}
    prepared = [path for path in folder.iterdir() if path.name.startswith("app.gramine")]
    kept = {path: path.read_bytes() for path in prepared}
    words = ("approve", "app.manifest", "--key", "default", "--tee", "sgx", "--protocol", "ra-tls")
    try:
        (folder / "app.manifest.template").write_text(TEMPLATE.replace('["app"]', '["app", "--leak"]'))
        assert adyton(folder, "build", "--gramine", "app.manifest.template").returncode == 0
        for name, raw in harmless.items():
            (folder / name).write_bytes(raw)
        ended = adyton(folder, *words, "--allow", "output-in-clear")
        assert ended.returncode == 2, ended.stderr
        assert "unchecked-rendition" in ended.stderr
    finally:
        for path, raw in kept.items():
            path.write_bytes(raw)


def test_approve_for_sgx_without_gramine_must_name_that_nothing_was_compared(folder: Path) -> None:
    """Where this machine cannot tell what the enclave runs, the owner says that she accepts it."""
    words = ("approve", "app.manifest", "--key", "default", "--tee", "sgx", "--protocol", "ra-tls", "--json")
    ended = adyton(folder, *words, "--allow", "output-in-clear", with_gramine=False)
    assert ended.returncode == 2, ended.stderr
    assert "unchecked-rendition" in json.loads(ended.stdout)["seen"]
    named = ("--allow", "output-in-clear", "--allow", "unchecked-rendition")
    ended = adyton(folder, *words, *named, with_gramine=False)
    assert ended.returncode == 0, ended.stderr
    assert set(json.loads(ended.stdout)["approvals"][0]["allowed"]) == {"unchecked-rendition", "output-in-clear"}


def test_build_takes_a_gramine_manifest_as_it_is_with_one_switch(folder: Path) -> None:
    """Refused with the switch as the remedy; with it prepared, every change said; what it opens is named to approve."""
    (folder / "client.manifest.template").write_text(AS_A_GRAMINE_USER_HAS_IT)
    words = ("build", "client.manifest.template", "--gramine")
    ended = adyton(folder, *words)
    assert ended.returncode != 0
    assert "adyton build --gramine --gramine-defaults" in ended.stderr
    assert not (folder / "client.manifest").exists()
    ended = adyton(folder, *words, "--gramine-defaults", "--json")
    assert ended.returncode == 0, ended.stderr
    built = json.loads(ended.stdout)
    assert "libsecret_prov_attest.so in LD_PRELOAD" in built["notes"][0]
    names = {finding["name"] for finding in built["warnings"]}
    assert {"output-in-clear", "input-from-host", "network-of-host", "arguments-from-host"} <= names
    rendered = tomllib.loads((folder / "client.gramine.manifest.sgx").read_text())
    assert rendered["loader"]["env"] == {
        "LD_LIBRARY_PATH": "/gramine/lib:/lib",
        "LD_PRELOAD": "/gramine/lib/libsecret_prov_attest.so",
        "SECRET_PROVISION_CONSTRUCTOR": "1",
        "SECRET_PROVISION_SET_KEY": "default",
        "SECRET_PROVISION_CA_CHAIN_PATH": "/gramine/ca.crt",
        "SECRET_PROVISION_SERVERS": "nowhere:80;localhost:4433",
    }
    assert rendered["fs"]["mounts"][-1] == {"path": "/etc/hosts", "uri": "file:client.gramine-hosts"}
    assert (folder / "client.gramine-hosts").read_text() == "127.0.0.1 localhost\n"
    assert tomli_w.dumps(rendered) == (folder / "client.gramine.manifest.sgx").read_text()
    allow = [word for name in sorted(names - {"network-of-host", "names-from-host"}) for word in ("--allow", name)]
    approve = ("approve", "client.manifest", "--key", "default", "--tee", "sgx", "--protocol", "ra-tls", "--json")
    ended = adyton(folder, *approve, *allow)
    assert ended.returncode == 0, ended.stderr
    assert "unchecked-rendition" not in {item["name"] for item in json.loads(ended.stdout)["findings"]}
