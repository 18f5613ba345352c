"""Connect local programs to an attested endpoint: a door on this machine, and a proof for each connection behind it."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final

from adyton.address import parse_address
from adyton.atomic_file import write_file
from adyton.attest.complete import complete
from adyton.attest.evidence import parse_evidence
from adyton.capped_read import read_capped
from adyton.endpoint.channel import Credential
from adyton.endpoint.dial import Dialler, Prove, Proved, Proxy
from adyton.endpoint.hello import ClientEvidence, is_ingress_name, parse_device
from adyton.endpoint.local_door import LocalDoor
from adyton.endpoint.pool import Pool
from adyton.errors import Error, Mismatch, UsageError
from adyton.values import Digest, Measurement
from adyton.workflow.verify import collateral_of, read_policy, verify

if TYPE_CHECKING:
    from adyton.attest.appraise import Claims
    from adyton.attest.evidence_policy import Policy
    from adyton.attest.report import VerifiedReport
    from adyton.endpoint.hello import Answer

MAX_TRUST: Final = timedelta(hours=1)
"""How long a kept connection is used after its proof, at the most."""

MAX_USE: Final = timedelta(hours=24)
"""How long a connection lives after its proof, whatever passes over it, at the most."""

_MAX_CREDENTIAL_BYTES: Final = 1 << 16
_ENDING: Final = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class Connected:
    """The first proof, and where local programs connect to."""

    address: str
    ingress: str
    manifest_sha256: str
    verdict: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The document of the ready file."""
        return {
            "address": self.address,
            "ingress": self.ingress,
            "manifest_sha256": self.manifest_sha256,
            "verdict": list(self.verdict),
        }


def connect(
    target: str,
    *,
    policy: Policy | Mapping[str, Any] | str | Path,
    listen: str = "127.0.0.1:0",
    tcp: bool = False,
    name: str | None = None,
    manifest_sha256: str | None = None,
    certificate: Path | None = None,
    key: Path | None = None,
    prove: str | None = None,
    sim_platform: Path | None = None,
    collateral: Sequence[str | Path] = (),
    home: Path | None = None,
    ready_file: Path | None = None,
    command: Sequence[str] | None = None,
    connected: Callable[[Connected], None] = lambda _first: None,
    refused: Callable[[Error], None] = lambda _error: None,
) -> int:
    """Serve local programs at `listen` (loopback or `unix:PATH`) until SIGINT or SIGTERM, or until `command` has ended.

    The endpoint is verified before anything listens, and again on each new connection. The policy is read once, and
    collateral each time, so that it can be renewed. `name` is the ingress that is meant. `manifest_sha256` (hex) is the
    hash of the program's manifest. SEV-SNP needs it, since evidence there names the machine only. `certificate` and
    `key` (PEM files) are for an ingress that asks clients for a certificate. `prove` is the TEE of this machine, for an
    ingress that judges the evidence of its clients (`sim_platform`: the folder of a simulated one). `command` is run
    with `{addr}` replaced by the local address. Returns its exit status, else 0. Raises EvidenceError where the
    endpoint is refused, Unavailable where it cannot be reached or checked, and UsageError.
    """
    dialler = _dialler(
        target,
        policy,
        name,
        manifest_sha256,
        _credential(certificate, key),
        collateral,
        home,
        _prover(prove, sim_platform, collateral, home),
    )
    door = LocalDoor(listen, tcp)

    def begun(first: Connected) -> None:
        connected(first)
        if ready_file is not None:
            write_file(ready_file, json.dumps(first.to_dict()).encode() + b"\n")

    work = _stopped_by_signal if command is None else partial(_run, command)
    return asyncio.run(_serve(dialler, door, begun, refused, work))


