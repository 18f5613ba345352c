"""A virtual machine cloned or restored by its host: the kernel gives out the same random bytes in each copy.

Two processes stand for two clones.  Under a preloaded library their kernel always gives the same bytes, as one does
that was copied and does not know it.  Each seals another content with the same wrap key; the host holds both
ciphertexts.  Where a key came twice with the zero IV, the two ciphertexts would give the host the contents' difference.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from adyton.pfile import seal
from adyton.pfile.layout import NODE_BYTES, SLOT_BYTES
from tests.conftest import REPOSITORY

SHIM = """
#include <string.h>
#include <sys/types.h>
ssize_t getrandom(void *out, size_t size, unsigned flags) { (void)flags; memset(out, 7, size); return (ssize_t)size; }
"""

CLONE = """
import importlib.util, json, os, sys
from adyton.keystore.wrapping import WrappingKey
from adyton.pfile import seal
from adyton.pfile.layout import NODE_BYTES, SLOT_BYTES, Metadata
from adyton.values import Key128

letter, engine = sys.argv[1].encode(), sys.argv[2]
if engine == "fallback":
    seal.engine = seal.Fallback
elif engine != "in use":
    spec = importlib.util.spec_from_file_location("adyton.pfile._gcm", engine)
    seal.engine = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(seal.engine)
plain = b"".join((b"%d %s" % (node, letter)).ljust(NODE_BYTES, letter) for node in range(5))
cipher, slots = bytearray(len(plain)), bytearray(5 * SLOT_BYTES)
seal.seal_nodes(plain, cipher, slots)
metadata = Metadata(b"file", 3000, bytes(SLOT_BYTES), letter * 3000).to_bytes()
envelope = seal.seal_metadata(Key128(bytes(16)), 2, metadata)
print(json.dumps({
    "kernel": os.urandom(16).hex(),
    "plain": plain.hex(), "cipher": cipher.hex(), "slots": slots.hex(),
    "metadata": metadata.hex(), "sealed": envelope.sealed.hex(), "nonce": envelope.nonce.hex(),
    "wrapped": WrappingKey(bytes(32)).wrap(letter * 32, b"name").hex(),
}))
"""


def compile_shared(target: Path, *words: str) -> Path:
    """Build a shared library with the machine's compiler, which set-up installs."""
    command = ["gcc", "-shared", "-fPIC", "-O2", "-o", str(target), *words]
    subprocess.run(command, check=True, capture_output=True)
    return target


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library whose getrandom always gives the same."""
    folder = tmp_path_factory.mktemp("kernel")
    (folder / "kernel.c").write_text(SHIM)
    return compile_shared(folder / "kernel.so", str(folder / "kernel.c"))


@pytest.fixture(scope="module")
def without_rdrand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C part as on a processor that has no RDRAND, or whose host hides it."""
    room = REPOSITORY / "src" / "adyton" / "pfile"
    sources = [str(room / "_gcm.c"), str(room / "gcm.c")]
    include = f"-I{sysconfig.get_path('include')}"
    target = tmp_path_factory.mktemp("without") / "_gcm.so"
    return compile_shared(target, "-DWITHOUT_RDRAND", include, *sources, "-lcrypto")


@pytest.fixture(params=["in use", "without RDRAND", "fallback"])
def engine(request: pytest.FixtureRequest) -> str:
    """The engine that the clones seal with, as CLONE takes it."""
    return str(request.getfixturevalue("without_rdrand")) if request.param == "without RDRAND" else request.param


def clone(kernel: Path, letter: str, engine: str) -> dict[str, Any]:
    """One clone, which works on content of this letter; what the host finds, beside what it wants to know."""
    environment = {**os.environ, "LD_PRELOAD": str(kernel), "PYTHONHASHSEED": "0"}
    command = [sys.executable, "-c", CLONE, letter, engine]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found = json.loads(done.stdout)
    return {name: bytes.fromhex(value) for name, value in found.items()}


def difference(one: bytes, other: bytes) -> bytes:
    """Byte by byte, one exclusive-or the other."""
    return bytes(a ^ b for a, b in zip(one, other, strict=True))


def nodes(run: bytes, size: int) -> list[bytes]:
    """A run cut into its nodes or slots."""
    return [run[at : at + size] for at in range(0, len(run), size)]


def test_clones_never_seal_two_contents_under_one_key(kernel: Path, engine: str) -> None:
    """Not a node and not the metadata: no key comes twice, and no difference of contents shows."""
    one, other = clone(kernel, "a", engine), clone(kernel, "b", engine)
    assert one["kernel"] == other["kernel"] == bytes([7]) * 16  # the attack is on
    keys = [slot[:16] for found in (one, other) for slot in nodes(found["slots"], SLOT_BYTES)]
    assert len(set(keys)) == 10
    wanted = nodes(difference(one["plain"], other["plain"]), NODE_BYTES)
    seen = nodes(difference(one["cipher"], other["cipher"]), NODE_BYTES)
    assert not any(a == b for a, b in zip(wanted, seen, strict=True))
    assert one["nonce"] != other["nonce"]
    assert difference(one["sealed"], other["sealed"]) != difference(one["metadata"], other["metadata"])


def test_restored_owner_wraps_two_keys_under_two_nonces(kernel: Path) -> None:
    """Her key server's machine put back, and another key made: AES-GCM under the data key meets no nonce twice."""
    one, other = clone(kernel, "a", "in use"), clone(kernel, "b", "in use")
    assert one["wrapped"][:12] != other["wrapped"][:12]


def test_clones_without_rdrand_show_no_more_than_equality(kernel: Path, without_rdrand: Path) -> None:
    """The same content in the same place seals the same, in C part and fallback alike; places in a run differ."""
    one, other = clone(kernel, "a", str(without_rdrand)), clone(kernel, "a", "fallback")
    assert one["slots"] == other["slots"]
    assert one["cipher"] == other["cipher"]
    assert len(set(nodes(one["slots"], SLOT_BYTES))) == 5


@pytest.mark.skipif("rdrand" not in Path("/proc/cpuinfo").read_text(), reason="this machine's processor has no RDRAND")
@pytest.mark.skipif(not seal.NATIVE, reason="the C parts were not built (gcc and libssl-dev, then make setup)")
def test_clones_with_rdrand_do_not_even_show_equality(kernel: Path) -> None:
    """The processor's bytes are in the keys: the same content seals to something else in each clone."""
    one, other = clone(kernel, "a", "in use"), clone(kernel, "a", "in use")
    assert one["kernel"] == other["kernel"]
    assert not set(nodes(one["slots"], SLOT_BYTES)) & set(nodes(other["slots"], SLOT_BYTES))
