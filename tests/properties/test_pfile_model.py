"""A protected file against plain bytes: any operations, in any order, reopened at any time."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from adyton.errors import StorageFailed
from adyton.pfile import seal
from adyton.pfile.file import ProtectedFile
from adyton.pfile.layout import NODE_BYTES
from adyton.values import Key128
from tests.support.disks import FillingDisk
from tests.support.recorder import Recorder, recording
from tests.vectors.pfile import second

EDGES = (0, 1, 3071, 3072, 3073, 7167, 7168, 7169, 396_287, 396_288, 396_289, 400_385)
offsets = st.one_of(st.sampled_from(EDGES), st.integers(0, 30_000), st.integers(0, 450_000))
blocks = st.one_of(
    st.binary(min_size=0, max_size=300),
    st.builds(lambda byte, size: bytes([byte]) * size, st.integers(1, 255), st.sampled_from((4096, 8192, 100_000))),
)


class FileMachine(RuleBasedStateMachine):
    """The file, and the bytes that it should hold."""

    def __init__(self) -> None:
        super().__init__()
        self.model = bytearray()
        self.committed = b""
        self.key = Key128.generate()
        self.disk = FillingDisk()
        self._recording = recording()
        self.recorder: Recorder = self._recording.__enter__()

    @initialize(version=st.sampled_from((1, 2)), cache=st.sampled_from((1, 40, 200, 4096)), log=st.booleans())
    def create(self, version: int, cache: int, log: bool) -> None:
        self.options: dict[str, Any] = {"cache_bytes": cache * NODE_BYTES, "use_log": log}
        self.path = "a/b"
        self.file = ProtectedFile.create(self.disk, self.key, path=self.path, version=version, **self.options)
        self.version = version

    @rule(offset=offsets, data=blocks)
    def write(self, offset: int, data: bytes) -> None:
        self.file.write_at(offset, data)
        if data:
            self.model.extend(bytes(max(0, offset - len(self.model))))
            self.model[offset : offset + len(data)] = data

    @rule(size=offsets)
    def truncate(self, size: int) -> None:
        self.file.truncate(size)
        del self.model[size:]
        self.model.extend(bytes(size - len(self.model)))

    @rule(offset=offsets, size=offsets)
    def read(self, offset: int, size: int) -> None:
        assert self.file.read_at(offset, size) == self.model[offset : offset + size]

    @rule(sync=st.booleans())
    def flush(self, sync: bool) -> None:
        self.file.flush(sync)
        assert second.read(self.key.reveal(), bytes(self.disk.content)) == (self.path.encode(), bytes(self.model))

    @rule(good=st.integers(0, 8))
    def flush_on_a_full_disk(self, good: int) -> None:
        self.disk.good_writes = good
        try:
            self.file.flush()
        except StorageFailed:
            pass
        finally:
            self.disk.good_writes = 1 << 30

    @rule(path=st.sampled_from(("a/b", "x", "../y", "/z")))
    def rename(self, path: str) -> None:
        self.file.rebind(path)
        self.path = path

    @rule(writable=st.booleans())
    def reopen(self, writable: bool) -> None:
        self.file.close()
        with ProtectedFile.open(self.disk, self.key, path=self.path, writable=writable) as file:
            assert file.read_at(0, len(self.model) + 1) == self.model
            assert file.version == self.version
            file.verify()
        self.file = ProtectedFile.open(self.disk, self.key, path=self.path, writable=True, **self.options)

    @precondition(lambda self: self.options["use_log"])
    @rule()
    def lose_the_process(self) -> None:
        self.file.flush()
        self.file = ProtectedFile.open(self.disk, self.key, path=self.path, writable=True, **self.options)

    @invariant()
    def size_is_the_model_s(self) -> None:
        if hasattr(self, "file"):
            assert self.file.size == len(self.model)

    def teardown(self) -> None:
        try:
            if hasattr(self, "file"):
                self.file.close()
                assert second.read(self.key.reveal(), bytes(self.disk.content))[1] == self.model
                assert self.recorder.sealed
        finally:
            self._recording.__exit__(None, None, None)
            assert seal.engine is not self.recorder


FileMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestFile = FileMachine.TestCase
