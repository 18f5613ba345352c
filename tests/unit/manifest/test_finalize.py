"""The final manifest: deterministic, complete, and the owner pinned in it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from adyton.errors import MalformedManifest, ManifestError
from adyton.manifest.finalize import finish
from adyton.manifest.host import host_facts, multiarch_libdir
from adyton.manifest.model import parse_manifest
from adyton.manifest.template import render

CA = (Path(__file__).parents[2] / "support" / "owner-ca.pem").read_text()
TEMPLATE = """
libos.entrypoint = "/app"
fs.mounts = [{ path = "/app", uri = "file:app" }]
sgx.trusted_files = ["file:app", "file:lib/"]
"""
ENCRYPTED = TEMPLATE.replace(
    "fs.mounts = [", 'fs.mounts = [{ type = "encrypted", path = "/d", uri = "file:d", key_name = "k" },'
)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A program and a folder of libraries."""
    (tmp_path / "lib").mkdir()
    for name in ("app", "lib/b", "lib/a"):
        (tmp_path / name).write_text(name)
    (tmp_path / "app").chmod(0o755)
    (tmp_path / "two.crt").write_text(f"{CA}words\n{CA}")
    return tmp_path


def test_final_manifest_of_the_same_inputs_is_the_same_bytes(place: Path) -> None:
    """Neither times nor the order in which a folder lists its files count."""
    first = finish(TEMPLATE, place).manifest_bytes
    for name in ("lib/b", "lib/a", "app"):
        os.utime(place / name, (1, 1))
    (place / "lib" / "b").unlink()
    (place / "lib" / "b").write_text("lib/b")
    assert finish(TEMPLATE, place).manifest_bytes == first


def test_final_manifest_is_a_fixed_point(place: Path) -> None:
    """What is final reads back as it was written, and names every file with size and mode."""
    built = finish(TEMPLATE, place)
    manifest = parse_manifest(built.manifest_bytes.decode())
    assert manifest == built.manifest
    assert manifest.is_final
    assert [(entry.uri, entry.size_bytes, entry.executable) for entry in manifest.trusted_files] == [
        ("file:app", 3, True),
        ("file:lib/a", 5, False),
        ("file:lib/b", 5, False),
    ]


def test_final_manifest_without_trusted_files_is_final(tmp_path: Path) -> None:
    """A program may come from an encrypted mount alone."""
    built = finish(ENCRYPTED.replace('"file:app", "file:lib/"', ""), tmp_path)
    assert built.manifest.trusted_files == ()
    assert built.manifest.is_final


def test_final_manifest_writes_out_the_defaults_it_rests_on(place: Path) -> None:
    """Whoever reads it need not know the defaults; sizes that matter to SGX alone stay open."""
    text = finish(ENCRYPTED, place, name="prog").manifest_bytes.decode()
    for line in (
        'network = "none"',
        "insecure__stdio = false",
        "insecure__stdin = false",
        'memory_budget = "4G"',
        'uri = "file:prog.log"',
        'key_name = "k"',
        'file_check_policy = "strict"',
        "debug = false",
    ):
        assert line in text
    assert "enclave_size" not in text


def test_final_manifest_takes_files_from_lists(place: Path) -> None:
    """Lists of files are read by build, comments and empty lines left out."""
    (place / "app.trusted").write_text("# files\nlib/b\n\n  lib/a  \n./lib/\n")
    text = TEMPLATE.replace('["file:app", "file:lib/"]', '["file:app"]') + "adyton.trusted_from = ['file:app.trusted']"
    assert not parse_manifest(text).is_final
    built = finish(text, place)
    assert [entry.uri for entry in built.manifest.trusted_files] == ["file:app", "file:lib/b", "file:lib/a"]
    assert "trusted_from" not in built.manifest_bytes.decode()
    (place / "app.trusted").unlink()
    with pytest.raises(ManifestError, match=r"app\.trusted"):
        finish(text, place)


def test_final_manifest_pins_the_owners_ca(place: Path) -> None:
    """The file is put in its place, whatever stands around the certificate in it."""
    (place / "ca.crt").write_text("some words before\n" + CA.replace("\n", "\r\n") + "and after\n")
    text = ENCRYPTED + 'adyton.owners.me.ca_file = "file:ca.crt"'
    built = finish(text, place)
    owner = built.manifest.owner_of("k")
    assert owner is not None
    assert (owner.name, owner.ca, owner.server_name) == ("me", CA, "adyton-key-server")
    assert "ca_file" not in built.manifest_bytes.decode()
    (place / "ca.crt").write_text(CA)
    assert finish(text, place).manifest_bytes == built.manifest_bytes


