"""The client of AMD's Key Distribution Service and the chips' certificates in the store, against a double of it.

The double answers as AMD 57230 describes: paths, parameters, PEM chains, DER certificates and CRLs, and 429 to more
than one VCEK per ten seconds.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest

from adyton.attest import amd, snp
from adyton.attest.certificates import parse_certificate
from adyton.attest.collateral import AMDCollateral
from adyton.attest.evidence import parse_evidence
from adyton.attest.snp import TCBVersion
from adyton.attest.snp_table import build_table
from adyton.collateral.background import BackgroundFetches, BackgroundLookup, Pending
from adyton.collateral.bundle import parse_bundle
from adyton.collateral.documents import Document, chip_subject, verify_document
from adyton.collateral.downloads import Downloads
from adyton.collateral.http_client import Response
from adyton.collateral.kds import AMD_KDS, KDSClient, vcek_query
from adyton.collateral.lookup import Lookup
from adyton.collateral.sources import Source
from adyton.collateral.store import CollateralStore
from adyton.errors import BadChain, Error, FetchFailed, MalformedQuote, Stale, StorageFailed, UsageError
from tests.support.amd_factory import NOW, SNPScenario


class KDS:
    """A double of AMD's service for one product; a fetcher."""

    def __init__(self, scenario: SNPScenario) -> None:
        self.scenario = scenario
        self.built = scenario.built()
        self.report = snp.parse_report(self.built.report)
        self.now = NOW
        self.asked: list[str] = []
        self.slept: list[float] = []
        self.busy = 0
        self.retry_after: str | None = None
        self.last_vcek: datetime | None = None

    def sleep(self, seconds: float) -> None:
        """Waiting moves the clock."""
        self.slept.append(seconds)
        self.now += timedelta(seconds=seconds)

    def get(self, url: str, *, max_bytes: int, headers: Mapping[str, str] | None = None) -> Response:
        """One answer."""
        self.asked.append(url)
        if self.busy:
            self.busy -= 1
            head = {} if self.retry_after is None else {"retry-after": self.retry_after}
            return Response(url, 429, head, b"")
        parts = urlsplit(url)
        _, key, version, product, *rest = parts.path.split("/")
        collateral = self.built.collateral
        if version != "v1" or product != self.scenario.product or key not in ("vcek", "vlek"):
            return Response(url, 404, {}, b"")
        if rest == ["cert_chain"]:
            pem = "".join(parse_certificate(raw, "AMD").pem for raw in (collateral.ask, collateral.ark))
            return Response(url, 200, {}, pem.encode())
        if rest == ["crl"] and collateral.crl is not None:
            return Response(url, 200, {}, collateral.crl)
        return self._vcek(url, rest, dict(parse_qsl(parts.query)))

    def _vcek(self, url: str, rest: list[str], query: dict[str, str]) -> Response:
        """A VCEK for the chip's very id and TCB; one per ten seconds."""
        turin = self.scenario.product == "Turin"
        chip_id = self.report.chip_id[:8] if turin else self.report.chip_id
        wanted = vcek_query(self.scenario.product, self.scenario.certificate_tcb)
        if rest != [chip_id.hex()] or query != wanted:
            return Response(url, 404, {}, b"")
        if self.last_vcek is not None and self.now - self.last_vcek < timedelta(seconds=10):
            return Response(url, 429, {}, b"")
        self.last_vcek = self.now
        return Response(url, 200, {}, self.built.collateral.leaf)

    def client(self, _source: Source | None = None) -> KDSClient:
        """A client of this double."""
        return KDSClient("https://kds.invalid", self, clock=lambda: self.now, sleep=self.sleep)

    def downloads(self, folder: Path) -> Downloads:
        """What asks this double for a store's documents."""
        return Downloads(CollateralStore(folder), kds_of=self.client)


@pytest.fixture(params=["Milan", "Turin"])
def kds(request: pytest.FixtureRequest) -> KDS:
    """A double for each layout of TCB versions."""
    return KDS(SNPScenario(product=request.param))


@pytest.fixture
def milan() -> KDS:
    """A double for Milan."""
    return KDS(SNPScenario())


