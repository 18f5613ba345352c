"""Kernel modules: unpacked, and in the order in which they have to be loaded. Pure.

Each module names those that it needs in its section `.modinfo` (the kernel's scripts/mod/modpost.c). The signature at
a module's end stays as it is: under lockdown the kernel takes no module without one.
"""

from __future__ import annotations

import lzma
import re
from collections.abc import Iterable, Mapping
from typing import Final

from adyton.errors import UsageError

SIGNED: Final = b"~Module signature appended~\n"
_MAX_BYTES: Final = 64 << 20
_DEPENDS: Final = re.compile(rb"\0depends=([A-Za-z0-9_,-]*)\0")


def load_order(
    names: Iterable[str], packed: Mapping[str, bytes], *, optional: bool = False, loaded: Iterable[str] = ()
) -> dict[str, bytes]:
    """Module name -> its bytes, such that each comes after what it needs. Nothing of `loaded` is in it.

    `packed` holds modules in xz by their names. With `optional`, a name that is not there is left out. Raises
    UsageError where a module is missing, has no signature or needs itself.
    """
    found: dict[str, bytes] = {}
    done = {_plain(name) for name in loaded}
    by_name = {_plain(name): raw for name, raw in packed.items()}
    for name in names:
        if not (optional and _plain(name) not in by_name):
            _load(_plain(name), by_name, found, done, ())
    return found


def needed_by(modules: Iterable[bytes]) -> tuple[str, ...]:
    """The names of the modules that some unpacked modules need, each once."""
    found = [match[1].decode("ascii").split(",") for raw in modules if (match := _DEPENDS.search(raw))]
    return tuple(dict.fromkeys(_plain(name) for names in found for name in names if name))


def _load(
    name: str, packed: Mapping[str, bytes], found: dict[str, bytes], done: set[str], above: tuple[str, ...]
) -> None:
    if name in done:
        return
    if name in above or name not in packed:
        raise _wrong(name, "a module that needs only others", f"needed by {', '.join(above) or 'the image'}")
    raw = _unpack(name, packed[name])
    match = _DEPENDS.search(raw)
    for needed in match[1].decode("ascii").split(",") if match else ():
        if needed:
            _load(_plain(needed), packed, found, done, (*above, name))
    found[name] = raw
    done.add(name)


def _unpack(name: str, packed: bytes) -> bytes:
    unpacker = lzma.LZMADecompressor(memlimit=1 << 30)
    try:
        raw = unpacker.decompress(packed, _MAX_BYTES)
    except lzma.LZMAError as error:
        raise _wrong(name, "xz", str(error)) from error
    if not unpacker.eof or not raw.endswith(SIGNED):
        raise _wrong(name, f"a signed module of at most {_MAX_BYTES} bytes", "another")
    return raw


def _plain(name: str) -> str:
    return name.replace("-", "_")


def _wrong(name: str, expected: str, seen: str) -> UsageError:
    return UsageError(
        f"the kernel module {name} cannot be used: expected {expected}, seen {seen}",
        check=f"kernel module {name}",
        expected=expected,
        seen=seen,
        remedy="the kernel's packages changed: adyton/image/recipe.py has to follow",
    )
