"""Verify attestation evidence and judge it by a policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from adyton import __version__
from adyton.attest import explain, ratls
from adyton.attest.assess import Assessment, assess
from adyton.attest.azure.evidence import AzureEvidence
from adyton.attest.certificates import split_pem
from adyton.attest.collateral import NoCollateral
from adyton.attest.evidence import hardware_part, parse_evidence
from adyton.attest.evidence_policy import Policy
from adyton.attest.forms import read_form
from adyton.attest.google import GoogleFirmware, parse_endorsement, verify_endorsement
from adyton.attest.nitro.document import NitroDocument
from adyton.attest.policy.hosts import MAX_SIGNED, SignedHosts
from adyton.attest.report_data import program_report_data
from adyton.attest.roots import TrustRoots
from adyton.attest.snp import SNPReport
from adyton.attest.tdx import TDXQuote
from adyton.attest.tdx_boot import TDXBoot, check_replays, read_boot
from adyton.attest.tpm.document import TPMQuote
from adyton.capped_read import read_capped, read_prefix
from adyton.collateral.files import choose, google_firmware, missing
from adyton.errors import Error, EvidenceError, MalformedQuote, UsageError
from adyton.untrusted import parse_json_object, parse_toml
from adyton.values import Measurement

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adyton.attest.appraise import Claims
    from adyton.attest.collateral import AMDCollateral, Collateral
    from adyton.attest.evidence import Evidence
    from adyton.attest.report import VerifiedReport

_MAX_EVIDENCE_BYTES: Final = 1 << 20
_MAX_POLICY_BYTES: Final = 1 << 20
_MAX_NITRO_NONCE_BYTES: Final = 512
_MAX_TOKEN_KEY_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result: every check, and whether the policy is met. A refusal is false as a condition."""

    assessment: Assessment
    firmware: GoogleFirmware | EvidenceError | None = None
    """What Google says of the firmware, or why its endorsement does not count. None where no endorsement was given."""
    boot: TDXBoot | None = None
    """How a TDX guest booted, by a log that replays to its quote. None where no log was given."""

    def __bool__(self) -> bool:
        return self.accepted

    @property
    def accepted(self) -> bool:
        """Whether the evidence is genuine and the policy is met."""
        return self.assessment.claims is not None

    @property
    def error(self) -> EvidenceError | None:
        """The error of a refusal. None where the evidence was accepted."""
        return self.assessment.error

    def require(self) -> Claims:
        """The accepted claims. Raises the EvidenceError of a refusal."""
        if self.assessment.claims is None:
            raise self.assessment.error or EvidenceError("the evidence was refused")
        return self.assessment.claims

    def to_dict(self) -> dict[str, Any]:
        """The document of `adyton verify --json`."""
        found = explain.to_dict(self.assessment)
        if self.firmware is not None:
            told = {"endorsed_by": None, "error": self.firmware.details()} if isinstance(self.firmware, Error) else None
            found["firmware"] = self.firmware.to_dict() if isinstance(self.firmware, GoogleFirmware) else told
        if self.boot is not None:
            found["acpi_tables"] = self.boot.named_tables()
        return found

    def to_text(self) -> str:
        """As text for people, in about a dozen short lines."""
        *lines, verdict = explain.to_text(self.assessment).split("\n")
        if isinstance(self.firmware, GoogleFirmware):
            told = f"endorsed by Google on {self.firmware.made_at:%Y-%m-%d} (SVN {self.firmware.svn}); it says nothing"
            lines.append(f"{'firmware':<18} {told} of the kernel behind it")
        elif self.firmware is not None:
            lines.append(f"{'firmware':<18} NOT endorsed by Google: {self.firmware.message}")
        if self.boot is not None:
            lines.append(f"{'ACPI tables':<18} by the event log, which replays to RTMR0, RTMR1 and RTMR2:")
            lines += [f"{'':<18} {name:<6} {value}" for name, value in self.boot.named_tables().items()]
        return "\n".join([*lines, verdict])

    def write_token(self, path: Path, key_file: Path) -> None:
        """Write a signed EAR-style token of this verdict. Raises UsageError where the key file is invalid."""
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        from adyton.atomic_file import write_file
        from adyton.attest.token import sign_token

        try:
            key = load_pem_private_key(read_capped(key_file, _MAX_TOKEN_KEY_BYTES, "token key"), None)
        except (ValueError, TypeError):
            raise UsageError(
                "the token key is no PEM private key without a password", check="--token-key", expected="PEM", seen=""
            ) from None
        text = sign_token(explain.ear_claims(self.assessment, verifier=f"adyton {__version__}"), key)
        write_file(path, text.encode("ascii") + b"\n")


