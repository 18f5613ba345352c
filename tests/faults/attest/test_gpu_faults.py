"""Every check of GPU evidence, made to fail by the one thing that it is about.

Who alters: a host that holds the device or stands between it and the verifier, and somebody who serves collateral.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from adyton.attest.nvidia.assess import NOT_PROVED
from adyton.attest.nvidia.evidence import DeviceEvidence
from adyton.attest.nvidia.explain import to_dict, to_text
from adyton.attest.nvidia.rim import parse_rim
from adyton.attest.roots import TrustRoots
from adyton.errors import (
    AppraisalFailed,
    BadChain,
    Error,
    FetchFailed,
    MalformedQuote,
    Mismatch,
    Revoked,
    Stale,
    Unavailable,
)
from adyton.sim.gpu import DRIVER, DRIVER_INDEXES, VBIOS, VBIOS_INDEXES, SimNVIDIA, issue, measurement
from tests.support.gpu_world import NONCE, NOW, GPUWorld, gpu, machine, vendor

if TYPE_CHECKING:
    from collections.abc import Callable

    from adyton.attest.nvidia.assess import GPUAssessment


def _refused(found: GPUAssessment, error: type[Error], check: str) -> None:
    """The assessment has this error with this check, and its texts say what to do."""
    assert not any(type(each) is type(None) for each in (found.error,))
    assert found.verdict == ("unchecked" if issubclass(error, Unavailable) else "refused")
    assert any(type(each) is error and check in {item.name for item in each.failed} for each in _errors(found)), [
        (type(each).__name__, each.check) for each in _errors(found)
    ]
    document = to_dict(found)
    assert NOT_PROVED in document["warnings"]
    assert NOT_PROVED in to_text(found)


def _errors(found: GPUAssessment) -> list[Error]:
    return [error for device in found.devices for error in device.errors] + ([found.error] if found.error else [])


def test_good_evidence_is_accepted() -> None:
    """A whole success: one GPU of each architecture, and a machine of twelve devices."""
    for devices in ((gpu(),), (vendor().device("BLACKWELL"),), machine()):
        found = GPUWorld(devices).judge()
        assert found.verdict == "accepted", found.error
        assert all(device.ok and device.revocation_checked and not device.mismatched for device in found.devices)
        assert NOT_PROVED in to_text(found)
        document = to_dict(found)
        assert document["genuine"]
        assert document["bound"]
        assert document["co_location"] == "not proved"


# --- genuine ----------------------------------------------------------------------------------------------------------


def _changed(**changes: object) -> list[DeviceEvidence]:
    return [replace(gpu().evidence(NONCE), **changes)]  # type: ignore[arg-type]


def test_another_root_is_refused() -> None:
    """The same formats under a root that nobody named."""
    other = SimNVIDIA.create(NOW - timedelta(days=1)).device()
    _refused(GPUWorld().judge([other.evidence(NONCE)]), BadChain, "root CA: pinned")
    _refused(GPUWorld(roots=TrustRoots()).judge(), BadChain, "root CA: pinned")


def test_certificate_of_another_chain_is_refused() -> None:
    """A link that the next one did not sign."""
    other = SimNVIDIA.create(NOW - timedelta(days=1))
    chain = (*other.device().chain[:2], *gpu().chain[2:])
    found = GPUWorld().judge(_changed(chain=gpu().with_(chain=chain).pem))
    _refused(found, BadChain, "boot ROM key: signature")
    chain = (gpu().chain[0], *machine()[-1].chain[1:])
    _refused(GPUWorld().judge(_changed(chain=gpu().with_(chain=chain).pem)), BadChain, "device key: issuer")


def test_leaf_that_issues_is_refused() -> None:
    """A certificate of a signing key in the place of a CA, and a CA in the place of the leaf."""
    keys = [ec.generate_private_key(ec.SECP384R1()) for _ in range(2)]
    parts = vendor().certificates["provisioner"], vendor().keys["provisioner"]
    no_ca = issue("GH100 A01 GSP BROM", keys[0], *parts, NOW, NOW + timedelta(days=9), ca=False)
    leaf = issue("GH100 A01 GSP FMC LF", keys[1], no_ca, keys[0], NOW, NOW + timedelta(days=9), ca=False)
    found = GPUWorld().judge(_changed(chain=gpu().with_(chain=(leaf, no_ca, *gpu().chain[2:])).pem))
    _refused(found, BadChain, "boot ROM key: may issue")
    boot = issue("GH100 A01 GSP BROM", keys[0], *parts, NOW, NOW + timedelta(days=9), ca=True)
    leaf = issue("GH100 A01 GSP FMC LF", keys[1], boot, keys[0], NOW, NOW + timedelta(days=9), ca=True)
    found = GPUWorld().judge(_changed(chain=gpu().with_(chain=(leaf, boot, *gpu().chain[2:])).pem))
    _refused(found, BadChain, "device key: is no CA")


def test_rim_that_an_ocsp_responder_signed_is_refused() -> None:
    """Its certificate comes from the same authority as the RIM signer's, but for another purpose."""
    key, above = ec.generate_private_key(ec.SECP384R1()), vendor().certificates["rim-signing-ca"]
    eku = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING])
    until = NOW + timedelta(days=9)
    signer = issue("R", key, above, vendor().keys["rim-signing-ca"], NOW, until, ca=False, extensions=[eku])
    keys, certificates = dict(vendor().keys), dict(vendor().certificates)
    keys["rim-signer"], certificates["rim-signer"] = key, signer
    rims = list(vendor().rims((gpu(),)))
    rims[0] = SimNVIDIA(NOW, keys, certificates).rim("HOPPER", DRIVER, DRIVER_INDEXES)
    _refused(GPUWorld(rims=rims).judge(), BadChain, "RIM signer: is no CA")


