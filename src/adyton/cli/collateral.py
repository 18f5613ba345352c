"""`adyton collateral`: fetch, show, export and import what evidence is verified against."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adyton.cli.options import HomeOption, JSONOption
from adyton.cli.output import note, say, say_json
from adyton.cli.verb import group_app
from adyton.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adyton.workflow.collateral import Taken

app = group_app("What evidence is verified against: certificates, revocation lists, TCB info, QE identities.")

Root = Annotated[str | None, typer.Option(help="Only under the root with this SHA-256 fingerprint.", metavar="HEX")]


@app.command()
def fetch(
    pcs: Annotated[
        list[str] | None,
        typer.Option(help="Address of a PCS, PCCS or simulated platform (repeatable).  [Intel's PCS]", metavar="URL"),
    ] = None,
    for_: Annotated[
        list[Path] | None, typer.Option("--for", help="Evidence to fetch for (repeatable).", metavar="EVIDENCE")
    ] = None,
    vlek: Annotated[
        list[Path] | None,
        typer.Option(
            help="VLEK certificate (DER or PEM) that a guest has from its host, to keep with AMD's chain (repeatable).",
            metavar="FILE",
        ),
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
    gpu: Annotated[
        bool, typer.Option("--gpu", help="For GPUs: RIMs and OCSP answers for --for EVIDENCE, or those that are due.")
    ] = False,
    rim: Annotated[
        list[str] | None, typer.Option(help="Address of a RIM service (repeatable).  [NVIDIA's]", metavar="URL")
    ] = None,
    ocsp: Annotated[
        list[str] | None, typer.Option(help="Address of an OCSP responder (repeatable).  [NVIDIA's]", metavar="URL")
    ] = None,
    google: Annotated[
        bool, typer.Option("--google", help="Also what Google says of the firmware of --for EVIDENCE (TDX, SEV-SNP).")
    ] = False,
    google_bucket: Annotated[
        str | None, typer.Option(help="Address of the endorsements.  [Google's bucket]", metavar="URL")
    ] = None,
    google_root: Annotated[
        str | None, typer.Option(help="Address of their root's certificate.  [Google's]", metavar="URL")
    ] = None,
    pcs_ca: Annotated[
        list[str] | None,
        typer.Option(
            "--pcs-ca",
            help="CA certificate of the services, or with the URL as --pcs names it, of one (repeatable).",
            metavar="[URL=]FILE",
        ),
    ] = None,
    pcs_cert: Annotated[
        list[str] | None,
        typer.Option(
            "--pcs-cert",
            help="The one certificate that a service must show, whatever name it has, as a PCCS needs (repeatable).",
            metavar="[URL=]FILE",
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option("--api-key-file", help="File with the subscription key for PCK certificates.", metavar="FILE"),
    ] = None,
    home: HomeOption = None,
    as_json: JSONOption = False,
) -> None:
    """Fetch collateral, verify it, and keep it; without --for and --fmspc, what is here or what the service knows."""
    from adyton.workflow.collateral import fetch_collateral

    if not gpu and (rim or ocsp):
        raise UsageError("--rim and --ocsp are for GPUs", check="--rim, --ocsp", expected="--gpu, too", seen="without")
    if google and not for_:
        raise UsageError("--google needs evidence", check="--google", expected="--for EVIDENCE, too", seen="without")
    bucket = () if google_bucket is None else (google_bucket,)
    taken = fetch_collateral(
        pcs=pcs or (),
        evidence=for_ or (),
        vleks=vlek or (),
        fmspcs=fmspc or (),
        tee=tee,
        root=root,
        early=early,
        kds=kds or (),
        gpu=gpu,
        rim_services=rim or (),
        ocsp_responders=ocsp or (),
        google=google,
        google_bucket=google_bucket,
        google_root=google_root,
        pcs_ca=_for_each(pcs_ca or (), [*(pcs or ()), *(kds or ()), *(rim or ()), *(ocsp or ()), *bucket], "--pcs-ca"),
        pcs_certificates=_for_one(pcs_cert or (), pcs or (), "--pcs-cert"),
        api_key_file=api_key_file,
        home=home,
        notice=note,
    )
    _report(taken, as_json=as_json)


def _for_each(given: Sequence[str], urls: Sequence[str], option: str) -> dict[str, Path]:
    """A file for each service: those that name their service, and one without a name for all others."""
    named = {url: path for url, path in (_url_and_file(text, urls) for text in given) if url}
    bare = [path for url, path in (_url_and_file(text, urls) for text in given) if not url]
    if len(bare) > 1:
        raise UsageError(f"{option} twice without a URL", check=option, expected="URL=FILE", seen=f"{len(bare)} files")
    for_all = dict.fromkeys(urls, bare[0]) if bare else {}
    return for_all | named


def _for_one(given: Sequence[str], urls: Sequence[str], option: str) -> dict[str, Path]:
    """A file for one service each; without a URL it is for the only one."""
    found: dict[str, Path] = {}
    for text in given:
        url, path = _url_and_file(text, urls)
        if not url and len(urls) != 1:
            raise UsageError(
                f"{option} does not say of which service",
                check=option,
                expected="URL=FILE, with the URL as --pcs names it",
                seen=text[:200],
            )
        found[url or urls[0]] = path
    return found


def _url_and_file(text: str, urls: Sequence[str]) -> tuple[str, Path]:
    """URL and file of an option's value; no URL where it begins with none that is named."""
    url = next((url for url in sorted(urls, key=len, reverse=True) if text.startswith(f"{url}=")), "")
    return url, Path(text[len(url) + 1 :] if url else text)


