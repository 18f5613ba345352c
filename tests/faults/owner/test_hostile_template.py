"""A co-owner sends a template, and the owner builds it on the machine that has her keys."""

from __future__ import annotations

import json
import os
import resource
import shlex
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adyton.errors import MalformedManifest, ManifestError, UsageError
from adyton.manifest.host import host_facts, libraries_of
from adyton.manifest.template import named_environment, render

RENDERER = Path(__file__).parents[3] / "src" / "adyton" / "manifest" / "rendering.py"


def _program(folder: Path, name: str = "evil") -> tuple[Path, Path]:
    """A program that leaves a mark when it is run."""
    mark, program = folder / "mark", folder / name
    program.write_text(f"#!/bin/sh\ntouch {mark}\necho {folder}\n")
    program.chmod(0o755)
    return program, mark


def test_template_runs_no_program_that_the_command_line_does_not_name(tmp_path: Path) -> None:
    """`get_sys_path` and `ldd` ran what the template named."""
    program, mark = _program(tmp_path)
    for call in ("python.get_sys_path", "ldd"):
        with pytest.raises(MalformedManifest, match="does not name") as refused:
            render(f"{{{{ {call}('{program}') }}}}")
        assert refused.value.remedy is not None
        assert str(program) in refused.value.remedy
    assert not mark.exists()


def test_program_that_is_named_for_its_libraries_is_not_run(tmp_path: Path) -> None:
    """Its files are read, and nothing else."""
    program, mark = _program(tmp_path)
    with pytest.raises(ManifestError, match="cannot be told"):
        host_facts(None, programs=[str(program)])
    assert not mark.exists()


AUDITOR = """
#include <fcntl.h>
unsigned la_version(unsigned version) { open("%s", O_CREAT | O_WRONLY, 0600); return version; }
"""


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed (apt-get install gcc)")
@pytest.mark.parametrize("option", ["--audit", "--depaudit"])
def test_no_code_runs_of_a_program_that_is_named_for_its_libraries(option: str, tmp_path: Path) -> None:
    """The loader, asked to list what a program needs, ran the auditor that the program names (DT_AUDIT)."""
    mark, auditor, program = tmp_path / "mark", tmp_path / "auditor.so", tmp_path / "program"
    for target, text, words in (
        (auditor, AUDITOR % mark, ["-shared", "-fPIC"]),
        (program, "int main(void) { return 0; }", [f"-Wl,{option}={auditor}"]),
    ):
        command = ["gcc", "-x", "c", "-", "-o", str(target), *words]
        subprocess.run(command, input=text, text=True, check=True, capture_output=True)
    assert any(path.endswith("/libc.so.6") for path in libraries_of(str(program)))
    assert not mark.exists()
    subprocess.run([str(program)], check=True)
    assert mark.exists(), "the program of this test is harmless"


def _elf(needed: list[str], *, runpath: str = "", length: int | None = None) -> bytes:
    """An ELF file that is a table of wishes."""
    strings = b"\0" + b"".join(os.fsencode(name) + b"\0" for name in [*needed, runpath])
    offsets = [1 + sum(len(os.fsencode(name)) + 1 for name in needed[:at]) for at in range(len(needed) + 1)]
    entries = [(1, at) for at in offsets[:-1]]
    entries += [(29, offsets[-1])] * bool(runpath)
    size = 16 * (len(entries) + 3)
    start = 64 + 2 * 56
    entries += [(5, start + size), (10, len(strings) if length is None else length), (0, 0)]
    table = b"".join(struct.pack("<QQ", *entry) for entry in entries)
    head = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 3, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 4, 0, 0, 0, start + size + len(strings), 0, 0)
    dynamic = struct.pack("<IIQQQQQQ", 2, 4, 64 + 2 * 56, 0, 0, size, 0, 0)
    return head + load + dynamic + table + strings