@contextmanager
def connecting(
    target: str,
    *,
    policy: Policy | Mapping[str, Any] | str | Path,
    listen: str = "127.0.0.1:0",
    tcp: bool = False,
    name: str | None = None,
    manifest_sha256: str | None = None,
    certificate: Path | None = None,
    key: Path | None = None,
    prove: str | None = None,
    sim_platform: Path | None = None,
    collateral: Sequence[str | Path] = (),
    home: Path | None = None,
    refused: Callable[[Error], None] = lambda _error: None,
) -> Iterator[Connected]:
    """Connect in a thread until the block ends. Otherwise as `connect`: `Connected.address` is for any HTTP client.

    Raises the errors of `connect`: at the beginning, or at the end of the block if the door failed meanwhile.
    """
    dialler = _dialler(
        target,
        policy,
        name,
        manifest_sha256,
        _credential(certificate, key),
        collateral,
        home,
        _prover(prove, sim_platform, collateral, home),
    )
    door = LocalDoor(listen, tcp)
    told: SimpleQueue[tuple[Connected, Callable[[], object]] | BaseException | None] = SimpleQueue()
    first: list[Connected] = []

    async def until_the_block_ends(_address: str) -> int:
        stop = asyncio.Event()
        told.put((first[0], partial(asyncio.get_running_loop().call_soon_threadsafe, stop.set)))
        await stop.wait()
        return 0

    def work() -> None:
        try:
            asyncio.run(_serve(dialler, door, first.append, refused, until_the_block_ends))
            told.put(None)
        except BaseException as error:
            told.put(error)

    thread = threading.Thread(target=work, name="adyton-connect", daemon=True)
    thread.start()
    began = told.get()
    if not isinstance(began, tuple):
        thread.join()
        raise began or UsageError("the door ended before it listened")
    found, stop = began
    try:
        yield found
    finally:
        with contextlib.suppress(RuntimeError):  # its event loop has ended: the door failed meanwhile
            stop()
        thread.join()
    last = told.get()
    if isinstance(last, BaseException):
        raise last


def _dialler(
    target: str,
    policy: Policy | Mapping[str, Any] | str | Path,
    name: str | None,
    manifest_sha256: str | None,
    credential: Credential | None,
    collateral: Sequence[str | Path],
    home: Path | None,
    prove: Prove | None,
) -> Dialler:
    if name is not None and not is_ingress_name(name):
        raise UsageError("this is no name of an ingress", check="--name", expected="a-z, 0-9, inner hyphens", seen=name)
    pinned = None if manifest_sha256 is None else Digest.from_hex(manifest_sha256).raw
    judge = partial(_judge, read_policy(policy), collateral, home, pinned is not None)
    return Dialler(parse_address(target, "endpoint"), judge, name, pinned, _proxy(os.environ), credential, prove)


def _prover(
    tee: str | None, sim_platform: Path | None, collateral: Sequence[str | Path], home: Path | None
) -> Prove | None:
    """What makes evidence of this machine, for an ingress that judges its clients. Raises UsageError and NoDevice."""
    if tee is None:
        return None
    from adyton.runtime.identity import runtime_identity
    from adyton.tee.source_choice import open_source

    simulated = tee.startswith("sim")
    # a simulated machine is measured as what runs here: Adyton itself
    measurement = Measurement(runtime_identity().digest.raw) if simulated else None
    source = open_source(tee, measurement=measurement, platform_dir=sim_platform if simulated else None)
    one_at_a_time = threading.Lock()

    def work(report_data: bytes) -> ClientEvidence:
        with one_at_a_time:
            cpu, event_log = source.quote(report_data), source.event_log() or b""
        found = collateral_of(parse_evidence(cpu), collateral, home, datetime.now(UTC))
        return ClientEvidence(cpu, event_log, found.to_json().encode())

    async def show(report_data: bytes) -> ClientEvidence:
        return await asyncio.to_thread(work, report_data)

    return show


def _credential(certificate: Path | None, key: Path | None) -> Credential | None:
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise UsageError(
            "a certificate and its key belong together",
            check="--certificate and --key",
            expected="both or neither",
            seen="--key" if certificate is None else "--certificate",
        )
    return Credential.load(
        read_capped(certificate, _MAX_CREDENTIAL_BYTES, "certificate of the client"),
        read_capped(key, _MAX_CREDENTIAL_BYTES, "key of the client"),
    )


def _proxy(environment: Mapping[str, str]) -> Proxy | None:
    url = environment.get("HTTPS_PROXY") or environment.get("https_proxy")
    return Proxy.parse(url) if url else None


