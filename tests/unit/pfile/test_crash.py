"""A protected file after a crash: old or new content, never anything else.

Every sequence of writes is cut at every point, as a kill leaves it (in order, whole pages of the last
write) and as a power cut leaves it (any sectors of what was not synced).  The recoveries themselves are
cut as well, and their logs forged.
"""

from __future__ import annotations

import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from adyton.errors import Error, FileFormatError, IntegrityError, WrongPath
from adyton.pfile.backing import Memory, OSFile
from adyton.pfile.file import ProtectedFile
from adyton.pfile.recovery import RECORD_BYTES
from adyton.values import Key128
from tests.support.disks import RecordingDisk, after_kill, after_power_cut
from tests.support.recorder import recording

KEY = Key128(bytes(range(16)))
PATH = "out/result"

SMALL = 4096 * 24


@dataclass(frozen=True)
class Committed:
    """What the file held after the commit that ended with operation number `operation`."""

    operation: int
    content: bytes
    path: str
    durable: bool


class Witness:
    """Runs operations on a protected file over a recording disk, and writes down every commit."""

    def __init__(self, disk: RecordingDisk, *, version: int, create: bool, cache_bytes: int = SMALL) -> None:
        self.disk = disk
        self.commits: list[Committed] = []
        witness = self

        class Watched(ProtectedFile):
            def _settle(self) -> None:
                super()._settle()
                witness._commit(durable=False)

            def flush(self, sync: bool = False) -> None:
                super().flush(sync)
                if sync:
                    witness._commit(durable=True)

        if create:
            self.file: ProtectedFile = Watched.create(disk, KEY, path=PATH, version=version, cache_bytes=cache_bytes)
        else:
            self.file = Watched.open(disk, KEY, path=PATH, writable=True, cache_bytes=cache_bytes)
            self._commit(durable=True)

    def _commit(self, *, durable: bool) -> None:
        copy = Memory(self.disk.memory.content)
        with ProtectedFile.open(copy, KEY, recover=False) as file:
            content, path = file.read_at(0, file.size), file.path
        self.commits.append(Committed(len(self.disk.journal.operations), content, path, durable))


def _random_work(file: ProtectedFile, chance: random.Random, steps: int, most: int) -> None:
    for _ in range(steps):
        roll = chance.random()
        if roll < 0.5:
            file.write_at(chance.randrange(most), chance.randbytes(chance.choice((1, 100, 4096, 9000))))
        elif roll < 0.65:
            file.truncate(chance.randrange(most))
        elif roll < 0.85:
            file.flush()
        else:
            file.flush(sync=True)


def _base(version: int, size: int, chance: random.Random) -> bytes:
    disk = Memory()
    with ProtectedFile.create(disk, KEY, path=PATH, version=version) as file:
        file.write_at(0, chance.randbytes(size))
    return bytes(disk.content)


def _read(disk: Memory, *, writable: bool) -> bytes:
    with ProtectedFile.open(disk, KEY, path=PATH, writable=writable) as file:
        return file.read_at(0, file.size)


def _allowed_after_kill(commits: list[Committed], cut: int) -> list[bytes]:
    """The last commit that ended, and the one under way."""
    ended = [i for i, each in enumerate(commits) if each.operation <= cut]
    last = ended[-1] if ended else -1
    return [each.content for each in commits[max(last, 0) : last + 2]]


def _allowed_after_power_cut(commits: list[Committed], cut: int) -> list[bytes] | None:
    """The last durable commit and everything after it up to the one under way; None where nothing was promised."""
    durable = [i for i, each in enumerate(commits) if each.operation <= cut and each.durable]
    if not durable:
        return None
    ended = max(i for i, each in enumerate(commits) if each.operation <= cut)
    return [each.content for each in commits[durable[-1] : ended + 2]]


CASES = [(version, size) for version in (1, 2) for size in (0, 2000, 3072, 20_000, 400_000)]


def _session(version: int, size: int, seed: int, *, create: bool) -> Witness:
    chance = random.Random(f"{version}/{size}/{seed}")
    disk = RecordingDisk(b"" if create else _base(version, size, chance))
    witness = Witness(disk, version=version, create=create)
    _random_work(witness.file, chance, 12, max(size, 12_000))
    witness.file.close()
    return witness


@pytest.mark.parametrize("create", [False, True], ids=["existing", "new"])
@pytest.mark.parametrize(("version", "size"), CASES)
def test_file_after_a_kill_anywhere_is_old_or_new(version: int, size: int, create: bool) -> None:
    """Killed before, after and within every write, the file opens as its last commit or the one under way."""
    for seed in range(3):
        witness = _session(version, size, seed, create=create)
        journal, commits = witness.disk.journal, witness.commits
        start = commits[0].operation if create else 0
        for cut in range(start, len(journal.operations) + 1):
            for pages in (0, 1, 3):
                if pages and (cut == len(journal.operations) or journal.operations[cut].kind != "write"):
                    continue
                allowed = _allowed_after_kill(commits, cut)
                seen = _read(after_kill(journal, cut, part_of_next=pages), writable=False)
                assert seen in allowed, f"seed {seed}, cut {cut}, {pages} pages"
                disk = after_kill(journal, cut, part_of_next=pages)
                assert _read(disk, writable=True) == seen
                assert _read(disk, writable=False) == seen


