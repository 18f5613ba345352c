"""Build a guest image from a lock file: the same lock file and the same Adyton give the same bytes, wherever and when.

No root and no tool for images is needed. Packages are unpacked, and file systems, partition table and kernel image are
written, by this room itself. Only bytecode and the runtime's identity are made by running the image's own Python, in
bubblewrap.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import adyton
from adyton import __version__
from adyton.atomic_file import write_file
from adyton.errors import NoDevice, RunError, UsageError
from adyton.image import recipe, verity
from adyton.image.cpio import archive
from adyton.image.deb import unpack_deb, unpack_wheel
from adyton.image.disk import disk_parts, identifier
from adyton.image.document import GuestImage, Input, PEHashes, Verity
from adyton.image.erofs import Node, place, walk, write
from adyton.image.gpu_files import GPUFiles
from adyton.image.kernel_modules import load_order, needed_by
from adyton.image.lock import Lock
from adyton.image.measure import firmware_entries, measure
from adyton.image.pool import Pool
from adyton.image.root_tree import root_tree
from adyton.image.uki import build_uki
from adyton.values import Digest

VCPUS: Final = (1, 2, 4, 8)
"""Numbers of processors that `image.json` has launch digests for."""
_TIMEOUT_S: Final = 600
_SKIPPED: Final = frozenset({"__pycache__", ".mypy_cache", ".ruff_cache"})
_COMPILE: Final = ("-s", "-B", "-m", "compileall", "-q", "-j", "1", "--invalidation-mode", "unchecked-hash")
_MODULE: Final = re.compile(r"usr/lib/modules/[^/]+/kernel/(?:.*/)?([A-Za-z0-9_-]+)\.ko\.xz")


@dataclass(frozen=True, slots=True)
class Built:
    """The files of an image by their names, and its document."""

    files: Mapping[str, bytes]
    image: GuestImage


def build(lock: Lock, pool: Pool, note: Callable[[str], None], gpu: GPUFiles | None = None) -> Built:
    """Build an image in memory, with a driver for GPUs if one is given.

    Raises FetchFailed, UsageError, NoDevice and RunError.
    """
    needed = (
        *recipe.SYSTEM,
        recipe.STUB,
        recipe.FIRMWARE,
        f"linux-binary-{lock.kernel}",
        f"linux-modules-{lock.kernel}",
    )
    for name in needed:
        lock.package(name)
    pool.fetch(lock)
    note("unpacking packages")
    unpacked = {item.name: dict(unpack_deb(pool.read(item), item.name)) for item in lock.packages}
    packed = {
        match[1]: node.content
        for path, node in unpacked[f"linux-modules-{lock.kernel}"].items()
        if (match := _MODULE.fullmatch(path))
    }
    early = load_order(recipe.INITRD_MODULES, packed)
    late = load_order(recipe.ROOT_MODULES, packed, optional=True, loaded=early)
    if gpu is not None:
        own_names = {name.replace("-", "_") for name in gpu.modules()}
        wanted = [name for name in needed_by(gpu.modules().values()) if name not in own_names]
        late |= load_order(wanted, packed, optional=True, loaded=[*early, *late])
    own = package_files(Path(adyton.__file__).parent)
    tree = root_tree(
        (unpacked[name].items() for name in recipe.SYSTEM),
        (unpack_wheel(pool.read(item), item.name) for item in lock.wheels),
        own,
        late,
        gpu,
    )
    note("making bytecode, and measuring the runtime")
    runtime = finish_tree(tree)
    note("writing the root file system")
    root = write(tree, epoch=lock.source_date_epoch, identifier=identifier("root", lock.to_bytes() + _named(gpu)))
    salt = hashlib.sha256(b"adyton image/1\0salt" + hashlib.sha256(root).digest()).digest()
    hashes, root_hash = verity.verity_tree(root, salt, identifier("verity", root))
    line = recipe.COMMAND_LINE.format(root=root_hash.hex())
    if gpu is not None:
        line = line.replace(recipe.LOCKDOWN, "")
    initrd = make_initrd(early, line, len(root), verity.table(root_hash, salt, len(root) // verity.BLOCK))
    kernel_image = build_uki(
        _content(unpacked, recipe.STUB, recipe.STUB_FILE),
        linux=_content(unpacked, f"linux-binary-{lock.kernel}", f"usr/lib/modules/{lock.kernel}/vmlinuz"),
        initrd=initrd,
        command_line=line,
        os_release=f'ID=adyton\nNAME="Adyton guest image"\nVERSION_ID="{__version__}"\n',
        kernel=lock.kernel,
    )
    note("writing the disk, and predicting what hardware reports")
    files = {
        "adyton.efi": kernel_image,
        "disk.raw": b"".join(disk_parts(kernel_image, root, hashes)),
        recipe.FIRMWARE_NAME: _content(unpacked, recipe.FIRMWARE, recipe.FIRMWARE_FILE),
        "root.erofs": root,
        "root.verity": hashes,
    }
    inputs = [Input(name=item.name, version=item.version, sha256=item.sha256) for item in lock.packages]
    inputs += [Input(name=item.name, version=item.version, sha256=item.sha256) for item in lock.wheels]
    inputs += [] if gpu is None else gpu.inputs()
    inputs.append(Input(name="adyton", version=__version__, sha256=_digest_of(own)))
    nothing = PEHashes(sha256=bytes(32), sha384=bytes(48))
    told = GuestImage(
        version=__version__,
        source_date_epoch=lock.source_date_epoch,
        inputs=tuple(sorted(inputs, key=lambda item: item.name)),
        files={},
        verity=Verity(root_hash=Digest(root_hash), salt=salt, data_blocks=len(root) // verity.BLOCK),
        command_line=line,
        runtime=runtime,
        uki=nothing,
        linux=nothing,
        pcrs={},
    )
    measured = measure(files, told)
    if measured.problems:
        raise RunError(f"the image that was built does not fit together: {'; '.join(measured.problems)}")
    tdx, snp = firmware_entries(
        kernel_image, measured.predicted, recipe.FIRMWARE_NAME, files[recipe.FIRMWARE_NAME], VCPUS
    )
    return Built(files, replace(measured.image, tdx=tuple(tdx), snp=tuple(snp)))


def _named(gpu: GPUFiles | None) -> bytes:
    """What an image's identifier says of its driver for GPUs. Nothing where it has none."""
    return b"" if gpu is None else b"".join(item.sha256.raw for item in gpu.inputs())


