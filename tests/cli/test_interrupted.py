"""Verbs that are interrupted at many moments: no mount, no process, no half-written target, no plaintext, no key left.

SIGINT goes to the whole process group, as a terminal's Ctrl-C does; SIGTERM and SIGKILL to the one process that was
started. The moments are fractions of what the same command takes undisturbed, here and now.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

import adyton
from adyton.cli import interrupted
from adyton.cli.main import VERBS
from adyton.manifest.sigstruct import parse_sigstruct
from adyton.pfile.backing import RECOVERY_SUFFIX
from tests.cli.chain import KEY, NOTES, Chain, Ended, Place, send, until, wait_for

pytestmark = pytest.mark.mount

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
MOMENTS = [
    0.5,
    0.85,
    *(pytest.param(moment, marks=pytest.mark.slow) for moment in (0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.75, 0.8, 0.9, 1.0)),
]
PROMPTLY_S = 10
JOURNAL = {".adyton-journal", ".adyton-journal" + RECOVERY_SUFFIX}  # the second while the first is written


def _ended_by(ended: Ended, number: int) -> None:
    """The command ended by the signal, in order or by force, or it had ended before; its words are no traceback."""
    if "adyton: the program ended with exit code" in ended.err:  # its own, if it met the signal while it started
        return
    assert ended.status in (0, 128 + number, -number), f"{ended.status}: {ended.err}"
    if "Exception ignored in" in ended.err:  # it met a destructor, where Python can raise nothing: the command goes on
        assert "SystemExit" in ended.err or "KeyboardInterrupt" in ended.err, ended.err
    elif "KeyboardInterrupt" in ended.err:  # it met the interpreter's own start, before any line of Adyton ran
        assert "adyton/cli/" not in ended.err.replace("adyton/cli/main.py", "", 1), ended.err
    else:
        assert "Traceback" not in ended.err, ended.err


def _interrupt(place: Place, words: list[str | Path], number: int, after_s: float) -> Ended:
    process = place.start(*words)
    time.sleep(after_s)
    sent = time.monotonic()
    send(process, number)
    ended = wait_for(process)
    assert time.monotonic() - sent < PROMPTLY_S
    _ended_by(ended, number)
    return ended


# ---------------------------------------------------------------- run


@pytest.fixture(scope="module")
def run_s(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> float:
    """How long an undisturbed run takes here."""
    place = chain.cloud(tmp_path_factory.mktemp("undisturbed") / "cloud")
    began = time.monotonic()
    ended = place.run("exit", "0")
    assert ended.status == 0, ended.err
    return time.monotonic() - began


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("moment", MOMENTS)
def test_run_interrupted_at_any_moment_leaves_nothing(
    cloud: Place, chain: Chain, run_s: float, moment: float, number: signal.Signals
) -> None:
    """Whatever a run was doing: no process, mount, plaintext or key (the fixture looks), and every output is sealed."""
    _interrupt(cloud, list(cloud.words_to_run("exit", "0")), number, moment * run_s)
    assert {path for path in cloud.files("encrypted/output") if not path.endswith(".recovery")} <= {"result.txt"}
    if number == signal.SIGKILL:
        ended = cloud.run("exit", "0")
        assert ended.status == 0, f"the next run fails: {ended.err}"
        assert _opened(chain, cloud) == NOTES.upper()


def _opened(chain: Chain, cloud: Place) -> str:
    path = cloud.folder / "encrypted/output/result.txt"
    ended = chain.owner.adyton("decrypt", path, "-o", "-", "--key", KEY)
    assert ended.status == 0, ended.err
    return ended.out


@pytest.mark.parametrize("number", SIGNALS)
def test_running_program_interrupted_leaves_nothing(cloud: Place, chain: Chain, number: signal.Signals) -> None:
    """In the midst of the program's work too; what it had closed before opens."""
    process = cloud.start(*cloud.words_to_run("wait"))
    until(lambda: (cloud.folder / "encrypted/output/waiting.txt").exists() or process.poll() is not None)
    time.sleep(0.2)
    send(process, number)
    ended = wait_for(process)
    assert ended.status in (128 + number, -number), ended.err
    assert _opened(chain, cloud) == NOTES.upper()


