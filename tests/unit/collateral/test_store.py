"""The collateral store: verified in and out, refreshed early, never going back, patient with its sources."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest

from adyton.attest import dcap, sgx, tdx
from adyton.attest.collateral import Collateral
from adyton.attest.roots import TrustRoots
from adyton.attest.status import TCBStatus
from adyton.collateral.background import BackgroundFetches, BackgroundLookup
from adyton.collateral.backoff import NEGATIVE_S
from adyton.collateral.bundle import documents_of, index, parse_bundle, read_bundle_files
from adyton.collateral.documents import Channel, Document, verify_document
from adyton.collateral.downloads import Downloads
from adyton.collateral.http_client import Response
from adyton.collateral.lookup import Lookup
from adyton.collateral.needs import assemble, unverified_origin
from adyton.collateral.pcs import PCSClient
from adyton.collateral.sources import Source
from adyton.collateral.store import CollateralStore
from adyton.collateral.verifier import CollateralSource
from adyton.errors import BadChain, Error, FetchFailed, MalformedQuote, Stale, StorageFailed, Timeout, UsageError
from adyton.sim.chip import Shape
from adyton.sim.pcs_server import answer
from adyton.sim.platform import SimPlatform
from adyton.values import Digest, Measurement

MEASUREMENT = Measurement(bytes(32))
SHAPES: tuple[Shape, ...] = ("sgx", "tdx")
SOURCE = Source("http://one.invalid")
OTHER = Source("http://two.invalid")


class World:
    """A platform, its service reachable under two names, and a clock that tests set."""

    def __init__(self, folder: Path, *, carries_chain: bool = True) -> None:
        self.platform = SimPlatform.create(folder / "platform", carries_chain=carries_chain)
        self.now = datetime.fromtimestamp(self.platform.publication().published_at, UTC) + timedelta(minutes=1)
        self.folder = folder
        self.asked: list[str] = []
        self.trouble: dict[str, Callable[[str], Response | Error]] = {}

    def get(self, url: str, *, max_bytes: int, headers: Mapping[str, str] | None = None) -> Response:
        """Answer as the platform's service does, or as `trouble` for the host says."""
        self.asked.append(url)
        parts = urlsplit(url)
        trouble = self.trouble.get(parts.netloc)
        if trouble is not None:
            found = trouble(url)
            if isinstance(found, Error):
                raise found
            return found
        query = dict(parse_qsl(parts.query))
        answered = answer(self.platform, parts.path, query, self.now, form="pccs")
        names = {name.lower(): value for name, value in answered.headers.items()}
        return Response(url, answered.status, names, answered.body)

    def store(self, name: str = "store", *, channel: Channel = "standard") -> CollateralStore:
        """A store in this world."""
        return CollateralStore(self.folder / name, channel=channel)

    def downloads(self, store: CollateralStore | None = None) -> Downloads:
        """What asks this world for the store's documents."""

        def client_of(source: Source, channel: Channel) -> PCSClient:
            return PCSClient(source.url, self, channel, clock=lambda: self.now)

        return Downloads(store or self.store(), client_of=client_of)

    def lookup(self, store: CollateralStore | None = None, *, online: bool = False) -> Lookup:
        """What evidence is judged with; `online` fetches what is missing."""
        downloads = self.downloads(store)
        return Lookup(downloads.store, downloads if online else None)

    def in_background(self, start: Callable[[Callable[[], None]], object]) -> BackgroundLookup:
        """A lookup whose fetches are started so, by this world's clock."""
        fetches = BackgroundFetches(start=start, clock_s=lambda: self.now.timestamp())
        return BackgroundLookup.create(self.downloads(), fetches)

    def quote(self, shape: Shape = "sgx") -> sgx.SGXQuote | tdx.TDXQuote:
        """A parsed quote of the platform."""
        raw = self.platform.enclave(measurement=MEASUREMENT, shape=shape).quote(bytes(64))
        return sgx.parse_quote(raw) if shape == "sgx" else tdx.parse_quote(raw)

    def filled(self, name: str = "store") -> CollateralStore:
        """A store with everything for both shapes."""
        store = self.store(name)
        downloads = self.downloads(store)
        downloads.sources.remember([SOURCE])
        outcomes = downloads.fetch(fmspcs=[self.platform.fmspc], sources=[SOURCE], now=self.now)
        assert [outcome.error for outcome in outcomes] == [None] * 7
        self.asked.clear()
        return store

    def status(self, source: CollateralStore | CollateralSource, shape: Shape = "sgx") -> TCBStatus:
        """What a verifier with this store says about a quote now."""
        quoted = self.quote(shape)
        lookup = Lookup(source) if isinstance(source, CollateralStore) else source
        collateral = lookup.for_quote(quoted, self.now)
        assert isinstance(collateral, Collateral)
        roots = TrustRoots().with_sim([self.platform.root_fingerprint])
        return dcap.verify(quoted, collateral, roots, self.now).status


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A fresh world."""
    return World(tmp_path)


def busy(status: int, retry_after: str | None = None) -> Callable[[str], Response | Error]:
    """Trouble: every request is answered with this status."""
    headers = {} if retry_after is None else {"retry-after": retry_after}
    return lambda url: Response(url, status, headers, b"")


def silent(url: str) -> Error:
    """Trouble: nobody answers."""
    return Timeout(f"no answer from {url}")


# --- what a verifier gets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_filled_store_gives_what_verifies_a_quote(world: World, shape: Shape) -> None:
    """Everything that was fetched once verifies quotes of both shapes, without asking anybody."""
    store = world.filled()
    assert world.status(store, shape) is TCBStatus.UP_TO_DATE
    assert world.asked == []


def test_store_survives_a_new_process(world: World) -> None:
    """A store opened again on the same folder gives the same."""
    world.filled()
    assert world.status(world.store()) is TCBStatus.UP_TO_DATE


def test_collateral_is_the_same_object_until_a_document_changes(world: World) -> None:
    """A verifier that caches by the collateral object hits its cache, until newer documents came."""
    store, quoted = world.filled(), world.quote()
    lookup = world.lookup(store)
    first = lookup.for_quote(quoted, world.now)
    assert lookup.for_quote(world.quote(), world.now) is first
    world.now += timedelta(hours=1)
    world.platform.raise_tcb(now=world.now)
    world.downloads(store).fetch(fmspcs=[world.platform.fmspc], sources=[SOURCE], now=world.now)
    assert lookup.for_quote(quoted, world.now) is not first


def test_offline_store_without_documents_says_how_to_fetch(world: World) -> None:
    """What is missing is `could not check`, named, with the command that fetches it; nothing is asked."""
    with pytest.raises(FetchFailed, match="is missing") as caught:
        world.lookup().for_quote(world.quote(), world.now)
    assert "adyton collateral fetch" in str(caught.value.remedy)
    assert world.asked == []


def test_online_store_fetches_what_is_missing_once(world: World) -> None:
    """With `online` the documents for a quote come when it does, and only once."""
    world.downloads().sources.remember([SOURCE])
    lookup = world.lookup(online=True)
    assert world.status(lookup) is TCBStatus.UP_TO_DATE
    asked = len(world.asked)
    assert asked >= 4
    assert world.status(lookup) is TCBStatus.UP_TO_DATE
    assert len(world.asked) == asked


@pytest.mark.parametrize("online", [True, False])
def test_quotes_that_only_name_their_platform_get_its_certificate(tmp_path: Path, online: bool) -> None:
    """For certification data of type 3 the PCK certificate is fetched and kept; its chain goes into the collateral."""
    world = World(tmp_path, carries_chain=False)
    store = world.store()
    world.downloads(store).sources.remember([SOURCE])
    quoted = world.quote()
    origin = unverified_origin(quoted, root=world.platform.root_fingerprint)
    assert origin.fmspc is None
    if not online:
        outcomes = world.downloads(store).fetch_for(quoted, world.now)
        assert [outcome.error for outcome in outcomes] == [None] * len(outcomes)
    collateral = world.lookup(store, online=online).for_quote(quoted, world.now)
    names = {held.name for held in store.held()}
    assert f"pck-certificate-{origin.request}" in names
    assert collateral.pck_certificate_chain is not None
    roots = TrustRoots().with_sim([world.platform.root_fingerprint])
    assert dcap.verify(quoted, collateral, roots, world.now).status is TCBStatus.UP_TO_DATE


def test_quotes_that_carry_their_certificate_alone_get_its_issuers(world: World) -> None:
    """For certification data of type 4 the CA's chain comes with the CRL that it issues."""
    whole = world.quote()
    leaf = whole.signature.certification_data.decode().split("-----END CERTIFICATE-----")[0]
    data = f"{leaf}-----END CERTIFICATE-----\n".encode()
    alone = dataclasses.replace(whole.signature, certification_type=4, certification_data=data)
    quoted = dataclasses.replace(whole, signature=alone)
    store = world.store()
    outcomes = world.downloads(store).fetch_for(quoted, world.now, sources=[SOURCE])
    assert [outcome.error for outcome in outcomes] == [None] * len(outcomes)
    roots = TrustRoots().with_sim([world.platform.root_fingerprint])
    collateral = Lookup(store).for_quote(quoted, world.now)
    assert dcap.verify(quoted, collateral, roots, world.now).status is TCBStatus.UP_TO_DATE


