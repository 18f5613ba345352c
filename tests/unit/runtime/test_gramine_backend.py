"""The SGX backend without SGX: what is rendered, signed, refused and translated, with a constructed Gramine."""

from __future__ import annotations

import hashlib
import os
import struct
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from adyton.errors import BadSignature, ManifestError, NoDevice, RunError
from adyton.manifest.finalize import finish
from adyton.manifest.gramine_manifest import render_for_gramine
from adyton.manifest.host import find_gramine
from adyton.manifest.model import parse_manifest
from adyton.manifest.mrenclave import mrenclave, parse_pal
from adyton.manifest.sigstruct import generate_signer, load_signer, parse_sigstruct
from adyton.runtime import gramine_backend
from adyton.tee.machine import Machine
from adyton.values import Digest, Key128

CA = (Path(__file__).parents[2] / "support" / "owner-ca.pem").read_text()

TEMPLATE = """
libos.entrypoint = "/usr/bin/app"
loader.argv = ["app"]
loader.env.A = "1"
fs.mounts = [
  {{ path = "/usr", uri = "file:usr" }},
  {{ type = "encrypted", path = "/data", uri = "file:enc/", key_name = "default", enable_recovery = true }},
]
sgx.trusted_files = ["file:usr/bin/app", "file:usr/lib/libgomp.so.1"]
[adyton]
insecure__stdio = true
{more}
"""
OWNER = '[adyton.owners.me]\nca = """{ca}"""\nserver_name = "keys.example"\n'


