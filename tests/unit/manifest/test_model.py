"""The model: what is accepted and with which defaults, and what is refused by which name."""

from __future__ import annotations

from pathlib import Path

import pytest

from adyton.errors import MalformedManifest
from adyton.manifest.key_table import KEYS, RETIRED
from adyton.manifest.model import Manifest, Mount, parse_manifest
from adyton.manifest.schema_check import format_size, parse_size
from adyton.values import Digest

LEAST = 'libos.entrypoint = "/app"\nfs.mounts = []\n'
ZERO = "0" * 64
PEM = (Path(__file__).parents[2] / "support" / "owner-ca.pem").read_text().replace("\n", "\\n")


def test_manifest_of_required_keys_has_gramines_defaults() -> None:
    """What is left unsaid is as Gramine has it, and as closed as it can be."""
    manifest = parse_manifest(LEAST)
    assert manifest == Manifest(entrypoint="/app", sgx=manifest.sgx)
    assert manifest.root == Mount("chroot", "/", "file:.")
    assert (manifest.fds_limit, manifest.stack_size_bytes, manifest.file_check_policy) == (900, 256 << 10, "strict")
    assert (manifest.sgx.enclave_size_bytes, manifest.sgx.max_threads, manifest.sgx.debug) == (256 << 20, 4, False)
    assert manifest.sgx.cpu_features == {
        "avx": "unspecified",
        "avx512": "unspecified",
        "amx": "unspecified",
        "mpx": "disabled",
        "pkru": "disabled",
    }
    assert (manifest.adyton.network, manifest.adyton.memory_budget_bytes) == ("none", 4 << 30)
    assert not any((manifest.adyton.insecure_stdio, manifest.adyton.insecure_stdin, manifest.use_cmdline_argv))
    assert manifest.env == {}
    assert manifest.key_names == ()


def test_manifest_with_edmm_defaults_to_a_large_enclave() -> None:
    """EDMM changes the default size only where none is given."""
    assert parse_manifest(LEAST + "sgx.edmm_enable = true").sgx.enclave_size_bytes == 1 << 40
    given = parse_manifest(LEAST + 'sgx.edmm_enable = true\nsgx.enclave_size = "1G"')
    assert given.sgx.enclave_size_bytes == 1 << 30


def test_manifest_with_everything_is_read() -> None:
    """Every part ends up where it belongs."""
    manifest = parse_manifest(f"""
libos.entrypoint = "bin/app"
loader.argv = ["app", "-x"]
loader.env.A = "1"
loader.env.B = {{ value = "2" }}
loader.env.C = {{ passthrough = true }}
loader.uid = 1000
loader.gid = 100
fs.start_dir = "/work"
fs.root = {{ type = "tmpfs" }}
fs.mounts = [
  {{ path = "/lib", uri = "file:/usr/lib" }},
  {{ type = "encrypted", path = "/in", uri = "file:in", key_name = "model" }},
  {{ type = "encrypted", path = "/out", uri = "file:out", key_name = "result", enable_recovery = true }},
  {{ type = "tmpfs", path = "/tmp", uri = "file:ignored" }},
]
sgx.trusted_files = ["file:a", {{ uri = "file:b", sha256 = "{ZERO}" }}, "file:d/"]
sgx.allowed_files = ["file:c", "dev:/dev/null"]
[adyton]
read_only = ["/in"]
network = "host"
memory_budget = "512M"
[adyton.owners.hospital]
ca = "{PEM}"
[adyton.owners.maker]
ca = "{PEM}"
server_name = "maker.example"
[adyton.keys]
model = "maker"
result = "hospital"
[adyton.secrets.token]
env = "TOKEN"
owner = "maker"
""")
    assert manifest.argv == ("app", "-x")
    assert (manifest.env, manifest.env_passthrough) == ({"A": "1", "B": "2"}, ("C",))
    assert (manifest.uid, manifest.gid, manifest.start_dir) == (1000, 100, "/work")
    assert manifest.root == Mount("tmpfs", "/", None)
    assert manifest.mounts[3] == Mount("tmpfs", "/tmp", None)
    assert manifest.encrypted_mounts[1].enable_recovery
    assert manifest.mounts[0].host_path == "/usr/lib"
    assert [entry.sha256 for entry in manifest.trusted_files] == [None, Digest(bytes(32)), None]
    assert manifest.allowed_files == ("file:c", "dev:/dev/null")
    assert not manifest.is_final
    assert manifest.key_names == ("model", "result")
    assert manifest.log_key_name == "result"
    owner = manifest.owner_of("model")
    assert owner is not None
    assert owner.server_name == "maker.example"
    assert manifest.adyton.secrets[0].env == "TOKEN"
    assert manifest.adyton.memory_budget_bytes == 512 << 20