def _report(taken: Taken, *, as_json: bool) -> None:
    if not as_json:
        show_taken(taken)
    elif not taken.errors:
        say_json(taken.to_dict())
    for error in taken.errors[1:]:
        note(f"adyton: {error}")
    taken.require()


def show_taken(taken: Taken) -> None:
    """Say what came of each document, but for what failed."""
    for outcome in taken.outcomes:
        if outcome.verified is not None:
            verified = outcome.verified
            number = "" if verified.number is None else f", number {verified.number}"
            say(f"{verified.name:<28} valid until {verified.expires_at:%Y-%m-%d %H:%M} UTC{number}")
    if not taken.outcomes:
        say("nothing is due to be fetched")
    for root in taken.strange_roots:
        note(f"root {root} is not Intel's: evidence under it counts only where a policy names sim:{root}")


@app.command()
def show(
    home: HomeOption = None,
    as_json: JSONOption = False,
    bundle: Annotated[
        list[Path] | None, typer.Argument(help="Bundles or folders to show instead of the store.", metavar="BUNDLE")
    ] = None,
) -> None:
    """Show every document: what it is about, until when it is valid, when it is due to be fetched anew."""
    from adyton.workflow.collateral import show_collateral

    shown = show_collateral(bundles=bundle or (), home=home)
    if as_json:
        say_json(shown.to_dict())
        return
    root = None
    for item in shown.documents:
        held = item.held
        if held.root != root:
            root = held.root
            say(f"root {root}")
        verified = held.verified
        if verified is None:
            say(f"  {held.name:<28} REFUSED: {held.error}")
            continue
        number = "" if verified.number is None else f", number {verified.number}"
        say(f"  {verified.name:<28} {item.state:<12} until {verified.expires_at:%Y-%m-%d %H:%M} UTC{number}")
        if item.expires_soon:
            gpu = " --gpu" if verified.document.kind.startswith("nvidia-") else ""
            note(f"  {verified.name} expires soon: adyton collateral fetch{gpu}")
    if not shown.documents:
        say(f"no collateral in {shown.directory}")


@app.command()
def export(
    output: Annotated[Path, typer.Option("-o", "--output", help="Bundle to write.", metavar="FILE")],
    root: Root = None,
    home: HomeOption = None,
) -> None:
    """Write every document into one bundle, for machines without a network and for the record."""
    from adyton.workflow.collateral import export_collateral

    count = export_collateral(output, root=root, home=home)
    say(f"{output}: {count} documents")


@app.command("import")
def import_(
    bundle: Annotated[list[Path], typer.Argument(help="Bundles, collateral files, or folders of them.")],
    root: Root = None,
    home: HomeOption = None,
    as_json: JSONOption = False,
) -> None:
    """Take over a bundle; every document is verified, and refused if it has expired or is older than what is here."""
    from adyton.workflow.collateral import import_collateral

    _report(import_collateral(bundle, root=root, home=home), as_json=as_json)
