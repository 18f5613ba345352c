"""Steps 1 to 8 of the paper's figure 3, each a verb that an actor types in its own folder."""

from __future__ import annotations

import shutil
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from demo.tap import Tap
from demo.world import REPOSITORY, Outcome, World, at_once

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

KEY: Final = "hospital"
"""Name of the key that opens the owner's files."""

PHASES: Final = (
    (3, "cloud", "starts the program; inside the TEE it makes a fresh key and evidence", ("start", "prepare")),
    (4, "owner", "verifies the evidence and releases the key (steps 4 and 5)", ("keys",)),
    (6, "TEE", "stages trusted files and inputs, verified and decrypted on the way", ("serve", "stage")),
    (7, "TEE", "runs the script, unchanged, on plain files", ("program", "flush")),
)
"""The phases of `adyton run` in each step."""

RUN: Final = tuple(phase for _, _, _, phases in PHASES for phase in phases)

FILES: Final = "encrypted"
"""The folder of untrusted storage for owner and cloud. Protected files carry their path below it."""


@dataclass(frozen=True, slots=True)
class Program:
    """An ordinary program with its files: what the demo protects."""

    name: str
    script: Path
    arguments: tuple[str, ...]
    inputs: tuple[str, ...]
    output: str
    prepare: Path
    """A script that lays out the inputs in the folder that it is given."""

    @property
    def result(self) -> str:
        """The file that holds the program's result, relative to where it runs."""
        return self.arguments[-1]


CLASSIFY: Final = Program(
    name="classify",
    script=REPOSITORY / "examples" / "classify" / "classify.py",
    arguments=("model/efficientnet-lite0.pth", "model/labels.txt", "input/photo.jpg", "output/top5.txt"),
    inputs=("model", "input"),
    output="output",
    prepare=REPOSITORY / "examples" / "classify" / "prepare.py",
)


@dataclass(frozen=True, slots=True)
class Step:
    """One step as it went: the paper's number (0: before it begins), who, what, how long, and what it showed."""

    number: int
    actor: str
    name: str
    seconds: float
    shown: tuple[str, ...]


