"""The child that renders one template: a program of its own, which imports Jinja, shuts every door, and then begins.

It is started as a file (`python -I -S rendering.py`) and imports nothing of Adyton. It reads one JSON request whole,
gives up what it could do (files, network, programs, processes, memory, time), renders, writes one answer, and ends:
`R` and the rendered text in UTF-8, or `E` and a JSON object (kind, message, line, asked) that says why not.
`adyton.manifest.template` starts it, and believes nothing of its answer but its form.

What a template gets are texts, numbers, and functions that look up what the request holds. So a template that broke out
of Jinja's sandbox would find nothing in here that it did not bring, and a kernel that refuses it everything else.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
from typing import Any

KINDS = ("syntax", "undefined", "failed", "unnamed", "gramine", "memory", "size")

_SYSTEM_CALLS = {
    # read write close mmap mprotect munmap brk rt_sigaction rt_sigprocmask rt_sigreturn sched_yield mremap madvise
    # getpid exit gettid futex sigaltstack clock_gettime exit_group getrandom
    "x86_64": (0xC000003E, (0, 1, 3, 9, 10, 11, 12, 13, 14, 15, 24, 25, 28, 39, 60, 186, 202, 131, 228, 231, 318)),
}


class Unnamed(Exception):
    """A template asks about a program that the command line does not name."""

    def __init__(self, option: str, name: str) -> None:
        super().__init__(f"the template asks about {name!r}, which the command line does not name")
        self.asked = [option, name]


class NoGramine(Exception):
    """A template asks for what only an installed Gramine has."""


class HostPath(str):
    """A path as text: `/` joins, and nothing looks at the machine."""

    __slots__ = ()

    def __truediv__(self, name: object) -> HostPath:
        joined = str(name) if str(name).startswith("/") else f"{self.rstrip('/')}/{name}"
        return HostPath(joined)

    @property
    def name(self) -> str:
        """The last part."""
        return self.rstrip("/").rpartition("/")[2]

    @property
    def parent(self) -> HostPath:
        """All but the last part."""
        return HostPath(self.rstrip("/").rpartition("/")[0] or "/")


class RuntimeDir(HostPath):
    """`gramine.runtimedir`: a path itself, and callable with the C library's name."""

    def __new__(cls, folders: dict[str, str]) -> RuntimeDir:
        """A text with its folders beside it."""
        made = super().__new__(cls, folders["glibc"])
        made._folders = folders
        return made

    _folders: dict[str, str]

    def __call__(self, libc: str = "glibc") -> HostPath:
        if libc not in self._folders:
            raise ValueError(f"gramine.runtimedir: no C library {libc!r}, but glibc or musl")
        return HostPath(self._folders[libc])


class Names:
    """An object with the attributes that it was given, and no other."""

    def __init__(self, values: dict[str, Any], absent: str | None = None) -> None:
        self.__dict__.update(values)
        self._absent = absent

    def __getattr__(self, name: str) -> Any:
        if self._absent is not None and name in ("libos", "pkglibdir"):
            raise NoGramine(f"the template uses {self._absent}.{name}, and Gramine is not installed here")
        raise AttributeError(name)


def _objects(facts: dict[str, Any]) -> dict[str, Any]:
    """The globals of a template: `gramine`, `python`, `ldd`."""
    libraries, sys_paths, python = facts["libraries"], facts["sys_paths"], facts["python"]
    paths, variables = python["paths"], python["variables"]

    def ldd(*programs: object) -> list[HostPath]:
        found: set[str] = set()
        for program in programs:
            if str(program) not in libraries:
                raise Unnamed("--program", str(program))
            found.update(libraries[str(program)])
        return [HostPath(path) for path in sorted(found)]

    def get_sys_path(interpreter: object, include_nonexisting: bool = False) -> list[HostPath]:
        if str(interpreter) not in sys_paths:
            raise Unnamed("--python", str(interpreter))
        return [HostPath(path) for path, exists in sys_paths[str(interpreter)] if exists or include_nonexisting]

    def get_path(name: str) -> HostPath:
        return HostPath(paths[name])

    def get_paths() -> dict[str, HostPath]:
        return {name: HostPath(path) for name, path in paths.items()}

    def get_config_var(name: str) -> Any:
        return variables.get(name)

    installed = {name: HostPath(path) for name, path in facts["gramine"]["paths"].items()}
    return {
        "ldd": ldd,
        "python": Names(
            {
                **{name: HostPath(paths[name]) for name in ("stdlib", "platstdlib", "purelib")},
                "distlib": HostPath(python["distlib"]),
                "ext_suffix": variables.get("EXT_SUFFIX"),
                "implementation": Names(python["implementation"]),
                "get_path": get_path,
                "get_paths": get_paths,
                "get_config_var": get_config_var,
                "get_sys_path": get_sys_path,
            }
        ),
        "gramine": Names(
            {**facts["gramine"]["constants"], "runtimedir": RuntimeDir(facts["gramine"]["runtime"]), **installed},
            absent=None if installed else "gramine",
        ),
    }


