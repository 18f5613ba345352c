"""Warnings in the order of danger, what is not covered, what the runtime refuses, and differences in words."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from adyton.errors import MalformedManifest, UsageError
from adyton.keystore.certificates import make_ca
from adyton.manifest.difference import Difference, differences
from adyton.manifest.explain import explain_layout, explain_manifest, explain_signature
from adyton.manifest.findings import (
    RULES,
    Danger,
    Exposes,
    check_tee,
    finding,
    finding_named,
    findings,
    not_covered,
    pinned_keys,
    runtime_refusals,
    tee_refusals,
)
from adyton.manifest.model import parse_manifest
from adyton.manifest.mrenclave import Area, Layout
from adyton.manifest.pinned_ca import ca_sha256
from adyton.manifest.sigstruct import Attributes, generate_signer, load_signer, sign
from adyton.values import Measurement

CA = (Path(__file__).parents[2] / "support" / "owner-ca.pem").read_text()
LEAST = 'libos.entrypoint = "/app"\nfs.mounts = []\n'
MOUNT = 'libos.entrypoint = "/app"\nfs.mounts = [{ type = "encrypted", path = "/d", uri = "file:d" }]\n'

CAUSES = {
    "sgx.debug = true": ("sgx.debug", Danger.EXPOSED),
    f"fs.insecure__keys.k = '{'0' * 32}'": ("fs.insecure__keys.k", Danger.EXPOSED),
    "adyton.insecure__stdio = true": ("adyton.insecure__stdio", Danger.EXPOSED),
    "sgx.file_check_policy = 'allow_all_but_log'": ("sgx.file_check_policy", Danger.CONTROLLED),
    "loader.insecure__use_cmdline_argv = true": ("loader.insecure__use_cmdline_argv", Danger.CONTROLLED),
    "loader.insecure__use_host_env = true": ("loader.insecure__use_host_env", Danger.CONTROLLED),
    "loader.env.X = { passthrough = true }": ("loader.env.X", Danger.CONTROLLED),
    "sgx.allowed_files = ['file:x']": ("sgx.allowed_files", Danger.CONTROLLED),
    "loader.argv_src_file = 'file:x'": ("loader.argv_src_file", Danger.CONTROLLED),
    "loader.env_src_file = 'file:x'": ("loader.env_src_file", Danger.CONTROLLED),
    "loader.env_src_file = 'file:x'\nsgx.trusted_files = ['file:x']": ("loader.env_src_file", Danger.WEAKENED),
    "adyton.network = 'host'": ("adyton.network", Danger.CONTROLLED),
    "adyton.insecure__stdin = true": ("adyton.insecure__stdin", Danger.CONTROLLED),
    "sys.enable_extra_runtime_domain_names_conf = true": (
        "sys.enable_extra_runtime_domain_names_conf",
        Danger.WEAKENED,
    ),
    "loader.insecure__disable_aslr = true": ("loader.insecure__disable_aslr", Danger.WEAKENED),
    "sys.insecure__allow_eventfd = true": ("sys.insecure__allow_eventfd", Danger.WEAKENED),
    "sys.experimental__enable_flock = true": ("sys.experimental__enable_flock", Danger.WEAKENED),
    "sgx.insecure__allow_memfaults_without_exinfo = true": (
        "sgx.insecure__allow_memfaults_without_exinfo",
        Danger.WEAKENED,
    ),
    "sgx.insecure__rpc_thread_num = 1": ("sgx.insecure__rpc_thread_num", Danger.WEAKENED),
    "adyton.insecure__raw_report_data = true": ("adyton.insecure__raw_report_data", Danger.WEAKENED),
    "adyton.insecure__ra_tls = true": ("adyton.insecure__ra_tls", Danger.WEAKENED),
    "loader.log_level = 'debug'": ("loader.log_level", Danger.WEAKENED),
}


@pytest.mark.parametrize("text", CAUSES)
def test_insecure_key_is_warned_of(text: str) -> None:
    """Each insecure key causes exactly one warning, with what to write instead."""
    found = findings(parse_manifest(LEAST + text))
    assert [(item.key, item.danger) for item in found] == [CAUSES[text]]
    assert found[0].remedy


def test_manifest_that_is_closed_has_no_warnings() -> None:
    """The defaults are the closed ones."""
    assert findings(parse_manifest(LEAST)) == ()
    pinned = MOUNT.replace('uri = "file:d"', 'uri = "file:d", pinned = true')
    assert findings(parse_manifest(pinned + f'adyton.owners.me.ca = """{CA}"""')) == ()


def test_encrypted_mount_without_an_owner_is_warned_of() -> None:
    """Without a pinned server a false one could give its own key."""
    assert [item.key for item in findings(parse_manifest(MOUNT))] == ["adyton.owners", "fs.mounts"]


def test_folder_that_is_written_and_not_pinned_is_named() -> None:
    """Not one that is only read, nor one that is pinned. A pinned one is refused under sgx."""
    owner = f'adyton.owners.me.ca = """{CA}"""'
    (found,) = findings(parse_manifest(MOUNT + owner))
    assert (found.name, found.exposes) == ("unpinned-folder=/d", Exposes.NEVER)
    assert findings(parse_manifest(MOUNT + 'adyton.read_only = ["/d"]\n' + owner)) == ()
    pinned = parse_manifest(MOUNT.replace('uri = "file:d"', 'uri = "file:d", pinned = true') + owner)
    assert findings(pinned) == ()
    assert "older whole file" in "".join(not_covered(parse_manifest(MOUNT)))
    assert "older whole file" not in "".join(not_covered(pinned))
    assert tee_refusals(pinned, "tdx") == ()
    with pytest.raises(MalformedManifest) as caught:
        check_tee(pinned, "sgx")
    assert caught.value.check == "manifest key fs.mounts[].pinned"
    with pytest.raises(MalformedManifest, match="belongs to encrypted mounts"):
        parse_manifest(LEAST.replace("[]", '[{ path = "/d", uri = "file:d", pinned = true }]'))


def test_warnings_come_in_the_order_of_danger() -> None:
    """The worst first, whatever the order in the manifest."""
    every = [text for text in CAUSES if "_src_" not in text]
    found = findings(parse_manifest(LEAST + "\n".join(every)))
    assert len(found) == len(every)
    assert [item.danger for item in found] == sorted((item.danger for item in found), reverse=True)
    assert found[0].key == "sgx.debug"


def test_what_is_not_covered_is_said_in_words() -> None:
    """Every opening has its line; clock and kernel are never covered."""
    open_wide = parse_manifest(
        MOUNT
        + "loader.insecure__use_cmdline_argv = true\nloader.insecure__use_host_env = true\n"
        + "loader.env.X = { passthrough = true }\nsgx.allowed_files = ['file:x']\nadyton.insecure__stdin = true\n"
        + "adyton.network = 'host'\nsys.enable_extra_runtime_domain_names_conf = true\nadyton.secrets.s.env = 'S'\n"
        + "sgx.file_check_policy = 'allow_all_but_log'\nadyton.insecure__raw_report_data = true\n"
    )
    text = "\n".join(not_covered(open_wide))
    for part in ("/d ", "file:x", "allow_all_but_log", "arguments", "environment:", "X:", "input", "network"):
        assert part in text
    for part in ("64 bytes", "name servers", "secret s", "clock", "kernel"):
        assert part in text
    assert len(not_covered(parse_manifest(LEAST))) == 2


@pytest.mark.parametrize("value", ["'true'", "1", "'yes'"])
def test_raw_report_data_is_a_boolean_and_nothing_else(value: str) -> None:
    """What is not true or false is refused, not taken for either."""
    with pytest.raises(MalformedManifest):
        parse_manifest(LEAST + f"adyton.insecure__raw_report_data = {value}")


def test_raw_report_data_is_for_sim_and_sgx() -> None:
    """Whatever TEE there will be: only those that are named take it."""
    raw, closed = parse_manifest(LEAST + "adyton.insecure__raw_report_data = true"), parse_manifest(LEAST)
    for tee in ("sim", "sim:" + "0" * 64, "sgx", "gramine-direct"):
        assert tee_refusals(raw, tee) == ()
    for tee in ("sim-tdx", "sim-tdx:" + "0" * 64, "tdx", "snp", "tpm", "sim-tpm:" + "0" * 64):
        assert tee_refusals(closed, tee) == ()
        with pytest.raises(MalformedManifest, match="insecure__raw_report_data is refused under"):
            check_tee(raw, tee)


REFUSED = {
    "sys.disallow_subprocesses = true": "sys.disallow_subprocesses",
    "sys.debug__mock_syscalls = [{ name = 'fork' }]": "sys.debug__mock_syscalls",
    "sys.allowed_ioctls = [{ request_code = 1 }]": "sys.allowed_ioctls",
    "sgx.file_check_policy = 'allow_all_but_log'": "sgx.file_check_policy",
    "fs.root = { type = 'encrypted', uri = 'file:x' }": "fs.root.type",
    "sgx.allowed_files = ['dev:x']": "sgx.allowed_files",
}


@pytest.mark.parametrize("text", REFUSED)
def test_key_that_the_runtime_cannot_honour_is_named(text: str) -> None:
    """What only Gramine can do is refused under Adyton's runtime, with the reason."""
    ((key, reason),) = runtime_refusals(parse_manifest(LEAST + text))
    assert key == REFUSED[text]
    assert reason


