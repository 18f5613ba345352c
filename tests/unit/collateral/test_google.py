"""Google's firmware endorsements as collateral: fetched from a double, kept, expiring, in bundles, in the verdict."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import pytest

from adyton.attest.certificates import parse_certificate
from adyton.attest.snp import SNPReport, parse_report
from adyton.cli import main as command_line
from adyton.collateral.bundle import build_bundle, parse_bundle
from adyton.collateral.documents import Document, verify_document
from adyton.collateral.downloads import Downloads
from adyton.collateral.google import EndorsementClient, GoogleDownloads
from adyton.collateral.http_client import HTTPFetcher, Response
from adyton.collateral.store import CollateralStore
from adyton.errors import BadChain, EvidenceError, FetchFailed, MalformedQuote, Mismatch, Stale, UsageError
from adyton.workflow.collateral import fetch_collateral
from adyton.workflow.verify import verify
from tests.support.amd_factory import NOW, SNPScenario
from tests.support.google_factory import EndorsementScenario

BUCKET, ROOT = "https://bucket.test/gce_tcb_integrity", "https://pki.test/root.crt"


@dataclass
class Google:
    """A double of the bucket and of the page with the root; a fetcher."""

    made: EndorsementScenario
    measurement: bytes
    tee: str = "snp"
    status: int = 200
    pem: bool = False
    asked: list[str] = field(default_factory=list)

    def get(self, url: str, *, max_bytes: int, headers: Mapping[str, str] | None = None) -> Response:
        """One answer, as Google's storage gives it."""
        self.asked.append(url)
        if self.status != 200:
            return Response(url, self.status, {}, b"")
        if url == ROOT:
            root = self.made.root()
            return Response(url, 200, {}, parse_certificate(root, "root").pem.encode() if self.pem else root)
        folder = {"snp": "sevsnp", "tdx": "tdx"}[self.tee]
        good = url == f"{BUCKET}/ovmf_x64_csm/{folder}/{self.measurement.hex()}.binarypb"
        return Response(url, 200 if good else 403, {}, self.made.built() if good else b"")

    def client(self) -> EndorsementClient:
        """The client that asks it."""
        return EndorsementClient(BUCKET, ROOT, self, lambda: NOW)


def report() -> SNPReport:
    """A report of the firmware that is endorsed."""
    return parse_report(SNPScenario().built().report)


@pytest.fixture
def google() -> Google:
    """One that endorses the firmware of `report`."""
    measurement = report().measurement
    return Google(EndorsementScenario(snp=[measurement], tdx=[measurement]), measurement)


@pytest.mark.parametrize("tee", ["snp", "tdx"])
@pytest.mark.parametrize("pem", [True, False])
def test_endorsement_is_fetched_by_the_launch_measurement(google: Google, tee: str, *, pem: bool) -> None:
    """At the address that Google's own tools ask, with its root in either form."""
    google.tee, google.pem = tee, pem
    document = google.client().endorsement(tee, google.measurement)
    verified = verify_document(document)
    assert (verified.root, verified.document.request) == (google.made.pin, f"{tee}-{google.measurement.hex()}")
    assert verified.name.startswith(f"google-firmware-{tee}-")
    assert Document.from_dict(json.loads(json.dumps(document.to_dict()))) == document


@pytest.mark.parametrize("status", [403, 404, 429, 500])
def test_firmware_without_an_endorsement_is_named(google: Google, status: int) -> None:
    """Google answers 403 to what it does not publish."""
    google.status = status
    with pytest.raises(FetchFailed) as caught:
        google.client().endorsement("snp", google.measurement)
    assert caught.value.seen == str(status)
    assert ("publishes none" in caught.value.message) == (status in (403, 404))


def test_address_that_is_none_is_refused(google: Google) -> None:
    """Before anything is asked."""
    for base, root in (("ftp://x", ROOT), (BUCKET, "pki.test")):
        with pytest.raises(UsageError):
            EndorsementClient(base, root, google).endorsement("snp", google.measurement)
    assert google.asked == []


def test_document_that_endorses_something_else_is_not_kept(google: Google, tmp_path: Path) -> None:
    """Another measurement, a signature by another, a second certificate, no request."""
    good = google.client().endorsement("snp", google.measurement)
    other = EndorsementScenario(snp=[google.measurement], signer="other").built()
    wrong: list[tuple[Document, type[EvidenceError]]] = [
        (replace(good, request=f"snp-{'11' * 48}"), Mismatch),
        (replace(good, body=other), BadChain),
        (replace(good, chain=good.chain * 2), MalformedQuote),
        (replace(good, request=""), MalformedQuote),
        (replace(good, request=f"sgx-{'11' * 48}"), MalformedQuote),
        (replace(good, body=b"\xff"), MalformedQuote),
    ]
    store = CollateralStore(tmp_path)
    for document, error in wrong:
        with pytest.raises(error):
            store.put(document, NOW)
    assert list(store.held()) == []