def test_program_that_asks_for_too_much_is_refused_in_seconds(tmp_path: Path) -> None:
    """Pipes that nobody writes, chains without end, thousands of folders and names: no wait, and ManifestError."""
    os.mkfifo(tmp_path / "pipe")
    for at in range(1500):
        (tmp_path / f"chain{at}").write_bytes(_elf([str(tmp_path / f"chain{at + 1}"), "x" * 300]))
    made = {
        "pipe": (_elf([str(tmp_path / "pipe"), "/dev/zero", "/dev/full"]), True),
        "loop": (_elf([str(tmp_path / "loop.elf")] * 9), True),
        "chain": (_elf([str(tmp_path / "chain0")]), False),
        "folders": (_elf([f"lib{at}" for at in range(900)], runpath=":".join(["/x"] * 1000)), False),
        "names": (_elf([f"lib{at}" for at in range(1500)]), False),
        "table": (_elf([f"lib{at}" for at in range(9000)]), False),
        "text": (_elf(["x" * 100_000]), False),
        "length": (_elf(["a"], length=1 << 63), True),
    }
    before = time.thread_time()
    for name, (raw, taken) in made.items():
        (tmp_path / f"{name}.elf").write_bytes(raw)
        try:
            libraries_of(str(tmp_path / f"{name}.elf"))
        except ManifestError:
            assert not taken, name
        else:
            assert taken, name
    with pytest.raises(ManifestError, match="cannot be told"):
        libraries_of(str(tmp_path / "pipe"))
    assert time.thread_time() - before < 20


@pytest.mark.parametrize(
    "text",
    [
        "{{ gramine.runtimedir().read_text() }}",
        "{{ (gramine.runtimedir() / '/etc/passwd').read_text() }}",
        "{{ (python.stdlib / '/etc/passwd').read_bytes() }}",
        "{{ python.stdlib.joinpath('/tmp/x').write_text('x') }}",
        "{{ python.purelib.iterdir() | list }}",
        "{{ python.stdlib.parent.exists() }}",
        "{{ (python.distlib / '/tmp/x').touch() }}",
        "{{ (python.distlib / '/tmp/x').unlink() }}",
        "{{ (python.distlib / '/tmp/x').chmod(511) }}",
        "{{ gramine.runtimedir.home() }}",
        "{{ python.implementation._multiarch }}",
        "{{ python.get_config_var('userbase').x }}",
        "{{ env.HOME }}{{ env.PATH }}",
        "{{ env['ADYTON_HOME'] }}",
        "{% include '/etc/passwd' %}",
        "{% import '/etc/passwd' as x %}",
        "{% extends '/etc/passwd' %}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ ldd.__globals__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ (1).__class__ | attr('__base__') }}{{ x }}",
        "{{ gramine.runtimedir._folders }}",
        "{{ lipsum() }}",
    ],
)
def test_template_reads_and_writes_nothing(text: str) -> None:
    """Paths are texts; nothing else of the machine is in reach."""
    with pytest.raises(MalformedManifest):
        render(text)


def test_paths_of_a_template_are_texts() -> None:
    """What is handed to it, and what it makes of that by `/`, `parent` and `name`."""
    text = "{{ python.stdlib is string }}{{ (python.stdlib / 'a' / 'b').parent is string }}"
    text += (
        "{{ gramine.runtimedir is string }}{{ (gramine.runtimedir / 'a').name }}{{ gramine.runtimedir() is string }}"
    )
    assert render(text) == "TrueTrueTrueaTrue"


def test_environment_is_what_is_named() -> None:
    """`--env` names each variable; one that is not set is an error and no empty text."""
    here = {"A": "1", "SECRET": "2"}
    assert render("{{ env | list }}{{ env.A }}", environment=named_environment(["A"], here)) == "['A']1"
    with pytest.raises(UsageError, match="not set"):
        named_environment(["B"], here)


@pytest.mark.parametrize(
    "text",
    [
        '{{ "a" * 3000000000 }}',
        '{{ "a" * 300000000 }}',
        '{{ "%3000000000d" % 1 }}',
        '{{ "{:>3000000000}".format(1) }}',
        "{{ 'x' | center(3000000000) }}",
        "{{ 'x' | indent(3000000000, true) }}",
        "{{ ('a' * 1000000) | replace('a', 'b' * 100000) }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{{ b }}{% endfor %}{% endfor %}",
        "{{ (9 ** 9) ** (9 ** 8) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{{ " + "-" * 20000 + "1 }}",
        "{% if 1 %}" * 3000,
        "{{ [" + "[" * 3000 + "]" * 3000 + "] }}",
    ],
)
def test_rendering_is_bounded_in_time_and_memory(text: str) -> None:
    """Texts of gigabytes, loops in loops, recursion: refused in seconds, and this process gives nothing for it."""
    before, peak = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(MalformedManifest):
        render(text, cpu_s=2)
    assert time.monotonic() - before < 55
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 300_000