def test_mounts_that_the_runtime_cannot_honour_are_named() -> None:
    """Memory shared with the host, and sealing keys."""
    text = (
        'libos.entrypoint = "/app"\nfs.mounts = [{ type = "untrusted_shm", path = "/s", uri = "dev:/s" },'
        '{ type = "encrypted", path = "/e", uri = "file:e", key_name = "_sgx_mrsigner" }]'
    )
    keys = [key for key, _ in runtime_refusals(parse_manifest(text))]
    assert keys == ["fs.mounts[0]", "fs.mounts[1].key_name"]


def final(**files: str) -> str:
    """A final manifest text with these files."""
    entries = "".join(
        f'[[sgx.trusted_files]]\nuri = "file:{name}"\nsha256 = "{digest * 64}"\n\n' for name, digest in files.items()
    )
    return f'{MOUNT}adyton.files = "{" ".join("1" for _ in files)}"\n{entries}'


def test_differences_of_equal_texts_are_none() -> None:
    """Equal texts measure alike."""
    assert differences(final(a="0"), final(a="0")) == ()


def test_differences_of_files_are_named() -> None:
    """Changed, added and removed files, each with hash and size."""
    found = differences(final(a="0", b="1", c="2"), final(a="0", b="3", d="4"))
    assert [(item.kind, item.what) for item in found] == [("file", "b"), ("file", "c"), ("file", "d")]
    assert str(found[0]) == f"file b: SHA-256 {'1' * 64}, 1 bytes -> SHA-256 {'3' * 64}, 1 bytes"
    assert str(found[1]) == f"file c: removed, was SHA-256 {'2' * 64}, 1 bytes"
    assert str(found[2]) == f"file d: added, SHA-256 {'4' * 64}, 1 bytes"


