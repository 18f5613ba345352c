"""`adyton run`: prove what runs here, get the keys, and run the program on its files.

A protected start waits for nothing that it does not need: the common form of the command line is parsed by hand, and
Typer is imported only for help and for mistakes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from adyton.errors import ScriptFailed, UsageError

if TYPE_CHECKING:
    from adyton.manifest.model import TrustedFile
    from adyton.release.client import GrantInfo
    from adyton.runtime.keeper import Delivered
    from adyton.runtime.launch import Ended
    from adyton.runtime.plan import LogPlan

_WITH_VALUE: Final = {
    "--tee": "tee",
    "--key-server": "key_servers",
    "--sim-platform": "sim_platform",
    "--provisioning": "provisioning",
    "--grants": "grants",
}
_PATHS: Final = ("sim_platform", "grants")
PROVISIONING: Final = ("adyton", "ra-tls")
_MAX_WORDS_BYTES: Final = 1 << 20
UNDER_GRAMINE: Final = ("sgx", "gramine-direct")


@dataclass(slots=True)
class Request:
    """What was asked for on the command line."""

    manifest: Path
    tee: str | None = None
    key_servers: list[str] = field(default_factory=list)
    sim_platform: Path | None = None
    provisioning: str = "adyton"
    grants: Path | None = None
    as_json: bool = False
    arguments: list[str] = field(default_factory=list)


def parse(args: Sequence[str]) -> Request | None:
    """The request, where every word is plain; None sends the whole line to Typer, for help or a good error."""
    found: dict[str, Any] = {"key_servers": []}
    plain: list[str] = []
    words = list(args)
    while words:
        word = words.pop(0)
        option, equals, value = word.partition("=")
        if word == "--":
            plain += words
            break
        if word == "--json":
            found["as_json"] = True
        elif option in _WITH_VALUE and (equals or words):
            value = value if equals else words.pop(0)
            name = _WITH_VALUE[option]
            if name == "key_servers":
                found[name].append(value)
            else:
                found[name] = Path(value) if name in _PATHS else value
        elif word.startswith("-"):
            return None
        else:
            plain.append(word)
    if not plain or found.get("provisioning", "adyton") not in PROVISIONING:
        return None
    return Request(Path(plain[0]), arguments=plain[1:], **found)


class _App:
    """The verb as `cli.main` calls it: by hand where that will do, else through Typer."""

    def __call__(self, *, args: Sequence[str], prog_name: str) -> None:
        from adyton.runtime.inherited import begin_anew

        begin_anew()
        request = parse(args)
        if request is None:
            from adyton.cli.run_options import app as slower

            slower(args=list(args), prog_name=prog_name, obj=lambda **asked: run(Request(**asked)))
        else:
            run(request)


app: Final = _App()


def run(request: Request) -> None:
    """Carry out a request; raises ScriptFailed with the program's exit code where that is not 0."""
    from adyton.cli.output import note, say_json
    from adyton.manifest.findings import check_tee
    from adyton.manifest.signed import read_signed
    from adyton.runtime import sandbox
    from adyton.runtime.evidence import program_evidence
    from adyton.runtime.identity import runtime_identity
    from adyton.runtime.launch import launch
    from adyton.runtime.plan import plan
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
            expected="sgx, tdx, snp, sim or sim-tdx; gramine-direct to rehearse",
            seen="nothing",
            remedy="name one; `adyton doctor` says what this machine has. --tee sim runs anywhere and protects nothing",
        )
    if request.tee != "sgx":
        sandbox.locate()  # it is measured: without it the manifest would seem to be another runtime's
    identity = runtime_identity()
    signed = read_signed(request.manifest, identity.digest)

    def read_trusted(entry: TrustedFile) -> bytes:
        if entry.sha256 is None:
            raise UsageError(f"{entry.uri} has no hash")
        return read_verified(entry.host_path, entry.sha256, most_bytes=_MAX_WORDS_BYTES)

    if request.tee in UNDER_GRAMINE:
        _run_under_gramine(request, signed)
        return
    check_tee(signed.manifest, request.tee)
    source = _open_source(request, signed)
    notice = source.notice
    if notice is not None:
        note(f"adyton: {notice}")
    made = plan(signed.manifest, read_trusted=read_trusted, host_args=request.arguments, host_env=os.environ)
    for text in made.notes:
        note(f"adyton: {text}")

    def obtain() -> Delivered:
        from adyton.release.client import obtain_keys
        from adyton.runtime.keeper import Delivered

        if not made.key_names and not made.secrets:
            return Delivered({})
        released = obtain_keys(
            signed,
            source,
            _servers(request.key_servers),
            protocol=request.provisioning,
            runtime_parts=lambda: {name: digest.hex() for name, digest in identity.parts.items()},
        )
        return Delivered(released.keys, released.secrets, {"grants": [_told(grant) for grant in released.grants]})

    with _grants_file(request.grants) as keep:
        ended = launch(
            made,
            obtain,
            simulated=request.tee in ("sim", "sim-tdx"),
            evidence=program_evidence(source, signed.manifest, signed.measurement),
            note=lambda text: note(f"adyton: {text}"),
        )
        keep(ended.facts.get("grants", ()))
    if request.as_json:
        say_json(_document(request, signed.measurement.hex(), ended))
    if made.log is not None and not ended.exit_code:
        note(f"adyton: done; what the program printed: adyton decrypt {made.log.source} -o - --key {made.log.key_name}")
    if ended.exit_code:
        raise _failed(ended.exit_code, made.log)