# --- time -----------------------------------------------------------------------------------------------------------


def test_refresh_before_half_of_the_validity_asks_nobody(world: World) -> None:
    """Fresh documents are left as they are."""
    store = world.filled()
    world.now += timedelta(days=13)
    assert world.downloads(store).refresh(world.now) == []
    assert world.asked == []


def test_refresh_after_half_of_the_validity_fetches_anew(world: World) -> None:
    """From half of the validity on (within a tenth) everything but the year-long root CRL is fetched anew."""
    store = world.filled()
    world.now += timedelta(days=17)
    outcomes = world.downloads(store).refresh(world.now)
    assert len(outcomes) == 6
    assert all(outcome.verified is not None and outcome.verified.issued_at <= world.now for outcome in outcomes)
    assert world.downloads(store).refresh(world.now) == []


def test_online_store_refreshes_in_the_background_when_due(world: World) -> None:
    """Evidence after half of the validity is judged at once with what is here, and starts one refresh."""
    world.filled()
    waiting: list[Callable[[], None]] = []
    store = world.in_background(waiting.append)
    assert world.status(store) is TCBStatus.UP_TO_DATE
    assert waiting == []
    world.now += timedelta(days=17)
    for _ in range(3):
        assert world.status(store) is TCBStatus.UP_TO_DATE
    assert len(waiting) == 1
    assert world.asked == []
    waiting.pop()()
    assert world.asked
    world.now += timedelta(minutes=11)
    assert world.status(store) is TCBStatus.UP_TO_DATE
    assert waiting == []


