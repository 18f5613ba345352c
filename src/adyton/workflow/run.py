"""A program is run in a TEE, with its keys released by attestation.

Whoever holds keys must run nothing but what is measured: Adyton, its libraries, Python. `run_here` is for the command
line, whose process is just that. `run` is for programs that have other code loaded, a notebook for example: it starts a
fresh interpreter, which calls `run_here`, and which alone forks the keeper.
"""

from __future__ import annotations

import base64
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from adyton.errors import Error, RunError, ScriptFailed, StorageFailed, TargetExists, UsageError
from adyton.os_failure import storage_failed
from adyton.workflow.progress import unheard

if TYPE_CHECKING:
    from adyton.attest.devices import Device
    from adyton.attest.nvidia.collateral import GPUCollateral
    from adyton.gpu_nodes import DeviceNode
    from adyton.manifest.model import TrustedFile
    from adyton.manifest.signed import SignedManifest
    from adyton.release.client import GrantInfo, Released
    from adyton.release.run_key import RunKey
    from adyton.runtime.ingress_process import Doors
    from adyton.runtime.keeper import Delivered
    from adyton.runtime.pinned import GivenRoots
    from adyton.runtime.receipt_maker import ReceiptMaker
    from adyton.runtime.run_plan import Plan
    from adyton.tee.gpu_source import GPUSource
    from adyton.tee.source import QuoteSource
    from adyton.typed_document import TypedDocument
    from adyton.workflow.progress import Notice

PROVISIONING: Final = ("adyton", "ra-tls")
UNDER_GRAMINE: Final = ("sgx", "gramine-direct")
SUFFIX: Final = ".adyton"
"""Of a pack's name (`adyton.pack_archive`, which only a run of a pack imports)."""
_SIMULATED: Final = ("sim", "sim-tdx", "sim-tpm")
_MAX_WORDS_BYTES: Final = 1 << 20
_MAX_REPORT_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is to be run, where, and who is asked for its keys."""

    manifest: Path
    """NAME.manifest, or a pack: NAME.adyton."""
    tee: str | None = None
    key_servers: tuple[str, ...] = ()
    """HOST:PORT, or OWNER=HOST:PORT for each of several owners."""
    sim_platform: Path | None = None
    provisioning: str = "adyton"
    grants: Path | None = None
    gpu_collateral: Path | None = None
    """RIMs and OCSP answers, with which the guest verifies its GPUs: a file or a folder."""
    agreements: tuple[str, ...] = ()
    """Ids of the agreements that approvals of the keys rest on."""
    receipt: Path | None = None
    """Where the receipt of the run goes."""
    receipt_plaintext: bool = False
    """Whether the receipt names SHA-256 values of plaintexts."""
    after: tuple[Path, ...] = ()
    """Receipts of runs that made inputs of this one."""
    arguments: tuple[str, ...] = ()

    def to_json(self) -> str:
        """For the process that carries it out."""
        return json.dumps(
            {
                "manifest": str(self.manifest),
                "tee": self.tee,
                "key_servers": self.key_servers,
                "sim_platform": None if self.sim_platform is None else str(self.sim_platform),
                "provisioning": self.provisioning,
                "grants": None if self.grants is None else str(self.grants),
                "gpu_collateral": None if self.gpu_collateral is None else str(self.gpu_collateral),
                "agreements": self.agreements,
                "receipt": None if self.receipt is None else str(self.receipt),
                "receipt_plaintext": self.receipt_plaintext,
                "after": [str(path) for path in self.after],
                "arguments": self.arguments,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Request:
        """The request as `to_json` wrote it."""
        found = json.loads(text)
        return cls(
            manifest=Path(found["manifest"]),
            tee=found["tee"],
            key_servers=tuple(found["key_servers"]),
            sim_platform=None if found["sim_platform"] is None else Path(found["sim_platform"]),
            provisioning=found["provisioning"],
            grants=None if found["grants"] is None else Path(found["grants"]),
            gpu_collateral=None if found["gpu_collateral"] is None else Path(found["gpu_collateral"]),
            agreements=tuple(found["agreements"]),
            receipt=None if found["receipt"] is None else Path(found["receipt"]),
            receipt_plaintext=found["receipt_plaintext"],
            after=tuple(map(Path, found["after"])),
            arguments=tuple(found["arguments"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """How a program ended: its exit status (128 + n where signal n ended it), and what happened on the way."""

    tee: str
    measurement: str
    exit_code: int
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Seconds of each phase."""
    events: tuple[str, ...] = ()
    """What went wrong without ending the run."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Further members of the report, as `grants`: what each key server granted."""
    log: str | None = None
    """The file that holds what the program printed, encrypted; None where it has no log."""
    log_key: str | None = None
    """The name of its key."""

    @property
    def simulated(self) -> bool:
        """Whether the TEE was a simulated one, which protects nothing."""
        return self.tee in _SIMULATED

    @property
    def log_command(self) -> str | None:
        """The command by which the owner reads the log."""
        return None if self.log is None else f"adyton decrypt {self.log} -o - --key {self.log_key}"

    def require(self) -> None:
        """Raise ScriptFailed where the exit status is not 0."""
        if not self.exit_code:
            return
        status = self.exit_code
        how = f"was ended by signal {status - 128}" if status > 128 else f"ended with exit code {status}"
        if self.log is None:
            raise ScriptFailed(f"the program {how}", status=status)
        where = f"what it printed is in {self.log}, encrypted"
        remedy = f"its owner reads it with: {self.log_command}"
        raise ScriptFailed(f"the program {how}; {where}", status=status, remedy=remedy)

    def to_dict(self) -> dict[str, Any]:
        """As `adyton run --json` says it."""
        return {
            "tee": self.tee,
            "simulated": self.simulated,
            "measurement": self.measurement,
            "exit_code": self.exit_code,
            "seconds": dict(self.seconds),
            "events": list(self.events),
            **self.facts,
        }


