"""The C parts: nodes sealed and opened over OpenSSL, FUSE's reads of them, and the program that sets argv[0].

Without a compiler they are left out. Then Python seals and reads, slower, and a program's argv[0] is its path.

What they are built to depends on the sources, the compiler and the interpreter, and not on the folder or the time.

The project's page in a package index is README.md with links that also lead somewhere there.
"""

import re
import tomllib
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

GCM = "src/adyton/pfile/gcm"
ROOT = Path(__file__).resolve().parent


class BuildParts(build_ext):
    """Leaves out the folder that an interpreter of one's own names for its libraries."""

    def build_extensions(self) -> None:
        """Take the run path from the linker's command, and build."""
        linker = self.compiler.linker_so
        self.compiler.set_executables(linker_so=[word for word in linker if not word.startswith("-Wl,-rpath")])
        super().build_extensions()


FLAGS = ["-O2", "-g0", f"-ffile-prefix-map={ROOT}=.", "-Wall", "-Wextra", "-fvisibility=hidden"]


def extension(name: str, source: str) -> Extension:
    """An extension module that is built with gcm.c, or left out where there is no compiler."""
    return Extension(
        name,
        [source, f"{GCM}.c"],
        depends=[f"{GCM}.h"],
        libraries=["crypto"],
        extra_compile_args=FLAGS,
        optional=True,
    )


def executable(name: str, source: str) -> Extension:
    """A program that needs no library and starts at `_start`, built in the form of an extension module."""
    return Extension(
        name,
        [source],
        extra_compile_args=[*FLAGS, "-fno-stack-protector"],
        extra_link_args=["-nostdlib", "-Wl,-e,_start"],
        optional=True,
    )


RELATIVE = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|mailto:|#)([^)\s]+)\)")


def description() -> str:
    """README.md without relative links: below the project's source address where it has one, or else as names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    source = project.get("urls", {}).get("Source", "").rstrip("/")

    def elsewhere(link: re.Match[str]) -> str:
        image, text, target = link.groups()
        if source:
            return f"{image}[{text}]({source}/{'raw' if image else 'blob'}/HEAD/{target})"
        return f"*{text}*" if image else f"{text} (`{target}` in the source archive)"

    return RELATIVE.sub(elsewhere, (ROOT / "README.md").read_text(encoding="utf-8"))


setup(
    long_description=description(),
    long_description_content_type="text/markdown",
    cmdclass={"build_ext": BuildParts},
    ext_modules=[
        extension("adyton.pfile._gcm", "src/adyton/pfile/_gcm.c"),
        extension("adyton.vfs._reads", "src/adyton/vfs/_reads.c"),
        executable("adyton.image._init", "src/adyton/image/_init.c"),
        executable("adyton.runtime._launcher", "src/adyton/runtime/_launcher.c"),
    ],
)
