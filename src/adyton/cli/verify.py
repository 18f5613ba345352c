"""`adyton verify`: judge attestation evidence, and say so that a person understands it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from adyton.capped_read import read_capped
from adyton.cli.output import say, say_json

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from adyton.attest.assess import Assessment
    from adyton.attest.certificates import Certificate
    from adyton.attest.collateral import AMDCollateral, Collateral
    from adyton.attest.evidence import Evidence
    from adyton.attest.policy import Policy
    from adyton.attest.snp import SNPReport
    from adyton.collateral.documents import Document
    from adyton.errors import Error

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

_MAX_FILES: Final = 4096
_MAX_FILE_BYTES: Final = 64 << 20
_MAX_POLICY_BYTES: Final = 1 << 20


@app.command()
def verify(
    evidence: Annotated[
        Path, typer.Argument(help="SGX or TDX quote, SEV-SNP report, or RA-TLS certificate.", metavar="EVIDENCE")
    ],
    collateral: Annotated[
        list[Path] | None,
        typer.Option(help="Collateral file, bundle or folder; several allowed. Default: the owner's store."),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(
            help="Judge as at this time instead of now: a time with its zone, Unix seconds, or a date (the last second"
            " of that day, UTC)."
        ),
    ] = None,
    policy: Annotated[Path | None, typer.Option(help="What to accept, TOML or JSON; without it nothing is.")] = None,
    report_data: Annotated[
        str | None, typer.Option(help="What the evidence must be bound to: 128 hex digits.", metavar="HEX")
    ] = None,
    program_data: Annotated[
        str | None,
        typer.Option(help="Or what a program wrote to user_report_data: up to 128 hex digits.", metavar="HEX"),
    ] = None,
    workload: Annotated[
        str | None,
        typer.Option(
            help="Whose --program-data: the workload measurement.  [the policy's only one]",
            metavar="HEX",
            show_default=False,
        ),
    ] = None,
    token: Annotated[Path | None, typer.Option(help="Write a signed EAR-style token here.")] = None,
    token_key: Annotated[Path | None, typer.Option(help="PEM private key that signs the token.")] = None,
    home: Annotated[Path | None, typer.Option(help="The owner's folder.", envvar="ADYTON_HOME")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document for programs.")] = False,
) -> None:
    """Verify attestation evidence and judge it by a policy.

    Exit code 0: the policy is met. 90 to 96: refused. 110 to 114: it could not be checked.
    """
    from adyton.attest import explain
    from adyton.attest.assess import assess
    from adyton.attest.roots import TrustRoots
    from adyton.errors import Error

    if (token is None) != (token_key is None):
        raise _usage("--token and --token-key belong together", "--token", "both", "one")
    try:
        now = _time(at)
        rules = _policy(policy)
        wanted = _report_data(report_data, program_data, workload, rules)
        raw = read_capped(evidence, 1 << 20, "evidence")
        parsed, bound = _evidence(raw)
        if bound is not None:
            if wanted is not None and wanted != bound:
                raise _usage(
                    "an RA-TLS certificate says itself what its quote is bound to",
                    "--report-data" if program_data is None else "--program-data",
                    "none",
                    "",
                )
            wanted = bound
        found = _choose(parsed, collateral or [], home, now)
        roots = TrustRoots().with_sim(rules.sim_roots)
        assessment = assess(parsed, found, roots, rules, now, report_data=wanted)
    except Error as error:
        if not as_json:
            raise
        say_json(_unjudged(error))
        raise typer.Exit(error.exit_code) from None
    if token is not None and token_key is not None:
        _write_token(assessment, token, token_key)
    if as_json:
        say_json(explain.to_dict(assessment))
    else:
        say(explain.to_text(assessment))
    raise typer.Exit(assessment.error.exit_code if assessment.error else 0)


def _usage(message: str, check: str, expected: str, seen: str) -> Error:
    from adyton.errors import UsageError

    return UsageError(message, check=check, expected=expected, seen=seen)


def _unjudged(error: Error) -> dict[str, Any]:
    """The JSON document where evidence did not even parse, or could not be checked."""
    from adyton.errors import EvidenceError

    refused = isinstance(error, EvidenceError)
    checks = []
    if refused and error.check is not None:
        check = {"name": error.check, "expected": error.expected or "", "seen": error.seen or "", "ok": False}
        checks.append(check | ({"remedy": error.remedy} if error.remedy else {}))
    return {
        "tee": None,
        "verdict": "refused" if refused else "unchecked",
        "genuine": False if refused else None,
        "status": None,
        "advisories": [],
        "measurement": None,
        "error": error.details(),
        "checks": checks,
    }


def _time(at: str | None) -> datetime:
    from datetime import UTC, datetime

    from adyton.rfc3339 import parse_end

    if at is None:
        return datetime.now(UTC)
    if not at.isdecimal():
        return parse_end(at, "--at")
    try:
        return datetime.fromtimestamp(int(at), UTC)
    except (ValueError, OverflowError, OSError):
        raise _usage(f"no time: {at[:80]!r}", "--at", "2026-01-31T12:00:00Z, or Unix seconds", at[:80]) from None


def _report_data(text: str | None, program_data: str | None, workload: str | None, rules: Policy) -> bytes | None:
    """The 64 bytes to compare with: as given, or those of what a program asked for; None where nothing was given."""
    from adyton.attest.report_data import program_report_data
    from adyton.values import Measurement

    if program_data is None:
        if workload is not None:
            raise _usage("--workload says whose --program-data it is", "--workload", "--program-data, too", "alone")
        return None if text is None else _bytes(text, "--report-data", 64, "128 hex digits (append zeros to a hash)")
    if text is not None:
        raise _usage("--report-data and --program-data exclude each other", "--program-data", "one of them", "both")
    named = [Measurement.from_hex(workload)] if workload is not None else sorted(rules.workloads, key=str)
    if len(named) != 1:
        raise _usage(
            "a program's report data names its workload",
            "--workload",
            "the workload measurement (adyton build prints it), or a policy that names exactly one in `workloads`",
            f"{len(named)} workloads",
        )
    return program_report_data(named[0], _bytes(program_data, "--program-data", None, "up to 128 hex digits"))


def _bytes(text: str, option: str, size: int | None, expected: str) -> bytes:
    """The bytes that an option gives in hex: `size` of them, or up to 64."""
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = bytes(65)
    if len(text) != 2 * len(raw) or len(raw) > 64 or size not in (None, len(raw)):
        raise _usage(f"{option} takes {expected}", option, expected, f"{len(text)} characters")
    return raw


def _policy(path: Path | None) -> Policy:
    """The policy of a TOML or JSON file; an empty one, which accepts nothing, without a file."""
    from adyton.attest.policy import Policy
    from adyton.errors import UsageError
    from adyton.untrusted import parse_json_object, parse_toml

    if path is None:
        return Policy()
    raw = read_capped(path, _MAX_POLICY_BYTES, "policy")
    parse = parse_json_object if raw.lstrip().startswith(b"{") else parse_toml
    return Policy.from_dict(parse(raw, what=f"policy {path}", refuse=UsageError))


def _evidence(raw: bytes) -> tuple[Evidence, bytes | None]:
    """The evidence, and for an RA-TLS certificate the report data that binds its key."""
    from adyton.attest import ratls
    from adyton.attest.certificates import split_pem
    from adyton.attest.evidence import parse_evidence
    from adyton.errors import MalformedQuote

    if raw.lstrip().startswith((b"-----BEGIN CERTIFICATE-----", b"-----BEGIN TRUSTED CERTIFICATE-----")):
        blocks = split_pem(raw.replace(b" TRUSTED CERTIFICATE-", b" CERTIFICATE-"), "RA-TLS certificate")
        if len(blocks) != 1:
            raise MalformedQuote("an RA-TLS peer has one certificate", check="RA-TLS certificate", seen=len(blocks))
        raw = blocks[0]
    if raw[:2] in (b"\x30\x82", b"\x30\x81"):
        certificate = ratls.parse_certificate(raw)
        return certificate.evidence, certificate.expected_report_data
    return parse_evidence(raw), None


@dataclass
class _Found:
    """What the collateral files hold."""

    intel: list[Collateral] = field(default_factory=list)
    amd: list[AMDCollateral] = field(default_factory=list)
    documents: list[Document] = field(default_factory=list)
    certificates: list[bytes] = field(default_factory=list)
    crls: list[bytes] = field(default_factory=list)


def _files(paths: list[Path]) -> Iterator[tuple[Path, bool]]:
    """Each file, and whether it was named itself: what stands in a folder beside collateral is passed over."""
    from itertools import islice

    for path in paths:
        if path.is_dir():
            found = islice(sorted(item for item in path.rglob("*") if item.is_file()), _MAX_FILES)
            yield from ((item, False) for item in found)
        else:
            yield path, True


def _collect(paths: list[Path]) -> _Found:
    """Read every file and sort it by its content."""
    from adyton.errors import EvidenceError

    found = _Found()
    for path, named in _files(paths):
        raw = read_capped(path, _MAX_FILE_BYTES, "collateral")
        try:
            _take(raw, path, found)
        except EvidenceError:
            if named:
                raise
    return found


def _take(raw: bytes, path: Path, found: _Found) -> None:
    from adyton.attest.certificates import decode_crl, split_pem
    from adyton.errors import MalformedQuote

    head = raw[:64].lstrip()
    if head.startswith(b"{"):
        _take_json(raw, path, found)
    elif head.startswith(b"-----BEGIN X509 CRL"):
        found.crls.append(decode_crl(raw))
    elif head.startswith(b"-----BEGIN"):
        found.certificates += split_pem(raw, f"certificates in {path.name}")
    elif _is_crl(raw):
        found.crls.append(raw)
    elif raw[:1] == b"\x30":
        found.certificates.append(raw)
    else:
        raise MalformedQuote(
            f"{path} is no collateral",
            check="parse of the collateral",
            expected="JSON, PEM or DER",
            seen=raw[:8].hex(),
        )


def _take_json(raw: bytes, path: Path, found: _Found) -> None:
    """Collateral, Intel's or AMD's; a bundle; or a single document of the store."""
    from adyton.attest.certificates import split_pem
    from adyton.attest.collateral import AMDCollateral, Collateral
    from adyton.collateral.documents import Document, parse_bundle
    from adyton.errors import MalformedQuote
    from adyton.untrusted import parse_json_object

    document = parse_json_object(raw, what=f"collateral {path}", refuse=MalformedQuote, limit_bytes=_MAX_FILE_BYTES)
    if "amd_leaf" in document:
        found.amd.append(AMDCollateral.from_dict(document))
        return
    if "tcb_info" in document:
        found.intel.append(Collateral.from_dict(document))
        return
    documents = (Document.from_dict(document),) if "kind" in document else parse_bundle(raw)
    for item in documents:
        if item.kind in ("amd-vcek", "amd-vlek"):
            found.certificates += [item.body, *split_pem(item.chain, "AMD chain")]
        elif item.kind == "amd-crl":
            found.crls.append(item.body)
        else:
            found.documents.append(item)


def _is_crl(raw: bytes) -> bool:
    from adyton.attest.certificates import parse_crl
    from adyton.errors import MalformedQuote

    try:
        parse_crl(raw, "CRL")
    except MalformedQuote:
        return False
    return True


def _missing(what: str) -> Error:
    from adyton.errors import FetchFailed

    return FetchFailed(
        f"no collateral to judge this evidence with: {what}",
        check="collateral at hand",
        expected="collateral for this evidence, valid at the time of verification",
        seen="none",
        remedy="fetch it: adyton collateral fetch --for EVIDENCE, or give it: --collateral FILE",
    )


def _choose(evidence: Evidence, paths: list[Path], home: Path | None, now: datetime) -> Collateral | AMDCollateral:
    """The collateral for this evidence among what was given, or from the owner's store."""
    from adyton.attest.snp import SNPReport

    if not paths:
        return _from_store(evidence, home, now)
    if isinstance(evidence, SNPReport):
        return _choose_amd(evidence, _collect(paths))
    found = _collect(paths)
    candidates = found.intel + _from_documents(found.documents, evidence, now)
    if not candidates:
        raise _missing("the files hold none for a quote")
    if len(candidates) == 1:
        return _with_chain(candidates[0], found)
    return _with_chain(_best(evidence, candidates, now), found)


