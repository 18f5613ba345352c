"""A manifest template -> TOML text: Jinja with Gramine's globals, where an unknown variable is an error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from adyton.errors import MalformedManifest, UsageError

MAX_RENDERED_CHARS: Final = 64 << 20
BUILTIN: Final = ("env", "gramine", "ldd", "python")


def parse_definitions(texts: list[str]) -> dict[str, str | bool]:
    """`-D` arguments: `name=value` (further = belong to the value) or `name` alone, which means True."""
    found: dict[str, str | bool] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name.isidentifier():
            raise UsageError(f"-D {text}: {name!r} is not a name", expected="-D name=value", seen=text)
        found[name] = value if equals else True
    return found


def host_globals() -> dict[str, Any]:
    """What templates may ask of this machine: `gramine`, `python`, `ldd`."""
    from adyton.manifest.host import Gramine, Python, find_gramine, ldd

    return {"gramine": Gramine(find_gramine()), "python": Python(), "ldd": ldd}


def render(
    text: str,
    variables: Mapping[str, str | bool] | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    host: Mapping[str, Any] | None = None,
    name: str = "template",
) -> str:
    """Render a template; raises MalformedManifest with the line and, for an unknown variable, its name.

    `environment` is what `env` shows (nothing by default), `host` replaces `host_globals()`.
    """
    import jinja2
    from jinja2.sandbox import SandboxedEnvironment

    jinja = SandboxedEnvironment(undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=True)
    jinja.globals.update(host_globals() if host is None else host)
    jinja.globals["env"] = dict(environment or {})
    try:
        rendered = jinja.from_string(text).render(**(variables or {}))
    except jinja2.TemplateSyntaxError as error:
        raise _refuse(name, error.message or "syntax", error.lineno, text) from None
    except jinja2.UndefinedError as error:
        message = error.message or "an unknown variable"
        remedy = f"give it with -D {message.split(chr(39))[1]}=…" if message.endswith("is undefined") else None
        raise _refuse(name, message, _line_of(error), text, remedy) from None
    except (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise _refuse(name, f"{type(error).__name__}: {error}", _line_of(error), text) from None
    if len(rendered) > MAX_RENDERED_CHARS:
        raise MalformedManifest(f"{name} renders to more than {MAX_RENDERED_CHARS} characters")
    return rendered


def _line_of(error: BaseException) -> int | None:
    """The template's line in a traceback that Jinja rewrote."""
    line = None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def _refuse(name: str, message: str, line: int | None, text: str, remedy: str | None = None) -> MalformedManifest:
    where = f"{name}, line {line}" if line else name
    lines = text.splitlines()
    return MalformedManifest(
        f"{where}: {message}",
        check="template",
        expected="a template that renders",
        seen=lines[line - 1].strip()[:160] if line and line <= len(lines) else None,
        remedy=remedy,
    )
