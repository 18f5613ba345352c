"""Explain a measurement in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adyton.errors import BadSignature
from adyton.manifest.explain import (
    Section,
    explain_layout,
    explain_manifest,
    explain_runtime,
    explain_signature,
)
from adyton.manifest.host import find_gramine
from adyton.manifest.measure import workload_measurement
from adyton.manifest.model import MAX_MANIFEST_BYTES, parse_manifest
from adyton.manifest.mrenclave import MAX_PAL_BYTES, Offsets, lay_out, measure, parse_pal
from adyton.manifest.signed import decode, read_capped, signature_path
from adyton.manifest.sigstruct import SIGSTRUCT_BYTES, parse_sigstruct
from adyton.runtime.gramine_backend import read_prepared, stem_of
from adyton.values import Measurement
from adyton.workflow.guest_image import read_image, runtime_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Explained:
    """The measurements of a manifest or signature, by name, and their content, section by section."""

    measurements: Mapping[str, str]
    sections: tuple[Section, ...]
    wanted: Measurement | None

    @property
    def matches(self) -> tuple[str, ...]:
        """The names of the measurements that equal the wanted one."""
        return tuple(name for name, text in self.measurements.items() if text == str(self.wanted))

    @property
    def for_another_runtime(self) -> bool:
        """Whether the manifest was signed for another Adyton, Python or library than the installed ones."""
        signed = self.measurements.get("signed measurement")
        return signed is not None and self.measurements.get("workload measurement under this runtime", signed) != signed

    def require(self) -> None:
        """Raise BadSignature where a measurement is wanted and none equals it."""
        if self.wanted is not None and not self.matches:
            raise BadSignature(
                "this is not the manifest of that measurement",
                check="measurement",
                expected=self.wanted,
                seen=" or ".join(self.measurements.values()),
                remedy="adyton diff says what differs, where you have the manifest of that measurement",
            )

    def to_dict(self) -> dict[str, Any]:
        """The document of `adyton explain-measurement --json`."""
        document: dict[str, Any] = {
            "measurements": dict(self.measurements),
            "sections": {section.title: list(section.lines) for section in self.sections},
        }
        return document if self.wanted is None else document | {"matches": list(self.matches)}


def explain_measurement(
    manifest: Path, *, measurement: Measurement | None = None, runtime: Path | None = None
) -> Explained:
    """Explain a manifest's measurement, or a signature's, as `adyton explain-measurement` does.

    `runtime` is the image.json of the guest image that runs it, by default the Adyton installed here.
    `Explained.require` checks that one equals `measurement`. Raises ManifestError and its subclasses.
    """
    raw = read_capped(manifest, MAX_MANIFEST_BYTES, "manifest")
    sections: list[Section] = []
    known: dict[str, str] = {}
    if manifest.suffix == ".sig" or len(raw) == SIGSTRUCT_BYTES:
        sigstruct = parse_sigstruct(raw)
        sigstruct.verify()
        known["signed measurement"] = str(sigstruct.measurement)
        sections.append(explain_signature(sigstruct))
    else:
        measured = runtime_of(None if runtime is None else read_image(runtime))
        known["workload measurement under this runtime"] = str(workload_measurement(raw, measured.digest))
        if signature_path(manifest).exists():
            sigstruct = parse_sigstruct(read_capped(signature_path(manifest), SIGSTRUCT_BYTES, "signature"))
            sigstruct.verify()
            known["signed measurement"] = str(sigstruct.measurement)
            sections.append(explain_signature(sigstruct))
        sections += explain_manifest(parse_manifest(decode(raw)))
        sections.append(explain_runtime(measured.digest, measured.parts))
        if stem_of(manifest).with_name(f"{stem_of(manifest).name}.sig").exists():
            prepared = read_prepared(manifest)
            known["MRENCLAVE (Gramine)"] = str(prepared.measurement)
            installation = find_gramine()
            if installation is not None:
                rendered = read_capped(
                    prepared.stem.with_name(f"{prepared.stem.name}.manifest.sgx"), MAX_MANIFEST_BYTES, "manifest"
                )
                layout = lay_out(
                    rendered,
                    parse_pal(read_capped(installation.libpal, MAX_PAL_BYTES, "libpal.so")),
                    enclave_bytes=prepared.manifest.sgx.enclave_size_bytes,
                    max_threads=prepared.manifest.sgx.max_threads,
                    edmm=prepared.manifest.sgx.edmm_enable,
                    offsets=Offsets.of(installation.constants),
                )
                known["MRENCLAVE computed with the Gramine installed here"] = str(measure(layout))
                sections.append(explain_layout(layout))
    return Explained(known, tuple(sections), measurement)
