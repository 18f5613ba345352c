"""The verbs over protected files, as a person calls them."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from adyton.cli.main import main
from adyton.errors import (
    IntegrityError,
    NotProtectedFile,
    StorageFailed,
    TargetExists,
    UnsupportedVersion,
    UsageError,
    WrongPath,
)
from tests.vectors.pfile import make, second

WRAP_KEY = bytes(range(16))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory with a key, a file and a tree."""
    _key(tmp_path / "key", WRAP_KEY)
    (tmp_path / "plain").write_bytes(make.pattern(500_000))
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    (tmp_path / "tree" / "a").write_bytes(b"a")
    (tmp_path / "tree" / "sub" / "b").write_bytes(b"b" * 10_000)
    return tmp_path


def _key(place: Path, raw: bytes) -> None:
    place.write_bytes(raw)
    place.chmod(0o600)


@dataclass
class Said:
    """What a call of the command line ended with."""

    returncode: int
    stdout: bytes
    stderr: bytes


def _adyton(home: Path, *args: str, stdin: bytes | None = None) -> Said:
    """Call the command line: in a process of its own where standard input matters, otherwise here, which is quicker."""
    if stdin is not None:
        code = "import sys; from adyton.cli.main import main; main(sys.argv[1:])"
        command = [sys.executable, "-c", code, *args]
        done = subprocess.run(command, cwd=home, input=stdin, capture_output=True, check=False)
        return Said(done.returncode, done.stdout, done.stderr)
    out, err = io.TextIOWrapper(io.BytesIO()), io.TextIOWrapper(io.BytesIO())
    before = Path.cwd()
    os.chdir(home)
    try:
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main(list(args))
    finally:
        os.chdir(before)
    out.flush()
    err.flush()
    assert isinstance(out.buffer, io.BytesIO)
    assert isinstance(err.buffer, io.BytesIO)
    return Said(int(ended.value.code or 0), out.buffer.getvalue(), err.buffer.getvalue())


def _well(home: Path, *args: str, stdin: bytes | None = None) -> bytes:
    done = _adyton(home, *args, stdin=stdin)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def _json(home: Path, *args: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_well(home, *args, "--json"))
    return found


def test_file_is_encrypted_under_its_target_and_decrypted(home: Path) -> None:
    """DEST as written is the embedded path."""
    said = _json(home, "encrypt", "plain", "-o", "./sealed", "--key-file", "key")
    assert said == {"encrypted": [{"source": "plain", "target": "./sealed", "size_bytes": 500_000}]}
    assert second.read(WRAP_KEY, (home / "sealed").read_bytes()) == (b"sealed", make.pattern(500_000))
    _well(home, "decrypt", "sealed", "-o", "out", "--key-file", "key", "--check-path", "sealed", "-j", "2")
    assert (home / "out").read_bytes() == make.pattern(500_000)


def test_tree_and_patterns_go_below_the_target(home: Path) -> None:
    """Directories with what lies below them; patterns that the shell left alone."""
    said = _json(home, "encrypt", "tree", "-o", "enc", "--as", "in", "--key-file", "key")
    assert said["encrypted"][0]["files"] == 2
    assert second.read(WRAP_KEY, (home / "enc/sub/b").read_bytes()) == (b"in/sub/b", b"b" * 10_000)
    _well(home, "decrypt", "enc", "-o", "dec", "--key-file", "key", "--check-path", "in")
    assert (home / "dec/sub/b").read_bytes() == b"b" * 10_000
    _well(home, "encrypt", "pl*n", "tree", "-o", "several", "--key-file", "key")
    assert second.read(WRAP_KEY, (home / "several/plain").read_bytes())[0] == b"several/plain"
    assert second.read(WRAP_KEY, (home / "several/tree/sub/b").read_bytes())[0] == b"several/tree/sub/b"
    (home / "there").mkdir()
    _well(home, "encrypt", "plain", "-o", "there", "--key-file", "key")
    assert (home / "there/plain").exists()


