"""The whole path over a measured boot: image document, approval, a software TPM, released key, decrypted result."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adyton.runtime.identity import runtime_identity
from adyton.sim.platform import SimPlatform
from adyton.sim.software_tpm import SoftwareTPM
from adyton.tee.tpm_device import TPMDevice
from tests.cli.chain import KEY, NOTES, Chain, Place
from tests.support.image_factory import image_document
from tests.support.software_tpm import needs_swtpm, running_swtpm
from tests.support.tpm_factory import LINUX, UKI, TPMScenario

pytestmark = needs_swtpm

SECTION = hashlib.sha256(b".linux\0").digest()


def document() -> dict[str, Any]:
    """An image whose Adyton is that of this machine, and which measures itself as the scenario does."""
    found, runtime = image_document(), runtime_identity()
    found["runtime"] = {
        "identity": runtime.digest.hex(),
        "parts": {name: digest.hex() for name, digest in runtime.parts.items()},
    }
    found["pe"]["uki"]["sha256"], found["pe"]["linux"]["sha256"] = UKI.hex(), LINUX.hex()
    for boot in ("kernel-boot", "disk-boot"):
        found["pcrs"][boot]["sha256"]["11"] = TPMScenario().pcrs()[11].hex()
    return found


@contextmanager
def booted(place: Place, machine: TPMScenario) -> Iterator[None]:
    """A machine with a software TPM, into which its firmware measured what the scenario says."""
    folder = place.folder / "platform" / "machine"
    with running_swtpm(folder / "tpm.sock"):
        device = TPMDevice(SoftwareTPM(folder / "tpm.sock"))
        device.extend(0, hashlib.sha256(b"firmware").digest())
        device.extend(0, hashlib.sha256(bytes(4)).digest())
        device.extend(2, hashlib.sha256(bytes(4)).digest())
        device.extend(7, hashlib.sha256(b"db").digest())
        for digest in machine.started:
            device.extend(4, digest)
        device.extend(11, SECTION)
        for pcr, digest in machine.more.items():
            device.extend(pcr, digest)
        device.close()
        (folder / "event-log").write_bytes(machine.event_log())
        yield


def run(place: Place, server: str) -> Any:
    """Run the program under the software TPM."""
    words = ["--key-server", server, "--", "app.py", "exit", "0"]
    return place.adyton("run", "app.manifest", "--tee", "sim-tpm", *words)


@pytest.fixture(scope="module")
def approved(chain: Chain) -> str:
    """The program is approved for the image under the simulated root. Returns the TEE's name."""
    root = SimPlatform.load(chain.world.platform).root_fingerprint
    image = chain.owner.folder / "image.json"
    image.write_text(json.dumps(document()))
    tee = f"sim-tpm:{root}"
    words: list[str | Path] = ["--key", KEY, "--tee", tee, "--guest-image", image, "--allow", "arguments-from-host"]
    ended = chain.owner.adyton("approve", "app.manifest", *words)
    assert ended.status == 0, ended.err
    return tee


def test_key_is_released_over_a_measured_boot_and_the_result_decrypts(
    chain: Chain, cloud: Place, tmp_path: Path, approved: str
) -> None:
    """One boot, two runs: the workload is extended once."""
    assert approved
    with booted(cloud, TPMScenario()):
        for _ in range(2):
            shutil.rmtree(cloud.folder / "encrypted" / "output")
            (cloud.folder / "encrypted" / "output").mkdir()
            ended = run(cloud, chain.address)
            assert ended.status == 0, ended.err
    result = tmp_path / "result"
    decrypted = chain.owner.adyton("decrypt", cloud.folder / "encrypted" / "output", "-o", result, "--key", KEY)
    assert decrypted.status == 0, decrypted.err
    assert (result / "result.txt").read_text() == NOTES.upper()
    shutil.rmtree(result)


@pytest.mark.parametrize("fault", ["another-kernel", "load-options", "kernel-first"])
def test_other_boot_gets_no_key(chain: Chain, cloud: Place, approved: str, fault: str) -> None:
    """The quote is genuine each time."""
    assert approved
    machine = TPMScenario()
    evil = hashlib.sha256(b"another").digest()
    machine = {
        "another-kernel": replace(machine, started=[*machine.started[:-1], evil]),
        "load-options": replace(machine, more={12: evil}),
        "kernel-first": replace(machine, started=[*machine.started[:2], LINUX, UKI]),
    }[fault]
    with booted(cloud, machine):
        ended = run(cloud, chain.address)
    assert ended.status == 101, ended.err