def test_online_store_tries_a_failed_refresh_again_only_later(world: World) -> None:
    """A source that is down is asked every ten minutes, not with every piece of evidence."""
    world.filled()
    store = world.in_background(lambda work: work())
    world.trouble["one.invalid"] = silent
    world.now += timedelta(days=17)
    asked: list[int] = []
    for _ in range(3):
        assert world.status(store) is TCBStatus.UP_TO_DATE
        asked.append(len(world.asked))
        world.now += timedelta(minutes=4)
    assert asked[0] == asked[1] == asked[2] > 0
    assert world.status(store) is TCBStatus.UP_TO_DATE
    assert len(world.asked) > asked[2]


def test_failed_refresh_keeps_what_is_valid(world: World) -> None:
    """If nobody answers, the old documents serve until they expire."""
    store = world.filled()
    world.trouble["one.invalid"] = silent
    world.now += timedelta(days=29)
    assert all(outcome.error is not None for outcome in world.downloads(store).refresh(world.now))
    assert world.status(store) is TCBStatus.UP_TO_DATE


@pytest.mark.parametrize("online", [True, False])
def test_expired_collateral_fails_closed(world: World, online: bool) -> None:
    """After the next-update time evidence is refused, unless newer collateral can be had."""
    world.filled()
    lookup = world.lookup(online=online)
    world.trouble["one.invalid"] = silent
    world.now += timedelta(days=31)
    with pytest.raises((Stale, Timeout)):
        lookup.for_quote(world.quote(), world.now)
    world.trouble.clear()
    if online:
        assert world.status(lookup) is TCBStatus.UP_TO_DATE
    else:
        with pytest.raises(Stale, match="expired"):
            lookup.for_quote(world.quote(), world.now)


