"""A measurement in words: for the owner before she approves it, and for anybody who asks why it changed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from adyton.manifest.findings import findings, not_covered, one_line
from adyton.manifest.model import Manifest
from adyton.manifest.mrenclave import Layout
from adyton.manifest.pinned_ca import ca_sha256
from adyton.manifest.schema_check import format_size
from adyton.manifest.sigstruct import Sigstruct
from adyton.values import Digest


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what stands under it."""

    title: str
    lines: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "lines", tuple(map(one_line, self.lines)))


def explain_manifest(manifest: Manifest) -> tuple[Section, ...]:
    """Say in words what a manifest lets run, and what it leaves open."""
    adyton = manifest.adyton
    argv = manifest.argv if manifest.argv is not None else (manifest.entrypoint,)
    program = [
        f"{manifest.entrypoint} in {manifest.start_dir}, as user {manifest.uid}, group {manifest.gid}",
        "arguments: " + ("from the host" if manifest.use_cmdline_argv else " ".join(map(repr, argv))),
    ]
    if manifest.argv_src_file is not None:
        program[1] = f"arguments: from {manifest.argv_src_file}"
    environment = [f"{name}={value}" for name, value in manifest.env.items()]
    environment += [f"{name}: from the host" for name in manifest.env_passthrough]
    if manifest.use_host_env:
        environment.append("everything else: from the host")
    if manifest.env_src_file is not None:
        environment.append(f"and what {manifest.env_src_file} holds")
    keys = []
    for name in manifest.key_names:
        owner = manifest.owner_of(name)
        keys.append(
            f"{name}: from the key server of {owner.name} ({owner.server_name})" if owner else f"{name}: no owner"
        )
    keys += [f"{name}: in clear in the manifest" for name in manifest.insecure_keys]
    keys += [f"secret {secret.name} into {secret.env or secret.file}" for secret in adyton.secrets]
    outside = [
        f"network: {adyton.network}",
        *(f"ingress: {one.name}, clients {one.clients}" for one in adyton.ingress if one.is_final),
        *(
            f"  {line}"
            for one in adyton.ingress
            if one.client_policy is not None
            for line in one.client_policy.splitlines()
        ),
        *(
            f"egress: {one.name}:{one.port} inside is {one.address}, "
            + ("in clear" if one.ca is None else f"TLS under the CA {ca_sha256(one.ca)}")
            for one in adyton.egress
            if one.is_final
        ),
        *([f"GPUs: {adyton.gpus}"] if adyton.gpus else []),
        "output: "
        + ("to the host in clear" if adyton.insecure_stdio else f"encrypted log, key {manifest.log_key_name}"),
        "input: " + ("from the host" if adyton.insecure_stdin else "none"),
    ]
    return (
        Section("program", tuple(program)),
        Section("environment", tuple(environment) or ("empty",)),
        Section("trusted files", _trusted(manifest)),
        Section("mounts", tuple(_mounts(manifest))),
        Section("keys", tuple(keys) or ("none",)),
        Section("outside", tuple(outside)),
        Section("warnings", tuple(f"{item.key}: {item.what}" for item in findings(manifest)) or ("none",)),
        Section("not covered by the measurement", not_covered(manifest)),
    )


def _trusted(manifest: Manifest) -> tuple[str, ...]:
    groups: dict[str, list[int]] = defaultdict(list)
    for entry in manifest.trusted_files:
        parts = entry.host_path.split("/")
        depth = 4 if parts[0] == "" else 1
        groups["/".join(parts[:depth]) + ("/" if len(parts) > depth else "")].append(entry.size_bytes or 0)
    total = sum(sum(sizes) for sizes in groups.values())
    lines = [f"{len(manifest.trusted_files)} files, {total / 1e6:.1f} MB, each by its SHA-256"]
    ranked = sorted(groups.items(), key=lambda item: -sum(item[1]))
    lines += [f"{name}: {len(sizes)} files, {sum(sizes) / 1e6:.1f} MB" for name, sizes in ranked[:20]]
    if len(ranked) > 20:
        lines.append(f"and {sum(len(sizes) for _, sizes in ranked[20:])} files elsewhere")
    return tuple(lines)


def _mounts(manifest: Manifest) -> list[str]:
    found = []
    for mount in manifest.all_mounts:
        if mount.type == "tmpfs":
            found.append(f"{mount.path}: memory, empty at the start")
        elif mount.type == "encrypted":
            how = "read only" if mount.path in manifest.adyton.read_only else "read and written"
            found.append(f"{mount.path}: encrypted files of {mount.host_path}, key {mount.key_name}, {how}")
        else:
            found.append(f"{mount.path}: trusted and allowed files of {mount.host_path}")
    return found


def explain_signature(sigstruct: Sigstruct) -> Section:
    """A SIGSTRUCT in words."""
    return Section(
        "signature",
        (
            f"MRSIGNER {sigstruct.mrsigner}",
            f"product {sigstruct.isv_prod_id}, security version {sigstruct.isv_svn}, date {sigstruct.date}",
            "debug enclave: the host can read everything" if sigstruct.debug else "not a debug enclave",
        ),
    )


def explain_runtime(digest: Digest, parts: Mapping[str, Digest]) -> Section:
    """The runtime that a workload measurement names, part by part."""
    return Section(
        "runtime (Adyton itself)",
        (f"identity {digest}", *(f"{name}: {part}" for name, part in parts.items())),
    )


def explain_layout(layout: Layout) -> Section:
    """The areas of an SGX enclave in the order in which MRENCLAVE takes them."""
    lines = [f"enclave of {format_size(layout.enclave_bytes)}, SSA frames of {layout.ssa_pages} pages"]
    for area in layout.areas:
        access = "".join(letter if area.flags & bit else "-" for letter, bit in (("r", 1), ("w", 2), ("x", 4)))
        kind = "thread control" if area.flags == 0x100 else access
        how = "added, content not measured" if area.content is None else "measured with its content"
        end = area.address + area.size_bytes
        lines.append(f"{area.address:#x}-{end:#x} {area.name} ({kind}, {area.size_bytes >> 12} pages): {how}")
    return Section("enclave", tuple(lines))
