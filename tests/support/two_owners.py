"""Two owners and one program: a hospital that brings patients and receives results, and a vendor who brings a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from adyton.agreement.document import Agreement
from adyton.keystore.tables.keys import KEY
from adyton.manifest.measure import combine, workload_measurement
from adyton.manifest.model import parse_manifest
from adyton.manifest.signed import SignedManifest, load_signed, signed_attributes
from adyton.manifest.sigstruct import load_signer, sign
from adyton.release.client import Released, obtain_keys
from adyton.runtime import identity
from adyton.workflow.agreement import draft_agreement, sign_agreement
from adyton.workflow.agreement_files import read_agreement, signature_path
from adyton.workflow.approve import Approved, approve
from tests.support.owner_world import RUNTIME_PARTS, Running, World, make_world, running, signer_pem
from tests.support.release_by_hand import entries

KEYS = {"hospital": ("patients", "results"), "vendor": ("model",)}
NAMES = ("hospital", "vendor")


@dataclass
class TwoOwners:
    """Both owners, on one simulated platform, and the program that both look at. One folder stands for their mail."""

    folder: Path
    hospital: World
    vendor: World

    def world(self, name: str) -> World:
        """One of them."""
        return self.hospital if name == "hospital" else self.vendor

    def program(self, *, adyton: str = "", read_only: str = '"/patients", "/model"', **owners: str) -> Path:
        """A built and signed program. `adyton` are further entries of its table. Returns its manifest."""
        whose = {"patients": "hospital", "results": "hospital", "model": "vendor", **owners}
        mounts = "".join(
            f'\n[[fs.mounts]]\ntype = "encrypted"\npath = "/{name}"\nuri = "file:{name}"\nkey_name = "{name}"\n'
            for name in whose
        )
        text = (
            'libos.entrypoint = "/usr/bin/python3"\nloader.argv = ["python3", "study.py"]\n'
            f"[adyton]\nread_only = [{read_only}]\n{adyton}\n[adyton.keys]\n"
            + "".join(f'{name} = "{owner}"\n' for name, owner in whose.items())
            + "".join(f"[adyton.owners.{name}]\nca = '''{self.world(name).ca_pem}'''\n" for name in NAMES)
            + mounts
            + f'\n[[sgx.trusted_files]]\nuri = "file:study.py"\nsha256 = "{"ab" * 32}"\n\n'
        )
        raw, manifest = text.encode(), parse_manifest(text)
        signature = sign(
            workload_measurement(raw, combine(RUNTIME_PARTS)),
            load_signer(signer_pem()),
            attributes=signed_attributes(manifest),
            isv_prod_id=manifest.sgx.isv_prod_id,
            isv_svn=manifest.sgx.isv_svn,
        )
        path = self.folder / "study.manifest"
        path.write_bytes(raw)
        path.with_suffix(".sig").write_bytes(signature.to_bytes())
        return path

    def signed(self, manifest: Path) -> SignedManifest:
        """The program as a run has it."""
        return load_signed(manifest.read_bytes(), manifest.with_suffix(".sig").read_bytes(), combine(RUNTIME_PARTS))

    def agree(
        self, manifest: Path, *, runs: int = 20, signers: tuple[str, ...] = NAMES, privacy: str = ""
    ) -> tuple[Path, Agreement]:
        """The hospital drafts an agreement, and these owners sign it. Returns its file, and what it says.

        `privacy` is a further table of it.
        """
        file = self.folder / "study.toml"
        agreement = draft_agreement(manifest, file, runs=runs, home=self.hospital.home.path).agreement
        if privacy:
            file.write_text(file.read_text() + privacy)
            agreement = read_agreement(file)
        for name in signers:
            sign_agreement(file, manifest=manifest, home=self.world(name).home.path)
            assert signature_path(file, name).exists()
        return file, agreement

    def approve(self, manifest: Path, agreement: Path | None, names: tuple[str, ...] = NAMES) -> list[Approved]:
        """These owners approve the program for their keys, on the ground of an agreement."""
        return [
            approve(
                manifest,
                keys=KEYS[name],
                tees=[self.hospital.tee],
                agreement=agreement,
                home=self.world(name).home.path,
            )
            for name in names
        ]

    def agreed(self, *, runs: int = 20, privacy: str = "") -> tuple[Path, str]:
        """A program, signed and approved by both. Returns its manifest and the agreement's id."""
        manifest = self.program()
        file, agreement = self.agree(manifest, runs=runs, privacy=privacy)
        self.approve(manifest, file)
        return manifest, agreement.id

    def obtain(self, manifest: Path, servers: Mapping[str, Running], *agreements: str, **changes: Any) -> Released:
        """Ask both for their keys, as `adyton run` does."""
        signed = self.signed(manifest)
        addresses = {name: server.adyton for name, server in servers.items()}
        source = self.hospital.enclave(signed)
        return obtain_keys(signed, source, addresses, agreements=agreements, timeout_s=10, **changes)


@contextmanager
def two_owners(folder: Path) -> Iterator[TwoOwners]:
    """Make both homes below `folder`. Programs are measured with the Adyton of the tests."""
    for name in (*NAMES, "mail"):
        (folder / name).mkdir()
    runtime = identity.RuntimeIdentity(combine(RUNTIME_PARTS), RUNTIME_PARTS)
    with (
        pytest.MonkeyPatch.context() as patch,
        make_world(folder / "hospital") as hospital,
        make_world(folder / "vendor") as other,
    ):
        patch.setattr(identity, "runtime_identity", lambda: runtime)
        vendor = replace(other, platform=hospital.platform, collateral=hospital.collateral)
        found = TwoOwners(folder / "mail", hospital, vendor)
        for name, keys in KEYS.items():
            with found.world(name).store.write() as change:
                for key in keys:
                    change.add_key(key, key.encode().ljust(16, b"."), KEY, actor="test")
        yield found


@contextmanager
def both_running(owners: TwoOwners) -> Iterator[dict[str, Running]]:
    """Both key servers, running."""
    with running(owners.hospital) as hospital, running(owners.vendor) as vendor:
        yield {"hospital": hospital, "vendor": vendor}


def refused_lines(world: World) -> list[str]:
    """The failed lines of the closest approval in the last refusal."""
    (closest, *_) = entries(world, "denial")[-1]["detail"]["approvals"]
    return [line["name"] for line in closest["failed"]]