def test_wrong_number_of_certificates_is_refused() -> None:
    """Four, and six."""
    for chain in (gpu().chain[:4], (*gpu().chain, gpu().chain[-1])):
        found = GPUWorld().judge(_changed(chain=gpu().with_(chain=chain).pem))
        _refused(found, MalformedQuote, "length of the device certificate chain")


def test_time_before_the_certificates_is_refused() -> None:
    """A clock that runs behind."""
    _refused(GPUWorld(now=vendor().created - timedelta(days=1)).judge(), Stale, "device key: valid now")


def test_firmware_id_of_another_device_is_refused() -> None:
    """Report and certificate of different firmware, signed by the right key."""
    other = gpu().with_(fwid=bytes(48))
    _refused(GPUWorld().judge([other.evidence(NONCE)]), Mismatch, "firmware id")


def test_evidence_for_another_nonce_is_refused() -> None:
    """Replayed: the report is for another nonce than the verifier's, whatever the evidence states beside it."""
    old = gpu().evidence(bytes(32))
    _refused(GPUWorld().judge([old]), Mismatch, "nonce")
    _refused(GPUWorld().judge([replace(old, nonce=NONCE)]), Mismatch, "nonce of the evidence")
    _refused(GPUWorld(nonce=None).judge([replace(old, nonce=NONCE)]), Mismatch, "nonce of the evidence")


def test_report_of_another_device_is_refused() -> None:
    """Signed by another key of the same vendor."""
    other = vendor().device().with_(fwid=gpu().fwid)
    _refused(GPUWorld().judge(_changed(report=other.report(NONCE))), BadChain, "report: signature")


def test_other_architecture_than_stated_is_refused() -> None:
    """A GPU that is said to be of a newer kind."""
    _refused(GPUWorld().judge(_changed(arch="BLACKWELL")), Mismatch, "architecture")


# --- revocation -------------------------------------------------------------------------------------------------------

_CERTIFICATES = [
    "boot ROM key",
    "provisioner CA",
    "identity CA",
    "RIM signer",
    "RIM signing CA",
    "RIM reference value CA",
]
_ISSUERS = {
    "provisioner CA": ("provisioner", "identity"),
    "identity CA": ("identity", "root"),
    "RIM signer": ("rim-signer", "rim-signing-ca"),
    "RIM signing CA": ("rim-signing-ca", "rim-ca"),
    "RIM reference value CA": ("rim-ca", "root"),
}
_CERTIFICATES = ["boot ROM key", *_ISSUERS]


