"""NVML over a double of its library: layouts, refusals, and that nothing is set ready by taking a report."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from adyton.errors import NoDevice, UsageError
from adyton.tee import nvml
from adyton.tee.nvml import NVML

NONCE = bytes(range(32))


class Library:
    """A double of libnvidia-ml. `codes` are results of calls that fail."""

    def __init__(self) -> None:
        self.feature, self.developer, self.ready, self.gpus = 1, 0, 0, 2
        self.codes: dict[str, int] = {}
        self.without: set[str] = set()
        self.report, self.chain = b"report", b"chain\0\0"
        self.called: list[str] = []
        self.kept: set[int] = set()

    def __getattr__(self, name: str) -> Callable[..., int]:
        if not name.startswith("nvml") or name in self.__dict__["without"] or name == "nvmlErrorString":
            raise AttributeError(name)

        def call(*arguments: Any) -> int:
            self.called.append(name)
            if name in self.codes:
                return self.codes[name]
            getattr(self, f"_{name}", lambda *_: None)(*arguments)
            return 0

        return call

    def _nvmlDeviceGetCount_v2(self, out: Any) -> None:
        out._obj.value = self.gpus

    def _nvmlSystemGetDriverVersion(self, out: Any, _size: Any) -> None:
        out.value = b"550.144.03"

    def _nvmlSystemGetConfComputeState(self, out: Any) -> None:
        out._obj.feature, out._obj.developer = self.feature, self.developer

    def _nvmlDeviceGetHandleByIndex_v2(self, number: Any, handle: Any) -> None:
        handle._obj.value = 100 + number.value

    def _nvmlDeviceGetMinorNumber(self, handle: Any, out: Any) -> None:
        out._obj.value = handle.value - 100

    def _nvmlDeviceGetPersistenceMode(self, handle: Any, out: Any) -> None:
        out._obj.value = handle.value in self.kept

    def _nvmlDeviceSetPersistenceMode(self, handle: Any, value: Any) -> None:
        assert value.value == 1
        self.kept.add(handle.value)

    def _nvmlDeviceGetArchitecture(self, _handle: Any, out: Any) -> None:
        out._obj.value = 9

    def _nvmlDeviceGetConfComputeGpuAttestationReport(self, _handle: Any, out: Any) -> None:
        content = self.report + bytes(out._obj.nonce)
        out._obj.report_size = len(content)
        ctypes.memmove(out._obj.report, content, min(len(content), 0x2000))

    def _nvmlDeviceGetConfComputeGpuCertificate(self, _handle: Any, out: Any) -> None:
        out._obj.attestation_chain_size = len(self.chain)
        ctypes.memmove(out._obj.attestation_chain, self.chain, min(len(self.chain), 0x1400))

    def _nvmlSystemSetConfComputeGpusReadyState(self, value: Any) -> None:
        self.ready = value.value

    def _nvmlSystemGetConfComputeGpusReadyState(self, out: Any) -> None:
        out._obj.value = self.ready


@pytest.fixture
def library() -> Library:
    """A machine with two GPUs in confidential mode."""
    return Library()


def _nvml(library: Library) -> NVML:
    return NVML(lambda _name: library)


def test_reports_are_taken_and_nothing_is_set_ready(library: Library) -> None:
    """The nonce goes in; report and chain come out; the ready state is set by its own call only."""
    with _nvml(library) as found:
        first, second = found.reports(NONCE)
        assert (first.arch, first.chain, first.report) == ("HOPPER", b"chain", b"report" + NONCE)
        assert second == replace(first, minor=1)
        assert not found.is_ready()
        found.set_ready()
        assert found.is_ready()
    assert library.called[0] == "nvmlInit_v2"
    assert library.called[-1] == "nvmlShutdown"


def test_layouts_are_those_of_the_header() -> None:
    """Sizes of the structures."""
    assert ctypes.sizeof(nvml._Report) == 12 + 32 + 0x2000 + 0x1000
    assert ctypes.sizeof(nvml._Certificates) == 8 + 0x1000 + 0x1400
    assert ctypes.sizeof(nvml._State) == 12


@pytest.mark.parametrize(("feature", "developer", "match"), [(0, 0, "not in confidential"), (1, 1, "developer mode")])
def test_gpus_in_another_mode_give_no_report(library: Library, feature: int, developer: int, match: str) -> None:
    """Before any report is asked for."""
    library.feature, library.developer = feature, developer
    with _nvml(library) as found, pytest.raises(NoDevice, match=match):
        found.reports(NONCE)
    assert not any("Report" in name for name in library.called)


def test_failures_say_which_call_and_that_it_was_never_tried(library: Library) -> None:
    """A refused call, a call that the driver lacks, a library that is not there, sizes that cannot be."""
    library.codes["nvmlDeviceGetConfComputeGpuAttestationReport"] = 3
    with _nvml(library) as found, pytest.raises(NoDevice, match="never taken on hardware"):
        found.reports(NONCE)
    library.codes.clear()
    library.without.add("nvmlSystemGetConfComputeState")
    with _nvml(library) as found, pytest.raises(NoDevice, match="this driver has no"):
        found.state()
    library.without.clear()
    for report, chain in ((b"x" * 0x2000, b"c"), (b"x", b"c" * 0x1401), (b"x", b"")):
        library.report, library.chain = report, chain
        with _nvml(library) as found, pytest.raises(NoDevice, match="size that it cannot have"):
            found.reports(NONCE)

    def absent(_name: str) -> Any:
        raise OSError("not found")

    with pytest.raises(NoDevice, match="management library is not here"):
        NVML(absent)
    with _nvml(library) as found, pytest.raises(UsageError, match="32 bytes"):
        found.reports(b"x")
