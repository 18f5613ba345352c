"""Every parser of Adyton that a stranger's bytes reach, with good inputs for it."""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import io
import json
import resource
import struct
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cryptography.hazmat.primitives.asymmetric import ed25519
from starlette.exceptions import HTTPException

from adyton.address import parse_address
from adyton.agreement.document import Program, parse_agreement
from adyton.agreement.in_force import proved
from adyton.agreement.signature import parse_signature_file
from adyton.attest.amd import parse_chip_certificate
from adyton.attest.azure.claims import parse_claims
from adyton.attest.azure.evidence import parse_body
from adyton.attest.azure.hcl import parse_hcl_report
from adyton.attest.bundle import DevicePart, EvidenceBundle
from adyton.attest.certificates import parse_certificate, parse_chain
from adyton.attest.collateral import Collateral
from adyton.attest.evidence_policy import Policy
from adyton.attest.guest import parse_guest
from adyton.attest.nitro import nsm
from adyton.attest.nvidia.chain import DEVICE_CHAIN, fwid_of, parse_pem_chain
from adyton.attest.nvidia.evidence import parse_devices
from adyton.attest.nvidia.gpu_policy import GPUPolicy
from adyton.attest.nvidia.ocsp import parse_answer
from adyton.attest.nvidia.opaque import parse_opaque
from adyton.attest.nvidia.rim import parse_rim
from adyton.attest.nvidia.spdm import parse_report as parse_gpu_report
from adyton.attest.policy.hosts import SignedHosts, read_host_rules, sign_hosts
from adyton.attest.quote import parse_ppid_certification
from adyton.attest.snp import TCBVersion
from adyton.attest.tdx_boot import read_boot
from adyton.attest.tpm.document import parse_pcr_values, parse_quote_document
from adyton.attest.tpm.event_log import parse_event_log
from adyton.attest.tpm.pe import authenticode
from adyton.attest.tpm.structures import parse_attest, parse_signature
from adyton.collateral.bundle import build_bundle, documents_of, parse_bundle
from adyton.collateral.documents import Document, verify_document
from adyton.collateral.http_client import Response, retry_after_s
from adyton.collateral.stored_time import parse_stamp
from adyton.dates import parse_end, parse_start
from adyton.endpoint import hello
from adyton.errors import Denied, Error, FetchFailed, UsageError
from adyton.gpu.safetensors import parse_header as parse_weights
from adyton.image.boot_events import predict
from adyton.image.dhcp import OFFER, build_datagram, parse_datagram
from adyton.image.dhcp import parse_answer as parse_dhcp_answer
from adyton.image.document import parse_image
from adyton.image.firmware import FirmwareFile
from adyton.image.gpt import measured_table
from adyton.image.gpu_files import GPUFiles
from adyton.image.guest_result import parse_result
from adyton.image.guest_settings import GuestSettings, parse_settings
from adyton.image.kernel_modules import needed_by
from adyton.image.lock import parse_lock
from adyton.image.measure_snp import Launch, launch_digest
from adyton.image.measure_tdx import mrtd
from adyton.image.plain_archive import Member, Reader, Writer
from adyton.image.uki import UKI
from adyton.keyserver.privacy import parse_privacy_report
from adyton.keystore.approval import Approval
from adyton.keystore.audit import Checkpoint
from adyton.keystore.audit_export import checkpoints_of, read_export
from adyton.keystore.backup.header import parse_header
from adyton.keystore.backup.shares import parse_share, split_key
from adyton.keystore.config import Config
from adyton.keystore.stored_folder import StoredFolder
from adyton.manifest.difference import differences
from adyton.manifest.document import parse_document
from adyton.manifest.explain import explain_manifest
from adyton.manifest.findings import findings, not_covered, runtime_refusals
from adyton.manifest.host import host_facts
from adyton.manifest.model import parse_manifest
from adyton.manifest.mrenclave import parse_pal
from adyton.manifest.observe import read_trace
from adyton.manifest.schema_check import parse_size
from adyton.manifest.signed import decode
from adyton.manifest.sigstruct import SIGSTRUCT_BYTES, Attributes, generate_signer, load_signer, parse_sigstruct, sign
from adyton.manifest.template import render
from adyton.pack_archive import Item, parse_index, read_contents, write_pack
from adyton.pfile.backing import Memory
from adyton.pfile.file import ProtectedFile
from adyton.pfile.layout import Metadata, parse_envelope
from adyton.pfile.recovery import parse_log
from adyton.pfile.side_files import encode_attributes, parse_attributes, parse_target
from adyton.receipt.document import CounterSignature, EndEvidence, Receipt, parse_receipt
from adyton.receipt.dsse import Envelope, Signature
from adyton.receipt.handed_in import HandedIn, parse_handed_in
from adyton.receipt.statement import (
    LIMITS,
    Input,
    MountFiles,
    Output,
    OwnerGrant,
    Statement,
    listing_bytes,
    parse_inputs,
    parse_outputs,
    parse_statement,
)
from adyton.release.in_force_messages import Question, in_force_answer, parse_in_force_answer, parse_question
from adyton.release.root_messages import RootCommit, RootIntent, parse_commit, parse_intent
from adyton.release.run_key import RunKey
from adyton.roots.entry import Entry
from adyton.roots.history import History
from adyton.roots.journal import MAGIC, parse_journal
from adyton.roots.records import Change, Commit, Confirmed, Record, Snapshot, Step, encode, parse_record
from adyton.roots.sealing import first_head
from adyton.roots.sealing import seal as seal_record
from adyton.server.dashboard.requests import parse_form
from adyton.sim.chip import Facts
from adyton.sim.gpu import evidence_json
from adyton.sim.platform import SimPlatform
from adyton.sim.vendor import Publication
from adyton.tee.tpm_device import TPMDevice
from adyton.tee.tpm_guest import join_chain, split_chain
from adyton.untrusted import parse_json, parse_json_object, parse_toml
from adyton.values import Digest, Key128, Measurement, Nonce
from tests.faults.owner.test_hostile_documents import HEADER, STORE, _entries, _export
from tests.fuzz.harness import Target
from tests.properties.test_attest_parsers import SEEDS as ATTEST
from tests.support import ccel
from tests.support.agreement_factory import BUDGET, MADE_AT, agreement_of, make_signer
from tests.support.dhcp_server import HARDWARE
from tests.support.dhcp_server import answer as dhcp_answer
from tests.support.gpu_world import NOW as GPU_NOW
from tests.support.gpu_world import gpu, vendor
from tests.support.image_factory import image_document
from tests.support.image_files import AMD_SEV, KERNEL_HASHES, firmware, image_files
from tests.support.run_keys import RUN_KEY
from tests.support.tpm_factory import AzureScenario, TPMScenario, p256, rsa_key
from tests.unit.attest.tpm.test_pe import pe

