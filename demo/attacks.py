"""What the hostile cloud tries, one changed thing at a time, and who must refuse it.

Every attempt is made with Adyton's own verbs, in a copy of the cloud's folder.  An attempt that the key server must
refuse comes with `allow`: the owner's act that takes away exactly the obstacle.  Tests use it to show that nothing but
the named check stood between the attempt and the key.
"""

from __future__ import annotations

import re
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from demo.steps import FILES, KEY
from demo.world import install_runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from demo.steps import Journey
    from demo.world import Actor, Outcome

SERVER: Final = "key server"
ENCLAVE: Final = "enclave"

_PIN: Final = 'owners.owner = { ca_file = "file:owner-ca.crt" }\n'
"""The owner's identity in the template: the host leaves it as it is, or her server would not be asked at all."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """An attempt and what came of it."""

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


@dataclass(frozen=True)
class Scene:
    """Where an attempt takes place: a copy of the cloud's folder, in the hands of the host."""

    journey: Journey
    cloud: Actor

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
        if not home.exists():
            self.cloud.adyton("init", "--home", home, "--name", "mallory")
        self.cloud.adyton("build", self.template.name, "--home", home)

    def run(self, *, server: str | None = None, platform: Path | None = None) -> Outcome:
        """Start the program as it is now; by default against the owner's key server, on the cloud's platform."""
        journey = self.journey
        more = () if platform is None else ("--sim-platform", platform)
        address = journey.tap(journey.server) if server is None else server
        return self.cloud.adyton(
            "run", self.manifest.name, "--tee", "sim", "--key-server", address, "--json", *more, expect=None
        )


@dataclass(frozen=True, slots=True)
class Attempt:
    """One thing that the host tries."""

    name: str
    what: str
    refused_by: str
    make: Callable[[Scene], Outcome]
    allow: Callable[[Scene], None] | None = None


def _allow_manifest(scene: Scene) -> None:
    journey = scene.journey
    owner = journey.world.owner
    environment = {name: scene.cloud.extra[name] for name in ("PYTHONPATH",) if name in scene.cloud.extra}
    owner.adyton("approve", scene.manifest, "--key", KEY, "--tee", journey.tee, env=environment)


def _script(scene: Scene) -> Outcome:
    script = scene.cloud.folder / scene.journey.program.script.name
    script.write_text(script.read_text(encoding="utf-8") + "\n# and one more line\n", encoding="utf-8")
    scene.rebuild()
    return scene.run()


def _library(scene: Scene) -> Outcome:
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
    return scene.run()


def _module(scene: Scene) -> Outcome:
    runtime = scene.cloud.folder / "runtime"
    install_runtime(runtime)
    module = runtime / "adyton" / "vfs" / "stage.py"
    module.write_text(module.read_text(encoding="utf-8") + "\n# and one more line\n", encoding="utf-8")
    scene.cloud.extra["PYTHONPATH"] = str(runtime)
    scene.rebuild()
    return scene.run()


def _argument(scene: Scene) -> Outcome:
    first = scene.journey.program.arguments[0]
    scene.edit(f', "{first}"', f', "-i", "{first}"')
    scene.rebuild()
    return scene.run()


def _variable(scene: Scene) -> Outcome:
    scene.edit('loader.env.LANG = "C.UTF-8"\n', 'loader.env.LANG = "C.UTF-8"\nloader.env.PYTHONINSPECT = "1"\n')
    scene.rebuild()
    return scene.run()


def _mount(scene: Scene) -> Outcome:
    text = scene.template.read_text(encoding="utf-8")
    output = f"{FILES}/{scene.journey.program.output}"
    plain, count = re.subn(
        rf'\{{ type = "encrypted", path = "([^"]+)", uri = "file:{output}", key_name = "\w+" \}}',
        r'{ path = "\1", uri = "file:plain" }',
        text,
    )
    if count != 1:
        raise ValueError("the template has no encrypted output")
    (scene.cloud.folder / "plain").mkdir()
    scene.template.write_text(plain.replace("[sgx]\n", '[sgx]\nallowed_files = ["file:plain/"]\n'), encoding="utf-8")
    scene.rebuild()
    return scene.run()


