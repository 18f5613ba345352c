"""Gramine's own secret provisioning in a template: taken out and said, or refused with what to write instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from adyton.errors import MalformedManifest
from adyton.manifest.finalize import Built, finish

TEMPLATE = """
libos.entrypoint = "/app"
fs.mounts = [{ type = "encrypted", path = "/data", uri = "file:data/" }]
[loader.env]
A = "1"
"""
AS_GRAMINE_SAYS = """
LD_PRELOAD = "libsecret_prov_attest.so"
SECRET_PROVISION_CONSTRUCTOR = "1"
SECRET_PROVISION_SET_KEY = "default"
SECRET_PROVISION_CA_CHAIN_PATH = "/ca.crt"
SECRET_PROVISION_SERVERS = "dummy:80;localhost:4433"
"""


def build(variables: str, more: str = "") -> Built:
    """The final manifest of the template with these variables."""
    return finish(TEMPLATE + variables + more, Path("/"))


def test_provisioning_of_a_gramine_template_is_taken_out_and_said() -> None:
    """What would end the program is gone; the servers stay, for SGX; the notes name everything."""
    built = build(AS_GRAMINE_SAYS)
    assert built.manifest.env == {"A": "1", "SECRET_PROVISION_SERVERS": "dummy:80;localhost:4433"}
    assert "libsecret_prov_attest.so in LD_PRELOAD" in built.notes[0]
    for name in ("CONSTRUCTOR", "SET_KEY", "CA_CHAIN_PATH"):
        assert f"SECRET_PROVISION_{name}" in built.notes[0]
    assert built.notes[1].startswith("SECRET_PROVISION_SERVERS has no meaning under Adyton's runtime")


@pytest.mark.parametrize(
    ("preload", "kept"),
    [
        ("/usr/lib/libomp.so /lib/libsecret_prov_attest.so", "/usr/lib/libomp.so"),
        ("libsecret_prov_attest.so:a.so:b.so", "a.so:b.so"),
        ("not_libsecret_prov_attest.so", "not_libsecret_prov_attest.so"),
    ],
)
def test_provisioning_leaves_other_preloaded_libraries(preload: str, kept: str) -> None:
    """Names are between colons or blanks, with or without a folder."""
    variables = AS_GRAMINE_SAYS.replace('"libsecret_prov_attest.so"', f'"{preload}"')
    assert build(variables).manifest.env["LD_PRELOAD"] == kept


@pytest.mark.parametrize("constructor", ['"true"', '{ value = "TRUE" }', "{ passthrough = true }"])
def test_provisioning_is_found_however_it_is_switched_on(constructor: str) -> None:
    """As a table, from the host, and with the old name of the key's variable."""
    variables = AS_GRAMINE_SAYS.replace('CONSTRUCTOR = "1"', f"CONSTRUCTOR = {constructor}")
    built = build(variables.replace('SET_KEY = "default"', 'SET_PF_KEY = "1"'))
    assert set(built.manifest.env) == {"A", "SECRET_PROVISION_SERVERS"}
    assert built.manifest.env_passthrough == ()


@pytest.mark.parametrize("constructor", ["", 'SECRET_PROVISION_CONSTRUCTOR = "yes"'])
def test_program_that_calls_the_library_by_itself_keeps_its_settings(constructor: str) -> None:
    """Nothing is provisioned before its start, so nothing is taken away."""
    variables = AS_GRAMINE_SAYS.replace('SECRET_PROVISION_CONSTRUCTOR = "1"', constructor)
    built = build(variables)
    assert built.notes == ()
    assert built.manifest.env["LD_PRELOAD"] == "libsecret_prov_attest.so"


def test_provisioning_of_a_text_is_refused_with_what_brings_it() -> None:
    """Without a key's name the program waits for a text, which only a secret of the manifest can bring."""
    variables = AS_GRAMINE_SAYS.replace('SECRET_PROVISION_SET_KEY = "default"', "")
    with pytest.raises(MalformedManifest, match="SECRET_PROVISION_SECRET_STRING") as refused:
        build(variables)
    assert '[adyton.secrets.NAME] env = "SECRET_PROVISION_SECRET_STRING"' in (refused.value.remedy or "")
    built = build(variables, '[adyton.secrets.text]\nenv = "SECRET_PROVISION_SECRET_STRING"\n')
    assert "SECRET_PROVISION_CONSTRUCTOR" not in built.manifest.env