def test_collateral_from_the_future_is_refused(world: World) -> None:
    """A clock that is behind is noticed; the document is not kept."""
    collateral = world.platform.collateral(world.now)
    with pytest.raises(Stale, match="valid only from"):
        world.store().put(documents_of(collateral, "", world.now)[0], world.now - timedelta(days=20))


def test_expired_document_is_not_taken(world: World) -> None:
    """Nothing that has expired comes into the store."""
    collateral = world.platform.collateral(world.now)
    with pytest.raises(Stale, match="expired"):
        world.store().put(documents_of(collateral, "", world.now)[0], world.now + timedelta(days=31))


# --- never back -------------------------------------------------------------------------------------------------------


def test_older_evaluation_number_is_refused(world: World) -> None:
    """Signed, unexpired, but with a lower tcbEvaluationDataNumber than was seen: a replay, refused."""
    old = documents_of(world.platform.collateral(world.now), "", world.now)
    store = world.filled()
    world.now += timedelta(minutes=1)
    world.platform.raise_tcb(now=world.now)
    world.downloads(store).fetch(fmspcs=[world.platform.fmspc], sources=[SOURCE], now=world.now)
    for document in old[:3]:
        with pytest.raises(Stale, match="older than one that was seen"):
            store.put(document, world.now)
    assert world.status(store) is TCBStatus.OUT_OF_DATE


def test_older_issue_date_with_the_same_number_is_refused(world: World) -> None:
    """The same number, issued earlier: refused as well."""
    old = documents_of(world.platform.collateral(world.now), "", world.now)
    store = world.filled()
    world.now += timedelta(days=17)
    world.downloads(store).refresh(world.now)
    with pytest.raises(Stale, match="older"):
        store.put(old[0], world.now)


def test_older_file_put_back_on_disk_is_refused(world: World) -> None:
    """The marks also catch a file that somebody replaced by an older one."""
    store = world.filled()
    root = world.platform.root_fingerprint.hex()
    path = store.directory / root / f"tcb-info-sgx-{world.platform.fmspc.hex()}.json"
    old = path.read_bytes()
    world.now += timedelta(minutes=1)
    world.platform.raise_tcb(now=world.now)
    world.downloads(store).fetch(fmspcs=[world.platform.fmspc], sources=[SOURCE], now=world.now)
    path.write_bytes(old)
    with pytest.raises(Stale, match="older"):
        world.lookup().for_quote(world.quote(), world.now)


def test_the_same_document_again_is_accepted(world: World) -> None:
    """Fetching twice is no going back."""
    store = world.filled()
    outcomes = world.downloads(store).fetch(fmspcs=[world.platform.fmspc], sources=[SOURCE], now=world.now)
    assert [outcome.error for outcome in outcomes] == [None] * 7


# --- verified in and out ----------------------------------------------------------------------------------------------


def flipped(document: Document) -> Document:
    """The document with one byte of its body changed, still of its format where that is possible."""
    body = bytearray(document.body)
    at = body.index(b"INTEL") if b"INTEL" in body else len(body) - 20
    if document.kind in ("tcb-info", "qe-identity"):
        at = body.index(b'"svn":7') + 6 if b'"svn":7' in body else body.index(b'"isvprodid":1') + 12
        body[at] = ord("1")
        if document.kind == "qe-identity":
            body[at] = ord("2")
    else:
        body[at] ^= 1
    return dataclasses.replace(document, body=bytes(body))


@pytest.mark.parametrize("which", range(4), ids=["tcb-info", "qe-identity", "pck-crl", "root-crl"])
def test_altered_document_is_not_stored(world: World, which: int) -> None:
    """A document whose signature does not hold is refused before it is written."""
    document = documents_of(world.platform.collateral(world.now), "", world.now)[which]
    store = world.store()
    with pytest.raises((BadChain, MalformedQuote)):
        store.put(flipped(document), world.now)
    assert list(store.held()) == []
    assert store.put(document, world.now).document == document