def verify(
    evidence: bytes | str | Path,
    *,
    collateral: Collateral | AMDCollateral | Sequence[str | Path] = (),
    at: datetime | None = None,
    policy: Policy | Mapping[str, Any] | str | Path | None = None,
    hosts: Sequence[str | Path] = (),
    report_data: bytes | None = None,
    program_data: bytes | None = None,
    workload: Measurement | None = None,
    event_log: bytes | None = None,
    completed: Callable[[VerifiedReport], VerifiedReport] = lambda report: report,
    home: Path | None = None,
) -> Verdict:
    """Judge evidence (its bytes, or a file) by a policy, as `adyton verify` does.

    `collateral` is files and folders, or a document. By default it comes from the owner's store. `at` is the time of
    the judgement, with its zone, by default now. Without a `policy` nothing is accepted. `hosts` are files with the
    signed lists of hosts that the policy names by their key. The evidence must be bound to `report_data` (64 bytes; for
    a TPM's quote its nonce). Instead of it, `program_data` (up to 64 bytes) is the data that the program with
    measurement `workload` wrote to user_report_data. Without both, evidence is refused unless it is an RA-TLS
    certificate, or the policy says `allow_missing_report_data`. `event_log` is the firmware's log, where it comes
    beside what a TPM signed and not in it; for a TDX quote it names the host's ACPI tables. `completed` adds what comes
    beside the evidence, such as GPUs, to a genuine report before it is judged.

    A refusal is part of the verdict: see `Verdict.require`. Raises MalformedQuote where the evidence does not parse,
    Mismatch where it takes no event log or the log is of another boot, FetchFailed where there is no collateral for it,
    UsageError and StorageFailed.
    """
    if at is not None and at.tzinfo is None:
        raise UsageError("the time needs a zone", check="at", expected="a time with its zone", seen=at.isoformat())
    now = datetime.now(UTC) if at is None else at.astimezone(UTC)
    rules = read_policy(policy, hosts)
    wanted = _wanted(report_data, program_data, workload, rules)
    raw = evidence if isinstance(evidence, bytes) else read_capped(Path(evidence), _MAX_EVIDENCE_BYTES, "evidence")
    parsed, bound = _evidence(raw)
    boot = None
    if event_log is not None and isinstance(parsed, TDXQuote):
        boot = read_boot(event_log)
        check_replays(boot, parsed)
    elif event_log is not None:
        from adyton.attest.complete import with_event_log

        parsed = with_event_log(parsed, event_log)
    if bound is not None:
        if wanted is not None and wanted != bound:
            raise UsageError(
                "an RA-TLS certificate says itself what its quote is bound to",
                check="--report-data" if program_data is None else "--program-data",
                expected="none",
                seen="",
            )
        wanted = bound
    _check_length(wanted, parsed)
    found = collateral_of(parsed, collateral, home, now)
    roots = TrustRoots().with_sim(rules.sim_roots).with_tpm(rules.every_tpm_root)
    assessment = assess(parsed, found, roots, rules, now, report_data=wanted, completed=completed)
    return Verdict(assessment, None if assessment.report is None else _firmware(parsed, collateral, home, now), boot)


