"""GPUs on a connection: their evidence is this connection's, and judged by the client's policy with the machine's.

A simulated trust domain with simulated GPUs stands behind a real ingress. The client judges as `adyton connect` does.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from adyton.attest.devices import device_digest
from adyton.endpoint.dial import Dialler
from adyton.endpoint.ingress import Ingress, Proof
from adyton.errors import Error, EvidenceError, Unavailable
from adyton.sim.chip import simulated_guest
from adyton.sim.gpu_folder import SimGPUs
from adyton.sim.platform import SimPlatform
from adyton.values import Measurement
from adyton.workflow.connect import _judge
from adyton.workflow.platform import platform_gpus
from adyton.workflow.verify import read_policy
from tests.unit.endpoint.world import MANIFEST, echo, free_socket, listening

PROGRAM = Measurement(bytes(range(32)))


@dataclass
class Machine:
    """A machine with two GPUs, the collateral for all of it, and what it shows; tests change one thing of that."""

    folder: Path
    platform: SimPlatform
    gpus: SimGPUs
    root: str
    named: int = 2
    shown: Callable[[bytes], tuple[bytes, ...]] | None = None
    gpu_policy: dict[str, Any] | None = field(default_factory=dict)

    @classmethod
    def create(cls, folder: Path) -> Machine:
        """A new one."""
        platform = SimPlatform.create(folder / "platform")
        made = platform_gpus(folder / "platform", folder / "gpus.json", count=2)
        (folder / "cpu.json").write_text(platform.collateral(tee="tdx").to_json())
        return cls(folder, platform, SimGPUs.load(folder / "platform"), made.root)

    def parts(self, nonce: bytes) -> tuple[bytes, ...]:
        """The evidence of both GPUs."""
        return tuple(part.to_bytes() for part in self.gpus.parts(2, nonce))

    def policy(self) -> dict[str, Any]:
        """What the client accepts."""
        found = {
            "tees": [f"sim-tdx:{self.platform.root_fingerprint}"],
            "workloads": [PROGRAM.hex()],
            **simulated_guest().policy().to_dict(),
        }
        if self.gpu_policy is not None:
            found["gpus"] = {"count": 2, "simulated_roots": [self.root], **self.gpu_policy}
        plain: dict[str, Any] = json.loads(json.dumps(found))
        return plain

    async def answer(self, text: bytes) -> bytes:
        """What a client gets of the program, once it has verified the machine. Raises what the client raises."""
        digest = device_digest(self.gpus.named(self.named) if self.named else ())
        enclave = self.platform.enclave(measurement=PROGRAM, devices=digest, shape="tdx")

        async def evidence(report_data: bytes) -> Proof:
            return Proof(enclave.quote(report_data))

        async def devices(nonce: bytes) -> tuple[bytes, ...]:
            return (self.shown or self.parts)(nonce)

        judge = partial(_judge, read_policy(self.policy()), [self.folder / "gpus.json", self.folder / "cpu.json"])
        async with listening(echo) as program:
            listener = free_socket()
            dial = partial(asyncio.open_connection, *program)
            async with Ingress("api", MANIFEST, evidence, dial, devices=devices).serving(listener):
                verified = await Dialler(
                    listener.getsockname()[:2],
                    lambda answer, wanted, nonce: judge(None, False, answer, wanted, nonce),
                ).dial()
                await verified.stream.write(text)
                found = await verified.stream.read(len(text))
                await verified.stream.close()
                return found

    def refusal(self) -> Error:
        """The error with which the client refuses it."""
        with pytest.raises((EvidenceError, Unavailable)) as refused:
            asyncio.run(asyncio.wait_for(self.answer(b"hello"), 60))
        return refused.value


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A new machine."""
    return Machine.create(tmp_path)


def test_machine_with_its_gpus_is_accepted(machine: Machine) -> None:
    """The register names them, they signed this connection's nonce, and the policy takes them."""
    assert asyncio.run(asyncio.wait_for(machine.answer(b"hello"), 60)) == b"HELLO"


def test_gpus_of_another_connection_are_refused(machine: Machine) -> None:
    """Genuine evidence over another nonce, carried here."""
    machine.shown = lambda _nonce: machine.parts(bytes(32))
    assert "nonce" in str(machine.refusal())


def test_gpus_that_the_register_does_not_name_are_refused(machine: Machine, tmp_path: Path) -> None:
    """One of two, one that is another machine's, and a register that names none."""
    machine.named = 1
    assert machine.refusal().check
    machine.named = 0
    assert machine.refusal().check
    machine.named = 2
    (tmp_path / "other").mkdir()
    other = Machine.create(tmp_path / "other")
    machine.shown = lambda nonce: (machine.parts(nonce)[0], other.parts(nonce)[0])
    assert machine.refusal().check


def test_gpus_that_are_left_out_are_missed(machine: Machine) -> None:
    """Whoever hides them shows a register that names others, and a policy that finds none."""
    machine.shown = lambda _nonce: ()
    machine.refusal()
    machine.shown = lambda nonce: machine.parts(nonce)[:1]
    machine.refusal()


def test_policy_of_the_client_decides_about_gpus(machine: Machine) -> None:
    """Without a table `gpus` a machine with GPUs is refused. So are another number, root and driver."""
    machine.gpu_policy = None
    assert "named by the policy" in str(machine.refusal())
    rules: list[dict[str, Any]] = [{"count": 1}, {"simulated_roots": ["00" * 32]}, {"simulated_roots": []}]
    for rule in (*rules, {"min_driver": "999.1"}):
        machine.gpu_policy = rule
        assert "GPUs" in str(machine.refusal())


@pytest.mark.parametrize("raw", [b"gpu", b"", bytes(33_000)])
def test_nonsense_in_the_place_of_a_gpu_is_refused(machine: Machine, raw: bytes) -> None:
    """Its form is checked after the machine's own evidence."""
    machine.shown = lambda _nonce: (raw,)
    machine.refusal()