def test_swapped_files_are_refused_by_name(home: Path) -> None:
    """Each is whole and under the right key, and yet not what its name says; --check-path takes a renamed one."""
    for name in ("one", "two"):
        (home / f"plain-{name}").write_text(name)
        _well(home, "encrypt", f"plain-{name}", "-o", name, "--key-file", "key")
    (home / "one").rename(home / "three")
    (home / "two").rename(home / "one")
    for target in ("out", "-"):
        done = _adyton(home, "decrypt", "one", "-o", target, "--key-file", "key")
        assert done.returncode == WrongPath.exit_code
        assert b"--check-path two" in done.stderr
        assert not done.stdout
    assert not (home / "out").exists()
    assert _well(home, "decrypt", "three", "-o", "-", "--key-file", "key", "--check-path", "one") == b"one"


def test_pipes_on_both_sides(home: Path) -> None:
    """`-` reads standard input and writes standard output."""
    sealed = _well(home, "encrypt", "-", "-o", "-", "--as", "p", "--key-file", "key", stdin=make.pattern(800_000))
    assert second.read(WRAP_KEY, sealed) == (b"p", make.pattern(800_000))
    assert _well(home, "decrypt", "-", "-o", "-", "--key-file", "key", stdin=sealed) == make.pattern(800_000)
    _well(home, "decrypt", "-", "-o", "out", "--key-file", "key", stdin=sealed)
    assert (home / "out").read_bytes() == make.pattern(800_000)
    _well(home, "encrypt", "-", "-o", "sealed", "--key-file", "key", stdin=b"piped")
    assert _well(home, "decrypt", "sealed", "-o", "-", "--key-file", "key", "--check-path", "sealed") == b"piped"


def test_inspect_says_more_with_the_key_and_writes_nothing(home: Path) -> None:
    """Outside facts without the key, all with it; a wrong block only with --verify."""
    _well(home, "encrypt", "plain", "-o", "sealed", "--format", "1", "--key-file", "key")
    before = sorted((each.name, each.stat().st_mtime_ns) for each in home.iterdir())
    outside = _json(home, "inspect", "sealed")["files"][0]
    assert (outside["version"], outside["authenticated"]) == (1, False)
    assert outside["size_bytes_at_least"] <= 500_000 <= outside["size_bytes_at_most"]
    inside = _json(home, "inspect", "sealed", "--key-file", "key", "--verify")["files"][0]
    assert (inside["path"], inside["size_bytes"], inside["verified"]) == ("sealed", 500_000, True)
    assert b"sealed" in _well(home, "inspect", "sealed", "--key-file", "key")
    assert before == sorted((each.name, each.stat().st_mtime_ns) for each in home.iterdir())
    raw = bytearray((home / "sealed").read_bytes())
    raw[60 * 4096] ^= 1
    (home / "sealed").write_bytes(raw)
    _well(home, "inspect", "sealed", "--key-file", "key")
    assert _adyton(home, "inspect", "sealed", "--key-file", "key", "--verify").returncode == IntegrityError.exit_code


def test_rekey_changes_key_path_and_version(home: Path) -> None:
    """In place or elsewhere, a file or a tree."""
    _key(home / "new", bytes(16))
    _well(home, "encrypt", "plain", "-o", "sealed", "--key-file", "key")
    _well(home, "rekey", "sealed", "--key-file", "key", "--new-key-file", "new", "--as", "q", "--format", "1")
    raw = (home / "sealed").read_bytes()
    assert (second.read(bytes(16), raw)[0], raw[8]) == (b"q", 1)
    _well(home, "encrypt", "tree", "-o", "enc", "--key-file", "key")
    said = _json(home, "rekey", "enc", "--key-file", "key", "--new-key-file", "new", "-o", "enc2")
    assert said["rekeyed"][0]["files"] == 2
    assert second.read(bytes(16), (home / "enc2/a").read_bytes()) == (b"enc/a", b"a")
    assert second.read(WRAP_KEY, (home / "enc/a").read_bytes()) == (b"enc/a", b"a")