def _content(unpacked: Mapping[str, Mapping[str, Node]], package: str, path: str) -> bytes:
    """A file of a package. Raises UsageError where the package does not have it."""
    if path not in unpacked[package]:
        raise UsageError(
            f"the package {package} has no {path}",
            check=f"package {package}",
            expected=path,
            seen="nothing of that name",
            remedy="the package changed: adyton/image/recipe.py has to follow",
        )
    return unpacked[package][path].content


def write_image(built: Built, folder: Path) -> None:
    """Write an image into a folder. `image.json` comes last: a folder without it is not whole. Raises StorageFailed."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "image.json").unlink(missing_ok=True)
    for name, content in built.files.items():
        write_file(folder / name, content)
    write_file(folder / "image.json", built.image.to_bytes())


def package_files(folder: Path) -> dict[str, bytes]:
    """The files of this Adyton by their names below its folder, without caches."""
    found = {}
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(set(folders) - _SKIPPED)
        for name in sorted(names):
            path = Path(parent, name)
            found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return found


def finish_tree(tree: Node) -> dict[str, Digest]:
    """Have the image's own Python compile its modules into the tree. Gives the parts of the runtime's identity.

    Raises NoDevice where bubblewrap is missing, and RunError where it fails.
    """
    with tempfile.TemporaryDirectory(prefix="adyton-image-") as temporary:
        folder = Path(temporary)
        for path, node in walk(tree):
            _write_node(folder / path, node)
        _inside(
            folder,
            [*_COMPILE, f"/{recipe.STANDARD_LIBRARY}", f"/{recipe.PACKAGES_FOLDER}"],
        )
        for cache in sorted(folder.glob("usr/lib/**/__pycache__/*.pyc")):
            place(tree, cache.relative_to(folder).as_posix(), Node.file(cache.read_bytes()))
        code = (
            "import json\nfrom adyton.runtime.identity import runtime_identity\n"
            "print(json.dumps({name: digest.hex() for name, digest in runtime_identity().parts.items()}))"
        )
        told = _inside(folder, ["-I", "-B", "-c", code])
    return {name: Digest.from_hex(value) for name, value in json.loads(told).items()}


def make_initrd(modules: Mapping[str, bytes], command_line: str, root_bytes: int, table: str) -> bytes:
    """The initrd: the first program, and what `_init.c` says that it reads. Raises NoDevice without the program.

    It is not compressed: another version of a compressor would make other bytes.
    """
    files = {f"modules.d/{name}.ko": (0o644, content) for name, content in modules.items()}
    files |= {
        "init": (0o755, init_program()),
        "command-line": (0o644, command_line.encode("ascii")),
        "modules": (0o644, "".join(f"/modules.d/{name}.ko\n" for name in modules).encode("ascii")),
        "verity": (0o644, f"{root_bytes // 512}\n{table}\n".encode("ascii")),
    }
    return archive(dict.fromkeys(("dev", "proc", "sys", "system", "modules.d"), 0o755), files)


def init_program() -> bytes:
    """The first program (`_init.c`). Raises NoDevice where it was not built, because there was no compiler."""
    spec = importlib.util.find_spec("adyton.image._init")
    if spec is None or spec.origin is None:
        raise NoDevice(
            "the C parts of this Adyton were not built",
            check="first program of the image",
            expected="adyton/image/_init",
            seen="nothing",
            remedy="install Adyton where a C compiler is, or from a wheel",
        )
    return Path(spec.origin).read_bytes()


def _write_node(path: Path, node: Node) -> None:
    if node.is_folder:
        path.mkdir(parents=True, exist_ok=True)
    elif node.mode & 0o170000 == 0o120000:
        path.symlink_to(node.content.decode())
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(node.content)
        path.chmod(node.mode & 0o777)


def _inside(folder: Path, words: list[str]) -> str:
    """What the image's Python prints, run on the tree without network, and without this machine's files."""
    command = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--clearenv", "--bind", str(folder), "/"]
    command += ["--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp", "--setenv", "PATH", "/usr/bin"]  # noqa: S108
    command += ["--setenv", "LANG", "C.UTF-8", "--setenv", "PYTHONHASHSEED", "0", "--", "/usr/bin/python3", *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except FileNotFoundError as error:
        raise NoDevice(
            "bubblewrap is not installed", check="bubblewrap", expected="bwrap", seen="nothing", remedy="install it"
        ) from error
    if done.returncode != 0:
        raise RunError(
            f"the image's own Python failed: {(done.stderr or done.stdout).strip()[-800:]}",
            check="image's Python in bubblewrap",
            expected="exit code 0",
            seen=str(done.returncode),
            remedy="an image is built on a machine with x86-64 processors whose users may make namespaces",
        )
    return done.stdout


def _digest_of(files: Mapping[str, bytes]) -> Digest:
    """One digest over files: of each, in the order of names, the name and the SHA-256."""
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        encoded = name.encode("utf-8", "surrogateescape")
        digest.update(len(encoded).to_bytes(4, "big") + encoded + hashlib.sha256(content).digest())
    return Digest(digest.digest())
