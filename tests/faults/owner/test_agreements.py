"""What a hostile co-owner hides in an agreement or its program: nobody signs it unless she named it."""

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


@pytest.mark.parametrize(
    ("opens", "name"),
    [
        ("insecure__stdio = true", "output-in-clear"),
        ("insecure__stdin = true", "input-from-host"),
        ('network = "host"', "network-of-host"),
        ("insecure__ra_tls = true", "unsigned-grants"),
    ],
)
def test_what_a_program_opens_is_named_or_not_signed(owners: TwoOwners, run: Run, opens: str, name: str) -> None:
    """A way out of the program is more than a note where the data of others may leave by it."""
    owners.program(adyton=opens)
    hospital, _ = homes(owners)
    run("agreement", "draft", "study.manifest", "-o", "study.toml", *hospital)
    status, _, err = run("agreement", "sign", "study.toml", *hospital)
    assert status == 2
    assert name in err
    assert not Path("study.hospital.sig").exists()
    status, _, err = run("agreement", "sign", "study.toml", "--allow", "no-such-finding", *hospital)
    assert status == 2
    status, out, err = run("agreement", "sign", "study.toml", "--allow", name, *hospital)
    assert status == 0, err
    assert f"named: {name}" in out


def test_agreement_that_hides_a_key_or_a_ca_is_not_signed(owners: TwoOwners, run: Run) -> None:
    """Manifest and agreement are compared: whose CA is pinned for which key, and who reads what is written."""
    owners.program()
    hospital, vendor = homes(owners)
    run("agreement", "draft", "study.manifest", "-o", "study.toml", *hospital)
    text = Path("study.toml").read_text()
    for changed, check in (
        (text.replace('inputs = ["model"]', "inputs = []"), "CA of key model"),
        (text.replace('receives = ["results"]', 'receives = ["results", "model"]').replace('["model"]', "[]", 1), "CA"),
        (text.replace('inputs = ["patients"]\nreceives = ["results"]', 'inputs = ["patients", "results"]'), "outputs"),
        (text.replace('["model"]', '["model", "another"]'), "key another"),
        (text.replace("[parties.vendor]", f'[parties.third]\nowner = "{"ab" * 32}"\n[parties.vendor]'), "CA of party"),
    ):
        assert changed != text
        Path("other.toml").write_text(changed)
        status, _, err = run("agreement", "sign", "other.toml", *hospital)
        assert (status, check in err) == (2, True), err
    owners.program(patients="vendor")  # the same names, and another CA behind one of them
    status, _, err = run("agreement", "sign", "study.toml", "--manifest", "study.manifest", *hospital)
    assert status == 2
    assert "program of the agreement" in err
    assert "CA of key patients" in err
    status, _, err = run("agreement", "sign", "study.toml", "--manifest", "study.manifest", *vendor)
    assert status == 2
