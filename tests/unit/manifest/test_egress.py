"""`[[adyton.egress]]`: what is read, what is refused by name, and what the owner sees."""

from __future__ import annotations

from pathlib import Path

import pytest

from adyton.errors import MalformedManifest, ManifestError
from adyton.manifest.explain import explain_manifest
from adyton.manifest.finalize import finish
from adyton.manifest.findings import Danger, check_tee, findings, not_covered
from adyton.manifest.model import parse_manifest
from adyton.manifest.pinned_ca import ca_sha256

CA = (Path(__file__).parents[2] / "support" / "owner-ca.pem").read_text()
LEAST = 'libos.entrypoint = "/app"\nfs.mounts = []\n'
PLAIN = '[[adyton.egress]]\nhost = "db.example"\nport = 5432\nplain = true\n'
TLS = f'[[adyton.egress]]\nhost = "api.example"\nport = 443\nca = """{CA}"""\n'


def test_what_is_read() -> None:
    """Both kinds, the defaults, and an address that has a name of its own inside."""
    plain, tls = parse_manifest(LEAST + PLAIN + TLS).adyton.egress
    assert (plain.name, plain.host, plain.port, plain.ca, plain.max_connections) == (
        "db.example",
        "db.example",
        5432,
        None,
        64,
    )
    assert tls.ca is not None
    assert tls.identity == f"api.example:443 @ {ca_sha256(CA)}"
    (named,) = parse_manifest(LEAST + PLAIN.replace("db.example", "2001:db8::1") + 'name = "db"\n').adyton.egress
    assert (named.name, named.address) == ("db", "[2001:db8::1]:5432")
    assert parse_manifest(LEAST).adyton.egress == ()


WRONG = {
    PLAIN.replace("db.example", "DB.example"): "adyton.egress[0].host",
    PLAIN.replace("db.example", "a b"): "adyton.egress[0].host",
    PLAIN.replace("db.example", "db.example."): "adyton.egress[0].host",
    PLAIN.replace("db.example", "x" * 64): "adyton.egress[0].host",
    PLAIN.replace("db.example", "x.\\n127.0.0.1 y"): "adyton.egress[0].host",
    PLAIN.replace("db.example", "fe80::1%lo"): "adyton.egress[0].host",
    PLAIN.replace("db.example", "10.0.0.1"): "adyton.egress[0].name",
    PLAIN.replace("db.example", "localhost"): "adyton.egress[0].name",
    PLAIN + 'name = "10.0.0.1"\n': "adyton.egress[0].name",
    PLAIN + 'name = "a\\tb"\n': "adyton.egress[0].name",
    PLAIN + "max_connections = 0\n": "adyton.egress[0].max_connections",
    PLAIN + "more = 1\n": "adyton.egress[0].more",
    PLAIN.replace("port = 5432\n", ""): "adyton.egress[0].port",
    PLAIN.replace("5432", "0"): "adyton.egress[0].port",
    PLAIN.replace("5432", "70000"): "adyton.egress[0].port",
    PLAIN.replace("plain = true\n", ""): "adyton.egress[0]",
    PLAIN.replace("plain = true\n", "plain = false\n"): "adyton.egress[0]",
    TLS + "plain = true\n": "adyton.egress[0]",
    TLS + 'ca_file = "file:ca.pem"\n': "adyton.egress[0]",
    TLS.replace("BEGIN", "BEGUN"): "adyton.egress[0].ca",
    PLAIN + PLAIN: "adyton.egress",
    'adyton.network = "host"\n' + PLAIN: "adyton.egress",
    "".join(PLAIN.replace("db", f"d{number}") for number in range(17)): "adyton.egress",
}


@pytest.mark.parametrize(("text", "key"), WRONG.items())
def test_wrong_egress_is_refused_by_its_key(text: str, key: str) -> None:
    """Each refusal names the key that is wrong."""
    with pytest.raises(MalformedManifest) as caught:
        parse_manifest(LEAST + text)
    assert caught.value.check == f"manifest key {key}"


def test_owner_sees_each_server() -> None:
    """In clear it exposes her data, and she must name it. With a CA she sees whose. Neither is covered."""
    manifest = parse_manifest(LEAST + PLAIN + TLS)
    found = {item.name: item for item in findings(manifest)}
    clear, tls = found["egress-in-clear=db.example:5432"], found[f"egress=api.example:443 @ {ca_sha256(CA)}"]
    assert (clear.danger, clear.exposes_on(["tdx"])) == (Danger.EXPOSED, True)
    assert (tls.danger, tls.exposes_on(["tdx"])) == (Danger.CONTROLLED, False)
    assert {"what db.example:5432 answers to the program", "what api.example:443 answers to the program"} <= set(
        not_covered(manifest)
    )
    outside = next(section for section in explain_manifest(manifest) if section.title == "outside")
    assert "egress: db.example:5432 inside is db.example:5432, in clear" in outside.lines
    assert any(ca_sha256(CA) in line for line in outside.lines)


def test_build_puts_the_ca_in_the_place_of_its_file(tmp_path: Path) -> None:
    """The final manifest has the certificate, and its text is the canonical one."""
    (tmp_path / "their.pem").write_text(f"a comment\n{CA}")
    text = LEAST + TLS.replace(f'ca = """{CA}"""', 'ca_file = "file:their.pem"')
    assert not parse_manifest(text).is_final
    built = finish(text, tmp_path)
    (one,) = built.manifest.adyton.egress
    assert one.ca == CA
    assert built.manifest.is_final
    assert parse_manifest(built.manifest_bytes.decode()).adyton.egress == (one,)
    with pytest.raises(MalformedManifest, match="URI"):
        finish(text.replace("file:their", "their"), tmp_path)
    with pytest.raises(ManifestError):
        finish(text.replace("their", "no"), tmp_path)


def test_sgx_refuses_it() -> None:
    """Under Gramine nobody could limit it."""
    manifest = parse_manifest(LEAST + PLAIN)
    check_tee(manifest, "tdx")
    with pytest.raises(MalformedManifest, match=r"adyton\.egress is refused under sgx"):
        check_tee(manifest, "sgx")
