"""The disks of a guest without a shared folder: write the one with its inputs, read the one with its outputs."""

from __future__ import annotations

import ipaddress
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from adyton.capped_read import read_capped
from adyton.errors import TargetExists, UsageError
from adyton.image.guest_disks import pack_inputs, unpack_outputs
from adyton.image.guest_settings import DHCP, MAX_BYTES, MEMBER, GuestSettings, Network, parse_settings
from adyton.os_failure import storage_failed
from adyton.pack_archive import SUFFIX

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from adyton.image.plain_archive import Source

MEMORY_FACTOR: Final = 4
"""A guest's memory, in sizes of its inputs: the archive, what a pack in it unpacks to, and what the program reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestNetwork:
    """A guest's network as a command line says it. Without an address, the guest asks by DHCP."""

    address: str | None = None
    gateway: str | None = None
    name_servers: Sequence[str] = ()

    def to_network(self) -> Network | DHCP:
        """The network. Raises UsageError for what is no IPv4 address, and for a gateway without an address."""
        servers = tuple(_ipv4(text, "--name-server") for text in self.name_servers)
        if self.address is None:
            if self.gateway is not None:
                raise UsageError("a gateway without an address", check="--gateway", expected="--address", seen="none")
            return DHCP(servers or None)
        gateway = None if self.gateway is None else _ipv4(self.gateway, "--gateway")
        try:
            own = ipaddress.IPv4Interface(self.address)
        except ValueError as error:
            raise _no_address("--address", self.address) from error
        return Network(own, gateway, servers)


def settings_for(
    source: Path,
    file: Path | None = None,
    *,
    tee: str | None = None,
    key_servers: Sequence[str] = (),
    arguments: Sequence[str] = (),
    network: GuestNetwork | None = None,
    hosts: Mapping[str, str] | None = None,
) -> GuestSettings:
    """The settings of a guest: those of `file`, those in the folder `source`, or, for a pack, made from the others.

    Raises UsageError and MalformedManifest.
    """
    if file is None and (source / MEMBER).is_file():
        file = source / MEMBER
    if file is not None:
        if tee or key_servers or arguments or network or hosts:
            raise UsageError(
                f"{file} has all settings of the guest",
                check="settings of the guest",
                expected="a file, or options",
                seen="both",
                remedy=f"write them into {file}",
            )
        return read_settings(file)
    if source.is_dir() or source.suffix != SUFFIX:
        raise UsageError(
            f"{source} is no pack, and nothing says what to run",
            check="settings of the guest",
            expected=f"a pack (NAME{SUFFIX}), or a folder with {MEMBER}, or --settings FILE",
            seen=str(source),
            remedy=f"make a pack with `adyton pack NAME.manifest --runtime image.json`, or write {MEMBER}",
        )
    if tee is None:
        raise UsageError("nothing says where the guest will run", check="--tee", expected="--tee TEE", seen="none")
    wanted = GuestSettings(
        manifest=source.name,
        tee=tee,
        key_servers=tuple(key_servers),
        arguments=tuple(arguments),
        network=(network or GuestNetwork()).to_network(),
        hosts={name: _ipv4(text, "--host") for name, text in (hosts or {}).items()},
    )
    return parse_settings(wanted.to_bytes())


def read_settings(path: Path) -> GuestSettings:
    """The settings of a guest in a file. Raises UsageError where it cannot be read, and MalformedManifest."""
    return parse_settings(read_capped(path, MAX_BYTES, "settings of the guest", unreadable=UsageError))


def write_input_disk(source: Path, target: Path, settings: GuestSettings, *, force: bool = False) -> int:
    """Write a guest's settings and a pack, or a folder of files, to a disk, as `adyton image disk` does.

    Gives its size in bytes. Raises UsageError, MalformedManifest, TargetExists and StorageFailed.
    """
    with _os_errors(target, "writing"):
        return pack_inputs(settings, source, target, force=force)


@contextmanager
def open_output_disk(path: Path, pipe: Source) -> Iterator[Source]:
    """A disk for outputs, opened; `-` is the pipe. Raises StorageFailed."""
    if str(path) == "-":
        yield pipe
        return
    with _os_errors(path, "reading"), path.open("rb", buffering=1 << 20) as stream:
        yield stream


def read_output_disk(stream: Source, folder: Path) -> list[str]:
    """Unpack what a guest wrote into a new or empty folder, as `adyton image outputs` does. Gives the names.

    `stream` is the disk from its start. Whoever wrote it chose the names, so nothing that is there already may be
    replaced. At most so much is taken as the folder's file system has free. Raises TargetExists, MalformedManifest,
    RunError where the guest wrote nothing, and StorageFailed.
    """
    with _os_errors(folder, "unpacking"):
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise TargetExists(
                f"{folder} is not empty",
                check="folder for outputs",
                expected="a new or an empty folder",
                seen="files",
                remedy="name another folder: the names of the outputs are the guest's, and would replace files",
            )
        return unpack_outputs(stream, shutil.disk_usage(folder).free, folder)


@contextmanager
def _os_errors(path: Path, doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise storage_failed(error, str(error.filename or path), doing) from error


def _ipv4(text: str, option: str) -> ipaddress.IPv4Address:
    try:
        return ipaddress.IPv4Address(text)
    except ValueError as error:
        raise _no_address(option, text) from error


def _no_address(option: str, text: str) -> UsageError:
    return UsageError("this is no IPv4 address", check=option, expected="an address, as 10.0.0.4", seen=text[:80])
