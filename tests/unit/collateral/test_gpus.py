"""Collateral for GPUs: fetched by id, kept, exported, found again; and what is never sent."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from adyton.attest.nvidia.assess import assess_gpus
from adyton.attest.nvidia.gpu_policy import GPUPolicy
from adyton.attest.roots import TrustRoots
from adyton.collateral.documents import Document, verify_document
from adyton.collateral.downloads import Downloads
from adyton.collateral.gpu_files import gpu_collateral, gpu_collateral_from, rim_in_answer
from adyton.collateral.gpus import GPUDownloads, rim_ids
from adyton.collateral.nvidia import OCSPClient, RIMClient
from adyton.collateral.sources import Source
from adyton.collateral.store import CollateralStore, expires_soon
from adyton.errors import BadChain, FetchFailed, MalformedQuote, Stale, StorageFailed, UsageError
from adyton.sim.gpu import SimNVIDIA
from tests.support.gpu_world import NONCE, NOW, gpu, machine, vendor
from tests.support.nvidia_services import NVIDIAServices


@pytest.fixture
def services() -> NVIDIAServices:
    """The services of the tests' vendor."""
    return NVIDIAServices(vendor(), (gpu(),), NOW)


def _downloads(store: CollateralStore, services: NVIDIAServices) -> GPUDownloads:
    return GPUDownloads(
        Downloads(store),
        (Source("https://rim.invalid"),),
        (Source("https://ocsp.invalid"),),
        lambda source: RIMClient(source.url, services, lambda: NOW),
        lambda source: OCSPClient(source.url, services, lambda: NOW),
    )


@pytest.fixture
def store(tmp_path: Path) -> CollateralStore:
    """An empty store."""
    return CollateralStore(tmp_path / "store")


def _judged(store: CollateralStore, now: Any = NOW, policy: dict[str, Any] | None = None) -> Any:
    return assess_gpus(
        [gpu().evidence(NONCE)],
        gpu_collateral(store),
        TrustRoots().with_sim([vendor().root]),
        now,
        policy=GPUPolicy.from_dict(policy or {}),
        tees={vendor().tee},
        nonce=NONCE,
    )


def test_everything_for_a_gpu_is_fetched_and_judged_offline(store: CollateralStore, services: NVIDIAServices) -> None:
    """Two RIMs, and OCSP answers about every certificate but the leaf and the root."""
    evidence = gpu().evidence(NONCE)
    outcomes = _downloads(store, services).fetch_for([evidence], NOW)
    assert [outcome.error for outcome in outcomes] == [None] * 8
    kinds = sorted(outcome.name[:10] for outcome in outcomes)
    assert kinds == ["nvidia-ocs"] * 6 + ["nvidia-rim"] * 2
    assert _judged(store).verdict == "accepted"
    sent = b"".join([*services.posted, *(url.encode() for url in services.asked)])
    for secret in (NONCE, evidence.report[100:140], gpu().fwid):
        assert secret not in sent


def test_ids_are_those_of_the_service() -> None:
    """As NVIDIA names its RIMs."""
    assert rim_ids(gpu().evidence(NONCE)) == ("NV_GPU_DRIVER_GH100_550.144.03", "NV_GPU_VBIOS_1010_0200_882_96005E0001")
    assert rim_ids(machine()[-1].evidence(NONCE)) == ("NV_SWITCH_BIOS_5612_0002_890_9610550001",)
    blackwell = vendor().device("BLACKWELL").evidence(NONCE)
    assert rim_ids(blackwell)[0] == "NV_GPU_CC_DRIVER_GB100_550.144.03"
    assert rim_ids(replace(blackwell, arch=None)) == rim_ids(blackwell)


def test_bundles_carry_it_to_another_store(store: CollateralStore, services: NVIDIAServices, tmp_path: Path) -> None:
    """And a bundle is collateral by itself, as a file or in a folder."""
    _downloads(store, services).fetch_for([gpu().evidence(NONCE)], NOW)
    raw = store.export_bundle()
    other = CollateralStore(tmp_path / "other")
    assert all(outcome.error is None for outcome in other.import_bundle(raw, NOW))
    assert _judged(other).verdict == "accepted"
    (tmp_path / "bundle.json").write_bytes(raw)
    found = gpu_collateral_from([tmp_path / "bundle.json"])
    assert (len(found.rims), len(found.answers)) == (2, 6)
    found = gpu_collateral_from([tmp_path / "other"])
    assert (len(found.rims), len(found.answers)) == (2, 6)


