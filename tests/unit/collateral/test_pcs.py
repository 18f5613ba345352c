"""The clients of PCS and PCCS, against a simulated platform over a real socket and against recorded answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import pytest

from adyton.attest import dcap, sgx, tdx
from adyton.attest.roots import INTEL_SGX_ROOT, TrustRoots
from adyton.attest.status import TCBStatus
from adyton.collateral.bundle import index
from adyton.collateral.documents import Document, last_certificate, verify_document
from adyton.collateral.http_client import Response
from adyton.collateral.needs import assemble, unverified_origin
from adyton.collateral.pcs import INTEL_PCS, INTEL_ROOT_CRL, PCSClient
from adyton.errors import FetchFailed, MalformedQuote, UsageError
from adyton.sim.chip import Shape
from adyton.sim.pcs_server import Answer, Form, answer, application
from adyton.sim.platform import SimPlatform
from adyton.sim.vendor import CAKind
from adyton.values import Measurement
from tests.support.servers import raw_server, saying, serving

MEASUREMENT = Measurement(bytes(32))
FORMS: tuple[Form, ...] = ("pcs", "pccs")
SHAPES: tuple[Shape, ...] = ("sgx", "tdx")


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> SimPlatform:
    """A platform that no test changes."""
    return SimPlatform.create(tmp_path_factory.mktemp("pcs") / "platform")


@pytest.fixture(scope="module", params=FORMS)
def service(request: pytest.FixtureRequest, platform: SimPlatform) -> Iterator[str]:
    """The platform served over a real socket, as a PCS and as a PCCS."""
    with serving(application(platform, form=request.param)) as url:
        yield url


@pytest.mark.parametrize("shape", SHAPES)
def test_fetched_documents_verify_a_quote(service: str, platform: SimPlatform, shape: Shape) -> None:
    """What the client fetches from either form of service is all that verifying a quote needs."""
    client = PCSClient(service)
    crl = client.pck_crl("platform")
    root_crl = client.root_crl(last_certificate(crl.chain))
    documents = [crl, root_crl, client.qe_identity(shape), client.tcb_info(shape, platform.fmspc)]
    raw = platform.enclave(measurement=MEASUREMENT, shape=shape).quote(bytes(64))
    parsed = sgx.parse_quote(raw) if shape == "sgx" else tdx.parse_quote(raw)
    roots = TrustRoots().with_sim([platform.root_fingerprint])
    origin = unverified_origin(parsed)
    collateral = assemble(index(documents, origin.root), origin)
    report = dcap.verify(parsed, collateral, roots, datetime.now(UTC))
    assert report.status is TCBStatus.UP_TO_DATE
    assert report.tee == ("sim" if shape == "sgx" else "sim-tdx")


def test_documents_say_what_they_are_about(service: str, platform: SimPlatform) -> None:
    """Each document, verified, has its subject, its number and the root it leads to."""
    client = PCSClient(service)
    found = [
        verify_document(document)
        for document in (
            client.pck_crl("platform"),
            client.pck_crl("processor"),
            client.qe_identity("sgx"),
            client.qe_identity("tdx"),
            client.tcb_info("sgx", platform.fmspc),
            client.tcb_info("tdx", platform.fmspc),
        )
    ]
    fmspc = platform.fmspc.hex()
    assert [verified.name for verified in found] == [
        "pck-crl-platform",
        "pck-crl-processor",
        "qe-identity-sgx",
        "qe-identity-tdx",
        f"tcb-info-sgx-{fmspc}",
        f"tcb-info-tdx-{fmspc}",
    ]
    assert {verified.root for verified in found} == {platform.root_fingerprint}
    assert {verified.number for verified in found} == {1}


def test_fmspcs_of_the_service_are_the_platforms(service: str, platform: SimPlatform) -> None:
    """The list of FMSPCs names the one platform there is."""
    assert PCSClient(service).fmspcs() == (platform.fmspc,)


def test_unknown_fmspc_is_refused_with_the_status(service: str) -> None:
    """A 404 says that the service does not know the platform, and with which request."""
    with pytest.raises(FetchFailed, match="does not know this platform") as caught:
        PCSClient(service).tcb_info("sgx", bytes(6))
    assert caught.value.status == 404
    assert "request " in caught.value.message


@pytest.mark.parametrize("ca", ["platform", "processor"])
@pytest.mark.parametrize("form", FORMS)
def test_pck_certificate_of_a_platform_that_quotes_only_name(tmp_path: Path, form: Form, ca: CAKind) -> None:
    """For certification data of type 3 the PCK certificate is asked for, and the quote then verifies."""
    platform = SimPlatform.create(tmp_path / "platform", ca=ca, carries_chain=False)
    quoted = sgx.parse_quote(platform.enclave(measurement=MEASUREMENT).quote(bytes(64)))
    assert quoted.signature.certification_type == 3
    with serving(application(platform, form=form)) as url:
        client = PCSClient(url)
        signature = quoted.signature
        certificate = client.pck_certificate(3, signature.certification_data, quoted.header.user_data[:16])
        crl = client.pck_crl(ca)
        documents = [
            certificate,
            crl,
            client.root_crl(last_certificate(crl.chain)),
            client.qe_identity("sgx"),
            client.tcb_info("sgx", platform.fmspc),
        ]
    origin = unverified_origin(quoted, root=platform.root_fingerprint)
    collateral = assemble(index(documents, origin.root), origin)
    roots = TrustRoots().with_sim([platform.root_fingerprint])
    assert dcap.verify(quoted, collateral, roots, datetime.now(UTC)).status is TCBStatus.UP_TO_DATE


@pytest.mark.parametrize("kind", [1, 2])
def test_pck_certificate_for_other_certification_data_is_refused(kind: int) -> None:
    """The API takes PPIDs encrypted with RSA-3072 only; the refusal says so and nothing is asked."""
    with pytest.raises(FetchFailed, match=f"of type {kind}"):
        PCSClient("http://127.0.0.1:1").pck_certificate(kind, bytes(36), bytes(16))


# --- what the service answers, status by status ---------------------------------------------------------------------

TCB = "/sgx/certification/v4/tcb"
CRL = "/sgx/certification/v4/pckcrl"
PCK = "/sgx/certification/v4/pckcert"
IDENTITY = "/sgx/certification/v4/qe/identity"


def ask(
    platform: SimPlatform, path: str, query: Mapping[str, str], *, form: Form = "pcs", method: str = "GET"
) -> Answer:
    """One answer of the service, without a socket."""
    query = {name: text.replace("FMSPC", platform.fmspc.hex()) for name, text in query.items()}
    return answer(platform, path, query, datetime.now(UTC), form=form, method=method)


@pytest.mark.parametrize(
    ("status", "path", "query"),
    [
        (200, TCB, {"fmspc": "FMSPC"}),
        (200, TCB, {"fmspc": "FMSPC", "update": "early"}),
        (200, TCB, {"fmspc": "FMSPC", "update": "standard"}),
        (200, TCB, {"fmspc": "FMSPC", "tcbEvaluationDataNumber": "1"}),
        (410, TCB, {"fmspc": "FMSPC", "tcbEvaluationDataNumber": "0"}),
        (404, TCB, {"fmspc": "FMSPC", "tcbEvaluationDataNumber": "2"}),
        (400, TCB, {"fmspc": "FMSPC", "tcbEvaluationDataNumber": "one"}),
        (400, TCB, {"fmspc": "FMSPC", "tcbEvaluationDataNumber": "1", "update": "early"}),
        (400, TCB, {"fmspc": "FMSPC", "update": "late"}),
        (400, TCB, {"fmspc": "FMSPC", "other": "1"}),
        (400, TCB, {"fmspc": "1234"}),
        (400, TCB, {}),
        (404, TCB, {"fmspc": "000000000000"}),
        (200, IDENTITY, {}),
        (410, IDENTITY, {"tcbEvaluationDataNumber": "0"}),
        (200, "/tdx/certification/v4/qe/identity", {}),
        (404, "/sgx/certification/v4/qae/identity", {}),
        (200, CRL, {"ca": "platform"}),
        (200, CRL, {"ca": "processor", "encoding": "der"}),
        (400, CRL, {"ca": "root"}),
        (400, CRL, {"ca": "platform", "encoding": "xml"}),
        (400, CRL, {}),
        (404, "/tdx/certification/v4/pckcrl", {"ca": "platform"}),
        (200, "/sgx/certification/v4/fmspcs", {}),
        (200, "/sgx/certification/v4/fmspcs", {"platform": "client"}),
        (400, "/sgx/certification/v4/fmspcs", {"platform": "E9"}),
        (200, "/tdx/certification/v4/tcbevaluationdatanumbers", {}),
        (200, "/IntelSGXRootCA.der", {}),
        (400, PCK, {}),
        (404, PCK, {"encrypted_ppid": "00" * 384, "cpusvn": "ff" * 16, "pcesvn": "ffff", "pceid": "0000"}),
        (404, "/sgx/certification/v3/tcb", {"fmspc": "FMSPC"}),
        (404, "/", {}),
    ],
)
def test_service_answers_with_the_status(platform: SimPlatform, status: int, path: str, query: dict[str, str]) -> None:
    """Every status of the API, for its reason; every answer has a request id."""
    found = ask(platform, path, query)
    assert found.status == status
    assert found.headers["Request-ID"]


PCKCERTS = "/sgx/certification/v4/pckcerts"


@pytest.mark.parametrize("config", [False, True])
def test_service_lists_the_pck_certificates_of_a_platform(tmp_path: Path, config: bool) -> None:
    """`pckcerts` and `pckcerts/config` give the list with TCB, TCBm and the URL-encoded certificate."""
    platform = SimPlatform.create(tmp_path / "platform", carries_chain=False)
    query = {"encrypted_ppid": (platform.machine.encrypted_ppid or b"").hex(), "pceid": "0000"}
    path = PCKCERTS + ("/config" if config else "")
    found = ask(platform, path, query | ({"cpusvn": "ff" * 16} if config else {}))
    assert found.status == 200
    (row,) = json.loads(found.body)
    assert unquote(row["cert"]) in platform.pck_chain
    assert row["tcb"]["sgxtcbcomp01svn"] == platform.machine.components[0]
    assert "SGX-PCK-Certificate-Issuer-Chain" in found.headers
    assert ask(platform, path, {}).status == 400
    assert ask(platform, path, query | {"encrypted_ppid": "00" * 384, "cpusvn": "ff" * 16}).status in (400, 404)


def test_service_without_its_platform_is_unavailable(tmp_path: Path) -> None:
    """A vendor's folder that is gone is 503 with Retry-After, and back again it is served again."""
    platform = SimPlatform.create(tmp_path / "platform")
    folder = platform.directory / "vendor"
    folder.rename(tmp_path / "gone")
    found = ask(platform, IDENTITY, {})
    assert (found.status, found.headers["Retry-After"]) == (503, "30")
    (tmp_path / "gone").rename(folder)
    assert ask(platform, IDENTITY, {}).status == 200