if TYPE_CHECKING:
    from collections.abc import Callable

KEY: Final = Key128(bytes(range(16)))

OWNER_CA: Final = (Path(__file__).parent.parent / "support" / "owner-ca.pem").read_text(encoding="ascii")
MANIFEST: Final = """
libos.entrypoint = "/app"
loader.argv = ["app", "x"]
loader.env.A = "1"
loader.env.B = { passthrough = true }
fs.mounts = [
  { path = "/lib", uri = "file:/usr/lib" },
  { type = "encrypted", path = "/in", uri = "file:in", key_name = "model" },
  { type = "tmpfs", path = "/tmp" },
]
sgx.enclave_size = "1G"
sgx.max_threads = 4
sgx.debug = true
sgx.allowed_files = ["file:a"]
adyton.network = "none"
adyton.memory_budget = "4G"
adyton.insecure__stdio = true
adyton.secrets.s = { env = "S" }
adyton.keys.model = "maker"
adyton.files = "3 4x 5@7"
[adyton.owners.maker]
ca = OWNER_CA
server_name = "keys.example"
[[sgx.trusted_files]]
uri = "file:app"
sha256 = "0000000000000000000000000000000000000000000000000000000000000000"

[[sgx.trusted_files]]
uri = "file:b"
sha256 = "1111111111111111111111111111111111111111111111111111111111111111"

[[sgx.trusted_files]]
uri = "file:c"
sha256 = "2222222222222222222222222222222222222222222222222222222222222222"

""".replace("OWNER_CA", json.dumps(OWNER_CA))
TEMPLATE: Final = (
    "{% for n in range(3) %}{{ n }}{% endfor %}",
    "{% macro f(a, b=1) %}{{ a ~ b }}{% endmacro %}{{ f('x') }}{{ env.get('A', '0') }}",
    "{{ gramine.runtimedir() / 'a' }} {{ python.stdlib.parent }} {{ ['a', 'b'] | join(',') }} {{ a | default('x') }}",
    "{% set n = namespace(x=1) %}{% if n.x == 1 and 'a' in 'abc' %}{{ 'x' * 3 }}{% else %}{% endif %}{# c #}",
    "{{ python.get_paths() | dictsort }} {{ {'a': [1, 2]} | tojson }} {{ '%s' | format('a') }} {{ 'a' | upper }}",
    "{% raw %}{{ x }}{% endraw %}{{ cycler('a', 'b').next() }}{{ joiner(',')() }}",
)
_HOSTS_KEY: Final = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(31) + b"\3")
_HOSTS: Final = sign_hosts({"until": "2027-01-31", "ppids": [{"id": "ab" * 16, "until": "2027-01-31"}]}, _HOSTS_KEY)
_HOST_RULES: Final = {
    "chip_ids": [{"id": "ab" * 64, "until": "2027-01-31", "note": "rack 4"}],
    "signed": [{"key": _HOSTS_KEY.public_key().public_bytes_raw().hex(), "envelope": _HOSTS}],
    "registries": [{"provider": "gcp", "ppids": ["ab" * 16], "until": "2027-01-31"}],
}
CONFIG: Final = """
[owner]
name = "owner"
[server]
names = ["keys.example"]
[store]
url = ""
[master]
kind = "passphrase"
salt = "00112233445566778899aabbccddeeff"
command = []
[limits]
"""
POLICY: Final = """
tees = ["sgx", "tdx"]
[[exemptions]]
name = "TEST-SA-1"
owner = "a"
until = "2026-01-01"
"""
APPROVAL: Final = {
    "key": "weights",
    "app": "app",
    "version": "1",
    "tees": ["sgx"],
    "measurement": "0" * 64,
    "tcb_statuses": ["UpToDate"],
    "advisories": {"INTEL-SA-1": "2030-01-01T00:00:00Z"},
    "max_runs": 3,
    "expires_at": "2030-01-01T00:00:00Z",
    "evidence": {},
    "not_covered": ["network"],
    "protocols": ["adyton"],
}


