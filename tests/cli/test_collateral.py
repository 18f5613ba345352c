"""`adyton platform` and `adyton collateral`, as a person or a script calls them."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from typer.testing import CliRunner, Result

from adyton.attest import dcap
from adyton.attest.certificates import parse_certificate
from adyton.attest.evidence import parse_evidence
from adyton.attest.roots import TrustRoots
from adyton.attest.sgx import SGXQuote
from adyton.attest.tdx import TDXQuote
from adyton.cli import collateral, platform, verify
from adyton.collateral.bundle import build_bundle, documents_of
from adyton.collateral.sources import Source, SourceList
from adyton.errors import BadChain, Error, FetchFailed, MalformedQuote, Stale, StorageFailed, TargetExists, UsageError
from adyton.sim.chip import Shape
from adyton.sim.pcs_server import application
from adyton.sim.platform import SimPlatform
from adyton.values import Measurement
from tests.support.amd_factory import SNPScenario
from tests.support.servers import self_signed, serving


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of the test's own."""
    monkeypatch.setenv("ADYTON_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def made(tmp_path: Path) -> SimPlatform:
    """A simulated platform."""
    return SimPlatform.create(tmp_path / "platform")


@pytest.fixture
def service(made: SimPlatform, tmp_path: Path) -> Iterator[str]:
    """The platform served by the verb itself, in a process of its own."""
    ready = tmp_path / "ready.json"
    words = ["platform", "serve", str(made.directory), "--ready-file", str(ready)]
    process = subprocess.Popen(
        [sys.executable, "-m", "adyton", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        end = time.monotonic() + 30
        while not ready.exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        document = json.loads(ready.read_text())
        assert document["root_fingerprint"] == made.root_fingerprint.hex()
        assert document["simulated"] is True
        yield document["url"]
    finally:
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=10)
    assert said.splitlines()[0] == f"listening pcs {document['url']}"


def run(*args: str | os.PathLike[str], verb: object = collateral) -> Result:
    """Call one of the verbs; what it raises is raised."""
    result = CliRunner().invoke(verb.app, [os.fspath(arg) for arg in args])  # type: ignore[attr-defined]
    if isinstance(result.exception, Error):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def test_fetch_from_a_simulated_platform_fetches_all_it_knows(service: str, made: SimPlatform) -> None:
    """Without --for and --fmspc everything that the named service knows is fetched, and its root is named."""
    result = run("fetch", "--pcs", service)
    assert result.output.count("valid until") == 7
    assert f"sim:{made.root_fingerprint}" in result.output
    document = json.loads(run("show", "--json").stdout)
    assert {row["state"] for row in document["documents"]} == {"valid"}
    assert {row["root"] for row in document["documents"]} == {made.root_fingerprint.hex()}


def test_fetch_for_evidence_fetches_what_it_needs(service: str, made: SimPlatform, tmp_path: Path) -> None:
    """With --for the documents for that quote's platform and TEE come."""
    quote = tmp_path / "quote.bin"
    quote.write_bytes(made.enclave(measurement=Measurement(bytes(32)), shape="tdx").quote(bytes(64)))
    result = run("fetch", "--pcs", service, "--for", quote, "--json")
    names = {row["name"] for row in json.loads(result.stdout)["documents"]}
    assert f"tcb-info-tdx-{made.fmspc.hex()}" in names
    assert not any("sgx" in name for name in names)


def vlek_service() -> Starlette:
    """The chain of VLEKs, as AMD's service has it."""
    built = SNPScenario(vlek=True).built().collateral
    chain = "".join(parse_certificate(raw, "AMD").pem for raw in (built.ask, built.ark))
    return Starlette(routes=[Route("/vlek/v1/Milan/cert_chain", lambda _: PlainTextResponse(chain))])


@pytest.mark.parametrize("form", ["DER", "PEM"])
def test_fetch_keeps_a_vlek_with_its_chain(tmp_path: Path, form: str) -> None:
    """The certificate is the guest's, the chain is AMD's; both are in the store then."""
    leaf = SNPScenario(vlek=True).built().collateral.leaf
    path = tmp_path / "vlek"
    path.write_bytes(leaf if form == "DER" else parse_certificate(leaf, "VLEK").pem.encode())
    with serving(vlek_service()) as url:
        rows = json.loads(run("fetch", "--vlek", path, "--kds", url, "--json").stdout)["documents"]
    assert [row["name"].startswith("amd-vlek-milan-") for row in rows] == [True]
    assert json.loads(run("show", "--json").stdout)["documents"][0]["state"] == "valid"


def test_fetch_takes_no_vcek_and_no_garbage_for_a_vlek(tmp_path: Path) -> None:
    """A chip's certificate is not a provider's; a file that is no certificate is refused before anything is asked."""
    (tmp_path / "vcek").write_bytes(SNPScenario().built().collateral.leaf)
    (tmp_path / "garbage").write_bytes(b"0" * 100_000)
    with serving(vlek_service()) as url:
        with pytest.raises((BadChain, MalformedQuote)):
            run("fetch", "--vlek", tmp_path / "vcek", "--kds", url)
        with pytest.raises(MalformedQuote):
            run("fetch", "--vlek", tmp_path / "garbage", "--kds", url)
    with pytest.raises(StorageFailed):
        run("fetch", "--vlek", tmp_path / "nowhere")
    assert json.loads(run("show", "--json").stdout)["documents"] == []


def test_fetch_again_uses_the_remembered_source(service: str, made: SimPlatform) -> None:
    """A named service is remembered; `fetch` alone refreshes what is due."""
    run("fetch", "--pcs", service)
    assert "nothing is due" in run("fetch").output
    assert run("fetch", "--fmspc", made.fmspc.hex(), "--tee", "sgx").output.count("valid until") == 5


def test_fetch_after_newer_tcb_info_and_back_is_refused(service: str, made: SimPlatform, tmp_path: Path) -> None:
    """Newer TCB info is taken; a bundle with the older one is then refused."""
    run("fetch", "--pcs", service)
    run("export", "-o", tmp_path / "old.json")
    run("raise-tcb", made.directory, verb=platform)
    assert "number 2" in run("fetch", "--pcs", service).output
    with pytest.raises(Stale, match="older than one that was seen"):
        run("import", tmp_path / "old.json")


def test_export_and_import_carry_everything(service: str, tmp_path: Path) -> None:
    """A bundle brings another home all that this one has."""
    run("fetch", "--pcs", service)
    assert "7 documents" in run("export", "-o", tmp_path / "bundle.json").output
    other = tmp_path / "other"
    assert run("import", tmp_path / "bundle.json", "--home", other).output.count("valid until") == 7
    assert run("show", tmp_path / "bundle.json").output.count("until") == 7


def test_first_fetch_with_nothing_named_gets_what_is_common(service: str, home: Path) -> None:
    """With an empty store and nothing named, CRLs and QE identities come, and it is said what is lacking."""
    SourceList(home / "collateral").remember([Source(service)])
    result = run("fetch")
    assert result.output.count("valid until") == 5
    assert "--fmspc" in result.output


@pytest.mark.parametrize("words", [("--fmspc", "12"), ("--fmspc", "zz" * 6), ("--tee", "snp")])
def test_fetch_with_wrong_words_is_refused(words: tuple[str, str]) -> None:
    """Options are checked before anything is asked."""
    with pytest.raises(UsageError):
        run("fetch", "--pcs", "http://127.0.0.1:1", *words)


@pytest.mark.parametrize("content", [b"", b"two words", b"x" * 300, b"\xff"])
def test_fetch_with_something_that_is_no_key_is_refused(tmp_path: Path, content: bytes) -> None:
    """A subscription key is letters and digits, and is never shown."""
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(UsageError, match="subscription key"):
        run("fetch", "--fmspc", "00" * 6, "--pcs", "http://127.0.0.1:1", "--api-key-file", tmp_path / "key")


def test_fetch_sends_the_subscription_key_for_pck_certificates_only(tmp_path: Path) -> None:
    """The key of the file goes to the service that wants it, with the request that needs it."""
    platform = SimPlatform.create(tmp_path / "named", carries_chain=False)
    quote, key = tmp_path / "quote.bin", tmp_path / "key"
    quote.write_bytes(platform.enclave(measurement=Measurement(bytes(32))).quote(bytes(64)))
    key.write_text("abc123\n")
    with serving(application(platform, api_key="abc123")) as url:
        with pytest.raises(FetchFailed, match="subscription key"):
            run("fetch", "--pcs", url, "--for", quote)
        assert "pck-certificate" in run("fetch", "--pcs", url, "--for", quote, "--api-key-file", key).output


def test_fetch_from_a_pccs_with_a_certificate_of_its_own(made: SimPlatform, tmp_path: Path, home: Path) -> None:
    """A PCCS over TLS is refused until its CA is named; then it is remembered with it and asked again."""
    tls = self_signed(tmp_path)
    with serving(application(made, form="pccs"), tls) as url:
        with pytest.raises(FetchFailed, match="not trusted"):
            run("fetch", "--pcs", url)
        assert run("fetch", "--pcs", url, "--pcs-ca", tls[0]).output.count("valid until") == 7
        assert SourceList(home / "collateral").known()[0] == Source(url, str(tls[0].resolve()))
        assert run("fetch", "--fmspc", made.fmspc.hex()).output.count("valid until") == 7


def test_fetch_from_pccs_each_with_its_own_certificate(made: SimPlatform, tmp_path: Path, home: Path) -> None:
    """Two services with certificates of their own, one pinned and one by its CA; each is remembered with its own."""
    (tmp_path / "other").mkdir()
    tls, other = self_signed(tmp_path), self_signed(tmp_path / "other")
    pin = hashlib.sha256(ssl.PEM_cert_to_DER_cert(tls[0].read_text())).hexdigest()
    der = tmp_path / "server.der"
    der.write_bytes(ssl.PEM_cert_to_DER_cert(tls[0].read_text()))
    with serving(application(made, form="pccs"), tls) as url, serving(application(made, form="pccs"), other) as second:
        named = url.replace("localhost", "127.0.0.1")
        with pytest.raises(FetchFailed, match="name mismatch"):
            run("fetch", "--pcs", named, "--pcs-ca", tls[0])
        with pytest.raises(FetchFailed, match="another TLS certificate"):
            run("fetch", "--pcs", named, "--pcs-cert", other[0])
        words = ("--pcs", named, "--pcs", second, "--pcs-cert", f"{named}={der}", "--pcs-ca", f"{second}={other[0]}")
        assert run("fetch", *words).output.count("valid until") == 7
        known = (Source(named, None, pin), Source(second, str(other[0].resolve())))
        assert SourceList(home / "collateral").known() == known
        assert run("fetch", "--pcs", named).output.count("valid until") == 7
        assert SourceList(home / "collateral").known() == known


@pytest.mark.parametrize(
    "words",
    [
        ("--pcs", "https://a.invalid", "--pcs", "https://b.invalid", "--pcs-cert", "x"),
        ("--pcs", "https://a.invalid", "--pcs", "https://b.invalid", "--pcs-ca", "x", "--pcs-ca", "y"),
        ("--pcs", "http://a.invalid", "--pcs-cert", "platform/none"),
        ("--pcs-cert", "x"),
    ],
    ids=["of-which", "two-for-all", "without-tls", "of-none"],
)
def test_fetch_with_certificates_for_no_certain_service_is_refused(words: tuple[str, ...]) -> None:
    """It has to be clear which certificate is whose, and that there is one."""
    with pytest.raises(UsageError):
        run("fetch", *words)


def test_fetch_with_something_pinned_that_is_no_certificate_is_refused(tmp_path: Path) -> None:
    """A pin is read before anything is fetched."""
    (tmp_path / "noise").write_bytes(b"noise")
    with pytest.raises(UsageError, match="holds no certificate"):
        run("fetch", "--pcs", "https://a.invalid", "--pcs-cert", tmp_path / "noise")


def test_busy_service_is_not_asked_what_it_knows_either(home: Path) -> None:
    """The list of platforms is asked for first: its `Retry-After` is told, and obeyed by the next call."""
    asked = []

    async def busy(request: Request) -> PlainTextResponse:
        asked.append(request.url.path)
        return PlainTextResponse("", 429, {"Retry-After": "90"})

    with serving(Starlette(routes=[Route("/{path:path}", busy)])) as url:
        with pytest.raises(FetchFailed, match="retry after 90 s") as caught:
            run("fetch", "--pcs", url)
        assert "wait 90 s" in str(caught.value.remedy)
        with pytest.raises(FetchFailed, match="left alone until"):
            run("fetch", "--pcs", url)
    assert len(asked) == 1


def test_fetch_where_nobody_listens_fails_closed(made: SimPlatform) -> None:
    """No service: `could not check`, and nothing is kept."""
    made_fmspc = made.fmspc.hex()
    with pytest.raises(FetchFailed):
        run("fetch", "--pcs", "http://127.0.0.1:1", "--fmspc", made_fmspc)
    assert "no collateral" in run("show").output


def test_export_of_nothing_is_refused(tmp_path: Path) -> None:
    """An empty bundle is never written."""
    with pytest.raises(UsageError):
        run("export", "-o", tmp_path / "bundle.json")
    assert not (tmp_path / "bundle.json").exists()


def test_show_names_what_was_altered(service: str, made: SimPlatform, home: Path) -> None:
    """A document that was altered on disk is shown as refused."""
    run("fetch", "--pcs", service)
    path = home / "collateral" / made.root_fingerprint.hex() / "qe-identity-sgx.json"
    path.write_text(path.read_text().replace("isvsvn", "isvsvm", 1))
    assert "REFUSED" in run("show").output


def test_bundle_pins_what_an_old_run_was_verified_with(tmp_path: Path) -> None:
    """Judged at its own time an old quote verifies with the bundle of that time; judged now that has expired."""
    then = datetime.now(UTC).replace(microsecond=0) - timedelta(days=90)
    old = SimPlatform.create(tmp_path / "old", now=then)
    (tmp_path / "quote.bin").write_bytes(old.enclave(measurement=Measurement(bytes(32))).quote(bytes(64)))
    bundle = build_bundle(documents_of(old.collateral(then), "", then))
    (tmp_path / "bundle.json").write_bytes(bundle)
    (tmp_path / "policy.json").write_text(
        json.dumps({"tees": [f"sim:{old.root_fingerprint}"], "measurements": ["00" * 32]})
    )
    names = ("quote.bin", "bundle.json", "policy.json")
    quote, collateral_file, policy = (str(tmp_path / name) for name in names)
    words = [quote, "--collateral", collateral_file, "--policy", policy, "--report-data", "00" * 64]
    assert "simulated" in run(*words, "--at", f"{then:%Y-%m-%dT%H:%M:%SZ}", verb=verify).output
    now = CliRunner().invoke(verify.app, words)
    assert now.exit_code == Stale.exit_code
    assert "expired" in now.output
    with pytest.raises(Stale, match="expired"):
        run("import", tmp_path / "bundle.json")


# --- platform ---------------------------------------------------------------------------------------------------------


def test_platform_new_names_its_root(tmp_path: Path) -> None:
    """A new platform is shown with the names that a policy uses, and that it is simulated."""
    document = json.loads(run("new", tmp_path / "p", "--json", verb=platform).stdout)
    assert document["simulated"] is True
    assert document["tees"] == [f"sim:{document['root_fingerprint']}", f"sim-tdx:{document['root_fingerprint']}"]
    text = run("show", tmp_path / "p", verb=platform).output
    assert document["root_fingerprint"] in text
    assert "protects nothing" in text
    assert "this machine" in text


def test_platform_new_over_an_old_one_is_refused(made: SimPlatform) -> None:
    """A platform is never overwritten."""
    with pytest.raises(TargetExists):
        run("new", made.directory, verb=platform)


def test_platform_can_be_raised_upgraded_and_revoked(made: SimPlatform) -> None:
    """The verbs that change a platform show what has changed."""
    assert (
        "OutOfDate SIM-SA-7 this machine"
        in run("raise-tcb", made.directory, "--advisory", "SIM-SA-7", verb=platform).output
    )
    assert "UpToDate  this machine" in run("upgrade", made.directory, verb=platform).output
    assert "1 certificate" in run("revoke", made.directory, "pck", verb=platform).output


@pytest.mark.parametrize(
    "words", [("raise-tcb", "--part", "cpu"), ("raise-tcb", "--status", "Fine"), ("revoke", "root")]
)
def test_platform_change_with_wrong_words_is_refused(made: SimPlatform, words: tuple[str, ...]) -> None:
    """Unknown parts, statuses and certificates are refused, and nothing is published."""
    with pytest.raises(UsageError):
        run(words[0], made.directory, *words[1:], verb=platform)
    assert made.publication().evaluation_number == 1


@pytest.mark.parametrize("shape", ["sgx", "tdx"])
def test_platform_quote_is_evidence_that_verifies(made: SimPlatform, tmp_path: Path, shape: Shape) -> None:
    """The quote that the verb writes holds what it was told, and verifies under the platform's root."""
    measurement, data = "ab" * 32, "cd" * 64
    words = ["--measurement", measurement, "--report-data", data, "--debug", *(["--tdx"] if shape == "tdx" else [])]
    result = run("quote", made.directory, "-o", tmp_path / "quote.bin", *words, verb=platform)
    assert "protects nothing" in result.output
    evidence = parse_evidence((tmp_path / "quote.bin").read_bytes())
    assert isinstance(evidence, SGXQuote | TDXQuote)
    roots = TrustRoots().with_sim([made.root_fingerprint])
    report = dcap.verify(evidence, made.collateral(tee=shape), roots, datetime.now(UTC))
    assert report.carries_workload(Measurement.from_hex(measurement))
    assert (report.report_data.hex(), report.debug) == (data, True)


@pytest.mark.parametrize("words", [("--measurement", "ab"), ("--report-data", "cd"), ("--report-data", "xy" * 64)])
def test_platform_quote_over_values_of_wrong_size_is_refused(
    made: SimPlatform, tmp_path: Path, words: tuple[str, str]
) -> None:
    """Nothing is padded or cut, and nothing is written."""
    with pytest.raises(UsageError):
        run("quote", made.directory, "-o", tmp_path / "quote.bin", *words, verb=platform)
    assert not (tmp_path / "quote.bin").exists()


def test_platform_export_is_a_collateral_file(made: SimPlatform, tmp_path: Path) -> None:
    """The exported file is what `adyton collateral import` takes."""
    run("export", made.directory, "-o", tmp_path / "c.json", "--tdx", verb=platform)
    assert run("import", tmp_path / "c.json").output.count("valid until") == 4


@pytest.mark.parametrize("listen", ["nowhere", "127.0.0.1", "127.0.0.1:99999", ":80", "127.0.0.1:x"])
def test_platform_serve_at_no_address_is_refused(made: SimPlatform, listen: str) -> None:
    """An address to listen at is HOST:PORT."""
    with pytest.raises(UsageError):
        run("serve", made.directory, "--listen", listen, verb=platform)


def test_platform_serve_at_a_taken_port_says_so(service: str, made: SimPlatform) -> None:
    """A taken port is named, with what to do."""
    with pytest.raises(Error, match="cannot listen") as caught:
        run("serve", made.directory, "--listen", service.removeprefix("http://"), verb=platform)
    assert "another port" in str(caught.value.remedy)
