"""A run's GPUs: the simulated ones take the whole path to a key, from the manifest to the grant."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from adyton.attest.devices import device_digest
from adyton.collateral.gpu_verifier import GPUVerifier
from adyton.collateral.store import CollateralStore
from adyton.errors import AppraisalFailed, Denied, MalformedManifest, NoDevice, UsageError
from adyton.manifest.explain import explain_manifest
from adyton.manifest.model import parse_manifest
from adyton.sim.gpu_folder import FOLDER, SimGPUs
from adyton.tee.gpu_source import open_gpus
from adyton.workflow.platform import platform_gpus
from tests.support.owner_world import World, make_world, running
from tests.support.release_by_hand import obtain, reason


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """An owner with a simulated platform that has two GPUs, whose collateral she has imported."""
    with make_world(tmp_path) as found:
        made = platform_gpus(found.platform.directory, tmp_path / "gpus.json", count=2)
        outcomes = _store(tmp_path).import_bundle(made.collateral.read_bytes(), datetime.now(UTC))
        assert [outcome.error for outcome in outcomes] == [None] * len(outcomes)
        tees = (found.tee.replace("sim:", "sim-tdx:"),)
        rules = {"count": 1, "archs": ["HOPPER"], "min_driver": "550.54", "simulated_roots": [made.root]}
        found.approve(_program(found), tees=tees, evidence={"gpus": rules})
        yield found


def _store(folder: Path) -> CollateralStore:
    return CollateralStore(folder / "gpu-collateral")


def _program(world: World) -> Any:
    return world.program(tables="[adyton]\ngpus = 1\n")


def _ask(world: World, folder: Path, *, booted: int = 1, shown: int = 1, times: int = 1) -> None:
    """Ask as `adyton run` does, on a guest that found `booted` GPUs and now shows `shown`."""
    signed = _program(world)
    gpus = open_gpus("sim-tdx", world.platform.directory)
    source = world.enclave(signed, tdx=True, devices=device_digest(gpus.named(booted) if booted else ()))
    devices = partial(gpus.parts, shown) if shown else None
    with running(world, service=world.service(verify_devices=GPUVerifier(_store(folder)).verify)) as where:
        for _ in range(times):
            assert set(obtain(world, where, signed, source=source, devices=devices).keys) == {"weights"}


def test_program_with_a_gpu_gets_its_key_and_again(world: World, tmp_path: Path) -> None:
    """One boot, three requests: as with a retry, a second owner, or a renewed lease. The register stays as it is."""
    assert _program(world).manifest.adyton.gpus == 1
    _ask(world, tmp_path, times=3)


@pytest.mark.parametrize(("booted", "shown"), [(0, 1), (2, 1), (1, 2), (1, 0), (2, 2)])
def test_other_gpus_than_those_of_the_boot_are_refused(world: World, tmp_path: Path, booted: int, shown: int) -> None:
    """More, fewer, or as many as no approval names."""
    with pytest.raises(Denied):
        _ask(world, tmp_path, booted=booted, shown=shown)


def test_two_gpus_are_released_where_the_policy_names_two(world: World, tmp_path: Path) -> None:
    """The number is the policy's to say."""
    root = SimGPUs.load(world.platform.directory).vendor.root
    tees = (world.tee.replace("sim:", "sim-tdx:"),)
    world.approve(_program(world), tees=tees, evidence={"gpus": {"count": 2, "simulated_roots": [str(root)]}})
    _ask(world, tmp_path, booted=2, shown=2)


def test_gpu_with_changed_firmware_is_refused_in_the_guest_and_by_the_owner(world: World, tmp_path: Path) -> None:
    """The guest does not name it at boot. One that named it all the same gets nothing."""
    gpus = SimGPUs.load(world.platform.directory)
    changed = replace(gpus, devices=tuple(item.with_(changed={3: bytes(48)}) for item in gpus.devices))
    with pytest.raises(AppraisalFailed, match="measurements of the device"):
        changed.named(1)
    signed = _program(world)
    source = world.enclave(signed, tdx=True, devices=device_digest(gpus.named(1)))
    service = world.service(verify_devices=GPUVerifier(_store(tmp_path)).verify)
    with running(world, service=service) as where, pytest.raises(Denied):
        obtain(world, where, signed, source=source, devices=partial(changed.parts, 1))
    assert reason(world)["check"] == "measurements"


@pytest.mark.parametrize("tee", ["sim", "sgx", "snp", "gramine-direct"])
def test_tees_without_a_register_take_no_gpu(tee: str) -> None:
    """Nothing in their evidence would name it."""
    with pytest.raises(UsageError, match="does not run under"):
        open_gpus(tee)


def test_platform_without_gpus_says_how_to_make_some(tmp_path: Path) -> None:
    """And one that has too few, and one that has some already."""
    with pytest.raises(NoDevice, match="has no GPU") as caught:
        open_gpus("sim-tdx", tmp_path)
    assert "adyton platform gpus" in str(caught.value.remedy)
    gpus = SimGPUs.create(tmp_path, 1)
    with pytest.raises(NoDevice, match="asks for 2 GPUs"):
        gpus.named(2)
    with pytest.raises(UsageError, match="cannot get"):
        SimGPUs.create(tmp_path, 1)
    with pytest.raises(UsageError, match="cannot get"):
        SimGPUs.create(tmp_path / "other", 9)
    (tmp_path / FOLDER / "gpu-0.json").write_text("{}")
    with pytest.raises(UsageError, match="holds no simulated GPU"):
        SimGPUs.load(tmp_path)


def test_manifest_says_how_many_gpus(world: World) -> None:
    """None unless it says so; a number within its bounds; and it is explained."""
    text = _program(world).manifest_bytes.decode()
    assert parse_manifest(text.replace("gpus = 1\n", "")).adyton.gpus == 0
    assert "GPUs: 1" in "\n".join(map(str, explain_manifest(parse_manifest(text))))
    for wrong in ("9", "-1", '"1"', "true"):
        with pytest.raises(MalformedManifest):
            parse_manifest(text.replace("gpus = 1\n", f"gpus = {wrong}\n"))