@pytest.mark.parametrize("which", range(4), ids=["tcb-info", "qe-identity", "pck-crl", "root-crl"])
def test_document_altered_on_disk_is_refused(world: World, which: int) -> None:
    """A document is verified again when it is read: a flipped byte on disk is `could not check`, and named."""
    store = world.filled()
    document = documents_of(world.platform.collateral(world.now), "", world.now)[which]
    name = verify_document(document).name
    path = store.directory / world.platform.root_fingerprint.hex() / f"{name}.json"
    path.write_text(json.dumps(flipped(document).to_dict()))
    with pytest.raises(StorageFailed, match="altered or damaged") as caught:
        world.lookup().for_quote(world.quote(), world.now)
    assert str(path) in caught.value.message
    broken = [held for held in world.store().held() if held.error is not None]
    assert [held.name for held in broken] == [name]


@pytest.mark.parametrize("content", ["", "{}", "[]", "x" * 100, '{"kind": "tcb-info"}', "[" * 5000])
def test_file_that_is_no_document_is_refused(world: World, content: str) -> None:
    """Nonsense under a document's name is refused by name."""
    store = world.filled()
    (store.directory / world.platform.root_fingerprint.hex() / "root-crl-root.json").write_text(content)
    with pytest.raises(StorageFailed, match="root-crl-root"):
        world.lookup().for_quote(world.quote(), world.now)


def test_document_under_another_name_is_refused(world: World) -> None:
    """A valid document does not count for what another file's name says."""
    store = world.filled()
    folder = store.directory / world.platform.root_fingerprint.hex()
    (folder / "qe-identity-tdx.json").write_bytes((folder / "qe-identity-sgx.json").read_bytes())
    with pytest.raises(StorageFailed, match="another document"):
        world.lookup().for_quote(world.quote("tdx"), world.now)


def test_documents_of_another_root_are_kept_apart(world: World, tmp_path: Path) -> None:
    """A foreign root's documents reach only the evidence under it, and a source that hands them out is refused."""
    (tmp_path / "else").mkdir()
    foreign = World(tmp_path / "else")
    store = world.filled()
    document = documents_of(foreign.platform.collateral(world.now), "", world.now)[1]
    with pytest.raises(FetchFailed, match="another root"):
        store.put(document, world.now, root=world.platform.root_fingerprint)
    store.put(document, world.now)
    assert world.status(store) is TCBStatus.UP_TO_DATE
    with pytest.raises(FetchFailed, match="is missing"):
        Lookup(store).for_quote(foreign.quote(), world.now)


def test_damaged_marks_are_refused(world: World) -> None:
    """Marks that do not parse are never taken for none."""
    store = world.filled()
    for content in ('{"a": {"number": "x", "issued_at": "2026-01-01T00:00:00Z"}}', '{"a": 1}', "nonsense"):
        (store.directory / world.platform.root_fingerprint.hex() / "marks.json").write_text(content)
        with pytest.raises(StorageFailed):
            world.lookup().for_quote(world.quote(), world.now)


# --- several sources --------------------------------------------------------------------------------------------------


def test_second_source_serves_when_the_first_is_silent(world: World) -> None:
    """Each document comes from the first source that has it."""
    world.trouble["one.invalid"] = silent
    store = world.store()
    outcomes = world.downloads(store).fetch(fmspcs=[world.platform.fmspc], sources=[SOURCE, OTHER], now=world.now)
    assert all(outcome.verified is not None for outcome in outcomes)
    assert all("two.invalid" in outcome.verified.document.url for outcome in outcomes if outcome.verified)


def test_second_source_serves_when_the_first_hands_out_rubbish(world: World) -> None:
    """A source whose answers do not verify is passed over."""
    world.trouble["one.invalid"] = lambda url: Response(url, 200, {"tcb-info-issuer-chain": "x"}, b"{}")
    store = world.store()
    outcomes = world.downloads(store).fetch(fmspcs=[world.platform.fmspc], sources=[SOURCE, OTHER], now=world.now)
    assert all(outcome.verified is not None for outcome in outcomes)