def shut_doors(cpu_s: int, memory_bytes: int) -> None:
    """Give up files, network, programs, processes, memory and time. Raises OSError where that cannot be done."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(1, 9, 0, 0, 0):  # PR_SET_PDEATHSIG, SIGKILL
        raise OSError(ctypes.get_errno(), "pdeathsig")
    for what, limit in (
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, 0),
    ):
        resource.setrlimit(what, (limit, limit))
    if libc.prctl(38, 1, 0, 0, 0):  # PR_SET_NO_NEW_PRIVS
        raise OSError(ctypes.get_errno(), "no_new_privs")
    machine = os.uname().machine
    if machine in _SYSTEM_CALLS:
        program = _filter(*_SYSTEM_CALLS[machine])
        code = ctypes.create_string_buffer(program, len(program))

        class Program(ctypes.Structure):
            """struct sock_fprog."""

            _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_void_p))

        wanted = Program(len(program) // 8, ctypes.addressof(code))
        if libc.prctl(22, 2, ctypes.byref(wanted), 0, 0):  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
            raise OSError(ctypes.get_errno(), "seccomp")


def _filter(architecture: int, allowed: tuple[int, ...]) -> bytes:
    """A seccomp program: these system calls of this architecture, EPERM for all others (linux/filter.h, seccomp.h)."""

    def step(code: int, true: int, false: int, value: int) -> bytes:
        return code.to_bytes(2, "little") + bytes((true, false)) + value.to_bytes(4, "little")

    load, equal, give = 0x20, 0x15, 0x06
    steps = [step(load, 0, 0, 4), step(equal, 1, 0, architecture), step(give, 0, 0, 0x80000000)]
    steps.append(step(load, 0, 0, 0))
    steps += [step(equal, len(allowed) - at, 0, number) for at, number in enumerate(allowed)]
    return b"".join([*steps, step(give, 0, 0, 0x00050001), step(give, 0, 0, 0x7FFF0000)])


def _line_of(error: BaseException) -> int | None:
    """The template's line in a traceback that Jinja rewrote."""
    line = None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def _make_environment() -> Any:
    """Jinja's strictest sandbox, without what differs from run to run. Everything that it imports late is imported."""
    import jinja2
    import jinja2.debug
    import jinja2.sandbox

    found = jinja2.sandbox.ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=True
    )
    del found.globals["lipsum"], found.filters["random"]
    text = "{% for n in [1] %}{{ 'a\\u0062' | wordwrap(9) }}{{ n | tojson }}{{ namespace(a=n).a | pprint }}{% endfor %}"
    found.from_string(text).render()
    with contextlib.suppress(jinja2.UndefinedError):
        found.from_string("{{ a }}").render()
    return found


def answer(environment: Any, request: dict[str, Any]) -> bytes:
    """Render, or say why not."""
    import jinja2

    kind, message, line, asked = "failed", "", None, None
    try:
        environment.globals.update(_objects(request["facts"]))
        environment.globals["env"] = request["environment"]
        rendered: str = environment.from_string(request["text"]).render(**request["variables"])
        if len(rendered) <= request["max_chars"]:
            return b"R" + rendered.encode()
        kind = "size"
    except MemoryError:
        kind = "memory"
    except jinja2.TemplateSyntaxError as error:
        kind, message, line = "syntax", error.message or "syntax", error.lineno
    except Exception as error:  # whatever a template can provoke is told to whoever wrote it
        line = _line_of(error)
        if isinstance(error, jinja2.UndefinedError):
            kind, message = "undefined", error.message or "an unknown variable"
        elif isinstance(error, Unnamed):
            kind, message, asked = "unnamed", str(error), error.asked
        elif isinstance(error, NoGramine):
            kind, message = "gramine", str(error)
        else:
            message = f"{type(error).__name__}: {error}"
    told = {"kind": kind, "message": message[:400], "line": line, "asked": asked}
    return b"E" + json.dumps(told).encode()


def main() -> None:
    """Read the request, shut the doors, answer."""
    request = json.loads(sys.stdin.buffer.read())
    sys.path[:] = request["path"]
    environment = _make_environment()
    shut_doors(request["cpu_s"], request["memory_bytes"])
    left = memoryview(answer(environment, request))
    while left:
        left = left[os.write(1, left) :]
    os._exit(0)


if __name__ == "__main__":
    main()