def _answers(what: str, make: Callable[[x509.Certificate, str], bytes | None]) -> list[bytes]:
    """All good answers, with another one (or none) about one certificate."""
    good = list(vendor().answers((gpu(),), NOW))
    names = [*list(_ISSUERS), "boot ROM key"]
    place = names.index(what)
    if what == "boot ROM key":
        made = make(gpu().chain[1], "provisioner")
    else:
        subject, issuer = _ISSUERS[what]
        made = make(vendor().certificates[subject], issuer)
    return good[:place] + ([] if made is None else [made]) + good[place + 1 :]


@pytest.mark.parametrize("what", _CERTIFICATES)
@pytest.mark.parametrize("reason", [x509.ReasonFlags.key_compromise, x509.ReasonFlags.certificate_hold])
def test_revoked_certificates_are_refused(what: str, reason: x509.ReasonFlags) -> None:
    """Each certificate of both chains; a hold counts as well."""
    answers = _answers(what, lambda certificate, issuer: vendor().answer(certificate, issuer, NOW, reason=reason))
    _refused(GPUWorld(answers=answers).judge(), Revoked, f"{what}: not revoked")


@pytest.mark.parametrize("what", _CERTIFICATES)
def test_missing_answers_are_no_verdict(what: str) -> None:
    """Not checked; and accepted where the policy says so, with a note."""
    answers = _answers(what, lambda *_: None)
    _refused(GPUWorld(answers=answers).judge(), FetchFailed, f"{what}: not revoked")
    found = GPUWorld(answers=answers, policy={"allow_missing_ocsp": True}).judge()
    assert found.verdict == "accepted"
    assert any(what in note for note in found.devices[0].notes)


def test_old_and_foreign_answers_are_refused() -> None:
    """Past its next update; signed by another key; by a responder that nobody named for it."""
    late = GPUWorld(now=NOW + timedelta(days=8)).judge()
    _refused(late, Stale, "boot ROM key: OCSP answer is valid now")

    def altered(certificate: x509.Certificate, issuer: str) -> bytes:
        raw = vendor().answer(certificate, issuer, NOW)
        return raw[:-1] + bytes([raw[-1] ^ 1])

    answers = _answers("identity CA", altered)
    _refused(GPUWorld(answers=answers).judge(), BadChain, "identity CA: OCSP answer is signed")
    answers = _answers(
        "identity CA",
        lambda certificate, issuer: vendor().answer(
            certificate, issuer, NOW, delegated=True, usage=ExtendedKeyUsageOID.SERVER_AUTH
        ),
    )
    _refused(GPUWorld(answers=answers).judge(), BadChain, "identity CA: OCSP answer is signed")


def test_answer_about_another_certificate_counts_for_nothing() -> None:
    """It is not even looked at."""
    answers = _answers("identity CA", lambda *_: vendor().answer(vendor().certificates["rim-ca"], "root", NOW))
    _refused(GPUWorld(answers=answers).judge(), FetchFailed, "identity CA: not revoked")


def test_newest_answer_decides() -> None:
    """An older good answer does not hide a newer revocation."""
    newer = vendor().answer(
        gpu().chain[1], "provisioner", NOW + timedelta(hours=1), reason=x509.ReasonFlags.key_compromise
    )
    world = GPUWorld(now=NOW + timedelta(hours=2))
    world.answers.append(newer)
    _refused(world.judge(), Revoked, "boot ROM key: not revoked")


# --- reference values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left_out", [0, 1])
def test_missing_rims_are_no_verdict(left_out: int) -> None:
    """One RIM is not enough, whichever it is."""
    rims = list(vendor().rims((gpu(),)))
    del rims[left_out]
    found = GPUWorld(rims=rims).judge()
    _refused(found, FetchFailed, f"{('driver', 'vbios')[left_out]} RIM: at hand")
    assert not found.devices[0].compared


def test_rim_of_another_version_is_not_used() -> None:
    """The versions of report and RIM have to be equal."""
    found = GPUWorld([gpu().with_(driver="550.144.04")], rims=list(vendor().rims((gpu(),)))).judge()
    _refused(found, FetchFailed, "driver RIM: at hand")