def run(
    manifest: str | Path,
    *arguments: str,
    tee: str,
    key_servers: str | Sequence[str] | Mapping[str, str] = (),
    sim_platform: Path | None = None,
    provisioning: str = "adyton",
    grants: Path | None = None,
    gpu_collateral: Path | None = None,
    agreements: Sequence[str] = (),
    receipt: Path | None = None,
    receipt_plaintext: bool = False,
    after: Sequence[Path] = (),
    notice: Notice = unheard,
) -> Ran:
    """Run a manifest's program in a TEE to its end, as `adyton run` does, in a fresh process of its own.

    `arguments` are the program's, where its manifest takes them from here. `key_servers` is HOST:PORT, or a mapping
    from each owner to hers. `agreements` are the ids of the agreements that approvals of its keys rest on. What the
    program prints goes to its encrypted log, or to this process's standard output and error where its manifest says so.
    `receipt` is a new file for the receipt of the run. With `receipt_plaintext` it names SHA-256 values of plaintexts,
    too. `after` are receipts of runs that made inputs of this one.

    The program's own failure is in the result: see `Ran.require`. Where the program did not start, or its outputs could
    not be kept, the error of that is raised.
    """
    if isinstance(key_servers, str):
        servers: tuple[str, ...] = (key_servers,)
    elif isinstance(key_servers, Mapping):
        servers = tuple(f"{owner}={address}" for owner, address in key_servers.items())
    else:
        servers = tuple(key_servers)
    request = Request(
        manifest=Path(manifest),
        tee=tee,
        key_servers=servers,
        sim_platform=sim_platform,
        provisioning=provisioning,
        grants=grants,
        gpu_collateral=gpu_collateral,
        agreements=tuple(agreements),
        receipt=receipt,
        receipt_plaintext=receipt_plaintext,
        after=tuple(after),
        arguments=arguments,
    )
    report, end = os.pipe2(os.O_CLOEXEC)
    report_in = fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 3)  # 0 to 2 are what the program itself writes to
    os.close(end)
    try:
        process = subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", "adyton.workflow.run_process"),
                *(str(report_in), str(os.getpid()), request.to_json()),
            ],
            pass_fds=[report_in],
            process_group=0,  # an interrupt from the keyboard reaches it once, through this process
        )
    except OSError as error:
        os.close(report)
        raise RunError(
            f"no process can be started for the run: {error.strerror}",
            check="process of the run",
            expected="a process",
            seen=error.strerror,
            remedy="give fewer or shorter arguments: all of them together have at most 128 KiB"
            if error.errno == errno.E2BIG
            else "see whether processes or memory have run out",
        ) from error
    finally:
        os.close(report_in)
    interrupted = False
    with os.fdopen(report, "rb") as lines:
        while True:
            try:
                last = _listen(lines, notice)
                process.wait()
                break
            except KeyboardInterrupt:
                interrupted = True
                process.send_signal(signal.SIGINT)
            except BaseException:
                process.kill()
                process.wait()
                raise
    if interrupted:
        raise KeyboardInterrupt
    return _outcome(last, process.returncode)