def test_manifest_keys_leave_out_what_needs_no_server() -> None:
    """Keys in clear and SGX sealing keys are not asked for."""
    manifest = parse_manifest(
        'libos.entrypoint = "/app"\nfs.mounts = ['
        '{type="encrypted", path="/a", uri="file:a", key_name="clear"},'
        '{type="encrypted", path="/b", uri="file:b", key_name="_sgx_mrenclave"},'
        '{type="encrypted", path="/c", uri="file:c"}]\n'
        f'fs.insecure__keys.clear = "{"0" * 32}"'
    )
    assert manifest.key_names == ("default",)
    assert manifest.insecure_keys["clear"].reveal() == bytes(16)


REFUSED = {
    # unknown keys, with the nearest right one
    "sgx.trusted_file = []": ("sgx.trusted_file", "sgx.trusted_files"),
    "loader.uuid = 1": ("loader.uuid", "loader.uid"),
    "sgx.enclave_sise = '1G'": ("sgx.enclave_sise", "sgx.enclave_size"),
    "adyton.readonly = []": ("adyton.readonly", "adyton.read_only"),
    "adyton.owners.me.cafile = ''": ("adyton.owners.me.cafile", "adyton.owners.*.ca_file"),
    "trusted_files = []": ("trusted_files", "sgx.trusted_files"),
    "entrypoint = ''": ("entrypoint", "libos.entrypoint"),
    "fs.root.kind = 'tmpfs'": ("fs.root.kind", "a known key"),
    "quite_another = 1": ("quite_another", "a known key"),
    "'*' = 1": ("*", "a known key"),
    "fs.'[]' = 1": ("fs.[]", "a known key"),
    # wrong types and ranges
    "loader.uid = '0'": ("loader.uid", "integer"),
    "loader.uid = true": ("loader.uid", "integer"),
    "loader.uid = -1": ("loader.uid", "0 to"),
    "sgx.max_threads = 0": ("sgx.max_threads", "1 to"),
    "sgx.isvsvn = 65536": ("sgx.isvsvn", "65535"),
    "sgx.debug = 1": ("sgx.debug", "bool"),
    "sgx.enclave_size = 1024": ("sgx.enclave_size", "size"),
    "sgx.enclave_size = '1T'": (None, "number"),
    "sgx.enclave_size = '0512M'": (None, "number"),
    "sgx.enclave_size = '99999999999999G'": (None, "number"),
    "sgx.trusted_files.x = 'file:a'": ("sgx.trusted_files", "list"),
    "sgx.trusted_files = [1]": ("sgx.trusted_files[0]", "file:"),
    "sgx.trusted_files = [{uri = 'file:a', sha = ''}]": ("sgx.trusted_files[0]", "sha256"),
    "sgx.trusted_files = ['dev:a']": ("sgx.trusted_files[0]", "file:"),
    "sgx.trusted_files = ['a']": ("sgx.trusted_files[0]", "file:"),
    "sgx.trusted_files = [{uri = 'file:a', sha256 = 'ab'}]": ("sgx.trusted_files[0].sha256", "64 lower"),
    f"sgx.trusted_files = [{{uri = 'file:a', sha256 = '{'A' * 64}'}}]": ("sgx.trusted_files[0].sha256", "64 lower"),
    f"sgx.trusted_files = [{{uri = 'file:a/', sha256 = '{ZERO}'}}]": ("sgx.trusted_files[0]", "no sha256"),
    f"sgx.trusted_files = [{{uri='file:a', sha256='{ZERO}'}}, {{uri='file:a', sha256='{'1' * 64}'}}]": (
        "sgx.trusted_files",
        "one hash",
    ),
    "sgx.allowed_files = ['x']": ("sgx.allowed_files[0]", "file:"),
    "sgx.allowed_files = [1]": ("sgx.allowed_files[0]", "string"),
    "sgx.file_check_policy = 'stricter'": ("sgx.file_check_policy", "strict"),
    "sgx.remote_attestation = 'epid'": ("sgx.remote_attestation", "dcap"),
    "sgx.seal_key.misc_mask = '0x1'": ("sgx.seal_key.misc_mask", "8 hex"),
    "sgx = 1": ("sgx", "table"),
    "loader.argv = 'x'": ("loader.argv", "list of strings"),
    "loader.argv = []": ("loader.argv", "at least"),
    "loader.argv = ['a\\u0000']".replace("'a", '"a').replace("']", '"]'): ("loader.argv[0]", "NUL"),
    "loader.argv = ['a']\nloader.insecure__use_cmdline_argv = true": ("loader.insecure__use_cmdline_argv", "one of"),
    "loader.argv = ['a']\nloader.argv_src_file = 'file:x'": ("loader.argv_src_file", "one of"),
    "loader.env_src_file = 'file:x'\nloader.insecure__use_host_env = true": ("loader.env_src_file", "one of"),
    "loader.argv_src_file = 'x'": ("loader.argv_src_file", "file:"),
    "loader.env.A = 1": ("loader.env.A", "string"),
    "loader.env.A = {}": ("loader.env.A", "exactly one"),
    "loader.env.A = {value = 'x', passthrough = true}": ("loader.env.A", "exactly one"),
    "loader.env.A = {passthrough = false}": ("loader.env.A", "passthrough = true"),
    "loader.env.A = {passthru = true}": ("loader.env.A.passthru", "passthrough"),
    "loader.env.A = {value = 1}": ("loader.env.A", "string"),
    "loader.env.'A=B' = 'x'": ("loader.env.A=B", "without ="),
    "loader.log_level = 'loud'": ("loader.log_level", "none or error"),
    "fs.start_dir = 'relative'": ("fs.start_dir", "absolute"),
    "fs.insecure__keys.default = 'ab'": ("fs.insecure__keys.default", "32 hex"),
    "fs.root = {type = 'encrypted', uri = 'dev:x'}": ("fs.root.uri", "file:"),
    "adyton.read_only = ['/in']": ("adyton.read_only[0]", "encrypted mount"),
    "adyton.network = 'some'": ("adyton.network", "none or host"),
    "adyton.keys.model = 'me'": ("adyton.keys.model", "adyton.owners.NAME"),
    "adyton.secrets.x = {}": ("adyton.secrets.x", "exactly one"),
    "adyton.secrets.x = {env = 'A', file = '/a'}": ("adyton.secrets.x", "exactly one"),
    "adyton.secrets.x = {file = '/../../tmp/x'}": ("adyton.secrets.x.file", "without . or .."),
    "adyton.secrets.x = {file = '/run/./x'}": ("adyton.secrets.x.file", "without . or .."),
    "adyton.secrets.x = {file = '/run/x/'}": ("adyton.secrets.x.file", "without . or .."),
    "adyton.secrets.x = {env = 'A', owner = 'me'}": ("adyton.secrets.x.owner", "adyton.owners.NAME"),
    "adyton.files = '1 2'": ("adyton.files", "0 words"),
    "adyton.files = ' '": ("adyton.files", "0 words"),
    "sgx.trusted_files = ['file:a']\nadyton.files = '01'": ("adyton.files", "1 words"),
    "sgx.trusted_files = ['file:a']\nadyton.files = '-1'": ("adyton.files", "1 words"),
    "sgx.trusted_files = ['file:a']\nadyton.files = '1x@'": ("adyton.files", "1 words"),
}