def test_no_source_at_all_is_said(world: World) -> None:
    """Without any source the refusal names the option."""
    outcomes = world.downloads().fetch(fmspcs=[world.platform.fmspc], sources=[], now=world.now)
    assert all(outcome.error is not None and "--pcs" in str(outcome.error.remedy) for outcome in outcomes)


@pytest.mark.parametrize("status", [403, 429, 500, 503])
def test_retry_after_is_obeyed(world: World, status: int) -> None:
    """A source that asks for 90 seconds of peace gets them, also from another process; then it is asked again."""
    world.trouble["one.invalid"] = busy(status, "90")
    store = world.store()
    world.downloads(store).fetch(fmspcs=[world.platform.fmspc], sources=[SOURCE], now=world.now)
    assert len(world.asked) == 1
    world.trouble.clear()
    world.now += timedelta(seconds=60)
    outcomes = world.downloads().fetch(fmspcs=[world.platform.fmspc], sources=[SOURCE], now=world.now)
    assert all(isinstance(outcome.error, FetchFailed) for outcome in outcomes)
    assert "left alone until" in str(outcomes[0].error)
    assert len(world.asked) == 1
    world.now += timedelta(seconds=31)
    outcomes = world.downloads().fetch(fmspcs=[world.platform.fmspc], sources=[SOURCE], now=world.now)
    assert all(outcome.verified is not None for outcome in outcomes)


def test_unknown_platform_is_not_asked_for_again_at_once(world: World) -> None:
    """A 404 is remembered for minutes when evidence waits for it, so that nobody can make us hammer a service."""
    world.downloads().sources.remember([SOURCE])
    lookup = world.lookup(online=True)
    world.trouble["one.invalid"] = busy(404)
    for _ in range(3):
        with pytest.raises(FetchFailed):
            lookup.for_quote(world.quote(), world.now)
    asked = len(world.asked)
    world.now += timedelta(seconds=NEGATIVE_S + 1)
    world.trouble.clear()
    assert world.status(lookup) is TCBStatus.UP_TO_DATE
    assert asked <= 2


def test_sources_are_remembered_in_their_order(world: World) -> None:
    """Named sources come first the next time; without any, Intel's service is asked."""
    sources = world.downloads().sources
    assert [source.url for source in sources.known()] == ["https://api.trustedservices.intel.com"]
    sources.remember([SOURCE])
    sources.remember([OTHER])
    assert sources.known() == (OTHER, SOURCE)


def test_source_is_remembered_once_with_its_newest_certificate(world: World) -> None:
    """A pin replaces what was remembered without it: nobody is asked without the pin once there is one."""
    sources = world.downloads().sources
    sources.remember([Source("https://one.invalid"), OTHER])
    pinned = Source("https://one.invalid", None, "ab" * 32)
    sources.remember([pinned])
    assert sources.known() == (pinned, OTHER)
    assert sources.named(Source("https://one.invalid")) == pinned
    assert sources.named(Source("https://one.invalid", "/other.crt")) == Source("https://one.invalid", "/other.crt")
    assert sources.named(Source("https://three.invalid")) == Source("https://three.invalid")


def test_early_channel_is_kept_apart(world: World) -> None:
    """`update=early` documents lie beside the standard ones, and each store serves its own."""
    world.filled()
    early = world.store(channel="early")
    world.downloads(early).fetch(fmspcs=[world.platform.fmspc], sources=[SOURCE], now=world.now)
    assert any("update=early" in url for url in world.asked)
    names = {held.name for held in early.held()}
    assert {"qe-identity-sgx", "qe-identity-sgx.early"} <= names
    assert world.status(early) is TCBStatus.UP_TO_DATE
    assert world.status(world.store()) is TCBStatus.UP_TO_DATE


# --- bundles ----------------------------------------------------------------------------------------------------------


def test_bundle_carries_a_store_to_another(world: World) -> None:
    """Export and import give a store that verifies the same, without a network."""
    bundle = world.filled().export_bundle()
    other = world.store("other")
    outcomes = other.import_bundle(bundle, world.now)
    assert [outcome.error for outcome in outcomes] == [None] * 7
    assert world.status(other) is TCBStatus.UP_TO_DATE