def test_rim_of_another_root_or_product_is_refused() -> None:
    """Somebody else's reference values, and those of another chip."""
    other = SimNVIDIA.create(NOW - timedelta(days=1))
    rims = list(vendor().rims((gpu(),)))
    rims[0] = other.rim("HOPPER", DRIVER, DRIVER_INDEXES)
    _refused(GPUWorld(rims=rims).judge(), BadChain, "RIM root CA: pinned")
    rims[0] = vendor().rim("BLACKWELL", DRIVER, DRIVER_INDEXES)
    _refused(GPUWorld(rims=rims).judge(), Mismatch, "driver RIM: product")


def test_simulated_rim_does_not_vouch_for_a_real_device() -> None:
    """Two roots that are both accepted, one of them simulated."""
    world = GPUWorld()
    world.roots = replace(world.roots, nvidia_device=frozenset({vendor().root}), sim=frozenset())
    _refused(world.judge(), BadChain, "RIM root CA: pinned")
    other = SimNVIDIA.create(NOW - timedelta(days=1))
    world = GPUWorld(rims=[other.rim("HOPPER", DRIVER, DRIVER_INDEXES), other.rim("HOPPER", VBIOS, VBIOS_INDEXES)])
    world.roots = replace(world.roots, sim=frozenset({vendor().root}), nvidia_rim=frozenset({other.root}))
    _refused(world.judge(), BadChain, "driver RIM: same vendor as the device")


def test_rim_under_another_simulated_root_does_not_vouch_for_a_device() -> None:
    """A policy may name several simulated roots. Each of them speaks for its own devices."""
    other = SimNVIDIA.create(NOW - timedelta(days=1))
    world = GPUWorld(rims=[other.rim("HOPPER", DRIVER, DRIVER_INDEXES), other.rim("HOPPER", VBIOS, VBIOS_INDEXES)])
    world.roots = replace(world.roots, sim=frozenset({vendor().root, other.root}))
    _refused(world.judge(), BadChain, "driver RIM: same vendor as the device")


def _expired() -> tuple[GPUWorld, SimNVIDIA]:
    """A world in which the RIMs' signer has expired, everything else is valid."""
    old = SimNVIDIA.create(NOW - timedelta(days=60), rim_valid_for=timedelta(days=30))
    device = old.device()
    world = GPUWorld([device], rims=list(old.rims([device])), answers=list(old.answers([device], NOW)), tees={old.tee})
    world.roots = TrustRoots().with_sim([old.root])
    return world, old


def test_expired_signer_is_refused_without_record_or_exemption() -> None:
    """The signature has no trusted time."""
    world, _ = _expired()
    _refused(world.judge(), Stale, "driver RIM: signer valid")
    world.recorded_at = NOW - timedelta(days=1)  # recorded too late
    _refused(world.judge(), Stale, "driver RIM: signer valid")
    world.recorded_at = NOW - timedelta(days=61)  # recorded before the signer's time
    _refused(world.judge(), Stale, "driver RIM: signer valid")


def test_expired_signer_is_accepted_by_record_or_dated_exemption() -> None:
    """With a note that says so, and not a second longer than the exemption says."""
    world, _ = _expired()
    world.recorded_at = NOW - timedelta(days=40)
    found = world.judge()
    assert found.verdict == "accepted", found.error
    assert any("recorded this RIM" in note for note in found.devices[0].notes)
    world.recorded_at = None
    rows = [
        {"sha256": parse_rim(raw).fingerprint.hex(), "owner": "alice", "until": "2026-06-01T12:00:00Z"}
        for raw in world.rims
    ]
    world.policy = {"rim_exemptions": rows}
    found = world.judge()
    assert found.verdict == "accepted", found.error
    assert any("alice answers for it" in note for note in found.devices[0].notes)
    world.now += timedelta(seconds=1)
    _refused(world.judge(), Stale, "driver RIM: signer valid")
    world.now, world.policy = NOW, {"rim_exemptions": rows[:1]}
    _refused(world.judge(), Stale, "vbios RIM: signer valid")


def test_index_in_both_rims_is_refused() -> None:
    """Which value would be right?"""
    rims = [vendor().rim("HOPPER", DRIVER, (*DRIVER_INDEXES, 3)), vendor().rim("HOPPER", VBIOS, VBIOS_INDEXES)]
    _refused(GPUWorld(rims=rims).judge(), Mismatch, "RIMs: no index in both")