def write(path: Path, content: bytes) -> Path:
    """A file with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def script(path: Path, text: str) -> Path:
    """An executable file."""
    write(path, text.encode()).chmod(0o755)
    return path


def libpal() -> bytes:
    """A constructed libpal.so with one segment."""
    header = (
        b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 128, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    )
    return header + struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 5000, 5000, 5000, 4096) + bytes(range(256)) * 20


@pytest.fixture(scope="module")
def key() -> rsa.RSAPrivateKey:
    """One signing key for the module."""
    return load_signer(generate_signer())


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small program and a constructed installation of Gramine 1.9 first on PATH."""
    write(tmp_path / "usr" / "bin" / "app", b"program")
    write(tmp_path / "usr" / "lib" / "libgomp.so.1", b"openmp")
    prefix = tmp_path / "gramine"
    libraries = prefix / "lib" / "gramine"
    write(libraries / "libsysdb.so", b"library OS")
    write(libraries / "sgx" / "libpal.so", libpal())
    for name in ("libc.so.6", "ld-linux-x86-64.so.2", "libsecret_prov_attest.so"):
        write(libraries / "runtime" / "glibc" / name, name.encode())
    write(
        prefix / "lib" / "python3" / "dist-packages" / "_graminelibos_offsets.py",
        b"SGX_GPR = 0x150\nSSA_FRAME_NUM = 2\nimport os\nPAGESIZE=4096\n",
    )
    script(prefix / "bin" / "gramine-direct", "#!/bin/sh\n[ \"$1\" != --version ] || echo 'Gramine 1.9post (abc)'\n")
    script(prefix / "bin" / "gramine-sgx", "#!/bin/sh\nexit 0\n")
    monkeypatch.setenv("PATH", f"{prefix / 'bin'}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def final(place: Path, more: str = "", *, owner: bool = True, replaced: Mapping[str, str] | None = None) -> bytes:
    """A final manifest of the small program."""
    text = TEMPLATE.format(more=more + ("\n" + OWNER.format(ca=CA) if owner else ""))
    for old, new in (replaced or {}).items():
        text = text.replace(old, new)
    return finish(text, place).manifest_bytes


def render(place: Path, raw: bytes, release: tuple[int, int] | None = None) -> Any:
    """Render for the constructed installation."""
    facts = gramine_backend.facts_of(gramine_backend.installed())
    if release is not None:
        facts = type(facts)(release, facts.libos, facts.libos_sha256, facts.runtime_folder, facts.runtime_files)
    return render_for_gramine(raw, facts, ca_uri="file:ca.crt", hosts_uri="file:hosts", cpus=4)


def test_installation_is_found_by_its_program(place: Path) -> None:
    """Libraries, release and constants come from where gramine-direct lies; constants are read, never run."""
    found = find_gramine()
    assert found is not None
    assert found.libraries == place / "gramine" / "lib" / "gramine"
    assert found.release == (1, 9)
    assert found.constants == {"SGX_GPR": 0x150, "SSA_FRAME_NUM": 2, "PAGESIZE": 4096}


@pytest.mark.parametrize(
    ("says", "release"),
    [
        ("echo Gramine 1.8", (1, 8)),
        ("echo 'gramine-direct (Gramine) 1.10-1'", (1, 10)),
        ("echo Gramine 1.5 >&2; echo Gramine v2a.9b '(c0.1)'", None),
        ("echo 'Invalid application path (--version.manifest), libc 2.36' >&2; exit 2", None),
    ],
)
def test_installation_says_its_release(place: Path, says: str, release: tuple[int, int] | None) -> None:
    """`gramine-direct --version` is asked, in a folder where no file can be taken for a program of that name."""
    script(place / "gramine" / "bin" / "gramine-direct", f"#!/bin/sh\n[ $PWD$1 = /--version ] || exit 9\n{says}\n")
    found = find_gramine()
    assert found is not None
    assert found.release == release


def test_release_that_is_too_old_is_refused(place: Path, key: rsa.RSAPrivateKey) -> None:
    """What `gramine-direct --version` says decides: 1.7 is refused by its number before anything is written."""
    script(place / "gramine" / "bin" / "gramine-direct", "#!/bin/sh\necho Gramine 1.7\n")
    with pytest.raises(ManifestError, match="too old") as refused:
        prepare(place, key)
    assert refused.value.seen == "1.7"
    assert not list(place.glob("*.gramine*"))


def test_gramine_that_is_not_installed_is_no_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without Gramine there is no SGX backend, said plainly."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoDevice, match="Gramine is not installed"):
        gramine_backend.installed()


def test_rendering_is_gramines_own_manifest(place: Path) -> None:
    """No [adyton] table, Gramine's C library and linker first, one key by secret provisioning under the pinned CA."""
    rendering = render(place, final(place))
    document = tomllib.loads(rendering.manifest_bytes.decode())
    assert "adyton" not in document
    libraries = place / "gramine" / "lib" / "gramine"
    assert document["loader"]["entrypoint"]["uri"] == f"file:{libraries}/libsysdb.so"
    assert document["loader"]["env"] == {
        "A": "1",
        "LD_LIBRARY_PATH": "/gramine/lib",
        "LD_PRELOAD": "/gramine/lib/libsecret_prov_attest.so",
        "SECRET_PROVISION_CONSTRUCTOR": "1",
        "SECRET_PROVISION_SET_KEY": "default",
        "SECRET_PROVISION_CA_CHAIN_PATH": "/gramine/ca.crt",
        "SECRET_PROVISION_SERVERS": "keys.example:4433",
        "OMP_NUM_THREADS": "4",
    }
    assert document["fs"]["mounts"][2:] == [
        {"path": "/gramine/lib", "uri": f"file:{libraries}/runtime/glibc"},
        {"path": "/gramine/ca.crt", "uri": "file:ca.crt"},
    ]
    assert document["fs"]["mounts"][1]["enable_recovery"] is True
    uris = [entry["uri"] for entry in document["sgx"]["trusted_files"]]
    assert uris[:2] == ["file:usr/bin/app", "file:usr/lib/libgomp.so.1"]
    assert "file:ca.crt" in uris
    assert f"file:{libraries}/runtime/glibc/libc.so.6" in uris
    assert document["sgx"]["remote_attestation"] == "dcap"
    assert document["sys"]["enable_extra_runtime_domain_names_conf"] is True
    assert rendering.ca_pem == CA
    assert rendering.key_name == "default"
    assert rendering.manifest.is_final
    assert rendering.manifest_bytes == render(place, final(place)).manifest_bytes


ADDRESS = 'server_name = "keys.example"\naddress = "{address}"'


@pytest.mark.parametrize(
    ("address", "given", "servers", "hosts", "says"),
    [
        ("10.0.0.7:99", "", "keys.example:99", "127.0.0.1 localhost\n10.0.0.7 keys.example\n", "is at 10.0.0.7"),
        ("localhost:99", "", "localhost:99", "127.0.0.1 localhost\n", "must carry localhost"),
        ("other.example:99", "", "other.example:99", None, "must carry other.example"),
        (None, "dummy:80;localhost:44", "dummy:80;localhost:44", "127.0.0.1 localhost\n", "dummy or localhost"),
        ("10.0.0.7:99", "dummy:80", "keys.example:99", "127.0.0.1 localhost\n10.0.0.7 keys.example\n", "is replaced"),
        (None, "", "keys.example:4433", None, "must be a name that the host's name servers know"),
    ],
)
def test_rendering_says_where_the_key_server_is(
    place: Path, address: str | None, given: str, servers: str, hosts: str | None, says: str
) -> None:
    """An enclave has no hosts file: a trusted one tells it the server's address, under the name that is checked."""
    replaced = {'server_name = "keys.example"': ADDRESS.format(address=address)} if address else {}
    if given:
        replaced["loader.env.A ="] = f'loader.env.SECRET_PROVISION_SERVERS = "{given}"\nloader.env.A ='
    rendering = render(place, final(place, replaced=replaced))
    assert rendering.manifest.env["SECRET_PROVISION_SERVERS"] == servers
    assert rendering.hosts == hosts
    shown = [mount.uri for mount in rendering.manifest.mounts if mount.path == "/etc/hosts"]
    assert shown == ([] if hosts is None else ["file:hosts"])
    digests = {entry.uri: entry.sha256 for entry in rendering.manifest.trusted_files}
    assert digests.get("file:hosts") == (hosts and Digest(hashlib.sha256(hosts.encode()).digest()))
    assert any(says in note for note in rendering.notes)


@pytest.mark.parametrize("allowed", ["file:/etc/hosts", "file:/etc/"])
def test_rendering_leaves_a_hosts_file_of_the_manifest_unless_it_needs_its_own(place: Path, allowed: str) -> None:
    """What resolves localhost stays the user's; the address of the key server must be in a trusted file."""
    more = {"fs.mounts = [": f'sgx.allowed_files = ["{allowed}"]\nfs.mounts = [{{ path = "/etc", uri = "file:/etc" }},'}
    for address, own in (("localhost:9", False), ("10.0.0.7:9", True)):
        replaced = {**more, 'server_name = "keys.example"': ADDRESS.format(address=address)}
        rendering = render(place, final(place, replaced=replaced))
        assert (rendering.hosts is not None) is own
        assert any("is covered by this one" in note for note in rendering.notes) is own


@pytest.mark.parametrize("allowed", ["file:ca.crt", "file:./", "file:."])
def test_rendering_whose_ca_would_be_an_allowed_file_is_refused(place: Path, allowed: str) -> None:
    """Gramine looks at allowed files first: the pinned CA would not be checked, and any server could answer."""
    with pytest.raises(ManifestError, match="would be an allowed file") as refused:
        render(place, final(place, replaced={"fs.mounts": f'sgx.allowed_files = ["{allowed}"]\nfs.mounts'}))
    assert refused.value.seen == allowed


def test_rendering_derives_sizes_with_reasons_where_none_are_given(place: Path) -> None:
    """A power of two and enough threads, each explained; given values stay."""
    rendering = render(place, final(place))
    assert rendering.manifest.sgx.enclave_size_bytes == 4 << 30  # half of a budget of 4G, and more
    assert rendering.manifest.sgx.max_threads == 16
    assert any(note.startswith("sgx.enclave_size = 4G: ") for note in rendering.notes)
    assert any(note.startswith("OMP_NUM_THREADS = 4: ") for note in rendering.notes)
    sizes = {"sgx.trusted_files =": "sgx.enclave_size = '512M'\nsgx.max_threads = 7\nsgx.trusted_files ="}
    given = render(place, final(place, replaced=sizes))
    assert (given.manifest.sgx.enclave_size_bytes, given.manifest.sgx.max_threads) == (512 << 20, 7)


def test_rendering_for_an_older_release_leaves_out_what_it_lacks(place: Path) -> None:
    """1.8 knows no recovery, and reads version 1 of the file format."""
    rendering = render(place, final(place), (1, 8))
    assert "enable_recovery" not in tomllib.loads(rendering.manifest_bytes.decode())["fs"]["mounts"][1]
    assert any("--format 1" in note for note in rendering.notes)
    with pytest.raises(ManifestError, match="too old"):
        render(place, final(place), (1, 7))


def test_rendering_without_keys_needs_no_provisioning(place: Path) -> None:
    """No encrypted mount, no secret provisioning."""
    text = TEMPLATE.format(more="").replace(
        '  { type = "encrypted", path = "/data", uri = "file:enc/", key_name = "default", enable_recovery = true },\n',
        "",
    )
    rendering = render(place, finish(text, place).manifest_bytes)
    assert rendering.key_name is None
    assert "LD_PRELOAD" not in rendering.manifest.env


@pytest.mark.parametrize(
    ("more", "owner", "replaced", "check"),
    [
        ("", True, {"insecure__stdio = true": ""}, "adyton.insecure__stdio"),
        ("", False, {}, "adyton.owners"),
        ('[adyton.secrets.x]\nenv = "X"', True, {}, "adyton.secrets"),
        ("", True, {"insecure__stdio = true": "insecure__stdio = true\ngpus = 1"}, "adyton.gpus"),
        ('[[adyton.ingress]]\nname = "api"\ntarget = "127.0.0.1:80"', True, {}, "adyton.ingress"),
        ("", True, {"sgx.trusted_files =": "sgx.enclave_size = '3G'\nsgx.trusted_files ="}, "sgx.enclave_size"),
        (
            "",
            True,
            {"fs.mounts = [": 'fs.mounts = [{ type = "encrypted", path = "/e", uri = "file:e", key_name = "k2" },'},
            "keys of encrypted mounts",
        ),
    ],
)
def test_rendering_refuses_what_an_enclave_would_not_keep(
    place: Path, more: str, owner: bool, replaced: dict[str, str], check: str
) -> None:
    """Output in clear, a server that anyone could be, secrets and keys that would not come: refused by name."""
    with pytest.raises(ManifestError) as refused:
        render(place, final(place, more, owner=owner, replaced=replaced))
    assert check in (refused.value.check or "")


def test_rendering_without_the_provisioning_library_is_refused(place: Path) -> None:
    """A Gramine built without DCAP cannot fetch keys."""
    (place / "gramine" / "lib" / "gramine" / "runtime" / "glibc" / "libsecret_prov_attest.so").unlink()
    with pytest.raises(ManifestError, match="libsecret_prov_attest"):
        render(place, final(place))


def prepare(place: Path, key: rsa.RSAPrivateKey) -> gramine_backend.Prepared:
    """Prepare the small program in its folder."""
    return gramine_backend.prepare(
        Path("app.manifest"),
        final(place),
        key,
        gramine_backend.installed(),
        date="2024-02-29",
        write=lambda p, b: _write(p, b),
    )


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def test_prepared_files_are_signed_for_their_mrenclave(place: Path, key: rsa.RSAPrivateKey) -> None:
    """The SIGSTRUCT beside the manifest holds the MRENCLAVE of exactly these bytes under this libpal.so."""
    prepared = prepare(place, key)
    raw = (place / "app.gramine.manifest.sgx").read_bytes()
    assert raw == (place / "app.gramine.manifest").read_bytes()
    manifest = parse_manifest(raw.decode())
    expected = mrenclave(
        raw,
        parse_pal(libpal()),
        enclave_bytes=manifest.sgx.enclave_size_bytes,
        max_threads=manifest.sgx.max_threads,
        edmm=False,
    )
    sigstruct = parse_sigstruct((place / "app.gramine.sig").read_bytes())
    assert sigstruct.measurement == expected == prepared.measurement
    assert sigstruct.date == "2024-02-29"
    assert (place / "app.gramine-ca.crt").read_text() == CA
    assert any("not compared" in note for note in prepared.notes)
    assert not (place / "app.gramine-hosts").exists()
    again = gramine_backend.read_prepared(Path("app.manifest"))
    assert (again.measurement, again.mrsigner) == (prepared.measurement, prepared.mrsigner)


SIGNER = """#!{python}
import argparse, pathlib, tomli_w, tomllib
from adyton.manifest.sigstruct import *
from adyton.manifest.model import parse_manifest
from adyton.manifest.mrenclave import *
from adyton.values import Measurement
options = argparse.ArgumentParser()
for name in "moskl":
    options.add_argument("-" + name, type=pathlib.Path)
o = options.parse_args()
raw = tomli_w.dumps(tomllib.loads(o.m.read_text())).encode()
m = parse_manifest(raw.decode()).sgx
size, threads = m.enclave_size_bytes, m.max_threads
found = mrenclave(raw, parse_pal(o.l.read_bytes()), enclave_bytes=size, max_threads=threads, edmm=False)
o.o.write_bytes(raw)
found = Measurement(bytes(32)) if {wrong} else found
o.s.write_bytes(sign(found, load_signer(o.k.read_bytes()), attributes=Attributes.of(debug=False)).to_bytes())
"""


def test_prepared_measurement_is_compared_with_gramines_signer(place: Path, key: rsa.RSAPrivateKey) -> None:
    """Where gramine-sgx-sign is installed the two must agree. It writes the manifest anew, and no byte changes."""
    signer = place / "gramine" / "bin" / "gramine-sgx-sign"
    script(signer, SIGNER.format(python=sys.executable, wrong=False))
    assert prepare(place, key).notes[-1] == "MRENCLAVE agrees with gramine-sgx-sign (manifest byte for byte the same)"
    script(signer, SIGNER.format(python=sys.executable, wrong=True))
    with pytest.raises(BadSignature, match="different MRENCLAVEs"):
        prepare(place, key)
    script(signer, "#!/bin/sh\necho 'extra keys not allowed' >&2\nexit 1\n")
    with pytest.raises(ManifestError, match="extra keys not allowed"):
        prepare(place, key)


def test_prepared_files_that_are_missing_are_named(place: Path) -> None:
    """Without --gramine at build time there is nothing to launch."""
    with pytest.raises(ManifestError, match=r"app\.gramine\.sig"):
        gramine_backend.read_prepared(Path("app.manifest"))


def test_launch_on_a_machine_without_sgx_is_no_device(
    place: Path, key: rsa.RSAPrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine is checked before anything starts, and the backend says that it has never run on hardware."""
    prepare(place, key)
    monkeypatch.setattr(gramine_backend, "Machine", lambda: Machine(place / "empty"))
    said: list[str] = []
    with pytest.raises(NoDevice, match="device /dev/sgx_enclave: absent") as refused:
        gramine_backend.launch(Path("app.manifest"), note=said.append)
    assert refused.value.remedy is not None
    assert said == [gramine_backend.NEVER_RUN]


@pytest.mark.parametrize(("body", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137)])
def test_launch_passes_the_programs_exit_code(
    place: Path, key: rsa.RSAPrivateKey, monkeypatch: pytest.MonkeyPatch, body: str, status: int
) -> None:
    """Arguments go in, the exit code comes out, standard input is empty."""
    prepare(place, key)
    monkeypatch.setattr(gramine_backend, "check_machine", lambda: ())
    shell = f'#!/bin/sh\necho "$@" > arguments\ncat > input\n{body}\n'
    script(place / "gramine" / "bin" / "gramine-sgx", shell)
    assert gramine_backend.launch(Path("app.manifest"), arguments=["a", "b"], note=lambda _text: None) == status
    assert (place / "arguments").read_text() == "app.gramine a b\n"
    assert (place / "input").read_bytes() == b""


OUTPUTS = {
    "error: There are no available TCS pages left for a new thread. Please try to": "sgx.max_threads",
    "error: Enclave size must be a power of two!": "sgx.enclave_size",
    "RuntimeError: [enforce fail] . DefaultCPUAllocator: can't allocate memory": "sgx.enclave_size",
    "error: Cannot connect to aesmd_socket": "SGX quoting service",
    "error: Cannot open /dev/sgx_enclave": "SGX driver",
    "Handshake with RA-TLS failed with mbedTLS error -9984": "adyton.owners.*.ca and server_name",
    "Error: [error connecting to secret provision server]": "secret provisioning",
    "error: Disallowing access to file '/x'; file is not allowed.": "sgx.trusted_files",
}


@pytest.mark.parametrize("output", OUTPUTS)
def test_launch_translates_what_gramine_says(
    place: Path, key: rsa.RSAPrivateKey, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    """Each known failure names what to change; the line that said so is shown."""
    prepare(place, key)
    monkeypatch.setattr(gramine_backend, "check_machine", lambda: ())
    write(place / "message", output.encode() + b"\n")
    script(place / "gramine" / "bin" / "gramine-sgx", "#!/bin/sh\necho starting >&2\ncat message >&2\nexit 1\n")
    with pytest.raises(RunError) as refused:
        gramine_backend.launch(Path("app.manifest"), note=lambda _text: None)
    assert refused.value.check == OUTPUTS[output]
    assert refused.value.seen == output[:200]
    assert refused.value.remedy


def test_output_that_is_not_known_is_not_translated() -> None:
    """An ordinary traceback is the program's own affair."""
    assert gramine_backend.translate("Traceback (most recent call last):\nValueError: 3\n") is None


def test_rehearsal_runs_with_the_owners_keys_and_leaves_none(place: Path, key: rsa.RSAPrivateKey) -> None:
    """gramine-direct gets a manifest in memory with the key in clear and no provisioning; it is gone afterwards."""
    prepare(place, key)
    body = 'echo "$1" > where\ncp "$1.manifest" seen\nexit 3\n'
    script(place / "gramine" / "bin" / "gramine-direct", f'#!/bin/sh\n[ "$1" = --version ] && exit\n{body}')
    said: list[str] = []
    assert gramine_backend.dry_run(Path("app.manifest"), {"default": Key128(bytes(16))}, note=said.append) == 3
    manifest = parse_manifest((place / "seen").read_text())
    assert manifest.insecure_keys["default"] == Key128(bytes(16))
    assert not any(name.startswith("SECRET_PROVISION") or name == "LD_PRELOAD" for name in manifest.env)
    where = Path((place / "where").read_text().strip())
    assert where.parent.parent == Path("/dev/shm")
    assert not where.parent.exists()
    assert "nothing is protected" in said[0]


def test_launch_of_another_enclave_than_signed_is_refused(
    place: Path, key: rsa.RSAPrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Gramine that was updated since the build would measure differently: said before it starts."""
    prepare(place, key)
    monkeypatch.setattr(gramine_backend, "check_machine", lambda: ())
    pal = place / "gramine" / "lib" / "gramine" / "sgx" / "libpal.so"
    pal.write_bytes(libpal().replace(bytes(range(200, 210)), bytes(10)))
    with pytest.raises(BadSignature, match="not the one that was signed"):
        gramine_backend.launch(Path("app.manifest"), note=lambda _text: None)


def test_machine_is_checked_for_everything_that_sgx_needs(tmp_path: Path) -> None:
    """Processor, devices, Gramine, quoting service, EPC, quote provider; each missing one has a remedy."""
    found = gramine_backend.check_machine(Machine(tmp_path, path=str(tmp_path)))
    assert {finding.state for finding in found} == {"missing"}
    assert [finding.name for finding in found][-2:] == ["EPC memory", "DCAP quote provider"]
    assert all(finding.seen and finding.remedy for finding in found)
    write(tmp_path / "sys/devices/system/node/node0/x86/sgx_total_bytes", b"134217728\n")
    write(tmp_path / "usr/lib/libdcap_quoteprov.so.1", b"")
    states = {finding.name: finding for finding in gramine_backend.check_machine(Machine(tmp_path, path=str(tmp_path)))}
    assert (states["EPC memory"].state, states["EPC memory"].seen) == ("ok", "128 MiB")
    assert states["DCAP quote provider"].state == "ok"
