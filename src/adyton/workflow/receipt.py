"""Verify, show and connect the receipts of runs."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from adyton import __version__
from adyton.attest.certificates import split_pem
from adyton.attest.explain import ear_claims
from adyton.attest.roots import TrustRoots
from adyton.capped_read import read_capped
from adyton.errors import EvidenceError, Mismatch, UsageError
from adyton.manifest.model import MAX_MANIFEST_BYTES
from adyton.os_failure import storage_failed
from adyton.pfile.backing import OSFile
from adyton.pfile.committed_state import read_envelope
from adyton.pfile.layout import MAGIC
from adyton.receipt.document import MAX_RECEIPT_BYTES, Receipt, parse_receipt
from adyton.receipt.graph import Graph, Node
from adyton.receipt.statement import (
    Output,
    commitment_key,
    parse_outputs,
    parse_statement,
)
from adyton.receipt.verify import (
    Verified,
    check_guest,
    check_manifest,
    inputs_by_root,
    matching_output,
    matching_plaintext,
)
from adyton.receipt.verify import verify_receipt as verify_whole
from adyton.values import Digest

if TYPE_CHECKING:
    from adyton.attest.evidence import Evidence
    from adyton.attest.evidence_policy import Policy
    from adyton.receipt.statement import Statement
    from adyton.receipt.verify import AnyCollateral
    from adyton.runtime.receipt_maker import Predecessor
    from adyton.values import Key128

MAX_RECEIPTS: Final = 1000
"""Most receipts in a folder."""

_MAX_CA_BYTES: Final = 1 << 16
_READ_BYTES: Final = 1 << 20
_RECOVERY: Final = ".gramine.recovery"


@dataclass(frozen=True, slots=True)
class VerifiedReceipt:
    """A receipt whose every step holds, and the files that it was compared with."""

    file: Path
    verified: Verified
    outputs: Mapping[str, str]
    """File -> the stored path of the output that it is."""
    inputs: Mapping[str, str]

    @property
    def statement(self) -> Statement:
        """What the run states."""
        return self.verified.statement

    def to_dict(self) -> dict[str, Any]:
        """The document of `adyton receipt verify --json`."""
        end = self.verified.end
        return {
            **described(self.statement),
            "verdict": "accepted",
            "owners": [_vouched(each) for each in self.verified.vouched],
            "not_counter_signed": list(self.verified.not_vouched),
            "made_after": _moment(self.verified.made_after),
            "made_before": _moment(self.verified.made_before),
            "compared": {"outputs": dict(self.outputs), "inputs": dict(self.inputs)},
            "ear": ear_claims(end, verifier=f"adyton {__version__}"),
            "checks": [check.to_dict() for check in self.verified.checks],
        }

    def to_text(self) -> str:
        """As text for people, in about ten short lines."""
        statement, vouched = self.statement, self.verified.vouched
        files = sum(mount.files for mount in statement.outputs)
        lines = [
            ("program", f"{statement.measurement} (Adyton {statement.adyton}), exit code {statement.exit_code}"),
            ("on", _machine(statement)),
            ("inputs", _mounts(statement.inputs)),
            ("outputs", _mounts(statement.outputs) if files else "none"),
        ]
        lines += [(f"owner {each.owner}", f"CA {each.ca_sha256}, by {_approvals(each.keys)}") for each in vouched]
        lines += [(f"owner {name}", "NOT counter-signed") for name in self.verified.not_vouched]
        if vouched:
            begin, end = _moment(self.verified.made_after), _moment(self.verified.made_before)
            lines.append(("made", f"after {begin} and before {end}, by the clocks of the key servers"))
        else:
            lines.append(("made", "NOBODY but the host says when"))
        lines.append(("limits", ", ".join(f"{name} {value}" for name, value in statement.limits.items())))
        lines += [("output", f"{path} is {name}") for path, name in self.outputs.items()]
        lines += [("input", f"{path} is {name}") for path, name in self.inputs.items()]
        lines += [("after", f"the run of statement {name}") for name in statement.predecessors]
        lines.append(("verdict", "every step holds"))
        return "\n".join(f"{name:<16} {text}" for name, text in lines)


def verify_receipt(
    file: str | Path,
    *,
    outputs: Sequence[str | Path] = (),
    inputs: Sequence[str | Path] = (),
    at: datetime | None = None,
    policy: Policy | Mapping[str, Any] | str | Path | None = None,
    ca: Sequence[str | Path] = (),
    manifest: str | Path | None = None,
    collateral: Sequence[str | Path] = (),
    key: str | Key128 | None = None,
    key_file: Path | None = None,
    home: Path | None = None,
    without_counter_signature: bool = False,
) -> VerifiedReceipt:
    """Verify a receipt, and that these files are outputs and inputs of its run, as `adyton receipt verify` does.

    `outputs` are protected files (or folders of them) as the run left them, or plaintexts, which take the key of the
    output. `inputs` are protected files or folders. `at` judges all evidence at this time, instead of the times that
    the key servers signed. `policy` is what to accept, as for `verify`. Without one the platform is judged, and the
    program is only named. `ca` are certificates of owners who must be among those of the run. A simulated platform
    counts where the policy, or an approval in the owner's home, names its root.

    Raises the EvidenceError of the step that does not hold, UsageError, StorageFailed, and Unavailable where there is
    no collateral.
    """
    from adyton.workflow.verify import read_policy

    receipt = _read(Path(file))
    rules = None if policy is None else read_policy(policy)
    roots = TrustRoots().with_sim(_approved_roots(home) if rules is None else rules.sim_roots)
    if rules is not None:
        roots = roots.with_tpm(rules.every_tpm_root)
    verified = verify_whole(
        receipt,
        roots=roots,
        now=datetime.now(UTC),
        at=at,
        policy=rules,
        collateral=lambda evidence, when: _collateral(evidence, when, collateral, home),
        owners=[_ca(Path(path)) for path in ca],
        without_counter_signature=without_counter_signature,
    )
    if manifest is not None:
        check_manifest(verified.statement, read_capped(Path(manifest), MAX_MANIFEST_BYTES, "manifest"))
    check_guest(verified.statement, is_judged=rules is not None or (bool(ca or manifest) and not verified.not_vouched))
    secret = None
    if key is not None or key_file is not None:
        from adyton.workflow.wrap_key import choose_key

        secret = commitment_key(choose_key(key, key_file, home, opens=True), verified.statement.run_key)
    return VerifiedReceipt(
        Path(file),
        verified,
        {str(path): _output(verified, path, secret).name for path in _files(outputs)},
        {str(path): _input(verified, path) for path in _files(inputs)},
    )


@dataclass(frozen=True, slots=True)
class ShownReceipt:
    """A receipt as it reads. Nothing of it is verified."""

    statement: Statement
    receipt: Receipt

    def to_dict(self) -> dict[str, Any]:
        """The document of `adyton receipt show --json`."""
        return {
            **described(self.statement),
            "verified": False,
            "counter_signed_by": [each.owner for each in self.receipt.counter_signatures],
            "outputs": [entry.to_dict() for entry in self.outputs],
        }

    @property
    def outputs(self) -> tuple[Output, ...]:
        """The outputs that it lists."""
        listed = [self.receipt.listings.get(mount.listing, b"[]") for mount in self.statement.outputs]
        return tuple(entry for raw in listed for entry in parse_outputs(raw))

    def to_text(self) -> str:
        """As text for people."""
        statement = self.statement
        lines = [
            ("statement", statement.sha256),
            ("program", f"{statement.measurement} (Adyton {statement.adyton}), exit code {statement.exit_code}"),
            ("on", _machine(statement)),
            ("inputs", _mounts(statement.inputs)),
            *(("output", f"{entry.name}  sha256 {entry.sha256}") for entry in self.outputs),
            ("counter-signed", ", ".join(each.owner for each in self.receipt.counter_signatures) or "by nobody"),
            ("verdict", "NOTHING of this is verified: adyton receipt verify"),
        ]
        return "\n".join(f"{name:<16} {text}" for name, text in lines)


def show_receipt(file: str | Path) -> ShownReceipt:
    """Read a receipt without verifying it, as `adyton receipt show` does. Raises MalformedQuote, StorageFailed."""
    receipt = _read(Path(file))
    return ShownReceipt(parse_statement(receipt.envelope.payload), receipt)


@dataclass(frozen=True, slots=True)
class ReceiptGraph:
    """Verified receipts, how they chain, and the files that did not verify."""

    graph: Graph
    refused: Mapping[str, EvidenceError]

    def to_dict(self) -> dict[str, Any]:
        """The document of `adyton receipt graph --json`."""
        return {
            **self.graph.to_dict(),
            "refused": [{"file": file, **error.details()} for file, error in self.refused.items()],
        }

    def to_text(self) -> str:
        """As text for people."""
        refused = [f"{file}  REFUSED: {error.message}" for file, error in self.refused.items()]
        return "\n".join([*filter(None, [self.graph.to_text()]), *refused])

    def require(self) -> None:
        """Raise the first refusal, or Mismatch where a predecessor is missing."""
        for error in self.refused.values():
            raise error
        for after, before in self.graph.missing:
            raise Mismatch(
                "a predecessor is missing, or made nothing of what the run took",
                check="predecessors",
                expected=f"the receipt of statement {before}",
                seen=f"none, and the statement {after} names it",
                remedy="put the receipt of the earlier run into the folder",
            )


def receipt_graph(
    folder: str | Path,
    *,
    policy: Policy | Mapping[str, Any] | str | Path | None = None,
    collateral: Sequence[str | Path] = (),
    home: Path | None = None,
    without_counter_signature: bool = False,
) -> ReceiptGraph:
    """Verify every receipt of a folder (`*.json`), and connect them, as `adyton receipt graph` does.

    A refusal is part of the result: see `ReceiptGraph.require`. Raises UsageError and StorageFailed.
    """
    try:
        files = sorted(path for path in Path(folder).iterdir() if path.suffix == ".json")
    except OSError as error:
        raise storage_failed(error, str(folder), "reading") from error
    if not files or len(files) > MAX_RECEIPTS:
        raise UsageError(
            f"{folder} has {len(files)} files *.json",
            check="folder of receipts",
            expected=f"1 to {MAX_RECEIPTS}",
            seen=len(files),
        )
    nodes: list[Node] = []
    refused: dict[str, EvidenceError] = {}
    for file in files:
        try:
            found = verify_receipt(
                file,
                policy=policy,
                collateral=collateral,
                home=home,
                without_counter_signature=without_counter_signature,
            ).verified
        except EvidenceError as error:
            refused[str(file)] = error
            continue
        nodes.append(Node.create(str(file), found.statement, found.inputs, found.outputs))
    return ReceiptGraph(Graph.create(nodes), refused)


def predecessor(file: Path) -> Predecessor:
    """What a run says of a receipt that came before it. It is not verified there: `receipt_graph` does that."""
    from adyton.runtime.receipt_maker import Predecessor

    shown = show_receipt(file)
    return Predecessor(shown.statement.sha256, frozenset(entry.root for entry in shown.outputs))


# --- files --------------------------------------------------------------------------------------------------------


def _read(file: Path) -> Receipt:
    return parse_receipt(read_capped(file, MAX_RECEIPT_BYTES, "receipt"))


def _ca(file: Path) -> bytes:
    raw = read_capped(file, _MAX_CA_BYTES, "CA certificate")
    (der, *more) = split_pem(raw, "CA certificate")
    if more:
        raise UsageError(f"{file} holds several certificates", check="--ca", expected="one", seen=1 + len(more))
    return der


def _files(given: Sequence[str | Path]) -> Iterator[Path]:
    """The files themselves, and those below folders."""
    for each in given:
        path = Path(each)
        if not path.is_dir():
            yield path
            continue
        found = sorted(below for below in path.rglob("*") if below.is_file() and not below.name.endswith(_RECOVERY))
        if not found:
            raise UsageError(f"{path} has no files", check="files to compare", expected="some", seen="none")
        yield from found


def _output(verified: Verified, path: Path, secret: bytes | None) -> Output:
    try:
        with path.open("rb") as file:
            stored, plain = hashlib.sha256(), None if secret is None else hmac.new(secret, digestmod="sha256")
            head = file.read(_READ_BYTES)
            is_protected, piece = head.startswith(MAGIC), head
            while piece:
                stored.update(piece)
                if plain is not None:
                    plain.update(piece)
                piece = file.read(_READ_BYTES)
    except OSError as error:
        raise storage_failed(error, str(path), "reading") from error
    found = matching_output(verified, stored.hexdigest()) if is_protected else None
    if found is None and not is_protected:
        if plain is None:
            raise UsageError(
                f"{path} is no protected file: what commits to a plaintext takes the key of the output",
                check="--output",
                expected="a protected file as the run left it, or --key NAME for its plaintext",
                seen="plaintext, and no key",
            )
        found = matching_plaintext(verified, plain.digest())
    if found is None:
        raise Mismatch(
            f"{path} is not an output of this run",
            check=f"output {path}",
            expected="the stored file, or the plaintext, of one of the outputs",
            seen=f"SHA-256 {stored.hexdigest()}",
            remedy="it was changed since, or another run made it",
        )
    return found


def _input(verified: Verified, path: Path) -> str:
    backing = OSFile(path)
    try:
        envelope = read_envelope(backing)
    finally:
        backing.close()
    root = (envelope.nonce + envelope.tag).hex()
    found = inputs_by_root(verified).get(root)
    if found is None:
        raise Mismatch(
            f"{path} is not an input of this run",
            check=f"input {path}",
            expected="the root of one of the inputs",
            seen=root,
            remedy="it was changed since, or the run did not read it",
        )
    return found


# --- what is trusted ----------------------------------------------------------------------------------------------


def _approved_roots(home: Path | None) -> frozenset[Digest]:
    """The simulated roots that approvals in the owner's home name. None without a home."""
    from adyton.keystore.home import default_home

    folder = home or default_home()
    if not folder.is_dir():
        return frozenset()
    from adyton.workflow.owner import owner_store

    with owner_store(folder) as (_, store), store.read() as view:
        tees = {tee for stored in view.approvals() for tee in stored.approval.tees}
    return frozenset(Digest.from_hex(tee.partition(":")[2]) for tee in tees if ":" in tee)