def _text(parse: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda raw: parse(raw.decode("utf-8", "replace"))


def _manifest(raw: bytes) -> None:
    text = decode(raw)
    manifest = parse_manifest(text)
    findings(manifest)
    runtime_refusals(manifest)
    not_covered(manifest)
    explain_manifest(manifest)
    differences(text, MANIFEST)


def _policy(raw: bytes) -> None:
    parse = parse_json_object if raw.lstrip().startswith(b"{") else parse_toml
    Policy.from_dict(parse(raw, what="policy"))


def _documents(raw: bytes) -> None:
    for document in parse_bundle(raw):
        verify_document(document)


def _protected(raw: bytes) -> None:
    host = Memory(raw)
    with ProtectedFile.open(host, KEY) as file:
        for offset in range(0, min(file.size, 1 << 20), 4096):
            file.read_at(offset, 4096)


def _log(raw: bytes) -> None:
    parse_log(Memory(raw))


def _pack() -> tuple[bytes, ...]:
    with tempfile.TemporaryDirectory() as folder:
        content = Path(folder, "content")
        content.write_bytes(b"content")
        for name, files in {"a": ("work/a.manifest",), "b": ("work/a.manifest", "host/" + "n/" * 60 + "é")}.items():
            items = [Item(each, content) for each in files]
            write_pack(Path(folder, name), items, manifest="a.manifest", folders=["work/f"], readme="r")
        return Path(folder, "a").read_bytes(), Path(folder, "b").read_bytes()


def _form(raw: bytes) -> None:
    try:
        parse_form(raw)
    except HTTPException as error:
        if error.status_code != 400:
            raise
        raise UsageError(error.detail) from error


def _response(raw: bytes) -> None:
    text = raw.decode("utf-8", "replace")
    retry_after_s(Response("https://x.invalid/", 503, {"retry-after": text}, b""), datetime(2026, 1, 1, tzinfo=UTC))


FACTS: Final = host_facts(None)


def _template(raw: bytes) -> None:
    render(decode(raw), {"a": "1", "b": True}, environment={"A": "1"}, facts=FACTS, cpu_s=2)


def _plain_archive(raw: bytes) -> None:
    reader = Reader(io.BytesIO(raw), 1 << 20)
    for _ in reader:
        for _ in reader.content():
            pass


def _archive() -> bytes:
    stream = io.BytesIO()
    writer = Writer(stream, 1 << 20)
    writer.add(Member("folder", 0, is_folder=True))
    writer.add(Member("folder/file", 700, executable=True), io.BytesIO(bytes(700)))
    writer.close()
    return stream.getvalue()


def _firmware(raw: bytes) -> None:
    parsed = FirmwareFile.parse(raw)
    launch_digest(parsed, Launch(b"kernel"), vcpus=1, vcpu_type="EPYC-v4")
    mrtd(parsed, "single-pass")


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.thread_time() + used.ru_utime + used.ru_stime


def _sealed() -> tuple[bytes, ...]:
    found = []
    for size in (0, 100, 9000):
        host = Memory()
        with ProtectedFile.create(host, KEY, path="a") as file:
            file.write_at(0, bytes(size))
        found.append(bytes(host.content))
    return tuple(found)


def _signature() -> tuple[bytes, ...]:
    signed = sign(
        Measurement(bytes(32)), load_signer(generate_signer()), attributes=Attributes.of(debug=False)
    ).to_bytes()
    return signed, bytes(SIGSTRUCT_BYTES)


def _shares() -> tuple[bytes, ...]:
    return tuple(share.to_text().encode() for share in split_key(KEY, "0" * 12, 2, 3))


@functools.cache
def _platform() -> tuple[dict[str, Any], dict[str, Any], tuple[bytes, ...], bytes]:
    """Files of a simulated platform: machine, publication, collateral as single documents, as a bundle."""
    with tempfile.TemporaryDirectory() as folder:
        platform = SimPlatform.create(Path(folder) / "platform")
        now = datetime.now(UTC).replace(microsecond=0)
        documents = documents_of(platform.collateral(now), "https://x.invalid/", now)
        single = tuple(json.dumps(document.to_dict()).encode() for document in documents)
        return platform.machine.to_dict(), platform.publication().to_dict(), single, build_bundle(documents)


def _release() -> dict[str, Target]:
    """Every `parse_…(raw)` of the release protocols' modules, each with every message that there is as its seeds."""
    modules = [
        importlib.import_module(f"adyton.release.{name}")
        for name in (
            "wire",
            "messages",
            "answer",
            "shown_program",
            "grants",
            "secret_provisioning",
            "run_key",
            "run_messages",
        )
    ]
    names = {name: value for module in modules for name, value in vars(module).items()}
    b64, key = names["b64"], names["EnclaveKey"]()
    device = DevicePart(arch="HOPPER", certificate=b"certificate", evidence=b"evidence")
    bundle = EvidenceBundle(cpu=b"quote", event_log=b"log", devices=(device, device))
    request = names["ReleaseRequest"](Nonce(b"n" * 32), key.public_bytes, Digest(b"m" * 32), ("a",), bundle, RUN_KEY)
    message = names["RunMessage"]("receipt", "g-1", b"payload", bytes(64))
    checkpoint = Checkpoint(STORE, 1, bytes(32), 1, bytes(64)).to_dict()
    seeds = (
        json.dumps({"protocol": names["PROTOCOL"]}).encode(),
        json.dumps({"protocol": names["PROTOCOL"], "grant": "g-1", "token": b64(bytes(32))}).encode(),
        json.dumps({"protocol": names["PROTOCOL"], "status": "explained", "changed": ["a"]}).encode(),
        request.to_bytes(),
        names["ChallengeAnswer"](Nonce(b"x" * 32), 60).to_bytes(),
        names["Refusal"]("d-1", "m", "c", "e", "s", "r").to_bytes(),
        names["Payload"]({"k": b"k" * 16}, {"s": b"secret"}, b"t" * 32).to_bytes(),
        names["explain_message"]("d-1", MANIFEST.encode(), {"adyton": "ab" * 32}),
        json.dumps({"protocol": names["PROTOCOL"], "grant": "g", "lease_s": 1, "checkpoint": checkpoint}).encode(),
        names["RESPONSE"] + struct.pack(">I", 16),
        key.public_bytes,
        RUN_KEY,
        message.to_bytes(),
        names["run_answer"]({"taken": 1}),
        names["run_answer"](None),
    )
    found: dict[str, Target] = {}
    for module in modules:
        for name, function in vars(module).items():
            if not name.startswith("parse_") or getattr(function, "__module__", "") != module.__name__:
                continue
            first, *more = inspect.signature(function).parameters
            if first == "raw" and more == ["limit"]:
                target = _with(function, 1 << 20)
            elif first == "raw" and more == ["action"]:
                target = _with(function, "receipt")
            elif first == "raw" and not more:
                target = function
            else:
                continue  # takes what another parser made
            found[f"release-{name.removeprefix('parse_')}"] = Target(target, seeds, (f"{module.__name__}.{name}",))
    return found


def _roots() -> dict[str, Target]:
    """What stands beside a pinned folder, and what runs say of it."""
    file, folder = Entry(b"\1" * 48, 7, 5, "g-1"), Entry(b"", 0, 5, "owner")
    history = History.create("demo/out", {"a": file, "d": folder}, at_s=5)
    root = history.root
    change = Change(5, "g-1", (Step("b", None), Step("d/b", file, "a"), Step("d", folder)))
    records: tuple[Record, ...] = (history.snapshot(), change, Commit(2, 6, "g-1", root.state), Confirmed(2))

    def follow(raw: bytes) -> None:
        record = parse_record(raw)
        found = History(record) if isinstance(record, Snapshot) else History(history.snapshot())
        if not isinstance(record, Snapshot):
            found.add(raw)

    def stored(raw: bytes) -> StoredFolder:
        return StoredFolder.from_dict(parse_json_object(raw, what="folder"))

    journal = MAGIC + seal_record(KEY, first_head("demo/out"), encode(history.snapshot()))
    r, m = "adyton.roots", "adyton.release.root_messages"
    return {
        "roots-record": Target(follow, tuple(map(encode, records)), (f"{r}.records.parse_record",)),
        "roots-journal": Target(
            lambda raw: parse_journal(raw, KEY, "demo/out", "journal"), (journal,), (f"{r}.journal.parse_journal",)
        ),
        "roots-intent": Target(
            parse_intent,
            (RootIntent("demo/out", root).to_bytes(),),
            (f"{m}.parse_intent", f"{r}.root.Root.parse", f"{r}.root.parse_hash"),
        ),
        "roots-commit": Target(
            parse_commit,
            (RootCommit("demo/out", 1, bytes(32), root, is_last=True).to_bytes(),),
            (f"{m}.parse_commit", f"{m}.parse_fence"),
        ),
        "roots-stored": Target(
            stored,
            (json.dumps(StoredFolder("demo/out", root, 1, "g-1").to_dict()).encode(),),
            ("adyton.keystore.stored_folder.StoredFolder.from_dict",),
        ),
    }


def _with(function: Callable[[bytes, Any], object], argument: object) -> Callable[[bytes], object]:
    return lambda raw: function(raw, argument)


_WEIGHTS: Final = b'{"__metadata__": {"format": "pt"}, "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}'
_GPU_MODULE: Final = b"\x7fELF\0version=570.158.01\0depends=ecc\0vermagic=6.17 SMP \0"


def _weights(raw: bytes) -> object:
    """A header before 24 bytes of tensors."""
    return parse_weights(raw, 8 + len(raw) + 24)


def _driver(raw: bytes) -> object:
    """A driver for GPUs whose modules are these bytes, with the right hashes."""
    files = {"nvidia.ko": raw, "nvidia-uvm.ko": raw, "gsp_ga10x.bin": raw, "libnvidia-ml.so.1": b"\x7fELF\x02\x01"}
    sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items())
    return [GPUFiles.parse(files, sums.encode(), "6.17"), needed_by([raw])]


