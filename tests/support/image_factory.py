"""A guest image document for tests, as plain data. docs/registers.md shows the same one."""

from __future__ import annotations

import hashlib
from typing import Any

from adyton.manifest.measure import combine
from adyton.values import Digest


def _hex(text: str, algorithm: str = "sha256") -> str:
    return hashlib.new(algorithm, text.encode()).hexdigest()


def _pcrs(boot: str, bank: str) -> dict[str, str]:
    zeros = bytes(hashlib.new(bank).digest_size).hex()
    return {"4": _hex(f"{boot} pcr4", bank), "11": _hex("pcr11", bank), "12": zeros, "13": zeros}


def image_document() -> dict[str, Any]:
    """A document with one entry for TDX and one for SEV-SNP. Each call makes a new one, to be changed freely."""
    runtime = {name: _hex(name) for name in ("adyton", "python interpreter")}
    return {
        "format": "adyton-guest-image/1",
        "version": "0.1.0",
        "architecture": "x86_64",
        "source_date_epoch": 1700000000,
        "inputs": [{"name": "linux-image", "version": "7.3-1", "sha256": _hex("kernel package")}],
        "files": {
            name: {"sha256": _hex(name), "bytes": 4096}
            for name in ("adyton.efi", "disk.raw", "root.erofs", "root.verity")
        },
        "verity": {
            "root_hash": _hex("root"),
            "salt": "00" * 32,
            "data_blocks": 1024,
            "data_block_size": 4096,
            "hash_block_size": 4096,
            "hash": "sha256",
        },
        "command_line": f"adyton.root={_hex('root')} panic=-1",
        "runtime": {
            "identity": combine({name: Digest.from_hex(value) for name, value in runtime.items()}).hex(),
            "parts": runtime,
        },
        "pe": {name: {"sha256": _hex(name), "sha384": _hex(name, "sha384")} for name in ("uki", "linux")},
        "pcrs": {
            boot: {bank: _pcrs(boot, bank) for bank in ("sha256", "sha384")} for boot in ("kernel-boot", "disk-boot")
        },
        "tdx": [
            {
                "firmware": {"name": "OVMF.fd 2025.02", "sha256": _hex("ovmf")},
                "page_order": "single-pass",
                "mrtd": _hex("mrtd", "sha384"),
                "rtmr1": _hex("rtmr1", "sha384"),
                "rtmr2": _hex("rtmr2", "sha384"),
                "boot": "disk-boot",
                "acpi": {"rtmr0": _hex("rtmr0", "sha384"), "qemu": "10.0.2", "machine": "q35, 1 processor, 2 GiB"},
            }
        ],
        "snp": [
            {
                "firmware": {"name": "OVMF AmdSev", "sha256": _hex("amdsev")},
                "vcpus": 1,
                "vcpu_type": "EPYC-v4",
                "guest_features": 1,
                "launch_digest": _hex("launch", "sha384"),
                "covers": ["cmdline", "initrd", "kernel"],
            }
        ],
    }
