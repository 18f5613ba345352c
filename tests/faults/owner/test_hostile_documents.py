"""Documents that an owner reads and somebody else wrote: exports, checkpoints, configuration, policies, backups."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from adyton.errors import AuditError, Error, StoreError, UsageError
from adyton.keyserver.difference_lines import owner_line, read_manifest
from adyton.keystore.audit import Entry, Head, canonical, entry_hash, sign_checkpoint, start_hash, verify_chain
from adyton.keystore.audit_export import checkpoints_of, read_export
from adyton.keystore.backup.header import parse_header
from adyton.keystore.config import Config
from adyton.manifest.difference import compare
from tests.unit.test_untrusted import LONG

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
STORE = bytes(range(16))


def _entries(count: int) -> list[Entry]:
    found: list[Entry] = []
    previous = start_hash(STORE)
    for seq in range(1, count + 1):
        body = canonical({"number": seq})
        previous = entry_hash(previous, seq, seq, "server", body)
        found.append(Entry(seq, seq, "server", body, previous))
    return found


def _export(entries: Sequence[Entry], covered: int, *more: str) -> bytes:
    head = Head(covered, entries[covered - 1].hash if covered else start_hash(STORE))
    lines: list[Any] = [{"adyton_audit": 1, "store_id": STORE.hex()}]
    lines += [
        {"seq": item.seq, "at_ms": item.at_ms, "kind": item.kind, "body": item.body, "hash": item.hash.hex()}
        for item in entries
    ]
    lines.append({"checkpoint": sign_checkpoint(KEY, STORE, head, 9).to_dict()})
    return "\n".join([*map(json.dumps, lines), *more, ""]).encode()


def test_export_is_read_back_as_it_was_written() -> None:
    """And its chain verifies."""
    entries = _entries(3)
    found = read_export(io.BytesIO(_export(entries, 3)))
    assert list(found.entries) == entries
    assert verify_chain(found.store_id, found.entries, [found.checkpoint]).seq == 3
    assert read_export(io.BytesIO(_export([], 0))).entries == ()


def test_entries_that_somebody_put_behind_the_record_are_refused() -> None:
    """Hashes need no key: whoever hands an export over could lengthen it, and `audit verify` said it was whole."""
    entries = _entries(4)
    assert verify_chain(STORE, entries).seq == 4
    for covered in (0, 3):
        with pytest.raises(AuditError, match="one length"):
            read_export(io.BytesIO(_export(entries, covered)))
    with pytest.raises(AuditError, match="after its checkpoint"):
        read_export(io.BytesIO(_export(entries, 4, "{}")))


GOOD_LINE = '{"seq": 1, "at_ms": 1, "kind": "a", "body": "{}", "hash": "' + "0" * 64 + '"}'
HEAD_LINE = '{"adyton_audit": 1, "store_id": "' + STORE.hex() + '"}'
BAD_LINES = [
    "",
    "[]",
    "[" * LONG,
    '{"a":' * (LONG // 5),
    "1" * 5000,
    GOOD_LINE.replace("1, ", "1.5, ", 1),
    GOOD_LINE.replace(": 1,", ": 1e5,", 1),
    GOOD_LINE.replace(": 1,", ": true,", 1),
    GOOD_LINE.replace(": 1,", ": -1,", 1),
    GOOD_LINE.replace(": 1,", ": 99999999999999999999,", 1),
    GOOD_LINE.replace(": 1,", f": {'9' * 5000},", 1),
    GOOD_LINE.replace('"a"', "null"),
    GOOD_LINE.replace('"a"', '"\\ud800"'),
    GOOD_LINE.replace('"{}"', "{}"),
    GOOD_LINE.replace('"{}"', '"' + "x" * (300 << 10) + '"'),
    GOOD_LINE.replace("0" * 64, "0" * 62),
    GOOD_LINE.replace("0" * 64, "0" * 62 + " 0"),
    GOOD_LINE.replace('"hash"', '"hush"'),
    GOOD_LINE.replace("}", ', "seq": 1}'),
    '{"checkpoint": null}',
    '{"checkpoint": []}',
    '{"checkpoint": {"seq": 1}}',
    '{"checkpoint": {"seq": "1", "store_id": 1, "hash": null, "at_ms": [], "signature": {}}}',
    "\ud800",
    "x" * (3 << 20),
]


@pytest.mark.parametrize("line", BAD_LINES, ids=range(len(BAD_LINES)))
def test_export_of_a_stranger_is_refused_and_no_more(line: str) -> None:
    """Any type at any place, numbers and depth without end: AuditError, within seconds."""
    before = time.thread_time()
    for text in (f"{HEAD_LINE}\n{line}\n", f"{line}\n", f"{HEAD_LINE}\n{GOOD_LINE}\n{line}\n{GOOD_LINE}"):
        with pytest.raises(AuditError):
            read_export(io.BytesIO(text.encode("utf-8", "surrogatepass")))
    assert time.thread_time() - before < 10


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "1",
        "[" * LONG,
        '{"grants": 1}',
        '{"grants": [1]}',
        '{"grants": [{"checkpoint": 5}]}',
        '{"grants": [{"checkpoint": {}}]}',
        '{"seq": ' + "9" * 5000 + "}",
        '{"store_id": "é", "seq": 1, "hash": "", "at_ms": 1, "signature": ""}',
        '{"a": 1, "a": 2}',
        '{"\\ud800": 1}',
    ],
)
def test_checkpoint_of_a_stranger_is_refused_and_no_more(text: str) -> None:
    """AuditError, whatever stands there."""
    with pytest.raises(AuditError):
        checkpoints_of(text.encode(), "checkpoint")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a." * (LONG // 2) + "a = 1",
        "a = " + "[" * LONG,
        "a = " + "1" * 5000,
        "limits = 1",
        "[limits]\nmax_runs = 99999999999999999999",
        "[owner]\nname = 1",
        "[master]\nkind = 'file'\ncommand = [1]",
        "[master]\nkind = 'passphrase'\nsalt = 'x'",
        "[server]\nnames = [[['a']]]",
        "[store]\nurl = '\\ud800'",
        "\0",
    ],
)
def test_configuration_of_a_stranger_is_refused_and_no_more(text: str) -> None:
    """config.toml comes back out of a backup, which somebody may have made."""
    with pytest.raises(UsageError):
        Config.parse(text)


def _tar(name: bytes, size: bytes, body: bytes, kind: bytes = b"0") -> bytes:
    block = bytearray(512)
    block[: len(name)] = name
    block[124 : 124 + len(size)] = size
    block[156:157] = kind
    return bytes(block) + body


HEADER = {"adyton_backup": 1, "id": "0" * 12, "store": "0" * 32, "at_ms": 1, "salt": "0" * 32}


@pytest.mark.parametrize(
    "changed",
    [
        {"salt": "zz"},
        {"salt": 5},
        {"salt": "0" * 30 + " 0"},
        {"id": None},
        {"store": ["0"]},
        {"at_ms": "1"},
        {"at_ms": True},
        {"adyton_backup": 2},
        {"adyton_backup": "1"},
        {"shares": {"needed": 2, "total": 3}},
        {"more": 1},
    ],
)
def test_header_of_a_backup_has_its_one_form(changed: dict[str, Any]) -> None:
    """A salt that is no salt was a ValueError."""
    good = json.dumps(HEADER).encode()
    assert parse_header(_tar(b"header.json", b"%011o\0" % len(good), good)) == HEADER
    bad = json.dumps({**HEADER, **changed}).encode()
    assert parse_header(_tar(b"header.json", b"%011o\0" % len(bad), bad)) is None


def test_tar_that_is_no_backup_has_no_header() -> None:
    """Sizes that are negative, too large, or not there; links; long names; headers without end."""
    good = json.dumps(HEADER).encode()
    size = b"%011o\0" % len(good)
    for raw in (
        b"",
        bytes(512),
        good,
        _tar(b"header.json", b"\xff" * 12, good),
        _tar(b"header.json", b"\x80" + bytes(10) + b"\x05", good),
        _tar(b"header.json", b"77777777777\0", good),
        _tar(b"header.json", b"-0000000001\0", good),
        _tar(b"header.json", size, good, b"2"),
        _tar(b"header.json", size, good, b"S"),
        _tar(b"header.json", size, good, b"L"),
        _tar(b"header.json", size, good[:20]),
        _tar(b"../header.json", size, good),
        _tar(b"header.json", b"%011o\0" % 60_000, b"[" * 60_000),
        _tar(b"header.json", b"%011o\0" % 2, b"[]"),
    ):
        assert parse_header(raw) is None


VERBS: dict[str, Callable[[Path], list[str]]] = {
    "manifest": lambda path: ["explain-measurement", str(path)],
    "diff": lambda path: ["diff", str(path), str(path.with_name("empty"))],
    "policy": lambda path: ["verify", str(path.with_name("empty")), "--policy", str(path)],
    "collateral": lambda path: ["collateral", "import", str(path)],
    "export": lambda path: ["audit", "verify", "--export", str(path)],
    "checkpoint": lambda path: ["audit", "verify", "--checkpoint", str(path)],
    "backup": lambda path: ["restore", str(path)],
}
TEXTS = {
    "deep dotted TOML": "a." * (LONG // 2) + "a = 1\n",
    "deep JSON": '{"a":' * (LONG // 5),
    "a long name": '["' + "a" * (LONG // 2) + '"]\n' + "".join(f"b{n} = 1\n" for n in range(LONG // 20)),
    "a long number": "a = " + "1" * LONG,
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An owner's home, so that a verb comes as far as the stranger's document."""
    found = tmp_path_factory.mktemp("owner") / "home"
    verb = [sys.executable, "-m", "adyton", "init", "--home", str(found)]
    subprocess.run(verb, check=True, capture_output=True, timeout=100)
    return found


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_every_verb_refuses_400_kb_of_a_stranger_in_seconds(text: str, tmp_path: Path, home: Path) -> None:
    """`diff` and `explain-measurement` hung for hours over 400 KB; no verb may, nor end in a traceback."""
    (tmp_path / "text").write_text(text)
    (tmp_path / "empty").write_text("")
    environment = {**os.environ, "ADYTON_HOME": str(home)}
    for name, verb in VERBS.items():
        done = subprocess.run(
            [sys.executable, "-m", "adyton", *verb(tmp_path / "text")],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
        assert "Traceback" not in done.stderr, (name, done.stderr[-400:])
        assert done.returncode not in (0, 1), (name, done.stdout[:200])
        assert len(done.stderr) < 4000, (name, len(done.stderr))


def test_names_in_a_comparison_do_not_multiply() -> None:
    """A list is one value: with 200 KB of name before each of its 10,000 values it was 2 GB of text."""
    text = 'a = [{ uri = "' + "u" * (LONG // 2) + '", ' + ", ".join(f"b{n} = 1" for n in range(10_000)) + " }]"
    found = compare(read_manifest(b""), read_manifest(text.encode()))
    assert [item.what for item in found] == ["a"]
    assert len(str(found[0])) < 2 * len(text)
    assert len(owner_line(found[0])) < 600


def test_checkpoint_of_the_home_is_refused_and_no_more(tmp_path: Path) -> None:
    """checkpoint.json lies beside the store, and in a backup."""
    from adyton.keystore.home import Home

    home = Home(tmp_path, Config("owner", ("localhost",)))
    place = tmp_path / "checkpoint.json"
    for text in ("[" * 50_000, "5", "null", "[]", "9" * 5000, '{"seq": 1e999}'):
        place.write_text(text)
        place.chmod(0o600)
        with pytest.raises(StoreError):
            home.kept_checkpoint()
    place.write_text("{}")
    with pytest.raises(Error):
        home.kept_checkpoint()