def test_differences_of_keys_and_mounts_are_named() -> None:
    """Keys by their dotted names, mounts by their paths, certificates by their fingerprints."""
    before = MOUNT + 'loader.argv = ["a"]\nloader.env.X = "1"\n' + f'adyton.owners.me.ca = """{CA}"""\n'
    after = (
        before.replace('"a"', '"a", "b"')
        .replace('loader.env.X = "1"\n', "")
        .replace('path = "/d"', 'path = "/e", key_name = "k"')
        .replace(CA, make_ca("another", datetime.now(UTC)).certificate_pem.decode())
    ) + "sgx.debug = true\n"
    found = {f"{item.kind} {item.what}": str(item) for item in differences(before, after)}
    assert list(found) == [
        "key loader.argv",
        "key loader.env.X",
        "key adyton.owners.me.ca",
        "key sgx.debug",
        "mount /d",
        "mount /e",
    ]
    assert found["mount /e"] == "mount /e: added, encrypted file:d key k"
    assert "certificate SHA-256 " in found["key adyton.owners.me.ca"]
    assert "BEGIN" not in found["key adyton.owners.me.ca"]


def test_differences_of_order_alone_are_named() -> None:
    """The order of mounts and files counts; spelling counts too, as form."""
    first, second = final(a="0", b="1"), final(b="1", a="0")
    assert [item.kind for item in differences(first, second)] == ["file"]
    assert [item.kind for item in differences(LEAST, LEAST + "\n# a comment\n")] == ["form"]
    mounts = 'libos.entrypoint = "/app"\nfs.mounts = [{}]\n'
    one, two = '{ type = "tmpfs", path = "/a" }', '{ type = "tmpfs", path = "/b" }'
    found = differences(mounts.replace("{}", f"{one}, {two}"), mounts.replace("{}", f"{two}, {one}"))
    assert [(item.kind, item.what) for item in found] == [("mount", "order")]


