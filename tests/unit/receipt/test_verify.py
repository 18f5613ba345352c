"""A receipt holds as it was made, at any time, and nothing else does: each step has a test in which it fails."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from adyton.attest.evidence_policy import Policy
from adyton.attest.roots import TrustRoots
from adyton.errors import (
    AppraisalFailed,
    BadChain,
    Error,
    EvidenceError,
    MalformedQuote,
    Mismatch,
    Stale,
)
from adyton.keystore.certificates import make_audit, make_ca
from adyton.receipt.document import MAX_RECEIPT_BYTES, Receipt, parse_receipt
from adyton.receipt.dsse import Envelope, Signature
from adyton.receipt.statement import canonical, parse_statement
from adyton.receipt.verify import Verified, check_guest, check_manifest, verify_receipt
from adyton.release.run_key import RunKey
from adyton.runtime import receipt_maker
from tests.support.owner_world import now
from tests.support.receipt_world import Made, ReceiptWorld, receipt_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReceiptWorld]:
    """An owner, her key server and her program."""
    with receipt_world(tmp_path_factory.mktemp("receipts")) as made:
        yield made


@pytest.fixture(scope="module")
def made(world: ReceiptWorld) -> Made:
    """A receipt of a run that took one file and made two."""
    taken = [world.protected("data/in", b"input")]
    outputs = [world.protected("data/a", b"first"), world.protected("data/b", bytes(300_000))]
    found = world.make(taken=taken, made=outputs)
    assert not found.notes
    return found


@pytest.fixture(scope="module")
def other(world: ReceiptWorld) -> Made:
    """A receipt of another run of the same program."""
    return world.make(made=[world.protected("data/other", b"other")])


def verify(world: ReceiptWorld, receipt: Receipt | bytes, **changes: Any) -> Verified:
    """Verify as `adyton receipt verify` does, with the collateral in the receipt alone."""
    parsed = parse_receipt(receipt) if isinstance(receipt, bytes) else receipt
    return verify_receipt(parsed, **{"roots": world.roots, "now": datetime.now(UTC), **changes})


def refused(world: ReceiptWorld, receipt: Receipt | bytes, error: type[Error], check: str, **changes: Any) -> None:
    """The receipt must be refused at this step."""
    with pytest.raises(error) as caught:
        verify(world, receipt, **changes)
    assert caught.value.check == check, caught.value.details()


def restated(made: Made, key: RunKey | None = None, **changes: Any) -> Receipt:
    """The receipt with another statement, signed by another run's key, without counter-signatures."""
    key = key or RunKey()
    payload = replace(parse_statement(made.receipt.envelope.payload), run_key=key.public_bytes, **changes).to_bytes()
    envelope = Envelope(payload, (Signature.create(key, payload),))
    return replace(made.receipt, envelope=envelope, counter_signatures=(), collateral={})


# --- what holds ---------------------------------------------------------------------------------------------------


def test_receipt_holds_and_comes_as_it_was_written(world: ReceiptWorld, made: Made) -> None:
    """It says what was taken and made, by whom it was granted, and when by the owner's clock."""
    found = verify(world, made.raw)
    assert made.receipt.to_bytes() == made.raw
    assert [entry.name for _, listed in found.outputs for entry in listed] == ["data/a", "data/b"]
    assert [entry.name for _, listed in found.inputs for entry in listed] == ["data/in"]
    (vouched,) = found.vouched
    assert vouched.granted_at <= vouched.signed_at
    assert vouched.keys[0]["key"] == "weights"
    assert vouched.verdict["submods"]
    assert [subject["name"] for subject in found.statement.subjects] == ["data/a", "data/b"]
    stored = hashlib.sha256((world.folder / "data/a").read_bytes()).hexdigest()
    assert found.statement.subjects[0]["digest"]["sha256"] == stored
    assert "sha256_plaintext" not in found.statement.subjects[0]["digest"]


@pytest.mark.parametrize("years", [-10, 10])
def test_receipt_holds_whatever_the_clock_of_the_verifier_says(world: ReceiptWorld, made: Made, years: int) -> None:
    """Evidence is judged at the times that the owner's server signed: ten years do not change the verdict."""
    moved = datetime.now(UTC) + timedelta(days=365 * years)
    assert verify(world, made.raw, now=moved).statement == verify(world, made.raw).statement


