"""A manifest's program is run in a guest image: packed, booted, and its outputs put where a run here leaves them.

The machine that does this is the host. To the guest it is the adversary, and it gets no key. To the host the guest is a
stranger: what comes out is put only where the manifest has the program write, encrypted.
"""

from __future__ import annotations

import ipaddress
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from adyton.address import address_text, parse_address
from adyton.atomic_file import atomic_target, check_no_link, is_part
from adyton.capped_read import read_capped
from adyton.errors import MalformedManifest, ScriptFailed, UsageError
from adyton.image import guest_result
from adyton.image.guest import ENDED, SAYS, STARTING, STATUS_MEMBER
from adyton.image.guest_settings import MEMBER, GuestSettings, Network
from adyton.manifest.open_folders import is_below
from adyton.manifest.signed import read_signed
from adyton.os_failure import storage_failed
from adyton.pack_archive import HOST, SUFFIX, WORK, Item, unpack, write_pack
from adyton.pfile.backing import RECOVERY_SUFFIX
from adyton.pfile.paths import normalise
from adyton.pfile.side_files import ROOTS_SUFFIX
from adyton.runtime.run_plan import log_plan
from adyton.sim.files import platform_directory
from adyton.workflow.guest_image import read_image, runtime_of
from adyton.workflow.image import DOCUMENT, Boot, boot_image, printed_boot
from adyton.workflow.pack import pack
from adyton.workflow.progress import unheard
from adyton.workflow.run import Ran

if TYPE_CHECKING:
    from adyton.manifest.model import Manifest
    from adyton.manifest.signed import SignedManifest
    from adyton.workflow.progress import Notice
    from adyton.workflow.run import Request

OUTPUT_BYTES: Final = 8 << 30
"""Size of the disk for outputs. It is a sparse file."""
_NAME: Final = "run"
"""Name of the pack in the guest."""
_HERE: Final = "10.0.2.2"
"""This machine, as a guest of QEMU's user network sees it."""
_NETWORK: Final = Network(
    ipaddress.IPv4Interface("10.0.2.15/24"), ipaddress.IPv4Address(_HERE), (ipaddress.IPv4Address("10.0.2.3"),)
)
_LEAST_MIB: Final = 2048
_GUESTS: Final = {"sim-tpm": "tpm", "tdx": "tdx", "snp": "snp"}
"""TEE of a run -> what the guest calls it."""
_MAX_TOLD: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestRun:
    """What is to be run, and the machine for it."""

    request: Request
    image: Path
    """Folder of an image, as `adyton image build` wrote it."""
    firmware: Path | None = None
    kvm: bool = False
    memory_mib: int | None = None
    """None: as much as the files need, and 2 GiB at least."""
    vcpus: int = 1
    timeout_s: float = 600.0
    """How long the machine may take until the program starts."""


def printed_run(run: GuestRun) -> str:
    """QEMU's command line for this run, for a shell. Nothing is written or started. Raises UsageError.

    It names two disks: inputs.raw and outputs.raw.
    """
    _check(run.request)
    return printed_boot(_boot(run, Path(), run.memory_mib or _LEAST_MIB))


def run_in_guest(
    run: GuestRun, notice: Notice = unheard, *, console: Notice = unheard, printed: Notice = unheard
) -> Ran:
    """Boot the image with the packed manifest, wait for its end, and put the outputs into their places.

    `console` gets each line of the guest's console, `printed` those that the program itself printed there, which it
    does only where its manifest says insecure__stdio. Raises UsageError, ManifestError, NoDevice, RunError where the
    guest did not start the program, and MalformedManifest for outputs in another form. Nothing stays of a run that
    failed so or was interrupted. A program that failed is told by the result.
    """
    _check(run.request)
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="adyton-run-") as temporary:
        share, out = Path(temporary, "share"), Path(temporary, "out")
        share.mkdir()
        out.mkdir()
        signed, base = _write_pack(run, share / f"{_NAME}{SUFFIX}", notice)
        (share / MEMBER).write_bytes(_settings(run.request).to_bytes())
        size = (share / f"{_NAME}{SUFFIX}").stat().st_size
        seen = Console(console, printed, programs=signed.manifest.adyton.insecure_stdio)
        names = boot_image(
            replace(_boot(run, share, run.memory_mib or _memory_mib(size)), outputs=out),
            seen.line,
        )
        if STATUS_MEMBER not in names:
            raise MalformedManifest(
                "the guest wrote outputs that do not say how the run ended",
                check=STATUS_MEMBER,
                expected="the last file of the outputs",
                seen="none",
                remedy="run the approved image: another guest wrote this",
            )
        result = guest_result.parse_result(
            read_capped(out / STATUS_MEMBER, guest_result.MAX_BYTES, "result of the guest", too_large=MalformedManifest)
        )
        _take_back(out / _NAME / WORK, base, _written(signed.manifest), result.removed)
        _tell_others(names, _written(signed.manifest), notice)
    log = log_plan(signed.manifest)
    return Ran(
        tee=str(run.request.tee),
        measurement=signed.measurement.hex(),
        exit_code=result.exit_code,
        seconds={"machine": time.monotonic() - started_s},
        log=None if log is None else str(base / log.source),
        log_key=None if log is None else log.key_name,
    )


