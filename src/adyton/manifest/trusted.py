"""Trusted files and folders of a template -> files with their hashes, by Gramine's rules of order and links.

Folders (URI ends in `/`) are entered depth first, children in code-point order, dot files too. A link to a file is
listed under the link's path with the target's hash. A link to a folder is not entered. What is neither file nor folder,
or cannot be read, is passed over. The first of two equal URIs keeps its place, and two different hashes are an error.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from adyton.errors import MalformedManifest, ManifestError
from adyton.manifest.cache import HashCache
from adyton.manifest.model import MAX_PATH_CHARS, TrustedFile
from adyton.manifest.schema_check import MAX_ITEMS
from adyton.values import Digest

_CHUNK_BYTES: Final = 1 << 20
_BATCH: Final = 256

Advance = Callable[[int], None]


class _Hashed(NamedTuple):
    digest: Digest
    size_bytes: int
    executable: bool


_UNKNOWN: Final = _Hashed(Digest(bytes(32)), 0, False)


def expand(
    entries: Iterable[TrustedFile],
    base_dir: Path,
    *,
    cache: HashCache | None = None,
    jobs: int | None = None,
    advance: Advance | None = None,
) -> tuple[TrustedFile, ...]:
    """Every trusted file with hash, size, mode and (for cached bytecode) time. Relative URIs are below `base_dir`.

    Raises MalformedManifest where an entry is not what its URI says, and ManifestError where a file cannot be read.
    """
    found: dict[str, Digest | None] = {}
    for entry in entries:
        if entry.uri.endswith("/"):
            for uri in _walk(entry.uri, base_dir):
                found.setdefault(uri, None)
        else:
            _add(found, entry)
        if len(found) > MAX_ITEMS:
            raise MalformedManifest(
                "too many trusted files", check="sgx.trusted_files", expected=f"at most {MAX_ITEMS}", seen=len(found)
            )
    base = os.fspath(base_dir)
    paths = {uri: os.path.join(base, uri[5:]) for uri in found}  # noqa: PTH118 - tens of thousands of them
    hashed = _hash_all(paths, cache or HashCache.none(), jobs or min(8, os.cpu_count() or 1), advance)
    for uri, given in found.items():
        if given is not None and given != hashed[uri].digest:
            raise ManifestError(
                f"{uri} has another hash than the one given for it",
                check="hash of a trusted file",
                expected=given,
                seen=hashed[uri].digest,
                remedy="take sha256 out of its entry, or restore the file",
            )
    times = _bytecode_times(paths)
    return tuple(
        TrustedFile(uri, facts.digest, facts.size_bytes, facts.executable, times.get(uri))
        for uri, facts in hashed.items()
    )


def _add(found: dict[str, Digest | None], entry: TrustedFile) -> None:
    known = found.get(entry.uri)
    if known is not None and entry.sha256 is not None and known != entry.sha256:
        raise MalformedManifest(
            f"{entry.uri} is listed with two hashes", check="sgx.trusted_files", expected=known, seen=entry.sha256
        )
    found[entry.uri] = known if known is not None else entry.sha256


def _walk(uri: str, base_dir: Path) -> Iterator[str]:
    """The files below a folder's URI, named as Gramine names them (through pathlib: `./` and `//` vanish)."""
    shown = str(PurePosixPath(uri[5:]))
    root = base_dir / shown
    if not root.is_dir():
        raise _not_found(uri, "a folder" if not root.exists() else "a folder, since its URI ends in /", root)
    yield from _walk_into(os.fspath(root), "" if shown == "." else shown.rstrip("/") + "/")


def _walk_into(real: str, shown: str) -> Iterator[str]:
    try:
        with os.scandir(real) as listing:
            children = sorted(listing, key=lambda child: child.name)
    except OSError as error:
        raise ManifestError(f"{real} cannot be listed: {error.strerror}", check="trusted folder", seen=real) from None
    for child in children:
        try:
            if child.is_dir(follow_symlinks=False):
                if os.access(child.path, os.R_OK | os.X_OK):
                    yield from _walk_into(child.path, f"{shown}{child.name}/")
            elif child.is_file() and os.access(child.path, os.R_OK):
                yield _listed(f"file:{shown}{child.name}")
        except OSError:
            continue