def test_service_with_a_pace_asks_to_wait(platform: SimPlatform) -> None:
    """Beyond so many requests in a minute there is 429 with the seconds until the next is answered."""
    now = [datetime.now(UTC)]
    with serving(application(platform, per_minute=2, clock=lambda: now[0])) as url:
        client = PCSClient(url)
        for _ in range(2):
            client.qe_identity("sgx")
        now[0] += timedelta(seconds=20)
        with pytest.raises(FetchFailed, match="asked too often") as caught:
            client.qe_identity("sgx")
        assert (caught.value.status, caught.value.retry_after_s) == (429, 40.0)
        now[0] += timedelta(seconds=40)
        client.qe_identity("sgx")


def test_service_refuses_other_methods(platform: SimPlatform) -> None:
    """The API is read only."""
    found = ask(platform, TCB, {"fmspc": "FMSPC"}, method="POST")
    assert (found.status, found.headers["Allow"]) == (405, "GET")


@pytest.mark.parametrize(("key", "status"), [(None, 401), ("wrong", 401), ("right", 400)])
def test_service_wants_its_key_for_pck_certificates(platform: SimPlatform, key: str | None, status: int) -> None:
    """With a subscription key set, PCK certificates need it (then the empty request is merely wrong)."""
    headers = {} if key is None else {"ocp-apim-subscription-key": key}
    assert answer(platform, PCK, {}, datetime.now(UTC), headers=headers, api_key="right").status == status
    assert answer(platform, IDENTITY, {}, datetime.now(UTC), headers=headers, api_key="right").status == 200