def test_what_a_service_lacks_is_not_asked_for_again(store: CollateralStore, services: NVIDIAServices) -> None:
    """For a few minutes; and a service that is busy is left alone."""
    downloads = _downloads(store, services)
    unknown = gpu().with_(driver="1.2").evidence(NONCE)
    first = downloads.fetch_for([unknown], NOW)
    assert [type(outcome.error) for outcome in first if outcome.error] == [FetchFailed]
    count = len([url for url in services.asked if "DRIVER" in url])
    downloads.fetch_for([unknown], NOW + timedelta(seconds=60))
    assert len([url for url in services.asked if "DRIVER" in url]) == count
    downloads.fetch_for([unknown], NOW + timedelta(seconds=301))
    assert len([url for url in services.asked if "DRIVER" in url]) == count + 1
    services.status, services.asked = 429, []
    outcomes = downloads.fetch_for([gpu().evidence(NONCE)], NOW + timedelta(hours=1))
    assert all(isinstance(outcome.error, FetchFailed) for outcome in outcomes)
    assert len(services.asked) == 2


def test_due_documents_are_fetched_anew(store: CollateralStore, services: NVIDIAServices) -> None:
    """After half of their validity; the answers first, the RIMs months later."""
    downloads = _downloads(store, services)
    downloads.fetch_for([gpu().evidence(NONCE)], NOW)
    assert downloads.refresh(NOW + timedelta(days=1)) == []
    later = services.now = NOW + timedelta(days=5)
    assert [outcome.error for outcome in downloads.refresh(later)] == [None] * 6
    assert _judged(store, NOW + timedelta(days=10)).verdict == "accepted"


def test_store_records_a_rim_only_while_its_signers_are_valid(tmp_path: Path) -> None:
    """By its own clock; neither a bundle's word nor a RIM that comes late makes a record."""
    old = SimNVIDIA.create(NOW - timedelta(days=60), rim_valid_for=timedelta(days=30))
    device = old.device()
    services = NVIDIAServices(old, (device,), NOW)
    evidence = device.evidence(NONCE)

    def judged(store: CollateralStore) -> Any:
        return assess_gpus(
            [evidence],
            gpu_collateral(store),
            TrustRoots().with_sim([old.root]),
            NOW,
            policy=GPUPolicy(),
            tees={old.tee},
        )

    late = CollateralStore(tmp_path / "late")
    assert all(outcome.error is None for outcome in _downloads(late, services).fetch_for([evidence], NOW))
    assert late.rims_recorded() == {}
    assert isinstance(judged(late).error, Stale)
    early = CollateralStore(tmp_path / "early")
    services.now = NOW - timedelta(days=40)
    _downloads(early, services).fetch_for([evidence], NOW - timedelta(days=40))
    assert set(early.rims_recorded()) == {
        hashlib.sha256(item.document.body).hexdigest() for item in early.of_kind("nvidia-rim")
    }
    services.now = NOW
    _downloads(early, services).fetch_for([evidence], NOW)
    assert judged(early).error is None, judged(early).error
    assert any("recorded this RIM" in note for note in judged(early).devices[0].notes)
    services.rims.clear()  # signed anew by an expired signer, which anybody with its old key could do
    outcomes = _downloads(early, services).fetch_for([evidence], NOW)
    assert [type(outcome.error) for outcome in outcomes if outcome.error] == [Stale, Stale]
    assert judged(early).error is None
    other = CollateralStore(tmp_path / "other")
    other.import_bundle(early.export_bundle(), NOW)
    assert isinstance(judged(other).error, Stale)


