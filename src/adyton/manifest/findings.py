"""The findings about a manifest as a table, each with a stable name, and what its measurement does not cover.

The owner is shown every finding before she approves. Those that expose her data she must name, each by its name here
(`adyton approve --allow NAME`). A name says what is exposed as well (`allowed-file=file:/tmp/x`), so that a name which
was given for one file, variable or CA allows no other.
"""

# ruff: noqa: E501 - a table, one finding a line

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum, auto
from typing import TYPE_CHECKING, Final, NamedTuple

from adyton.errors import MalformedManifest, UsageError
from adyton.manifest.model import SGX_SEALING_KEYS, Manifest, Mount
from adyton.manifest.pinned_ca import ca_sha256

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

RAW_REPORT_DATA: Final = "adyton.insecure__raw_report_data"
RAW_REPORT_DATA_TEES: Final = frozenset({"sim", "sgx", "gramine-direct"})
"""Where a manifest with that key runs and may have keys: a simulated enclave, and where Gramine makes the quotes."""


class Danger(IntEnum):
    """How bad a finding is. The highest comes first."""

    EXPOSED = 3  # plaintext or a key is open to the host
    CONTROLLED = 2  # the host chooses what runs, or what it sees
    WEAKENED = 1  # a defence is off, or something is trusted without a check


class Exposes(Enum):
    """Whether a finding opens the owner's data to somebody else, so that she must name it to approve."""

    ALWAYS = auto()
    UNDER_GRAMINE = auto()  # on the platform `sgx` only: elsewhere Adyton's own runtime prevents it
    NEVER = auto()  # a note: it is shown


@dataclass(frozen=True, slots=True)
class Rule:
    """A row of the table. `{}` in key, text and remedy stands for the subject: which file, variable, key or mount.

    `find` gives the subjects in a manifest ("" where the rule has none). None where more than the manifest is needed.
    """

    name: str
    danger: Danger
    exposes: Exposes
    key: str
    what: str
    remedy: str
    find: Callable[[Manifest], Iterable[str]] | None = None

    def about(self, subject: str = "") -> Finding:
        """This finding about one subject, as the manifest writes it."""
        return self.about_shown(one_line(subject, exact=True))

    def about_shown(self, subject: str) -> Finding:
        """This finding about a subject as it is shown, recorded and named."""
        filled = (text.replace("{}", subject) for text in (self.key, self.what, self.remedy))
        return Finding(f"{self.name}={subject}" if subject else self.name, self.danger, self.exposes, *filled)


@dataclass(frozen=True, slots=True)
class Finding:
    """One warning: its stable name, the key that causes it, what it means, what to write instead."""

    name: str
    danger: Danger
    exposes: Exposes
    key: str
    what: str
    remedy: str

    def exposes_on(self, tees: Collection[str]) -> bool:
        """Whether an owner who approves for these platforms must name it."""
        return self.exposes is Exposes.ALWAYS or (self.exposes is Exposes.UNDER_GRAMINE and "sgx" in tees)


_INVISIBLE: Final = frozenset(
    map(chr, (0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0, *range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)))
)  # fmt: skip
"""What str.isprintable lets pass although nothing is seen of it: blank letters, variation selectors (Unicode 15)."""


def one_line(text: str, *, exact: bool = False) -> str:
    """A text of a manifest as one line that can pose as no other: what cannot be seen is written as an escape.

    With `exact` backslashes are escaped as well, so that different texts stay different.
    """
    return "".join(
        char
        if char.isprintable() and char not in _INVISIBLE and not (exact and char == "\\")
        else char.encode("unicode_escape").decode()
        for char in text
    )


def _if(here: bool) -> tuple[str, ...]:
    return ("",) if here else ()


def _allowed_although_trusted(manifest: Manifest) -> Iterable[str]:
    allowed = set(manifest.allowed_files)
    for entry in manifest.trusted_files if allowed else ():
        folders = (entry.uri[: at + 1] for at, char in enumerate(entry.uri) if char == "/")
        if entry.uri in allowed or any(folder in allowed for folder in folders):
            yield entry.uri


def _unlisted(manifest: Manifest, source: str | None) -> Iterable[str]:
    return () if source is None or _is_trusted(manifest, source) else (source,)


def _listed(manifest: Manifest, source: str | None) -> Iterable[str]:
    return (source,) if source is not None and _is_trusted(manifest, source) else ()


