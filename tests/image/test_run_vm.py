"""A whole run in a guest image by one verb, and a scan of a running guest. Each is one boot, minutes long."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from adyton.image.boot import Machine, software_tpm
from adyton.image.guest_disks import new_output_disk, pack_inputs
from adyton.image.guest_settings import parse_settings
from adyton.sim.platform import SimPlatform
from adyton.sim.software_tpm import SoftwareTPM
from adyton.tee.tpm_device import TPMDevice
from adyton.tee.tpm_guest import certify
from tests.image.conftest import BUSYBOX, CANARY, Owner, qemu_of_today
from tests.support.frame_scanner import UDP_PORTS, Wire

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

OPENED = 7777
LOGIN = re.compile(r"(login|password|user(name)?)\s*:\s*$|^[^\[]*[#$>]\s*$|sysrq", re.IGNORECASE)


def logins(lines: Iterable[str]) -> list[str]:
    """The lines of a console that look like a login, a shell's prompt, or an answer of the kernel's own keys."""
    return [line for line in lines if LOGIN.search(line)]


def test_one_verb_runs_a_manifest_in_the_guest(image: Path, owner: Owner, tmp_path: Path) -> None:
    """The key is released over the evidence of that boot, and the output lies where a run here leaves it."""
    qemu_of_today()
    desk = tmp_path / "desk"
    shutil.copytree(owner.share, desk, ignore=shutil.ignore_patterns("adyton-guest.json", "result", "*.log"))
    words: list[str | Path] = [
        "run",
        "--vm",
        image,
        "--tee",
        "sim-tpm",
        "--sim-platform",
        owner.folder / "platform",
        "--json",
    ]
    before = {path: path.read_bytes() for path in desk.rglob("*") if path.is_file()}
    with owner.serving():
        told = json.loads(owner.adyton(*words, "--key-server", f"127.0.0.1:{owner.port}", "app.manifest", folder=desk))
    assert (told["tee"], told["simulated"], told["exit_code"]) == ("sim-tpm", True, 0)
    owner.adyton("decrypt", "out/result", "-o", tmp_path / "result", "--key", "k", folder=desk)
    assert (tmp_path / "result").read_bytes() == CANARY
    after = {path: path.read_bytes() for path in desk.rglob("*") if path.is_file()}
    assert set(after) - set(before) == {desk / "out/result", desk / "app.log"}
    assert {path: after[path] for path in before} == before
    assert not any(CANARY[:20] in content for content in after.values())


def test_what_looks_like_a_login_is_found() -> None:
    """The control of the search below: what Debian's getty, a shell and the kernel's keys say."""
    shown = ["guest login: ", "Password: ", "root@guest:~# ", "$ ", "[   12.3] sysrq: HELP : loglevel(0-9)"]
    assert logins(shown) == shown
    assert logins(["[    0.1] Command line: x", "adyton guest: starting app.manifest", ""]) == []


def test_scan_of_a_running_guest_finds_no_port_and_no_login(image: Path, owner: Owner, tmp_path: Path) -> None:
    """The one open port is the program's own, which shows that the scan finds ports. Nobody answers at the console."""
    qemu_of_today()
    share = tmp_path / "share"
    share.mkdir()
    shutil.copy(BUSYBOX, share / "busybox")
    (share / "web.manifest.template").write_text(
        'libos.entrypoint = "/busybox"\n'
        f'loader.argv = ["busybox", "httpd", "-f", "-p", "{OPENED}", "-h", "/"]\n'
        'fs.mounts = [{ path = "/busybox", uri = "file:busybox" }]\nsgx.trusted_files = ["file:busybox"]\n'
        '[adyton]\nnetwork = "host"\ninsecure__stdio = true\n'
    )
    owner.adyton("build", "web.manifest.template", "--runtime", image / "image.json", folder=share)
    settings = owner.settings("web.manifest") | {"key_servers": []}
    pack_inputs(parse_settings(json.dumps(settings).encode()), share, tmp_path / "inputs.raw")
    new_output_disk(tmp_path / "outputs.raw")
    for folder in ("tpm", "wire"):
        (tmp_path / folder).mkdir()
    with software_tpm(tmp_path / "tpm", for_qemu=False) as path:
        device = TPMDevice(SoftwareTPM(path))
        certify(device, SimPlatform.load(owner.folder / "platform"))
        device.close()
    wire = Wire(tmp_path / "wire")
    console: list[str] = []
    with software_tpm(tmp_path / "tpm") as path:
        machine = Machine(
            folder=image,
            firmware=image / "OVMF.fd",
            inputs=tmp_path / "inputs.raw",
            outputs=tmp_path / "outputs.raw",
            tpm_socket=path,
        )
        words = [wire.netdev if word == "user,id=net" else word for word in machine.command()]
        assert wire.netdev in words
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as child:
            assert child.stdout is not None
            assert child.stdin is not None
            output = child.stdout

            def listen() -> None:
                console.extend(line.decode("utf-8", "replace").rstrip("\r\n") for line in output)

            reader = threading.Thread(target=listen)
            reader.start()
            try:
                ends_s = time.monotonic() + 600
                while OPENED not in wire.scan([OPENED], most_s=5).open:
                    assert child.poll() is None, "\n".join(console)
                    assert time.monotonic() < ends_s, "\n".join(console)
                at = len(console)
                for keys in (b"\r\n", b"root\r\n", b"root\r\n", b"id\r\n", b"\x03\x04\x1a", b"\x1b[A\r\n"):
                    child.stdin.write(keys)
                    child.stdin.flush()
                    time.sleep(1)
                found = wire.scan(range(1, 65536), most_s=600, udp_ports=UDP_PORTS)
                assert child.poll() is None, "the guest ended while it was scanned"
            finally:
                child.kill()
                child.wait()
                reader.join()
                wire.close()
    assert found.open == {OPENED}
    assert len(found.closed) == 65534, "a port did not answer"
    assert found.udp == set()
    assert logins(console[at:]) == []
    assert not any("uid=" in line for line in console)
