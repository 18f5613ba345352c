"""SEV-SNP's launch digest: against the PyPI package sev-snp-measure, and against values that it gave."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from adyton.errors import UsageError
from adyton.image.firmware import FirmwareFile
from adyton.image.measure_snp import VCPU_TYPES, Launch, launch_digest, takes_kernel_hashes
from tests.support.image_files import AMD_SEV, KERNEL_HASHES, firmware

AMD_FIRMWARE = firmware(sev=(*AMD_SEV, KERNEL_HASHES))


def test_digest_equals_what_the_peer_gave() -> None:
    """Recorded from sev-snp-measure 0.0.13 over the same constructed firmware."""
    parsed = FirmwareFile.parse(AMD_FIRMWARE)
    launch = Launch(b"kernel", b"initrd", "console=ttyS0")
    assert launch_digest(parsed, launch, vcpus=3, vcpu_type="EPYC-Milan").hex() == RECORDED_WITH_KERNEL
    assert launch_digest(parsed, None, vcpus=1, vcpu_type="EPYC-v4").hex() == RECORDED_WITHOUT


RECORDED_WITH_KERNEL = (
    "79ef7310d0c4d6ff8a1a3ce0f71e52734dd0893beda8204508847c423ecb48f035d7f2c4f5e6525334483ef574553e74"
)
RECORDED_WITHOUT = "38df7a19f11a3a9a2a55bb4bb976c9dfd4a336913409e42534a45c4bff2ac185d984aca4701df1edab14aae7a63cde88"


def test_digest_equals_the_peer_over_random_inputs(tmp_path: Path) -> None:
    """200 inputs: firmware with and without a page for hashes, kernels, initrds, command lines, processors."""
    guest = pytest.importorskip("sevsnpmeasure.guest", reason="the peer sev-snp-measure (PyPI) is not installed")
    modes = pytest.importorskip("sevsnpmeasure.sev_mode")
    types = pytest.importorskip("sevsnpmeasure.vcpu_types").CPU_SIGS
    draw = random.Random(14)
    for number in range(200):
        takes_hashes = draw.random() < 0.7
        sections = [
            *AMD_SEV,
            *([KERNEL_HASHES] if takes_hashes else []),
            *([(0x811000, 0x1000, 4)] * draw.randint(0, 1)),
        ]
        draw.shuffle(sections)
        raw = firmware(sev=sections, hashes_at=0x80F000 + 16 * draw.randrange(200), seed=draw.randbytes(8))
        (tmp_path / "fw").write_bytes(raw)
        kernel, initrd = draw.randbytes(draw.randint(1, 9000)), draw.randbytes(draw.choice((0, 1, 500)))
        (tmp_path / "kernel").write_bytes(kernel)
        (tmp_path / "initrd").write_bytes(initrd)
        line = draw.choice(("", "panic=-1", "a b c " * 50))
        kind = draw.choice(sorted(set(VCPU_TYPES) & set(types)))
        vcpus, features = draw.randint(1, 9), draw.choice((0, 1, 0x21))
        names = [str(tmp_path / "kernel"), str(tmp_path / "initrd"), line] if takes_hashes else ["", "", ""]
        theirs = guest.calc_launch_digest(
            modes.SevMode.SEV_SNP, vcpus, types[kind], str(tmp_path / "fw"), *names, features
        )
        ours = launch_digest(
            FirmwareFile.parse(raw),
            Launch(kernel, initrd, line) if takes_hashes else None,
            vcpus=vcpus,
            vcpu_type=kind,
            guest_features=features,
        )
        assert ours == theirs, number


def test_every_input_changes_the_digest() -> None:
    """Kernel, initrd, command line, firmware, number and type of processors, features."""
    parsed = FirmwareFile.parse(AMD_FIRMWARE)

    def digest(launch: Launch, *, vcpus: int = 1, kind: str = "EPYC-v4", features: int = 1) -> bytes:
        return launch_digest(parsed, launch, vcpus=vcpus, vcpu_type=kind, guest_features=features)

    base = Launch(b"kernel", b"initrd", "line")
    found = {
        digest(base),
        digest(Launch(b"kernel2", b"initrd", "line")),
        digest(Launch(b"kernel", b"", "line")),
        digest(Launch(b"kernel", b"initrd", "line evil")),
        digest(base, vcpus=2),
        digest(base, kind="EPYC-Genoa"),
        digest(base, features=0),
        launch_digest(
            FirmwareFile.parse(firmware(sev=(*AMD_SEV, KERNEL_HASHES), seed=b"x")), base, vcpus=1, vcpu_type="EPYC-v4"
        ),
    }
    assert len(found) == 8


@pytest.mark.parametrize(
    ("raw", "check"),
    [
        (firmware(sev=AMD_SEV), "kernel hashes"),
        (firmware(sev=(*AMD_SEV, KERNEL_HASHES), hashes_at=None), "kernel hashes"),
        (firmware(sev=(*AMD_SEV, (0x80F000, 0x2000, 0x10))), "page for kernel hashes"),
        (firmware(sev=(*AMD_SEV, KERNEL_HASHES), hashes_at=0x80FFF8), "page for kernel hashes"),
        (firmware(sev=(*AMD_SEV, KERNEL_HASHES, (0x820000, 0x1000, 9))), "kind of a SEV section"),
        (firmware(sev=(), hashes_at=None), "SEV metadata"),
        (firmware(sev=AMD_SEV, reset=None), "SEV metadata"),
    ],
)
def test_firmware_that_would_not_measure_the_kernel_is_refused(raw: bytes, check: str) -> None:
    """Never a digest that does not cover the kernel where one was asked for."""
    with pytest.raises(UsageError, match=check):
        launch_digest(FirmwareFile.parse(raw), Launch(b"kernel"), vcpus=1, vcpu_type="EPYC-v4")


@pytest.mark.parametrize(("vcpus", "kind"), [(0, "EPYC-v4"), (4097, "EPYC-v4"), (1, "Xeon")])
def test_impossible_processors_are_refused(vcpus: int, kind: str) -> None:
    """Their number has limits, and the type is one whose signature is known."""
    with pytest.raises(UsageError, match="processors"):
        launch_digest(FirmwareFile.parse(AMD_FIRMWARE), None, vcpus=vcpus, vcpu_type=kind)


def test_firmware_without_the_page_is_known_as_such() -> None:
    """Both the section and the table's address are needed."""
    assert takes_kernel_hashes(FirmwareFile.parse(AMD_FIRMWARE))
    assert not takes_kernel_hashes(FirmwareFile.parse(firmware(sev=AMD_SEV)))
    assert not takes_kernel_hashes(FirmwareFile.parse(firmware(sev=(*AMD_SEV, KERNEL_HASHES), hashes_at=None)))