@pytest.mark.parametrize("create", [False, True], ids=["existing", "new"])
@pytest.mark.parametrize(("version", "size"), CASES)
def test_file_after_a_power_cut_anywhere_is_synced_or_newer(version: int, size: int, create: bool) -> None:
    """Whatever of the unsynced writes reached the disk, the file is its last synced content or something newer."""
    for seed in range(3):
        witness = _session(version, size, seed, create=create)
        chance = random.Random(seed)
        journal, commits = witness.disk.journal, witness.commits
        for cut in range(len(journal.operations) + 1):
            for _ in range(6):
                disk = after_power_cut(journal, cut, chance)
                allowed = _allowed_after_power_cut(commits, cut)
                if allowed is None:
                    try:  # nothing was promised yet: any content that was committed, or a refusal
                        assert _read(disk, writable=False) in [each.content for each in commits]
                    except FileFormatError:
                        continue
                    continue
                seen = _read(disk, writable=False)
                assert seen in allowed, f"seed {seed}, cut {cut}"
                assert _read(disk, writable=True) == seen
                assert _read(disk, writable=False) == seen


@pytest.mark.parametrize("version", [1, 2])
def test_recovery_cut_anywhere_leads_to_the_same_content(version: int) -> None:
    """A recovery that is killed or loses power at any point can be run again, and ends where it would have."""
    chance = random.Random(version)
    witness = _session(version, 20_000, 7, create=False)
    journal, commits = witness.disk.journal, witness.commits
    recoveries = 0
    for cut in range(len(journal.operations) + 1):
        crashed = after_kill(journal, cut)
        again = RecordingDisk(bytes(crashed.content), None if crashed.log is None else bytes(crashed.log.content))
        ProtectedFile.open(again, KEY, path=PATH, writable=True).close()
        if len(again.journal.operations) <= 1:
            continue
        recoveries += 1
        allowed = _allowed_after_kill(commits, cut)
        for second_cut in range(len(again.journal.operations) + 1):
            assert _read(after_kill(again.journal, second_cut), writable=True) in allowed
            for _ in range(4):
                disk = after_power_cut(again.journal, second_cut, chance)
                assert _read(disk, writable=True) in allowed
    assert recoveries > 5


@pytest.mark.parametrize("version", [1, 2])
def test_work_after_a_recovery_is_as_safe_as_before_it(version: int) -> None:
    """A power cut in the first flush after a recovery still leads to what was recovered, or to that flush."""
    chance = random.Random(version)
    witness = _session(version, 20_000, 9, create=False)
    journal = witness.disk.journal
    recovered = 0
    for cut in range(len(journal.operations)):
        crashed = after_kill(journal, cut)
        again = RecordingDisk(bytes(crashed.content), None if crashed.log is None else bytes(crashed.log.content))
        with ProtectedFile.open(again, KEY, path=PATH, writable=True) as file:
            if not file.recovered:
                continue
            recovered += 1
            old = bytearray(file.read_at(0, file.size))
            file.write_at(0, b"after")
            file.write_at(9000, b"after")
        new = bytearray(old.ljust(9005, b"\0"))
        new[:5] = new[9000:9005] = b"after"
        for second_cut in range(len(again.journal.operations) + 1):
            for _ in range(5):
                assert _read(after_power_cut(again.journal, second_cut, chance), writable=True) in (old, new)
    assert recovered > 5


def test_rename_without_syncs_survives_a_kill() -> None:
    """Where power cuts are nobody's concern, a killed rename still opens under its old name."""
    disk = RecordingDisk(_base(2, 20_000, random.Random(5)))
    file = ProtectedFile.open(disk, KEY, path=PATH, writable=True, power_safe=False)
    content = file.read_at(0, file.size)
    file.rebind("other/name")
    assert not any(each.kind == "sync" for each in disk.journal.operations)
    for cut in range(len(disk.journal.operations) + 1):
        assert _read(after_kill(disk.journal, cut), writable=True) == content
    file.close()


