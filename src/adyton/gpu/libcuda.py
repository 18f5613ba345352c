"""CUDA's driver (libcuda) through ctypes: memory, pinned memory, streams, events. It is loaded on the first use.

Names and arguments are those of cuda.h (driver API). Calls with `_v2` are what its macros name.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, Final

from adyton.errors import NoDevice

if TYPE_CHECKING:
    from collections.abc import Callable

LIBRARY: Final = "libcuda.so.1"
_SUCCESS: Final = 0
_NON_BLOCKING: Final = 1
"""CU_STREAM_NON_BLOCKING: it does not wait for what the program itself runs."""
_NO_TIMING: Final = 2
"""CU_EVENT_DISABLE_TIMING."""
_PORTABLE: Final = 1
"""CU_MEMHOSTALLOC_PORTABLE: pinned for every context."""
_MAPPED: Final = 2
"""CU_MEMHOSTALLOC_DEVICEMAP: the GPU reads it where it lies."""

_Out = ctypes.c_void_p
_CALLS: Final[dict[str, tuple[Any, ...]]] = {
    "cuInit": (ctypes.c_uint,),
    "cuDeviceGet": (_Out, ctypes.c_int),
    "cuDevicePrimaryCtxRetain": (_Out, ctypes.c_int),
    "cuDevicePrimaryCtxRelease_v2": (ctypes.c_int,),
    "cuCtxSetCurrent": (ctypes.c_void_p,),
    "cuCtxGetCurrent": (_Out,),
    "cuMemAlloc_v2": (_Out, ctypes.c_size_t),
    "cuMemFree_v2": (ctypes.c_uint64,),
    "cuMemHostAlloc": (_Out, ctypes.c_size_t, ctypes.c_uint),
    "cuMemFreeHost": (ctypes.c_void_p,),
    "cuMemHostGetDevicePointer_v2": (_Out, ctypes.c_void_p, ctypes.c_uint),
    "cuStreamCreate": (_Out, ctypes.c_uint),
    "cuStreamDestroy_v2": (ctypes.c_void_p,),
    "cuStreamSynchronize": (ctypes.c_void_p,),
    "cuEventCreate": (_Out, ctypes.c_uint),
    "cuEventDestroy_v2": (ctypes.c_void_p,),
    "cuEventRecord": (ctypes.c_void_p, ctypes.c_void_p),
    "cuEventSynchronize": (ctypes.c_void_p,),
    "cuMemcpyHtoDAsync_v2": (ctypes.c_uint64, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p),
    "cuMemcpyDtoH_v2": (ctypes.c_void_p, ctypes.c_uint64, ctypes.c_size_t),
    "cuMemcpyDtoD_v2": (ctypes.c_uint64, ctypes.c_uint64, ctypes.c_size_t),
    "cuCtxSynchronize": (),
}


class Device:
    """One GPU in its primary context, which torch uses, too. Every thread that uses it calls `activate` first."""

    def __init__(self, number: int = 0, load: Callable[[str], Any] = ctypes.CDLL) -> None:
        """Raises NoDevice where there is no driver, or no such GPU."""
        try:
            self._library = load(LIBRARY)
        except OSError as error:
            raise NoDevice(
                f"CUDA's driver is not here: {error}",
                check="CUDA",
                expected=LIBRARY,
                seen="no such library",
                remedy="run on a machine with a GPU of NVIDIA's and its driver, or read the file's mount",
            ) from error
        self.number = number
        self._call("cuInit", 0)
        self._device = self._made(ctypes.c_int, "cuDeviceGet", number)
        self._context = self._made(ctypes.c_void_p, "cuDevicePrimaryCtxRetain", self._device)

    def close(self) -> None:
        """Let the context go. Memory and buffers must be freed before."""
        self._call("cuDevicePrimaryCtxRelease_v2", self._device)

    def activate(self) -> None:
        """Make this GPU the calling thread's."""
        self._call("cuCtxSetCurrent", self._context)

    def current(self) -> int | None:
        """The context that the calling thread has now."""
        found: int | None = self._made(ctypes.c_void_p, "cuCtxGetCurrent")
        return found

    def restore(self, context: int | None) -> None:
        """Give the calling thread the context back that it had."""
        self._call("cuCtxSetCurrent", context)

    def allocate(self, size: int) -> int:
        """Memory of the GPU: its address."""
        found: int = self._made(ctypes.c_uint64, "cuMemAlloc_v2", size)
        return found

    def free(self, address: int) -> None:
        """Free memory of the GPU."""
        self._call("cuMemFree_v2", address)

    def pin(self, size: int, *, mapped: bool = False) -> int:
        """Pinned memory of this process: its address. A `mapped` one the GPU can read where it lies (`mapped_at`)."""
        found: int = self._made(ctypes.c_void_p, "cuMemHostAlloc", size, _PORTABLE | (_MAPPED if mapped else 0))
        return found

    def mapped_at(self, address: int) -> int:
        """Where the GPU sees mapped memory of this process."""
        found: int = self._made(ctypes.c_uint64, "cuMemHostGetDevicePointer_v2", address, 0)
        return found

    def unpin(self, address: int) -> None:
        """Free pinned memory."""
        self._call("cuMemFreeHost", address)

    def stream(self) -> int:
        """A new stream."""
        found: int = self._made(ctypes.c_void_p, "cuStreamCreate", _NON_BLOCKING)
        return found

    def end_stream(self, stream: int) -> None:
        """Destroy a stream."""
        self._call("cuStreamDestroy_v2", stream)

    def finish(self, stream: int) -> None:
        """Wait until everything in a stream is done."""
        self._call("cuStreamSynchronize", stream)

    def event(self) -> int:
        """A new event."""
        found: int = self._made(ctypes.c_void_p, "cuEventCreate", _NO_TIMING)
        return found

    def end_event(self, event: int) -> None:
        """Destroy an event."""
        self._call("cuEventDestroy_v2", event)

    def record(self, event: int, stream: int) -> None:
        """Have an event happen when what is in a stream now is done."""
        self._call("cuEventRecord", event, stream)

    def wait(self, event: int) -> None:
        """Wait for an event. One that was never recorded has happened."""
        self._call("cuEventSynchronize", event)

    def copy_in(self, target: int, source: int, size: int, stream: int) -> None:
        """Begin to copy pinned memory into the GPU's. The source must stay as it is until the stream has done it."""
        self._call("cuMemcpyHtoDAsync_v2", target, source, size, stream)

    def copy_out(self, target: int, source: int, size: int) -> None:
        """Copy the GPU's memory into this process's, and wait."""
        self._call("cuMemcpyDtoH_v2", target, source, size)

    def copy_within(self, target: int, source: int, size: int) -> None:
        """Copy from one address of the GPU to another, and wait."""
        self._call("cuMemcpyDtoD_v2", target, source, size)
        self._call("cuCtxSynchronize")

    def _made(self, kind: Any, name: str, *arguments: Any) -> Any:
        """Call a function that gives something back through its first argument."""
        found = kind()
        self._call(name, ctypes.addressof(found), *arguments)
        return found.value

    def _call(self, name: str, *arguments: Any) -> None:
        try:
            function = getattr(self._library, name)
        except AttributeError:
            raise _failed(name, "no such function", "a driver of CUDA 12 or later") from None
        function.argtypes, function.restype = _CALLS[name], ctypes.c_int
        code = function(*arguments)
        if code != _SUCCESS:
            raise _failed(name, f"error {code} ({self._reason(code)})", "success")

    def _reason(self, code: int) -> str:
        text = ctypes.c_char_p()
        try:
            if self._library.cuGetErrorName(ctypes.c_int(code), ctypes.byref(text)) == _SUCCESS and text.value:
                return text.value.decode("ascii", "replace")
        except AttributeError:
            pass
        return "unknown"


def _failed(name: str, seen: str, expected: str) -> NoDevice:
    return NoDevice(
        f"CUDA refuses {name}: {seen}",
        check=f"CUDA: {name}",
        expected=expected,
        seen=seen,
        remedy="see whether the GPU has memory free, and is set ready: adyton doctor",
    )
