"""The C part: seals and opens runs of nodes over OpenSSL; without it `cryptography` does the same, slower."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "adyton.pfile._gcm",
            ["src/adyton/pfile/_gcm.c"],
            libraries=["crypto"],
            extra_compile_args=["-O2", "-Wall", "-Wextra"],
            optional=True,
        )
    ]
)
