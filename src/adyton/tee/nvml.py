"""The GPUs of this guest, through NVIDIA's management library (NVML), where it is installed.

It takes reports and certificate chains, reads the state of confidential computing, and sets the GPUs ready after they
were verified: until then they take no work. Layouts and calls are those of nvml.h (NVIDIA driver 550).

It never ran with a GPU in confidential mode. The calls that need one fail elsewhere, and say so.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from adyton.errors import NoDevice, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

LIBRARY: Final = "libnvidia-ml.so.1"
NONCE_BYTES: Final = 32
_REPORT_BYTES: Final = 0x2000
_CEC_REPORT_BYTES: Final = 0x1000
_CHAIN_BYTES: Final = 0x1000
_ATTESTATION_CHAIN_BYTES: Final = 0x1400
_SUCCESS: Final = 0
_FEATURE_ENABLED: Final = 1
_ARCHITECTURES: Final = {9: "HOPPER", 10: "BLACKWELL"}
_MAX_GPUS: Final = 16


class _Report(ctypes.Structure):
    """nvmlConfComputeGpuAttestationReport_t."""

    _fields_ = (
        ("is_cec_report_present", ctypes.c_uint),
        ("report_size", ctypes.c_uint),
        ("cec_report_size", ctypes.c_uint),
        ("nonce", ctypes.c_ubyte * NONCE_BYTES),
        ("report", ctypes.c_ubyte * _REPORT_BYTES),
        ("cec_report", ctypes.c_ubyte * _CEC_REPORT_BYTES),
    )


class _Certificates(ctypes.Structure):
    """nvmlConfComputeGpuCertificate_t."""

    _fields_ = (
        ("chain_size", ctypes.c_uint),
        ("attestation_chain_size", ctypes.c_uint),
        ("chain", ctypes.c_ubyte * _CHAIN_BYTES),
        ("attestation_chain", ctypes.c_ubyte * _ATTESTATION_CHAIN_BYTES),
    )


class _State(ctypes.Structure):
    """nvmlConfComputeSystemState_t."""

    _fields_ = (("environment", ctypes.c_uint), ("feature", ctypes.c_uint), ("developer", ctypes.c_uint))


@dataclass(frozen=True, slots=True)
class ConfidentialState:
    """How the GPUs of this machine are set."""

    enabled: bool
    """Confidential computing is on."""
    developer_mode: bool
    """Developer mode is on: the GPU shows its memory to debuggers."""


@dataclass(frozen=True, slots=True)
class GPUReport:
    """What one GPU says of itself. Nothing of it is verified."""

    arch: str
    chain: bytes
    """PEM, leaf first."""
    report: bytes
    minor: int
    """Its number in /dev: nvidia0 has 0."""


class NVML:
    """NVIDIA's management library. A context manager: it is initialised inside."""

    def __init__(self, load: Callable[[str], Any] = ctypes.CDLL) -> None:
        try:
            self._library = load(LIBRARY)
        except OSError as error:
            raise NoDevice(
                f"NVIDIA's management library is not here: {error}",
                check="NVML",
                expected=LIBRARY,
                seen="no such library",
                remedy="install NVIDIA's driver in this guest",
            ) from error

    def __enter__(self) -> NVML:
        self._call("nvmlInit_v2")
        return self

    def __exit__(self, *_error: object) -> None:
        self._library.nvmlShutdown()

    def count(self) -> int:
        """The number of GPUs. Raises NoDevice."""
        found = ctypes.c_uint()
        self._call("nvmlDeviceGetCount_v2", ctypes.byref(found))
        return found.value

    def driver(self) -> str:
        """Version of the driver. Raises NoDevice."""
        text = ctypes.create_string_buffer(80)
        self._call("nvmlSystemGetDriverVersion", text, ctypes.c_uint(len(text)))
        return text.value.decode("ascii", "replace")

    def state(self) -> ConfidentialState:
        """The state of confidential computing. Raises NoDevice, also where the driver does not know it."""
        found = _State()
        self._call("nvmlSystemGetConfComputeState", ctypes.byref(found))
        return ConfidentialState(found.feature == _FEATURE_ENABLED, found.developer != 0)

    def check_confidential(self) -> None:
        """Refuse GPUs that are not in confidential mode, or are in developer mode. Raises NoDevice."""
        state = self.state()
        if not state.enabled or state.developer_mode:
            raise NoDevice(
                "the GPUs of this machine are not in confidential mode"
                if not state.enabled
                else "the GPUs of this machine are in developer mode",
                check="confidential mode of the GPUs",
                expected="confidential computing on, developer mode off",
                seen=f"confidential computing {'on' if state.enabled else 'off'}, "
                f"developer mode {'on' if state.developer_mode else 'off'}",
                remedy="the host sets the mode of a GPU before it gives it to a guest; ask the machine's provider",
            )

    def reports(self, nonce: bytes) -> tuple[GPUReport, ...]:
        """A report of every GPU for this nonce (32 bytes). Raises NoDevice."""
        if len(nonce) != NONCE_BYTES:
            raise UsageError(
                f"a GPU's nonce has {NONCE_BYTES} bytes",
                check="nonce",
                expected=f"{NONCE_BYTES} bytes",
                seen=f"{len(nonce)} bytes",
            )
        self.check_confidential()
        return tuple(self._report(number, nonce) for number in range(min(self.count(), _MAX_GPUS + 1)))

    def _report(self, number: int, nonce: bytes) -> GPUReport:
        handle, architecture = ctypes.c_void_p(), ctypes.c_uint()
        self._call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(number), ctypes.byref(handle))
        self._call("nvmlDeviceGetArchitecture", handle, ctypes.byref(architecture))
        minor = ctypes.c_uint()
        self._call("nvmlDeviceGetMinorNumber", handle, ctypes.byref(minor))
        report, certificates = _Report(), _Certificates()
        report.nonce[:] = nonce
        self._call("nvmlDeviceGetConfComputeGpuAttestationReport", handle, ctypes.byref(report))
        self._call("nvmlDeviceGetConfComputeGpuCertificate", handle, ctypes.byref(certificates))
        size, chain_size = report.report_size, certificates.attestation_chain_size
        if not 0 < size <= _REPORT_BYTES or not 0 < chain_size <= _ATTESTATION_CHAIN_BYTES:
            raise NoDevice(
                "NVML gives a report or a chain of a size that it cannot have",
                check="size of NVML's answer",
                expected=f"up to {_REPORT_BYTES} and {_ATTESTATION_CHAIN_BYTES} bytes",
                seen=f"{size} and {chain_size} bytes",
            )
        return GPUReport(
            arch=_ARCHITECTURES.get(architecture.value, f"UNKNOWN_{architecture.value}"),
            chain=bytes(certificates.attestation_chain[:chain_size]).rstrip(b"\0"),
            report=bytes(report.report[:size]),
            minor=minor.value,
        )

    def keep_initialised(self) -> None:
        """Have the driver keep all GPUs initialised when nobody uses them, so that their session stays the same one.

        Raises NoDevice where that needs rights that this process does not have.
        """
        for number in range(min(self.count(), _MAX_GPUS)):
            handle, mode = ctypes.c_void_p(), ctypes.c_uint()
            self._call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(number), ctypes.byref(handle))
            self._call("nvmlDeviceGetPersistenceMode", handle, ctypes.byref(mode))
            if mode.value != _FEATURE_ENABLED:
                self._call("nvmlDeviceSetPersistenceMode", handle, ctypes.c_uint(_FEATURE_ENABLED))

    def set_ready(self) -> None:
        """Let the GPUs take work. Call it only after they were verified. Raises NoDevice."""
        self._call("nvmlSystemSetConfComputeGpusReadyState", ctypes.c_uint(1))

    def is_ready(self) -> bool:
        """Whether the GPUs take work. Raises NoDevice."""
        found = ctypes.c_uint()
        self._call("nvmlSystemGetConfComputeGpusReadyState", ctypes.byref(found))
        return found.value == 1

    def _call(self, name: str, *arguments: Any) -> None:
        try:
            function = getattr(self._library, name)
        except AttributeError:
            raise NoDevice(
                f"this driver has no {name}",
                check=f"NVML: {name}",
                expected="a driver that knows confidential computing (R550 or later)",
                seen="no such function",
                remedy="install a newer driver",
            ) from None
        code = int(function(*arguments))
        if code != _SUCCESS:
            raise NoDevice(
                f"NVML refuses {name}: {self._reason(code)} ({code}). Reports of GPUs were never taken on hardware with"
                " this version of Adyton",
                check=f"NVML: {name}",
                expected="success",
                seen=f"error {code}",
                remedy="check the driver, and that the GPU is in confidential mode: adyton doctor",
            )

    def _reason(self, code: int) -> str:
        text = getattr(self._library, "nvmlErrorString", None)
        if text is None:
            return "unknown"
        text.restype = ctypes.c_char_p
        found = text(ctypes.c_int(code))
        return found.decode("ascii", "replace") if isinstance(found, bytes) else "unknown"