def _listen(lines: Any, notice: Notice) -> dict[str, Any]:
    """Pass notices on, and return what the process says last; nothing where it ends without a word."""
    while line := lines.readline(_MAX_REPORT_BYTES):
        message: dict[str, Any] = json.loads(line)
        if "notice" not in message:
            return message
        notice(message["notice"])
    return {}


def _outcome(message: dict[str, Any], status: int) -> Ran:
    if "ran" in message:
        found = message["ran"]
        return Ran(**{**found, "events": tuple(found["events"])})
    if "failure" in message:
        raise Error.from_dict(message["failure"], unknown=RunError)
    raise RunError(
        "the process of the run ended without a word",
        check="exit status of the process",
        expected=0,
        seen=status,
        remedy="it was interrupted or killed, or memory ran out (dmesg); nothing of the run is left",
    )


def run_here(request: Request, notice: Notice = unheard) -> Ran:
    """Carry out a request in this process, which must be a fresh one of Adyton's alone; as `run` otherwise.

    For a pack the process changes to the folder into which it was unpacked.
    """
    if request.manifest.suffix != SUFFIX:
        return _run_manifest(request, notice, lambda path: path)
    from adyton.pack_archive import HOST, WORK, unpack

    folder = request.manifest.absolute().with_suffix("")
    index = unpack(request.manifest, folder).index
    notice(f"the pack is unpacked to {folder}; the program runs in {folder / WORK}, and what it writes is there")
    request = replace(
        request,
        manifest=Path(index.manifest),
        sim_platform=None if request.sim_platform is None else request.sim_platform.absolute(),
        grants=None if request.grants is None else request.grants.absolute(),
        gpu_collateral=None if request.gpu_collateral is None else request.gpu_collateral.absolute(),
        receipt=None if request.receipt is None else request.receipt.absolute(),
        after=tuple(path.absolute() for path in request.after),
    )
    _enter(folder / WORK)

    def brought(path: str) -> str:
        own = f"{folder}/{HOST}{path}"
        return own if path.startswith("/") and os.path.lexists(own) else path

    return _run_manifest(request, notice, brought)


def _enter(folder: Path) -> None:
    try:
        os.chdir(folder)
    except OSError as error:
        raise storage_failed(error, str(folder), "entering") from error