def _is_trusted(manifest: Manifest, uri: str) -> bool:
    return any(entry.uri == uri for entry in manifest.trusted_files)


def _unpinned(manifest: Manifest) -> Iterable[str]:
    return sorted(name for name, ca in pinned_keys(manifest).items() if ca is None)


def _mounts(manifest: Manifest, wanted: Callable[[Mount], bool]) -> Iterable[str]:
    return (mount.path for mount in manifest.all_mounts if wanted(mount))


def _is_shared_memory(mount: Mount) -> bool:
    return mount.type == "untrusted_shm"


_E, _C, _W = Danger.EXPOSED, Danger.CONTROLLED, Danger.WEAKENED
_ALWAYS, _GRAMINE, _NOTE = Exposes.ALWAYS, Exposes.UNDER_GRAMINE, Exposes.NEVER
_OUT: Final = "leave it out"

RULES: Final[tuple[Rule, ...]] = (
    Rule("manifest-unknown", _E, _ALWAYS, "manifest", "the manifest of this program is not known here: nothing is known of what it does with the data", "approve it with `adyton approve MANIFEST`, which looks at its manifest"),
    Rule("unchecked-rendition", _E, _ALWAYS, "approval", "it is not known here that what was prepared for Gramine comes from this manifest: the enclave may run anything", "run `adyton build --gramine` on this machine, and approve what it makes"),
    Rule("any-version", _E, _ALWAYS, "approval", "every later program of this signer's product may have the key, whatever its manifest says", "approve by measurement, without --by-signer"),
    Rule("egress-in-clear", _E, _ALWAYS, "adyton.egress", "what the program exchanges with {} is in clear: the host reads and changes it, and says which machine that is", 'pin the CA of that server: ca_file = "file:ca.pem"', lambda m: (one.identity for one in m.adyton.egress if one.ca is None and one.is_final)),
    Rule("foreign-signer", _E, _ALWAYS, "approval", "the signer {} is not yours: whatever it signs from now on may have the key", "approve by measurement, or build with your own signer"),
    Rule("foreign-ca", _E, _ALWAYS, "adyton.owners", "a key of yours would come from a key server that is not yours ({}: name of the key @ SHA-256 of the CA)", "pin your own ca.crt for it, or rename the key"),
    Rule("debug", _E, _ALWAYS, "sgx.debug", "a debug enclave: the host can read its memory, keys and data", "leave it out; key servers refuse debug enclaves", lambda m: _if(m.sgx.debug)),
    Rule("host-acpi", _E, _ALWAYS, "approval", "the host writes the ACPI tables of the guest, whose code the kernel runs before Adyton starts and which can write all memory", "pin RTMR0 (--rtmr0, or a guest image document that has it for this machine)"),
    Rule("key-in-manifest", _E, _ALWAYS, "fs.insecure__keys.{}", "the key stands in the manifest, which everyone may read", "take it out and let a key server release the key", lambda m: sorted(m.insecure_keys)),
    Rule("output-in-clear", _E, _ALWAYS, "adyton.insecure__stdio", "what the program prints goes to the host in clear", "leave it out: output then goes to an encrypted log", lambda m: _if(m.adyton.insecure_stdio)),
    Rule("shared-memory", _E, _ALWAYS, "fs.mounts", "{} is memory shared with the host, which reads and writes it", "leave the mount out", lambda m: _mounts(m, _is_shared_memory)),
    Rule("unlisted-files", _C, _ALWAYS, "sgx.file_check_policy", "every file under the mounts is readable unchecked: the host chooses what the program loads", 'write "strict", and list the files', lambda m: _if(m.file_check_policy != "strict")),
    Rule("arguments-from-host", _C, _ALWAYS, "loader.insecure__use_cmdline_argv", "the host chooses the arguments, hence among readable files the script that runs", "write the arguments into loader.argv", lambda m: _if(m.use_cmdline_argv)),
    Rule("environment-from-host", _C, _ALWAYS, "loader.insecure__use_host_env", "the host chooses the whole environment (LD_PRELOAD, PYTHONPATH, …)", "write the variables into loader.env", lambda m: _if(m.use_host_env)),
    Rule("variable-from-host", _C, _ALWAYS, "loader.env.{}", "the host chooses the value of {}", 'write loader.env.{} = "…"', lambda m: m.env_passthrough),
    Rule("allowed-file", _C, _ALWAYS, "sgx.allowed_files", "{} is read and written unchecked and in clear", "list what is read in sgx.trusted_files, and put what is written on an encrypted mount", lambda m: m.allowed_files),
    Rule("unchecked-file", _C, _ALWAYS, "sgx.trusted_files", "{} is allowed, too, which is looked at first: its hash is never checked", "take it, or the folder that it lies in, out of sgx.allowed_files", _allowed_although_trusted),
    Rule("unlisted-arguments", _C, _ALWAYS, "loader.argv_src_file", "{} is not a trusted file: Adyton refuses to start, Gramine would read it unchecked", "list it in sgx.trusted_files", lambda m: _unlisted(m, m.argv_src_file)),
    Rule("unlisted-environment", _C, _ALWAYS, "loader.env_src_file", "{} is not a trusted file: Adyton refuses to start, Gramine would read it unchecked", "list it in sgx.trusted_files", lambda m: _unlisted(m, m.env_src_file)),
    Rule("host-device", _C, _GRAMINE, "fs.mounts", "{} is a device of the host: what is read and written there is the host's (under SGX)", "leave the mount out", lambda m: _mounts(m, lambda mount: mount.type == "chroot" and (mount.uri or "").startswith("dev:"))),
    Rule("ioctl-to-host", _C, _GRAMINE, "sys.allowed_ioctls", "the request {} passes data to a device of the host (under SGX)", _OUT, lambda m: map(hex, m.allowed_ioctls)),
    Rule("unpinned-key", _C, _ALWAYS, "adyton.owners", "no owner is pinned for key {}: a false key server could hand out its own key and read the outputs", 'name the owner\'s CA: [adyton.owners.me] ca_file = "file:ca.crt"', _unpinned),
    Rule("input-from-host", _C, _ALWAYS, "adyton.insecure__stdin", "the host writes standard input", "read an encrypted file instead", lambda m: _if(m.adyton.insecure_stdin)),
    Rule("network-of-host", _C, _NOTE, "adyton.network", "the program has the host's network: what it sends and receives is the host's to see and change", 'write network = "none", or have the program use TLS with a pinned peer', lambda m: _if(m.adyton.network == "host")),
    Rule("clients", _C, _NOTE, "adyton.ingress", "clients reach the program through the ingress {}: anybody who reaches its port may send", "leave it out unless the program is a server that expects strangers", lambda m: (one.name for one in m.adyton.ingress if one.client_ca is None and one.client_policy is None and one.is_final)),
    Rule("clients-of-ca", _C, _NOTE, "adyton.ingress", "clients reach the program through an ingress ({}: its name @ SHA-256 of their CA): whoever has a certificate of that CA may send", "leave it out unless you know that CA", lambda m: (f"{one.name} @ {ca_sha256(one.client_ca)}" for one in m.adyton.ingress if one.client_ca is not None)),
    Rule("clients-by-policy", _C, _NOTE, "adyton.ingress", "clients reach the program through an ingress ({}: its name @ SHA-256 of the policy that their evidence must meet)", "read that policy: `adyton explain-measurement` shows it", lambda m: (f"{one.name} @ {one.policy_sha256}" for one in m.adyton.ingress if one.client_policy is not None)),
    Rule("egress", _C, _NOTE, "adyton.egress", "the program reaches a server outside ({}: address @ SHA-256 of its CA): whoever has that server reads what it is sent, and answers", "leave it out unless the program needs that server", lambda m: (one.identity for one in m.adyton.egress if one.ca is not None)),
    Rule("other-owner", _C, _NOTE, "adyton.owners", "another owner's key server has a part in it ({}: name of the key @ SHA-256 of the CA); what is written under that key, that owner reads", "approve only if you know that owner"),
    Rule("no-freshness", _W, _NOTE, "protocols", "the ra-tls protocol has no freshness: the key may go to what was at some time this program", "allow the protocol adyton alone, where the program runs under Adyton"),
    Rule("unused-key", _W, _NOTE, "key", "the manifest does not ask for key {}", "approve only what it asks for"),
    Rule("names-from-host", _W, _NOTE, "sys.enable_extra_runtime_domain_names_conf", "host name and name servers are the host's", "leave it out unless the program uses the network", lambda m: _if(m.domain_names_from_host)),
    Rule("unchecked-arguments", _W, _GRAMINE, "loader.argv_src_file", "Gramine reads {} unchecked although it is listed", "use the inline key", lambda m: _listed(m, m.argv_src_file)),
    Rule("unchecked-environment", _W, _GRAMINE, "loader.env_src_file", "Gramine reads {} unchecked although it is listed", "use the inline key", lambda m: _listed(m, m.env_src_file)),
    Rule("no-aslr", _W, _ALWAYS, "loader.insecure__disable_aslr", "address randomisation is off (under SGX)", _OUT, lambda m: _if(m.disable_aslr)),
    Rule("unsigned-grants", _W, _ALWAYS, "adyton.insecure__ra_tls", "the host may have keys asked for over RA-TLS, where no grant is signed: with the key server's stolen TLS key it gives the program keys of its own choosing, and reads what is written under them", _OUT, lambda m: _if(m.adyton.ra_tls)),
    Rule("raw-report-data", _W, _ALWAYS, RAW_REPORT_DATA, "whoever takes the program over has evidence over any bytes: it can ask for this program's keys again as Adyton does, and speak RA-TLS in its name", "leave it out, unless Gramine's own RA-TLS library runs in the program; only sim and sgx take it", lambda m: _if(m.adyton.raw_report_data)),
    Rule("eventfd-of-host", _W, _ALWAYS, "sys.insecure__allow_eventfd", "eventfd goes through the host (under SGX)", _OUT, lambda m: _if(m.allow_eventfd)),
    Rule("fault-addresses", _W, _ALWAYS, "sgx.insecure__allow_memfaults_without_exinfo", "fault addresses are the host's word (under SGX)", _OUT, lambda m: _if(m.sgx.allow_memfaults_without_exinfo)),
    Rule("exitless-calls", _W, _ALWAYS, "sgx.insecure__rpc_thread_num", "exitless system calls (under SGX)", _OUT, lambda m: _if(m.sgx.rpc_thread_num > 0)),
    Rule("flock", _W, _NOTE, "sys.experimental__enable_flock", "flock is experimental in Gramine (under SGX)", _OUT, lambda m: _if(m.enable_flock)),
    Rule("mocked-call", _W, _NOTE, "sys.debug__mock_syscalls", "the results of the system call {} are made up (under SGX)", _OUT, lambda m: m.mock_syscalls),
    Rule("sealed-to-signer", _W, _NOTE, "fs.mounts", "the key of {} is the processor's, the same for every enclave of this signer (under SGX)", 'use "_sgx_mrenclave", or a key server\'s key', lambda m: _mounts(m, lambda mount: mount.type == "encrypted" and mount.key_name == SGX_SEALING_KEYS[1])),
    Rule("unpinned-folder", _W, _NOTE, "fs.mounts", "the encrypted folder {} is written and not pinned: between two runs the host can put back older files, and remove files", "write pinned = true at the mount, and pin the folder (adyton pin); under SGX it cannot be had", lambda m: _mounts(m, lambda mount: mount.type == "encrypted" and not mount.pinned and mount.path not in m.adyton.read_only)),
    Rule("library-log", _W, _GRAMINE, "loader.log_level", "the log may show data (under SGX)", _OUT, lambda m: _if(m.log_level in ("warning", "debug", "trace", "all"))),
)  # fmt: skip
"""Every finding there is. A name is never reused for something else: it stands in audit records."""

