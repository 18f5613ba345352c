"""The text of an agreement: parsed strictly, with one canonical form and one id."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adyton.agreement.document import MAX_DOCUMENT_BYTES, Agreement, Program, parse_agreement
from adyton.errors import UsageError
from adyton.values import Digest
from tests.support.agreement_factory import agreement_of

HOSPITAL, VENDOR = Digest(b"h" * 32), Digest(b"v" * 32)
AGREEMENT = agreement_of(HOSPITAL, VENDOR)
BY_SIGNER = replace(AGREEMENT, program=Program(signer=Digest(b"s" * 32), product=1, min_svn=3))
TEXT = AGREEMENT.to_toml()


@pytest.mark.parametrize("agreement", [AGREEMENT, BY_SIGNER])
def test_agreement_that_is_written_is_read_as_it_was(agreement: Agreement) -> None:
    """TOML and plain data both give back the same agreement."""
    assert parse_agreement(agreement.to_toml()) == agreement
    assert Agreement.from_dict(agreement.to_dict()) == agreement


def test_agreement_is_a_short_text() -> None:
    """A person reads it before she signs."""
    assert len([line for line in TEXT.splitlines() if line]) <= 13


def test_id_and_signed_bytes_follow_from_the_meaning_alone() -> None:
    """Comments, order, spaces and the case of digits count for nothing."""
    other = "# a comment\n" + TEXT.replace('"patients"', ' "patients" ').replace(str(HOSPITAL), str(HOSPITAL).upper())
    assert parse_agreement(other).canonical() == AGREEMENT.canonical()
    assert parse_agreement(other).id == AGREEMENT.id


def test_example_of_the_page() -> None:
    """docs/agreements.md shows this agreement with its id."""
    page = (Path(__file__).parents[3] / "docs" / "agreements.md").read_text(encoding="utf-8")
    text = page.partition("```toml\n")[2].partition("```")[0]
    assert parse_agreement(text) == AGREEMENT
    assert f"`{AGREEMENT.id}`" in page


@pytest.mark.parametrize(
    "changed",
    [
        replace(AGREEMENT, name="other"),
        replace(AGREEMENT, runs=21),
        replace(AGREEMENT, until=AGREEMENT.until.replace(day=29)),
        replace(AGREEMENT, parties=tuple(replace(party, receives=()) for party in AGREEMENT.parties)),
        BY_SIGNER,
    ],
)
def test_every_member_changes_the_id(changed: Agreement) -> None:
    """Nothing that is agreed on can be exchanged under the same signatures."""
    assert changed.id != AGREEMENT.id
    assert changed.canonical() != AGREEMENT.canonical()


def _without(name: str) -> str:
    return "\n".join(line for line in TEXT.splitlines() if not line.startswith(name))


@pytest.mark.parametrize(
    ("text", "check"),
    [
        (TEXT + "\nextra = 1\n", "parties.vendor.members of the agreement"),
        ("extra = 1\n" + TEXT, "members of the agreement"),
        (_without("runs"), "members of the agreement"),
        (_without("until"), "members of the agreement"),
        (_without("measurement"), "members of the agreement"),
        (TEXT.replace("agreement/1", "agreement/2"), "format of the agreement"),
        (TEXT.replace("runs = 20", "runs = 0"), "runs of the agreement"),
        (TEXT.replace("runs = 20", "runs = true"), "runs of the agreement"),
        (TEXT.replace("runs = 20", "runs = 1000001"), "runs of the agreement"),
        (TEXT.replace("runs = 20", 'runs = "20"'), "runs of the agreement"),
        (TEXT.replace("2027-06-30", "2027-06-30T10:00:00"), "until of the agreement"),
        (TEXT.replace("2027-06-30", '"soon"'), "until of the agreement"),
        (TEXT.replace('"tumour-study"', '"a b"'), "name of the agreement"),
        (TEXT.replace(str(HOSPITAL), "00"), "parties.hospital.owner of the agreement"),
        (TEXT.replace(str(HOSPITAL), str(VENDOR)), "parties of the agreement"),
        (TEXT.replace('"model"', '"patients"'), "parties of the agreement"),
        (TEXT.replace('["model"]', '["model", "model"]'), "parties.vendor.inputs of the agreement"),
        (TEXT.replace('["model"]', '["../x"]'), "parties.vendor.inputs of the agreement"),
        (TEXT.replace('["model"]', "[1]"), "parties.vendor.inputs of the agreement"),
        (TEXT.replace("parties.vendor", 'parties."a b"'), "parties of the agreement"),
        (TEXT[: TEXT.index("[parties.vendor")], "parties of the agreement"),
        (TEXT.replace("[parties.", "[partys."), "members of the agreement"),
        ("measurement = ", "TOML syntax"),
        ("#" + "x" * MAX_DOCUMENT_BYTES, "size"),
    ],
)
def test_document_that_is_no_agreement_is_refused(text: str, check: str) -> None:
    """Anything unknown, missing, ill-typed or out of range, by its name."""
    with pytest.raises(UsageError) as refused:
        parse_agreement(text)
    assert refused.value.check == check


def test_more_parties_than_anybody_reads_are_refused() -> None:
    """At most eight."""
    document: dict[str, Any] = AGREEMENT.to_dict()
    document["parties"] = {f"p{number}": {"owner": f"{number:064x}"} for number in range(9)}
    with pytest.raises(UsageError) as refused:
        Agreement.from_dict(document)
    assert refused.value.check == "parties of the agreement"
