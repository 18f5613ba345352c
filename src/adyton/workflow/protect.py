"""From a script to an approved program: everything that the owner does before a run, step by step."""

from __future__ import annotations

import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from adyton.attest.guest import confidential_kind
from adyton.errors import UsageError
from adyton.keystore.home import default_home
from adyton.keystore.names import check_name
from adyton.manifest.ingress import DEFAULT_LISTEN
from adyton.sim.files import platform_directory
from adyton.workflow.approve import Approved, approve
from adyton.workflow.build import Built, build
from adyton.workflow.collateral import Taken, import_collateral
from adyton.workflow.encrypt import Encrypted, encrypt
from adyton.workflow.init import Initialized, init
from adyton.workflow.keys import NewKey, list_keys, new_key
from adyton.workflow.new import Proposed, new
from adyton.workflow.pack import Packed, check_target, pack
from adyton.workflow.pin import Pinned, pin
from adyton.workflow.platform import Platform, export_platform, new_platform, show_platform
from adyton.workflow.program import find_program
from adyton.workflow.progress import unheard, unwatched

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from adyton.manifest.native_differences import Difference
    from adyton.manifest.propose import DataMount
    from adyton.workflow.progress import Notice, Progress

__all__ = [
    "Approved",
    "Built",
    "Encrypted",
    "Initialized",
    "NewKey",
    "Packed",
    "Pinned",
    "Platform",
    "Proposed",
    "Protected",
    "StepResult",
    "Taken",
    "protect",
]