def _gpu() -> dict[str, Target]:
    """Parsers of GPU evidence and its collateral, with what a simulated GPU makes as their seeds."""
    n = "adyton.attest.nvidia"
    nonce, report = bytes(32), gpu().report(bytes(32))
    opaque = parse_gpu_report(report).opaque.fields
    fields = b"".join(struct.pack("<HH", kind, len(data)) + data for kind, data in opaque.items())
    policy = b'{"count": 1, "archs": ["HOPPER"], "min_driver": "550.1", "rim_exemptions": []}'
    return {
        "gpu-report": Target(parse_gpu_report, (report,), (f"{n}.spdm.parse_report",)),
        "gpu-opaque": Target(parse_opaque, (fields,), (f"{n}.opaque.parse_opaque",)),
        "gpu-evidence": Target(
            parse_devices, (evidence_json([gpu().evidence(nonce)]),), (f"{n}.evidence.parse_devices",)
        ),
        "gpu-chain": Target(
            lambda raw: fwid_of(parse_pem_chain(raw, DEVICE_CHAIN, "chain")[0]),
            (gpu().pem,),
            (f"{n}.chain.parse_pem_chain", f"{n}.chain.parse_der_chain"),
        ),
        "gpu-rim": Target(
            parse_rim, lambda: vendor().rims((gpu(),)), (f"{n}.rim.parse_rim", f"{n}.canonical_xml.parse")
        ),
        "gpu-ocsp": Target(parse_answer, lambda: vendor().answers((gpu(),), GPU_NOW)[-2:], (f"{n}.ocsp.parse_answer",)),
        "gpu-weights": Target(_weights, (_WEIGHTS,), ("adyton.gpu.safetensors.parse_header",)),
        "gpu-driver": Target(_driver, (_GPU_MODULE,), ("adyton.image.gpu_files.GPUFiles.parse",)),
        "gpu-policy": Target(
            lambda raw: GPUPolicy.from_dict(parse_json_object(raw, what="policy")),
            (policy,),
            (f"{n}.gpu_policy.GPUPolicy.from_dict",),
        ),
    }