MOUNTS_REFUSED = {
    "{path = '/a'}": ("fs.mounts[0].uri", "URI"),
    "{uri = 'file:a'}": ("fs.mounts[0].path", ""),
    "{path = 'a', uri = 'file:a'}": ("fs.mounts[0].path", "absolute"),
    "{path = '/', uri = 'file:a'}": ("fs.mounts[0].path", "below /"),
    "{path = '//', uri = 'file:a'}": ("fs.mounts[0].path", "below /"),
    "{path = '/a/../b', uri = 'file:a'}": ("fs.mounts[0].path", "plain"),
    "{path = '/a', uri = 'a'}": ("fs.mounts[0].uri", "file:"),
    "{path = '/a', uri = 'file:'}": ("fs.mounts[0].uri", "file:"),
    "{path = '/a', uri = 'file:a', type = 'bind'}": ("fs.mounts[0].type", "chroot or encrypted"),
    "{path = '/a', uri = 'file:a', key_name = 'k'}": ("fs.mounts[0].key_name", "encrypted"),
    "{path = '/a', uri = 'file:a', type = 'encrypted', key_name = '../x'}": ("fs.mounts[0].key_name", "letters"),
    "{path = '/a', uri = 'file:a', type = 'encrypted', keyname = 'x'}": ("fs.mounts[0].keyname", "key_name"),
    "{path = '/a', uri = 'dev:a', type = 'encrypted'}": ("fs.mounts[0].uri", "file:"),
    "{path = '/a', uri = 'file:a', type = 'untrusted_shm'}": ("fs.mounts[0].uri", "dev:"),
    "1": ("fs.mounts[0]", "table"),
}