def _run_manifest(request: Request, notice: Notice, place: Callable[[str], str]) -> Ran:
    """Run a manifest's program. `place` says where a trusted file lies on this machine."""
    from adyton.manifest.findings import check_tee
    from adyton.manifest.signed import read_signed
    from adyton.runtime import identity, sandbox
    from adyton.runtime.evidence import program_evidence
    from adyton.runtime.launch import launch
    from adyton.runtime.run_plan import plan, with_devices
    from adyton.vfs.stage import read_verified

    if request.provisioning not in PROVISIONING:
        raise UsageError(
            "unknown way to ask for keys",
            check="--provisioning",
            expected="adyton or ra-tls",
            seen=request.provisioning,
        )
    if request.tee is None:
        raise UsageError(
            "no TEE was named",
            check="--tee",
            expected="sgx, tdx, snp, tpm, az-snp, az-tdx, nitrotpm, sim, sim-tdx, sim-tpm; gramine-direct to rehearse",
            seen="nothing",
            remedy="name one; `adyton doctor` says what this machine has. --tee sim runs anywhere and protects nothing",
        )
    if request.tee != "sgx":
        sandbox.locate()  # it is measured: without it the manifest would seem to be another runtime's
    runtime = identity.runtime_identity()
    signed = read_signed(request.manifest, runtime.digest)

    def read_trusted(entry: TrustedFile) -> bytes:
        if entry.sha256 is None:
            raise UsageError(f"{entry.uri} has no hash")
        return read_verified(place(entry.host_path), entry.sha256, most_bytes=_MAX_WORDS_BYTES)

    gpus, count = None, signed.manifest.adyton.gpus
    named: tuple[Device, ...] = ()
    nodes: tuple[DeviceNode, ...] = ()
    if count:
        from adyton.tee.gpu_source import open_gpus

        gpus = open_gpus(request.tee, request.sim_platform, _gpu_collateral(request.gpu_collateral))
    if request.receipt is not None or request.receipt_plaintext or request.after:
        _check_receipt(request, signed)
    if request.tee in UNDER_GRAMINE:
        return _run_under_gramine(request, request.tee, signed, notice)
    check_tee(signed.manifest, request.tee)
    if gpus is not None:
        named = gpus.named(count)
        nodes = gpus.nodes()  # before the register is extended, which can be done once in a boot
    source = _open_source(request, request.tee, signed, named)
    if source.notice is not None:
        notice(source.notice)
    made = plan(signed.manifest, read_trusted=read_trusted, host_args=request.arguments, host_env=os.environ)
    made = replace(made, staged=tuple(replace(entry, source=place(entry.source)) for entry in made.staged))
    made = with_devices(made, nodes)
    for text in made.notes:
        notice(text)

    maker = None if request.receipt is None else _receipt_maker(request, signed, made, source, gpus, count)

    granted: list[tuple[RunKey, tuple[GrantInfo, ...]]] = []

    def settle(report: bytes) -> list[str]:
        from adyton.runtime.privacy_report import tell_owners

        servers = _servers(request.key_servers)
        return [text for key, grants in granted for text in tell_owners(signed, servers, key, grants, report)]

    def obtain() -> Delivered:
        from adyton.release.client import obtain_keys
        from adyton.release.run_key import RunKey
        from adyton.runtime.keeper import Delivered

        run_key = RunKey() if maker is None else maker.begin()
        if not made.key_names and not made.secrets:
            return Delivered({})
        servers = _servers(request.key_servers)
        released = obtain_keys(
            signed,
            source,
            servers,
            protocol=request.provisioning,
            runtime_parts=lambda: {name: digest.hex() for name, digest in runtime.parts.items()},
            devices=None if gpus is None else partial(gpus.parts, count),
            run_key=run_key,
            folders=[mount.pinned for mount in made.pinned],
            agreements=request.agreements,
        )
        granted.append((run_key, released.grants))
        if maker is not None:
            maker.released(released)
        facts = {"grants": [_told(grant) for grant in released.grants]}
        roots = _given_roots(signed, servers, run_key, released) if made.pinned else None
        return Delivered(released.keys, released.secrets, facts, roots)

    with _grants_file(request.grants) as keep, _receipt_file(request.receipt) as keep_receipt:
        ended = launch(
            made,
            obtain,
            simulated=request.tee in _SIMULATED,
            evidence=program_evidence(source, signed.manifest, signed.measurement),
            doors=_doors(source, signed, gpus),
            note=notice,
            receipt=maker,
            settle=settle if request.agreements else None,
        )
        keep(ended.facts.get("grants", ()))
        keep_receipt(ended.facts.get("receipt", ""))
    return Ran(
        tee=request.tee,
        measurement=signed.measurement.hex(),
        exit_code=ended.exit_code,
        seconds=dict(ended.seconds),
        events=tuple(ended.events),
        facts={name: value for name, value in ended.facts.items() if name != "receipt"},
        log=None if made.log is None else made.log.source,
        log_key=None if made.log is None else made.log.key_name,
    )


