"""Approvals that could release nothing: not made any more, and shown with the reason where they are stored already."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from adyton.attest.guest import MUST_COVER, SNPGuest, TPMGuest
from adyton.errors import UsageError
from adyton.keystore.approval import APPROVED, PENDING, REVOKED, Approval
from adyton.keystore.approval_gaps import gaps
from adyton.keystore.tables import approvals as approvals_module
from adyton.sim.chip import simulated_guest
from adyton.values import Digest, Measurement
from tests.support.owner_world import World

GUEST = Measurement(b"g" * 48)
SIM = "sim:" + "0" * 64
SIM_TDX = "sim-tdx:" + "0" * 64


def _approval(**changes: Any) -> Approval:
    values = {
        "key": "weights",
        "app": "classify",
        "version": "v1",
        "measurement": Measurement(b"w" * 32),
        "manifest_sha256": Digest(b"m" * 32),
        **changes,
    }
    return Approval(**values)


@pytest.mark.parametrize("tee", ["tdx", "snp", SIM_TDX])
def test_firmware_alone_is_a_gap(tee: str) -> None:
    """MRTD or a launch digest without the rest; the guest of another kind of machine is no better."""
    assert [(found, gap.name) for found, gap in gaps(_approval(tees=(tee,), guests=(GUEST,)))] == [(tee, "guest image")]
    snp = SNPGuest(launch_digest=GUEST, launch_digest_covers=MUST_COVER)
    right, wrong = (snp, simulated_guest()) if tee == "snp" else (simulated_guest(), snp)
    assert gaps(_approval(tees=(tee,), guest_images=(right,))) == ()
    assert [gap.name for _, gap in gaps(_approval(tees=(tee,), guest_images=(wrong,)))] == ["guest image"]


def test_acpi_tables_that_are_left_open_by_name_are_no_gap() -> None:
    """The owner named them (`consent`); each verdict says so (`appraise`)."""
    for tee, guest in (
        ("snp", SNPGuest(launch_digest=GUEST, launch_digest_covers=MUST_COVER)),
        ("tdx", replace(simulated_guest(), rtmr0=None)),
    ):
        assert gaps(_approval(tees=(tee,), guest_images=(guest,))) == ()


def test_raw_report_data_is_a_gap_outside_sim_and_sgx() -> None:
    """The same approval counts where it may, and says where it does not."""
    approval = _approval(tees=(SIM, SIM_TDX, "sgx"), guest_images=(simulated_guest(),), raw_report_data=True)
    assert [(tee, gap.name) for tee, gap in gaps(approval)] == [(SIM_TDX, "report data of the program")]


@pytest.mark.parametrize("tee", ["tdx", SIM_TDX])
def test_signer_is_a_gap_in_a_confidential_machine(tee: str) -> None:
    """No register says who signed the manifest: such an approval would wait for evidence that never comes."""
    signer = {"measurement": None, "mrsigner": Digest(b"s" * 32), "isv_prod_id": 1, "min_isv_svn": 0}
    by_signer = _approval(tees=(tee, SIM), guest_images=(simulated_guest(),), **signer)
    assert [(found, gap.name) for found, gap in gaps(by_signer)] == [(tee, "identity of the program")]


TPM_GUEST = TPMGuest(boot_applications=(b"u" * 32, b"k" * 32), pcr11=b"s" * 32)


@pytest.mark.parametrize("tee", ["az-snp", "az-tdx", "sim-tpm:" + "ab" * 32])
def test_machine_that_a_tpm_measures_takes_a_guest_of_its_kind(tee: str) -> None:
    """Neither another kind of guest, nor none."""
    assert gaps(_approval(tees=(tee,), guests=(GUEST,), guest_images=(TPM_GUEST,))) == ()
    wrong = _approval(tees=(tee,), guests=(GUEST,), guest_images=(simulated_guest(),))
    assert [gap.name for _, gap in gaps(wrong)] == ["guest image"]


@pytest.mark.parametrize("tee", ["az-snp", "az-tdx"])
def test_azure_machine_without_a_named_paravisor_is_a_gap(tee: str) -> None:
    """Whatever runs in its place makes up the TPM. Who signed it says enough on SEV-SNP only, and zeros nowhere."""
    for digest, named in ((b"", False), (bytes(48), False), (b"k" * 48, tee == "az-snp")):
        evidence = {"snp": {"id_key_digests": [digest.hex()]}} if digest else {}
        found = gaps(_approval(tees=(tee,), guest_images=(TPM_GUEST,), evidence=evidence))
        assert [gap.name for _, gap in found] == ([] if named else ["paravisor"])


def test_bare_tpm_is_a_gap() -> None:
    """An approval has no place for the root of a TPM, so nothing could ever be released."""
    found = gaps(_approval(tees=("tpm",), guest_images=(TPM_GUEST,)))
    assert [gap.name for _, gap in found] == ["root of the TPM"]


def test_enclaves_have_no_guest() -> None:
    """What is no confidential machine needs none."""
    assert gaps(_approval(tees=(SIM, "sgx"))) == ()


@pytest.mark.parametrize("state", [PENDING, APPROVED])
def test_approval_with_a_gap_is_not_made(world: World, state: str) -> None:
    """By whatever verb or page: the store refuses, and nothing is recorded."""
    before = world.kinds()
    with pytest.raises(UsageError, match="release nothing under snp") as refused, world.store.write() as change:
        change.add_approval(_approval(tees=("snp",), guests=(GUEST,)), actor="test", state=state)
    assert (refused.value.check, refused.value.seen) == ("guest image", f"the firmware only ({GUEST})")
    assert "--guest-image image.json" in (refused.value.remedy or "")
    assert world.kinds() == before


def test_stored_approval_with_a_gap_is_shown_and_revoked_and_nothing_else(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of an older Adyton loads; it is not approved, widened or changed any more, until it names its guest."""
    old = _approval(tees=("tdx",), guests=(GUEST,))
    with monkeypatch.context() as older:
        older.setattr(approvals_module, "check_sound", lambda _approval: None)
        with world.store.write() as change:
            stored = change.add_approval(old, actor="test", state=PENDING)
    with world.store.read() as view:
        (found,) = view.approvals()
    assert (found.approval, len(gaps(found.approval))) == (old, 1)
    for words in ({"state": APPROVED}, {"approval": old.changed(max_runs=1)}):
        with pytest.raises(UsageError, match="release nothing"), world.store.write() as change:
            change.change_approval(stored.id, actor="test", **words)
    with world.store.write() as change:
        whole = old.changed(guest_images=(simulated_guest(),))
        change.change_approval(stored.id, actor="test", approval=whole)
    with monkeypatch.context() as older:
        older.setattr(approvals_module, "check_sound", lambda _approval: None)
        with world.store.write() as change:
            change.change_approval(stored.id, actor="test", approval=old)
    with world.store.write() as change:
        assert change.change_approval(stored.id, actor="test", state=REVOKED).state == REVOKED


@pytest.mark.parametrize(
    "further",
    [
        *({register: ["ab" * 48]} for register in ("rtmr0", "rtmr1", "rtmr2")),
        {"pcrs": {"7": ["ab" * 32]}},
        {"boot_applications": ["ab" * 32]},
    ],
    ids=lambda further: next(iter(further)),
)
def test_registers_stand_in_one_place(further: dict[str, Any]) -> None:
    """A guest image and further requirements cannot say different things of one register."""
    with pytest.raises(UsageError, match="guest image"):
        _approval(tees=(SIM_TDX,), guest_images=(simulated_guest(),), evidence=further)
    assert gaps(_approval(tees=(SIM_TDX,), guests=(GUEST,), evidence=further))