def test_plain_sha256_of_plaintexts_only_where_asked_for(world: ReceiptWorld) -> None:
    """Small plaintexts could be guessed from it."""
    found = verify(world, world.make(made=[world.protected("data/plain", b"plain")], plaintext=True).raw)
    assert found.statement.subjects[0]["digest"]["sha256_plaintext"] == hashlib.sha256(b"plain").hexdigest()


def test_many_outputs_are_one_subject_and_the_statement_stays_small(world: ReceiptWorld) -> None:
    """The statement names the listing of a mount, however many files it has."""
    outputs = [world.protected(f"many/{number:03}", b"x") for number in range(40)]
    made = world.make(made=outputs)
    found = verify(world, made.raw)
    (subject,) = found.statement.subjects
    assert subject["name"] == "data/"
    assert sum(len(listed) for _, listed in found.outputs) == 40
    assert len(made.receipt.envelope.payload) < 4096


def test_run_without_outputs_has_itself_as_subject(world: ReceiptWorld) -> None:
    """An in-toto statement has a subject."""
    found = verify(world, world.make().raw)
    assert found.statement.subjects[0]["name"] == "run"


def test_output_that_was_changed_before_it_was_hashed_makes_no_receipt(world: ReceiptWorld) -> None:
    """The host puts another valid file in its place: its root is not the run's."""
    path, root = world.protected("data/swapped", b"what the run wrote")
    world.protected("data/swapped2", b"other")
    (world.folder / path).unlink()
    world.protected(path, b"what the host had")
    with pytest.raises(Error) as caught:
        world.make(made=[(path, root)])
    assert caught.value.check == "root of the output"