def _endpoint() -> dict[str, Target]:
    """What an ingress and its client read of each other, before anything is verified."""
    e = "adyton.endpoint.hello"
    answers = (hello.Answer("api", bytes(32), b"quote", b"log", (b"gpu",)), hello.Refused("busy"))
    return {
        "endpoint-challenge": Target(
            hello.parse_challenge,
            (hello.Challenge(bytes(32)).to_bytes(), hello.Challenge(bytes(32), proves=True).to_bytes()),
            (f"{e}.parse_challenge",),
        ),
        "endpoint-client-evidence": Target(
            hello.parse_client_evidence,
            (hello.ClientEvidence(b"quote", b"log").to_bytes(),),
            (f"{e}.parse_client_evidence",),
        ),
        "endpoint-device": Target(
            hello.parse_device,
            (DevicePart(arch="HOPPER", certificate=b"c", evidence=b"e").to_bytes(),),
            (f"{e}.parse_device",),
        ),
        "endpoint-judgement": Target(
            hello.parse_judgement,
            (hello.ACCEPTED, hello.Refused("another program").to_bytes()),
            (f"{e}.parse_judgement",),
        ),
        "endpoint-answer": Target(hello.parse_answer, tuple(one.to_bytes() for one in answers), (f"{e}.parse_answer",)),
    }


def _agreement() -> dict[str, Target]:
    """What a co-owner, or a host in between, gives: the text, a signature, a statement."""
    a = "adyton.agreement"
    hospital, vendor = make_signer("hospital"), make_signer("vendor")
    agreement = agreement_of(hospital.owner, vendor.owner)
    by_signer = agreement_of(hospital.owner, vendor.owner, Program(signer=Digest(bytes(32)), product=1, min_svn=2))
    counted = replace(agreement, privacy=BUDGET)
    return {
        "agreement": Target(
            parse_agreement,
            (agreement.to_toml().encode(), by_signer.to_toml().encode(), counted.to_toml().encode()),
            (f"{a}.document.parse_agreement", f"{a}.document.Agreement.from_dict"),
        ),
        "agreement-signature": Target(
            parse_signature_file,
            (hospital.sign(agreement).to_bytes(),),
            (f"{a}.signature.parse_signature_file", f"{a}.signature.Signature.from_dict"),
        ),
        "in-force": Target(
            lambda raw: proved([raw], Nonce(bytes(32)), MADE_AT),
            (hospital.says(agreement.id, Nonce(bytes(32))),),
            (f"{a}.in_force.parse_statement",),
        ),
        "privacy-report": Target(
            parse_privacy_report, (b'{"steps": 1000}',), ("adyton.keyserver.privacy.parse_privacy_report",)
        ),
        "in-force-question": Target(
            parse_question,
            (Question(agreement.id, Nonce(bytes(32))).to_bytes(),),
            ("adyton.release.in_force_messages.parse_question",),
        ),
        "in-force-answer": Target(
            parse_in_force_answer,
            tuple(in_force_answer(statement) for statement in (b"statement", None)),
            ("adyton.release.in_force_messages.parse_in_force_answer",),
        ),
    }


def _receipts() -> dict[str, Target]:
    """Receipts, and what stands in them."""
    r = "adyton.receipt"
    key = RunKey()
    output = Output(name="out/a", sha256="ab" * 32, commitment="cd" * 32, root="ef" * 48, plaintext_sha256="01" * 32)
    listing = listing_bytes([output])
    mount = MountFiles(
        source="out", key="k", owner="alice", version=1, files=1, listing=hashlib.sha256(listing).hexdigest()
    )
    checkpoint = Checkpoint(STORE, 1, bytes(32), 1, bytes(64)).to_dict()
    owner = OwnerGrant(
        name="alice", ca_sha256="ab" * 32, server_name="s", grant="g-1", versions={"k": 1}, checkpoint=checkpoint
    )
    statement = Statement(
        run_key=key.public_bytes,
        tee="sim",
        measurement="ab" * 32,
        manifest_sha256="ab" * 32,
        runtime="ab" * 32,
        adyton="0.1.0",
        device_digest="ab" * 48,
        arguments="ab" * 32,
        exit_code=0,
        started_at="2026-01-01T00:00:00Z",
        finished_at="2026-01-01T00:00:00Z",
        owners=(owner,),
        inputs=(),
        outputs=(mount,),
        limits=dict.fromkeys(LIMITS, "none"),
        predecessors=("ab" * 32,),
        subjects=(output.to_dict(),),
    )
    payload = statement.to_bytes()
    signature = Signature.create(key, payload)
    signed = CounterSignature(
        owner="alice", seq=1, at_ms=1, body="{}", previous=bytes(32), checkpoint=checkpoint, certificate=b"c", ca=b"a"
    )
    receipt = Receipt(
        envelope=Envelope(payload, (signature, signature)),
        requests=(b"request",),
        end=EndEvidence(b"quote", b"log"),
        counter_signatures=(signed,),
        listings={mount.listing: listing},
    )
    handed_in = HandedIn(Envelope(payload, (signature,)), EndEvidence(b"quote"))
    whole = tuple(
        f"{r}.{name}.from_dict" for name in ("document.EndEvidence", "document.CounterSignature", "dsse.Envelope")
    )
    parts = tuple(f"{r}.statement.{name}.from_dict" for name in ("MountFiles", "OwnerGrant"))
    return {
        "receipt": Target(
            parse_receipt,
            (receipt.to_bytes(),),
            (f"{r}.document.parse_receipt", f"{r}.dsse.Signature.from_dict", *whole),
        ),
        "receipt-statement": Target(parse_statement, (payload,), (f"{r}.statement.parse_statement", *parts)),
        "receipt-outputs": Target(
            parse_outputs, (listing,), (f"{r}.statement.parse_outputs", f"{r}.statement.Output.from_dict")
        ),
        "receipt-inputs": Target(
            parse_inputs,
            (listing_bytes([Input("in/a", "ab" * 48)]),),
            (f"{r}.statement.parse_inputs", f"{r}.statement.Input.from_dict"),
        ),
        "receipt-handed-in": Target(parse_handed_in, (handed_in.to_bytes(),), (f"{r}.handed_in.parse_handed_in",)),
    }


