"""The whole chain against bad input: a clear error with what to do, the documented exit code, and nothing left."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from adyton.errors import (
    BadSignature,
    Denied,
    FetchFailed,
    IntegrityError,
    MalformedManifest,
    ManifestError,
    MountFailed,
    NotProtectedFile,
    SandboxFailed,
    StorageFailed,
    TargetExists,
    Timeout,
    Unavailable,
    UnknownKey,
    UsageError,
)
from tests.cli.chain import KEY, NOTES, Chain, Place, adopting_orphans, nothing_left
from tests.support import machine

pytestmark = pytest.mark.mount
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="a machine that lacks something is made as root")

ORDINARY_UID = 54_321


# ---------------------------------------------------------------- the machine lacks something


@needs_root
def test_run_without_fuse_says_how_to_get_it(cloud: Place) -> None:
    """Without /dev/fuse nothing starts, and the error says which module or option brings it."""
    cloud.run("exit", "0", confined=["no-fuse"]).refused(MountFailed.exit_code, "/dev/fuse", "modprobe fuse")


@needs_root
def test_run_without_namespaces_says_which_setting(cloud: Place) -> None:
    """Where root may make no user namespace, the sandbox's own words and the setting are told."""
    ended = cloud.run("exit", "0", confined=["no-namespaces"])
    ended.refused(SandboxFailed.exit_code, "bwrap: ", "user.max_user_namespaces")


def test_run_without_bubblewrap_says_what_to_install(cloud: Place) -> None:
    """Without bubblewrap in PATH the error names the package."""
    ended = cloud.adyton(*cloud.words_to_run("exit", "0"), PATH="/nonexistent")
    ended.refused(SandboxFailed.exit_code, "bubblewrap", "apt install bubblewrap")


@pytest.fixture
def ordinary(chain: Chain) -> Iterator[Place]:
    """A fresh cloud of an ordinary user, outside of pytest's folders, which are root's alone."""
    machine.need_open_checkout()
    folder = Path(tempfile.mkdtemp(prefix="adyton-ordinary-"))
    try:
        place = chain.cloud(folder / "cloud")
        runtime = folder / "runtime"
        shutil.copytree(place.environment["PYTHONPATH"], runtime)
        place.environment["PYTHONPATH"] = str(runtime)
        for path in (folder, *folder.rglob("*")):
            os.chown(path, ORDINARY_UID, ORDINARY_UID)
        with adopting_orphans(), nothing_left(folder):
            yield place
        chain.check_secret(folder)
    finally:
        shutil.rmtree(folder)


@needs_root
def test_run_as_ordinary_user_works(ordinary: Place, chain: Chain, tmp_path: Path) -> None:
    """No root is needed: an ordinary user's run writes the encrypted result, which the owner opens."""
    ended = ordinary.run("exit", "0", confined=["user", str(ORDINARY_UID)])
    assert ended.status == 0, ended.err
    result = ordinary.folder / "encrypted/output/result.txt"
    assert result.stat().st_uid == ORDINARY_UID
    opened = chain.owner.adyton("decrypt", result, "-o", tmp_path / "result.txt", "--key", KEY)
    assert opened.status == 0, opened.err
    assert (tmp_path / "result.txt").read_text() == NOTES.upper()


@needs_root
def test_run_as_ordinary_user_with_closed_fuse_says_which_mode(ordinary: Place) -> None:
    """Where /dev/fuse is root's alone, the error says what mode it needs."""
    ended = ordinary.run("exit", "0", confined=["user", str(ORDINARY_UID), "closed-fuse"])
    ended.refused(MountFailed.exit_code, "/dev/fuse cannot be opened: Permission denied", "chmod 0666")


@needs_root
def test_run_as_ordinary_user_without_namespaces_says_which_setting(ordinary: Place) -> None:
    """Where ordinary users may make no user namespace, the settings are named."""
    ended = ordinary.run("exit", "0", confined=["user", str(ORDINARY_UID), "no-namespaces"])
    ended.refused(SandboxFailed.exit_code, "namespace", "user.max_user_namespaces")


