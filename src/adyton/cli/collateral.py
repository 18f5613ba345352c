"""`adyton collateral`: fetch, show, export and import what evidence is verified against."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adyton.cli.output import note, say, say_json

if TYPE_CHECKING:
    from adyton.attest.evidence import Evidence
    from adyton.collateral.store import CollateralStore, Held, Outcome
    from adyton.values import Digest

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="What evidence is verified against: certificates, revocation lists, TCB info, QE identities.",
)

Home = Annotated[
    Path | None, typer.Option(envvar="ADYTON_HOME", help="The owner's home; collateral lies in HOME/collateral.")
]
AsJSON = Annotated[bool, typer.Option("--json", help="One JSON document for programs.")]
Root = Annotated[str | None, typer.Option(help="Only under the root with this SHA-256 fingerprint.", metavar="HEX")]


def _store(home: Path | None, *, early: bool = False) -> CollateralStore:
    from adyton.collateral.store import CollateralStore
    from adyton.keystore.home import default_home

    return CollateralStore((home or default_home()) / "collateral", channel="early" if early else "standard")


def _root(text: str | None) -> Digest | None:
    from adyton.values import Digest

    return None if text is None else Digest.from_hex(text.removeprefix("sim-tdx:").removeprefix("sim:"))


def _read_evidence(path: Path) -> Evidence:
    from adyton.attest.evidence import parse_evidence
    from adyton.attest.layout import MAX_QUOTE_BYTES
    from adyton.capped_read import read_capped
    from adyton.errors import MalformedQuote

    return parse_evidence(read_capped(path, MAX_QUOTE_BYTES, "evidence", too_large=MalformedQuote))


@app.command()
def fetch(
    pcs: Annotated[
        list[str] | None,
        typer.Option(help="Address of a PCS, PCCS or simulated platform (repeatable).  [Intel's PCS]", metavar="URL"),
    ] = None,
    for_: Annotated[
        list[Path] | None, typer.Option("--for", help="Evidence to fetch for (repeatable).", metavar="EVIDENCE")
    ] = None,
    fmspc: Annotated[
        list[str] | None, typer.Option(help="Kind of platform to fetch for: 12 hex digits (repeatable).", metavar="HEX")
    ] = None,
    tee: Annotated[str, typer.Option(help="sgx, tdx or both.")] = "both",
    root: Root = None,
    early: Annotated[bool, typer.Option("--early", help="New TCB levels at once, not after the grace period.")] = False,
    kds: Annotated[
        list[str] | None,
        typer.Option(help="Address of AMD's key distribution service (repeatable).  [AMD's]", metavar="URL"),
    ] = None,
    pcs_ca: Annotated[
        Path | None, typer.Option("--pcs-ca", help="CA certificate of the service, as a PCCS needs.", metavar="FILE")
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option("--api-key-file", help="File with the subscription key for PCK certificates.", metavar="FILE"),
    ] = None,
    home: Home = None,
    as_json: AsJSON = False,
) -> None:
    """Fetch collateral, verify it, and keep it; without --for and --fmspc, what is here or what the service knows."""
    from adyton.attest.snp import SNPReport
    from adyton.collateral.store import Source
    from adyton.errors import UsageError

    if tee not in ("sgx", "tdx", "both"):
        raise UsageError(f"no collateral for {tee!r}", check="--tee", expected="sgx, tdx or both", seen=tee)
    tees = ("sgx", "tdx") if tee == "both" else (tee,)
    store, now, wanted_root = _store(home, early=early), datetime.now(UTC), _root(root)
    if api_key_file is not None:
        key = _api_key(api_key_file)
        store.client_of = lambda source, channel: source.client(channel, key)
    ca_file = None if pcs_ca is None else str(pcs_ca.resolve())
    named = tuple(Source(url, ca_file) for url in pcs or ())
    sources = named or store.sources()
    outcomes: list[Outcome] = []
    amd_sources = tuple(Source(url, ca_file) for url in kds or ()) or store.kds
    for path in for_ or ():
        evidence = _read_evidence(path)
        asked = amd_sources if isinstance(evidence, SNPReport) else sources
        outcomes += store.fetch_for(evidence, now, sources=asked)
    kinds = [_fmspc(text) for text in fmspc or ()]
    if not outcomes and not kinds and named:
        kinds = _known_fmspcs(store, named)
    if kinds:
        outcomes += store.fetch(fmspcs=kinds, tees=tees, sources=sources, root=wanted_root, now=now)
    if not for_ and not fmspc and not named:
        outcomes += store.refresh(now)
        if not any(True for _ in store.held()):
            outcomes += store.fetch(tees=tees, sources=sources, root=wanted_root, now=now)
            note("TCB info is per kind of platform: name evidence (--for) or an FMSPC (--fmspc) to fetch it")
    if named and any(outcome.verified is not None for outcome in outcomes):
        store.remember_sources(named)
    _report(outcomes, as_json=as_json)


def _api_key(path: Path) -> str:
    from adyton.capped_read import read_capped
    from adyton.errors import UsageError

    key = read_capped(path, 257, "subscription key").decode("ascii", "replace").strip()
    if not 1 <= len(key) <= 256 or not key.isalnum():
        raise UsageError(f"{path} holds no subscription key", check="--api-key-file", expected="letters and digits")
    return key


def _fmspc(text: str) -> bytes:
    from adyton.errors import UsageError

    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = b""
    if len(raw) != 6:
        raise UsageError(f"{text!r} is no FMSPC", check="--fmspc", expected="12 hex digits", seen=text[:60])
    return raw


def _known_fmspcs(store: CollateralStore, sources: tuple[Any, ...]) -> list[bytes]:
    """Every kind of platform that these services know, if they are few."""
    from adyton.errors import UsageError

    found: list[bytes] = []
    for source in sources:
        found += store.client_of(source, store.channel).fmspcs()
    if len(found) > 16:
        raise UsageError(
            f"the service knows {len(found)} kinds of platform: say which",
            check="what to fetch",
            expected="--for EVIDENCE or --fmspc HEX",
            seen=f"{len(found)} kinds",
        )
    return list(dict.fromkeys(found))


def _row(outcome: Outcome | Held) -> dict[str, Any]:
    verified = outcome.verified
    if verified is None:
        return {"name": outcome.name, "ok": False, **(outcome.error.details() if outcome.error else {})}
    return {
        "name": verified.name,
        "ok": True,
        "root": verified.root.hex(),
        "number": verified.number,
        "issued_at": verified.issued_at.isoformat(),
        "expires_at": verified.expires_at.isoformat(),
        "fetched_at": verified.document.fetched_at.isoformat(),
        "url": verified.document.url,
    }


def _report(outcomes: list[Outcome], *, as_json: bool) -> None:
    """Say what came of each document; the first failure becomes the verb's own."""
    from adyton.attest.roots import AMD_ARKS, INTEL_SGX_ROOT

    rows = [_row(outcome) for outcome in outcomes]
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    roots = {outcome.verified.root for outcome in outcomes if outcome.verified is not None}
    if as_json and not failed:
        say_json({"documents": rows, "roots": sorted(root.hex() for root in roots)})
    if not as_json:
        for outcome in outcomes:
            if outcome.verified is not None:
                verified = outcome.verified
                number = "" if verified.number is None else f", number {verified.number}"
                say(f"{verified.name:<28} valid until {verified.expires_at:%Y-%m-%d %H:%M} UTC{number}")
        if not outcomes:
            say("nothing is due to be fetched")
        for root in sorted(roots, key=str):
            if root != INTEL_SGX_ROOT and root not in AMD_ARKS.values():
                note(f"root {root} is not Intel's: evidence under it counts only where a policy names sim:{root}")
    if failed:
        for outcome in failed[1:]:
            note(f"adyton: {outcome.error}")
        if failed[0].error is not None:
            raise failed[0].error