def targets() -> dict[str, Target]:
    """All of them, by name."""
    trace = b'1 openat(AT_FDCWD</w>, "a", O_RDONLY|O_CLOEXEC) = 3</w/a>\n1 execve("/bin/sh", ["sh"], 0x1 /* 2 */) = 0'
    elf = b"\x7fELF\x02\x01" + bytes(18) + struct.pack("<QQ", 1, 64) + bytes(14) + struct.pack("<HH", 56, 1)
    elf = elf.ljust(64, b"\0") + struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, 100, 4096, 4096)
    header = json.dumps(HEADER).encode()
    block = bytearray(512)
    block[:11], block[124:136], block[156:157] = b"header.json", b"%011o\0" % len(header), b"0"
    checkpoint = json.dumps(Checkpoint(STORE, 1, bytes(32), 1, bytes(64)).to_dict()).encode()
    m, k = "adyton.manifest", "adyton.keystore"
    return {
        **{
            f"attest-{name}": Target(parse, (raw,), ATTEST_COVERS.get(name, ()))
            for name, (parse, raw) in ATTEST.items()
        },
        **_release(),
        **_receipts(),
        **_roots(),
        **_endpoint(),
        **_agreement(),
        "toml": Target(
            lambda raw: parse_toml(raw, what="text"),
            (MANIFEST.encode(), POLICY.encode(), CONFIG.encode()),
            ("adyton.untrusted.parse_toml",),
        ),
        "json": Target(
            lambda raw: parse_json(raw, what="text"),
            (header, checkpoint, json.dumps(APPROVAL).encode()),
            ("adyton.untrusted.parse_json",),
        ),
        "error": Target(
            Error.parse,
            (Denied("m", check="c", denials=["d-1"]).to_bytes(), FetchFailed("m", status=404).to_bytes()),
            ("adyton.errors.Error.parse", "adyton.errors.Error.from_dict"),
        ),
        "json-object": Target(
            lambda raw: parse_json_object(raw, what="text"), (header,), ("adyton.untrusted.parse_json_object",)
        ),
        "attest-chip": Target(
            lambda raw: parse_chip_certificate(parse_certificate(raw, "VCEK")),
            (ATTEST["chip-certificate"][1],),
            (f"{_A}.amd.parse_chip_certificate",),
        ),
        "attest-chain": Target(
            lambda raw: parse_chain(raw, ("leaf", "root"), "chain"),
            (ATTEST["pem"][1],),
            (f"{_A}.certificates.parse_chain",),
        ),
        "attest-collateral-json": Target(
            _text(Collateral.from_json), (ATTEST["collateral"][1],), (f"{_A}.collateral.Collateral.from_json",)
        ),
        "attest-ppid": Target(
            lambda raw: parse_ppid_certification(raw[0] % 3 + 1 if raw else 1, raw[1:]),
            (bytes(37), b"\1" + bytes(276), b"\2" + bytes(404)),
            (f"{_A}.quote.parse_ppid_certification",),
        ),
        "attest-snp-tcb": Target(
            lambda raw: [TCBVersion.parse(raw[:8].ljust(8, b"\0"), turin=turin) for turin in (False, True)],
            (bytes(range(8)),),
            (f"{_A}.snp.TCBVersion.parse",),
        ),
        **_gpu(),
        "manifest": Target(_manifest, (MANIFEST.encode(),), (f"{m}.model.parse_manifest",)),
        "manifest-document": Target(_text(parse_document), (MANIFEST.encode(),), (f"{m}.document.parse_document",)),
        "manifest-template": Target(
            _template, tuple(map(str.encode, TEMPLATE)), (f"{m}.template.render",), _children_s
        ),
        "manifest-size": Target(_text(parse_size), (b"4G", b"0x10K"), (f"{m}.schema_check.parse_size",)),
        "manifest-signature": Target(parse_sigstruct, _signature, (f"{m}.sigstruct.parse_sigstruct",)),
        "manifest-library": Target(parse_pal, (elf.ljust(4096, b"\0"),), (f"{m}.mrenclave.parse_pal",)),
        "manifest-trace": Target(
            lambda raw: read_trace(raw.decode("ascii", "surrogateescape").splitlines(), "/w"),
            (trace,),
            (f"{m}.observe.read_trace",),
        ),
        "policy": Target(
            _policy, (POLICY.encode(), b'{"tees": ["sgx"]}'), ("adyton.attest.evidence_policy.Policy.from_dict",)
        ),
        "signed-hosts": Target(
            _text(lambda text: SignedHosts.parse(_HOSTS_KEY.public_key().public_bytes_raw(), text)),
            (_HOSTS.encode(),),
            (f"{_A}.policy.hosts.SignedHosts.parse",),
        ),
        "host-rules": Target(
            lambda raw: read_host_rules("hosts", parse_json(raw, what="hosts")),
            (json.dumps(_HOST_RULES).encode(),),
            (f"{_A}.policy.hosts.read_host_rules",),
        ),
        "approval": Target(
            lambda raw: Approval.from_dict(parse_json_object(raw, what="approval")),
            (json.dumps(APPROVAL).encode(),),
            (f"{k}.approval.Approval.from_dict",),
        ),
        "time": Target(
            _text(lambda text: (parse_stamp(text), parse_end(text, "end"), parse_start(text, "start"))),
            (b"2030-01-01T00:00:00Z", b"2030-01-01", b"2030-01-01T00:00:00+02:00"),
            ("adyton.dates.parse_end", "adyton.dates.parse_start", "adyton.collateral.stored_time.parse_stamp"),
        ),
        "address": Target(
            _text(lambda text: parse_address(text, "address")),
            (b"keys.example.org:4433", b"[2001:db8::1]:4433"),
            ("adyton.address.parse_address",),
        ),
        "guest-image": Target(
            lambda raw: parse_guest(parse_json(raw, what="guest image")),
            tuple(json.dumps(document).encode() for document in GUESTS),
            (f"{_A}.guest.parse_guest",),
        ),
        "image-lock": Target(parse_lock, (IMAGE_LOCK,), ("adyton.image.lock.parse_lock",)),
        "guest-settings": Target(
            lambda raw: parse_settings(raw).command(),
            (GuestSettings("app.manifest", "tpm", ("keys:1",), ("a",)).to_bytes(),),
            ("adyton.image.guest_settings.parse_settings",),
        ),
        "dhcp-answer": Target(
            lambda raw: parse_dhcp_answer(raw, transaction=1, hardware=HARDWARE, kind=OFFER),
            (dhcp_answer(1, OFFER), dhcp_answer(1, OFFER, changes={121: b"\x00\x0a\x00\x02\x02", 26: b"\x05\xdc"})),
            ("adyton.image.dhcp.parse_answer", "adyton.image.dhcp.parse_routes"),
        ),
        "dhcp-datagram": Target(
            parse_datagram, (build_datagram(dhcp_answer(1, OFFER)),), ("adyton.image.dhcp.parse_datagram",)
        ),
        "nsm-answer": Target(
            lambda raw: nsm.parse_answer(raw, filled=True),
            (nsm.START + b"\x43abc" + b"\xff" * 9, b"\xa1\x65Error\x6fInvalidArgument"),
            (f"{_A}.nitro.nsm.parse_answer",),
        ),
        "tdx-boot": Target(
            read_boot,
            (ccel.ccel(ccel.settings(), [ccel.STORE], [ccel.STORE]),),
            (f"{_A}.tdx_boot.read_boot",),
        ),
        "guest-result": Target(
            parse_result,
            (b'{"format": "adyton-output/1", "exit_code": 3, "pcrs": {}, "removed": ["run/work/out/a"]}',),
            ("adyton.image.guest_result.parse_result",),
        ),
        "plain-archive": Target(_plain_archive, (_archive(),), ("adyton.image.plain_archive.parse_header",)),
        "kernel-image": Target(
            lambda raw: predict(UKI.parse(raw), b""),
            lambda: (image_files()[0]["adyton.efi"],),
            ("adyton.image.uki.UKI.parse", "adyton.image.pe.PEFile.parse"),
        ),
        "vm-firmware": Target(
            _firmware, (firmware(sev=(*AMD_SEV, KERNEL_HASHES), tdx=((0, 4096, 0, 8192, 0, 1),)),), (_FIRMWARE,)
        ),
        "partition-table": Target(measured_table, lambda: (image_files()[0]["disk.raw"][: 34 * 512],), ()),
        "tpm-quote": Target(
            parse_quote_document, lambda: (TPMScenario().built(),), (f"{_A}.tpm.document.parse_quote_document",)
        ),
        "tpm-attest": Target(
            parse_attest, lambda: (TPMScenario().attest().to_bytes(),), (f"{_A}.tpm.structures.parse_attest",)
        ),
        "tpm-signature": Target(parse_signature, _tpm_signatures, (f"{_A}.tpm.structures.parse_signature",)),
        "tpm-pcrs": Target(
            lambda raw: parse_pcr_values(parse_json(raw, what="PCRs")),
            (json.dumps(["00" * 32] * 24).encode(),),
            (f"{_A}.tpm.document.parse_pcr_values",),
        ),
        "tpm-event-log": Target(
            lambda raw: [parse_event_log(raw).replay(bank) for bank in parse_event_log(raw).algorithms],
            lambda: (TPMScenario().event_log(),),
            (f"{_A}.tpm.event_log.parse_event_log",),
        ),
        "pe": Target(authenticode, lambda: (pe(), pe(table=1280, table_size=16, tail=b"s" * 16)), ()),
        "azure-body": Target(parse_body, lambda: (AzureScenario().body(),), (f"{_A}.azure.evidence.parse_body",)),
        "azure-report": Target(
            parse_hcl_report, lambda: (AzureScenario().hcl_report(),), (f"{_A}.azure.hcl.parse_hcl_report",)
        ),
        "azure-claims": Target(
            lambda raw: parse_claims(raw).attestation_key,
            lambda: (AzureScenario().claims_json(),),
            (f"{_A}.azure.claims.parse_claims",),
        ),
        "tpm-certificates": Target(split_chain, lambda: (join_chain(TPMScenario().chain),), ()),
        "tpm-answers": Target(lambda raw: TPMDevice(_Answer(raw)).nv_public(0x01800A01), (_NV_ANSWER,), ()),
        "guest-image-document": Target(
            lambda raw: parse_image(raw).to_bytes(),
            (json.dumps(image_document()).encode(),),
            ("adyton.image.document.parse_image",),
        ),
        "dashboard-form": Target(
            _form, (b"csrf=a&allow=debug&allow=any-version", b"app=%C3%A9&version=v+1"), (f"{_D}.requests.parse_form",)
        ),
        "config": Target(_text(Config.parse), (CONFIG.encode(),), (f"{k}.config.Config.parse",)),
        "export": Target(
            lambda raw: read_export(io.BytesIO(raw)), (_export(_entries(2), 2),), (f"{k}.audit_export.read_export",)
        ),
        "checkpoint": Target(
            lambda raw: checkpoints_of(raw, "checkpoint"),
            (checkpoint, b'{"grants": [{"checkpoint": ' + checkpoint + b"}]}"),
            (f"{k}.audit_export.checkpoints_of", f"{k}.audit.Checkpoint.from_dict"),
        ),
        "backup-header": Target(parse_header, (bytes(block) + header,), (f"{k}.backup.header.parse_header",)),
        "recovery-share": Target(
            _text(parse_share),
            _shares,
            (f"{k}.backup.shares.parse_share",),
        ),
        "collateral-bundle": Target(_documents, lambda: (_platform()[3],), ("adyton.collateral.bundle.parse_bundle",)),
        "collateral-document": Target(
            lambda raw: verify_document(Document.from_dict(parse_json(raw, what="document"))),
            lambda: _platform()[2],
            ("adyton.collateral.documents.Document.from_dict",),
        ),
        "http-retry-after": Target(_response, (b"120", b"Wed, 21 Oct 2026 07:28:00 GMT"), ()),
        "sim-machine": Target(
            lambda raw: Facts.from_dict(parse_json_object(raw, what="machine")),
            lambda: (json.dumps(_platform()[0]).encode(),),
            ("adyton.sim.chip.Facts.from_dict", "adyton.sim.chip.CertifiedQE.from_dict"),
        ),
        "sim-publication": Target(
            lambda raw: Publication.from_dict(parse_json_object(raw, what="publication")),
            lambda: (json.dumps(_platform()[1]).encode(),),
            ("adyton.sim.vendor.Publication.from_dict",),
        ),
        "protected-file": Target(_protected, _sealed, ("adyton.pfile.committed_state.read_envelope",)),
        "protected-header": Target(
            lambda raw: parse_envelope(raw[:4096].ljust(4096, b"\0")), _sealed, ("adyton.pfile.layout.parse_envelope",)
        ),
        "protected-metadata": Target(
            lambda raw: Metadata.parse(raw[:METADATA_BYTES].ljust(METADATA_BYTES, b"\0")),
            (Metadata(b"a", 100, bytes(32), bytes(100)).to_bytes(),),
            ("adyton.pfile.layout.Metadata.parse",),
        ),
        "link-target": Target(
            lambda raw: parse_target(raw, "link"),
            (b"../blobs/a", b"x" * 4095),
            ("adyton.pfile.side_files.parse_target",),
        ),
        "attributes": Target(
            lambda raw: parse_attributes(raw, "a"),
            (encode_attributes({}), encode_attributes({b"user.a": b"1", b"user.b": bytes(300)})),
            ("adyton.pfile.side_files.parse_attributes",),
        ),
        "recovery-log": Target(_log, _sealed, ("adyton.pfile.recovery.parse_log",)),
        "pack": Target(
            lambda raw: read_contents(io.BytesIO(raw)),
            _pack,
            ("adyton.pack_archive.read_contents", "adyton.pack_archive.parse_index"),
        ),
        "pack-index": Target(
            parse_index,
            (
                b'{"format": "adyton-pack/1", "manifest": "a.manifest", "folders": ["work/f"], "sha256": "'
                + b"0" * 64
                + b'"}',
            ),
            ("adyton.pack_archive.parse_index",),
        ),
    }


