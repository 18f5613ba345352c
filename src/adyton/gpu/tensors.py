"""Tensors in a GPU's memory, as other libraries take them: DLPack, version 0.x ("dltensor").

Memory is freed when the last tensor that anybody took is let go. Source: dlpack.h (dmlc/dlpack 0.8), and the Python
specification of `__dlpack__` in the array API standard.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import math
import threading
from typing import TYPE_CHECKING, Any, Final

from adyton.errors import Error, UsageError

if TYPE_CHECKING:
    from adyton.gpu.libcuda import Device
    from adyton.gpu.safetensors import Entry

CUDA: Final = 2
"""kDLCUDA."""
_NAME: Final = b"dltensor"
_TYPES: Final = {
    "BOOL": (6, 8),
    "U8": (1, 8),
    "U16": (1, 16),
    "U32": (1, 32),
    "U64": (1, 64),
    "I8": (0, 8),
    "I16": (0, 16),
    "I32": (0, 32),
    "I64": (0, 64),
    "F16": (2, 16),
    "F32": (2, 32),
    "F64": (2, 64),
    "BF16": (4, 16),
    "F8_E4M3": (10, 8),
    "F8_E5M2": (12, 8),
}
"""Type code and bits of DLPack, by the names of safetensors."""


class _DLDevice(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("id", ctypes.c_int32))


class _DLDataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _DLDevice),
        ("ndim", ctypes.c_int32),
        ("dtype", _DLDataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _DLManagedTensor(ctypes.Structure):
    _fields_ = (("tensor", _DLTensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_new_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, _Deleter)(
    ("PyCapsule_New", ctypes.pythonapi)
)
_capsule_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)
_capsule_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)

_taken: dict[int, tuple[_DLManagedTensor, Any, Memory]] = {}
"""What consumers hold: by its address, with what must live as long."""


class Memory:
    """An allocation of the GPU with a count of who uses it. It is freed, once, when nobody does."""

    def __init__(self, device: Device, address: int) -> None:
        self._device = device
        self.address = address
        self._users = 1
        self._lock = threading.Lock()

    @property
    def number(self) -> int:
        """The number of its GPU."""
        return self._device.number

    def take(self) -> None:
        """One more user. Raises UsageError where it was freed."""
        with self._lock:
            if not self._users:
                raise UsageError(
                    "these weights were closed",
                    check="weights in the GPU",
                    expected="a tensor that is taken before close()",
                    seen="closed ones",
                    remedy="take the tensors first; those that were taken stay",
                )
            self._users += 1

    def let_go(self) -> None:
        """One user less. Raises NoDevice where the driver does not free it."""
        with self._lock:
            self._users -= 1
            if self._users:
                return
        before = self._device.current()
        try:
            self._device.activate()
            self._device.free(self.address)
        finally:
            self._device.restore(before)
            self._device.close()


class Tensor:
    """One tensor in a GPU's memory. `torch.from_dlpack` and the like take it without a copy."""

    def __init__(self, entry: Entry, memory: Memory, offset: int) -> None:
        self.name = entry.name
        self.dtype = entry.dtype
        """The type of its elements, as safetensors names it: F32, BF16, and so on."""
        self.shape = entry.shape
        self.nbytes = entry.size
        self._memory = memory
        self._offset = offset

    def __repr__(self) -> str:
        return f"Tensor({self.name!r}, {self.dtype}, {list(self.shape)}, cuda:{self._memory.number})"

    def __dlpack_device__(self) -> tuple[int, int]:
        """Kind of device (2: CUDA), and its number."""
        return (CUDA, self._memory.number)

    def __dlpack__(self, **_wishes: Any) -> Any:
        """A capsule that a consumer takes over. The bytes are there already, so no stream has to wait.

        `stream`, `max_version`, `dl_device` and `copy` of the standard are not needed. Raises UsageError after `close`.
        """
        self._memory.take()
        count = len(self.shape)
        shape = (ctypes.c_int64 * max(count, 1))(*self.shape)
        strides = (ctypes.c_int64 * max(count, 1))(*(math.prod(self.shape[at + 1 :]) for at in range(count)))
        code, bits = _TYPES[self.dtype]
        managed = _DLManagedTensor(
            _DLTensor(
                self._memory.address + self._offset,
                _DLDevice(*self.__dlpack_device__()),
                count,
                _DLDataType(code, bits, 1),
                ctypes.cast(shape, ctypes.POINTER(ctypes.c_int64)),
                ctypes.cast(strides, ctypes.POINTER(ctypes.c_int64)),
                0,
            ),
            None,
            ctypes.cast(_DELETE, ctypes.c_void_p),
        )
        address = ctypes.addressof(managed)
        _taken[address] = (managed, (shape, strides), self._memory)
        return _new_capsule(address, _NAME, _DROP)


def _delete(address: int) -> None:
    """A consumer is done with a tensor. It may call from any thread."""
    found = _taken.pop(address, None)
    if found is not None:
        with contextlib.suppress(Error):  # nobody is there to hear of it
            found[2].let_go()


def _drop(capsule: int) -> None:
    """A capsule is gone. One that nobody took over still has its name."""
    if _capsule_is_valid(capsule, _NAME):
        _delete(_capsule_pointer(capsule, _NAME))


_DELETE: Final = _Deleter(_delete)
_DROP: Final = _Deleter(_drop)
"""As C calls them. They live as long as this module, and so as every consumer."""


@atexit.register
def _forget() -> None:
    """Consumers that outlive the interpreter must not call into it. The driver frees what a process had."""
    for managed, _, _ in _taken.values():
        managed.deleter = None