def test_receipt_over_its_length_is_not_made(world: ReceiptWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody would read it. A server's answer that makes it too long is left out."""
    output = world.protected("data/long", b"long")
    plain = len(world.make(made=[output], servers={"alice": "127.0.0.1:1"}).raw)
    monkeypatch.setattr(receipt_maker, "MAX_RECEIPT_BYTES", plain + 100)
    made = world.make(made=[output])
    assert "too long" in made.notes[0]
    assert not made.receipt.counter_signatures
    monkeypatch.setattr(receipt_maker, "MAX_RECEIPT_BYTES", 1000)
    with pytest.raises(Error) as caught:
        world.make(made=[output])
    assert caught.value.check == "length of the receipt"


def test_receipt_is_small_and_quick_to_verify(world: ReceiptWorld, made: Made) -> None:
    """At most 20 KB beside its evidence, and at most 50 ms (the best of ten) with the collateral at hand."""
    document = json.loads(made.raw)
    for name in ("requests", "end", "collateral"):
        del document["adyton"][name]
    assert len(canonical(document)) <= 20_000
    best_s = 1.0
    for _ in range(10):
        began = time.perf_counter()
        verify(world, made.raw)
        best_s = min(best_s, time.perf_counter() - began)
    print(f"{len(canonical(document))} bytes beside the evidence, {len(made.raw)} in all, {best_s * 1000:.1f} ms")
    assert best_s <= 0.05


# --- each step fires ------------------------------------------------------------------------------------------------


def test_without_counter_signature_it_is_refused_unless_told_otherwise(world: ReceiptWorld) -> None:
    """A key server that cannot be reached at the end leaves a receipt that nobody but the host dates."""
    made = world.make(servers={"alice": "127.0.0.1:1"})
    assert "not counter-signed by alice" in made.notes[0]
    refused(world, made.raw, Mismatch, "counter-signature")
    collateral = world.world.collateral.for_quote
    found = verify(world, made.raw, without_counter_signature=True, collateral=collateral)
    assert found.not_vouched == ("alice",)
    assert not found.vouched


def test_signature_of_the_run_is_held_against_the_statement(world: ReceiptWorld, made: Made, other: Made) -> None:
    """Another run's signature, another key's fingerprint, and the other value of s."""
    receipt = made.receipt
    signature, *rest = receipt.envelope.signatures
    for changed in (other.receipt.envelope.signatures[0], replace(signature, keyid="00" * 32)):
        envelope = replace(receipt.envelope, signatures=(changed, *rest))
        refused(world, replace(receipt, envelope=envelope), BadChain, "signature of the run")


def test_evidence_of_another_run_is_refused(world: ReceiptWorld, made: Made, other: Made) -> None:
    """The first evidence binds the run's key, and that at the end the statement: neither serves for another run."""
    refused(world, replace(made.receipt, end=other.receipt.end), AppraisalFailed, "report data")
    refused(world, replace(made.receipt, requests=other.receipt.requests), Mismatch, "run key in the first evidence")
    refused(world, replace(made.receipt, requests=()), Mismatch, "requests beside the statement")
    both = (*made.receipt.requests, *other.receipt.requests)
    refused(world, replace(made.receipt, requests=both), Mismatch, "requests beside the statement")


def test_two_runs_swapped_are_refused(world: ReceiptWorld, made: Made, other: Made) -> None:
    """Everything beside the statement of one run under the statement of the other, and the other way round."""
    for one, two in ((made.receipt, other.receipt), (other.receipt, made.receipt)):
        with pytest.raises(EvidenceError):
            verify(world, replace(one, envelope=two.envelope))
        with pytest.raises(EvidenceError):
            verify(world, replace(one, counter_signatures=two.counter_signatures))
        signatures = (one.envelope.signatures[0], two.envelope.signatures[1])
        with pytest.raises(BadChain) as caught:
            verify(world, replace(one, envelope=replace(one.envelope, signatures=signatures)))
        assert caught.value.check == "signature of the key server"


def test_statement_of_a_key_that_no_evidence_binds_is_refused(world: ReceiptWorld, made: Made) -> None:
    """Whoever makes a key of his own can sign any statement. Evidence does not bind it."""
    collateral = world.world.collateral.for_quote
    refused(
        world,
        restated(made),
        AppraisalFailed,
        "report data",
        without_counter_signature=True,
        collateral=collateral,
    )


def test_listings_are_held_against_the_statement(world: ReceiptWorld, made: Made, other: Made) -> None:
    """One that is missing, and one more than it names."""
    first = next(iter(made.receipt.listings))
    fewer = {name: raw for name, raw in made.receipt.listings.items() if name != first}
    with pytest.raises(Mismatch) as caught:
        verify(world, replace(made.receipt, listings=fewer))
    assert str(caught.value.check).startswith("listing of")
    more = {**made.receipt.listings, **other.receipt.listings}
    refused(world, replace(made.receipt, listings=more), Mismatch, "listings beside the statement")


def test_statement_whose_counts_subjects_or_owners_do_not_agree_is_refused(world: ReceiptWorld, made: Made) -> None:
    """The statement is held against itself before anything is believed of it."""
    statement = parse_statement(made.receipt.envelope.payload)
    (mount,) = statement.outputs
    owner = statement.owners[0]
    for change, check in (
        ({"outputs": (replace(mount, files=3),)}, "number of files of data"),
        ({"subjects": statement.subjects[:1]}, "subjects of the statement"),
        ({"owners": (owner, owner)}, "owners of the statement"),
    ):
        refused(world, restated(made, **change), Mismatch, check)


def test_receipts_of_sgx_are_refused(world: ReceiptWorld, made: Made) -> None:
    """There is no keeper apart from the program."""
    refused(world, restated(made, tee="sgx"), AppraisalFailed, "TEE of the receipt")


def test_owner_who_must_be_there_is_looked_for(world: ReceiptWorld, made: Made) -> None:
    """By the fingerprint of her CA."""
    refused(world, made.raw, Mismatch, "owner of the receipt", owners=[b"another CA"])
    ca = made.receipt.counter_signatures[0].ca
    assert verify(world, made.raw, owners=[ca]).vouched


def test_platform_that_nobody_trusts_is_refused(world: ReceiptWorld, made: Made) -> None:
    """A simulated root counts only where it is named."""
    with pytest.raises(EvidenceError):
        verify(world, made.raw, roots=TrustRoots())


def test_policy_that_names_another_program_is_not_met(world: ReceiptWorld, made: Made) -> None:
    """A policy judges the evidence of a receipt as any other."""
    document = {"tees": [world.world.tee], "workloads": ["00" * 32]}
    with pytest.raises(AppraisalFailed):
        verify(world, made.raw, policy=Policy.from_dict(document))
    named = {**document, "workloads": [world.signed.measurement.hex()], "statuses": ["UpToDate"]}
    assert verify(world, made.raw, policy=Policy.from_dict(named)).statement.measurement


def test_time_after_the_collateral_is_refused_as_stale(world: ReceiptWorld, made: Made) -> None:
    """--at judges evidence at another time than the signed one."""
    with pytest.raises(Stale):
        verify(world, made.raw, at=datetime.now(UTC) + timedelta(days=3650))


def test_collateral_that_the_counter_signature_names_must_be_there(world: ReceiptWorld, made: Made) -> None:
    """Nobody can put another in its place."""
    refused(world, replace(made.receipt, collateral={}), Mismatch, "collateral beside the statement")


def _der(pem: bytes) -> bytes:
    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


def _signed(receipt: Receipt, **changes: Any) -> Receipt:
    (signed,) = receipt.counter_signatures
    return replace(receipt, counter_signatures=(replace(signed, **changes),))


def test_counter_signature_is_held_against_everything(world: ReceiptWorld, made: Made, other: Made) -> None:
    """Its CA, its certificate, its entry, its place in the record, and whom it names."""
    receipt = made.receipt
    (signed,) = receipt.counter_signatures
    body = json.loads(signed.body)
    ca = make_ca("mallory", now())
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    foreign = x509.load_pem_x509_certificate(make_audit(ca, "mallory", now()).certificate_pem).public_bytes(
        Encoding.DER
    )
    server = x509.load_pem_x509_certificate((world.world.home.path / "server.crt").read_bytes())
    steps: list[tuple[dict[str, Any], type[Error], str]] = [
        ({"owner": "bob"}, Mismatch, "owner of the counter-signature"),
        ({"ca": foreign}, BadChain, "CA of the counter-signature"),
        ({"certificate": foreign}, BadChain, "certificate of the counter-signature"),
        ({"certificate": b"none"}, BadChain, "certificate of the counter-signature"),
        ({"certificate": server}, BadChain, "certificate of the counter-signature"),
        ({"previous": bytes(32)}, Mismatch, "entry of the counter-signature"),
        ({"at_ms": signed.at_ms + 1}, Mismatch, "entry of the counter-signature"),
        ({"at_ms": 1}, Stale, "validity of the audit key's certificate"),
        ({"seq": signed.seq + 1}, Mismatch, "entry of the counter-signature"),
        ({"body": canonical({**body, "grant": "g-x"}).decode()}, Mismatch, "entry of the counter-signature"),
        ({"checkpoint": {**signed.checkpoint, "at_ms": 5}}, BadChain, "checkpoint of the counter-signature"),
        ({"checkpoint": {}}, BadChain, "checkpoint of the counter-signature"),
    ]
    for change, error, check in steps:
        refused(world, _signed(receipt, **change), error, check)
    twice = replace(
        receipt,
        counter_signatures=(signed, signed),
        envelope=replace(receipt.envelope, signatures=(*receipt.envelope.signatures, receipt.envelope.signatures[1])),
    )
    refused(world, twice, Mismatch, "owner of the counter-signature")
    one = replace(receipt.envelope, signatures=receipt.envelope.signatures[:1])
    refused(world, replace(receipt, envelope=one), Mismatch, "signatures of the envelope")


def test_manifest_is_held_against_the_statement(world: ReceiptWorld, made: Made) -> None:
    """The manifest that ran, and no other."""
    statement = parse_statement(made.receipt.envelope.payload)
    check_manifest(statement, world.signed.manifest_bytes)
    with pytest.raises(Mismatch) as caught:
        check_manifest(statement, world.signed.manifest_bytes + b"\n")
    assert caught.value.check == "manifest"
    other = replace(statement, runtime="00" * 32)
    with pytest.raises(Mismatch) as caught:
        check_manifest(other, world.signed.manifest_bytes)
    assert caught.value.check == "workload measurement of manifest and runtime"


def test_owners_are_those_that_the_manifest_pins(world: ReceiptWorld, made: Made) -> None:
    """A guest that only claims to run the program has the key server of its own, or leaves an owner out."""
    statement = parse_statement(made.receipt.envelope.payload)
    (owner,) = statement.owners
    for owners in ((), (replace(owner, ca_sha256="00" * 32),), (replace(owner, versions={"other": 1}),)):
        with pytest.raises(Mismatch) as caught:
            check_manifest(replace(statement, owners=owners), world.signed.manifest_bytes)
        assert caught.value.check == "owners that the manifest pins"


def test_one_owners_clock_does_not_narrow_the_time_of_anothers(world: ReceiptWorld, made: Made) -> None:
    """A co-owner says that it was signed years ago, or granted years from now: the other one's times stay within."""
    found = verify(world, made.receipt)
    (honest,) = found.vouched
    for years in (-9, 9):
        span = timedelta(days=365 * years)
        liar = replace(honest, granted_at=honest.granted_at + span, signed_at=honest.signed_at + span)
        both = replace(found, vouched=(honest, liar))
        assert both.made_after is not None
        assert both.made_before is not None
        assert both.made_after <= honest.granted_at <= honest.signed_at <= both.made_before
    assert replace(found, vouched=()).made_before is None


# --- mutations ----------------------------------------------------------------------------------------------------


def _claims(found: Verified) -> tuple[object, ...]:
    return found.statement, found.vouched, found.inputs, found.outputs, found.not_vouched


def _leaves(value: object, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _leaves(item, (*path, name))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _leaves(item, (*path, number))
    else:
        yield path


def _mutated(document: Any, path: tuple[Any, ...], random_: random.Random) -> Any:
    """The document with one leaf changed: a byte of it (inside base64 and zlib, too), or another value."""
    changed = json.loads(json.dumps(document))
    holder = changed
    for step in path[:-1]:
        holder = holder[step]
    value = holder[path[-1]]
    if isinstance(value, int):
        holder[path[-1]] = value + random_.choice((-1, 1, 1 << 20))
        return changed
    if random_.random() < 0.4:
        try:
            raw = bytearray(base64.b64decode(value, validate=True))
            raw[random_.randrange(len(raw))] ^= 1 << random_.randrange(8)
            holder[path[-1]] = base64.b64encode(raw).decode()
            return changed
        except (ValueError, IndexError):
            pass
    at = random_.randrange(len(value) + 1)
    letter = random_.choice("aA0/=+Z\u00e9\n \\")
    holder[path[-1]] = random_.choice((value[:at] + letter + value[at + 1 :], value[:at] + value[at + 1 :], ""))
    return changed


def _inner(made: Made) -> dict[str, Any]:
    return json.loads(made.raw)  # type: ignore[no-any-return]


def _check_mutations(world: ReceiptWorld, made: Made, count: int, seed: int) -> dict[str, int]:
    """Change one field or byte, again and again. Returns, by field, how many were refused."""
    random_ = random.Random(seed)
    wanted = _claims(verify(world, made.raw))
    document = _inner(made)
    leaves = list(_leaves(document))
    fields: dict[str, int] = {}
    for number in range(count):
        if number % 4 == 3:  # a byte of the file
            raw = bytearray(made.raw)
            raw[random_.randrange(len(raw))] = random_.randrange(256)
            field, changed = "a byte of the file", bytes(raw)
        else:
            path = leaves[number % len(leaves)]
            field = ".".join(str(step) for step in path if not isinstance(step, int))[:60]
            changed = canonical(_mutated(document, path, random_)) + b"\n"
        try:
            found = _claims(verify(world, changed))
        except EvidenceError:
            fields[field] = fields.get(field, 0) + 1
            continue
        assert found == wanted, field
    return fields


@pytest.mark.filterwarnings("ignore:Parsed a serial number")  # cryptography says so of a changed certificate
def test_changed_receipts_are_refused_or_make_the_same_claims(world: ReceiptWorld, made: Made) -> None:
    """Some hundreds of receipts with one field or byte changed."""
    fields = _check_mutations(world, made, 600, 1)
    assert {"payload", "signatures.sig", "adyton.end.cpu", "a byte of the file"} <= set(fields)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.filterwarnings("ignore:Parsed a serial number")  # cryptography says so of a changed certificate
def test_a_hundred_thousand_changed_receipts_are_refused_or_make_the_same_claims(
    world: ReceiptWorld, made: Made
) -> None:
    """As above, listed by field."""
    fields = _check_mutations(world, made, 100_000, 2)
    print("\n".join(f"{count:7} refused  {field}" for field, count in sorted(fields.items())))


def test_members_of_the_statement_that_are_changed_are_refused(world: ReceiptWorld, made: Made) -> None:
    """Every member of the statement, signed again by a key of the attacker's own: no evidence binds it."""
    statement = json.loads(made.receipt.envelope.payload)
    random_ = random.Random(3)
    collateral = world.world.collateral.for_quote
    key = RunKey()
    for path in _leaves(statement):
        payload = canonical(_mutated(statement, path, random_))
        envelope = Envelope(payload, (Signature.create(key, payload),))
        changed = replace(made.receipt, envelope=envelope, counter_signatures=(), collateral={})
        with pytest.raises(EvidenceError):
            verify(world, changed, without_counter_signature=True, collateral=collateral)


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw[:-1],
        lambda raw: raw + b"\n",
        lambda raw: raw.replace(b'","', b'", "', 1),
        lambda raw: raw.replace(b'{"adyton"', b'{"extra":1,"adyton"', 1),
        lambda raw: raw.replace(b'"format":"adyton-receipt/1"', b'"format":"adyton-receipt/2"', 1),
        lambda raw: raw.replace(b"application/vnd.in-toto+json", b"application/vnd.in-toto+jsom", 1),
        lambda raw: raw.replace(b'"keyid":"', b'"keyid":"0', 1),
        lambda raw: b"[]\n",
        lambda raw: b"{" * 100,
        lambda raw: b" " * (MAX_RECEIPT_BYTES + 1),
        lambda raw: b"\xff",
    ],
)
def test_file_in_another_form_is_refused(made: Made, change: Callable[[bytes], bytes]) -> None:
    """One form only."""
    with pytest.raises(MalformedQuote):
        parse_receipt(change(made.raw))