def test_pccs_answers_crls_as_hex_text(platform: SimPlatform) -> None:
    """Where a PCCS differs from the PCS: hex text without `encoding=der`, and the root CRL at a path of its own."""
    crl = ask(platform, CRL, {"ca": "platform"}, form="pccs")
    assert bytes.fromhex(crl.body.decode())[:1] == b"\x30"
    assert ask(platform, CRL, {"ca": "platform", "encoding": "der"}, form="pccs").body[:1] == b"\x30"
    assert bytes.fromhex(ask(platform, "/sgx/certification/v4/rootcacrl", {}, form="pccs").body.decode())[:1] == b"\x30"
    uri = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"
    assert ask(platform, "/sgx/certification/v4/crl", {"uri": uri}, form="pccs").body[:1] == b"\x30"
    assert ask(platform, "/sgx/certification/v4/crl", {"uri": "https://else.invalid/"}, form="pccs").status == 404
    assert ask(platform, "/sgx/certification/v4/rootcacrl", {}).status == 404
    assert ask(platform, PCK, {}, form="pccs").status == 400


# --- recorded and broken answers ------------------------------------------------------------------------------------


class Recorded:
    """A fetcher that has answers for some addresses and 404 for the rest, and remembers what was asked."""

    def __init__(self, answers: Mapping[str, Response]) -> None:
        self.answers = dict(answers)
        self.asked: list[str] = []
        self.headers: list[Mapping[str, str]] = []

    def get(self, url: str, *, max_bytes: int, headers: Mapping[str, str] | None = None) -> Response:
        """The recorded answer for the path of this address."""
        self.asked.append(url)
        self.headers.append(headers or {})
        parts = urlsplit(url)
        found = self.answers.get(f"{parts.netloc}{parts.path}", Response(url, 404, {}, b""))
        return Response(url, found.status, found.headers, found.body)