_FIRMWARE: Final = "adyton.image.firmware.FirmwareFile.parse"
METADATA_BYTES: Final = len(Metadata(b"a", 0, bytes(32), b"").to_bytes())
_A: Final = "adyton.attest"
_D: Final = "adyton.server.dashboard"
IMAGE_LOCK: Final = (
    b'{"format": "adyton-image-lock/1", "source_date_epoch": 1, "kernel": "7.3.4-cloud-amd64", "packages": [{"name": '
    b'"libc6", "version": "2.36-9", "sha256": "%(hash)s", "bytes": 9, "path": "pool/main/g/glibc/libc6_2.deb"}], '
    b'"wheels": [{"name": "cffi", "version": "2.1", "sha256": "%(hash)s", "file": "cffi-2.1-py3-none-any.whl"}]}'
    % {b"hash": b"11" * 32}
)


class _Answer:
    """A TPM that always answers so."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def exchange(self, command: bytes, timeout_s: float) -> bytes:
        return self._raw

    def close(self) -> None:
        pass


_NV_PUBLIC: Final = struct.pack(">HIHIHHH", 14, 0x01800A01, 0x0B, 0, 0, 16, 2) + bytes(2)
_NV_ANSWER: Final = struct.pack(">HII", 0x8001, 10 + len(_NV_PUBLIC), 0) + _NV_PUBLIC


def _tpm_signatures() -> tuple[bytes, ...]:
    return tuple(TPMScenario(ak_key=key).signature(b"message").to_bytes() for key in (p256("ak"), rsa_key("ak")))


GUESTS: Final = (
    {"tee": "tpm", "boot_applications": ["66" * 32, "77" * 32], "pcr11": "88" * 32},
    {"tee": "tdx", "mrtd": "11" * 48, "rtmr0": "22" * 48, "rtmr1": "33" * 48, "rtmr2": "44" * 48},
    {"tee": "snp", "launch_digest": "55" * 48, "launch_digest_covers": ["kernel", "initrd", "command line", "acpi"]},
)
ATTEST_COVERS: Final[dict[str, tuple[str, ...]]] = {
    "evidence-v3": (f"{_A}.evidence.parse_evidence",),
    "sgx": (f"{_A}.sgx.parse_quote",),
    "tdx-v4": (f"{_A}.tdx.parse_quote",),
    "snp": (f"{_A}.snp.parse_report",),
    "certificate": (f"{_A}.certificates.parse_certificate",),
    "crl": (f"{_A}.certificates.parse_crl",),
    "sgx-extension": (f"{_A}.pck.parse_sgx_extension",),
    "tcb-info": (f"{_A}.tcbinfo.parse_tcb_info",),
    "qe-identity": (f"{_A}.tcbinfo.parse_enclave_identity",),
    "collateral": (f"{_A}.collateral.Collateral.from_dict",),
    "amd-collateral": (f"{_A}.collateral.AMDCollateral.from_dict",),
    "ratls-certificate": (f"{_A}.ratls.parse_certificate",),
    "ratls-evidence": (f"{_A}.ratls.parse_evidence_extension",),
    "ratls-claims": (f"{_A}.ratls.parse_claims",),
    "nitro": (f"{_A}.nitro.document.parse_document",),
    "endorsement": (f"{_A}.google.parse_endorsement",),
    "snp-table": (f"{_A}.snp_table.parse_table",),
    "snp-extended": (f"{_A}.snp.parse_extended_report",),
    "form-envelope": (f"{_A}.forms.read_form",),
}
