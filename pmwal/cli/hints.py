"""Hints of the library's errors, as what to type on the command line."""

from __future__ import annotations

import re

from pmwal.errors import FormatError, PersistError, ShipError, UnlinkedWarning, UnsupportedMedium, WalFull, WalLocked

_HINTS: tuple[tuple[type[Exception], str, str], ...] = (
    (
        WalFull,
        r'truncate\(before=\.\.\.\) what you have processed, or open with on_full="wait" or "overwrite"',
        r"free the space of old records with pmwal truncate, or use --on-full overwrite",
    ),
    (WalLocked, r'use that handle, or read with mode="r"', r"to read it meanwhile, use pmwal cat"),
    (WalLocked, r'or read with mode="r"', r"or read it with pmwal cat"),
    (
        Exception,
        r'(Read the whole records|read what is left) with pmwal\.open\(path, "r", recover="salvage"\), or run: pmwal repair (.+)',
        r"\1 with pmwal cat --salvage \2, or run: pmwal repair \2",
    ),
    (FormatError, r'open it with mode="r"', r"read it with pmwal cat"),
    (UnsupportedMedium, r'medium="([a-z-]+)"', r"--medium \1"),
    (ValueError, r"leave (size|align|label) out", r"leave --\1 out"),
    (ValueError, r"^start=([0-9]+) is past the end", r"\1 is past the end"),
    (ValueError, r"use another size or align", r"use another --size or --align"),
    (ValueError, r'with recover="salvage" start at a number', r"with --salvage, leave --cursor-file out"),
    (RuntimeError, r"commit=\S+ needs (.*): use commit=.*", r"--commit with seconds needs \1: use --commit each or manual"),
    (
        PersistError,
        r"This handle is finished: open the log again to find what the medium holds",
        r"To find what the medium has, run pmwal verify",
    ),
    (
        UnlinkedWarning,
        r"what this handle stores cannot be found there; close the handle and open the log again",
        r"what this command stores cannot be found there; stop it and start it again",
    ),
    (ValueError, r"or truncate the log first", r"or free the space of old records first with pmwal truncate"),
    (ValueError, r"^to='", r"--to '"),
    (ValueError, r"^to= has (.*); use headers=", r"--to has \1; use OTEL_EXPORTER_OTLP_HEADERS in the environment"),
    (ShipError, r"Check to=, headers=", r"Check --to, --header"),
    (ShipError, r"give its CA in tls=", r"give its CA with --tls-ca"),
    (ShipError, r"without tls=", r"without --tls-ca and --tls-cert"),
    (ShipError, r'on_rollback="mark"', r"--on-rollback mark"),
    (ShipError, r'too_large="split"', r"--too-large split"),
    (ShipError, r'form="frame"', r"--form frame"),
    (FileExistsError, r"File exists", r"it exists; choose another name, or remove it first"),
)
"""Of which error, what it says to users of the library, and what that is on the command line."""


def for_command_line(error: Exception, message: str) -> str:
    """The error's message, with its hints as options and commands."""
    for kind, hint, replacement in _HINTS:
        if isinstance(error, kind):
            message = re.sub(hint, replacement, message)
    return message