def intel(path: str, header: str, chain: str, body: str) -> dict[str, Response]:
    """One recorded answer of Intel's service."""
    url = f"api.trustedservices.intel.com{path}"
    return {url: Response("", 200, {header: quote(chain)}, body.encode())}


@pytest.mark.shared_vectors
def test_recorded_answers_of_intels_service_are_understood(shared_vectors: Path) -> None:
    """Real answers of Intel's PCS, as recorded, become documents that verify under Intel's root."""
    folder = shared_vectors / "evidence" / "pcs-responses"

    def load(name: str) -> dict[str, str]:
        found: dict[str, str] = json.loads((folder / f"{name}.json").read_text())
        return found

    answers: dict[str, Response] = {}
    for tee, name in (("sgx", "sgx_tcb_info_00906ED50000"), ("tdx", "tdx_tcb_info_00806F050000")):
        row = load(name)
        answers |= intel(f"/{tee}/certification/v4/tcb", "tcb-info-issuer-chain", row["issuer_chain"], _json(row))
        row = load(f"{tee}_qe_identity")
        header = "sgx-enclave-identity-issuer-chain"
        answers |= intel(f"/{tee}/certification/v4/qe/identity", header, row["issuer_chain"], _json(row))
    row = load("pck_crl_platform")
    chain = next(text for name, text in row.items() if "chain" in name)
    answers |= intel(CRL, "sgx-pck-crl-issuer-chain", chain, row["crl_data"])
    fetcher = Recorded(answers)
    client = PCSClient(INTEL_PCS, fetcher)
    documents = [
        client.tcb_info("sgx", bytes.fromhex("00906ed50000")),
        client.tcb_info("tdx", bytes.fromhex("00806f050000")),
        client.qe_identity("sgx"),
        client.qe_identity("tdx"),
        client.pck_crl("platform"),
    ]
    found = [verify_document(document) for document in documents]
    assert {verified.root for verified in found} == {INTEL_SGX_ROOT}
    assert [verified.subject for verified in found] == [
        "sgx-00906ed50000",
        "tdx-00806f050000",
        "sgx",
        "tdx",
        "platform",
    ]
    with pytest.raises(FetchFailed):
        client.root_crl(last_certificate(documents[4].chain))
    assert fetcher.asked[-1] == INTEL_ROOT_CRL