def test_altered_record_is_refused(store: CollateralStore, services: NVIDIAServices) -> None:
    """It says what counts."""
    _downloads(store, services).fetch_for([gpu().evidence(NONCE)], NOW)
    contents: list[Any] = [{"00": "2026-01-01T00:00:00Z"}, {"0" * 64: "soon"}, []]
    for content in contents:
        (store.directory / "rims.json").write_text(json.dumps(content))
        with pytest.raises(StorageFailed, match="does not parse"):
            store.rims_recorded()


def test_altered_documents_are_refused(store: CollateralStore, services: NVIDIAServices) -> None:
    """On their way in, and on the disk."""
    _downloads(store, services).fetch_for([gpu().evidence(NONCE)], NOW)
    rim, answer = store.of_kind("nvidia-rim")[0].document, store.of_kind("nvidia-ocsp")[0].document
    for document, error in (
        (replace(rim, body=rim.body.replace(b"GH100", b"GH200", 1)), BadChain),
        (replace(rim, request=""), MalformedQuote),
        (replace(rim, request="../x"), MalformedQuote),
        (replace(answer, body=store.of_kind("nvidia-ocsp")[1].document.body), BadChain),
        (replace(answer, chain=gpu().pem.decode()), BadChain),
        (replace(answer, chain=""), MalformedQuote),
        (replace(answer, body=b"\x30\x03\x0a\x01\x06"), MalformedQuote),
    ):
        with pytest.raises(error):
            verify_document(document)
    path = next(store.directory.glob("*/nvidia-rim-*.json"))
    path.write_text(path.read_text().replace("GH100", "GH200", 1))
    with pytest.raises(StorageFailed, match="altered or damaged"):
        gpu_collateral(CollateralStore(store.directory))


@pytest.mark.parametrize(
    "body",
    [{"id": "x"}, {"id": "y", "rim": "AAAA"}, {"id": "x", "rim": "*"}, {"id": "x", "rim": "AAAA", "sha256": "0"}],
)
def test_malformed_answers_of_the_rim_service_are_refused(body: dict[str, str]) -> None:
    """Another id, no RIM, another hash."""
    with pytest.raises(MalformedQuote, match="RIM service"):
        rim_in_answer(json.dumps(body).encode(), "x")


def test_addresses_and_ids_are_checked(services: NVIDIAServices) -> None:
    """Before anything is sent."""
    with pytest.raises(UsageError, match="no id of a RIM"):
        RIMClient("https://rim.invalid", services).rim("../x")
    with pytest.raises(UsageError, match="no address"):
        RIMClient("ftp://x", services).rim("x")
    with pytest.raises(UsageError, match="no address"):
        OCSPClient("https://x/?a", services).answer(())
    assert services.asked == []


def test_files_that_hold_no_collateral_are_refused_by_name(tmp_path: Path) -> None:
    """A named one; in a folder they are skipped."""
    (tmp_path / "x").write_bytes(b"text")
    with pytest.raises(MalformedQuote, match="no collateral for GPUs"):
        gpu_collateral_from([tmp_path / "x"])
    assert gpu_collateral_from([tmp_path]).rims == ()


def test_document_of_a_rim_is_what_was_written(store: CollateralStore, services: NVIDIAServices) -> None:
    """Through its JSON."""
    _downloads(store, services).fetch_for([gpu().evidence(NONCE)], NOW)
    for kind in ("nvidia-rim", "nvidia-ocsp"):
        document = store.of_kind(kind)[0].document
        assert Document.from_dict(document.to_dict()) == document


def test_warning_of_an_end_comes_in_the_last_quarter_of_a_short_life(
    store: CollateralStore, services: NVIDIAServices
) -> None:
    """An OCSP answer of seven days is no warning on its first day. A RIM warns seven days before its signer's end."""
    _downloads(store, services).fetch_for([gpu().evidence(NONCE)], NOW)
    answer, rim = store.of_kind("nvidia-ocsp")[0], store.of_kind("nvidia-rim")[0]
    assert [expires_soon(answer, NOW + timedelta(days=days)) for days in (0, 5, 6, 8)] == [False, False, True, True]
    assert [expires_soon(rim, rim.expires_at - timedelta(days=days)) for days in (100, 8, 6, -1)] == [
        False,
        False,
        True,
        True,
    ]