@dataclass
class Journey:
    """The state that the steps share, and their record."""

    world: World
    program: Program = CLASSIFY
    watch: Callable[[Step], None] = lambda _step: None
    steps: list[Step] = field(default_factory=list)
    root_fingerprint: str = ""
    measurement: str = ""
    maker_url: str = ""
    server: tuple[str, int] = ("127.0.0.1", 0)
    gramine_server: tuple[str, int] = ("127.0.0.1", 0)
    taps: list[Tap] = field(default_factory=list)
    phases: dict[str, float] = field(default_factory=dict)
    plain_result: str = ""
    decrypted_result: str = ""

    def __post_init__(self) -> None:
        self.wire = self.world.folder / "network.bytes"

    @contextmanager
    def step(self, number: int, actor: str, name: str) -> Iterator[list[str]]:
        """Time a step. Lines appended to what it yields are shown with it."""
        shown: list[str] = []
        began = time.monotonic()
        yield shown
        self._record(Step(number, actor, name, time.monotonic() - began, tuple(shown)))

    def _record(self, done: Step) -> None:
        self.steps.append(done)
        self.watch(done)

    @property
    def template(self) -> Path:
        """The owner's manifest template."""
        return self.world.owner.folder / f"{self.program.name}.manifest.template"

    @property
    def tee(self) -> str:
        """The simulated platform as a policy names it."""
        return f"sim:{self.root_fingerprint}"

    def walk(self) -> None:
        """Go all the steps. Raises StepFailed at the first that does not work."""
        self.lay_out()
        at_once(self.propose, self._ciphertext)
        self.build()
        self.approve()
        self.serve()
        self.run()
        self.decrypt()
        self.run_over_ra_tls()

    def _ciphertext(self) -> None:
        self.identity()
        self.collateral()
        self.encrypt()

    def lay_out(self) -> None:
        """The owner's files and script."""
        owner, program = self.world.owner, self.program
        with self.step(0, "owner", "lays out her files and her script"):
            owner.python(program.prepare, owner.folder)
            shutil.copy(program.script, owner.folder)

    def propose(self) -> None:
        """A plain run to compare with, and the manifest template that follows from it."""
        owner, program = self.world.owner, self.program
        with self.step(0, "owner", "runs the script plainly, to compare with later") as shown:
            (owner.folder / program.output).mkdir()
            owner.adyton("new", "--key", KEY, program.script.name, *program.arguments)
            self.plain_result = (owner.folder / program.result).read_text(encoding="utf-8")
            shutil.rmtree(owner.folder / program.output)
            shown.append(f"adyton new watched the run and proposed {self.template.name}")

    def identity(self) -> None:
        """The cloud's simulated TEE, the owner's identity and her key."""
        owner = self.world.owner
        with self.step(0, "cloud", "has a machine with a TEE, here a simulated one") as shown:
            made = self.world.cloud.adyton("platform", "new", self.world.platform, "--json").document
            self.root_fingerprint = made["root_fingerprint"]
            shown.append(f"its maker's root certificate: {self.root_fingerprint}")
        with self.step(0, "owner", "makes her identity (a CA of her own) and a key for her files") as shown:
            owner.adyton("init", "--name", "owner")
            owner.adyton("key", "new", KEY)
            shown.append("adyton init; adyton key new hospital")

    def collateral(self) -> None:
        """Step 1: the platform's certificates, CRLs, TCB info and QE identity, from its maker's service."""
        with self.step(1, "owner", "fetches the platform's collateral from its maker") as shown:
            maker = self.world.actor("maker")
            ready = maker.folder / "ready.json"
            service = maker.start(
                "platform", "serve", self.world.platform, "--listen", "127.0.0.1:0", "--ready-file", ready, ready=ready
            )
            self.maker_url = service["url"]
            self.fetch_collateral()
            shown.append("root CA and PCK CRLs, TCB info, QE identity: each signed, each verified")

    def fetch_collateral(self) -> None:
        """Let the owner fetch what the maker publishes now."""
        self.world.owner.adyton("collateral", "fetch", "--pcs", self.maker_url, "--root", self.root_fingerprint)

    def encrypt(self) -> None:
        """Step 2: inputs become protected files in untrusted storage."""
        owner, program = self.world.owner, self.program
        with self.step(2, "owner", "encrypts model and photo, and sends the ciphertext to untrusted storage") as shown:
            for name in program.inputs:
                owner.adyton("encrypt", name, "-o", f"{FILES}/{name}", "--key", KEY)
            (self.world.storage / program.output).mkdir()
            sealed = [path for path in self.world.storage.rglob("*") if path.is_file()]
            size = sum(path.stat().st_size for path in sealed)
            shown.append(f"{len(sealed)} protected files, {size / 1e6:.1f} MB, in Gramine's format")

    def build(self) -> None:
        """Before step 3: template to final manifest, hashed, measured and signed."""
        owner, program = self.world.owner, self.program
        with self.step(0, "owner", "builds the manifest: files hashed, the whole measured and signed") as shown:
            built = owner.adyton("build", self.template.name, "--json").document
            self.measurement = built["measurement"]
            shutil.copy(owner.folder / program.script.name, self.world.cloud.folder)
            self.send_manifest()
            shown.append(f"{built['trusted_files']} trusted files, {built['trusted_bytes'] / 1e6:.0f} MB")
            shown.append(f"measurement {self.measurement}")

    def send_manifest(self) -> None:
        """The cloud gets the manifest and its signature."""
        for name in (f"{self.program.name}.manifest", f"{self.program.name}.sig"):
            shutil.copy(self.world.owner.folder / name, self.world.cloud.folder)

    def approve(self) -> None:
        """Before step 3: the owner allows that measurement, on that platform, to have that key."""
        with self.step(0, "owner", "approves this measurement, on this platform, for this key") as shown:
            approved = self.allow(self.world.owner.folder / f"{self.program.name}.manifest")
            shown.append("what the measurement does not cover is shown to her:")
            shown += [f"- {line}" for line in approved["not_covered"]]

    def allow(self, manifest: Path, *options: str) -> dict[str, list[str]]:
        """Let the owner approve a manifest for her key on the simulated platform."""
        words = ("--key", KEY, "--tee", self.tee, "--json", *options)
        approved: dict[str, list[str]] = self.world.owner.adyton("approve", manifest, *words).document
        return approved

    def serve(self) -> None:
        """Steps 4 and 5 wait here: the key server, a process of its own on the owner's machine."""
        with self.step(0, "owner", "starts her key server; a network that listens in lies between") as shown:
            ready = self.world.owner.folder / "ready.json"
            started = self.world.owner.start(
                "serve",
                "--listen",
                "127.0.0.1:0",
                "--gramine-listen",
                "127.0.0.1:0",
                "--ready-file",
                ready,
                ready=ready,
            )
            self.server = _address(started["adyton"])
            self.gramine_server = _address(started["ra-tls"])
            shown.append("speaks Adyton's release protocol and Gramine's RA-TLS provisioning")

    def tap(self, target: tuple[str, int]) -> str:
        """A new tapped wire to the target. Returns the address of its near end."""
        self.taps.append(Tap(target, self.wire))
        return self.taps[-1].address

    def start_program(self, server: tuple[str, int], *options: str) -> Outcome:
        """Let the cloud run the protected program to its end."""
        manifest = f"{self.program.name}.manifest"
        return self.world.cloud.adyton(
            "run", manifest, "--tee", "sim", "--key-server", self.tap(server), "--json", *options
        )

    def run(self) -> None:
        """Steps 3 to 7: attestation, key release, files, computation."""
        outcome = self.start_program(self.server)
        self.phases = outcome.document["seconds"]
        inside = sum(seconds for phase, seconds in self.phases.items() if phase in RUN)
        self.phases["start"] = round(outcome.seconds - inside, 4)
        for number, actor, name, phases in PHASES:
            seconds = sum(self.phases.get(phase, 0.0) for phase in phases)
            self._record(Step(number, actor, name, seconds, ()))

    def decrypt(self) -> None:
        """Step 8: the owner opens the result, and compares it with the plain run's."""
        with self.step(8, "owner", "fetches the encrypted result and opens it") as shown:
            shown.append(self._open_result())

    def _open_result(self) -> str:
        owner, program = self.world.owner, self.program
        owner.adyton("decrypt", f"{FILES}/{program.result}", "-o", "result.txt", "--key", KEY, "--force")
        self.decrypted_result = (owner.folder / "result.txt").read_text(encoding="utf-8")
        same = self.decrypted_result == self.plain_result
        return "equal to the plain run, byte for byte" if same else "NOT equal to the plain run"

    def run_over_ra_tls(self) -> None:
        """Steps 3 to 8 once more, over Gramine's own protocol: a certificate that carries the evidence."""
        with self.step(0, "all", "the same over Gramine's RA-TLS provisioning, which she allows by name") as shown:
            with self._manifest_that_takes_unsigned_grants() as manifest:
                self.allow(manifest, "--protocol", "ra-tls", "--allow", "unsigned-grants")
                self.world.storage.joinpath(self.program.result).unlink()
                self.start_program(self.gramine_server, "--provisioning", "ra-tls")
            shown.append(self._open_result())

    @contextmanager
    def _manifest_that_takes_unsigned_grants(self) -> Iterator[Path]:
        """Another program, for one run: its manifest opens what no other of the owner's does."""
        owner, name = self.world.owner, self.program.name
        files = [owner.folder / f"{name}.{ending}" for ending in ("manifest.template", "manifest", "sig")]
        before = [file.read_bytes() for file in files]
        template = self.template.read_text(encoding="utf-8")
        self.template.write_text(
            template.replace("[adyton]\n", "[adyton]\ninsecure__ra_tls = true\n"), encoding="utf-8"
        )
        owner.adyton("build", self.template.name)
        self.send_manifest()
        yield files[1]
        for file, content in zip(files, before, strict=True):
            file.write_bytes(content)
        self.send_manifest()


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)