def _json(row: dict[str, str]) -> str:
    return next(text for name, text in row.items() if name.endswith("_json"))


def test_update_channel_and_key_are_sent_where_they_belong(platform: SimPlatform) -> None:
    """`update=early` goes with TCB info and QE identity; the subscription key with PCK certificates only."""
    fetcher = Recorded({})
    client = PCSClient("https://pccs.invalid:8081/", fetcher, "early", "key")
    calls: tuple[Callable[[], Document], ...] = (
        lambda: client.tcb_info("sgx", bytes(6)),
        lambda: client.qe_identity("tdx"),
        lambda: client.pck_crl("platform"),
        lambda: client.pck_certificate(3, bytes(404), bytes(16)),
    )
    for call in calls:
        with pytest.raises(FetchFailed):
            call()
    queries = [dict(parse_qsl(urlsplit(url).query)) for url in fetcher.asked]
    assert [query.get("update") for query in queries] == ["early", "early", None, None]
    assert [bool(headers) for headers in fetcher.headers] == [False, False, False, True]
    assert queries[3]["qeid"] == "00" * 16
    assert "key" not in repr(client)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (400, "calls the request wrong"),
        (401, "subscription key"),
        (404, "does not know"),
        (410, "no longer keeps"),
        (429, "asked too often"),
        (500, "failed"),
        (503, "not available"),
        (418, "refuses"),
    ],
)
def test_every_status_has_words_and_a_remedy(status: int, words: str) -> None:
    """Statuses of the service become refusals that say what to do, with its own request id."""
    head = f"HTTP/1.1 {status} X\r\nRequest-ID: abc123\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n"
    with raw_server(saying(head.encode())) as url, pytest.raises(FetchFailed, match=words) as caught:
        PCSClient(url).qe_identity("sgx")
    assert (caught.value.status, caught.value.retry_after_s) == (status, 7.0)
    assert "abc123" in caught.value.message
    assert caught.value.remedy


def test_answer_without_issuer_chain_is_refused() -> None:
    """A document without its chain cannot be verified, so it is not taken."""
    with (
        raw_server(saying(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")) as url,
        pytest.raises(MalformedQuote, match="no issuer chain"),
    ):
        PCSClient(url).qe_identity("sgx")


@pytest.mark.parametrize("body", [b"{}", b"[1]", b'[{"fmspc":"xyz"}]', b'[{"fmspc":5}]', b"[" * 100_000, b"\xff"])
def test_list_of_fmspcs_that_is_none_is_refused(body: bytes) -> None:
    """Only a list of objects with 12 hex digits each is a list of FMSPCs."""
    fetcher = Recorded({"x.invalid/sgx/certification/v4/fmspcs": Response("", 200, {}, body)})
    with pytest.raises(MalformedQuote):
        PCSClient("http://x.invalid", fetcher).fmspcs()


@pytest.mark.parametrize("url", ["", "pcs.example", "ftp://x", "https://x?y", "https://"])
def test_client_of_something_that_is_no_address_is_refused(url: str) -> None:
    """The service's address is checked before anything is asked."""
    with pytest.raises(UsageError):
        PCSClient(url)