def _given_roots(
    signed: SignedManifest, servers: Mapping[str, str], run_key: RunKey, released: Released
) -> GivenRoots | None:
    """The roots in the grants. None where there are none, as over ra-tls."""
    from adyton.release.client import tell_server
    from adyton.runtime.pinned import GivenRoots

    by_folder = {folder: grant for grant in released.grants for folder in grant.roots}

    def tell(folder: str, action: str, payload: bytes) -> TypedDocument:
        grant = by_folder[folder]
        return tell_server(signed, grant.owner, servers, run_key, action, grant.grant, payload)

    if not by_folder:
        return None
    return GivenRoots(
        {folder: grant.roots[folder] for folder, grant in by_folder.items()},
        {folder: grant.grant for folder, grant in by_folder.items()},
        tell,
    )


def _doors(source: QuoteSource, signed: SignedManifest, gpus: GPUSource | None) -> Doors | None:
    """The ports through which clients reach the program, if its manifest has any."""
    if not signed.manifest.adyton.ingress:
        return None
    from adyton.endpoint.ingress import Proof
    from adyton.runtime.ingress_process import Doors
    from adyton.workflow.client_judge import client_judge

    def evidence(report_data: bytes) -> Proof:
        return Proof(source.quote(report_data), source.event_log() or b"")

    def devices(nonce: bytes) -> tuple[bytes, ...]:
        return () if gpus is None else tuple(part.to_bytes() for part in gpus.parts(signed.manifest.adyton.gpus, nonce))

    ports = signed.manifest.adyton.ingress
    judges = {one.name: client_judge(one) for one in ports if one.client_policy is not None}
    return Doors(ports, signed.manifest_sha256.raw, evidence, None if gpus is None else devices, judges)


def _told(grant: GrantInfo) -> dict[str, Any]:
    """A grant as the report has it; the checkpoint is for its owner, who knows the key that signed it."""
    told = {"owner": grant.owner, "grant": grant.grant, "names": list(grant.names)}
    return {**told, "checkpoint": dict(grant.checkpoint)} if grant.checkpoint else told


@contextmanager
def _grants_file(path: Path | None) -> Iterator[Callable[[Sequence[Mapping[str, Any]]], object]]:
    """A new file for the grants, made before any key is asked for; a run that gets none leaves none."""
    with _new_file(path, "--grants", "no such file: an older one may be what proves a record cut") as write:
        yield lambda grants: write(json.dumps({"grants": list(grants)}, indent=2).encode() if grants else b"")


@contextmanager
def _receipt_file(path: Path | None) -> Iterator[Callable[[str], object]]:
    """A new file for the receipt, made before any key is asked for; a run that ends without one leaves none."""
    with _new_file(path, "--receipt", "no such file: an older receipt is never written over") as write:
        yield lambda text: write(base64.b64decode(text))


@contextmanager
def _new_file(path: Path | None, option: str, expected: str) -> Iterator[Callable[[bytes], object]]:
    if path is None:
        yield lambda _content: None
        return
    try:
        file = path.open("xb")
    except FileExistsError:
        raise TargetExists(
            f"{path} exists already",
            check=option,
            expected=expected,
            seen=str(path),
            remedy="name another file",
        ) from None
    except OSError as error:
        raise StorageFailed(
            f"cannot write {path}: {error.strerror}",
            check=option,
            expected="a file that can be written",
            seen=str(error.strerror),
            remedy="name another file",
        ) from error
    with file:
        try:
            yield file.write
        finally:
            if file.tell() == 0:
                path.unlink(missing_ok=True)


def _gpu_collateral(path: Path | None) -> GPUCollateral | None:
    """What a file or folder holds. Its documents are signed, so that it may come from anybody."""
    if path is None:
        return None
    from adyton.collateral.gpu_files import gpu_collateral_from

    return gpu_collateral_from([path])