@pytest.mark.parametrize("index", [*VBIOS_INDEXES, *DRIVER_INDEXES])
def test_every_active_measurement_is_compared(index: int) -> None:
    """One that differs is named by its index and its RIM."""
    found = GPUWorld([gpu().with_(changed={index: bytes(48)})]).judge()
    _refused(found, AppraisalFailed, "measurements")
    (item,) = found.devices[0].mismatched
    assert (item.index, item.source) == (index, "vbios" if index in VBIOS_INDEXES else "driver")
    assert found.devices[0].genuine


def test_other_good_value_counts_and_inactive_indexes_do_not() -> None:
    """An alternative is as good as the first. An index that no RIM names may hold anything."""
    changed = {3: measurement(3, alternative=1), 40: bytes(48)}
    assert GPUWorld([gpu().with_(changed=changed)]).judge().verdict == "accepted"


def test_measurement_35_counts_where_nvdec0_is_enabled() -> None:
    """And only there."""
    disabled = gpu().with_(changed={35: bytes(48)})
    assert GPUWorld([disabled]).judge().verdict == "accepted"
    _refused(GPUWorld([disabled.with_(nvdec0=0xAA)]).judge(), AppraisalFailed, "measurements")


def test_golden_index_that_the_report_lacks_is_a_mismatch() -> None:
    """A short report does not match by saying less."""
    rims = [vendor().rim("LS10", machine()[-1].vbios, range(32))]
    found = GPUWorld(machine(), rims=[*vendor().rims((machine()[0],)), *rims]).judge()
    _refused(found, AppraisalFailed, "measurements")
    assert found.devices[-1].mismatched[0].seen == b""


def test_developer_mode_is_accepted_only_by_name() -> None:
    """It shows as measurements that differ; the verdict says so."""
    found = GPUWorld([gpu().with_(changed={3: bytes(48)})], policy={"allow_devtools": True}).judge()
    assert found.verdict == "accepted"
    assert any("developer mode" in note for note in found.devices[0].notes)


# --- the set of devices -----------------------------------------------------------------------------------------------


def test_one_device_twice_is_refused() -> None:
    """The same report, and another report of the same device; also after a firmware update."""
    evidence = gpu().evidence(NONCE)
    _refused(GPUWorld().judge([evidence, evidence]), Mismatch, "each UEID once")
    _refused(GPUWorld().judge([evidence, gpu().evidence(NONCE)]), Mismatch, "each UEID once")
    other = vendor().device(pdi=gpu().pdi)
    _refused(GPUWorld([gpu(), other]).judge(), Mismatch, "each boot ROM serial number once")


@pytest.mark.parametrize("left_out", [0, 11])
def test_machine_that_is_not_whole_is_refused(left_out: int) -> None:
    """Seven GPUs, or three NVSwitches; and one GPU that says it is part of such a machine."""
    devices = [device for number, device in enumerate(machine()) if number != left_out]
    _refused(GPUWorld(devices).judge(), Mismatch, "protected PCIe: devices")
    _refused(GPUWorld(machine()[:1]).judge(), Mismatch, "protected PCIe: devices")
    _refused(GPUWorld([gpu().with_(feature=2)]).judge(), Mismatch, "protected PCIe: devices")


def test_machine_with_devices_of_another_is_refused() -> None:
    """A GPU at other switches, a switch with other GPUs, another switch, and a GPU in another mode."""
    devices = list(machine())
    other = vendor().device("LS10")
    stranger = devices[0].with_(switches=(*devices[0].switches[:3], other.pdi))
    _refused(GPUWorld([stranger, *devices[1:]]).judge(), Mismatch, "protected PCIe: NVSwitches at a GPU")
    stranger = devices[0].with_(switches=devices[0].switches[:3])
    _refused(GPUWorld([stranger, *devices[1:]]).judge(), Mismatch, "protected PCIe: NVSwitches at a GPU")
    switch = devices[-1].with_(gpus=(*devices[-1].gpus[:7], bytes(8)))
    _refused(GPUWorld([*devices[:-1], switch]).judge(), Mismatch, "protected PCIe: GPUs at the NVSwitches")
    renamed = devices[-1].with_(chain=other.chain, key=other.key)
    _refused(GPUWorld([*devices[:-1], renamed]).judge(), Mismatch, "protected PCIe: NVSwitches at a GPU")
    _refused(GPUWorld([devices[0].with_(ppcie=False), *devices[1:]]).judge(), Mismatch, "protected PCIe: mode")


