"""`[[adyton.ingress]]`: what is read, and what is refused by name."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from adyton.errors import MalformedManifest, ManifestError
from adyton.manifest.explain import explain_manifest
from adyton.manifest.finalize import finish
from adyton.manifest.findings import check_tee, findings, not_covered
from adyton.manifest.ingress import ingress_name
from adyton.manifest.model import parse_manifest
from adyton.manifest.pinned_ca import ca_sha256

CA = (Path(__file__).parents[2] / "support" / "owner-ca.pem").read_text()
OF_CA = f'client_ca = """{CA}"""\n'
LEAST = 'libos.entrypoint = "/app"\nfs.mounts = []\n'
API = '[[adyton.ingress]]\nname = "api"\ntarget = "127.0.0.1:8000"\n'


def parsed(text: str) -> object:
    """The ingress of a manifest with this text."""
    return parse_manifest(LEAST + text).adyton.ingress


def test_defaults() -> None:
    """Where only name and target are given."""
    (one,) = parse_manifest(LEAST + API).adyton.ingress
    assert (one.name, one.listen, one.target, one.max_connections) == (
        "api",
        ("0.0.0.0", 8443),
        ("127.0.0.1", 8000),
        1024,
    )
    assert parsed("") == ()


WRONG = {
    API.replace('"api"', '"A"'): "adyton.ingress[0].name",
    API.replace('"api"', '"-a"'): "adyton.ingress[0].name",
    API.replace('"api"', '"a\\n"'): "adyton.ingress[0].name",
    API.replace("127.0.0.1:8000", "10.0.0.1:8000"): "adyton.ingress[0].target",
    API.replace("127.0.0.1:8000", "127.0.0.1:0"): "adyton.ingress[0].target",
    API.replace("127.0.0.1:8000", "unix:/x"): "adyton.ingress[0].target",
    API + 'listen = "nowhere"\n': "adyton.ingress[0].listen",
    API + "max_connections = 0\n": "adyton.ingress[0].max_connections",
    API + OF_CA + 'client_ca_file = "file:ca.pem"\n': "adyton.ingress[0]",
    API + OF_CA + "more = 1\n": "adyton.ingress[0].more",
    API + 'client_policy = ""\n': "adyton.ingress[0].client_policy",
    API + 'client_policy = "x"\nclient_policy_file = "file:x"\n': "adyton.ingress[0]",
    API + OF_CA.replace("BEGIN", "BEGUN"): "adyton.ingress[0].client_ca",
    API + "more = 1\n": "adyton.ingress[0].more",
    API.replace('name = "api"\n', ""): "adyton.ingress[0].name",
    API + API.replace("8000", "8001"): "adyton.ingress",
    API + API.replace("api", "other"): "adyton.ingress",
    'adyton.network = "host"\n' + API: "adyton.ingress",
    "".join(API.replace("api", f"a{n}") + f'listen = "0.0.0.0:{9000 + n}"\n' for n in range(17)): "adyton.ingress",
}


@pytest.mark.parametrize(("text", "key"), WRONG.items())
def test_wrong_ingress_is_refused_by_its_key(text: str, key: str) -> None:
    """Each refusal names the key that is wrong."""
    with pytest.raises(MalformedManifest) as caught:
        parsed(text)
    assert caught.value.check == f"manifest key {key}"


@pytest.mark.parametrize(
    ("program", "name"),
    [("serve", "serve"), ("My.Server_2", "my-server-2"), ("-", "server"), ("a" * 62 + "-b", "a" * 62)],
)
def test_name_for_a_program(program: str, name: str) -> None:
    """It is one that a manifest takes."""
    assert ingress_name(program) == name
    assert parsed(API.replace("api", ingress_name(program)))


def test_owner_sees_that_clients_reach_the_program() -> None:
    """It is a finding, and among what the measurement does not cover."""
    manifest = parse_manifest(LEAST + API)
    assert "clients=api" in {item.name for item in findings(manifest)}
    assert "what clients send through the ingress api" in not_covered(manifest)


def test_clients_of_a_ca(tmp_path: Path) -> None:
    """The owner sees whose CA it is, and `build` puts the certificate in the place of its file."""
    (tmp_path / "clients.pem").write_text(f"a comment\n{CA}")
    text = LEAST + API + 'client_ca_file = "file:clients.pem"\n'
    template = parse_manifest(text)
    assert not template.is_final
    assert findings(template) == ()
    manifest = finish(text, tmp_path).manifest
    assert manifest.is_final
    (one,) = manifest.adyton.ingress
    assert one.client_ca == CA
    assert [item.name for item in findings(manifest)] == [f"clients-of-ca=api @ {ca_sha256(CA)}"]
    lines = next(section for section in explain_manifest(manifest) if section.title == "outside").lines
    assert f"ingress: api, clients with a certificate under the CA {ca_sha256(CA)}" in lines


def test_clients_by_policy(tmp_path: Path) -> None:
    """The owner sees the hash of the policy, and the policy itself where a manifest is explained."""
    (tmp_path / "clients.toml").write_text('tees = ["tdx"]\n')
    text = LEAST + API + 'client_policy_file = "file:clients.toml"\n'
    assert not parse_manifest(text).is_final
    manifest = finish(text, tmp_path).manifest
    assert manifest.is_final
    (one,) = manifest.adyton.ingress
    assert one.client_policy == 'tees = ["tdx"]\n'
    assert one.policy_sha256 == hashlib.sha256(b'tees = ["tdx"]\n').hexdigest()
    assert [item.name for item in findings(manifest)] == [f"clients-by-policy=api @ {one.policy_sha256}"]
    lines = next(section for section in explain_manifest(manifest) if section.title == "outside").lines
    assert '  tees = ["tdx"]' in lines
    (tmp_path / "clients.toml").write_bytes(b"\xff")
    with pytest.raises(ManifestError):
        finish(text, tmp_path)


def test_sgx_refuses_it() -> None:
    """Under Gramine nobody could prove the connections."""
    manifest = parse_manifest(LEAST + API)
    check_tee(manifest, "tdx")
    with pytest.raises(MalformedManifest) as caught:
        check_tee(manifest, "sgx")
    assert caught.value.check == "manifest key adyton.ingress"
    assert caught.value.remedy