def _collateral(evidence: Evidence, at: datetime, given: Sequence[str | Path], home: Path | None) -> AnyCollateral:
    from adyton.workflow.verify import collateral_of

    return collateral_of(evidence, given, home, at)


# --- words --------------------------------------------------------------------------------------------------------


def described(statement: Statement) -> dict[str, Any]:
    """What a statement says, as JSON."""
    return {
        "statement": statement.sha256,
        "tee": statement.tee,
        "simulated": statement.tee.startswith("sim"),
        "measurement": statement.measurement,
        "manifest_sha256": statement.manifest_sha256,
        "exit_code": statement.exit_code,
        "host_claimed": {"started_at": statement.started_at, "finished_at": statement.finished_at},
        "mounts": {
            "inputs": [mount.to_dict() for mount in statement.inputs],
            "outputs": [mount.to_dict() for mount in statement.outputs],
        },
        "limits": dict(statement.limits),
        "predecessors": list(statement.predecessors),
    }


def _machine(statement: Statement) -> str:
    note = ", SIMULATED: it protects nothing" if statement.tee.startswith("sim") else ""
    gpus = statement.limits.get("gpus")
    return f"{statement.tee}{note}" + (f", {gpus} GPUs, which the key server verified" if gpus else "")


def _mounts(mounts: Sequence[Any]) -> str:
    return (
        ", ".join(
            f"{mount.source} ({mount.files} files, key {mount.key} v{mount.version} of {mount.owner or 'NOBODY'})"
            for mount in mounts
        )
        or "none"
    )


def _approvals(keys: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"approval {item['approval']} revision {item['revision']} for {item['key']}" for item in keys)


def _vouched(each: Any) -> dict[str, Any]:
    return {
        "owner": each.owner,
        "ca_sha256": each.ca_sha256,
        "granted_at": _moment(each.granted_at),
        "signed_at": _moment(each.signed_at),
        "keys": [dict(item) for item in each.keys],
        "verdict": dict(each.verdict),
    }


def _moment(at: datetime | None) -> str | None:
    return None if at is None else at.strftime("%Y-%m-%dT%H:%M:%SZ")