def test_collateral_file_is_imported_too(world: World) -> None:
    """The shape of QuoteCollateralV3 is understood as well as our own bundles."""
    store = world.store("other")
    outcomes = store.import_bundle(world.platform.collateral(world.now).to_json().encode(), world.now)
    assert [outcome.error for outcome in outcomes] == [None] * 4
    assert world.status(store) is TCBStatus.UP_TO_DATE


def test_bundle_of_one_root_leaves_the_others_out(world: World, tmp_path: Path) -> None:
    """An export can be limited to one root."""
    store = world.filled()
    assert parse_bundle(store.export_bundle(Digest(bytes(32)))) == ()
    assert len(parse_bundle(store.export_bundle(world.platform.root_fingerprint))) == 7


def test_import_says_what_became_of_each_document(world: World) -> None:
    """One altered document in a bundle is refused by itself; the rest is taken."""
    rows = json.loads(world.filled().export_bundle())
    rows["documents"][0]["chain"] = rows["documents"][3]["chain"]
    outcomes = world.store("other").import_bundle(json.dumps(rows).encode(), world.now)
    assert [outcome.error is None for outcome in outcomes] == [False, True, True, True, True, True, True]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"nonsense",
        b'{"format": "other-bundle-9", "documents": []}',
        b'{"format": "adyton-collateral-bundle-1"}',
        b'{"format": "adyton-collateral-bundle-1", "documents": [1]}',
        b'{"format": "adyton-collateral-bundle-1", "documents": [], "more": 1}',
        b'{"format": "adyton-collateral-bundle-1", "documents": [{"kind": "x"}]}',
        b"[" * 100_000,
    ],
)
def test_bundle_that_is_none_is_refused(raw: bytes) -> None:
    """Anything but a bundle or a collateral file is refused, whole."""
    with pytest.raises(MalformedQuote):
        parse_bundle(raw)


def test_documents_survive_their_json(world: World) -> None:
    """Every document of a bundle read back is the one that was written."""
    for document in parse_bundle(world.filled().export_bundle()):
        assert Document.from_dict(json.loads(json.dumps(document.to_dict()))) == document


def test_bundle_files_are_read_from_folders(world: World, tmp_path: Path) -> None:
    """A folder stands for every *.json in it; one without any is refused."""
    folder = tmp_path / "bundles"
    folder.mkdir()
    with pytest.raises(UsageError):
        read_bundle_files([folder])
    (folder / "b.json").write_bytes(b"2")
    (folder / "a.json").write_bytes(b"1")
    assert read_bundle_files([folder, folder / "a.json"]) == [b"1", b"2", b"1"]
    with pytest.raises(StorageFailed):
        read_bundle_files([folder / "none.json"])


# --- single documents -------------------------------------------------------------------------------------------------


def document_of(world: World, kind: str) -> Document:
    """The platform's document of this kind."""
    found = documents_of(world.platform.collateral(world.now), "", world.now)
    return next(document for document in found if document.kind == kind)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kind", "other"),
        ("channel", "late"),
        ("body", "%%%"),
        ("fetched_at", "yesterday"),
        ("url", 5),
        ("more", "x"),
    ],
)
def test_document_with_a_wrong_member_is_refused(world: World, name: str, value: object) -> None:
    """Every member of a stored document has its form, and there is no other."""
    data: dict[str, object] = dict(document_of(world, "pck-crl").to_dict())
    with pytest.raises(MalformedQuote):
        Document.from_dict(data | {name: value})


@pytest.mark.parametrize("kind", ["tcb-info", "qe-identity"])
@pytest.mark.parametrize("body", [b"\xff\xfe", b"x" * (2 << 20), b"y" * (5 << 20), b"{}", b'{"tcbInfo":{}}'])
def test_document_with_a_body_that_is_none_is_refused(world: World, kind: str, body: bytes) -> None:
    """Neither bytes that are no text, nor too many of them, nor other JSON."""
    with pytest.raises(MalformedQuote):
        verify_document(dataclasses.replace(document_of(world, kind), body=body))


