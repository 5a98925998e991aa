"""Negative controls: copies of the C engine, each with one mistake in the flush ordering. The stepper must notice all of them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

from crash.stepper.trace import Lost
from pmwal.native.choice import STORES

ROOT = Path(__file__).resolve().parents[3]
BUILD_TIMEOUT = 3600


class Control(NamedTuple):
    """A mistake: a regular expression to replace in a file, and one that the first violation must match."""

    file: str
    pattern: str
    replacement: str
    reason: str
    orderings: tuple[str, ...] = ("strict", "pipelined")
    stores: tuple[str, ...] = STORES  # the ways to store in which it shows

    def says_why(self, violation: str) -> bool:
        """Whether this is the expected violation."""
        return re.search(self.reason, violation) is not None


CONTROLS = {
    "no-clwb": Control(
        "persist.c",
        r"_mm_(?:clwb|clflushopt|clflush)\(\(void \*\)line\)",
        "(void)line",
        r"not written back",
        stores=("write-back",),
    ),
    "no-fence": Control("persist.c", r"_mm_sfence\(\)", '__asm__ volatile("" : : : "memory")', r", but no fence"),
    "slot-first": Control(
        "at_once.c",
        r"store_records\(batch\);\n(.*?order_stores\(core\);\n(    if \(batch->names\) \{.*?\n    \}\n))",
        r"\1    store_records(batch);\n    order_stores(core);\n",
        r"corrupt \(R4\)",
        ("strict",),
    ),
    "one-fence": Control(
        "at_once.c", r"order_stores\(core\);\n(    if \(batch->names\) \{)", r"\1", r"corrupt \(R4\)", ("strict",)
    ),
    "last-line": Control(
        "persist.c",
        r"end = \(uintptr_t\)start \+ length;",
        "end = (uintptr_t)start + length - LINE;",
        r"not written back",
        stores=("write-back",),
    ),
    "cached-stream": Control("persist.c", r"_mm_stream_si128", "_mm_store_si128", r"not written back"),
    "cached-words": Control(
        "persist.c",
        r"_mm_stream_si64\(\(long long \*\)to \+ i, \(long long\)words\[i\]\)",
        "memcpy((char *)to + 8 * i, words + i, 8)",
        r"not written back",
        stores=("stream",),
    ),
}


def build(control: Control, work: Path) -> None:
    """Copy the package to ``work``, make the mistake, and build the extension in place."""
    shutil.copytree(ROOT / "pmwal", work / "pmwal", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.md"):
        shutil.copy2(ROOT / name, work)
    source = work / "pmwal" / "native" / control.file
    changed, count = re.subn(control.pattern, control.replacement, source.read_text(), flags=re.DOTALL)
    if not count:
        raise Lost(f"nothing in {control.file} matches {control.pattern!r}")
    source.write_text(changed)
    environment = {**os.environ, "PMWAL_REQUIRE_NATIVE": "1", "PMWAL_CFLAGS": "-Wno-unused"}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    made = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False, timeout=BUILD_TIMEOUT)
    if made.returncode or not (work / "pmwal" / "native" / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}").exists():
        raise Lost(f"the engine cannot be built:\n{made.stdout}{made.stderr}")