def _check_receipt(request: Request, signed: SignedManifest) -> None:
    """Refuse a receipt where no keeper stands between the program and what would sign it."""
    if request.receipt is None:
        raise UsageError(
            "--receipt-plaintext and --after say what a receipt holds",
            check="--receipt",
            expected="--receipt FILE, too",
            seen="no --receipt",
        )
    adyton = signed.manifest.adyton
    refusals = (
        (request.tee in UNDER_GRAMINE, "a TEE with a keeper apart from the program", f"--tee {request.tee}"),
        (request.provisioning != "adyton", "keys over adyton, which knows a key of the run", request.provisioning),
        (adyton.raw_report_data, "a manifest without insecure__raw_report_data", "insecure__raw_report_data = true"),
    )
    for refused, expected, seen in refusals:
        if refused:
            raise UsageError(
                "this run can have no receipt: the program itself could have made it",
                check="--receipt",
                expected=expected,
                seen=seen,
                remedy="run it in a trust domain or another confidential machine (or under sim to rehearse), over"
                " adyton; or leave --receipt out",
            )


def _receipt_maker(
    request: Request, signed: SignedManifest, made: Plan, source: QuoteSource, gpus: GPUSource | None, count: int
) -> ReceiptMaker:
    from adyton.attest.devices import device_digest
    from adyton.receipt.statement import given_by_host
    from adyton.runtime.receipt_maker import ReceiptMaker, limits_of
    from adyton.workflow.receipt import predecessor

    manifest = signed.manifest
    names = tuple(os.environ) if manifest.use_host_env else manifest.env_passthrough
    return ReceiptMaker(
        signed,
        source,
        _servers(request.key_servers) if made.key_names or made.secrets else {},
        limits=limits_of(made, manifest),
        devices=device_digest(() if gpus is None else gpus.named(count)),
        given_by_host=given_by_host(
            request.arguments if manifest.use_cmdline_argv else (),
            {name: os.environ[name] for name in names if name in os.environ},
        ),
        plaintext=request.receipt_plaintext,
        predecessors=[predecessor(path) for path in request.after],
    )


def _open_source(request: Request, tee: str, signed: SignedManifest, gpus: tuple[Device, ...]) -> QuoteSource:
    from adyton.attest.devices import device_digest
    from adyton.tee.source_choice import open_source

    devices = device_digest(gpus)
    if tee not in _SIMULATED:
        return open_source(tee, measurement=signed.measurement, devices=devices)
    return open_source(
        tee,
        measurement=signed.measurement,
        platform_dir=request.sim_platform,
        mrsigner=signed.mrsigner.raw,
        isv_prod_id=signed.sigstruct.isv_prod_id,
        isv_svn=signed.sigstruct.isv_svn,
        debug=signed.sigstruct.debug,
        devices=devices,
    )


def _servers(named: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in named:
        owner, equals, address = word.partition("=")
        found[owner if equals else ""] = address if equals else word
    if not found:
        raise UsageError(
            "this program needs keys, and no key server was named",
            check="--key-server",
            expected="HOST:PORT, or OWNER=HOST:PORT for each of several owners",
            seen="nothing",
            remedy="name the address where the owner's `adyton serve` listens",
        )
    return found


def _run_under_gramine(request: Request, tee: str, signed: SignedManifest, notice: Notice) -> Ran:
    """Hand over to Gramine: in an enclave, or (gramine-direct) to rehearse with the keys of the owner's own store."""
    from adyton.runtime import gramine_backend

    if request.key_servers:
        notice(
            "--key-server is not used here: Gramine connects to the address in the manifest (adyton.owners.*.address)"
        )
    if request.agreements:
        raise UsageError(
            f"an agreement carries no run under {tee}: nothing beside the program can bring the parties' statements",
            check="--agreement",
            expected="a TEE with a keeper beside the program",
            seen=tee,
            remedy="run it under tdx, snp or in an Azure machine",
        )
    if request.grants is not None:
        notice("--grants is not used here: Gramine's protocol has no checkpoints, so nothing is written")
    if tee == "sgx":
        ended = gramine_backend.launch(
            request.manifest,
            arguments=request.arguments,
            stdin_from_host=signed.manifest.adyton.insecure_stdin,
            note=notice,
        )
    else:
        from adyton.keystore.home import default_home, load_key

        keys = {name: load_key(default_home(), name) for name in signed.manifest.key_names}
        ended = gramine_backend.dry_run(request.manifest, keys, arguments=request.arguments, note=notice)
    return Ran(tee=tee, measurement=signed.measurement.hex(), exit_code=ended)
