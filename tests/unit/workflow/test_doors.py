"""What `adyton run` gives the process that proves connections: evidence, GPUs, and judges for the clients."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from adyton.attest.bundle import DevicePart
from adyton.endpoint.hello import parse_device
from adyton.errors import MalformedManifest
from adyton.manifest.model import parse_manifest
from adyton.values import Digest
from adyton.workflow.run import _doors

LEAST = 'libos.entrypoint = "/app"\nfs.mounts = []\n'
INGRESS = '[[adyton.ingress]]\nname = "api"\ntarget = "127.0.0.1:8000"\n'
SOURCE: Any = SimpleNamespace(quote=lambda report_data: b"quote " + report_data, event_log=lambda: None)


class TwoGPUs:
    """GPUs that sign a nonce by repeating it."""

    def parts(self, count: int, nonce: bytes) -> tuple[DevicePart, ...]:
        """The evidence of the first ones."""
        return tuple(DevicePart(arch="HOPPER", certificate=b"%d" % one, evidence=nonce) for one in range(count))


def doors(text: str, gpus: Any = None) -> Any:
    """Those of a manifest with this text."""
    signed: Any = SimpleNamespace(manifest=parse_manifest(LEAST + text), manifest_sha256=Digest(bytes(32)))
    return _doors(SOURCE, signed, gpus)


def test_program_without_an_ingress_has_none() -> None:
    """Nothing listens."""
    assert doors("") is None


def test_evidence_and_gpus_are_made_for_each_connection() -> None:
    """As many GPUs as the manifest says, over the nonce of the connection."""
    found = doors("adyton.gpus = 2\n" + INGRESS, TwoGPUs())
    assert found.evidence(b"bound").cpu == b"quote bound"
    parts = [parse_device(raw) for raw in found.devices(b"n" * 32)]
    assert [(part.certificate, part.evidence) for part in parts] == [(b"0", b"n" * 32), (b"1", b"n" * 32)]
    assert doors(INGRESS).devices is None


def test_each_policy_for_clients_has_its_judge() -> None:
    """By the name of its ingress. One that cannot be read ends the start."""
    policy = "client_policy = \"tees = ['tdx']\"\n"
    other = INGRESS.replace("api", "open") + 'listen = "0.0.0.0:9000"\n'
    assert list(doors(INGRESS + policy + other).judges) == ["api"]
    with pytest.raises(MalformedManifest):
        doors(INGRESS + policy.replace("tees", "toes"))
