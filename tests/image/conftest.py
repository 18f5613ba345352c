"""A guest image for tests, built once for each lock file and Adyton, and an owner whose program runs in it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

import adyton
from adyton.errors import Error, FetchFailed, NoDevice
from adyton.image.build import package_files
from adyton.image.document import GuestImage, parse_image
from adyton.workflow.image import OWN_LOCK, Boot, boot_image, build_image

BUSYBOX = Path("/bin/busybox")
CANARY = b"canary-4f6b1d: what nobody but the owner may read"


def default_cache() -> Path:
    """Where images for tests stay between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adyton" / "test-images"


def require(program: str, package: str) -> None:
    """Skip by name where a program is missing."""
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed (apt-get install {package})")


def qemu_of_today() -> None:
    """Skip by name where QEMU is missing, or too old for the image's kernel."""
    require("qemu-system-x86_64", "qemu-system-x86")
    require("swtpm", "swtpm")
    shown = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"version (\d+)", shown)
    if match is None or int(match[1]) < 10:
        pytest.skip("QEMU before 10 panics kernels from 6.12 on under emulation")


@contextmanager
def name_server(address: str) -> Iterator[None]:
    """A name server on this machine, which a guest sees as 10.0.2.2. It tells one address for every name."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        listening.bind(("127.0.0.1", 53))
    except OSError as error:
        listening.close()
        pytest.skip(f"no name server can listen on 127.0.0.1:53: {error}")

    def answer() -> None:
        with suppress(OSError):
            while True:
                asked, sender = listening.recvfrom(512)
                if not asked:  # the socket was shut down
                    return
                head = asked[:2] + b"\x81\x80\0\x01\0\x01\0\0\0\0"
                question = asked[12 : asked.index(b"\0", 12) + 5]
                told = b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04" + socket.inet_aton(address)
                listening.sendto(head + question + told, sender)

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    try:
        yield
    finally:
        with suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)
        listening.close()


@pytest.fixture(scope="session")
def image() -> Path:
    """The folder of an image of this very Adyton. Skipped by name where its packages cannot be had."""
    require("bwrap", "bubblewrap")
    digest = hashlib.sha256(OWN_LOCK.read_bytes())
    for name, content in package_files(Path(adyton.__file__).parent).items():
        digest.update(name.encode() + b"\0" + hashlib.sha256(content).digest())
    folder = default_cache() / digest.hexdigest()[:32]
    if not (folder / "image.json").exists():
        try:
            build_image(folder, note=lambda text: print(text))
        except (FetchFailed, NoDevice) as error:
            pytest.skip(f"no guest image can be built here: {error.message}")
    return folder


@pytest.fixture(scope="session")
def document(image: Path) -> GuestImage:
    """What the image says of itself."""
    return parse_image((image / "image.json").read_bytes())


@dataclass(frozen=True)
class Ended:
    """How a boot ended: the console, the guest's status, and the folder with its outputs."""

    console: list[str]
    status: dict[str, object]
    outputs: Path

    @property
    def text(self) -> str:
        """The console as one text."""
        return "\n".join(self.console)

    def pcr(self, number: int, bank: str = "sha256") -> str:
        """A PCR at the end of the run."""
        pcrs = self.status["pcrs"]
        assert isinstance(pcrs, dict)
        return str(pcrs[bank][str(number)])