def _with_chain(collateral: Collateral, found: _Found) -> Collateral:
    """The collateral, with a PCK certificate chain that was given apart from it."""
    from dataclasses import replace

    from adyton.attest.certificates import parse_certificate

    if collateral.pck_certificate_chain is not None or len(found.certificates) != 3:
        return collateral
    chain = "".join(parse_certificate(raw, "PCK certificate chain").pem for raw in found.certificates)
    return replace(collateral, pck_certificate_chain=chain)


def _best(evidence: Evidence, candidates: list[Collateral], now: datetime) -> Collateral:
    """Of several, the one whose TCB info is for this platform, valid now, and the newest of those."""
    from adyton.attest.sgx import SGXQuote
    from adyton.attest.snp import SNPReport
    from adyton.attest.tcbinfo import TCBInfo, parse_tcb_info
    from adyton.collateral.documents import unverified_origin

    if isinstance(evidence, SNPReport):
        raise _missing("this is for quotes only")
    origin = unverified_origin(evidence)
    kind = "SGX" if isinstance(evidence, SGXQuote) else "TDX"
    fitting = [
        (info, collateral)
        for info, collateral in ((parse_tcb_info(item.tcb_info), item) for item in candidates)
        if info.id == kind and origin.fmspc in (None, info.fmspc)
    ]
    if not fitting:
        raise _missing(f"none of the {len(candidates)} given is for {kind} on FMSPC {(origin.fmspc or b'').hex()}")

    def rank(item: tuple[TCBInfo, Collateral]) -> tuple[bool, int, datetime]:
        info = item[0]
        return info.issue_date <= now <= info.next_update, info.evaluation_number, info.issue_date

    return max(fitting, key=rank)[1]


