"""Files made by others: Gramine's own tools and mounts, and the second implementation beside the tests."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from adyton.errors import FileFormatError, IntegrityError, NotProtectedFile, UnsupportedVersion, WrongPath
from adyton.pfile.backing import Memory, OSFile
from adyton.pfile.file import ProtectedFile
from adyton.values import Key128
from tests.vectors.pfile import make, second

OWN = Path(make.__file__).parent


def _own_files() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((OWN / "index.json").read_text())["files"]
    return found


@pytest.mark.parametrize("facts", _own_files(), ids=lambda facts: str(facts["name"]))
def test_own_vector_opens_as_its_index_says(facts: dict[str, Any]) -> None:
    """Path, version, size and every byte are as the second implementation sealed them."""
    key = Key128(bytes.fromhex(facts["wrap_key_hex"]))
    with ProtectedFile.open(OSFile(OWN / facts["name"]), key, path=facts["path"]) as file:
        assert (file.size, file.version, file.path) == (facts["size"], facts["version"], facts["path"])
        assert file.read_at(0, file.size + 10) == make.pattern(facts["size"])
        file.verify()


def test_own_vectors_are_what_their_generator_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Running the generator again gives the same files, byte for byte."""
    monkeypatch.setattr(make, "FOLDER", tmp_path)
    make.main()
    for each in sorted(tmp_path.iterdir()):
        assert each.read_bytes() == (OWN / each.name).read_bytes(), each.name


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("size", [0, 1, 3072, 3073, 7168, 7169, 396_288, 396_289, 800_000])
def test_file_is_read_by_the_second_implementation(version: int, size: int) -> None:
    """What is written here, another implementation of the same description reads."""
    host, key, content = Memory(), Key128.generate(), make.pattern(size)
    with ProtectedFile.create(host, key, path="a/b", version=version) as file:
        file.write_at(0, content)
    assert second.read(key.reveal(), bytes(host.content)) == (b"a/b", content)


@pytest.mark.parametrize("folder", ["pf-v1", "pf-v2", "pf-after-writes"])
def test_gramine_file_opens_as_its_index_says(shared_vectors: Path, folder: str) -> None:
    """Every file that Gramine's tool or an encrypted mount of it left opens, path and all."""
    place = shared_vectors / "gramine" / folder
    files = json.loads((place / "index.json").read_text())["files"]
    assert files
    for facts in files:
        key = Key128(bytes.fromhex(facts["wrap_key_hex"]))
        with ProtectedFile.open(OSFile(place / facts["name"]), key, path=facts["embedded_path"]) as file:
            assert file.size == facts["plaintext_size"], facts["name"]
            content = file.read_at(0, file.size)
            assert hashlib.sha256(content).hexdigest() == facts["plaintext_sha256"], facts["name"]


@pytest.mark.parametrize("folder", ["pf-v1", "pf-v2", "pf-after-writes"])
def test_gramine_file_stays_whole_when_written_to_here(shared_vectors: Path, folder: str) -> None:
    """A file of Gramine's, with its stale tails, takes writes, growth and cuts, and shows no old byte."""
    place = shared_vectors / "gramine" / folder
    for facts in json.loads((place / "index.json").read_text())["files"]:
        if facts["plaintext_size"] > 2_000_000:
            continue
        key = Key128(bytes.fromhex(facts["wrap_key_hex"]))
        host = Memory((place / facts["name"]).read_bytes())
        with ProtectedFile.open(host, key, writable=True) as file:
            content = bytearray(file.read_at(0, file.size))
            file.truncate(len(content) + 10_000)
            content.extend(bytes(10_000))
            file.write_at(1, b"changed")
            content[1:8] = b"changed"
            file.truncate(len(content) - 7000)
            del content[-7000:]
        assert second.read(key.reveal(), bytes(host.content))[1] == content
        with ProtectedFile.open(host, key, path=facts["embedded_path"]) as file:
            assert file.read_at(0, file.size) == content, facts["name"]


def _tampered(base: bytes, variant: dict[str, Any]) -> bytes:
    out = bytearray(base)
    for patch in variant["patches"]:
        change = bytes.fromhex(patch["bytes_hex"])
        out[patch["offset"] : patch["offset"] + len(change)] = change
    del out[variant["size"] :]
    if len(out) < variant["size"]:
        count, _, what = variant.get("append", "0 zero bytes").partition(" ")
        if what == "zero bytes":
            out.extend(bytes(int(count)))
    return bytes(out)


def _decide(raw: bytes, key: Key128, path: str | None) -> str | FileFormatError:
    """The SHA-256 of what is read, or the refusal."""
    try:
        with ProtectedFile.open(Memory(raw), key, path=path) as file:
            return hashlib.sha256(file.read_at(0, file.size)).hexdigest()
    except FileFormatError as refusal:
        return refusal


def test_every_tamper_variant_is_decided_as_gramine_does_or_as_documented(shared_vectors: Path) -> None:
    """What Gramine's tool refuses is refused here; what it accepts is accepted, but for the pending-write flag."""
    index = json.loads((shared_vectors / "gramine" / "tamper" / "n396289.json").read_text())
    base = (shared_vectors / "gramine" / index["base"]).read_bytes()
    kinds: dict[str | None, type[FileFormatError]] = {"Invalid path": WrongPath, "Invalid version": UnsupportedVersion}
    decided = {"accepted": 0, "refused": 0, "stricter": 0}
    for variant in index["variants"]:
        name = variant["variant"]
        raw = _tampered(base, variant)
        assert hashlib.sha256(raw).hexdigest() == variant["sha256"], name
        key = Key128(bytes.fromhex(variant["wrap_key_hex"]))
        for how, path in (("noverify", None), ("verify_path", index["embedded_path"])):
            theirs = variant["gramine"][how]
            mine = _decide(raw, key, path)
            if isinstance(mine, str):
                decided["accepted"] += 1
                assert theirs["accepted"], name
                assert (mine == index["plaintext_sha256"]) == theirs["same_plaintext"], name
            elif theirs["accepted"]:
                decided["stricter"] += 1
                assert mine.check == "pending-write flag", name
            else:
                decided["refused"] += 1
                assert isinstance(mine, kinds.get(theirs["error"], (IntegrityError, NotProtectedFile))), name
    assert all(decided.values()), decided