@pytest.mark.parametrize("number", SIGNALS)
def test_run_waiting_for_silent_server_ends_at_once(cloud: Place, number: signal.Signals) -> None:
    """Who waits for a key server can be interrupted; there is no key yet, and nothing is staged for long."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        process = cloud.start(*cloud.words_to_run("exit", "0", server=f"127.0.0.1:{silent.getsockname()[1]}"))
        peer, _ = silent.accept()
        with peer:
            assert peer.recv(1), "it ended before it spoke"
            sent = time.monotonic()
            send(process, number)
            ended = wait_for(process)
            assert time.monotonic() - sent < 5
    assert ended.status in (128 + number, -number), ended.err
    assert "Traceback" not in ended.err, ended.err
    if number != signal.SIGKILL:
        assert "before the program started" in ended.err


# ---------------------------------------------------------------- encrypt, decrypt


@dataclass(frozen=True)
class Desk:
    """An owner's desk with a plain tree, the same sealed, and how long both ways take."""

    plain: Path
    sealed: Path
    key: Path
    encrypt_s: float
    decrypt_s: float


@pytest.fixture(scope="module")
def desk(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """A tree with one larger file (real work for several segments) and many small ones."""
    folder = tmp_path_factory.mktemp("desk")
    plain = folder / "plain"
    (plain / "small").mkdir(parents=True)
    (plain / "large.txt").write_text(NOTES * 2000)
    for number in range(40):
        (plain / "small" / f"{number}.txt").write_text(NOTES)
    key = folder / "wrap.key"
    key.write_bytes(chain.key)
    key.chmod(0o600)
    place = Place(folder, chain.owner.environment)
    took = []
    for words in (("encrypt", "plain", "-o", "sealed"), ("decrypt", "sealed", "-o", "opened")):
        began = time.monotonic()
        ended = place.adyton(*words, "--key-file", key)
        assert ended.status == 0, ended.err
        took.append(time.monotonic() - began)
    return Desk(plain, folder / "sealed", key, *took)


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("moment", MOMENTS)
def test_encrypt_interrupted_leaves_whole_files_only(
    owner: Place, chain: Chain, desk: Desk, moment: float, number: signal.Signals
) -> None:
    """What stands in the target opens; nothing there is plain; the same words again finish it."""
    words: list[str | Path] = ["encrypt", desk.plain, "-o", "sealed", "--key-file", desk.key]
    _interrupt(owner, words, number, moment * desk.encrypt_s)
    chain.check_secret(owner.folder)
    there = set(owner.files("sealed")) - JOURNAL
    assert there <= set(_content(desk.plain))
    ended = owner.adyton(*words) if there != set(_content(desk.plain)) else Ended(0, "", "")
    assert ended.status == 0, ended.err
    assert owner.adyton("decrypt", "sealed", "-o", "opened", "--key-file", desk.key).status == 0
    assert owner.files("opened") == _content(desk.plain)
    assert not JOURNAL & set(owner.files("sealed")) or there == set(_content(desk.plain))


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("moment", MOMENTS)
def test_decrypt_interrupted_leaves_whole_files_only(
    owner: Place, desk: Desk, moment: float, number: signal.Signals
) -> None:
    """Every file in the target is whole; no part of one stands anywhere, under any name."""
    words: list[str | Path] = ["decrypt", desk.sealed, "-o", "opened", "--key-file", desk.key]
    _interrupt(owner, words, number, moment * desk.decrypt_s)
    plain = _content(desk.plain)
    for path, content in owner.files().items():
        name = path.removeprefix("opened/")
        if name not in JOURNAL:
            assert content == plain[name]


# ---------------------------------------------------------------- build


@pytest.mark.parametrize("number", SIGNALS)
def test_build_interrupted_leaves_whole_files_only(chain: Chain, owner: Place, number: signal.Signals) -> None:
    """A manifest and a signature are whole or absent."""
    for name in ("app.py", "app.trusted", "app.manifest.template"):
        os.link(chain.owner.folder / name, owner.folder / name)
    began = time.monotonic()
    assert owner.adyton("build", "app.manifest.template", "-o", "undisturbed").status == 0
    build_s = time.monotonic() - began
    before = set(owner.files())
    for moment in (0.6, 0.8, 0.9):
        _interrupt(owner, ["build", "app.manifest.template"], number, moment * build_s)
        made = set(owner.files()) - before
        assert made <= {"app.manifest", "app.sig"}
        if "app.manifest" in made:
            tomllib.loads((owner.folder / "app.manifest").read_text())
        if "app.sig" in made:
            parse_sigstruct((owner.folder / "app.sig").read_bytes())
        for name in made:
            (owner.folder / name).unlink()


# ---------------------------------------------------------------- serve


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_server_stops_in_order(owner: Place, number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM end a key server gracefully, with its ready file taken away."""
    home = owner.folder / "home"
    assert owner.adyton("init", "--home", home).status == 0
    process = owner.start("serve", "--listen", "127.0.0.1:0", "--ready-file", "ready.json", "--home", home)
    until(lambda: (owner.folder / "ready.json").exists() or process.poll() is not None)
    send(process, number)
    ended = wait_for(process)
    assert ended.status == 0, ended.err
    assert "Traceback" not in ended.err
    assert not (owner.folder / "ready.json").exists()


def test_new_interrupted_ends_the_program_that_it_watches(owner: Place) -> None:
    """Ctrl-C during `adyton new` reaches the program, and no template is written."""
    (owner.folder / "slow.py").write_text("open('started', 'w').close()\nimport time\ntime.sleep(60)\n")
    for number in (signal.SIGINT, signal.SIGTERM):
        process: subprocess.Popen[str] = owner.start("new", "slow.py")
        until(lambda: (owner.folder / "started").exists())
        send(process, number)
        ended = wait_for(process)
        assert ended.status == 128 + number, ended.err
        if number == signal.SIGINT:
            assert "adyton: interrupted\n  left     what the program itself wrote stays" in ended.err
            assert "\n  remedy   say the same again\n" in ended.err
        (owner.folder / "started").unlink()
        assert set(owner.files()) == {"slow.py"}


def test_server_says_where_it_listens_as_json(owner: Place) -> None:
    """One line on standard output, with the addresses of the ready file."""
    home = owner.folder / "home"
    assert owner.adyton("init", "--home", home).status == 0
    words = ("--listen", "127.0.0.1:0", "--ready-file", "ready.json", "--home", home, "--json")
    process: subprocess.Popen[str] = owner.start("serve", *words)
    until(lambda: (owner.folder / "ready.json").exists() or process.poll() is not None)
    ready = json.loads((owner.folder / "ready.json").read_text())
    send(process, signal.SIGTERM)
    ended = wait_for(process)
    assert ended.status == 0, ended.err
    (line,) = ended.out.splitlines()
    assert json.loads(line) == {name: address for name, address in ready.items() if name != "pid"}


def test_verbs_with_words_for_an_interruption_exist() -> None:
    """And each has both: what is left, and how to go on."""
    assert set(interrupted.LEFT) < set(VERBS)
    assert interrupted.words("umount") == "adyton: interrupted"


# ---------------------------------------------------------------- imports


@pytest.mark.parametrize(("raised", "status"), [("KeyboardInterrupt", 130), ("SystemExit(143)", 143)])
def test_signal_that_meets_a_class_being_made_is_an_interruption(tmp_path: Path, raised: str, status: int) -> None:
    """CPython 3.11 turns what is raised there into a RuntimeError; any import can be the one that the signal meets."""
    (tmp_path / "typer.py").write_text(
        f"class D:\n    def __set_name__(self, owner, name):\n        raise {raised}\nclass C:\n    d = D()\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(adyton.__file__).parent.parent}"}
    command = [sys.executable, "-m", "adyton", "inspect", "nothing"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (status, False), done.stderr