@pytest.mark.parametrize("kind", ["tcb-info", "qe-identity", "pck-crl", "root-crl"])
@pytest.mark.parametrize("chain", ["", "nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_document_with_a_chain_that_is_none_is_refused(world: World, kind: str, chain: str) -> None:
    """Without its issuer chain a document is nothing."""
    with pytest.raises((MalformedQuote, BadChain)):
        verify_document(dataclasses.replace(document_of(world, kind), chain=chain))


@pytest.mark.parametrize("kind", ["tcb-info", "qe-identity"])
def test_document_signed_by_a_pck_ca_is_refused(world: World, kind: str) -> None:
    """A chain that is genuine, but of another purpose, does not make a signer of TCB info."""
    chain = document_of(world, "pck-crl").chain
    with pytest.raises(BadChain, match="signer"):
        verify_document(dataclasses.replace(document_of(world, kind), chain=chain))


def test_pck_certificate_without_its_request_is_refused(tmp_path: Path) -> None:
    """A PCK certificate is filed under the request that it answers, so it must name one."""
    world = World(tmp_path, carries_chain=False)
    store = world.store()
    world.downloads(store).fetch_for(world.quote(), world.now, sources=[SOURCE])
    document = next(item for item in parse_bundle(store.export_bundle()) if item.kind == "pck-certificate")
    verify_document(document)
    for request in ("", "../up", "A" * 100):
        with pytest.raises(MalformedQuote, match="no request"):
            verify_document(dataclasses.replace(document, request=request))


def test_bundle_larger_than_any_is_refused() -> None:
    """The size of a bundle is capped before it is parsed."""
    with pytest.raises(MalformedQuote, match="bytes"):
        parse_bundle(b" " * ((64 << 20) + 1))


def test_collateral_of_a_bundle_takes_the_newer_of_two(world: World) -> None:
    """Of two documents for one thing the newer counts, in whatever order they stand; foreign ones do not disturb."""
    old = documents_of(world.platform.collateral(world.now), "", world.now)
    world.platform.raise_tcb(now=world.now + timedelta(minutes=1))
    new = documents_of(world.platform.collateral(world.now + timedelta(minutes=2)), "", world.now)
    broken = dataclasses.replace(old[0], body=b"{}")
    origin = unverified_origin(world.quote())
    expected = json.loads(new[0].body)["tcbInfo"]["tcbEvaluationDataNumber"]
    for documents in ((*old, *new, broken), (broken, *new, *old)):
        collateral = assemble(index(documents, origin.root), origin)
        assert json.loads(collateral.tcb_info)["tcbEvaluationDataNumber"] == expected == 2


# --- the disk ---------------------------------------------------------------------------------------------------------


def test_store_where_a_file_stands_in_the_way_says_so(world: World) -> None:
    """A store that cannot be made is `could not check`, and nothing is half written."""
    (world.folder / "blocked").write_text("a file")
    store = world.store("blocked/store")
    with pytest.raises(StorageFailed):
        store.put(document_of(world, "tcb-info"), world.now)
    with pytest.raises((StorageFailed, FetchFailed)):
        Lookup(store).for_quote(world.quote(), world.now)


def test_write_that_fails_leaves_the_old_document(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk in the middle of a write: the old document stays whole, and nothing lies beside it."""
    store = world.filled()

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("adyton.collateral.folder.os.fsync", full)
    with pytest.raises(StorageFailed, match="No space left"):
        store.put(document_of(world, "tcb-info"), world.now)
    monkeypatch.undo()
    assert [path.name for path in store.directory.rglob(".*")] == []
    assert world.status(world.store()) is TCBStatus.UP_TO_DATE


def test_two_stores_on_one_folder_see_each_others_documents(world: World) -> None:
    """What one process fetches a running one uses at once."""
    running = world.filled()
    assert world.status(running) is TCBStatus.UP_TO_DATE
    world.now += timedelta(minutes=1)
    world.platform.raise_tcb(now=world.now)
    world.downloads().fetch(fmspcs=[world.platform.fmspc], sources=[SOURCE], now=world.now)
    assert world.status(running) is TCBStatus.OUT_OF_DATE