def require(ran: Ran) -> None:
    """Raise ScriptFailed where `adyton run` in the guest ended with another exit code than 0."""
    if ran.exit_code:
        raise ScriptFailed(
            f"the run in the guest ended with exit code {ran.exit_code}",
            status=ran.exit_code,
            remedy="the console above says whether the program or Adyton ended so"
            + ("" if ran.log is None else f"; the program's log, if it started: {ran.log_command}"),
        )


class Console:
    """The console of a guest, line by line: what the program printed is told apart from what all others did.

    The guest says when the program starts and ends. In between, lines of Adyton begin with `adyton: `. It is one stream
    of an untrusted machine, so this is for people to read, and nothing depends on it.
    """

    def __init__(self, console: Callable[[str], None], printed: Callable[[str], None], *, programs: bool) -> None:
        self._console, self._printed, self._programs = console, printed, programs
        self._running = False

    def line(self, text: str) -> None:
        """Take the next line."""
        if text.startswith(SAYS + ENDED):
            self._running = False
        if self._programs and self._running and not text.startswith("adyton: "):
            self._printed(text)
        else:
            self._console(text)
        if is_start(text):
            self._running = True


def is_start(line: str) -> bool:
    """Whether this line of a guest's console says that the program is being started."""
    return line.startswith(SAYS + STARTING + " ")


def _check(request: Request) -> None:
    if request.tee not in _GUESTS:
        raise UsageError(
            "a guest image runs under other TEEs",
            check="--tee with --vm",
            expected="tdx or snp on such a host; sim-tpm anywhere, which protects nothing",
            seen=request.tee or "nothing",
            remedy="name one of these; inside a machine of a cloud use adyton run without --vm",
        )
    not_passed_on = {
        "--provisioning": request.provisioning != "adyton",
        "--grants": request.grants is not None,
        "--gpu-collateral": request.gpu_collateral is not None,
        "--agreement": bool(request.agreements),
        "--receipt": request.receipt is not None,
        "--receipt-plaintext": request.receipt_plaintext,
        "--after": bool(request.after),
    }
    seen = [name for name, given in not_passed_on.items() if given]
    if seen:
        raise UsageError(
            f"{', '.join(seen)}: not passed on to a guest, whose settings have no place for that",
            check="options beside --vm",
            expected=f"none of {', '.join(not_passed_on)}",
            seen=", ".join(seen),
            remedy="leave it out, or use adyton run without --vm inside a confidential machine; `adyton audit list` of"
            " the key server's owner shows the grants",
        )


def _boot(run: GuestRun, share: Path, memory_mib: int) -> Boot:
    simulated = run.request.tee == "sim-tpm"
    return Boot(
        folder=run.image,
        share=share,
        tpm=simulated,
        sim_platform=platform_directory(run.request.sim_platform) if simulated else None,
        firmware=run.firmware,
        tee=None if simulated else run.request.tee,
        kvm=run.kvm,
        memory_mib=memory_mib,
        vcpus=run.vcpus,
        timeout_s=run.timeout_s,
        until=is_start,
        output_bytes=OUTPUT_BYTES,
    )


def _memory_mib(pack_bytes: int) -> int:
    """Memory for a pack: itself and its files in at most half of it, its files once more in the run, and the rest."""
    return _LEAST_MIB + 4 * (pack_bytes >> 20)


def _settings(request: Request) -> GuestSettings:
    return GuestSettings(
        f"{_NAME}{SUFFIX}",
        _GUESTS[str(request.tee)],
        tuple(_seen_from_guest(server) for server in request.key_servers),
        request.arguments,
        _NETWORK,
    )


def _seen_from_guest(server: str) -> str:
    """A key server's address as the guest reaches it: this machine has another address there."""
    owner, equals, written = server.rpartition("=")
    host, port = parse_address(written, "--key-server")
    local = host == "localhost"
    with suppress(ValueError):
        local = local or ipaddress.ip_address(host).is_loopback
    return owner + equals + (address_text((_HERE, port)) if local else written)


