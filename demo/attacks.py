"""The attempts of the hostile cloud, each with one change, and the party that must refuse it.

Every attempt is made with Adyton's own verbs, in a copy of the cloud's folder. An attempt that the key server must
refuse comes with `allow`. This act of the owner removes exactly the one obstacle. Tests use it to show that only the
named check kept the attempt from the key.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import ssl
import time
from dataclasses import dataclass, replace
from threading import Lock
from typing import TYPE_CHECKING, Final

from demo.steps import FILES, KEY
from demo.world import install_runtime

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from demo.steps import Journey
    from demo.world import Actor, Outcome

RECORD_LIMIT_S: Final = 120
SERVER: Final = "key server"
ENCLAVE: Final = "enclave"

_MAKING_SIGNER: Final = Lock()

_PIN: Final = 'owners.owner = { ca_file = "file:owner-ca.crt" }\n'
"""The owner's identity in the template: the host leaves it as it is, or her server would not be asked at all."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """An attempt and its result."""

    attempt: str
    refused_by: str
    released: bool
    error: str
    message: str
    check: str
    expected: str
    seen: str
    remedy: str
    seconds: float
    record: str = ""
    """The change as the owner's record describes it. The cloud does not see it."""


@dataclass
class Scene:
    """The place of an attempt: a copy of the cloud's folder, under control of the host."""

    journey: Journey
    cloud: Actor
    server: str = ""
    """The key server of the program. By default the owner's own."""
    platform: Path | None = None
    """The simulated platform. By default the cloud's own."""
    owner: Actor | None = None
    """The actor that would have to approve it. By default the owner."""
    named: tuple[str, ...] = ()
    """Exposures of the changed manifest. An approval has to name each."""

    @property
    def template(self) -> Path:
        """The host's copy of the manifest template."""
        return self.cloud.folder / self.journey.template.name

    @property
    def manifest(self) -> Path:
        """The final manifest that the host made, or the owner's own."""
        return self.cloud.folder / f"{self.journey.program.name}.manifest"

    def edit(self, old: str, new: str) -> None:
        """Change the template in one place."""
        text = self.template.read_text(encoding="utf-8")
        if text.count(old) != 1:
            raise ValueError(f"{old!r} stands {text.count(old)} times in the template")
        self.template.write_text(text.replace(old, new), encoding="utf-8")

    def rebuild(self) -> None:
        """Build the changed template, signed by a signer that the host made for itself."""
        home = self.journey.world.folder / "mallory"
        with _MAKING_SIGNER:
            if not home.exists():
                self.cloud.adyton("init", "--home", home, "--name", "mallory")
        self.cloud.adyton("build", self.template.name, "--home", home)

    def run(self) -> Outcome:
        """Start the program as it is now."""
        journey = self.journey
        more = () if self.platform is None else ("--sim-platform", self.platform)
        address = self.server or journey.tap(journey.server)
        return self.cloud.adyton(
            "run", self.manifest.name, "--tee", "sim", "--key-server", address, "--json", *more, expect=None
        )


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt of the host.

    `make` sets the scene.  `allow` takes away the obstacle that must stop the attempt, and nothing else. `then` is the
    error that it meets further on (empty: none, the program gets its key): files do not open with a false key, and
    evidence made for a server of another name is refused by its report data even where the measurement is approved.
    """

    name: str
    what: str
    refused_by: str
    make: Callable[[Scene], None]
    allow: Callable[[Scene], None]
    then: str = ""
    alone: bool = False
    """Whether it changes what other attempts use, so that none of them may be made at the same time."""


def _allow_manifest(scene: Scene) -> None:
    journey = scene.journey
    environment = {"PYTHONPATH": scene.cloud.extra["PYTHONPATH"]}
    owner = scene.owner or journey.world.owner
    named = [word for name in scene.named for word in ("--allow", name)]
    owner.adyton("approve", scene.manifest, "--key", KEY, "--tee", journey.tee, *named, env=environment)


def _script(scene: Scene) -> None:
    script = scene.cloud.folder / scene.journey.program.script.name
    script.write_text(script.read_text(encoding="utf-8") + "\n# and one more line\n", encoding="utf-8")
    scene.rebuild()


def _library(scene: Scene) -> None:
    listed = scene.cloud.folder / f"{scene.journey.program.name}.trusted"
    match = re.search(r"^(/.*/libz\.so[.\d]*|/.*/libm\.so\.6)$", listed.read_text(encoding="utf-8"), re.MULTILINE)
    if match is None:
        raise ValueError("the program uses neither libz nor libm")
    path = match.group()
    own = scene.cloud.folder / "library.so"
    shutil.copyfile(path, own)
    with own.open("ab") as library:
        library.write(b"\0")
    text = listed.read_text(encoding="utf-8")
    listed.write_text(text.replace(f"\n{path}\n", f"\n{own.name}\n"), encoding="utf-8")
    mount = f'  {{ path = "{path}", uri = "file:{own.name}" }},\n'
    scene.edit('  { type = "tmpfs", path = "/tmp" },\n', f'{mount}  {{ type = "tmpfs", path = "/tmp" }},\n')
    scene.rebuild()


def _module(scene: Scene) -> None:
    runtime = scene.cloud.folder / "runtime"
    install_runtime(runtime)
    module = runtime / "adyton" / "vfs" / "stage.py"
    module.write_text(module.read_text(encoding="utf-8") + "\n# and one more line\n", encoding="utf-8")
    scene.cloud.extra["PYTHONPATH"] = str(runtime)
    scene.rebuild()


def _argument(scene: Scene) -> None:
    first = scene.journey.program.arguments[0]
    scene.edit(f', "{first}"', f', "-i", "{first}"')
    scene.rebuild()


def _variable(scene: Scene) -> None:
    scene.edit('loader.env.LANG = "C.UTF-8"\n', 'loader.env.LANG = "C.UTF-8"\nloader.env.PYTHONINSPECT = "1"\n')
    scene.rebuild()


def _mount(scene: Scene) -> None:
    output = f"{FILES}/{scene.journey.program.output}"
    text = scene.template.read_text(encoding="utf-8")
    found = re.search(rf'\{{ type = "encrypted", (path = "[^"]+"), uri = "file:{output}(/[^"]*)?", [^}}]*\}}', text)
    if found is None:
        raise ValueError("the template has no encrypted output")
    plain = scene.cloud.folder / "plain"
    plain.mkdir()
    below = (found[2] or "").strip("/")
    if below:
        (plain / below).touch()
    scene.edit(found[0], f'{{ {found[1]}, uri = "file:plain/{below}" }}')
    scene.edit("[sgx]\n", '[sgx]\nallowed_files = ["file:plain/"]\n')
    scene.named = ("allowed-file=file:plain/",)
    scene.rebuild()


def _pinned_server(scene: Scene) -> None:
    scene.edit(_PIN, _PIN.replace(" }", ', server_name = "localhost" }'))
    scene.rebuild()


def _other_owner(scene: Scene) -> None:
    journey = scene.journey
    clinic = journey.world.actor("clinic", ADYTON_HOME=str(journey.world.folder / "clinic" / "home"))
    clinic.adyton("init", "--name", "clinic")
    clinic.adyton("key", "new", KEY)
    clinic.adyton("collateral", "fetch", "--pcs", journey.maker_url, "--root", journey.root_fingerprint)
    shutil.copy(clinic.folder / "home" / "ca.crt", scene.cloud.folder / "owner-ca.crt")
    owners_own = scene.template.read_text(encoding="utf-8")
    scene.edit('loader.env.LANG = "C.UTF-8"\n', 'loader.env.LANG = "C.UTF-8"\nloader.env.CLINIC = "1"\n')
    scene.rebuild()
    clinic.adyton("approve", scene.manifest, "--key", KEY, "--tee", journey.tee)
    scene.template.write_text(owners_own, encoding="utf-8")
    scene.rebuild()
    scene.owner, scene.server = clinic, _serve(clinic)


def _serve(owner: Actor) -> str:
    ready = owner.folder / "ready.json"
    address: str = owner.start("serve", "--listen", "127.0.0.1:0", "--ready-file", ready, ready=ready)["adyton"]
    return address


def _other_root(scene: Scene) -> None:
    scene.platform = scene.cloud.folder / "platform"
    scene.cloud.adyton("platform", "new", scene.platform)


def _allow_other_root(scene: Scene) -> None:
    maker = scene.journey.world.actor("other-maker")
    ready = maker.folder / "ready.json"
    here = ("--listen", "127.0.0.1:0", "--ready-file", ready)
    url = maker.start("platform", "serve", str(scene.platform), *here, ready=ready)["url"]
    root = scene.cloud.adyton("platform", "show", str(scene.platform), "--json").document["root_fingerprint"]
    owner = scene.journey.world.owner
    owner.adyton("collateral", "fetch", "--pcs", url, "--root", root)
    owner.adyton("approve", scene.manifest, "--key", KEY, "--tee", f"sim:{root}")


def _out_of_date(scene: Scene) -> None:
    journey = scene.journey
    journey.world.cloud.adyton("platform", "raise-tcb", journey.world.platform, "--advisory", ADVISORY)
    journey.fetch_collateral()


def _allow_out_of_date(scene: Scene) -> None:
    journey = scene.journey
    accepted = ("--tcb", "UpToDate", "--tcb", "OutOfDate", "--advisory", ADVISORY)
    journey.world.owner.adyton("approve", scene.manifest, "--key", KEY, "--tee", journey.tee, *accepted)


def _flip_bit(scene: Scene) -> None:
    """Flip one bit in the middle of the largest protected file. Done twice, nothing has changed."""
    inputs = scene.journey.world.storage / scene.journey.program.inputs[0]
    files = (path for path in inputs.rglob("*") if path.is_file())
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)


def _restored(_scene: Scene) -> None:
    """The bit was flipped back as soon as the attempt was over."""


def _false_server(scene: Scene) -> None:
    journey = scene.journey
    scene.cloud.extra["ADYTON_HOME"] = str(scene.cloud.folder / "home")
    scene.cloud.adyton("init", "--name", "owner")
    scene.cloud.adyton("key", "new", KEY)
    scene.cloud.adyton("collateral", "fetch", "--pcs", journey.maker_url, "--root", journey.root_fingerprint)
    owners_ca = ssl.PEM_cert_to_DER_cert((scene.cloud.folder / "owner-ca.crt").read_text(encoding="ascii"))
    foreign = f"foreign-ca={KEY}@{hashlib.sha256(owners_ca).hexdigest()}"
    scene.cloud.adyton("approve", scene.manifest, "--key", KEY, "--tee", journey.tee, "--allow", foreign)
    scene.owner, scene.server = scene.cloud, _serve(scene.cloud)


def _allow_false_server(scene: Scene) -> None:
    """Pin the host's CA instead of the owner's: then the program takes the host's key for the owner's."""
    shutil.copy(scene.cloud.folder / "home" / "ca.crt", scene.cloud.folder / "owner-ca.crt")
    scene.rebuild()
    _allow_manifest(scene)


ADVISORY: Final = "INTEL-SA-99999"

ATTEMPTS: Final = (
    Attempt("script", "one line added to the script", SERVER, _script, _allow_manifest),
    Attempt("library", "a shared library exchanged", SERVER, _library, _allow_manifest),
    Attempt("module", "one line added to a module of Adyton", SERVER, _module, _allow_manifest),
    Attempt("argument", "one more argument for the program", SERVER, _argument, _allow_manifest),
    Attempt("variable", "one more environment variable", SERVER, _variable, _allow_manifest),
    Attempt("mount", "the output mounted without encryption", SERVER, _mount, _allow_manifest),
    Attempt("pinned server", "another key server's name pinned", SERVER, _pinned_server, _allow_manifest, "Denied"),
    Attempt("owner", "an owner who did not approve it", SERVER, _other_owner, _allow_manifest, "IntegrityError"),
    Attempt("root", "another simulated platform's root", SERVER, _other_root, _allow_other_root),
    Attempt("tampered input", "one bit of an encrypted input flipped", ENCLAVE, _flip_bit, _restored, alone=True),
    Attempt(
        "false server", "a key server of the host's own", ENCLAVE, _false_server, _allow_false_server, "IntegrityError"
    ),
    Attempt("out of date", "the platform after newer TCB info", SERVER, _out_of_date, _allow_out_of_date, alone=True),
)
"""In this order: the last one changes the platform for good."""


def attempt(journey: Journey, what: Attempt) -> tuple[Scene, Refusal]:
    """Make one attempt in a fresh copy of the cloud's folder. Says whether the key was released."""
    scene = scene_of(journey, what.name)
    what.make(scene)
    refusal = judge(what, scene.run())
    if what.refused_by == SERVER:
        refusal = replace(refusal, record=_recorded(scene.owner or journey.world.owner, refusal))
    if what.make is _flip_bit:
        _flip_bit(scene)
    return scene, refusal