def test_final_manifest_takes_the_home_ca_where_no_owner_is_named(place: Path) -> None:
    """The owner who builds is the owner, unless the template names others."""
    built = finish(ENCRYPTED, place, default_ca=CA)
    assert [(owner.name, owner.ca) for owner in built.manifest.adyton.owners] == [("owner", CA)]
    text = ENCRYPTED + f'adyton.owners.me.ca = """{CA}"""'
    assert [owner.name for owner in finish(text, place, default_ca=CA).manifest.adyton.owners] == ["me"]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('adyton.owners.me.server_name = "x"', "names no CA"),
        (f'adyton.owners.me.ca = """{CA}"""\nadyton.owners.me.ca_file = "file:y"', "both"),
        ('adyton.owners.me.ca_file = "y"', "unsupported URI"),
        ('adyton.owners.me.ca_file = "file:nothing"', "cannot be read"),
        ('adyton.owners.me.ca_file = "file:app"', "not one PEM certificate"),
        (f'adyton.owners.me.ca = """{CA}{CA}"""', "not one PEM certificate"),
        ('adyton.owners.me.ca_file = "file:two.crt"', "not one PEM certificate"),
        ('adyton.files = "1"', "does not fit"),
        ('adyton.trusted_from = ["x"]', "unsupported URI"),
    ],
)
def test_template_with_a_wrong_owner_or_list_is_refused(place: Path, text: str, match: str) -> None:
    """A CA that is missing, doubled, or no certificate never reaches the manifest."""
    with pytest.raises(ManifestError, match=match):
        finish(ENCRYPTED + text, place)


def test_template_with_facts_of_its_own_is_refused(place: Path) -> None:
    """Sizes are measured, never believed."""
    with pytest.raises(MalformedManifest, match=r"adyton\.files"):
        finish(TEMPLATE.replace(', "file:lib/"', "") + 'adyton.files = "3"', place)


def test_template_that_is_not_toml_is_refused_with_its_line(place: Path) -> None:
    """The rendered line is shown."""
    with pytest.raises(MalformedManifest, match="not TOML"):
        finish("a = [", place)


RUNTIME = """
libos.entrypoint = "/app"
loader.env.LD_LIBRARY_PATH = "{{ gramine.runtimedir() }}"
fs.mounts = [{ path = "/lib", uri = "file:{{ gramine.runtimedir() }}" }]
sgx.trusted_files = ["file:app", "file:{{ gramine.runtimedir() }}/" more]
"""


def test_runtime_folder_of_gramine_becomes_the_c_library(place: Path) -> None:
    """A Gramine user's template, without Gramine: the plain folder everywhere, of its files the C library alone."""
    here = host_facts(None)
    folder = str(multiarch_libdir())
    built = finish(render(RUNTIME.replace("more", ""), facts=here), place).manifest
    names = {Path(entry.host_path).name for entry in built.trusted_files}
    assert built.mounts[0].uri == f"file:{folder}"
    assert built.env["LD_LIBRARY_PATH"] == folder
    assert {"app", "libc.so.6", "libm.so.6"} <= names
    assert any(name.startswith("ld-linux") for name in names)
    assert len(names) < 30
    assert all(entry.host_path.startswith(f"{folder}/lib") or entry.uri == "file:app" or "ld-linux" in entry.uri
               for entry in built.trusted_files)  # fmt: skip


def test_library_folder_listed_by_its_own_name_is_taken_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who lists the system's folder means all of it, whether or not the runtime folder is listed too."""
    folder = tmp_path / "libraries"
    folder.mkdir()
    for name in ("libc.so.6", "libother.so.1"):
        (folder / name).write_text(name)
    (tmp_path / "app").write_text("app")
    for module in ("host", "finalize"):
        monkeypatch.setattr(f"adyton.manifest.{module}.multiarch_libdir", lambda: folder)
    here = host_facts(None)

    def of(more: str) -> list[str]:
        built = finish(render(RUNTIME.replace("more", more), facts=here), tmp_path)
        return [Path(entry.host_path).name for entry in built.manifest.trusted_files]

    assert of("") == ["app", "libc.so.6"]
    assert of(f', "file:{folder}/"') == ["app", "libc.so.6", "libother.so.1"]
    text = RUNTIME.replace('"file:{{ gramine.runtimedir() }}/" more', f'"file:{folder}/"')
    assert len(finish(render(text, facts=here), tmp_path).manifest.trusted_files) == 3


def test_program_with_gpus_has_the_drivers_libraries_as_trusted_files(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of this machine, each measured. Without a driver there are none, and without GPUs nobody looks."""
    libraries = place / "system"
    libraries.mkdir()
    monkeypatch.setattr("adyton.manifest.finalize.multiarch_libdir", lambda: libraries)
    with_gpu = TEMPLATE + "adyton.gpus = 1\n"
    assert "libnvidia" not in finish(with_gpu, place).manifest_bytes.decode()
    for name in ("libnvidia-gpucomp.so.570.1", "libnvidia-ml.so.1", "libcuda.so.570.1", "other.so"):
        (libraries / name).write_text(name)
    assert "libnvidia" not in finish(with_gpu, place).manifest_bytes.decode()  # not without libcuda.so.1
    (libraries / "libcuda.so.1").symlink_to("libcuda.so.570.1")
    built = finish(with_gpu, place)
    names = [entry.uri.rpartition("/")[2] for entry in built.manifest.trusted_files if "system" in entry.uri]
    assert names == ["libcuda.so.1", "libnvidia-ml.so.1", "libnvidia-gpucomp.so.570.1"]
    (libraries / "libnvidia-ml.so.1").write_text("another version")
    assert finish(with_gpu, place).manifest_bytes != built.manifest_bytes
    assert "libcuda" not in finish(TEMPLATE, place).manifest_bytes.decode()