def test_fetched_certificates_verify_the_report(kds: KDS, tmp_path: Path) -> None:
    """VCEK, chain and CRL from the service are all that verifying the report needs, and are asked for once."""
    downloads = kds.downloads(tmp_path)
    outcomes = downloads.fetch_for(kds.report, kds.now)
    assert [outcome.error for outcome in outcomes] == [None, None]
    collateral = Lookup(downloads.store).for_report(kds.report, kds.now, roots=kds.built.roots)
    assert amd.verify(kds.report, collateral, kds.built.roots, kds.now).revocation_checked
    vceks = [url for url in kds.asked if "SPL" in url]
    assert len(vceks) == 1
    assert ("fmcSPL" in vceks[0]) == (kds.scenario.product == "Turin")
    downloads.fetch_for(kds.report, kds.now)
    assert len([url for url in kds.asked if "SPL" in url]) == 1


def test_offline_store_says_how_to_fetch(milan: KDS, tmp_path: Path) -> None:
    """Without the chip's certificate the report cannot be checked, and nothing is asked."""
    with pytest.raises(FetchFailed, match="is missing"):
        Lookup(milan.downloads(tmp_path).store).for_report(milan.report, milan.now, roots=milan.built.roots)
    assert milan.asked == []


def test_online_store_fetches_when_evidence_waits(milan: KDS, tmp_path: Path) -> None:
    """With `online` the certificates come with the first report."""
    downloads = milan.downloads(tmp_path)
    lookup = Lookup(downloads.store, downloads)
    for _ in range(2):
        collateral = lookup.for_report(milan.report, milan.now, roots=milan.built.roots)
        assert collateral.leaf == milan.built.collateral.leaf
    assert len([url for url in milan.asked if "SPL" in url]) == 1


def test_expired_crl_fails_closed(milan: KDS, tmp_path: Path) -> None:
    """Beyond the CRL's next update the report is refused."""
    downloads = milan.downloads(tmp_path)
    downloads.fetch_for(milan.report, milan.now)
    with pytest.raises(Stale, match="amd-crl-milan expired"):
        Lookup(downloads.store).for_report(milan.report, milan.now + timedelta(days=21), roots=milan.built.roots)


def test_refresh_fetches_the_crl_and_never_a_vcek(milan: KDS, tmp_path: Path) -> None:
    """A VCEK never changes; the CRL is fetched anew after half of its validity."""
    downloads = milan.downloads(tmp_path)
    downloads.fetch_for(milan.report, milan.now)
    milan.asked.clear()
    outcomes = downloads.refresh(milan.now + timedelta(days=9))
    assert [outcome.name for outcome in outcomes] == ["amd-crl-milan"]
    assert not any("SPL" in url for url in milan.asked)


