"""Record ``pmwal demo`` in a terminal, and draw what was on the screen: docs/pictures/demo.cast and demo.svg.

    python -m tools picture                  run the demo, write both
    python -m tools picture --redraw         draw the recording again, for another look

The recording is an asciicast of version 2, which ``asciinema play`` plays. The picture shows its output and nothing else. Let
nothing else use the machine: the latencies are in the picture.
"""

from __future__ import annotations

import argparse
import fcntl
import io
import json
import os
import pty
import struct
import subprocess
import sys
import sysconfig
import termios
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

DIRECTORY = Path(__file__).resolve().parent.parent / "docs" / "pictures"
COMMAND = ("pmwal", "demo", "--input", "CHANGELOG.md")
COLUMNS, ROWS = 80, 40
THEME = TerminalTheme((13, 17, 23), (230, 237, 243), [(0, 0, 0)] * 8)  # a dark terminal is readable on light and dark pages
FORMAT = """\
<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
text {{ font: {char_height}px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", "Liberation Mono", monospace }}
.{unique_id}-title {{ font-size: 18px; fill: #8b949e }}
{styles}
</style>
<defs>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})">
{backgrounds}
{matrix}
</g>
</svg>
"""
"""Rich's own loads a font from elsewhere, which a picture may not do where it is shown."""


def record(command: Sequence[str], cast: Path) -> int:
    """Run a command of this environment in a terminal of its own, write what it prints and when; its exit status."""
    environment = os.environ | {"TERM": "xterm-256color", "PATH": f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}"}
    head = {"version": 2, "width": COLUMNS, "height": ROWS, "command": " ".join(command), "env": {"TERM": "xterm-256color"}}
    lines = [json.dumps(head)]
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    begin = time.monotonic()
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True) as process:
        os.close(theirs)
        with open(ours, "rb", buffering=0) as screen:
            while piece := _piece(screen):
                lines.append(json.dumps([round(time.monotonic() - begin, 3), "o", piece.decode()], ensure_ascii=False))
    cast.write_text("\n".join(lines) + "\n")
    return process.returncode


def _piece(screen: io.RawIOBase | io.FileIO) -> bytes:
    """What the command printed next, in whole lines; nothing at the end, which Linux reports as an error."""
    found = b""
    while not found.endswith(b"\n"):
        try:
            more = screen.read(4096)
        except OSError:
            break
        if not more:
            break
        found += more
    return found


def shown(cast: Path) -> tuple[str, str]:
    """The command of a recording, and all that it printed."""
    head, *events = map(json.loads, cast.read_text().splitlines())
    return head["command"], "".join(text for _, kind, text in events if kind == "o").replace("\r\n", "\n")


def picture(cast: Path) -> str:
    """A recording as an SVG."""
    command, output = shown(cast)
    text = Text.assemble("$ ", (command, "bold"), "\n", Text.from_ansi(output.rstrip("\n")))
    console = Console(record=True, file=io.StringIO(), width=COLUMNS, force_terminal=True, color_system="truecolor")
    console.print(text, overflow="fold", highlight=False, end="")
    svg = console.export_svg(title=command, theme=THEME, code_format=FORMAT, unique_id="demo")
    return svg.replace("</text><text", "</text>\n<text")  # a line for each, so that a change can be reviewed


def main(arguments: Sequence[str] | None = None) -> int:
    """Record unless it is only to be drawn, and draw; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--redraw", action="store_true", help="run nothing, draw the recording that is there")
    parser.add_argument("--directory", type=Path, default=DIRECTORY, help="where the two files are (default: docs/pictures)")
    options = parser.parse_args(arguments)
    cast, svg = options.directory / "demo.cast", options.directory / "demo.svg"
    if not options.redraw and (status := record(COMMAND, cast)):
        print(f"{' '.join(COMMAND)} ended with status {status}; see {cast}", file=sys.stderr)
        return 1
    svg.write_text(picture(cast))
    print(f"wrote {svg}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
