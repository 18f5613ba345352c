"""Ask NVML in a process of its own, which ends with the answer.

NVML is NVIDIA's code, and it is not part of the measured runtime. So it is never loaded into a process that holds or
will hold keys. The child gets a nonce and no secret. What it answers is data: it is capped and parsed here.
"""

from __future__ import annotations

import base64
import binascii
import json
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from adyton.errors import Error, NoDevice, Timeout
from adyton.tee.nvml import NVML, GPUReport
from adyton.untrusted import parse_json_object

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

WAIT_S: Final = 120.0
"""How long NVML may take: eight GPUs need seconds each."""
MAX_ANSWER_BYTES: Final = 1 << 20
_ENVIRONMENT: Final = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}


def take_reports(nonce: bytes) -> tuple[GPUReport, ...]:
    """A report of every GPU of this machine for this nonce (32 bytes). Raises NoDevice, UsageError and Timeout."""
    rows = _ask("reports", nonce.hex()).get("gpus")
    if not isinstance(rows, list):
        raise _wrong("no list of reports")
    return tuple(_report(row) for row in rows)


def set_ready() -> None:
    """Let the GPUs take work. Call it only after they were verified. Raises NoDevice and Timeout."""
    if _ask("ready").get("ready") is not True:
        raise _wrong("no ready state")


def _report(row: object) -> GPUReport:
    match row:
        case {"arch": str(arch), "minor": int(minor), "certificate": str(chain), "evidence": str(report)}:
            try:
                parts = [base64.b64decode(text, validate=True) for text in (chain, report)]
            except binascii.Error:
                raise _wrong("a report that is no base64") from None
            return GPUReport(arch=arch, chain=parts[0], report=parts[1], minor=minor)
        case _:
            raise _wrong("a report without its members")


def _ask(*words: str) -> dict[str, Any]:
    """Start the child and take its one answer."""
    command = [sys.executable, "-I", "-B", "-m", "adyton.tee.nvml_process", *words]
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_ENVIRONMENT,
            cwd="/",
        )
    except OSError as error:
        raise NoDevice(
            f"NVML cannot be asked: {error.strerror}", check="process for NVML", seen=error.strerror
        ) from None
    began_s = time.monotonic()
    late = threading.Timer(WAIT_S, process.kill)
    late.start()
    try:
        raw = b"" if process.stdout is None else process.stdout.read(MAX_ANSWER_BYTES + 1)
    finally:
        late.cancel()
        process.kill()
        with process:
            pass
    if time.monotonic() - began_s >= WAIT_S:
        raise Timeout(
            "NVML does not answer",
            check="answer of NVML",
            expected=f"within {WAIT_S:.0f} s",
            seen="none",
            remedy="see the kernel's log (dmesg): the driver or the GPU hangs",
        )
    answer = parse_json_object(raw, what="answer of NVML", refuse=NoDevice, limit_bytes=MAX_ANSWER_BYTES)
    failure = answer.get("failure")
    if isinstance(failure, dict):
        raise Error.from_dict(failure, unknown=NoDevice)
    return answer


def _wrong(seen: str) -> NoDevice:
    return NoDevice(
        f"NVML's process answers with {seen}",
        check="answer of NVML",
        expected="reports, or a refusal",
        seen=seen,
        remedy="check the driver of this guest",
    )


def answer(words: Sequence[str], open_library: Callable[[], NVML] = NVML) -> dict[str, Any]:
    """What the child answers to these words, as JSON data."""
    try:
        with open_library() as library:
            library.keep_initialised()  # or the GPU would begin anew when this process ends
            if words[0] == "ready":
                library.check_confidential()
                library.set_ready()
                return {"ready": library.is_ready()}
            return {
                "gpus": [
                    {
                        "arch": report.arch,
                        "minor": report.minor,
                        "certificate": base64.b64encode(report.chain).decode("ascii"),
                        "evidence": base64.b64encode(report.report).decode("ascii"),
                    }
                    for report in library.reports(bytes.fromhex(words[1]))
                ]
            }
    except Error as error:
        return {"failure": error.to_dict()}


if __name__ == "__main__":
    print(json.dumps(answer(sys.argv[1:])))
