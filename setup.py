"""The C parts: nodes sealed and opened over OpenSSL, FUSE's reads of them, and the program that sets argv[0].

Without a compiler they are left out. Then Python seals and reads, slower, and a program's argv[0] is its path.

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


setup(
    cmdclass={"build_ext": BuildParts},
    ext_modules=[
        extension("adyton.pfile._gcm", "src/adyton/pfile/_gcm.c"),
        extension("adyton.vfs._reads", "src/adyton/vfs/_reads.c"),
        executable("adyton.runtime._launcher", "src/adyton/runtime/_launcher.c"),
    ],
)
