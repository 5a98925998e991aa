"""Builds the C engine and the floors of ``pmwal bench``; everything else about the package is in setup.cfg.

Without a C compiler the package installs without the engine, and says so at the first ``open``. PMWAL_REQUIRE_NATIVE=1 makes that
an error; PMWAL_CFLAGS adds flags (``-Werror`` in development, sanitizers); PMWAL_CHECK=1 turns on the checks of
pmwal/native/check.h.
"""

import os
import platform
from glob import glob

from setuptools import Extension, setup


def flags(name: str) -> list[str]:
    """The flags in an environment variable."""
    return os.environ.get(name, "").split()


checks = ["-DPMWAL_CHECKS"] if os.environ.get("PMWAL_CHECK") == "1" else []

# What `pmwal bench` compares with: not a part of the engine, so PMWAL_CFLAGS (sanitizers) are not for it.
floors = [
    Extension(
        "pmwal.testing.bench._floors",
        sources=["pmwal/testing/bench/floors.c"],
        define_macros=[("FLOORS_MODULE", None)],
        extra_compile_args=["-std=gnu11", "-O2", "-msse4.2", "-Wall"],
        extra_link_args=["-pthread"],
        optional=os.environ.get("PMWAL_REQUIRE_NATIVE") != "1",
    )
    for _ in range(platform.machine() == "x86_64")
]

setup(
    ext_modules=[
        Extension(
            "pmwal.native._native",
            sources=sorted(glob("pmwal/native/*.c")),
            depends=sorted(glob("pmwal/native/*.h")),
            extra_compile_args=["-std=gnu11", "-O2", "-fvisibility=hidden", "-Wall", "-Wextra", *checks, *flags("PMWAL_CFLAGS")],
            extra_link_args=["-pthread", *flags("PMWAL_LDFLAGS")],
            optional=os.environ.get("PMWAL_REQUIRE_NATIVE") != "1",
        ),
        *floors,
    ]
)
