"""The C parts: nodes sealed and opened over OpenSSL, and FUSE's reads of them; without these Python does it, slower.

What they are built to depends on the sources, the compiler and the interpreter, and not on the folder or the time.
"""

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


def extension(name: str, source: str) -> Extension:
    """An extension module that is built with gcm.c, or left out where there is no compiler."""
    return Extension(
        name,
        [source, f"{GCM}.c"],
        depends=[f"{GCM}.h"],
        libraries=["crypto"],
        extra_compile_args=["-O2", "-g0", f"-ffile-prefix-map={ROOT}=.", "-Wall", "-Wextra", "-fvisibility=hidden"],
        optional=True,
    )


setup(
    cmdclass={"build_ext": BuildParts},
    ext_modules=[
        extension("adyton.pfile._gcm", "src/adyton/pfile/_gcm.c"),
        extension("adyton.vfs._reads", "src/adyton/vfs/_reads.c"),
    ],
)