def _firmware(
    evidence: Evidence,
    given: Collateral | AMDCollateral | Sequence[str | Path],
    home: Path | None,
    now: datetime,
) -> GoogleFirmware | EvidenceError | None:
    """What Google says of the firmware, by the endorsements among the given files, or by that in the owner's store."""
    if not isinstance(given, Sequence):
        return None
    try:
        if given:
            return google_firmware(
                evidence, [Path(given)] if isinstance(given, str) else [Path(path) for path in given], now
            )
        return _stored_endorsement(evidence, home, now)
    except EvidenceError as error:
        return error


def _stored_endorsement(evidence: Evidence, home: Path | None, now: datetime) -> GoogleFirmware | None:
    from adyton.attest.google import endorsed_measurement
    from adyton.collateral.documents import endorsement_subject
    from adyton.collateral.store import CollateralStore
    from adyton.keystore.home import default_home

    if not isinstance(evidence, TDXQuote | SNPReport):
        return None
    tee, measurement = endorsed_measurement(evidence)
    store = CollateralStore((home or default_home()) / "collateral")
    held = store.find("google-firmware", endorsement_subject(tee, measurement), now)
    if held is None:
        return None
    return verify_endorsement(
        parse_endorsement(held.document.body),
        split_pem(held.document.chain, "firmware root"),
        tee=tee,
        measurement=measurement,
        now=now,
    )


def is_gpu_evidence(path: Path, certificate_chain: Path | None) -> bool:
    """Whether a file is evidence of GPUs: a JSON list, or any file with a certificate chain beside it."""
    if certificate_chain is not None:
        return True
    try:
        return read_prefix(path, 64).lstrip().startswith(b"[")
    except OSError:
        return False  # the caller reads it as evidence of a CPU, and says what is wrong with the file


def unjudged(error: Error) -> dict[str, Any]:
    """The document of `adyton verify --json` where evidence did not parse or could not be checked."""
    refused = isinstance(error, EvidenceError)
    return {
        "tee": None,
        "verdict": "refused" if refused else "unchecked",
        "genuine": False if refused else None,
        "status": None,
        "advisories": [],
        "measurement": None,
        "error": error.details(),
        "checks": [check.to_dict() for check in error.checks if check.name] if refused else [],
    }


def _wanted(
    report_data: bytes | None, program_data: bytes | None, workload: Measurement | None, rules: Policy
) -> bytes | None:
    """The 64 bytes to compare: as given, or computed from a program's data. None where nothing was given."""
    if program_data is None:
        if workload is not None:
            raise UsageError(
                "--workload says whose --program-data it is",
                check="--workload",
                expected="--program-data, too",
                seen="alone",
            )
        return report_data
    if report_data is not None:
        raise UsageError(
            "--report-data and --program-data exclude each other",
            check="--program-data",
            expected="one of them",
            seen="both",
        )
    named = [workload] if workload is not None else sorted(rules.workloads, key=str)
    if len(named) != 1:
        raise UsageError(
            "a program's report data names its workload",
            check="--workload",
            expected="the workload measurement (adyton build prints it), or a policy that names exactly one in "
            "`workloads`",
            seen=f"{len(named)} workloads",
        )
    return program_report_data(named[0], program_data)


def _check_length(wanted: bytes | None, evidence: Evidence) -> None:
    """Report data have 64 bytes. The nonce in a TPM's quote has 1 to 64, that in a Nitro document up to 512."""
    least, most = 64, 64
    if isinstance(evidence, TPMQuote | AzureEvidence):
        least = 1
    elif isinstance(evidence, NitroDocument):
        least, most = 1, _MAX_NITRO_NONCE_BYTES
    if wanted is not None and not least <= len(wanted) <= most:
        expected = "64 bytes, which are 128 hex digits (append zeros to a hash)"
        raise UsageError(
            "the nonce has another length" if least < most else "report data has 64 bytes",
            check="--report-data",
            expected=f"{least} to {most} bytes" if least < most else expected,
            seen=f"{len(wanted)} bytes",
        )