def _forge(log: bytes, chance: random.Random) -> bytes:
    """A log as a hostile host might leave it."""
    records = [log[i : i + RECORD_BYTES] for i in range(0, len(log), RECORD_BYTES)]
    way = chance.randrange(9)
    if way == 0:
        return log[: chance.randrange(len(log))]
    if way == 1:
        return log + chance.randbytes(chance.choice((1, RECORD_BYTES)))
    if way == 2:
        chance.shuffle(records)
    elif way == 3:
        at = chance.randrange(len(records))
        records[at] = chance.choice((0, 1, 2, 5, 1 << 20, (1 << 64) - 1)).to_bytes(8, "little") + records[at][8:]
    elif way == 4:
        at = chance.randrange(len(log))
        return log[:at] + bytes([log[at] ^ (1 << chance.randrange(8))]) + log[at + 1 :]
    elif way == 5:
        records.insert(0, chance.randrange(8).to_bytes(8, "little") + chance.randbytes(4096))
    elif way == 6:
        del records[chance.randrange(len(records))]
    elif way == 7:
        return b""
    else:
        records = [chance.choice(records) for _ in records]
    return b"".join(records)


@pytest.mark.parametrize("version", [1, 2])
def test_forged_recovery_log_yields_old_new_or_refusal(version: int) -> None:
    """A hostile log never makes other content appear, and where it is refused the host file is left as it was."""
    witness = _session(version, 20_000, 11, create=False)
    journal, commits = witness.disk.journal, witness.commits
    chance = random.Random(version)
    refused = opened = 0
    for cut in range(len(journal.operations) + 1):
        crashed = after_kill(journal, cut)
        if crashed.log is None or not crashed.log.content:
            continue
        for _ in range(25):
            forged = _forge(bytes(crashed.log.content), chance)
            for writable in (False, True):
                disk = Memory(crashed.content)
                disk.open_log(create=True)
                assert disk.log is not None
                disk.log.content[:] = forged
                before = bytes(disk.content)
                try:
                    file = ProtectedFile.open(disk, KEY, path=PATH, writable=writable)
                except IntegrityError:
                    refused += 1
                    assert disk.content == before
                    continue
                assert writable or disk.content == before
                try:
                    seen = file.read_at(0, file.size)
                except IntegrityError:  # a record was left out: what is there is old, what is missing is refused
                    refused += 1
                    continue
                opened += 1
                assert seen in _allowed_after_kill(commits, cut)
    assert refused
    assert opened


def test_log_of_another_file_is_not_used() -> None:
    """A whole log, but of another file under the same key, leads nowhere."""
    one, other = _session(2, 20_000, 1, create=False), _session(2, 20_000, 2, create=False)
    interrupted = [
        after_kill(one.disk.journal, cut)
        for cut in range(len(one.disk.journal.operations))
        if after_kill(one.disk.journal, cut).content[58:59] == b"\x01"
    ]
    logs = [after_kill(other.disk.journal, cut).log for cut in range(len(other.disk.journal.operations))]
    assert interrupted
    for disk in interrupted[:10]:
        for log in logs:
            if log is None:
                continue
            disk.log = log
            with pytest.raises(IntegrityError, match="begun and not ended"):
                ProtectedFile.open(disk, KEY)


@pytest.mark.parametrize("version", [1, 2])
def test_rename_cut_anywhere_opens_under_the_name_it_has(version: int) -> None:
    """Between sealing the new path and renaming the host file, the old name opens; after, the new."""
    chance = random.Random(5)
    disk = RecordingDisk(_base(version, 20_000, chance))
    witness = Witness(disk, version=version, create=False)
    content = witness.commits[0].content
    witness.file.rebind("other/name")
    renamed_at = len(disk.journal.operations)
    witness.file.close()
    for cut in range(renamed_at + 1):
        assert _read(after_kill(disk.journal, cut), writable=False) == content
        assert _read(after_kill(disk.journal, cut), writable=True) == content
        for _ in range(6):
            assert _read(after_power_cut(disk.journal, cut, chance), writable=True) == content
    for cut in range(renamed_at, len(disk.journal.operations) + 1):
        with ProtectedFile.open(after_kill(disk.journal, cut), KEY, path="other/name") as file:
            assert file.read_at(0, file.size) == content


def test_pending_flag_without_a_log_is_refused() -> None:
    """A flush that was begun and not ended is refused where no log leads back, and where recovery is not wanted."""
    witness = _session(2, 20_000, 3, create=False)
    journal = witness.disk.journal
    flagged = [
        disk
        for cut in range(len(journal.operations))
        if (disk := after_kill(journal, cut)).content[58] == 1 and disk.log is not None
    ]
    assert flagged
    for disk in flagged:
        with pytest.raises(IntegrityError, match="begun and not ended"):
            ProtectedFile.open(disk, KEY, recover=False)
        disk.remove_log()
        with pytest.raises(IntegrityError, match="begun and not ended"):
            ProtectedFile.open(disk, KEY)


