"""The C parts: nodes sealed and opened over OpenSSL, and FUSE's reads of them; without these Python does it, slower."""

from setuptools import Extension, setup

GCM = "src/adyton/pfile/gcm"


def extension(name: str, source: str) -> Extension:
    """An extension module that is built with gcm.c, or left out where there is no compiler."""
    return Extension(
        name,
        [source, f"{GCM}.c"],
        depends=[f"{GCM}.h"],
        libraries=["crypto"],
        extra_compile_args=["-O2", "-Wall", "-Wextra", "-fvisibility=hidden"],
        optional=True,
    )


setup(
    ext_modules=[
        extension("adyton.pfile._gcm", "src/adyton/pfile/_gcm.c"),
        extension("adyton.vfs._reads", "src/adyton/vfs/_reads.c"),
    ]
)