_BY_NAME: Final = {rule.name: rule for rule in RULES}


def finding(name: str, subject: str = "") -> Finding:
    """The finding of this name about this subject."""
    return _BY_NAME[name].about(subject)


def finding_named(full: str) -> Finding:
    """The finding that is recorded under a name with its subject. Raises UsageError where there is none."""
    name, _, subject = full.partition("=")
    if name not in _BY_NAME:
        raise UsageError(
            f"{full[:80]!r} is the name of no finding",
            check="name of a finding",
            expected=", ".join(sorted(_BY_NAME)),
            seen=full[:80],
            remedy="take the names that the refusal gives",
        )
    return _BY_NAME[name].about_shown(subject)


def words(full: str) -> str:
    """The meaning of a recorded finding, or its name if this version of Adyton does not know it."""
    return finding_named(full).what if full.partition("=")[0] in _BY_NAME else full


def findings(manifest: Manifest) -> tuple[Finding, ...]:
    """Every warning about a manifest, the most dangerous first, then in the order of the table. Each name comes once."""
    found = {
        item.name: item for rule in RULES if rule.find is not None for item in map(rule.about, rule.find(manifest))
    }
    return by_danger(found.values())


def by_danger(found: Iterable[Finding]) -> tuple[Finding, ...]:
    """The most dangerous first, otherwise as they come."""
    return tuple(sorted(found, key=lambda item: -item.danger))


