"""Show what the cloud could see: names and sizes of ciphertext, and no canary in all its files and traffic.

The same search over a program that leaks on purpose (the positive control) must find every secret in every form.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from demo.attacks import scene_of
from demo.canary import Canary, draw, search
from demo.steps import KEY
from demo.world import StepFailed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from demo.steps import Journey

ELSEWHERE: Final = ("/tmp", "/var/tmp", "/dev/shm", "/run", "/var/log", "/var/lib", "/root", "/home")  # noqa: S108
"""Places on this machine for a leak outside the demo's own folder."""

CONTROL: Final = "leak"
LEAK: Final = Path(__file__).with_name("leak.py")
_MOST_BYTES: Final = 512 << 20


@dataclass(frozen=True, slots=True, order=True)
class Found:
    """A found secret, its form, and its file."""

    secret: str
    form: str
    where: str


@dataclass(frozen=True, slots=True)
class Searched:
    """A search: the number of files and bytes, and the findings."""

    files: int
    size_bytes: int
    found: tuple[Found, ...]

    @property
    def secrets(self) -> frozenset[str]:
        """The secrets that were found."""
        return frozenset(entry.secret for entry in self.found)

    @property
    def forms(self) -> frozenset[str]:
        """The forms in which something was found."""
        return frozenset(entry.form for entry in self.found)


def secrets_of(journey: Journey) -> list[Canary]:
    """Canaries of everything secret: the inputs' bytes, the model's tensors, the result's text, and the key."""
    owner = journey.world.owner
    canaries: list[Canary] = []
    for name in journey.program.inputs:
        for path in sorted((owner.folder / name).rglob("*")):
            if path.is_file():
                canaries += draw(path.name, path.read_bytes(), count=12)
                if path.suffix == ".pth":
                    canaries += _tensors(path)
    canaries += draw("the result", journey.plain_result.encode(), count=4)
    exported = owner.folder / "key.bin"
    if not exported.exists():
        owner.adyton("key", "export", KEY, "-o", exported)
    return canaries + draw("the key", exported.read_bytes(), count=1)


def _tensors(path: Path) -> list[Canary]:
    import torch

    weights = torch.load(path, map_location="cpu", weights_only=True)
    largest = sorted(weights.values(), key=lambda tensor: tensor.numel())[-6:]
    return [canary for tensor in largest for canary in draw("tensors of the model", tensor.numpy().tobytes(), count=2)]


def search_files(paths: Iterable[Path], canaries: list[Canary]) -> Searched:
    """Search these files for the canaries."""
    files, size, found = 0, 0, set[Found]()
    for path in paths:
        try:
            data = path.read_bytes()
        except OSError:
            continue
        files += 1
        size += len(data)
        found |= {Found(sighting.secret, sighting.form, path.name) for sighting in search(data, canaries)}
    return Searched(files, size, tuple(sorted(found)))


def regular_files(place: Path, *, changed_since: float = 0.0) -> Iterator[Path]:
    """Every regular file below the place that changed since then, links and other file systems left out."""
    for folder, folders, names in os.walk(place):
        folders[:] = [name for name in folders if not Path(folder, name).is_mount()]
        for name in names:
            path = Path(folder, name)
            try:
                facts = path.lstat()
            except OSError:
                continue
            recent = max(facts.st_mtime, facts.st_ctime) >= changed_since
            if stat.S_ISREG(facts.st_mode) and recent and facts.st_size <= _MOST_BYTES:
                yield path


def host_files(journey: Journey, began: float) -> Iterator[Path]:
    """All files and traffic of the host, and every other file on this machine that changed since the demo began.

    Left out are the owner's own folder, where the secrets belong, and the leak of the positive control.
    """
    world = journey.world
    control = f"host-{CONTROL}"
    yield journey.wire
    for folder in world.folder.iterdir():
        if folder.is_dir() and folder not in (world.owner.folder, world.folder / control):
            yield from (path for path in regular_files(folder) if path.stem != control)
    own = world.folder.resolve()
    for place in ELSEWHERE:
        for path in regular_files(Path(place), changed_since=began):
            if own not in path.resolve().parents:
                yield path


def positive_control(journey: Journey, canaries: list[Canary]) -> Searched:
    """Let a program leak everything on purpose, in every form, and search the host's files afterwards."""
    scene = scene_of(journey, CONTROL)
    program = journey.program
    leak = scene.cloud.folder / LEAK.name
    leak.write_bytes(LEAK.read_bytes())
    scene.edit(f'"{program.script.name}", ', f'"{LEAK.name}", "{program.script.name}", ')
    scene.edit('network = "none"\n', 'network = "none"\ninsecure__stdio = true\n')
    scene.edit("[sgx]\n", '[sgx]\nallowed_files = ["file:leaked/"]\n')
    with (scene.cloud.folder / f"{program.name}.trusted").open("a", encoding="utf-8") as trusted:
        trusted.write(f"{LEAK.name}\n")
    leaked = scene.cloud.folder / "leaked"
    leaked.mkdir()
    scene.rebuild()
    journey.allow(scene.manifest, "--allow", "output-in-clear", "--allow", "allowed-file=file:leaked/")
    outcome = scene.run()
    if outcome.status != 0:
        raise StepFailed("adyton run (the positive control)", outcome)
    (leaked / "printed").write_text(outcome.out + outcome.err, encoding="utf-8")
    return search_files(regular_files(leaked), canaries)