@pytest.mark.parametrize("text", REFUSED)
def test_manifest_with_a_wrong_key_is_refused_by_its_name(text: str) -> None:
    """Each wrong key is named, with what was expected in its place."""
    name, expected = REFUSED[text]
    with pytest.raises(MalformedManifest) as refused:
        parse_manifest(LEAST + text)
    assert refused.value.check == (f"manifest key {name}" if name else "size")
    assert expected in (refused.value.expected or "")


@pytest.mark.parametrize("text", MOUNTS_REFUSED)
def test_manifest_with_a_wrong_mount_is_refused_by_its_name(text: str) -> None:
    """Each wrong mount is named by its position."""
    name, expected = MOUNTS_REFUSED[text]
    with pytest.raises(MalformedManifest) as refused:
        parse_manifest(f'libos.entrypoint = "/app"\nfs.mounts = [{text}]')
    assert refused.value.check == f"manifest key {name}"
    assert expected in (refused.value.expected or "")


@pytest.mark.parametrize("missing", ["libos.entrypoint", "fs.mounts"])
def test_manifest_without_a_required_key_is_refused(missing: str) -> None:
    """The two keys that Gramine requires are required."""
    text = "\n".join(line for line in LEAST.splitlines() if not line.startswith(missing))
    with pytest.raises(MalformedManifest, match=f"{missing} is missing"):
        parse_manifest(text)


@pytest.mark.parametrize("name", RETIRED)
def test_manifest_with_a_retired_key_is_refused_with_what_to_write(name: str) -> None:
    """A key of an older Gramine says what replaced it."""
    with pytest.raises(MalformedManifest, match="older Gramine") as refused:
        parse_manifest(LEAST + f"{name} = 'x'")
    assert refused.value.remedy == RETIRED[name]


def test_manifest_with_several_owners_needs_each_keys_owner() -> None:
    """With two owners a key without an owner is refused before anything is asked of either."""
    text = (
        'libos.entrypoint = "/app"\nfs.mounts = [{type = "encrypted", path = "/a", uri = "file:a"}]\n'
        f'adyton.owners.a.ca = "{PEM}"\nadyton.owners.b.ca = "{PEM}"\n'
    )
    with pytest.raises(MalformedManifest, match=r"adyton\.keys\.default is missing"):
        parse_manifest(text)
    owner = parse_manifest(text + 'adyton.keys.default = "b"').owner_of("default")
    assert owner is not None
    assert owner.name == "b"


def test_manifest_facts_belong_to_the_trusted_files_in_order() -> None:
    """Size, mode and time come from the word at the same place."""
    manifest = parse_manifest(LEAST + "sgx.trusted_files = ['file:a', 'file:b']\nadyton.files = '0 12x@1700000000'")
    first, second = manifest.trusted_files
    assert (first.size_bytes, first.executable, first.mtime_s, first.fact) == (0, False, None, "0")
    assert (second.size_bytes, second.executable, second.mtime_s) == (12, True, 1_700_000_000)
    assert second.fact == "12x@1700000000"


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("4096", 4096), ("0x10", 16), ("256K", 1 << 18), ("1G", 1 << 30), ("0x10M", 1 << 24)]
)
def test_size_of_every_form_is_read(text: str, size: int) -> None:
    """Decimal and hexadecimal numbers, with and without a unit."""
    assert parse_size(text) == size
    assert parse_size(format_size(size)) == size


def test_keys_are_each_listed_once() -> None:
    """The table names no key twice, and says something about each."""
    names = [key.name for key in KEYS]
    assert len(names) == len(set(names))
    assert all(key.meaning for key in KEYS)