def _write_pack(run: GuestRun, target: Path, notice: Notice) -> tuple[SignedManifest, Path]:
    """Write the pack for the guest. Gives the manifest, and the folder where the program's paths begin.

    A pack is unpacked beside itself, as a run here does, and what lies there now goes into the guest. So a second run
    goes on where the first one ended.
    """
    document = run.image / DOCUMENT
    runtime = runtime_of(read_image(document)).digest
    if run.request.manifest.suffix != SUFFIX:
        signed = read_signed(run.request.manifest, runtime)
        _check_manifest(signed.manifest)
        pack(run.request.manifest, target, runtime=document, sim_platform=run.request.sim_platform)
        return signed, Path()
    folder = run.request.manifest.absolute().with_suffix("")
    index = unpack(run.request.manifest, folder).index
    notice(f"the pack is unpacked to {folder}; what the program writes is in {folder / WORK}")
    signed = read_signed(folder / WORK / index.manifest, runtime)
    _check_manifest(signed.manifest)
    items, folders = [], []
    for name, path in _below(folder):
        if path.is_file():
            items.append(Item(name, path))
        else:
            folders.append(name)
    write_pack(target, items, manifest=index.manifest, folders=folders, readme="A pack for one run in a guest.\n")
    return signed, folder / WORK


def _check_manifest(manifest: Manifest) -> None:
    if manifest.allowed_files:
        raise UsageError(
            "this program reads or writes files of the host in clear, and a guest has none of them",
            check="sgx.allowed_files with --vm",
            expected="none",
            seen=", ".join(manifest.allowed_files[:_MAX_TOLD]),
            remedy="use an encrypted mount instead",
        )


def _below(folder: Path) -> Iterator[tuple[str, Path]]:
    """Name and path of every file and every empty folder of an unpacked pack. Links and unfinished files are none."""
    for top in (WORK, HOST):
        for parent, folders, names in os.walk(folder / top):
            for name in names:
                path = Path(parent, name)
                if not path.is_symlink() and not is_part(name):
                    yield path.relative_to(folder).as_posix(), path
            if not folders and not names and Path(parent) != folder / top:
                yield Path(parent).relative_to(folder).as_posix(), Path(parent)


def _written(manifest: Manifest) -> tuple[str, ...]:
    """What a run may write, relative to its folder: encrypted mounts, histories of pinned ones, and the log."""
    read_only = {normalise(path) for path in manifest.adyton.read_only}
    found = [
        normalise(mount.host_path or "")
        for mount in manifest.encrypted_mounts
        if normalise(mount.path) not in read_only
    ]
    log = log_plan(manifest)
    if log is not None:
        found.append(log.source)
    pinned = [normalise(mount.host_path or "") for mount in manifest.encrypted_mounts if mount.pinned]
    return (*found, *(name + RECOVERY_SUFFIX for name in found if name), *(name + ROOTS_SUFFIX for name in pinned))


def _may(name: str, written: tuple[str, ...]) -> bool:
    return "" in written or is_below(name, written)


def _take_back(source: Path, base: Path, written: tuple[str, ...], removed: tuple[str, ...]) -> None:
    """Put the outputs below `source` into their places below `base`, and take away what the program removed."""
    inside = f"{_NAME}/{WORK}/"
    gone = [name.removeprefix(inside) for name in removed if name.startswith(inside)]
    for name in gone:
        if _may(name, written):
            _no_links(base, name)
            target = base / name
            if target.is_file():
                target.unlink()
    for parent, _, names in os.walk(source):
        for path in (Path(parent, name) for name in names):
            name = path.relative_to(source).as_posix()
            if not _may(name, written):
                continue
            _no_links(base, name)
            try:
                with (
                    path.open("rb") as content,
                    atomic_target(base / name, force=True) as fd,
                    open(fd, "wb", closefd=False) as sink,
                ):
                    shutil.copyfileobj(content, sink)
            except OSError as error:
                raise storage_failed(error, str(base / name), "writing") from error


def _no_links(base: Path, name: str) -> None:
    for above in Path(name).parents[:-1]:
        check_no_link(base / above)


def _tell_others(names: list[str], written: tuple[str, ...], notice: Notice) -> None:
    """Name what the guest wrote elsewhere: an approved guest never does."""
    inside = f"{_NAME}/{WORK}/"
    strange = [
        name
        for name in names
        if name.startswith(f"{_NAME}/") and not (name.startswith(inside) and _may(name.removeprefix(inside), written))
    ]
    if strange:
        shown = ", ".join(strange[:_MAX_TOLD])
        notice(f"{len(strange)} files of the guest were left out, since the program may not write there: {shown}")
