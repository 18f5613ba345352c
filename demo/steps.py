"""Steps 1 to 8 of the paper's figure 3, each a verb that an actor types in its own folder."""

from __future__ import annotations

import shutil
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from demo.tap import Tap
from demo.world import REPOSITORY, World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EXAMPLE: Final = REPOSITORY / "examples" / "classify"
KEY: Final = "hospital"
PROGRAM: Final = "classify"


@dataclass(frozen=True, slots=True)
class Step:
    """One step as it went: the paper's number (0: before it begins), who, what, and how long it took."""

    number: int
    actor: str
    name: str
    seconds: float
    shown: tuple[str, ...]


@dataclass
class Journey:
    """What the steps hand on to each other, and their record."""

    world: World
    tap: Tap | None = None
    server: str = ""
    root_fingerprint: str = ""
    measurement: str = ""
    plain: str = ""
    decrypted: str = ""
    not_covered: tuple[str, ...] = ()
    steps: list[Step] = field(default_factory=list)
    watch: Callable[[Step], None] = lambda _step: None

    @contextmanager
    def step(self, number: int, actor: str, name: str) -> Iterator[list[str]]:
        """Time a step; lines appended to what it yields are shown with it."""
        shown: list[str] = []
        began = time.monotonic()
        yield shown
        done = Step(number, actor, name, time.monotonic() - began, tuple(shown))
        self.steps.append(done)
        self.watch(done)

    def walk(self) -> None:
        """Go all the steps; raises StepFailed at the first that does not work."""
        self.prepare()
        self.collateral()
        self.encrypt()
        self.build_and_approve()
        self.serve()
        self.run()
        self.decrypt()

    def prepare(self) -> None:
        """The owner's files and identity, a plain run to compare with, and the cloud's simulated TEE."""
        owner, cloud = self.world.owner, self.world.cloud
        with self.step(
            0, "owner", "lays out real weights and a photo; runs the script plainly, to compare with later"
        ) as shown:
            owner.python(EXAMPLE / "prepare.py", "plain")
            shutil.copy(EXAMPLE / "classify.py", owner.folder)
            owner.python("classify.py", *self.arguments("plain/model", "plain/input", "plain"))
            self.plain = (owner.folder / "plain" / "top5.txt").read_text(encoding="utf-8")
            shown.append(
                f"{sum(1 for _ in self.plain.splitlines())} classes, first: {self.plain.splitlines()[0].strip()}"
            )
        with self.step(0, "cloud", "has a machine with a TEE, here a simulated one") as shown:
            made = cloud.adyton("platform", "new", self.world.platform, "--json").document
            self.root_fingerprint = made["root_fingerprint"]
            shown.append(f"its root certificate: {self.root_fingerprint}")
        with self.step(
            0, "owner", "makes her identity (a CA of her own), a signing key, and a key for her files"
        ) as shown:
            owner.adyton("init")
            owner.adyton("key", "new", KEY)
            shown.append("owner/home: CA, server certificate, signer, key store")

    @staticmethod
    def arguments(model: str, inputs: str, out: str) -> list[str]:
        """The script's four arguments, for the folders given."""
        return [f"{model}/efficientnet-lite0.pth", f"{model}/labels.txt", f"{inputs}/photo.jpg", f"{out}/top5.txt"]

    def collateral(self) -> None:
        """Step 1: the platform's certificates, CRLs, TCB info and QE identity, from its maker's service."""
        with self.step(1, "owner", "fetches the platform's collateral from its maker") as shown:
            maker = self.world.actor("maker")
            ready = maker.folder / "ready.json"
            service = maker.start(
                "platform", "serve", self.world.platform, "--listen", "127.0.0.1:0", "--ready-file", ready, ready=ready
            )
            self.world.owner.adyton("collateral", "fetch", "--pcs", service["url"])
            shown.append("root CA and PCK CRLs, TCB info, QE identity, each signed")