def test_endorsement_is_kept_expires_and_is_never_replaced_by_an_older_one(google: Google, tmp_path: Path) -> None:
    """As every signed document of a store."""
    end = NOW + timedelta(days=20)
    google.made.leaf_window = (google.made.leaf_window[0], end)
    store = CollateralStore(tmp_path)
    verified = store.put(google.client().endorsement("snp", google.measurement), NOW)
    assert verified.expires_at == end
    assert store.find("google-firmware", verified.subject, NOW) == verified
    assert store.find("google-firmware", verified.subject, end + timedelta(days=1)) is None
    google.made.seconds -= 86_400
    with pytest.raises(Stale):
        store.put(google.client().endorsement("snp", google.measurement), NOW)
    with pytest.raises(Stale):
        CollateralStore(tmp_path / "other").put(verified.document, end + timedelta(days=1))


def test_due_endorsement_is_fetched_anew(google: Google, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past half of its validity, and not before. `Downloads.refresh` leaves it alone."""
    monkeypatch.setattr(HTTPFetcher, "get", lambda _self, url, **more: google.get(url, **more))
    google.made.leaf_window = (google.made.leaf_window[0], NOW + timedelta(days=300))
    downloads = Downloads(CollateralStore(tmp_path))
    asking = GoogleDownloads(downloads, root_url=ROOT)
    asking.sources = (replace(asking.sources[0], url=BUCKET),)
    assert asking.fetch_for(report(), NOW).error is None
    google.asked.clear()
    assert asking.refresh(NOW) == []
    google.made.seconds = int((NOW + timedelta(days=200)).timestamp())
    later = NOW + timedelta(days=250)
    assert downloads.refresh(later) == []
    (outcome,) = asking.refresh(later)
    assert outcome.error is None
    assert len(google.asked) == 2


def test_verdict_shows_the_endorsement_of_the_store_and_of_a_bundle(
    google: Google, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fetched by the verb, exported, and judged from the bundle. It changes no verdict."""
    monkeypatch.setattr(HTTPFetcher, "get", lambda _self, url, **more: google.get(url, **more))
    monkeypatch.setattr("adyton.attest.google.verify_endorsement.__kwdefaults__", {"root": google.made.pin})
    built = SNPScenario().built()
    monkeypatch.setattr("adyton.workflow.verify.TrustRoots", lambda: built.roots)
    (tmp_path / "report").write_bytes(built.report)
    home = tmp_path / "home"
    downloads = Downloads(CollateralStore(home / "collateral"))
    asking = GoogleDownloads(downloads, root_url=ROOT)
    asking.sources = (replace(asking.sources[0], url=BUCKET),)
    assert asking.fetch_for(report(), NOW).verified is not None

    from adyton.collateral import lookup

    monkeypatch.setattr(lookup.Lookup, "for_report", lambda *_: built.collateral)
    found = verify(built.report, at=NOW, policy={"tees": ["snp"]}, home=home)
    assert found.to_dict()["firmware"]["endorsed_by"] == "Google"
    assert "endorsed by Google on" in found.to_text()
    bundle = tmp_path / "bundle.json"
    bundle.write_bytes(CollateralStore(home / "collateral").export_bundle(None))
    assert [document.kind for document in parse_bundle(bundle.read_bytes())] == ["google-firmware"]
    amd = tmp_path / "amd.json"
    amd.write_text(built.collateral.to_json())
    found = verify(built.report, collateral=[bundle, amd], at=NOW, policy={"tees": ["snp"]})
    assert found.to_dict()["firmware"]["endorsed_by"] == "Google"
    document = parse_bundle(bundle.read_bytes())[0]
    bundle.write_bytes(build_bundle([replace(document, body=EndorsementScenario(snp=[b"\x11" * 48]).built())]))
    found = verify(built.report, collateral=[bundle, amd], at=NOW, policy={"tees": ["snp"]})
    assert "NOT endorsed by Google" in found.to_text()
    again = verify(built.report, at=NOW + timedelta(days=9000), policy={"tees": ["snp"]}, home=home)
    assert again.firmware is None
    capsys.readouterr()


def test_verb_asks_google_only_where_it_is_told_to(
    google: Google, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And for evidence of confidential machines only."""
    monkeypatch.setattr(HTTPFetcher, "get", lambda _self, url, **more: google.get(url, **more))
    google.made.seconds = 1_600_000_000
    (tmp_path / "report").write_bytes(SNPScenario().built().report)
    taken = fetch_collateral(
        evidence=[tmp_path / "report"], google=True, google_bucket=BUCKET, google_root=ROOT, home=tmp_path / "home"
    )
    names = [outcome.name for outcome in taken.outcomes if outcome.error is None]
    assert [name.startswith("google-firmware-snp-") for name in names] == [True]
    assert taken.strange_roots == (google.made.pin,)
    google.asked.clear()
    fetch_collateral(evidence=[tmp_path / "report"], home=tmp_path / "home")
    assert not [url for url in google.asked if "gce_tcb" in url]
    with pytest.raises(SystemExit) as ended:
        command_line.main(["collateral", "fetch", "--google", "--home", str(tmp_path / "home")])
    assert ended.value.code == UsageError.exit_code