@dataclass
class Owner:
    """An owner with a key, a program that copies a secret input to an output, and a key server."""

    folder: Path
    image: Path
    port: int

    @property
    def share(self) -> Path:
        """The untrusted folder with the program and its files."""
        return self.folder / "share"

    def adyton(self, *words: str | Path, folder: Path | None = None) -> str:
        """What a verb prints; it must succeed. By default it is typed in the share."""
        command = [sys.executable, "-m", "adyton", *map(str, words)]
        done = subprocess.run(
            command, cwd=folder or self.share, env=self._environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def _environment(self) -> dict[str, str]:
        more = {"ADYTON_HOME": str(self.folder / "owner"), "ADYTON_SIM_PLATFORM": str(self.folder / "platform")}
        return os.environ | more

    def prepare(self) -> None:
        """Everything before the boot: identity, key, sealed input, manifest for this image, approval."""
        (self.share / "in").mkdir(parents=True)
        (self.share / "out").mkdir()
        self.adyton("init")
        self.adyton("key", "new", "k")
        self.adyton("platform", "new", self.folder / "platform")
        (self.folder / "plain").write_bytes(CANARY)
        self.adyton("encrypt", self.folder / "plain", "-o", "in/data", "--key", "k")
        shutil.copy(BUSYBOX, self.share / "busybox")
        certificate = (self.folder / "owner/ca.crt").read_text()
        (self.share / "app.manifest.template").write_text(
            'libos.entrypoint = "/busybox"\nloader.argv = ["busybox", "cp", "/in/data", "/out/result"]\n'
            'fs.mounts = [\n  { path = "/busybox", uri = "file:busybox" },\n'
            '  { type = "encrypted", path = "/in", uri = "file:in", key_name = "k" },\n'
            '  { type = "encrypted", path = "/out", uri = "file:out", key_name = "k" },\n]\n'
            'sgx.trusted_files = ["file:busybox"]\n'
            f'[adyton.owners.owner]\nserver_name = "adyton-key-server"\nca = """{certificate}"""\n'
        )
        self.adyton("build", "app.manifest.template", "--runtime", self.image / "image.json")
        root = json.loads(self.adyton("platform", "show", "--json"))["root_fingerprint"]
        words: list[str | Path] = ["--key", "k", "--tee", f"sim-tpm:{root}", "--guest-image", self.image / "image.json"]
        self.adyton("approve", "app.manifest", *words)
        (self.share / "adyton-guest.json").write_text(json.dumps(self.settings("app.manifest")))

    def settings(self, manifest: str) -> dict[str, object]:
        """What the host tells the guest."""
        return {
            "format": "adyton-guest/1",
            "manifest": manifest,
            "tee": "tpm",
            "key_servers": [f"10.0.2.2:{self.port}"],
            "network": {"address": "10.0.2.15/24", "gateway": "10.0.2.2"},
        }

    def prepare_pack(self, share: Path, name: str = "desk") -> None:
        """A Python script with what `adyton new` proposes for it, carried as a pack, with files of this machine."""
        desk = self.folder / name
        (desk / "in").mkdir(parents=True)
        (desk / "out").mkdir()
        (desk / "in/data").write_bytes(CANARY)
        (desk / "shout.py").write_text(
            "from pathlib import Path\nPath('out/result').write_bytes(Path('in/data').read_bytes().upper())\n"
        )
        words = ["new", "--key", "k", "--python", "/usr/bin/python3", "shout.py"]
        self.adyton(*words, folder=desk)
        self.adyton("encrypt", "in", "-o", "encrypted/in", "--key", "k", folder=desk)
        (desk / "encrypted/out").mkdir()
        self.adyton("build", "shout.manifest.template", "--runtime", self.image / "image.json", folder=desk)
        root = json.loads(self.adyton("platform", "show", "--json"))["root_fingerprint"]
        words = ["approve", "shout.manifest", "--key", "k", "--tee", f"sim-tpm:{root}", "--guest-image"]
        self.adyton(*words, self.image / "image.json", folder=desk)
        share.mkdir()
        self.adyton(
            "pack", "shout.manifest", "-o", share / "shout.adyton", "--runtime", self.image / "image.json", folder=desk
        )
        (share / "adyton-guest.json").write_text(json.dumps(self.settings("shout.adyton")))

    @contextmanager
    def serving(self) -> Iterator[None]:
        """The key server, on the host's loopback, which the guest sees as 10.0.2.2."""
        command = [sys.executable, "-m", "adyton", "serve", "--listen", f"127.0.0.1:{self.port}"]
        with (self.folder / "serve.log").open("wb") as log:
            child = subprocess.Popen(command, env=self._environment(), stdout=log, stderr=log)
            try:
                ends_s = time.monotonic() + 60
                while True:
                    try:
                        socket.create_connection(("127.0.0.1", self.port), 1).close()
                        break
                    except OSError:
                        assert child.poll() is None, (self.folder / "serve.log").read_text()
                        assert time.monotonic() < ends_s
                        time.sleep(0.1)
                yield
            finally:
                child.terminate()
                child.wait(60)

    def boot(self, image: Path, outputs: Path, *, from_disk: bool, share: Path | None = None) -> Ended:
        """Boot an image with this owner's files, under a software TPM that her simulated platform certified."""
        outputs.mkdir()
        console: list[str] = []
        wanted = Boot(
            folder=image,
            share=share or self.share,
            outputs=outputs,
            tpm=True,
            sim_platform=self.folder / "platform",
            from_disk=from_disk,
            timeout_s=500,
        )
        try:
            boot_image(wanted, console.append)
        except Error as error:
            console.append(f"boot_image: {error.message}")
        status = outputs / "adyton-status.json"
        return Ended(console, json.loads(status.read_text()) if status.exists() else {}, outputs)

    def boot_with_disks(self, image: Path, inputs: Path, outputs: Path) -> list[str]:
        """Boot an image as a cloud does: from its disk, with a raw disk for inputs and one for outputs, and DHCP."""
        console: list[str] = []
        wanted = Boot(
            folder=image,
            inputs=inputs,
            output_disk=outputs,
            tpm=True,
            sim_platform=self.folder / "platform",
            from_disk=True,
            timeout_s=500,
        )
        assert boot_image(wanted, console.append) == []
        return console


@pytest.fixture(scope="session")
def owner(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Owner:
    """An owner who approved the program and the image."""
    if not BUSYBOX.exists():
        pytest.skip("/bin/busybox is missing (apt-get install busybox-static)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    found = Owner(tmp_path_factory.mktemp("owner"), image, port)
    found.prepare()
    return found