def pinned_keys(manifest: Manifest) -> dict[str, str | None]:
    """Every key and secret that a key server must bring, with the SHA-256 of the CA that is pinned for it, or None."""
    owners = {owner.name: owner for owner in manifest.adyton.owners}
    only = next(iter(owners.values())) if len(owners) == 1 else None
    found = {name: manifest.owner_of(name) for name in manifest.key_names}
    for secret in manifest.adyton.secrets:
        found[secret.name] = owners[secret.owner] if secret.owner is not None else only
    return {name: None if owner is None or owner.ca is None else ca_sha256(owner.ca) for name, owner in found.items()}


def findings_table() -> str:
    """The table of docs/manifest.md: every finding, its danger, whether it must be named, what it means."""
    must = {Exposes.ALWAYS: "yes", Exposes.UNDER_GRAMINE: "on `sgx`", Exposes.NEVER: "no"}
    lines = ["| name | danger | named to approve | key | what |", "| --- | --- | --- | --- | --- |"]
    for rule in sorted(RULES, key=lambda rule: -rule.danger):
        has_subject = "{}" in rule.key + rule.what
        name = f"`{rule.name}={'…' if has_subject else ''}`" if has_subject else f"`{rule.name}`"
        what = rule.what.replace("{}", "…")
        lines.append(
            f"| {name} | {rule.danger.name.lower()} | {must[rule.exposes]} | `{rule.key.replace('{}', '*')}` | {what} |"
        )
    return "\n".join(lines) + "\n"