@app.command()
def show(
    home: Home = None,
    as_json: AsJSON = False,
    bundle: Annotated[
        list[Path] | None, typer.Argument(help="Bundles or folders to show instead of the store.", metavar="BUNDLE")
    ] = None,
) -> None:
    """Show every document: what it is about, until when it is valid, when it is due to be fetched anew."""
    from adyton.collateral.store import EXPIRY_NOTICE

    store, now = _store(home), datetime.now(UTC)
    found = list(_held_in_bundles(bundle) if bundle else store.held())
    if as_json:
        rows = [_row(held) | _state(held, store, now) for held in found]
        say_json({"directory": str(store.directory), "documents": rows})
        return
    root = None
    for held in found:
        if held.root != root:
            root = held.root
            say(f"root {root}")
        if held.verified is None:
            say(f"  {held.name:<28} REFUSED: {held.error}")
            continue
        verified, state = held.verified, _state(held, store, now)
        number = "" if verified.number is None else f", number {verified.number}"
        say(f"  {verified.name:<28} {state['state']:<12} until {verified.expires_at:%Y-%m-%d %H:%M} UTC{number}")
        if state["state"] == "valid" and verified.expires_at - now < EXPIRY_NOTICE:
            note(f"  {verified.name} expires within {EXPIRY_NOTICE.days} days: adyton collateral fetch")
    if not found:
        say(f"no collateral in {store.directory}")


