"""Templates: Gramine's globals, and errors that name line and variable."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from adyton.errors import MalformedManifest, ManifestError, UsageError
from adyton.manifest.host import Installation, host_facts, interpreter_of, libraries_of, runtime_stand_in
from adyton.manifest.template import parse_definitions, render


def test_definitions_are_read_as_gramine_reads_them() -> None:
    """No equals sign means True; further ones belong to the value."""
    assert parse_definitions(["x", "a=1=2", "b="]) == {"x": True, "a": "1=2", "b": ""}
    with pytest.raises(UsageError, match="not a name"):
        parse_definitions(["9x=1"])


def test_template_renders_variables_environment_and_blocks() -> None:
    """Variables, `env`, loops, and the last newline."""
    text = "{{ a }}{{ x }} {{ env.HOME }} {{ env.get('Y', '0') }}{% for n in [1, 2] %} {{ n }}{% endfor %}\n"
    assert render(text, {"a": "1", "x": True}, environment={"HOME": "/root"}) == "1True /root 0 1 2\n"


def test_template_renders_nothing_escaped() -> None:
    """A manifest is no HTML."""
    assert render("{{ a }}", {"a": '<"&'}) == '<"&'


def test_template_with_an_unknown_variable_names_it_and_its_line() -> None:
    """The line is shown, and how to give the variable."""
    with pytest.raises(MalformedManifest) as refused:
        render('a = 1\nb = "{{ arch_libdir }}"\n', name="app.template")
    assert refused.value.message == "app.template, line 2: 'arch_libdir' is undefined"
    assert refused.value.seen == 'b = "{{ arch_libdir }}"'
    assert refused.value.remedy == "give it with -D arch_libdir=…"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a\n{% if %}", 2),
        ("a\nb\n{{ ldd( }}", 3),
        ("{{ 1 / 0 }}", 1),
        ("\n{{ env['X'] }}", 2),
        ("{{ ''.__class__.__mro__ }}", 1),
        ("{{ python.get_path('none') }}", 1),
        ("{{ {}.x.y }}", 1),
    ],
)
def test_template_that_fails_names_its_line(text: str, line: int) -> None:
    """Syntax errors, missing environment, arithmetic, and what a template has no business with."""
    with pytest.raises(MalformedManifest, match=f"line {line}"):
        render(text)


def test_template_knows_the_python_that_runs_it() -> None:
    """The `python` object has sysconfig's paths."""
    assert render("{{ python.stdlib }}") == sysconfig.get_path("stdlib")
    assert render("{{ python.purelib }}") == sysconfig.get_path("purelib")
    assert render("{{ python.ext_suffix }}") == sysconfig.get_config_var("EXT_SUFFIX")
    assert render("{{ python.distlib }}").endswith("/python3/dist-packages")
    assert render("{{ python.get_path('scripts') }}") == sysconfig.get_path("scripts")
    assert render("{{ python.implementation.cache_tag }}") == sys.implementation.cache_tag
    facts = host_facts(None, interpreters=[sys.executable])
    text = "{% for p in python.get_sys_path(exe) %}{{ p }}\n{% endfor %}"
    paths = render(text, {"exe": sys.executable}, facts=facts)
    assert sysconfig.get_path("stdlib") in paths.splitlines()
    assert all(Path(path).exists() for path in paths.splitlines())


def test_ldd_lists_libraries_once_sorted_and_absolute() -> None:
    """What a program links, without the loader and the vdso, for programs that the command line names."""
    found = libraries_of("/bin/sh")
    assert found == sorted(set(found))
    assert any(path.endswith("/libc.so.6") for path in found)
    assert all(path.startswith("/") and "ld-linux" not in path for path in found)
    facts = host_facts(None, programs=["/bin/sh", "/bin/ls"])
    text = "{% for p in ldd('/bin/sh', '/bin/ls', '/bin/sh') %}{{ p }} {% endfor %}"
    assert render(text, facts=facts).split() == sorted({*found, *libraries_of("/bin/ls")})


def test_ldd_of_something_else_is_an_error(tmp_path: Path) -> None:
    """A file that is no program says so, where it is named."""
    (tmp_path / "x").write_text("text")
    for path in (tmp_path / "x", tmp_path / "nothing"):
        with pytest.raises(ManifestError, match="cannot be told"):
            host_facts(None, programs=[str(path)])


def test_interpreter_that_is_a_script_is_asked_for_its_path_alone(tmp_path: Path) -> None:
    """Such as pyenv's: it has no libraries, and get_sys_path works; one that fails is an error."""
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    script.chmod(0o755)
    facts = host_facts(None, interpreters=[str(script)])
    assert facts.sys_paths[str(script)]
    assert not facts.libraries
    script.write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(ManifestError, match="failed"):
        host_facts(None, interpreters=[str(script)])


def test_interpreter_of_programs_is_read() -> None:
    """PT_INTERP of a dynamic program; None for a text."""
    assert "ld-linux" in (interpreter_of(Path("/bin/sh").resolve()) or "")
    assert interpreter_of(Path(__file__)) is None


def test_gramine_object_without_gramine_names_the_machines_own_c_library() -> None:
    """A Gramine user's template renders where Gramine is not installed; what cannot be is said."""
    here = host_facts(None)
    libraries = runtime_stand_in()
    text = "{{ gramine.runtimedir() }} {{ gramine.runtimedir }} {{ gramine.runtimedir / 'x' }}"
    assert render(text, facts=here) == f"{libraries} {libraries} {libraries}/x"
    with pytest.raises(ManifestError, match="not installed"):
        render("{{ gramine.libos }}", facts=here)
    with pytest.raises(ManifestError, match="no C library"):
        render("{{ gramine.runtimedir('bionic') }}", facts=here)
    with pytest.raises(MalformedManifest, match="no attribute"):
        render("{{ gramine.PAGESIZE }}", facts=here)


def test_gramine_object_of_an_installation_names_its_folders() -> None:
    """Folders and constants of the Gramine that is installed."""
    installation = Installation(Path("/o/bin"), Path("/o/lib/gramine"), (1, 8), {"PAGESIZE": 4096})
    here = host_facts(installation)
    assert render("{{ gramine.runtimedir('musl') }}", facts=here) == "/o/lib/gramine/runtime/musl"
    assert (
        render("{{ gramine.libos }} {{ gramine.pkglibdir }}", facts=here) == "/o/lib/gramine/libsysdb.so /o/lib/gramine"
    )
    assert render("{{ gramine.PAGESIZE }}", facts=here) == "4096"


def test_rendering_leaves_jinja_out_of_a_run() -> None:
    """Importing the module imports no Jinja: a run must start fast."""
    code = "import sys, adyton.manifest.signed, adyton.manifest.template; sys.exit('jinja2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_refusal_says_which_option_gives_what_is_missing() -> None:
    """A variable, an environment variable, a program, an interpreter: each with the name that the template uses."""
    for text, remedy in (
        ("{{ arch_libdir }}", "-D arch_libdir=…"),
        ("{{ env.HOME }}", "--env HOME"),
        ("{{ ldd('/bin/a b') }}", "--program '/bin/a b'"),
        ("{{ python.get_sys_path('/usr/bin/python3') }}", "--python /usr/bin/python3"),
    ):
        with pytest.raises(ManifestError) as refused:
            render(text)
        assert (refused.value.remedy or "").endswith(remedy)