@pytest.mark.parametrize("replaced", [1, 7])
def test_machine_with_some_genuine_gpus_of_another_is_refused(replaced: int) -> None:
    """They name the right switches, as their host can arrange. Their certificates are others than the switches name."""
    devices = list(machine())
    for number in range(replaced):
        stranger = vendor().device("HOPPER")
        devices[number] = stranger.with_(ppcie=True, feature=2, switches=devices[number].switches)
    _refused(GPUWorld(devices).judge(), Mismatch, "protected PCIe: GPUs' certificates at the NVSwitches")


def test_switches_that_name_gpus_by_other_numbers_are_accepted() -> None:
    """Whether the numbers are those of the certificates is not known, so none of them may be."""
    names = tuple(bytes([number]) * 8 for number in range(1, 9))
    devices = [device.with_(gpus=names) if device.arch == "LS10" else device for device in machine()]
    assert GPUWorld(devices).judge().verdict == "accepted"


def test_gpu_names_its_switches_in_reverse() -> None:
    """As real ones do. In the other order they are other switches."""
    devices = list(machine())
    turned = devices[0].with_(switches=tuple(pdi[::-1] for pdi in devices[0].switches))
    _refused(GPUWorld([turned, *devices[1:]]).judge(), Mismatch, "protected PCIe: NVSwitches at a GPU")


def test_switch_that_states_another_identity_is_refused() -> None:
    """The identity in the report has to be the certificate's."""

    class Liar(type(machine()[-1])):  # type: ignore[misc]
        """A switch that states the identity of another."""

        pdi = bytes(8)

    switch = machine()[-1]
    liar = Liar(**{name: getattr(switch, name) for name in switch.__dataclass_fields__})
    found = GPUWorld([*machine()[:-1], liar]).judge()
    _refused(found, Mismatch, "protected PCIe: identity of an NVSwitch")


# --- the policy -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "check"),
    [
        (None, "GPUs: named by the policy"),
        ({"count": 2}, "GPUs: number"),
        ({"archs": ["BLACKWELL"]}, "GPUs: architecture"),
        ({"min_driver": "550.144.04"}, "GPUs: least driver"),
        ({"drivers": ["550.144.02"]}, "GPUs: driver"),
        ({"vbios": ["96.00.5E.00.02"]}, "GPUs: VBIOS"),
        ({"serials": ["1"]}, "GPUs: serial number"),
    ],
)
def test_policy_refuses_what_it_does_not_name(policy: dict[str, object] | None, check: str) -> None:
    """Each requirement."""
    _refused(GPUWorld(policy=policy).judge(), AppraisalFailed, check)


def test_policy_accepts_what_it_names() -> None:
    """All requirements at once; either number of the device counts."""
    for number in (gpu().ueid, str(gpu().chain[1].serial_number)):
        policy = {
            "count": 1,
            "archs": ["HOPPER"],
            "min_driver": "550.54",
            "drivers": [DRIVER],
            "vbios": [VBIOS.lower()],
            "serials": [number],
        }
        assert GPUWorld(policy=policy).judge().verdict == "accepted"


def test_tee_has_to_be_named() -> None:
    """A simulated GPU is never `nvidia-gpu`."""
    _refused(GPUWorld(tees={"nvidia-gpu"}).judge(), AppraisalFailed, "TEE")
    _refused(GPUWorld(tees=set()).judge(), AppraisalFailed, "TEE")


def test_expired_signer_that_was_revoked_is_refused() -> None:
    """An answer from its lifetime that revokes it counts for ever; a good one of that time is not needed."""
    world, old = _expired()
    world.recorded_at = NOW - timedelta(days=40)
    signer = old.certificates["rim-signer"]
    world.answers[2] = old.answer(signer, "rim-signing-ca", NOW - timedelta(days=35))
    assert world.judge().verdict == "accepted"
    reason = x509.ReasonFlags.key_compromise
    world.answers[2] = old.answer(signer, "rim-signing-ca", NOW - timedelta(days=35), reason=reason)
    _refused(world.judge(), Revoked, "RIM signer: not revoked")