def not_covered(manifest: Manifest) -> tuple[str, ...]:
    """Everything that a measurement of this manifest does not cover, in words for the owner who approves it."""
    found = [
        f"the contents of {mount.path} (encrypted, key {mount.key_name}): whoever holds that key wrote them"
        + ("" if mount.pinned else ", and an older whole file cannot be told from the newest")
        for mount in manifest.encrypted_mounts
    ]
    found += [f"{uri}: read and written unchecked" for uri in manifest.allowed_files]
    if manifest.file_check_policy != "strict":
        found.append("every other file under the mounts: allow_all_but_log")
    if manifest.use_cmdline_argv:
        found.append("the program's arguments: given by the host")
    if manifest.use_host_env:
        found.append("the environment: given by the host")
    found += [f"the environment variable {name}: given by the host" for name in manifest.env_passthrough]
    if manifest.adyton.insecure_stdin:
        found.append("standard input: given by the host")
    if manifest.adyton.network == "host":
        found.append("whatever comes over the network")
    found += [f"what clients send through the ingress {one.name}" for one in manifest.adyton.ingress]
    found += [f"what {one.address} answers to the program" for one in manifest.adyton.egress]
    if manifest.domain_names_from_host:
        found.append("host name and name servers")
    if manifest.adyton.raw_report_data:
        found.append("what the program asks evidence over: its own 64 bytes, which Adyton's protocols would take")
    if manifest.adyton.ra_tls:
        found.append(
            "who gives the keys, where the program is started with --provisioning ra-tls: the key server's TLS key"
        )
    found += [f"the secret {secret.name}: delivered by the key server" for secret in manifest.adyton.secrets]
    found.append("the clock, the number of processors, scheduling, and when the program is stopped: the host's")
    found.append(
        "the kernel under the program (in tdx and snp the guest image's measurement says it; in sim nothing does)"
    )
    return tuple(map(one_line, found))


def tee_refusals(manifest: Manifest, tee: str) -> tuple[tuple[str, str], ...]:
    """Keys (with the reason) for which this manifest neither runs nor has keys on a TEE, as policies name TEEs."""
    return tuple((check.name, check.reason) for check in _tee_refusals(manifest, tee.partition(":")[0]))


class _Refused(NamedTuple):
    name: str
    reason: str
    expected: str
    remedy: str