def _held_in_bundles(paths: list[Path]) -> list[Held]:
    from adyton.collateral.documents import parse_bundle, verify_document
    from adyton.collateral.store import Held, read_bundle_files
    from adyton.errors import Error
    from adyton.values import Digest

    found: list[Held] = []
    for raw in read_bundle_files(paths):
        for document in parse_bundle(raw):
            try:
                verified = verify_document(document)
                found.append(Held(verified.root, verified.name, verified))
            except Error as error:
                found.append(Held(Digest(bytes(32)), document.kind, None, error))
    return sorted(found, key=lambda held: (held.root.raw, held.name))


def _state(held: Held, store: CollateralStore, now: datetime) -> dict[str, str]:
    if held.verified is None:
        return {"state": "refused"}
    verified, due = held.verified, store.due_at(held.verified)
    if now > verified.expires_at:
        state = "EXPIRED"
    elif now < verified.issued_at:
        state = "NOT YET VALID"
    else:
        state = "due" if now >= due else "valid"
    return {"state": state, "due_at": due.isoformat()}


@app.command()
def export(
    output: Annotated[Path, typer.Option("-o", "--output", help="Bundle to write.", metavar="FILE")],
    root: Root = None,
    home: Home = None,
) -> None:
    """Write every document into one bundle, for machines without a network and for the record."""
    from adyton.atomic_file import write_file
    from adyton.collateral.documents import parse_bundle
    from adyton.errors import UsageError

    bundle = _store(home).export_bundle(_root(root))
    count = len(parse_bundle(bundle))
    if not count:
        raise UsageError("there is no collateral to export", remedy="fetch some: adyton collateral fetch")
    write_file(output, bundle, 0o644)
    say(f"{output}: {count} documents")


@app.command("import")
def import_(
    bundle: Annotated[list[Path], typer.Argument(help="Bundles, collateral files, or folders of them.")],
    root: Root = None,
    home: Home = None,
    as_json: AsJSON = False,
) -> None:
    """Take over a bundle; every document is verified, and refused if it has expired or is older than what is here."""
    from adyton.collateral.store import read_bundle_files

    store, now = _store(home), datetime.now(UTC)
    outcomes: list[Outcome] = []
    for raw in read_bundle_files(bundle):
        outcomes += store.import_bundle(raw, now, root=_root(root))
    _report(outcomes, as_json=as_json)
