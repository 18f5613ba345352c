"""`adyton agreement`, as two owners type it: draft, sign, show, approve, list, revoke."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from adyton.cli import main as command_line
from tests.support.two_owners import TwoOwners, two_owners

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def owners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TwoOwners]:
    """A hospital and a vendor. The commands run in the folder of their mail."""
    with two_owners(tmp_path) as found:
        monkeypatch.chdir(found.folder)
        yield found


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a verb: exit status, standard output, standard error."""

    def call(*args: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            command_line.main([str(arg) for arg in args])
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out, shown.err

    return call


def homes(owners: TwoOwners) -> tuple[tuple[str, Path], tuple[str, Path]]:
    """The option that names each home: the hospital's, the vendor's."""
    return ("--home", owners.hospital.home.path), ("--home", owners.vendor.home.path)


def test_two_owners_agree_and_one_of_them_ends_it(owners: TwoOwners, run: Run) -> None:
    """Every verb says what a person needs next."""
    owners.program()
    hospital, vendor = homes(owners)
    status, out, err = run("agreement", "draft", "study.manifest", "-o", "study.toml", "--runs", 3, *hospital)
    assert status == 0, err
    agreement = out.partition(":")[0]
    assert "hospital: not signed" in out
    assert "brings patients; receives results" in out
    assert "at most 3 runs" in out
    status, out, err = run("agreement", "sign", "study.toml", *hospital)
    assert status == 0, err
    assert "hospital: signed" in out
    assert "compare it with her by telephone" in err
    assert "key results: the program writes under it, and hospital reads that" in err
    status, out, err = run("agreement", "sign", "study.toml", *vendor)
    assert (status, "manifest-unknown" in err) == (2, True)
    assert "--manifest" in err
    status, out, err = run("agreement", "sign", "study.toml", "--manifest", "study.manifest", *vendor)
    assert status == 0, err
    status, out, err = run("agreement", "show", "study.toml")
    assert status == 0, err
    assert "vendor: signed" in out
    words = ("--key", "model", "--tee", owners.hospital.tee, "--agreement", "study.toml")
    status, out, err = run("approve", "study.manifest", *words, *vendor)
    assert status == 0, err
    assert f"start its runs with --agreement {agreement}" in out
    status, out, err = run("agreement", "list", *vendor)
    assert "0 of 3 runs" in out
    assert "complete" in out
    status, out, err = run("agreement", "revoke", agreement, *vendor)
    assert (status, out.startswith(f"revoked {agreement}")) == (0, True)
    status, out, err = run("agreement", "list", *vendor)
    assert "revoked" in out
    status, out, err = run("audit", "list", "--kind", "agreement", *vendor)
    assert "Ended an agreement: study" in out


def test_signature_that_does_not_hold_is_shown_and_counts_for_nothing(owners: TwoOwners, run: Run) -> None:
    """Whoever changes the text afterwards has another agreement."""
    owners.program()
    hospital, _ = homes(owners)
    run("agreement", "draft", "study.manifest", "-o", "study.toml", *hospital)
    run("agreement", "sign", "study.toml", *hospital)
    text = Path("study.toml").read_text()
    Path("study.toml").write_text(text.replace("runs = 10", "runs = 99"))
    status, out, _ = run("agreement", "show", "study.toml")
    assert status == 0
    assert "hospital: a signature that does not hold" in out


def test_only_a_party_signs(owners: TwoOwners, run: Run, tmp_path: Path) -> None:
    """And she signs nothing that is over."""
    owners.program()
    hospital, _ = homes(owners)
    run("agreement", "draft", "study.manifest", "-o", "study.toml", *hospital)
    assert run("init", "--name", "stranger", "--home", tmp_path / "stranger")[0] == 0
    status, _, err = run("agreement", "sign", "study.toml", "--home", tmp_path / "stranger")
    assert (status, "is no party of agreement" in err) == (2, True)
    text = Path("study.toml").read_text()
    Path("old.toml").write_text(
        "\n".join("until = 2020-01-01" if "until" in line else line for line in text.split("\n"))
    )
    status, _, err = run("agreement", "sign", "old.toml", *hospital)
    assert (status, "is over" in err) == (2, True)


def test_draft_never_replaces_a_file_and_needs_two_owners(owners: TwoOwners, run: Run) -> None:
    """What others signed stays as it is."""
    owners.program()
    hospital, _ = homes(owners)
    run("agreement", "draft", "study.manifest", "-o", "study.toml", *hospital)
    status, _, err = run("agreement", "draft", "study.manifest", "-o", "study.toml", *hospital)
    assert status == 86, err


def test_agreement_carries_nothing_under_sgx(owners: TwoOwners, run: Run) -> None:
    """There no keeper stands beside the program: refused when it is approved, with what to do instead."""
    manifest = owners.program()
    file, _ = owners.agree(manifest)
    hospital, _ = homes(owners)
    words = ("--key", "patients", "--agreement", file, *hospital)
    status, _, err = run("approve", manifest, "--tee", "sgx", "--protocol", "ra-tls", *words)
    assert status == 2
    assert "tdx, snp" in err
    status, _, err = run("approve", manifest, "--tee", owners.hospital.tee, "--protocol", "ra-tls", *words)
    assert status == 2
    assert "no place for them" in err or "unsigned" in err or "no-freshness" in err
    status, _, err = run("run", manifest, "--tee", "sgx", "--agreement", "ag-" + "0" * 32)
    assert status == 2
    assert "under sgx" in err