def test_crl_that_is_due_is_fetched_in_the_background(
    milan: KDS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report after half of the CRL's validity is judged at once with what is here, and has it fetched anew."""
    monkeypatch.setattr("adyton.collateral.lookup.TrustRoots", lambda: milan.built.roots)
    downloads = milan.downloads(tmp_path)
    downloads.fetch_for(milan.report, milan.now)
    milan.asked.clear()
    waiting: list[Callable[[], None]] = []
    lookup = BackgroundLookup.create(downloads, BackgroundFetches(start=waiting.append))
    lookup.for_report(milan.report, milan.now)
    assert waiting == []
    for _ in range(2):
        assert isinstance(lookup.for_report(milan.report, milan.now + timedelta(days=9)), AMDCollateral)
    assert milan.asked == []
    (work,) = waiting
    work()
    assert any(url.endswith("/crl") for url in milan.asked)
    assert not any("SPL" in url for url in milan.asked)


@pytest.mark.parametrize(("retry_after", "wait_s"), [(None, 10.0), ("3", 3.0)])
def test_busy_service_is_waited_for_once(milan: KDS, retry_after: str | None, wait_s: float) -> None:
    """A 429 is waited out as long as the service says, or ten seconds."""
    milan.busy, milan.retry_after = 1, retry_after
    tcb = milan.scenario.certificate_tcb
    assert milan.client().vcek("Milan", milan.report.chip_id, tcb).body == milan.built.collateral.leaf
    assert milan.slept == [wait_s]


def test_busy_service_that_asks_for_long_is_left_alone(milan: KDS, tmp_path: Path) -> None:
    """A long wait is not sat out: the source is left alone until then, in every process."""
    milan.busy, milan.retry_after = 1, "600"
    outcomes = milan.downloads(tmp_path).fetch_for(milan.report, milan.now)
    assert isinstance(outcomes[0].error, FetchFailed)
    assert outcomes[0].error.retry_after_s == 600
    assert "retry after 600 s" in str(outcomes[0].error)
    assert "wait 600 s" in str(outcomes[0].error.remedy)
    assert milan.slept == []
    outcomes = milan.downloads(tmp_path).fetch_for(milan.report, milan.now + timedelta(seconds=300))
    assert "left alone" in str(outcomes[0].error)
    assert len(milan.asked) == 1
    outcomes = milan.downloads(tmp_path).fetch_for(milan.report, milan.now + timedelta(seconds=601))
    assert [outcome.error for outcome in outcomes] == [None, None]


def test_pace_of_the_service_is_kept(milan: KDS) -> None:
    """Two VCEKs in a row: the second waits for its turn."""
    client, tcb = milan.client(), milan.scenario.certificate_tcb
    for _ in range(2):
        client.vcek("Milan", milan.report.chip_id, tcb)
    assert milan.slept == [10.0]


def test_unknown_chip_is_refused_and_remembered(milan: KDS, tmp_path: Path) -> None:
    """A 404 says so, and the same chip is not asked for again at once."""
    stranger = milan.report.replace(chip_id=b"\7" * 64)
    downloads = milan.downloads(tmp_path)
    outcomes = downloads.fetch_for(stranger, milan.now)
    assert isinstance(outcomes[0].error, FetchFailed)
    assert outcomes[0].error.status == 404
    asked = len(milan.asked)
    downloads.fetch_for(stranger, milan.now + timedelta(seconds=10))
    assert len(milan.asked) == asked


def test_report_that_masks_its_chip_is_refused(milan: KDS) -> None:
    """No id, no VCEK: the refusal names the ways out, and nothing is asked."""
    with pytest.raises(FetchFailed, match="masks its chip id"):
        milan.client().vcek("Milan", bytes(64), milan.scenario.certificate_tcb)
    assert milan.asked == []


def test_version_2_report_tries_the_products_of_its_time(tmp_path: Path) -> None:
    """A report of version 2 names no product: Milan and Genoa are tried."""
    scenario = SNPScenario()
    scenario.fields |= {"version": 2, "cpuid_family": 0, "cpuid_model": 0}
    kds = KDS(scenario)
    assert kds.report.product is None
    downloads = kds.downloads(tmp_path)
    assert [outcome.error for outcome in downloads.fetch_for(kds.report, kds.now)] == [None, None]
    collateral = Lookup(downloads.store).for_report(kds.report, kds.now, roots=kds.built.roots)
    amd.verify(kds.report, collateral, kds.built.roots, kds.now)


def test_vlek_of_the_guest_is_kept_with_its_chain(tmp_path: Path) -> None:
    """A VLEK comes from the guest's host; chain and CRL from AMD; together they verify the report."""
    kds = KDS(SNPScenario(vlek=True))
    downloads = kds.downloads(tmp_path)
    assert [outcome.name for outcome in downloads.fetch_for(kds.report, kds.now)] == ["amd-crl-milan"]
    downloads.put_vlek(kds.built.collateral.leaf, "Milan", kds.now)
    collateral = Lookup(downloads.store).for_report(kds.report, kds.now, roots=kds.built.roots)
    report = amd.verify(kds.report, collateral, kds.built.roots, kds.now)
    assert report.platform["provider"] == "test provider"


def test_vlek_that_comes_with_a_report_is_kept_without_a_command(tmp_path: Path) -> None:
    """A report with its host's certificate table: the VLEK is stored in the background, and verifies the report."""
    kds = KDS(SNPScenario(vlek=True))
    leaf = kds.built.collateral.leaf
    table = build_table({"VLEK": leaf, "ASK": kds.built.collateral.ask, "ARK": kds.built.collateral.ark})
    report = parse_evidence(kds.built.report + table + bytes(100))
    assert isinstance(report, snp.SNPReport)
    assert report.vlek == leaf
    assert parse_evidence(report.to_bytes()) == report
    downloads = kds.downloads(tmp_path)
    works: list[Callable[[], None]] = []
    lookup = BackgroundLookup.create(downloads, BackgroundFetches(start=works.append))
    pinned = kds.built.roots
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("adyton.collateral.lookup.TrustRoots", lambda: pinned)
        assert isinstance(lookup.for_report(report, kds.now), Pending)
        works.pop()()
        found = lookup.for_report(report, kds.now)
    assert isinstance(found, AMDCollateral)
    assert amd.verify(report, found, pinned, kds.now).platform["provider"] == "test provider"
    asked = len(kds.asked)
    assert [outcome.error for outcome in downloads.fetch_for(report, kds.now)] == [None, None]
    assert not any("vlek" in url for url in kds.asked[asked:])
    target = CollateralStore(tmp_path / "other")
    target.import_bundle(downloads.store.export_bundle(None), kds.now)
    assert Lookup(target).for_report(report, kds.now, roots=pinned).leaf == leaf


@pytest.mark.parametrize("wrong", ["another TCB", "no certificate", "signed by another"])
def test_false_vlek_beside_a_report_is_refused(tmp_path: Path, wrong: str) -> None:
    """What the host put beside the report is data: it is kept only where AMD's chain leads to it."""
    kds, other = KDS(SNPScenario(vlek=True)), SNPScenario(vlek=True)
    if wrong == "another TCB":
        other.certificate_tcb = TCBVersion(4, 0, 24, 1)
    elif wrong == "signed by another":
        other.leaf_signer = "other"
    leaf = b"\x30\x03\x02\x01\x05" if wrong == "no certificate" else other.leaf()
    report = parse_evidence(kds.built.report + build_table({"VLEK": leaf}))
    assert isinstance(report, snp.SNPReport)
    downloads = kds.downloads(tmp_path)
    (outcome,) = downloads.fetch_for(report, kds.now)
    assert outcome.error is not None
    assert (kds.asked == []) == (wrong != "signed by another")
    assert not list(downloads.store.held())


def test_missing_vlek_is_told_with_where_it_is(tmp_path: Path) -> None:
    """AMD hands out no VLEK, so the remedy is not to fetch it."""
    kds = KDS(SNPScenario(vlek=True))
    downloads = kds.downloads(tmp_path)
    downloads.fetch_for(kds.report, kds.now)
    with pytest.raises(FetchFailed) as caught:
        Lookup(downloads.store).for_report(kds.report, kds.now, roots=kds.built.roots)
    assert "--vlek FILE" in str(caught.value.remedy)


def test_service_under_another_root_reaches_no_report(milan: KDS, tmp_path: Path) -> None:
    """Certificates that lead to a foreign ARK lie apart: a report under AMD's own pins does not find them."""
    downloads = milan.downloads(tmp_path)
    downloads.fetch_for(milan.report, milan.now)
    with pytest.raises(FetchFailed, match="is missing"):
        Lookup(downloads.store).for_report(milan.report, milan.now)


@pytest.mark.parametrize("kind", ["amd-vcek", "amd-crl"])
def test_altered_amd_document_is_refused(milan: KDS, tmp_path: Path, kind: str) -> None:
    """A flipped byte is refused on the way in, and on the disk when it is read."""
    downloads = milan.downloads(tmp_path)
    downloads.fetch_for(milan.report, milan.now)
    document = next(item for item in parse_bundle(downloads.store.export_bundle()) if item.kind == kind)
    body = bytearray(document.body)
    body[-3] ^= 1
    altered = dataclasses.replace(document, body=bytes(body))
    with pytest.raises((BadChain, MalformedQuote)):
        verify_document(altered)
    held = next(held for held in downloads.store.held() if held.name.startswith(kind))
    (tmp_path / held.root.hex() / f"{held.name}.json").write_text(json.dumps(altered.to_dict()))
    with pytest.raises(StorageFailed, match="altered or damaged"):
        Lookup(milan.downloads(tmp_path).store).for_report(milan.report, milan.now, roots=milan.built.roots)


def test_amd_documents_travel_in_bundles(milan: KDS, tmp_path: Path) -> None:
    """A bundle brings an offline store what verifies the report."""
    downloads = milan.downloads(tmp_path / "one")
    downloads.fetch_for(milan.report, milan.now)
    other = CollateralStore(tmp_path / "other")
    outcomes = other.import_bundle(downloads.store.export_bundle(), milan.now)
    assert [outcome.error for outcome in outcomes] == [None, None]
    amd.verify(
        milan.report,
        Lookup(other).for_report(milan.report, milan.now, roots=milan.built.roots),
        milan.built.roots,
        milan.now,
    )


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
def test_every_status_of_the_service_has_words_and_a_remedy(status: int) -> None:
    """Statuses become refusals that say what to do."""

    class Refusing:
        def get(self, url: str, *, max_bytes: int, headers: Mapping[str, str] | None = None) -> Response:
            return Response(url, status, {}, b"")

    with pytest.raises(FetchFailed, match=f"HTTP {status}") as caught:
        KDSClient(fetcher=Refusing(), sleep=lambda _s: None).chain("Milan")
    assert caught.value.remedy
    assert caught.value.status == status


@pytest.mark.parametrize("body", [b"", b"nonsense", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_chain_that_is_none_is_refused(body: bytes) -> None:
    """Two certificates in PEM, or nothing."""

    class Rubbish:
        def get(self, url: str, *, max_bytes: int, headers: Mapping[str, str] | None = None) -> Response:
            return Response(url, 200, {}, body)

    with pytest.raises(MalformedQuote):
        KDSClient(fetcher=Rubbish()).chain("Milan")


@pytest.mark.parametrize("product", ["milan", "Naples", "../Milan"])
def test_unknown_product_is_refused(product: str) -> None:
    """Only AMD's product names are put into an address."""
    with pytest.raises(UsageError):
        KDSClient("http://127.0.0.1:1").chain(product)


@pytest.mark.parametrize("url", ["kds", "ftp://kds.invalid", "https://kds.invalid/?a=b"])
def test_kds_client_of_something_that_is_no_address_is_refused(url: str) -> None:
    """The service's address is checked before anything is asked."""
    with pytest.raises(UsageError):
        KDSClient(url)


def test_vcek_query_has_two_digits_each() -> None:
    """The parameters as AMD's service expects them."""
    assert vcek_query("Milan", TCBVersion(4, 0, 24, 219)) == {
        "blSPL": "04",
        "teeSPL": "00",
        "snpSPL": "24",
        "ucodeSPL": "219",
    }
    assert next(iter(vcek_query("Turin", TCBVersion(1, 1, 4, 81, fmc=1)))) == "fmcSPL"


@pytest.mark.shared_vectors
def test_real_vceks_are_filed_under_what_their_reports_ask_for(shared_vectors: Path) -> None:
    """For real reports and certificates of three products, the subject of the VCEK is the one the report looks for."""
    folder = shared_vectors / "evidence" / "snp"
    chains = {
        name: (folder.parent / "trust" / f"amd-{name}-ask-ark-asvk.pem").read_text()
        for name in ("milan", "genoa", "turin")
    }
    seen = 0
    for path in sorted(folder.glob("*.vcek.der")):
        name = path.name.partition("-")[0]
        report_path = path.with_name(path.name.replace(".vcek.der", ".report.bin"))
        report = snp.parse_report(report_path.read_bytes()[:1184])
        if report.masks_chip_key or not any(report.chip_id):
            continue
        tcb = TCBVersion.parse(report.field("reported_tcb"), turin=name == "turin")
        blocks = chains[name].split("-----END CERTIFICATE-----\n")
        chain = "".join(f"{block}-----END CERTIFICATE-----\n" for block in blocks[:2])
        verified = verify_document(Document("amd-vcek", path.read_bytes(), chain, AMD_KDS, NOW))
        assert verified.subject == chip_subject(name.capitalize(), tcb, report.chip_id)
        seen += 1
    assert seen >= 5


def test_errors_of_the_client_are_could_not_check() -> None:
    """A silent service is `could not check`, never a verdict."""

    class Silent:
        def get(self, url: str, *, max_bytes: int, headers: Mapping[str, str] | None = None) -> Response:
            raise FetchFailed("nobody there")

    with pytest.raises(Error) as caught:
        KDSClient(fetcher=Silent()).crl("Milan")
    assert isinstance(caught.value, FetchFailed)