def read_policy(given: Policy | Mapping[str, Any] | str | Path | None, hosts: Sequence[str | Path] = ()) -> Policy:
    """The given policy, or that of a TOML or JSON file. By default an empty one, which accepts nothing.

    `hosts` are files with the signed lists of hosts that it names by their key.

    Raises UsageError.
    """
    if given is None:
        return Policy()
    if isinstance(given, Policy):
        return given
    if not isinstance(given, str | Path):
        return Policy.from_dict(_with_signed_hosts(dict(given), hosts))
    raw = read_capped(Path(given), _MAX_POLICY_BYTES, "policy")
    parse = parse_json_object if raw.lstrip().startswith(b"{") else parse_toml
    return Policy.from_dict(_with_signed_hosts(parse(raw, what=f"policy {given}", refuse=UsageError), hosts))


def _with_signed_hosts(document: dict[str, Any], files: Sequence[str | Path]) -> dict[str, Any]:
    """The policy with the signed lists of hosts that it names only by their key.

    The files are named by whoever calls: a policy, which may be a stranger's text, never names a file that is read.
    """
    hosts = document.get("hosts")
    wanted = hosts.get("signed") if isinstance(hosts, dict) else None
    if not files or not isinstance(hosts, dict) or not isinstance(wanted, list):
        return document
    texts = [
        read_capped(Path(path), _MAX_POLICY_BYTES, "signed list of hosts").decode("utf-8", "replace") for path in files
    ]
    signed = [
        {**item, "envelope": _signed_by(item.get("key"), texts)}
        if isinstance(item, dict) and "envelope" not in item
        else item
        for item in wanted[: MAX_SIGNED + 1]  # more are refused
    ]
    return {**document, "hosts": {**hosts, "signed": signed}}


def _signed_by(key: object, texts: Sequence[str]) -> str:
    """The text that a key signed. Where there is none, the first one: reading it says what is wrong."""
    for text in texts[:MAX_SIGNED]:
        with suppress(UsageError, ValueError):
            SignedHosts.parse(bytes.fromhex(str(key)), text)
            return text
    return texts[0]


def _evidence(raw: bytes) -> tuple[Evidence, bytes | None]:
    """The evidence in whatever form it came, and for an RA-TLS certificate the report data that binds its key."""
    raw = read_form(raw).evidence
    if raw.lstrip().startswith((b"-----BEGIN CERTIFICATE-----", b"-----BEGIN TRUSTED CERTIFICATE-----")):
        blocks = split_pem(raw.replace(b" TRUSTED CERTIFICATE-", b" CERTIFICATE-"), "RA-TLS certificate")
        if len(blocks) != 1:
            raise MalformedQuote("an RA-TLS peer has one certificate", check="RA-TLS certificate", seen=len(blocks))
        raw = blocks[0]
    if raw[:2] in (b"\x30\x82", b"\x30\x81"):
        certificate = ratls.parse_certificate(raw)
        return certificate.evidence, certificate.expected_report_data
    return parse_evidence(raw), None


def collateral_of(
    evidence: Evidence,
    given: Collateral | AMDCollateral | Sequence[str | Path],
    home: Path | None,
    now: datetime,
) -> Collateral | AMDCollateral | NoCollateral:
    """The given collateral, or the collateral for this evidence from files or from the owner's store."""
    if not isinstance(given, Sequence):
        return given
    hardware = hardware_part(evidence)
    if hardware is None:
        return NoCollateral()
    if isinstance(given, str):
        given = [given]
    if given:
        return choose(evidence, [Path(path) for path in given], now)
    from adyton.collateral.lookup import Lookup
    from adyton.collateral.store import CollateralStore
    from adyton.keystore.home import default_home

    folder = (home or default_home()) / "collateral"
    if not folder.is_dir():
        raise missing(f"no --collateral was given and there is no store at {folder}")
    lookup = Lookup(CollateralStore(folder))
    return lookup.for_report(hardware, now) if isinstance(hardware, SNPReport) else lookup.for_quote(hardware, now)