async def _judge(
    policy: Policy,
    collateral: Sequence[str | Path],
    home: Path | None,
    knows_manifest: bool,
    answer: Answer,
    report_data: bytes,
    gpu_nonce: bytes,
) -> Proved:
    """Verify evidence as `adyton verify` does, beside the event loop. It has Adyton's own form, and no other."""
    now = datetime.now(UTC)
    parse_evidence(answer.cpu)

    def completed(report: VerifiedReport) -> VerifiedReport:
        if not answer.devices or not hmac.compare_digest(report.report_data, report_data):
            return report  # devices are looked at only where they belong to this connection
        from adyton.workflow.verify_gpus import device_verifier

        devices = tuple(map(parse_device, answer.devices))
        verifier = device_verifier(collateral, home).verify
        return complete(report, answer.event_log or None, devices, nonce=gpu_nonce, verify_devices=verifier, now=now)

    work = partial(
        verify,
        answer.cpu,
        collateral=collateral,
        policy=policy,
        report_data=report_data,
        event_log=answer.event_log or None,
        completed=completed,
        home=home,
    )
    verdict = await asyncio.to_thread(work)
    claims = verdict.require()
    require_program(claims, knows_manifest=knows_manifest)
    summary = tuple(verdict.to_text().splitlines())
    return Proved(summary, min(claims.valid_until, now + MAX_TRUST), min(claims.valid_until, now + MAX_USE))


def require_program(claims: Claims, *, knows_manifest: bool) -> None:
    """Refuse evidence that does not say which program proves its connections. Raises Mismatch.

    An enclave of SGX has no keeper apart from the program, so the program itself could show such evidence. Of other
    machines the evidence must name the workload, or the client must know the manifest: the guest alone runs any
    program that its host gives it.
    """
    if claims.tee == "sgx":
        raise Mismatch(
            "under sgx nothing stands beside the program that could prove its connections",
            check="TEE of the ingress",
            expected="a TEE in which Adyton's own runtime runs the program",
            seen=claims.tee,
            remedy="connect to the program in a confidential machine",
        )
    if claims.workload is None and not knows_manifest and not claims.tee.startswith("sim:"):
        raise Mismatch(
            "the policy names the machine's guest, and not the program that it runs",
            check="program",
            expected="`workloads` in the policy; for SEV-SNP, whose evidence has no place for them, --manifest-sha256",
            seen="neither",
            remedy="adyton connect --print-policy NAME.manifest --tee TEE writes the policy and the option",
        )


async def _serve(
    dialler: Dialler,
    door: LocalDoor,
    connected: Callable[[Connected], None],
    refused: Callable[[Error], None],
    work: Callable[[str], Awaitable[int]],
) -> int:
    first = await dialler.dial()
    pool = Pool(dialler)
    if door.tcp:
        await first.stream.close()
    else:
        await pool.give_back(first)
    try:
        async with door.open(dialler, pool, refused) as address:
            connected(Connected(address, first.answer.name, first.answer.manifest_sha256.hex(), first.proved.summary))
            return await work(address)
    finally:
        await pool.close()


async def _stopped_by_signal(_address: str) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in _ENDING:
        loop.add_signal_handler(number, stop.set)
    try:
        await stop.wait()
    finally:
        for number in _ENDING:
            loop.remove_signal_handler(number)
    return 0


async def _run(command: Sequence[str], address: str) -> int:
    """Run a command beside the door. Its exit status is the result, and a signal's number is added to 128."""
    words = [word.replace("{addr}", address) for word in command]
    try:
        process = await asyncio.create_subprocess_exec(*words)
    except OSError as error:
        raise UsageError(
            f"{words[0]} cannot be run: {error.strerror}", check="--once", expected="a program", seen=words[0]
        ) from error
    loop = asyncio.get_running_loop()
    for number in _ENDING:
        loop.add_signal_handler(number, partial(_pass_on, process, number))
    try:
        status = await process.wait()
    finally:
        for number in _ENDING:
            loop.remove_signal_handler(number)
    return status if status >= 0 else 128 - status


def _pass_on(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)
