"""The command ``pmwal``. It is a module beside the package, so that Ctrl-C while the package is imported is handled, too."""

from __future__ import annotations

import os
import signal
import sys


def main() -> int:
    """Import what the command needs and run it."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:  # not if a shell started it in the background, with SIGINT ignored
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # an exception could be caught by what is being imported
    from pmwal.cli import entry  # noqa: PLC0415 - the point of this module

    entry.load(sys.argv[1:])
    if handler is signal.default_int_handler:
        signal.signal(signal.SIGINT, handler)
    return entry.main()