# ---------------------------------------------------------------- what was asked for cannot be meant


@pytest.mark.parametrize(
    ("words", "seen"),
    [
        (["run", "app.manifest"], "no TEE was named"),
        (["run", "app.manifest", "--tee", "fortress"], "no TEE named 'fortress'"),
        (["run", "app.manifest", "--tee", "sim"], "no key server was named"),
        (["run", "app.manifest", "--tee", "sim", "--key-server", "nowhere"], "HOST:PORT"),
        (["run", "app.manifest", "--tee", "sim", "--key-servers", "127.0.0.1:1"], "--key-servers"),
        (["run"], "adyton run --help"),
        (["fly", "app.manifest"], "no verb 'fly'"),
        ([], "Usage: adyton VERB"),
        (["build"], "adyton build --help"),
        (["encrypt", "app.py"], "adyton encrypt --help"),
        (["encrypt", "app.py", "-o", "x"], "--key NAME or --key-file FILE"),
        (["encrypt", "app.py", "-o", "x", "--key", "a", "--key-file", "b"], "--key NAME or --key-file FILE"),
        (["serve"], "nothing to serve"),
        (["serve", "--listen", "here"], "HOST:PORT"),
        (["approve", "app.manifest", "--key", KEY, "--tee", "sim"], "root"),
    ],
)
def test_command_that_cannot_be_meant_exits_2(cloud: Place, chain: Chain, words: list[str], seen: str) -> None:
    """A wrong command line ends with 2, says what is wrong with it, and where help is."""
    ended = cloud.adyton(*words, ADYTON_HOME=chain.owner.environment["ADYTON_HOME"])
    if not words:
        assert ended.status == UsageError.exit_code
        assert seen in ended.out + ended.err
    else:
        ended.refused(UsageError.exit_code, seen)


# ---------------------------------------------------------------- key servers


def test_run_with_unreachable_server_says_where(cloud: Place) -> None:
    """A key server that is not there is *could not check*, not a denial."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    cloud.run("exit", "0", server=address).refused(FetchFailed.exit_code, address, "adyton serve")


def test_run_with_silent_server_ends_in_time(cloud: Place) -> None:
    """A key server that accepts and says nothing is given up after the time allowed (30 s; here 1 s)."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        impatient = (
            "import sys; from adyton.release import client; client.obtain_keys.__kwdefaults__['timeout_s'] = 1.0;"
            "from adyton.cli.main import main; main(sys.argv[1:])"
        )
        ended = cloud.execute([sys.executable, "-c", impatient, *cloud.words_to_run("exit", "0", server=address)])
    ended.refused(Timeout.exit_code, address)


def test_run_with_other_protocol_server_is_refused(cloud: Place) -> None:
    """Something that is no TLS server at all gets no answer out of the program."""
    import threading

    with socket.create_server(("127.0.0.1", 0)) as other:

        def answer() -> None:
            peer, _ = other.accept()
            with peer:
                peer.sendall(b"220 mail.example ESMTP\r\n")
                peer.recv(4096)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        ended = cloud.run("exit", "0", server=f"127.0.0.1:{other.getsockname()[1]}")
        thread.join(5)
    ended.refused(FetchFailed.exit_code, "127.0.0.1")


def test_run_of_changed_manifest_is_refused_before_anything(cloud: Place) -> None:
    """A manifest that was changed after it was signed does not start."""
    manifest = cloud.folder / "app.manifest"
    manifest.write_text(manifest.read_text().replace('"1G"', '"2G"'))
    ended = cloud.run("exit", "0")
    ended.refused(BadSignature.exit_code, "another manifest")
    assert not cloud.files("encrypted/output")


def test_run_of_denied_program_says_the_servers_reason(cloud: Place, chain: Chain) -> None:
    """Another platform than the approved one: the server's refusal arrives with its reason and remedy."""
    made = cloud.adyton("platform", "new", "other")
    assert made.status == 0, made.err
    ended = cloud.adyton(*cloud.words_to_run("exit", "0"), ADYTON_SIM_PLATFORM="other")
    ended.refused(Denied.exit_code, "root")
    assert not cloud.files("encrypted/output")