def _from_documents(held: list[Document], evidence: Evidence, now: datetime) -> list[Collateral]:
    """The collateral that single documents come to for this quote, if they are all there."""
    from contextlib import suppress

    from adyton.attest.snp import SNPReport
    from adyton.collateral import documents
    from adyton.errors import EvidenceError, FetchFailed

    if isinstance(evidence, SNPReport) or not held:
        return []
    origin = documents.unverified_origin(evidence)
    known: dict[tuple[documents.Kind, str], documents.Verified] = {}

    def rank(verified: documents.Verified) -> tuple[bool, datetime]:
        return verified.issued_at <= now <= verified.expires_at, verified.issued_at

    for document in held:
        with suppress(EvidenceError):  # what is needed and missing in the end is said by `assemble`
            verified = documents.verify_document(document)
            key = (document.kind, verified.subject)
            if verified.root == origin.root and (key not in known or rank(verified) > rank(known[key])):
                known[key] = verified
    try:
        return [documents.assemble(known, origin)]
    except FetchFailed:
        return []


def _from_store(evidence: Evidence, home: Path | None, now: datetime) -> Collateral | AMDCollateral:
    from adyton.attest.snp import SNPReport
    from adyton.collateral.store import CollateralStore

    folder = (home or Path.home() / ".adyton") / "collateral"
    if not folder.is_dir():
        raise _missing(f"no --collateral was given and there is no store at {folder}")
    store = CollateralStore(folder)
    return store.for_report(evidence, now) if isinstance(evidence, SNPReport) else store.for_quote(evidence, now)