BROKEN_OUT = """
import os, socket, sys
sys.path[:0] = [{folder!r}]
import rendering
mark = {mark!r}
open(mark, "w").close()
rendering.shut_doors(5, 1 << 30)
tried = {{
    "open": lambda: os.open("/etc/passwd", os.O_RDONLY),
    "create": lambda: os.open(mark + "2", os.O_WRONLY | os.O_CREAT),
    "remove": lambda: os.unlink(mark),
    "chmod": lambda: os.chmod(mark, 0o777),
    "rename": lambda: os.rename(mark, mark + "3"),
    "mkdir": lambda: os.mkdir(mark + "4"),
    "stat": lambda: os.stat("/etc/passwd"),
    "list": lambda: os.listdir("/"),
    "socket": lambda: socket.socket(socket.AF_INET),
    "unix": lambda: socket.socket(socket.AF_UNIX),
    "run": lambda: os.execv("/bin/sh", ["sh", "-c", "echo ran"]),
    "fork": lambda: os._exit(0) if os.fork() == 0 else None,
    "kill": lambda: os.kill(os.getppid(), 0),
    "pipe": lambda: os.pipe(),
}}
for name, attempt in tried.items():
    try:
        attempt()
    except OSError:
        continue
    os.write(1, name.encode() + b" worked\\n")
os.write(1, b"end\\n")
os._exit(0)
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the filter of system calls is for x86-64")
def test_template_that_breaks_out_of_jinja_finds_every_door_shut(tmp_path: Path) -> None:
    """The process that renders can open, write, run, and reach nothing, whatever Python code it runs."""
    code = BROKEN_OUT.format(folder=str(RENDERER.parent), mark=str(tmp_path / "mark"))
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "end\n", done.stdout + done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mark"]


def test_renderer_inherits_no_secret_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own environment is empty, so that /proc/self/environ and os.environ hold nothing of the owner's."""
    monkeypatch.setenv("ADYTON_PASSPHRASE", "secret")
    asked: list[dict[str, str]] = []
    started = subprocess.Popen

    def start(*arguments: object, **options: object) -> object:
        asked.append(options["env"])  # type: ignore[arg-type]
        return started(*arguments, **options)  # type: ignore[call-overload]

    monkeypatch.setattr("adyton.manifest.template.subprocess.Popen", start)
    assert render("a") == "a"
    assert asked == [{}]


CHANGES: list[dict[str, object]] = [
    {},
    {"line": -9},
    {"line": 1 << 63},
    {"line": True},
    {"kind": []},
    {"kind": "unnamed", "asked": {"a": 1}},
    {"kind": "unnamed", "asked": ["--signer", "x"]},
    {"kind": "unnamed", "asked": ["--python", 5]},
]
ODD = [
    b"E" + json.dumps({"kind": "undefined", "message": "is undefined", "line": 1, "asked": None, **changed}).encode()
    for changed in CHANGES
]


@pytest.mark.parametrize("call", ["ldd", "python.get_sys_path"])
def test_remedy_that_the_owner_copies_runs_no_command_of_the_template(call: str) -> None:
    """The template chooses the path that the refusal shows: it is one word of a shell, or it is not offered."""
    with pytest.raises(MalformedManifest) as refused:
        render(f"{{{{ {call}('/bin/x; touch $(id)') }}}}")
    assert refused.value.remedy is not None
    assert shlex.split(refused.value.remedy.partition("name it: ")[2])[1:] == ["/bin/x; touch $(id)"]
    with pytest.raises(MalformedManifest) as refused:
        render(f"{{{{ {call}('/bin/x\\ntouch y\\u202e') }}}}")
    assert refused.value.remedy is None
    assert "\n" not in refused.value.message
    with pytest.raises(MalformedManifest) as refused:
        render("{{ {}['a'].b }}{{ x['; id\\' is undefined'] }}")
    assert "-D" not in (refused.value.remedy or "")


@pytest.mark.parametrize(
    "answer", [b"", b"X", b"E", b"E{}", b'E{"kind":1}', b"E[", b"R\xff", b"E" + b"[" * 100_000, *ODD]
)
def test_answer_of_the_renderer_is_believed_in_no_other_form(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be the template's own."""
    monkeypatch.setattr("adyton.manifest.template._ask", lambda _: (0, answer))
    with pytest.raises(ManifestError):
        render("a", facts=host_facts(None))