def _recorded(owner: Actor, refusal: Refusal) -> str:
    """The owner's record of a refusal, by its id: the true reason and the change.

    The key server compares a refused program with approved ones after its answer, so this waits for it.
    """
    found = re.search(r"\bd-[0-9a-f]{20}\b", refusal.message)
    if found is None:
        return ""
    deadline = time.monotonic() + RECORD_LIMIT_S
    while True:
        entries = owner.adyton("audit", "show", found[0], "--json").document["entries"]
        bodies = {entry["kind"]: entry["body"] for entry in entries}
        denial = bodies["denial"]
        reason: dict[str, str] = denial["reason"]
        if "evidence" not in denial:  # it did not verify, so there is nothing to compare
            return reason["message"]
        if "explanation" in bodies:
            changed: list[str] = bodies["explanation"]["changed"]
            return "; ".join(changed) if changed else f"{reason['check']}: {reason['seen']}"
        if time.monotonic() > deadline:
            return reason["message"]
        time.sleep(0.2)


def scene_of(journey: Journey, name: str) -> Scene:
    """A fresh copy of the cloud's folder, with the template and the owner's CA certificate, which are no secrets."""
    name = "host-" + name.replace(" ", "-")
    world = journey.world
    folder = world.folder / name
    shutil.copytree(world.cloud.folder, folder, symlinks=True, ignore=shutil.ignore_patterns("tmp", "runtime"))
    cloud = world.actor(name, **world.cloud.extra)
    for file in (journey.template, journey.template.with_name(f"{journey.program.name}.trusted")):
        shutil.copy(file, folder)
    shutil.copy(world.owner.folder / "home" / "ca.crt", folder / "owner-ca.crt")
    scene = Scene(journey, cloud)
    scene.edit("[adyton]\n", f"[adyton]\n{_PIN}")
    return scene


def judge(what: Attempt, outcome: Outcome) -> Refusal:
    """Read the error and its reasons from a run's result."""
    found = outcome.document
    released = "exit_code" in found
    return Refusal(
        attempt=what.what,
        refused_by=what.refused_by,
        released=released,
        error=found.get("error", ""),
        message=found.get("message", ""),
        check=found.get("check", ""),
        expected=found.get("expected", ""),
        seen=found.get("seen", ""),
        remedy=found.get("remedy", ""),
        seconds=outcome.seconds,
    )