def _choose_amd(evidence: Evidence, found: _Found) -> AMDCollateral:
    """AMD's certificates: from a document, or put together from certificates (leaf, ASK or ASVK, ARK) and a CRL."""
    from adyton.attest.certificates import parse_certificate, parse_crl
    from adyton.attest.collateral import AMDCollateral
    from adyton.attest.snp import KEY_VLEK, SNPReport

    if found.amd:
        return found.amd[-1]
    if not isinstance(evidence, SNPReport):
        raise _missing("this is for SEV-SNP reports only")
    vlek = evidence.signing_key == KEY_VLEK
    leaf_name = "SEV-VLEK" if vlek else "SEV-VCEK"
    parsed = [parse_certificate(raw, "AMD certificate") for raw in found.certificates]
    leaves = [item for item in parsed if item.common_name == leaf_name]
    leaf = next((item for item in leaves if _is_of(item, evidence)), leaves[0] if leaves else None)
    ask = next((item for item in parsed if leaf is not None and item.subject == leaf.issuer), None)
    ark = next((item for item in parsed if ask is not None and item.subject == ask.issuer), None)
    if leaf is None or ask is None or ark is None:
        raise _missing(f"it takes the {leaf_name[4:]}, the ASK and the ARK")
    crl = next((raw for raw in found.crls if parse_crl(raw, "AMD CRL").issuer == ark.subject), None)
    return AMDCollateral(leaf=leaf.der, ask=ask.der, ark=ark.der, crl=crl)


def _is_of(leaf: Certificate, report: SNPReport) -> bool:
    """Whether a VCEK or VLEK is for the chip and TCB that the report states."""
    from adyton.attest.amd import parse_chip_certificate
    from adyton.attest.snp import TCBVersion
    from adyton.errors import MalformedQuote

    try:
        chip = parse_chip_certificate(leaf)
    except MalformedQuote:
        return False
    reported = TCBVersion.parse(report.field("reported_tcb"), turin=chip.tcb.fmc is not None)
    same_chip = chip.hardware_id is None or chip.hardware_id.ljust(64, b"\0") == report.chip_id
    return same_chip and chip.tcb == reported


def _write_token(assessment: Assessment, path: Path, key_path: Path) -> None:

    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    from adyton import __version__
    from adyton.atomic_file import write_file
    from adyton.attest import explain
    from adyton.attest.token import sign_token

    try:
        key = load_pem_private_key(read_capped(key_path, 1 << 16, "token key"), None)
    except (ValueError, TypeError):
        raise _usage("the token key is no PEM private key without a password", "--token-key", "PEM", "") from None
    text = sign_token(explain.ear_claims(assessment, verifier=f"adyton {__version__}"), key)
    write_file(path, text.encode("ascii") + b"\n")
