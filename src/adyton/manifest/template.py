"""A manifest template -> TOML text: Jinja with Gramine's globals, where an unknown variable is an error.

A template is a program that somebody else may have written. It is rendered in a process of its own (`rendering`), which
gets texts only: the variables, the environment variables and the programs that the command line names, and where this
machine keeps Python, Gramine and its C library. That process can open no file, run no program, reach no network, and
has ten seconds of processor time and 1 GiB of memory.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from adyton.errors import MalformedManifest, ManifestError, UsageError
from adyton.manifest.findings import one_line
from adyton.manifest.host import Facts, find_gramine, host_facts
from adyton.manifest.model import MAX_PATH_CHARS
from adyton.manifest.rendering import KINDS
from adyton.untrusted import parse_json_object

MAX_TEMPLATE_BYTES: Final = 16 << 20
MAX_RENDERED_CHARS: Final = 32 << 20
CPU_S: Final = 10
MEMORY_BYTES: Final = 1 << 30
TIMEOUT_S: Final = 60
_MAX_ANSWER_BYTES: Final = 4 * MAX_RENDERED_CHARS + 1
_MAX_MESSAGE_CHARS: Final = 400
_UNDEFINED: Final = re.compile(r"'([A-Za-z_][A-Za-z0-9_]{0,127})' is undefined")
_NO_ATTRIBUTE: Final = re.compile(r"'dict object' has no attribute '([A-Za-z_][A-Za-z0-9_]{0,127})'")
_RENDERER: Final = Path(__file__).with_name("rendering.py")


def parse_definitions(texts: list[str]) -> dict[str, str | bool]:
    """`-D` arguments: `name=value` (further = belong to the value) or `name` alone, which means True."""
    found: dict[str, str | bool] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name.isidentifier():
            raise UsageError(f"-D {text}: {name!r} is not a name", expected="-D name=value", seen=text)
        found[name] = value if equals else True
    return found


def named_environment(names: list[str], environment: Mapping[str, str]) -> dict[str, str]:
    """`--env` arguments: the variables that a template may read. Raises UsageError where one is not set."""
    for name in names:
        if name not in environment:
            raise UsageError(
                f"--env {name}: it is not set", check="--env", expected="a variable that is set", seen=name
            )
    return {name: environment[name] for name in names}


def render(
    text: str,
    variables: Mapping[str, str | bool] | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    facts: Facts | None = None,
    name: str = "template",
    cpu_s: int = CPU_S,
) -> str:
    """Render a template. Raises MalformedManifest with the line and, for an unknown variable, its name.

    `environment` is what `env` shows (nothing by default), `facts` what `gramine`, `python` and `ldd` know (by default
    nothing of any program). Raises ManifestError where the template asks for what it may not have, or costs too much.
    """
    if len(text) > MAX_TEMPLATE_BYTES:
        raise MalformedManifest(
            f"{name} is too large", check="template", expected=f"at most {MAX_TEMPLATE_BYTES} bytes"
        )
    known = host_facts(find_gramine()) if facts is None else facts
    request = {
        "path": [folder for folder in sys.path if folder],
        "text": text,
        "variables": dict(variables or {}),
        "environment": dict(environment or {}),
        "facts": known.to_dict(),
        "max_chars": MAX_RENDERED_CHARS,
        "cpu_s": cpu_s,
        "memory_bytes": MEMORY_BYTES,
    }
    status, answer = _ask(json.dumps(request).encode())
    if status == 0 and answer[:1] == b"R":
        rendered = _decode(answer[1:], name)
        if len(rendered) <= MAX_RENDERED_CHARS:
            return rendered
    if status == 0 and answer[:1] == b"E":
        raise _told(answer[1:], name, text)
    seen = "it was ended for its use of time or memory" if status in _ENDED else f"exit status {status}"
    raise _costly(name, seen)


_ENDED: Final = (-signal.SIGXCPU, -signal.SIGKILL)


def _ask(request: bytes) -> tuple[int, bytes]:
    """Start the child, give it the request, take so many bytes within so much time. Returns (exit status, answer)."""
    try:
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_RENDERER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        raise ManifestError(f"the renderer cannot be started: {error.strerror}", check="template") from None
    timer = threading.Timer(TIMEOUT_S, child.kill)
    timer.start()
    try:
        with child:
            try:
                return _exchange(child, request)
            except BaseException:
                child.kill()
                raise
    finally:
        timer.cancel()


def _exchange(child: subprocess.Popen[bytes], request: bytes) -> tuple[int, bytes]:
    if child.stdin is None or child.stdout is None:
        raise ManifestError("the renderer has no pipes", check="template")
    with contextlib.suppress(BrokenPipeError):  # it has ended: its status says why
        child.stdin.write(request)
        child.stdin.close()
    answer = child.stdout.read(_MAX_ANSWER_BYTES + 1)
    if len(answer) > _MAX_ANSWER_BYTES:
        child.kill()
    return child.wait(), answer


def _decode(raw: bytes, name: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise MalformedManifest(f"{name} renders to something that is not UTF-8", check="template") from None


def _costly(name: str, seen: str) -> MalformedManifest:
    return MalformedManifest(
        f"{name} does not render within its bounds",
        check="template",
        expected=f"{CPU_S} seconds of processor time, {MEMORY_BYTES >> 20} MiB of memory,"
        f" {MAX_RENDERED_CHARS >> 20} Mi characters of text",
        seen=seen,
        remedy="read the template: look for loops in loops, and for texts that are multiplied",
    )


def _told(raw: bytes, name: str, text: str) -> ManifestError:
    """What the child says about a template that it did not render, as a refusal."""
    told = parse_json_object(raw, what="answer of the renderer")
    kind, message, line, asked = (told.get(field) for field in ("kind", "message", "line", "asked"))
    if (
        not isinstance(kind, str)
        or kind not in KINDS
        or not isinstance(message, str)
        or not (line is None or (type(line) is int and 0 < line <= MAX_TEMPLATE_BYTES))
    ):
        raise MalformedManifest(f"{name}: the renderer gave no answer", check="template")
    message = one_line(message[:_MAX_MESSAGE_CHARS])
    remedy = None
    if kind in ("memory", "size"):
        return _costly(name, f"more {'memory' if kind == 'memory' else 'text'}")
    if kind == "undefined" and (found := _UNDEFINED.fullmatch(message)):
        remedy = f"give it with -D {found[1]}=…"
    elif kind == "undefined" and message.startswith("'dict object'"):
        variable = _NO_ATTRIBUTE.fullmatch(message)
        remedy = (
            f"an environment variable is read only where it is named with --env {variable[1] if variable else 'NAME'}"
        )
    elif kind == "unnamed":
        remedy = _naming(asked)
    elif kind == "gramine":
        remedy = "leave loader.entrypoint out: Adyton fills it in when it renders for Gramine"
    return _refuse(name, message, line, text, remedy)


def _naming(asked: object) -> str | None:
    """What to name, as a shell takes it: the template chose this text, and the owner may copy it."""
    match asked:
        case ["--program" | "--python" as option, str(path)] if path.isprintable() and 0 < len(path) <= MAX_PATH_CHARS:
            return f"if you trust the template with that, name it: {option} {shlex.quote(path)}"
    return None


def _refuse(name: str, message: str, line: Any, text: str, remedy: str | None) -> MalformedManifest:
    where = f"{name}, line {line}" if line else name
    lines = text.split("\n", line) if line else []
    return MalformedManifest(
        f"{where}: {message}",
        check="template",
        expected="a template that renders",
        seen=lines[line - 1].strip()[:160] if line and line <= len(lines) else None,
        remedy=remedy,
    )