def _told(grant: GrantInfo) -> dict[str, Any]:
    """A grant as the report has it; the checkpoint is for its owner, who knows the key that signed it."""
    told = {"owner": grant.owner, "grant": grant.grant, "names": list(grant.names)}
    return {**told, "checkpoint": dict(grant.checkpoint)} if grant.checkpoint else told


@contextmanager
def _grants_file(path: Path | None) -> Iterator[Callable[[Sequence[Mapping[str, Any]]], None]]:
    """A new file for the grants, made before any key is asked for; a run that gets none leaves none."""
    if path is None:
        yield lambda _grants: None
        return
    import json

    from adyton.errors import StorageFailed, TargetExists

    try:
        file = path.open("x", encoding="utf-8")
    except FileExistsError:
        raise TargetExists(
            f"{path} exists already",
            check="--grants",
            expected="no such file: an older one may be what proves a record cut",
            seen=str(path),
            remedy="name another file",
        ) from None
    except OSError as error:
        raise StorageFailed(
            f"cannot write {path}: {error.strerror}",
            check="--grants",
            expected="a file that can be written",
            seen=str(error.strerror),
            remedy="name another file",
        ) from error
    with file:
        try:
            yield lambda grants: json.dump({"grants": list(grants)}, file, indent=2) if grants else None
        finally:
            if file.tell() == 0:
                path.unlink(missing_ok=True)


def _failed(status: int, log: LogPlan | None) -> ScriptFailed:
    how = f"was ended by signal {status - 128}" if status > 128 else f"ended with exit code {status}"
    if log is None:
        return ScriptFailed(f"the program {how}", status=status)
    where = f"what it printed is in {log.source}, encrypted"
    opener = f"its owner reads it with: adyton decrypt {log.source} -o - --key {log.key_name}"
    return ScriptFailed(f"the program {how}; {where}", status=status, remedy=opener)


def _open_source(request: Request, signed: Any) -> Any:
    from adyton.tee.opener import open_source

    simulated = request.tee in ("sim", "sim-tdx")
    if not simulated:
        return open_source(request.tee or "", measurement=signed.measurement)
    return open_source(
        request.tee or "",
        measurement=signed.measurement,
        platform_dir=request.sim_platform,
        mrsigner=signed.mrsigner.raw,
        isv_prod_id=signed.sigstruct.isv_prod_id,
        isv_svn=signed.sigstruct.isv_svn,
        debug=signed.sigstruct.debug,
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


def _run_under_gramine(request: Request, signed: Any) -> None:
    """Hand over to Gramine: in an enclave, or (gramine-direct) to rehearse with the keys of the owner's own store."""
    from adyton.cli.key_option import default_home
    from adyton.cli.output import note
    from adyton.runtime import gramine_backend

    def tell(text: str) -> None:
        note(f"adyton: {text}")

    if request.key_servers:
        tell("--key-server is not used here: Gramine connects to the address in the manifest (adyton.owners.*.address)")
    if request.grants is not None:
        tell("--grants is not used here: Gramine's protocol has no checkpoints, so nothing is written")
    if request.tee == "sgx":
        ended = gramine_backend.launch(
            request.manifest,
            arguments=request.arguments,
            stdin_from_host=signed.manifest.adyton.insecure_stdin,
            note=tell,
        )
    else:
        from adyton.keystore.home import load_key

        keys = {name: load_key(default_home(), name) for name in signed.manifest.key_names}
        ended = gramine_backend.dry_run(request.manifest, keys, arguments=request.arguments, note=tell)
    if ended:
        raise _failed(ended, None)


def _document(request: Request, measurement: str, ended: Ended) -> dict[str, Any]:
    return {
        "tee": request.tee,
        "simulated": request.tee in ("sim", "sim-tdx"),
        "measurement": measurement,
        "exit_code": ended.exit_code,
        "seconds": dict(ended.seconds),
        "events": list(ended.events),
        **ended.facts,
    }