def test_log_whose_own_node_0_is_flagged_is_refused() -> None:
    """A log leads back to a whole file, never to another interrupted one."""
    disk = Memory(_base(2, 8000, random.Random(1)))
    disk.content[58] |= 1
    disk.open_log(create=True)
    assert disk.log is not None
    disk.log.write_at(0, bytes(8) + bytes(disk.content[:4096]))
    with pytest.raises(IntegrityError, match="begun and not ended"):
        ProtectedFile.open(disk, KEY)


def test_log_of_older_content_does_not_pass_for_an_undone_rename() -> None:
    """Under the old name only the same content opens; an older log beside a renamed file is not gone back to."""
    disk = Memory(_base(2, 2000, random.Random(1)))
    older = bytes(disk.content[:4096])
    with ProtectedFile.open(disk, KEY, writable=True) as file:
        file.write_at(0, b"newer")
        file.rebind("other/name")
    disk.open_log(create=True)
    assert disk.log is not None
    disk.log.write_at(0, bytes(8) + older)
    with pytest.raises(WrongPath):
        ProtectedFile.open(disk, KEY, path=PATH)


def test_no_key_seals_twice_over_crashes_and_recoveries() -> None:
    """Working on after every crash uses new keys for everything."""
    with recording() as recorder:
        witness = _session(2, 20_000, 21, create=False)
        for cut in range(0, len(witness.disk.journal.operations), 3):
            disk = after_kill(witness.disk.journal, cut)
            with ProtectedFile.open(disk, KEY, path=PATH, writable=True) as file:
                file.write_at(5000, b"again")
        assert len(recorder.sealed) > 50


def test_gramine_log_with_records_beyond_the_old_end_is_understood() -> None:
    """Gramine also logs nodes that did not exist, as zeros, and overwrites node 0 last: the old content comes back."""
    disk = Memory(_base(2, 8000, random.Random(1)))
    old = bytes(disk.content)
    records = [(2, old[8192:12288]), (3, old[12288:16384]), (4, bytes(4096)), (1, old[4096:8192]), (0, old[:4096])]
    disk.open_log(create=True)
    assert disk.log is not None
    disk.log.write_at(0, b"".join(place.to_bytes(8, "little") + node for place, node in records))
    disk.content[58] |= 1
    disk.content[8192:12288] = bytes(4096)
    disk.content.extend(bytes(4096))
    expected = _read(Memory(old), writable=False)
    assert _read(disk, writable=False) == expected
    assert _read(disk, writable=True) == expected
    assert disk.content == old


def test_error_of_a_refused_log_names_the_remedy() -> None:
    """The refusal says which file is missing."""
    disk = Memory(_base(2, 8000, random.Random(1)), name="model.pt")
    disk.content[58] |= 1
    with pytest.raises(Error) as refusal:
        ProtectedFile.open(disk, KEY)
    assert "model.pt.gramine.recovery" in (refusal.value.remedy or "")


def test_killed_process_leaves_a_whole_file(tmp_path: Path) -> None:
    """A real process, really killed, over and over: every byte of the file is of one and the same flush."""
    place = tmp_path / "f"
    with ProtectedFile.create(OSFile(place, create=True), KEY, path=PATH) as file:
        file.write_at(0, bytes(300_000))
    for delay in (0.001, 0.003, 0.005, 0.01, 0.02, 0.04, 0.08):
        child = os.fork()
        if child == 0:
            try:
                file = ProtectedFile.open(OSFile(place, writable=True), KEY, path=PATH, writable=True)
                for number in range(1 << 30):
                    file.write_at(0, bytes([number % 256]) * 300_000)
                    file.flush()
            finally:
                os._exit(1)
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for writable in (False, True):
            with ProtectedFile.open(OSFile(place, writable=writable), KEY, path=PATH, writable=writable) as file:
                content = file.read_at(0, 300_001)
            assert content == content[:1] * 300_000


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_many_random_sessions_survive_kills_and_power_cuts() -> None:
    """The same as above for hundreds of sessions of other sizes, cut everywhere."""
    for seed in range(1000, 1800):
        chance = random.Random(seed)
        version, create = chance.choice((1, 2)), chance.random() < 0.4
        size = chance.choice((0, 100, 3072, 3073, 9000, 60_000, 396_289))
        witness = _session(version, size, seed, create=create)
        journal, commits = witness.disk.journal, witness.commits
        for cut in range(commits[0].operation if create else 0, len(journal.operations) + 1):
            killed = after_kill(journal, cut, part_of_next=chance.choice((0, 1, 2, 5)))
            assert _read(killed, writable=chance.random() < 0.5) in _allowed_after_kill(commits, cut), (seed, cut)
            allowed = _allowed_after_power_cut(commits, cut)
            for _ in range(3 if allowed is not None else 0):
                disk = after_power_cut(journal, cut, chance)
                assert _read(disk, writable=True) in (allowed or []), (seed, cut)