REFUSALS: list[tuple[list[str], int]] = [
    (["decrypt", "sealed", "-o", "out", "--key-file", "other"], IntegrityError.exit_code),
    (["decrypt", "sealed", "-o", "out", "--key-file", "hex"], UsageError.exit_code),
    (["decrypt", "sealed", "-o", "out", "--key-file", "nowhere"], StorageFailed.exit_code),
    (["decrypt", "sealed", "-o", "out"], UsageError.exit_code),
    (["decrypt", "sealed", "-o", "out", "--key-file", "key", "--key", "k"], UsageError.exit_code),
    (["decrypt", "sealed", "-o", "out", "--key-file", "key", "--check-path", "x"], WrongPath.exit_code),
    (["decrypt", "plain", "-o", "out", "--key-file", "key"], NotProtectedFile.exit_code),
    (["decrypt", "future", "-o", "out", "--key-file", "key"], UnsupportedVersion.exit_code),
    (["decrypt", "cut", "-o", "out", "--key-file", "key"], IntegrityError.exit_code),
    (["decrypt", "sealed", "-o", "plain", "--key-file", "key"], TargetExists.exit_code),
    (["decrypt", "nowhere", "-o", "out", "--key-file", "key"], StorageFailed.exit_code),
    (["decrypt", "sealed", "-o", "plain/below", "--key-file", "key"], StorageFailed.exit_code),
    (["decrypt", "sealed", "-o", "out", "--key-file", "open"], UsageError.exit_code),
    (["decrypt", "sealed", "-o", "-", "--json", "--key-file", "key"], UsageError.exit_code),
    (["encrypt", "plain", "-o", "sealed", "--key-file", "key"], TargetExists.exit_code),
    (["encrypt", "none*", "-o", "out", "--key-file", "key"], StorageFailed.exit_code),
    (["encrypt", "plain", "-o", "-", "--key-file", "key"], UsageError.exit_code),
    (["encrypt", "-", "-o", "tree", "--key-file", "key"], UsageError.exit_code),
    (["encrypt", "-", "plain", "-o", "out", "--key-file", "key"], UsageError.exit_code),
    (["encrypt", "plain", "./plain", "-o", "out", "--key-file", "key"], UsageError.exit_code),
    (["encrypt", "plain", "-o", "out", "--format", "3", "--key-file", "key"], 2),
    (["encrypt", "plain", "-o", "out", "--as", "x" * 772, "--key-file", "key"], UsageError.exit_code),
    (["inspect", "plain"], NotProtectedFile.exit_code),
    (["inspect", "sealed", "--verify"], UsageError.exit_code),
    (["rekey", "sealed", "--key-file", "other", "--new-key-file", "key"], IntegrityError.exit_code),
]


@pytest.mark.parametrize(
    ("args", "code"), REFUSALS, ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else ""
)
def test_bad_input_has_its_own_exit_code_and_leaves_nothing(home: Path, args: list[str], code: int) -> None:
    """What was refused is said on standard error, and no file appeared or changed."""
    sealed = second.write(
        WRAP_KEY, b"sealed", make.pattern(50_000), version=2, key=lambda: os.urandom(16), nonce=lambda: os.urandom(32)
    )
    (home / "sealed").write_bytes(sealed)
    (home / "cut").write_bytes(sealed[:-4096])
    (home / "future").write_bytes(sealed[:8] + b"\3" + sealed[9:])
    _key(home / "other", b"o" * 16)
    _key(home / "hex", b"00" * 16)
    (home / "open").write_bytes(WRAP_KEY)
    before = {str(each): each.read_bytes() for each in home.rglob("*") if each.is_file()}
    done = _adyton(home, *args)
    assert done.returncode == code, done.stderr.decode()
    assert b"Traceback" not in done.stderr
    assert done.stderr or done.stdout.startswith(b"{")
    assert {str(each): each.read_bytes() for each in home.rglob("*") if each.is_file()} == before


def test_refusal_as_json_has_check_expected_seen_and_remedy(home: Path) -> None:
    """For scripts."""
    _well(home, "encrypt", "plain", "-o", "sealed", "--key-file", "key")
    done = _adyton(home, "decrypt", "sealed", "-o", "out", "--key-file", "key", "--check-path", "x", "--json")
    assert json.loads(done.stdout).keys() >= {"error", "message", "check", "expected", "seen", "remedy"}
    assert WRAP_KEY.hex().encode() not in done.stdout + done.stderr
