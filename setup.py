"""Builds the C engine and the floors of ``pmwal bench``, and makes the description for the package index; the rest is in setup.cfg.

Without a C compiler the package installs without the engine, and says so at the first ``open``. PMWAL_REQUIRE_NATIVE=1 makes that
an error; PMWAL_CFLAGS adds flags (``-Werror`` in development, sanitizers); PMWAL_CHECK=1 turns on the checks of
pmwal/native/check.h.
"""

import configparser
import os
import platform
import re
from glob import glob
from pathlib import Path

from setuptools import Extension, setup


def flags(name: str) -> list[str]:
    """The flags in an environment variable."""
    return os.environ.get(name, "").split()


def source_url() -> str | None:
    """Where the repository can be browsed: "Source" of project_urls in setup.cfg, if there is one."""
    parser = configparser.ConfigParser()
    parser.read("setup.cfg")
    lines = parser.get("metadata", "project_urls", fallback="").splitlines()
    return next((url.strip() for name, _, url in (line.partition("=") for line in lines) if name.strip() == "Source"), None)


def description(readme: str, source: str | None, version: str) -> str:
    """The README for a page that has no other file of the project beside it.

    Relative links lead to the files of this version at ``source``. Without it, links are left out and their texts stay; images go.
    """

    def rewrite(link: re.Match[str]) -> str:
        image, text, target = link.groups()
        if re.match(r"[a-z]+:|#", target):
            return link[0]
        if source is None:
            return "" if image else text
        return f"{image}[{text}]({source}/{'raw' if image else 'blob'}/v{version}/{target})"

    return re.sub(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", rewrite, readme)


checks = ["-DPMWAL_CHECKS"] if os.environ.get("PMWAL_CHECK") == "1" else []
version = re.search(r'^__version__ = "(.*)"$', Path("pmwal/__init__.py").read_text(encoding="utf-8"), re.MULTILINE)[1]

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
    long_description=description(Path("README.md").read_text(encoding="utf-8"), source_url(), version),
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
    ],
)
