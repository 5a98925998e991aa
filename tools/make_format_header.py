"""Write pmwal/native/format.h, the on-media format for the C engine, from its only definition, pmwal/format/layout.py.

    python tools/make_format_header.py [--check]

The header is in the repository, because building the package must not need the package. ``--check`` exits with 1 when it is out of
date; a test runs it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pmwal.format import layout
from pmwal.format.frame import ENTRY
from pmwal.format.index import INDEX_STEP
from pmwal.format.ring import LARGE_RECORD
from pmwal.latency import COARSE, FINE, NS_MAX

HEADER = Path(__file__).parents[1] / "pmwal" / "native" / "format.h"
TYPES = {"H": "uint16_t", "I": "uint32_t", "Q": "uint64_t", "q": "int64_t", "s": "unsigned char"}
STRUCTS = (
    ("slot", layout.SLOT),
    ("record", layout.RECORD),
    ("live_bounds", layout.LIVE_BOUNDS),
    ("live_writer", layout.LIVE_WRITER),
    ("live_followers", layout.LIVE_FOLLOWERS),
    ("live_latency", layout.LIVE_LATENCY),
    ("live_open", layout.LIVE_OPEN),
    ("live_seek_point", layout.LIVE_SEEK_POINT),
)
CONSTANTS = (
    ("PAGE", layout.PAGE),
    ("LINE", layout.LINE),
    ("HEADER", layout.HEADER),
    ("LIVE_OFFSET", layout.LIVE_OFFSET),
    ("LIVE_WRITER_OFFSET", layout.LIVE_WRITER_OFFSET),
    ("LIVE_FOLLOWERS_OFFSET", layout.LIVE_FOLLOWERS_OFFSET),
    ("LIVE_LATENCY_OFFSET", layout.LIVE_LATENCY_OFFSET),
    ("LIVE_SECOND_OFFSET", layout.LIVE_SECOND_OFFSET),
    ("LIVE_OPEN_OFFSET", layout.LIVE_OPEN_OFFSET),
    ("LIVE_SEEK_OFFSET", layout.LIVE_SEEK_OFFSET),
    ("SEEK_POINTS", layout.SEEK_POINTS),
    ("SEEK_STEP_MIN", layout.SEEK_STEP_MIN),
    ("CONTROL_OFFSET", layout.CONTROL_OFFSET),
    ("SLOTS_PER_PAGE", layout.SLOTS_PER_PAGE),
    ("SLOT_FLAGS", layout.SLOT_FLAGS),
    ("SLOT_PIPELINED", layout.SLOT_PIPELINED),
    ("POINTER_LAG_MAX", layout.POINTER_LAG_MAX),
    ("SEQ_MAX", layout.SEQ_MAX),
    ("LARGE_RECORD", LARGE_RECORD),
    ("POSITION_MAX", layout.POSITION_MAX),
    ("EPOCH_MAX", layout.EPOCH_MAX),
    ("GENERATION_MAX", layout.GENERATION_MAX),
    ("KIND_MAX", layout.KIND_MAX),
    ("LENGTH_MAX", layout.LENGTH_MAX),
    ("ALIGN_MAX", layout.ALIGN_MAX),
    ("INDEX_STEP", INDEX_STEP),
    ("FRAME_ENTRY", ENTRY.size),
    ("FRAME_KIND_OFFSET", ENTRY.offsets["kind"]),
    ("FRAME_TIME_OFFSET", ENTRY.offsets["time_ns"]),
    ("LATENCY_NS_MAX", NS_MAX),
    ("LATENCY_HALF", FINE.half),
    ("LATENCY_COUNTERS", FINE.counters),
    ("LIVE_LATENCY_HALF", COARSE.half),
    ("LIVE_LATENCY_COUNTERS", COARSE.counters),
)


def header() -> str:
    """The text of the C header."""
    lines = [
        "/* The on-media format, version 1. Made by tools/make_format_header.py from pmwal/format/layout.py; do not edit. */",
        "#ifndef PMWAL_FORMAT_H",
        "#define PMWAL_FORMAT_H",
        "",
        "#include <assert.h>",
        "#include <stddef.h>",
        "#include <stdint.h>",
        "",
    ]
    lines += [f"#define PMWAL_{name} UINT64_C({value})" for name, value in CONSTANTS]
    for name, structure in STRUCTS:
        lines += ["", f"/* {structure.title} */", f"struct {name} {{"]
        lines += [f"    {declaration(field)} /* {field.meaning} */" for field in structure.fields]
        lines += ["};", ""]
        lines += [
            f'static_assert(offsetof(struct {name}, {field}) == {offset}, "{name}.{field}");'
            for field, offset in structure.offsets.items()
        ]
        lines.append(f'static_assert(sizeof(struct {name}) == {structure.size}, "{name}");')
    lines += ["", "#endif", ""]
    return "\n".join(lines)


def declaration(field: layout.Field) -> str:
    """A field as a member of a C struct."""
    count, code = field.code[:-1], field.code[-1]
    return f"{TYPES[code]} {field.name}{f'[{count}]' if count else ''};"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; its exit status."""
    parser = argparse.ArgumentParser(description="Write the C engine's header from pmwal/format/layout.py.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when the header is out of date")
    if not parser.parse_args(arguments).check:
        HEADER.write_text(header())
        return 0
    if HEADER.read_text() == header():
        return 0
    print(f"{HEADER.name} is not what pmwal/format/layout.py makes; run: python tools/make_format_header.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
