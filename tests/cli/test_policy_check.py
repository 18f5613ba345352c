"""`adyton policy check` and `sign-hosts`, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from adyton.cli.main import main


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str]:
    """Exit code, and what was said on both streams."""
    with pytest.raises(SystemExit) as ended:
        main(["policy", *map(str, words)])
    shown = capsys.readouterr()
    return int(ended.value.code or 0), shown.out + shown.err


def test_policy_check_says_what_is_open_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Text and JSON say the same; the worst comes first; an open policy is no error."""
    policy = tmp_path / "policy.toml"
    policy.write_text('tees = ["tdx"]\nmeasurements = ["' + "11" * 48 + '"]\nallow_debug = true\n')
    code, text = run(capsys, "check", policy)
    assert code == 0
    assert text.index("critical  allow_debug") < text.index("high      hosts") < text.index("low       tdx.pck")
    assert "no evidence excludes: " in text
    assert "TEE.fail (physical)" in text
    code, text = run(capsys, "check", policy, "--json")
    document = json.loads(text)
    assert code == 0
    assert document["accepts_nothing"] is False
    assert document["open"][0]["danger"] == "critical"
    assert document["counts"]["critical"] == 2
    policy.write_text("")
    assert "accepts nothing" in run(capsys, "check", policy)[1]


def test_policy_check_of_what_is_no_policy_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The line is named."""
    (tmp_path / "policy.toml").write_text('profile = "lax"\n')
    code, text = run(capsys, "check", tmp_path / "policy.toml")
    assert code == 2
    assert "strict-2026" in text
    assert run(capsys, "check", tmp_path / "absent.toml")[0] == 114


def _pem(key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def test_signed_list_of_hosts_is_what_a_policy_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A list in TOML is signed, the line for the policy is printed, and the policy takes the file."""
    (tmp_path / "hosts.toml").write_text(
        f'until = 2027-01-31\n[[ppids]]\nid = "{"ab" * 16}"\nuntil = 2027-01-31T12:00:00Z\nnote = "rack 4"\n'
    )
    key = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(31) + b"\1")
    (tmp_path / "key.pem").write_bytes(_pem(key))
    signed = tmp_path / "hosts.json"
    code, text = run(capsys, "sign-hosts", tmp_path / "hosts.toml", "--key", tmp_path / "key.pem", "-o", signed)
    assert code == 0
    line = text[text.index("[[") :].replace("]] ", "]]\n")
    policy = tmp_path / "policy.toml"
    policy.write_text('tees = ["sgx"]\nany_program = true\n' + line)
    code, text = run(capsys, "check", policy, "--hosts", signed)
    assert code == 0
    assert "hosts" not in [item.split()[1] for item in text.splitlines() if not item.startswith(" ")]
    code, text = run(capsys, "check", policy)
    assert code == 2
    assert "--hosts FILE" in text


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("until = 2027-01-31\n", "chip_ids"),
        ('[[ppids]]\nid = "' + "ab" * 16 + '"\nuntil = 2027-01-31\n', "until"),
        ('until = 2027-01-31\n[[ppids]]\nid = "ab"\nuntil = 2027-01-31\n', "32 hex digits"),
        ("until = 2027-01-31\nnosuch = 1\n", "nosuch"),
    ],
)
def test_list_that_is_none_is_not_signed(
    text: str, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The list is read before it is signed."""
    (tmp_path / "hosts.toml").write_text(text)
    (tmp_path / "key.pem").write_bytes(_pem(ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32))))
    words = ("sign-hosts", tmp_path / "hosts.toml", "--key", tmp_path / "key.pem", "-o", tmp_path / "out")
    code, shown = run(capsys, *words)
    assert code == 2
    assert named in shown
    assert not (tmp_path / "out").exists()


def test_key_of_another_kind_signs_no_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only Ed25519, and the refusal says how to make one."""
    (tmp_path / "hosts.toml").write_text(f'until = 2027-01-31\n[[ppids]]\nid = "{"ab" * 16}"\nuntil = 2027-01-31\n')
    for raw in (_pem(ec.derive_private_key(5, ec.SECP256R1())), b"no key"):
        (tmp_path / "key.pem").write_bytes(raw)
        words = ("sign-hosts", tmp_path / "hosts.toml", "--key", tmp_path / "key.pem", "-o", tmp_path / "out")
        code, shown = run(capsys, *words)
        assert code == 2
        assert "openssl genpkey" in shown