def _pinned_server(scene: Scene) -> Outcome:
    scene.edit(_PIN, _PIN.replace(" }", ', server_name = "localhost" }'))
    scene.rebuild()
    return scene.run()


def _other_owner(scene: Scene) -> Outcome:
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
    ready = clinic.folder / "ready.json"
    started = clinic.start("serve", "--listen", "127.0.0.1:0", "--ready-file", ready, ready=ready)
    return scene.run(server=started["adyton"])


def _other_root(scene: Scene) -> Outcome:
    other = scene.cloud.folder / "platform"
    if not other.exists():
        scene.cloud.adyton("platform", "new", other)
    return scene.run(platform=other)


def _out_of_date(scene: Scene) -> Outcome:
    journey = scene.journey
    journey.world.cloud.adyton("platform", "raise-tcb", journey.world.platform, "--advisory", "INTEL-SA-99999")
    journey.fetch_collateral()
    return scene.run()


@contextmanager
def _flipped_bit(path: Path, offset: int) -> Iterator[None]:
    content = path.read_bytes()
    path.write_bytes(content[:offset] + bytes([content[offset] ^ 1]) + content[offset + 1 :])
    try:
        yield
    finally:
        path.write_bytes(content)


def _tampered_weights(scene: Scene) -> Outcome:
    journey = scene.journey
    largest = max(journey.world.storage.rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else -1)
    with _flipped_bit(largest, largest.stat().st_size // 2):
        return scene.run()


def _false_server(scene: Scene) -> Outcome:
    journey = scene.journey
    scene.cloud.extra["ADYTON_HOME"] = str(scene.cloud.folder / "home")
    scene.cloud.adyton("init", "--name", "owner")
    scene.cloud.adyton("key", "new", KEY)
    scene.cloud.adyton("collateral", "fetch", "--pcs", journey.maker_url, "--root", journey.root_fingerprint)
    scene.cloud.adyton("approve", scene.manifest, "--key", KEY, "--tee", journey.tee)
    ready = scene.cloud.folder / "ready.json"
    started = scene.cloud.start("serve", "--listen", "127.0.0.1:0", "--ready-file", ready, ready=ready)
    return scene.run(server=started["adyton"])


ATTEMPTS: Final = (
    Attempt("script", "one line added to the script", SERVER, _script, _allow_manifest),
    Attempt("library", "a shared library exchanged", SERVER, _library, _allow_manifest),
    Attempt("module", "one line added to a module of Adyton", SERVER, _module, _allow_manifest),
    Attempt("argument", "one more argument for the program", SERVER, _argument, _allow_manifest),
    Attempt("variable", "one more environment variable", SERVER, _variable, _allow_manifest),
    Attempt("mount", "the output mounted without encryption", SERVER, _mount, _allow_manifest),
    Attempt("pinned server", "another key server's name pinned", SERVER, _pinned_server, _allow_manifest),
    Attempt("owner", "an owner who did not approve it", SERVER, _other_owner),
    Attempt("root", "another simulated platform's root", SERVER, _other_root),
    Attempt("tampered weights", "one bit of the encrypted weights flipped", ENCLAVE, _tampered_weights),
    Attempt("false server", "a key server of the host's own", ENCLAVE, _false_server),
    Attempt("out of date", "the platform after newer TCB info", SERVER, _out_of_date),
)
"""In this order: the last one changes the platform for good."""


def attempt(journey: Journey, what: Attempt) -> tuple[Scene, Refusal]:
    """Make one attempt in a fresh copy of the cloud's folder; says whether the key was released."""
    scene = scene_of(journey, what.name)
    return scene, judge(what, what.make(scene))


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
    """Read a run's end: which error, with which reasons."""
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
