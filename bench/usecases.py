"""The phases of each use case's run, natively and confidentially (simulated TEE), as a table and as a plot.

`python -m bench usecases [--repeat N] [--svg FILE] [--only NAME]`: script, data and weights are those of examples/.
The runs alternate, and of each phase the fastest of N counts, since what disturbs a run only ever makes it slower.
`timed.py` runs the script with a clock around its imports, loads and saves, in both kinds alike.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Final

REPOSITORY: Final = Path(__file__).resolve().parent.parent
PHASES: Final = ("start", "attest", "release", "mount", "import", "load", "compute", "save", "seal", "end")
MEANING: Final = {
    "start": "processes, sandbox, interpreter",
    "attest": "the quote over a fresh key",
    "release": "connection, verification, decision, record, wrapped keys",
    "mount": "trusted files and inputs into private memory, verified or decrypted; FUSE",
    "import": "the script's imports",
    "load": "model and data into tensors",
    "compute": "the rest of the script",
    "save": "checkpoints and model",
    "seal": "the last flush of the encrypted mount",
    "end": "the interpreter's end; sandbox and mounts taken down",
}
COLOURS: Final = (
    "#8a949a",
    "#5b4b9a",
    "#8d6cc9",
    "#14707f",
    "#c9a227",
    "#e07b39",
    "#4c9a5b",
    "#b5485d",
    "#1d2a2f",
    "#c4cdd2",
)


@dataclass(frozen=True)
class UseCase:
    """One example: how its files are laid out, which are encrypted, and what is run."""

    name: str
    script: str
    prepare: tuple[tuple[str, ...], ...]
    inputs: tuple[tuple[str, str], ...]
    arguments: tuple[str, ...]
    """As inside; `native` gives them outside."""
    native: tuple[str, ...]
    mounts: str
    read_only: tuple[str, ...]
    trusted: tuple[str, ...] = ()


USE_CASES: Final = (
    UseCase(
        "train-private",
        "train.py",
        (("prepare.py", "plain"),),
        (("plain/records.csv", "storage/in/records.csv"),),
        ("/in/records.csv", "/out", "60"),
        ("plain/records.csv", "native", "60"),
        '{ type = "encrypted", path = "/in", uri = "file:storage/in" },',
        ("/in",),
    ),
    UseCase(
        "infer-proprietary",
        "infer.py",
        (("prepare.py", "model", "plain/model.safetensors"), ("prepare.py", "photo", "plain/photo.jpg")),
        (("plain/model.safetensors", "storage/in/model.safetensors"), ("plain/photo.jpg", "storage/in/photo.jpg")),
        ("/in/model.safetensors", "/in/photo.jpg", "/out/result.txt"),
        ("plain/model.safetensors", "plain/photo.jpg", "native/result.txt"),
        '{ type = "encrypted", path = "/in", uri = "file:storage/in" },',
        ("/in",),
    ),
    UseCase(
        "search-private",
        "search.py",
        (("prepare.py", "plain"),),
        (("plain/notes.txt", "storage/in/notes.txt"), ("plain/questions.txt", "storage/in/questions.txt")),
        (
            "plain/model.safetensors",
            "plain/vocabulary.txt",
            "/in/notes.txt",
            "/in/questions.txt",
            "/out/answers.txt",
        ),
        (
            "plain/model.safetensors",
            "plain/vocabulary.txt",
            "plain/notes.txt",
            "plain/questions.txt",
            "native/answers.txt",
        ),
        '{ type = "encrypted", path = "/in", uri = "file:storage/in" },',
        ("/in",),
        ("plain/model.safetensors", "plain/vocabulary.txt"),
    ),
)

TEMPLATE: Final = """libos.entrypoint = "{python}"
loader.argv = [{argv}]
fs.start_dir = "/work"
loader.env.HOME = "/work"
loader.env.LANG = "C.UTF-8"
loader.env.PYTHONDONTWRITEBYTECODE = "1"
loader.env.OMP_NUM_THREADS = "1"
fs.root = {{ type = "chroot", uri = "file:/" }}
fs.mounts = [
  {{ path = "/work", uri = "file:." }},
  {{ type = "tmpfs", path = "/tmp" }},
  {mounts}
  {{ type = "encrypted", path = "/out", uri = "file:storage/out" }},
]
[adyton]
trusted_from = ["file:seen.trusted"]
read_only = [{read_only}]
[sgx]
remote_attestation = "dcap"
trusted_files = [{trusted}]
"""


@dataclass(frozen=True)
class Run:
    """One run: seconds per phase, wall-clock seconds, processor seconds of all its processes."""

    phases: dict[str, float]
    wall_s: float
    cpu_s: float | None


class Account:
    """Processor time of a command and of all that it starts, orphans and mounts included, by a control group.

    What disturbs a run on a busy machine (waiting) is not in it. Nothing is accounted where this process may not make
    control groups: `cpu_s` is None then, and the table says so.
    """

    def __init__(self) -> None:
        self._folder: Path | None = None
        for parent, usage, unit in (
            ("/sys/fs/cgroup/cpuacct", "cpuacct.usage", 1e-9),
            ("/sys/fs/cgroup", "cpu.stat", 1e-6),
        ):
            folder = Path(parent) / f"adyton-bench-{os.getpid()}"
            try:
                folder.mkdir(exist_ok=True)
            except OSError:
                continue
            if (folder / usage).exists():
                self._folder, self._usage, self._unit = folder, folder / usage, unit
                return
            folder.rmdir()

    def enter(self) -> None:
        """Called in the child before it becomes the command."""
        if self._folder is not None:
            (self._folder / "cgroup.procs").write_text(str(os.getpid()))

    def seconds(self) -> float | None:
        """Processor seconds so far."""
        if self._folder is None:
            return None
        words = self._usage.read_text().split()
        return int(words[1] if words[0] == "usage_usec" else words[0]) * self._unit

    def close(self) -> None:
        """Remove the group; every process of it has ended."""
        if self._folder is not None:
            with contextlib.suppress(OSError):
                self._folder.rmdir()


@dataclass
class Bench:
    """One use case laid out in a folder, with its key server running."""

    case: UseCase
    folder: Path
    account: Account
    server: str = ""
    build_s: float = 0.0

    @property
    def environment(self) -> dict[str, str]:
        """One OpenMP thread; homes in the folder."""
        return {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "ADYTON_HOME": str(self.folder / "owner"),
            "ADYTON_SIM_PLATFORM": str(self.folder / "platform"),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
        }

    def do(self, *words: str, accounted: bool = False) -> str:
        """Run a command to its end."""
        ended = subprocess.run(
            words,
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
            preexec_fn=self.account.enter if accounted else None,
        )
        if ended.returncode:
            raise SystemExit(f"{' '.join(words)} ended with {ended.returncode}\n{ended.stdout}{ended.stderr}")
        return ended.stdout

    def adyton(self, *words: str) -> str:
        """Run a verb to its end."""
        return self.do(sys.executable, "-m", "adyton", *words)

    def lay_out(self) -> None:
        """Files, identity, key, platform, encrypted inputs, manifest, approval."""
        case = self.case
        for source in (REPOSITORY / "examples" / case.name).iterdir():
            if source.is_file():
                shutil.copy(source, self.folder)
        shutil.copy(Path(__file__).with_name("timed.py"), self.folder)
        for command in case.prepare:
            self.do(sys.executable, *command)
        for made in ("storage/out", "native"):
            (self.folder / made).mkdir(parents=True)
        self.adyton("init")
        self.adyton("key", "new", "default")
        self.adyton("platform", "new", "platform")
        self.adyton("platform", "export", "platform", "-o", "collateral.json")
        self.adyton("collateral", "import", "collateral.json")
        for plain, stored in case.inputs:
            self.adyton("encrypt", plain, "-o", stored, "--key", "default")
        script = ["timed.py", "native/phases.json", case.script, *case.native]
        self.adyton("new", "--name", "seen", *script)
        argv = [sys.executable, "timed.py", "/out/phases.json", case.script, *case.arguments]
        trusted = [f"file:{sys.executable}", f"file:{case.script}", *(f"file:{path}" for path in case.trusted)]
        text = TEMPLATE.format(
            python=sys.executable,
            argv=", ".join(map(json.dumps, argv)),
            mounts=case.mounts,
            read_only=", ".join(map(json.dumps, case.read_only)),
            trusted=", ".join(map(json.dumps, trusted)),
        )
        (self.folder / "job.manifest.template").write_text(text)
        began = time.perf_counter()
        self.adyton("build", "job.manifest.template", "--no-cache")
        self.build_s = time.perf_counter() - began
        self.adyton(
            "approve", "job.manifest", "--key", "default", "--tee", self.adyton("platform", "name", "platform").strip()
        )

    def timed(self, command: list[str], phases: Path, *, confidential: bool) -> Run:
        """One run; `phases` is where the script's own clock left its word."""
        phases.unlink(missing_ok=True)
        before = self.account.seconds()
        began = time.time()
        out = self.do(*command, accounted=True)
        ended = time.time()
        after = self.account.seconds()
        cpu_s = None if before is None or after is None else after - before
        inside = phases
        if confidential:
            inside = self.folder / "phases.json"
            self.adyton(
                "decrypt", str(phases.relative_to(self.folder)), "-o", "phases.json", "--key", "default", "--force"
            )
        clock: dict[str, float] = json.loads(inside.read_text())
        found = {phase: clock.get(phase, 0.0) for phase in PHASES}
        found["start"] = clock["first_line"] - began
        found["end"] = ended - clock["last_line"]
        if confidential:
            seconds: dict[str, Any] = json.loads(out)["seconds"]
            found["attest"] = min(self.quote_s(), seconds["keys"])
            found["release"] = seconds["keys"] - found["attest"]
            found["mount"] = seconds["prepare"] + seconds["serve"] + seconds["stage"]
            found["start"] -= seconds["keys"] + found["mount"]
            found["seal"] = seconds.get("flush", 0.0)
            found["end"] -= found["seal"]
        return Run(found, ended - began, cpu_s)

    def quote_s(self) -> float:
        """Seconds for one quote of the simulated platform, in this process."""
        from adyton.tee.source_choice import open_source
        from adyton.values import Measurement

        source = open_source("sim", measurement=Measurement(bytes(32)), platform_dir=self.folder / "platform")
        began = time.perf_counter()
        source.quote(bytes(64))
        return time.perf_counter() - began

    def native(self) -> Run:
        """The script as it is, under the clock."""
        command = [sys.executable, "timed.py", "native/phases.json", self.case.script, *self.case.native]
        return self.timed(command, self.folder / "native" / "phases.json", confidential=False)

    def confidential(self) -> Run:
        """The same through attestation, staging and sandbox."""
        command = [sys.executable, "-m", "adyton", "run", "--json", "--tee", "sim", "--key-server", self.server]
        return self.timed(
            [*command, "job.manifest"], self.folder / "storage" / "out" / "phases.json", confidential=True
        )

    def serve(self) -> subprocess.Popen[str]:
        """Start the key server; its first line says where."""
        process = subprocess.Popen(
            [sys.executable, "-m", "adyton", "serve", "--listen", "127.0.0.1:0"],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout is not None
        self.server = process.stdout.readline().split()[-1]
        return process


def measure(case: UseCase, folder: Path, repeat: int) -> tuple[float, Run, Run]:
    """Seconds to build; then the native run and the confidential one, each phase the fastest of `repeat`."""
    account = Account()
    bench = Bench(case, folder, account)
    bench.lay_out()
    serving = bench.serve()
    try:
        pairs = [(bench.native(), bench.confidential()) for _ in range(repeat)]
    finally:
        serving.terminate()
        serving.communicate(timeout=10)
        account.close()
    fastest = []
    for runs in zip(*pairs, strict=True):
        phases = {phase: min(run.phases[phase] for run in runs) for phase in PHASES}
        accounted = [run.cpu_s for run in runs if run.cpu_s is not None]
        fastest.append(Run(phases, sum(phases.values()), min(accounted) if accounted else None))
    return bench.build_s, fastest[0], fastest[1]


def table(results: dict[str, tuple[float, Run, Run]]) -> str:
    """Seconds of every phase, native beside confidential, and the ratio of the whole."""
    names = list(results)
    lines = [
        "| phase | " + " | ".join(f"{name}: native | confidential" for name in names) + " | what |",
        "| --- |" + " ---: | ---: |" * len(names) + " --- |",
        "| build (once) | " + " | ".join(f" | {results[name][0]:.2f}" for name in names) + " | hash, sign, measure |",
    ]
    for phase in PHASES:
        cells = []
        for name in names:
            _, native, confidential = results[name]
            left = f"{native.phases[phase]:.2f}" if native.phases[phase] else ""
            cells.append(f"{left} | {confidential.phases[phase]:.2f}")
        lines.append(f"| {phase} | " + " | ".join(cells) + f" | {MEANING[phase]} |")
    cells = [f"{results[name][1].wall_s:.2f} | {results[name][2].wall_s:.2f}" for name in names]
    lines.append("| **wall clock** | " + " | ".join(cells) + " | sum of the phases, each the fastest |")
    ratios = [f"1 | **{results[name][2].wall_s / results[name][1].wall_s:.2f}**" for name in names]
    lines.append("| ratio | " + " | ".join(ratios) + " | wall clock |")
    cells, ratios = [], []
    for _, native, confidential in results.values():
        if native.cpu_s is None or confidential.cpu_s is None:
            cells, ratios = ["not | measurable"] * len(names), ["not | measurable"] * len(names)
            break
        cells.append(f"{native.cpu_s:.2f} | {confidential.cpu_s:.2f}")
        ratios.append(f"1 | **{confidential.cpu_s / native.cpu_s:.2f}**")
    lines.append("| **processor** | " + " | ".join(cells) + " | of all its processes, without the key server |")
    lines.append("| ratio | " + " | ".join(ratios) + " | processor |")
    return "\n".join(lines)


def plot(results: dict[str, tuple[float, Run, Run]]) -> str:
    """The same as stacked bars, native above confidential, in one SVG."""
    longest = max(run.wall_s for _, *runs in results.values() for run in runs)
    left, width, bar, row = 150, 640, 22, 78
    whole, height = left + width + 70, 70 + row * len(results) + 40
    font = 'font-family="system-ui, sans-serif" font-size="13"'
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {whole} {height}" {font}>',
        f'<rect width="{whole}" height="{height}" fill="#ffffff"/><g fill="#1d2a2f">',
    ]
    for index, (phase, colour) in enumerate(zip(PHASES, COLOURS, strict=True)):
        place = 20 + index * 84
        out.append(f'<rect x="{place}" y="16" width="13" height="13" fill="{colour}"/>')
        out.append(f'<text x="{place + 18}" y="27">{phase}</text>')
    for number, (name, (_, *runs)) in enumerate(results.items()):
        y = 60 + number * row
        out.append(f'<text x="20" y="{y + bar + 6}" font-weight="700">{escape(name)}</text>')
        for kind, run in enumerate(runs):
            x, top = left * 1.0, y + kind * (bar + 4)
            for phase, colour in zip(PHASES, COLOURS, strict=True):
                wide = run.phases[phase] / longest * width
                out.append(
                    f'<rect x="{x:.1f}" y="{top}" width="{wide:.1f}" height="{bar}" fill="{colour}">'
                    f"<title>{phase}: {run.phases[phase]:.2f} s</title></rect>"
                )
                x += wide
            out.append(f'<text x="{x + 6:.1f}" y="{top + 16}">{run.wall_s:.1f} s</text>')
    out.append(f'<text x="{left}" y="{height - 14}">upper bar: native; lower bar: confidential (simulated TEE)</text>')
    return "\n".join([*out, "</g></svg>", ""])


def main(args: list[str]) -> None:
    """Measure every use case, print the table, and write the plot if asked to."""
    parser = argparse.ArgumentParser(prog="python -m bench usecases")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--svg", type=Path)
    parser.add_argument("--only", choices=[case.name for case in USE_CASES])
    options = parser.parse_args(args)
    results: dict[str, tuple[float, Run, Run]] = {}
    for case in USE_CASES:
        if options.only in (None, case.name):
            with tempfile.TemporaryDirectory(prefix="adyton-bench-") as folder:
                results[case.name] = measure(case, Path(folder), options.repeat)
    print(table(results))
    print("\nseconds; a simulated TEE: the costs of a hardware TEE (memory encryption, enclave exits) are not in here")
    if options.svg is not None:
        options.svg.write_text(plot(results))