def _listed(uri: str) -> str:
    try:
        uri.encode()
    except UnicodeEncodeError:
        raise MalformedManifest(
            f"a trusted file's name is not UTF-8: {ascii(uri)[:160]}", check="trusted file", expected="a UTF-8 name"
        ) from None
    if len(uri) > MAX_PATH_CHARS:
        raise MalformedManifest("a trusted file's path is too long", check="trusted file", seen=uri[:160])
    return uri


def _not_found(uri: str, expected: str, path: Path) -> ManifestError:
    seen = "a folder" if path.is_dir() else "something else" if path.exists() else "nothing there"
    remedy = 'end its URI in "/" to list what is below it' if path.is_dir() else f"is {path} the right path?"
    return ManifestError(
        f"trusted file {uri}: expected {expected}, found {seen}",
        check="trusted file",
        expected=f"{expected} at {path}",
        seen=seen,
        remedy=remedy,
    )


def _hash_all(paths: dict[str, str], cache: HashCache, jobs: int, advance: Advance | None) -> dict[str, _Hashed]:
    """Hash many files with several threads. Order is kept, and unchanged files come from the cache."""
    hashed: dict[str, _Hashed] = dict.fromkeys(paths, _UNKNOWN)
    missing: list[tuple[str, str]] = []
    for uri, path in paths.items():
        known = cache.look_up(path)
        if known is None:
            missing.append((uri, path))
        else:
            digest, found = known
            hashed[uri] = _Hashed(digest, found.st_size, bool(found.st_mode & 0o111))
    batches = [missing[start : start + _BATCH] for start in range(0, len(missing), _BATCH)]

    def work(batch: list[tuple[str, str]]) -> list[tuple[str, _Hashed]]:
        done = [(uri, _hash_one(uri, path, cache)) for uri, path in batch]
        if advance is not None:
            advance(sum(facts.size_bytes for _, facts in done))
        return done

    with ThreadPoolExecutor(jobs) as pool:
        for done in pool.map(work, batches):
            hashed.update(done)
    return hashed


def _hash_one(uri: str, path: str, cache: HashCache) -> _Hashed:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return _hash_open(uri, path, descriptor, cache)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise _not_found(uri, "a file", Path(path)) from None
    except OSError as error:
        raise ManifestError(
            f"trusted file {uri} cannot be read: {error.strerror}", check="trusted file", seen=path
        ) from None


def _hash_open(uri: str, path: str, descriptor: int, cache: HashCache) -> _Hashed:
    before = os.fstat(descriptor)
    if not stat.S_ISREG(before.st_mode):
        raise _not_found(uri, "a file", Path(path))
    chunk = os.read(descriptor, min(before.st_size, _CHUNK_BYTES) + 1)
    digest, size = hashlib.sha256(chunk), len(chunk)
    if size != before.st_size:  # large, or changing
        while chunk := os.read(descriptor, _CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
        after = os.fstat(descriptor)
        if size != before.st_size or (before.st_mtime_ns, before.st_ctime_ns) != (after.st_mtime_ns, after.st_ctime_ns):
            raise ManifestError(
                f"trusted file {uri} changed while it was hashed",
                check="trusted file",
                expected=f"{before.st_size} bytes, unchanged",
                seen=f"{size} bytes",
                remedy="build again once nothing writes it",
            )
    found = Digest(digest.digest())
    cache.put(before, found)
    return _Hashed(found, size, bool(before.st_mode & 0o111))


def _bytecode_times(paths: dict[str, str]) -> dict[str, int]:
    """Times of Python sources whose trusted .pyc was made from a source of that time and size.

    CPython compiles a module anew where the source's time or size differs from what its .pyc says. The time is taken
    out of the .pyc, a hashed file, so that equal files give an equal manifest whatever times they have on disk.
    """
    times: dict[str, int] = {}
    for uri, path in paths.items():
        if not uri.endswith(".pyc"):
            continue
        folder, _, name = uri.rpartition("/")
        outer, _, cache_name = folder.rpartition("/")
        module = name.split(".")[0]
        source = f"{outer}/{module}.py" if cache_name == "__pycache__" else ""
        if source not in paths:
            continue
        try:
            with open(path, "rb") as file:  # noqa: PTH123 - a path as text
                header = file.read(16)
            size = os.stat(paths[source]).st_size  # noqa: PTH116
        except OSError:
            continue
        flags, mtime, source_size = (int.from_bytes(header[at : at + 4], "little") for at in (4, 8, 12))
        if len(header) == 16 and flags == 0 and source_size == size & 0xFFFFFFFF:
            times[source] = mtime
    return times