StepResult: TypeAlias = (
    Initialized | NewKey | Platform | Path | Taken | Proposed | Encrypted | Built | Approved | Packed | Pinned
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Protected:
    """An approved program: its manifest, what it measures, and the commands that came before and that come next."""

    manifest: Path
    signature: Path
    measurement: str
    key: str
    tee: str
    """The platform that it is approved for, as a policy names it."""
    data: tuple[DataMount, ...]
    differences: tuple[Difference, ...]
    """What the program will find otherwise than in the run that was watched."""
    approvals: tuple[str, ...]
    pack: Path | None
    """The file that holds the program for the other machine, where one was asked for."""
    steps: tuple[str, ...]
    """The commands that would have done the same, one after the other."""
    next_steps: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """For programs; every path relative to the current folder, as it was written."""
        return {
            "manifest": str(self.manifest),
            "signature": str(self.signature),
            "measurement": self.measurement,
            "key": self.key,
            "tee": self.tee,
            "data": [
                {
                    "path": mount.path,
                    "source": mount.source,
                    "encrypted": mount.encrypted,
                    "input": mount.is_input,
                    "output": mount.is_output,
                }
                for mount in self.data
            ],
            "differences": [difference.to_dict() for difference in self.differences],
            "approvals": list(self.approvals),
            "pack": None if self.pack is None else str(self.pack),
            "steps": list(self.steps),
            "next": list(self.next_steps),
        }


class _Steps:
    """The steps as they are taken: each said as the command that does it alone, and then its result."""

    def __init__(self, begun: Callable[[str], object], ended: Callable[[StepResult], object]) -> None:
        self._begun, self._ended = begun, ended
        self.commands: list[str] = []

    def begin(self, *words: str) -> None:
        self.commands.append(f"adyton {shlex.join(words)}")
        self._begun(self.commands[-1])

    def end(self, result: StepResult) -> None:
        self._ended(result)


def _ignore(_result: object) -> None:
    """Take what nobody looks at."""


def protect(
    script: str | Path,
    *arguments: str,
    tee: str,
    key: str = "default",
    name: str | None = None,
    python: str | Path | None = None,
    force: bool = False,
    allow: Sequence[str] = (),
    pack_to: str | Path | None = None,
    serve: int | None = None,
    watch: float | None = None,
    client: str | None = None,
    pinned: bool = False,
    home: Path | None = None,
    sim_platform: Path | None = None,
    notice: Notice = unheard,
    progress: Progress = unwatched,
    begun: Callable[[str], object] = _ignore,
    ended: Callable[[StepResult], object] = _ignore,
) -> Protected:
    """Run a script once as it is, and make of it a program that may run in a TEE, as `adyton protect` does.

    Makes the owner's identity and key where there are none, finds the files that the script needs, encrypts its inputs,
    builds and signs the manifest, and approves it for the key. All of it happens in the current folder. `tee` is where
    it may run: sgx, tdx, snp, sim:FINGERPRINT, or sim for a simulated platform on this machine, made if there is none.
    `script` and `python` are as for `new`.
    `serve`, `watch` and `client` are as for `new`: the program is a server. Its clients reach it through an ingress.
    With `pinned` the folders of its data are pinned: an older or missing file in them is refused.
    `pack_to` is a file NAME.adyton to write the program into, as `adyton pack` does.
    `allow` names each finding that exposes the data and is accepted. `begun` is called with each step's command, and
    `ended` with its result. Raises what the steps raise; what they made until then stays.
    """
    program = find_program(script, arguments, python=python)
    name = check_name(name or program.name, "--name")
    check_name(key)
    if serve is not None and tee == "sgx":
        raise UsageError(
            "no keeper stands beside a program under sgx that could prove its connections",
            check="--serve",
            expected="another --tee, such as tdx or snp",
            seen=tee,
            remedy="protect it for a confidential machine",
        )
    if pinned and tee == "sgx":
        raise UsageError(
            "no keeper stands beside a program under sgx that could hold its folders to a root",
            check="--pinned",
            expected="another --tee, such as tdx or snp",
            seen=tee,
            remedy="protect it for a confidential machine, or leave --pinned out",
        )
    packed = None if pack_to is None else check_target(Path(pack_to), force=force)
    steps = _Steps(begun, ended)
    mine = () if home is None else ("--home", str(home))
    again = ("--force",) if force else ()
    if not ((home or default_home()) / "ca.crt").exists():
        steps.begin("init", *mine)
        steps.end(init(home))
    if key not in {found.name for found in list_keys(home=home).keys}:
        steps.begin("key", "new", key, *mine)
        steps.end(new_key(key, home=home))
    approved_on = _simulated(steps, platform_directory(sim_platform), home) if tee == "sim" else tee

    served = [] if serve is None else ["--serve", str(serve)]
    served += ["--pinned"] if pinned else []
    served += [] if watch is None else ["--watch", f"{watch:g}"]
    served += [] if client is None else ["--client", client]
    named = () if program.python is None else ("--python", program.python)
    steps.begin("new", *again, "--name", name, "--key", key, *named, *served, *program.words)
    proposed = new(
        *program.words,
        name=name,
        key=key,
        python=program.python,
        force=force,
        serve=serve,
        watch=watch,
        client=client,
        pinned=pinned,
    )
    steps.end(proposed)
    for mount in proposed.data:
        if mount.is_input:
            follow = ("--follow-links",) if _holds_links(Path(mount.source)) else ()
            steps.begin("encrypt", mount.source, "-o", mount.encrypted, "--key", key, *follow, *again, *mine)
            moved = encrypt(
                mount.source,
                mount.encrypted,
                key=key,
                force=force,
                follow_links=bool(follow),
                home=home,
                progress=progress,
            )
            steps.end(moved)
    for folder in proposed.storage:
        Path(folder).mkdir(parents=True, exist_ok=True)
    for mount in proposed.data:
        if mount.is_pinned:
            accept = ("--accept",) if force else ()
            steps.begin("pin", mount.encrypted, "--key", key, *accept, *mine)
            steps.end(pin(mount.encrypted, key=key, accept=force, home=home))
    under_gramine = tee == "sgx"
    steps.begin("build", f"{name}.manifest.template", *(("--gramine",) if under_gramine else ()), *mine)
    built = build(f"{name}.manifest.template", gramine=under_gramine, home=home, progress=progress)
    steps.end(built)
    protocol = ("--protocol", "ra-tls") if under_gramine else ()
    allowed = (word for item in allow for word in ("--allow", item))
    steps.begin("approve", f"{name}.manifest", "--key", key, "--tee", approved_on, *protocol, *allowed, *mine)
    approved = approve(
        f"{name}.manifest",
        keys=[key],
        tees=[approved_on],
        protocols=("ra-tls",) if under_gramine else ("adyton",),
        allow=allow,
        home=home,
        notice=notice,
    )
    steps.end(approved)
    if packed is not None:
        steps.begin("pack", f"{name}.manifest", "-o", str(packed), *again, *mine)
        steps.end(pack(f"{name}.manifest", packed, force=force, home=home, sim_platform=sim_platform))
    what = shlex.quote(str(packed or f"{name}.manifest"))
    return Protected(
        manifest=built.manifest,
        signature=built.signature,
        measurement=str(approved.measurement),
        key=key,
        tee=approved_on,
        data=proposed.data,
        differences=proposed.differences,
        approvals=tuple(item.id for item in approved.approvals),
        pack=packed,
        steps=tuple(steps.commands),
        next_steps=(
            f"adyton serve {'--gramine-listen 0.0.0.0' if under_gramine else '--listen 127.0.0.1'}:4433",
            f"adyton run {what} --tee {tee.partition(':')[0]} --key-server 127.0.0.1:4433",
            *(() if serve is None else _for_clients(f"{name}.manifest", approved_on)),
            *(
                shlex.join(
                    ["adyton", "decrypt", mount.encrypted, "-o", f"decrypted/{mount.source.lstrip('/')}", "--key", key]
                )
                for mount in proposed.data
                if mount.is_output
            ),
        ),
    )


def _for_clients(manifest: str, tee: str) -> tuple[str, str]:
    """What clients of a server do, on machines of theirs."""
    image = () if confidential_kind(tee) is None or tee.startswith("sim") else ("--image", "image.json")
    written = shlex.join(["adyton", "connect", "--print-policy", manifest, "--tee", tee, *image])
    port = DEFAULT_LISTEN.rpartition(":")[2]
    return f"{written} > clients.toml", f"adyton connect HOST:{port} --policy clients.toml --listen 127.0.0.1:3301"


def _holds_links(folder: Path) -> bool:
    """Whether symbolic links lie in a folder of data: their targets are taken in their place."""
    return any(path.is_symlink() for path in folder.rglob("*"))


def _simulated(steps: _Steps, platform: Path, home: Path | None) -> str:
    """The name for a policy of the simulated platform, made if there is none; its collateral is in the home after."""
    if not platform.exists():
        steps.begin("platform", "new", str(platform))
        steps.end(new_platform(platform))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "collateral.json"
        steps.begin("platform", "export", str(platform), "-o", str(file))
        steps.end(export_platform(platform, file))
        steps.begin("collateral", "import", str(file), *(() if home is None else ("--home", str(home))))
        taken = import_collateral([file], home=home)
        steps.end(taken)
        taken.require()
    return show_platform(platform).name()