def test_explanation_has_every_part_of_a_manifest() -> None:
    """Program, files, mounts, keys, outside, warnings, and what is not covered."""
    text = MOUNT.replace("[{", '[{ type = "tmpfs", path = "/tmp" }, { path = "/usr", uri = "file:/usr" }, {') + (
        'loader.argv = ["app", "-x"]\nloader.env.A = "1"\nloader.env.B = { passthrough = true }\n'
        "sgx.trusted_files = ['file:/usr/lib/x/y', 'file:app']\n"
        f"fs.insecure__keys.clear = '{'0' * 32}'\nadyton.secrets.s.file = '/run/s'\n"
        f'adyton.owners.me.ca = """{CA}"""\nadyton.read_only = ["/d"]\n'
    )
    sections = {section.title: "\n".join(section.lines) for section in explain_manifest(parse_manifest(text))}
    assert "'app' '-x'" in sections["program"]
    assert "B: from the host" in sections["environment"]
    assert "2 files" in sections["trusted files"]
    assert "/usr/lib/x/: 1 files" in sections["trusted files"]
    assert "/d: encrypted files of d, key default, read only" in sections["mounts"]
    assert "/tmp: memory" in sections["mounts"]
    assert "default: from the key server of me (adyton-key-server)" in sections["keys"]
    assert "clear: in clear in the manifest" in sections["keys"]
    assert "secret s into /run/s" in sections["keys"]
    assert "encrypted log, key default" in sections["outside"]
    assert "fs.insecure__keys.clear" in sections["warnings"]
    assert "clock" in sections["not covered by the measurement"]


def test_explanation_of_signature_and_enclave_is_in_words() -> None:
    """SIGSTRUCT and areas read as sentences."""
    key = load_signer(generate_signer())
    sigstruct = sign(Measurement(bytes(32)), key, attributes=Attributes.of(debug=True), isv_prod_id=2, isv_svn=3)
    assert "product 2, security version 3, date 0000-00-00" in explain_signature(sigstruct).lines
    assert any("debug enclave: the host can read" in line for line in explain_signature(sigstruct).lines)
    layout = Layout(1 << 24, 4, (Area("tcs", 0x1000, 4096, 0x100), Area("free", 0x10000, 8192, 0x207, None)))
    assert explain_layout(layout).lines == (
        "enclave of 16M, SSA frames of 4 pages",
        "0x1000-0x2000 tcs (thread control, 1 pages): measured with its content",
        "0x10000-0x12000 free (rwx, 2 pages): added, content not measured",
    )


def test_difference_with_a_line_break_stays_one_line() -> None:
    """No value, and no path, can pose as a line of its own."""
    item = Difference("key", "loader.argv\nfile x", "a", "b\nkey loader.env: same")
    assert "\n" not in str(item)