def _tee_refusals(manifest: Manifest, tee: str) -> Iterator[_Refused]:
    if manifest.adyton.raw_report_data and tee not in RAW_REPORT_DATA_TEES:
        yield _Refused(
            RAW_REPORT_DATA,
            "evidence over bytes of the program's choice could be taken for the runtime's own",
            f"false, unless under {', '.join(sorted(RAW_REPORT_DATA_TEES))}",
            "leave it out and build again; Adyton's own RA-TLS needs adyton.insecure__ra_tls instead",
        )
    if tee == "sgx" and any(mount.pinned for mount in manifest.encrypted_mounts):
        yield _Refused(
            "fs.mounts[].pinned",
            "under Gramine no keeper stands beside the program that could hold its folders to a root",
            "no pinned mount under sgx",
            "run under tdx or in another confidential machine, or take pinned = true out",
        )
    if manifest.adyton.ingress and tee == "sgx":
        yield _Refused(
            "adyton.ingress",
            "under Gramine no keeper stands beside the program that could prove its connections",
            "none under sgx",
            "run under tdx or in another confidential machine, or let the program speak RA-TLS by itself",
        )

    if manifest.adyton.egress and tee == "sgx":
        yield _Refused(
            "adyton.egress",
            "under Gramine no process stands beside the program that could limit where it connects to",
            "none under sgx",
            "run under tdx or in another confidential machine, or let the program make its own TLS with a pinned peer",
        )


def check_tee(manifest: Manifest, tee: str) -> None:
    """Raise MalformedManifest where `tee_refusals` has any."""
    name = tee.partition(":")[0]
    for refused in _tee_refusals(manifest, name):
        raise MalformedManifest(
            f"a manifest with {refused.name} is refused under {name}: {refused.reason}",
            check=f"manifest key {refused.name}",
            expected=refused.expected,
            seen=f"it is there, under {name}",
            remedy=refused.remedy,
        )


def runtime_refusals(manifest: Manifest) -> tuple[tuple[str, str], ...]:
    """Keys (with the reason) that Adyton's own runtime cannot honour and hence refuses. Under `sgx` Gramine may."""
    return tuple((key, reason) for key, reason, _ in _beyond_the_runtime(manifest))


def check_runtime(manifest: Manifest) -> None:
    """Raise MalformedManifest where `runtime_refusals` has any."""
    for key, reason, remedy in _beyond_the_runtime(manifest):
        raise MalformedManifest(
            f"Adyton's runtime cannot honour {key}: {reason}",
            check=f"manifest key {key}",
            expected="a key that this runtime honours (docs/manifest.md)",
            seen=key,
            remedy=remedy,
        )


def _beyond_the_runtime(manifest: Manifest) -> Iterator[tuple[str, str, str]]:
    """Each key that the runtime cannot honour, why, and what to do."""
    leave = "take it out, or run under --tee sgx, where Gramine reads it"
    if manifest.disallow_subprocesses:
        yield "sys.disallow_subprocesses", "the sandbox does not forbid new processes", leave
    if manifest.mock_syscalls:
        yield "sys.debug__mock_syscalls", "made-up results of system calls exist only under Gramine", leave
    if manifest.allowed_ioctls:
        yield "sys.allowed_ioctls", "no host device is visible to which an ioctl could pass", leave
    if manifest.file_check_policy != "strict":
        listing = 'write "strict", and list the files that the program needs; `adyton new` finds them'
        yield "sgx.file_check_policy", "a file that no list names is not there at all", listing
    if manifest.root.type not in ("chroot", "tmpfs"):
        elsewhere = "mount the encrypted folder at a path of its own in fs.mounts"
        yield "fs.root.type", "an encrypted folder needs a path of its own in fs.mounts", elsewhere
    for uri in manifest.allowed_files:
        if uri.startswith("dev:"):
            yield "sgx.allowed_files", f"{uri} is a device", leave
    for position, mount in enumerate(manifest.mounts):
        if _is_shared_memory(mount):
            private = "leave this mount out; /dev/shm is there, in private memory"
            yield f"fs.mounts[{position}]", "memory shared with the host exists only under SGX", private
        if mount.type == "encrypted" and mount.key_name.startswith("_sgx_"):
            reason = f"the sealing key {mount.key_name} exists only under SGX"
            yield f"fs.mounts[{position}].key_name", reason, leave
