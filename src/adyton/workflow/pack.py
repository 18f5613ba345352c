"""One file that carries an approved program to the machine that runs it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from adyton import __version__
from adyton.atomic_file import check_absent, is_part
from adyton.capped_read import read_prefix
from adyton.errors import NotProtectedFile, StorageFailed, UsageError
from adyton.keystore.home import default_home
from adyton.manifest.open_folders import SYSTEM, is_below
from adyton.manifest.signed import read_signed, signature_path
from adyton.pack_archive import HOST, SUFFIX, WORK, Item, write_pack
from adyton.pfile.backing import RECOVERY_SUFFIX
from adyton.pfile.layout import NODE_BYTES, parse_envelope
from adyton.pfile.paths import normalise
from adyton.pfile.side_files import ROOTS_SUFFIX
from adyton.roots.journal import journal_of
from adyton.runtime.gramine_backend import stem_of
from adyton.sim.files import platform_directory
from adyton.storage.trees import JOURNAL
from adyton.workflow.guest_image import read_image, runtime_of

if TYPE_CHECKING:
    from adyton.manifest.model import Manifest

_FOR_GRAMINE: Final = (".manifest", ".manifest.sgx", ".sig", "-ca.crt", "-hosts")


@dataclass(frozen=True, slots=True)
class Packed:
    """The pack that was written."""

    pack: Path
    measurement: str
    files: int
    size_bytes: int
    left_out: int
    """So many trusted files of the system are not in it: the other machine must have them."""
    absent: tuple[str, ...]
    """Encrypted inputs that are not on this machine."""

    def to_dict(self) -> dict[str, Any]:
        """As `adyton pack --json` says it."""
        return {
            "pack": str(self.pack),
            "measurement": self.measurement,
            "files": self.files,
            "size_bytes": self.size_bytes,
            "left_out": self.left_out,
            "absent": list(self.absent),
        }


def pack(
    manifest: str | Path,
    target: str | Path | None = None,
    *,
    system: bool = True,
    force: bool = False,
    runtime: Path | None = None,
    home: Path | None = None,
    sim_platform: Path | None = None,
) -> Packed:
    """Write NAME.adyton: manifest, signature, trusted files and ciphertext, for `adyton run NAME.adyton` elsewhere.

    Call it in the folder where the manifest was built. Without `system` the files below /usr, /lib, /etc and their like
    are left out: the other machine must have the same. `runtime` is the image.json of the guest image for which the
    manifest was built. It never holds a key: files in `home` and in `sim_platform` are
    refused, and what lies in an encrypted mount without being encrypted is. Raises ManifestError, BadSignature,
    UsageError, NotProtectedFile, DigestMismatch, TargetExists and StorageFailed.
    """
    path = Path(manifest)
    signed = read_signed(path, runtime_of(None if runtime is None else read_image(runtime)).digest)
    target = check_target(path.with_suffix(SUFFIX) if target is None else Path(target), force=force)
    private = [os.path.realpath(folder) for folder in (home or default_home(), platform_directory(sim_platform))]
    found = {f"{WORK}/{each.name}": Item(f"{WORK}/{each.name}", each) for each in _own_files(path)}
    left_out = 0
    for entry in signed.manifest.trusted_files:
        source = normalise(entry.host_path)
        if not system and is_below(source, SYSTEM):
            left_out += 1
            continue
        name = _name_of(source, "trusted file")
        found[name] = Item(name, Path(source), None if entry.sha256 is None else entry.sha256.raw)
    folders, absent = set[str](), []
    for source, is_input in _encrypted(signed.manifest):
        name = _name_of(source, "encrypted mount")
        if Path(source or ".").is_dir():
            folders |= {f"{name}/{below}".rstrip("/") for below in _empty_folders(source)}
            found |= {f"{name}/{below}": _item(f"{name}/{below}", Path(source, below)) for below in _sealed_in(source)}
            history = journal_of(source)
            if source and os.path.lexists(history):
                found[f"{name}{ROOTS_SUFFIX}"] = Item(f"{name}{ROOTS_SUFFIX}", history)
        elif os.path.lexists(source):
            found[name] = _item(name, _sealed(Path(source)))
        elif is_input:
            absent.append(source)
    for item in found.values():
        if is_below(os.path.realpath(item.path), private):
            raise UsageError(
                f"{item.path} belongs to the owner's own folders, which hold keys",
                check="files of the pack",
                expected="no file of the owner's home or of a simulated platform",
                seen=str(item.path),
                remedy="take it out of the manifest",
            )
    name = target.name.removesuffix(SUFFIX)
    contents = write_pack(
        target,
        found.values(),
        manifest=path.name,
        folders=folders,
        readme=(
            f"To run it, with Adyton {__version__}: adyton run {target.name} --tee TEE --key-server HOST:PORT\n"
            f"It brings no key and no secret; its owner knows it as {signed.measurement}.\n"
            f"It runs in {name}/{WORK}. What it wrote is there, encrypted: send it back to the owner.\n"
        ),
        force=force,
    )
    return Packed(target, str(signed.measurement), contents.files, contents.size_bytes, left_out, tuple(absent))


def check_target(target: Path, *, force: bool) -> Path:
    """The file for a pack. Raises UsageError for another name, TargetExists without `force`."""
    if target.suffix != SUFFIX:
        raise UsageError(
            f"the name of a pack ends in {SUFFIX}", check="-o, --pack", expected=f"NAME{SUFFIX}", seen=str(target)
        )
    if not force:
        check_absent(target)
    return target


def _own_files(manifest: Path) -> Iterator[Path]:
    """The manifest, its signature, and what was prepared for Gramine."""
    yield manifest
    yield signature_path(manifest)
    stem = stem_of(manifest)
    yield from (each for suffix in _FOR_GRAMINE if (each := stem.with_name(stem.name + suffix)).exists())


def _name_of(source: str, what: str) -> str:
    """The name in the pack of a normalised path of the host."""
    if source.startswith("/"):
        if what == "trusted file":
            return HOST + source
    elif source != ".." and not source.startswith("../"):
        return f"{WORK}/{source}".rstrip("/")
    raise UsageError(
        f"{what} {source} lies outside the folder that is packed",
        check=f"place of the {what}",
        expected="a path below the current folder",
        seen=source,
        remedy="move it below this folder, and build the manifest again",
    )


def _encrypted(manifest: Manifest) -> Iterator[tuple[str, bool]]:
    """(normalised path on the host, whether it is an input that is only read) of each encrypted mount."""
    read_only = {normalise(path) for path in manifest.adyton.read_only}
    for mount in manifest.encrypted_mounts:
        yield normalise(mount.host_path or ""), normalise(mount.path) in read_only


def _empty_folders(source: str) -> Iterator[str]:
    for folder, below, names in os.walk(source or "."):
        if not below and not names:
            relative = os.path.relpath(folder, source or ".")
            yield "" if relative == "." else relative


def _sealed_in(source: str) -> Iterator[str]:
    """The protected files below a folder of ciphertext, relative to it. Raises NotProtectedFile for any other."""
    for folder, below, names in os.walk(source or ".", onerror=_unreadable):
        for name in names:
            if name != JOURNAL and not is_part(name):
                yield os.path.relpath(_sealed(Path(folder, name)), source or ".")
        for name in below:
            if Path(folder, name).is_symlink():
                _sealed(Path(folder, name))


def _unreadable(error: OSError) -> None:
    raise StorageFailed(f"{error.filename} cannot be read: {error.strerror}", check="encrypted files") from error


def _sealed(path: Path) -> Path:
    """The path of a protected file. Raises NotProtectedFile where it is something else, above all plaintext."""
    if path.is_symlink() or not path.is_file() or path.name.endswith(RECOVERY_SUFFIX):
        raise NotProtectedFile(
            f"{path} is a link, a device, or what an interrupted write left",
            check="files in encrypted mounts",
            expected="protected files",
            seen=str(path),
            remedy="take links and devices away; `adyton mount` undoes an interrupted write",
        )
    try:
        head = read_prefix(path, NODE_BYTES)
    except OSError as error:
        raise StorageFailed(f"{path} cannot be read: {error.strerror}", check="encrypted files") from error
    _check_head(path, head)
    return path


def _item(name: str, path: Path) -> Item:
    """Ciphertext for the pack. It is looked at again once it is open: its name may lead elsewhere by then."""
    return Item(name, path, check=partial(_check_head, path))


def _check_head(path: Path, head: bytes) -> None:
    try:
        parse_envelope(head)
    except NotProtectedFile as error:
        raise NotProtectedFile(
            f"{path} is not encrypted, and was not packed",
            check="files in encrypted mounts",
            expected="protected files",
            seen="plaintext, or another format",
            remedy="encrypt it (`adyton encrypt`), or take it away",
        ) from error