MORE_CAUSES = {
    "adyton.ingress = [{ name = 'a', target = '127.0.0.1:80' }]": "clients=a",
    "sys.debug__mock_syscalls = [{ name = 'fork' }]": "mocked-call=fork",
    "sys.allowed_ioctls = [{ request_code = 33 }]": "ioctl-to-host=0x21",
    f'[[adyton.ingress]]\nname = \'a\'\ntarget = \'127.0.0.1:80\'\nclient_ca = """{CA}"""': (
        f"clients-of-ca=a @ {ca_sha256(CA)}"
    ),
    "adyton.ingress = [{ name = 'a', target = '127.0.0.1:80', client_policy = 'x' }]": (
        "clients-by-policy=a @ 2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    ),
    "adyton.egress = [{ host = 'db', port = 1, plain = true }]": "egress-in-clear=db:1",
    f'[[adyton.egress]]\nhost = \'api\'\nport = 2\nca = """{CA}"""': f"egress=api:2 @ {ca_sha256(CA)}",
    "adyton.ingress = [{ name = 'api', target = '127.0.0.1:8000' }]": "clients=api",
    "loader.argv_src_file = 'file:x'\nsgx.trusted_files = ['file:x']": "unchecked-arguments=file:x",
}


@pytest.mark.parametrize("text", MORE_CAUSES)
def test_what_only_gramine_would_do_is_found_too(text: str) -> None:
    """An approval may be for sgx, where Gramine itself reads the manifest."""
    assert [item.name for item in findings(parse_manifest(LEAST + text))] == [MORE_CAUSES[text]]


def test_mounts_that_the_host_shares_are_found() -> None:
    """Shared memory, a device of the host, and a key that every enclave of the signer has."""
    mounts = (
        '{ type = "untrusted_shm", path = "/s", uri = "dev:/s" }, { path = "/t", uri = "dev:tty" },'
        '{ type = "encrypted", path = "/e", uri = "file:e", key_name = "_sgx_mrsigner" }'
    )
    found = findings(parse_manifest(f'libos.entrypoint = "/app"\nfs.mounts = [{mounts}]'))
    names = ["shared-memory=/s", "host-device=/t", "sealed-to-signer=/e", "unpinned-folder=/e"]
    assert [item.name for item in found] == names


def test_every_rule_has_a_name_of_its_own_and_is_reached() -> None:
    """A name is stable and means one thing; whatever looks at a manifest alone is caused by some test here."""
    names = [rule.name for rule in RULES]
    assert len(set(names)) == len(names)
    assert not [name for name in names if "=" in name or name != name.lower()]
    texts = [*CAUSES, *MORE_CAUSES]
    caused = {item.name.partition("=")[0] for text in texts for item in findings(parse_manifest(LEAST + text))}
    caused |= {"shared-memory", "host-device", "sealed-to-signer", "unpinned-key", "unchecked-file", "unpinned-folder"}
    assert caused == {rule.name for rule in RULES if rule.find is not None}


def test_insecure_keys_expose_whatever_they_are() -> None:
    """No key that Gramine or Adyton calls insecure passes as a note."""
    texts = [text for text in CAUSES if "insecure__" in text]
    assert len(texts) == 11
    for text in texts:
        assert [item.exposes for item in findings(parse_manifest(LEAST + text))] == [Exposes.ALWAYS]


def test_finding_names_what_it_is_about_and_reads_back() -> None:
    """Two files are two findings; a recorded name gives the same words again; an unknown one is refused."""
    texts = LEAST + "sgx.allowed_files = ['file:x', 'file:y']\n"
    assert [item.name for item in findings(parse_manifest(texts))] == ["allowed-file=file:x", "allowed-file=file:y"]
    hostile = finding("allowed-file", "file:a\\n\nnote: all is well\u202e")
    assert hostile.name.isprintable()
    assert hostile.what.isprintable()
    assert finding_named(hostile.name) == hostile
    assert finding("allowed-file", "file:\n").name != finding("allowed-file", "file:\\n").name
    with pytest.raises(UsageError, match="no finding"):
        finding_named("nosuch=1")


def test_no_line_of_a_manifest_poses_as_another() -> None:
    """A path with a line break is one line, in what is not covered as in what a measurement holds."""
    manifest = parse_manifest(LEAST + 'sgx.allowed_files = ["file:x\\nnothing else"]\nloader.env.A = "1\\nB=2"\n')
    assert all("\n" not in line for line in not_covered(manifest))
    assert all("\n" not in line for section in explain_manifest(manifest) for line in section.lines)


def test_pinned_keys_say_whose_ca_stands_for_each() -> None:
    """Keys and secrets, each with the CA that is pinned for it; None where there is none."""
    text = MOUNT + f'adyton.owners.me.ca = """{CA}"""\nadyton.secrets.s.env = "S"\n'
    pinned = pinned_keys(parse_manifest(text))
    assert set(pinned) == {"default", "s"}
    assert len(set(pinned.values())) == 1
    assert pinned_keys(parse_manifest(MOUNT)) == {"default": None}
    assert pinned_keys(parse_manifest(MOUNT + 'adyton.owners.me.server_name = "x"')) == {"default": None}


def test_findings_name_a_trusted_file_that_is_allowed_too() -> None:
    """A hash that is never checked, because a list that is looked at first has the file, is warned of by its name."""
    lists = "sgx.allowed_files = ['file:d/']\nsgx.trusted_files = ['file:d/a', 'file:b']\n"
    warned = [finding for finding in findings(parse_manifest(LEAST + lists)) if finding.key == "sgx.trusted_files"]
    assert [finding.what.split()[0] for finding in warned] == ["file:d/a"]
    assert warned[0].danger is Danger.CONTROLLED