def test_server_on_taken_port_says_which(chain: Chain, owner: Place) -> None:
    """A port that is taken is named, with what to do."""
    ended = owner.adyton("serve", "--listen", chain.address)
    ended.refused(Unavailable.exit_code, chain.address, "Address already in use")


# ---------------------------------------------------------------- the program


def test_program_exit_code_passes_and_names_the_log(cloud: Place, chain: Chain, tmp_path: Path) -> None:
    """The program's own code is the run's; what it printed is encrypted, and the message says how to read it."""
    ended = cloud.run("raise")
    ended.refused(1, "the program ended with exit code 1", f"adyton decrypt app.log -o - --key {KEY}")
    opened = chain.owner.adyton("decrypt", cloud.folder / "app.log", "-o", "-", "--key", KEY)
    assert opened.status == 0, opened.err
    assert "ValueError: patient 0:" in opened.out
    cloud.run("exit", "7").refused(7, "exit code 7")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_program_killed_by_signal_exits_128_and_n(cloud: Place, number: signal.Signals) -> None:
    """A program that a signal ends is reported as shells do."""
    cloud.run("kill", str(int(number))).refused(128 + number, f"signal {int(number)}")
    assert set(cloud.files("encrypted/output")) == {"result.txt"}


@needs_root
def test_program_that_fills_the_disk_keeps_what_is_whole(cloud: Place, chain: Chain, tmp_path: Path) -> None:
    """The disk being full reaches the program as its errno; what was written before opens; it is said once."""
    run = cloud.command(*cloud.words_to_run("fill"))
    keep = 'code=0; "$@" || code=$?; cp -r encrypted/output kept; exit $code'
    confine = cloud.command(confined=["small", cloud.folder / "encrypted" / "output"])[:-3]
    ended = cloud.execute([*confine, "sh", "-c", keep, "sh", *run])
    ended.refused(1, "exit code 1", "No space left on device")
    assert ended.err.count("No space left on device") <= 3
    opened = chain.owner.adyton("decrypt", cloud.folder / "app.log", "-o", "-", "--key", KEY)
    assert "OSError: [Errno 28] No space left on device" in opened.out
    kept = cloud.folder / "kept"
    result = chain.owner.adyton("decrypt", kept / "result.txt", "-o", "-", "--key", KEY)
    assert result.out == NOTES.upper()
    more = chain.owner.adyton("decrypt", kept / "more.txt", "-o", "-", "--key", KEY)
    assert more.status in (0, IntegrityError.exit_code)
    assert (NOTES * (1 + len(more.out) // len(NOTES))).startswith(more.out)


def test_run_without_output_folder_says_mkdir(cloud: Place) -> None:
    """A folder that the manifest mounts and that is not there is named, with the command that makes it."""
    (cloud.folder / "encrypted" / "output").rmdir()
    cloud.run("exit", "0").refused(MountFailed.exit_code, "encrypted/output", "mkdir -p encrypted/output")


def test_run_on_input_under_another_key_names_the_file(cloud: Place, chain: Chain, tmp_path: Path) -> None:
    """An input that was sealed with another key is refused with its name, and the program does not start."""
    key = _key_file(tmp_path / "other.key")
    (tmp_path / "notes.txt").write_text("somebody else's")
    path = "encrypted/input/notes.txt"
    sealed = cloud.adyton("encrypt", tmp_path / "notes.txt", "-o", path, "--key-file", key, "--force")
    assert sealed.status == 0, sealed.err
    cloud.run("exit", "0").refused(IntegrityError.exit_code, path)
    assert not cloud.files("encrypted/output")


@pytest.mark.parametrize("change", ["cut", "flipped", "empty"])
def test_run_on_damaged_input_names_the_file(cloud: Place, change: str) -> None:
    """An input that was cut or altered is refused with its name, and the program does not start."""
    path = cloud.folder / "encrypted" / "input" / "notes.txt"
    raw = bytearray(path.read_bytes())
    raw[1000] ^= 1
    path.write_bytes({"cut": bytes(raw[:3000]), "flipped": bytes(raw), "empty": b""}[change])
    code = IntegrityError.exit_code if change == "flipped" else NotProtectedFile.exit_code
    cloud.run("exit", "0").refused(code, "encrypted/input/notes.txt")
    assert not cloud.files("encrypted/output")


# ---------------------------------------------------------------- keys


def _key_file(path: Path, raw: bytes = bytes(range(16)), mode: int = 0o600) -> Path:
    path.write_bytes(raw)
    path.chmod(mode)
    return path


def test_missing_key_lists_those_that_exist(chain: Chain) -> None:
    """A key that the store does not have is refused with the names that it has."""
    owner = chain.owner
    owner.adyton("encrypt", "input", "-o", "no", "--key", "nope").refused(UnknownKey.exit_code, "'nope'", KEY)
    tee = owner.adyton("platform", "name", chain.world.platform).out.strip()
    owner.adyton("approve", "app.manifest", "--key", "nope", "--tee", tee, "--allow", "arguments-from-host").refused(
        UnknownKey.exit_code, "'nope'"
    )
    assert not (owner.folder / "no").exists()


def test_missing_home_says_how_to_make_one(owner: Place) -> None:
    """Without an owner's home the error says `adyton init`."""
    (owner.folder / "plain").write_text("x")
    ended = owner.adyton("encrypt", "plain", "-o", "sealed", "--key", KEY, "--home", "nowhere")
    ended.refused(StorageFailed.exit_code, "nowhere", "adyton init")
    assert set(owner.files()) == {"plain"}


def test_wrong_key_decrypts_nothing(owner: Place, chain: Chain) -> None:
    """Under another key no byte is written, and the file is named."""
    key = _key_file(owner.folder / "other.key")
    sealed = chain.world.storage / "input"
    ended = owner.adyton("decrypt", sealed / "notes.txt", "-o", "opened", "--key-file", key)
    ended.refused(IntegrityError.exit_code, "notes.txt", "the key is wrong")
    owner.adyton("decrypt", sealed, "-o", "folder", "--key-file", key).refused(IntegrityError.exit_code, "notes.txt")
    assert set(owner.files()) == {"other.key"}


@pytest.mark.parametrize(
    ("raw", "mode", "seen"),
    [
        (b"", 0o600, "got 0"),
        (bytes(15), 0o600, "got 15"),
        (bytes(range(16)).hex().encode() + b"\n", 0o600, "not hex"),
        (bytes(range(16)), 0o644, "chmod 600"),
        (bytes(range(16)), 0o620, "chmod 600"),
    ],
)
def test_bad_key_file_is_refused(owner: Place, raw: bytes, mode: int, seen: str) -> None:
    """A key file of another length or open to others encrypts nothing, and its bytes are not shown."""
    key = _key_file(owner.folder / "my.key", raw, mode)
    (owner.folder / "plain").write_text("x")
    ended = owner.adyton("encrypt", "plain", "-o", "sealed", "--key-file", key)
    ended.refused(UsageError.exit_code, seen)
    assert not raw or raw.decode(errors="replace").strip() not in ended.err
    assert set(owner.files()) == {"plain", "my.key"}


def test_missing_key_file_is_named(owner: Place) -> None:
    """A key file that is not there is named."""
    (owner.folder / "plain").write_text("x")
    ended = owner.adyton("encrypt", "plain", "-o", "sealed", "--key-file", "my.key")
    ended.refused(StorageFailed.exit_code, "my.key")


def test_target_that_exists_is_left_as_it_is(owner: Place) -> None:
    """Neither encrypting nor decrypting replaces a file that is there."""
    key = _key_file(owner.folder / "my.key")
    (owner.folder / "plain").write_text("x")
    assert owner.adyton("encrypt", "plain", "-o", "sealed", "--key-file", key).status == 0
    before = owner.files()
    owner.adyton("encrypt", "plain", "-o", "sealed", "--key-file", key).refused(TargetExists.exit_code, "--force")
    owner.adyton("decrypt", "sealed", "-o", "plain", "--key-file", key).refused(TargetExists.exit_code, "--force")
    assert owner.files() == before


@needs_root
@pytest.mark.parametrize("verb", ["encrypt", "decrypt"])
def test_full_disk_leaves_no_target(owner: Place, verb: str) -> None:
    """Where the target does not fit, there is none, not even a part."""
    key = _key_file(owner.folder / "my.key")
    (owner.folder / "plain").write_bytes(os.urandom(3 << 20))
    assert owner.adyton("encrypt", "plain", "-o", "sealed", "--key-file", key).status == 0
    small = owner.folder / "small"
    small.mkdir()
    source = "plain" if verb == "encrypt" else "sealed"
    command = owner.command(verb, source, "-o", "small/target", "--key-file", key)
    confine = owner.command(confined=["small", small])[:-3]
    ended = owner.execute([*confine, "sh", "-c", 'code=0; "$@" || code=$?; ls -A small; exit $code', "sh", *command])
    ended.refused(StorageFailed.exit_code, "small/target", "No space left on device")
    assert ended.out == ""


# ---------------------------------------------------------------- templates


@pytest.mark.parametrize(
    ("old", "new", "code", "seen"),
    [
        ("[sgx]\n", "{{ nothing }}\n[sgx]\n", MalformedManifest, "nothing"),
        ("[sgx]\n", "{% if %}\n[sgx]\n", MalformedManifest, "line"),
        ("[sgx]\n", "[sgx\n", MalformedManifest, "line"),
        ("[sgx]\n", "[sgx]\nenclave_sice = 1\n", MalformedManifest, "sgx.enclave_sice"),
        ("max_threads = ", "max_threads = 'many' # ", MalformedManifest, "sgx.max_threads"),
        ('/input", uri', '/../input", uri', ManifestError, "holds . or .."),
        ('trusted_from = ["file:app.trusted"]', 'trusted_from = ["file:no.trusted"]', ManifestError, "no.trusted"),
        ('network = "none"', 'network = "some"', MalformedManifest, "network"),
        ('key_name = "data"', 'key_name = ""', ManifestError, "key_name"),
    ],
    ids=["variable", "jinja", "toml", "unknown key", "type", "path", "list", "network", "key name"],
)
def test_bad_template_builds_nothing(
    owner: Place, chain: Chain, old: str, new: str, code: type[ManifestError], seen: str
) -> None:
    """A mistake in the template is named with its place; neither manifest nor signature is written."""
    text = (chain.owner.folder / "app.manifest.template").read_text()
    for name in ("app.py", "app.trusted"):
        shutil.copy(chain.owner.folder / name, owner.folder)
    (owner.folder / "app.manifest.template").write_text(text)
    assert old in text
    (owner.folder / "app.manifest.template").write_text(text.replace(old, new))
    before = set(owner.files())
    ended = owner.adyton("build", "app.manifest.template")
    assert ended.status in {leaf.exit_code for leaf in (code, *code.__subclasses__())}, ended.err
    ended.refused(ended.status, seen)
    assert set(owner.files()) == before


def test_missing_template_and_manifest_are_named(owner: Place) -> None:
    """A template or manifest that is not there is named, and the error says what makes one."""
    owner.adyton("build", "no.manifest.template").refused(ManifestError.exit_code, "no.manifest.template")
    ended = owner.adyton("run", "no.manifest", "--tee", "sim", "--key-server", "127.0.0.1:1")
    ended.refused(ManifestError.exit_code, "no.manifest", "adyton build")


def test_missing_script_is_named(owner: Place) -> None:
    """`adyton new` of a script that is not there, or that fails natively, writes no template."""
    owner.adyton("new", "no.py").refused(UsageError.exit_code, "no.py")
    (owner.folder / "bad.py").write_text("raise SystemExit(9)\n")
    ended = owner.adyton("new", "bad.py")
    assert ended.status == 9
    assert "natively" in ended.err
    assert set(owner.files()) == {"bad.py"}