def test_statement_has_one_form(made: Made) -> None:
    """No other order, no spaces, no unknown member, no other type."""
    payload = made.receipt.envelope.payload
    document = json.loads(payload)
    for changed in (
        json.dumps(document).encode(),
        json.dumps(document, separators=(",", ":"), sort_keys=False).encode(),
        canonical({**document, "extra": 1}),
        canonical({**document, "_type": "https://in-toto.io/Statement/v0.1"}),
        canonical({**document, "predicateType": "https://slsa.dev/provenance/v1"}),
        canonical({**document, "predicate": []}),
        canonical([document]),
        payload.replace(b'"exit_code":0', b'"exit_code":0.0'),
        payload.replace(b'"exit_code":0', b'"exit_code":256'),
        payload.replace(b'"nondeterminism":"not controlled"', b'"nondeterminism":"\\u001b[2J"'),
    ):
        if changed == payload:
            continue
        with pytest.raises(MalformedQuote):
            parse_statement(changed)


@pytest.mark.parametrize("tee", ["tdx", "sim-tdx", "snp", "tpm", "az-snp", "az-tdx", "nitrotpm"])
def test_guest_that_nobody_judged_is_not_believed(world: ReceiptWorld, made: Made, tee: str) -> None:
    """A host can boot a guest of its own in genuine hardware. An enclave's evidence names the program itself."""
    statement = verify(world, made.receipt).statement
    check_guest(statement, is_judged=False)
    with pytest.raises(AppraisalFailed) as caught:
        check_guest(replace(statement, tee=tee), is_judged=False)
    assert caught.value.check == "guest of the run"
    check_guest(replace(statement, tee=tee), is_judged=True)
