"""``main``: parse the arguments, run one command, and turn every error into one line and an exit status."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any, TextIO

from pmwal import __version__
from pmwal.cli.exit_status import BROKEN_PIPE, CORRUPT, FAILED, INTERRUPTED, LOCKED, OK, UNREADABLE, USAGE
from pmwal.cli.hints import for_command_line
from pmwal.cli.parser import HelpFormatter, Parser, join_relative
from pmwal.cli.streams import StreamError, standard_streams
from pmwal.cli.terminal import say
from pmwal.errors import CorruptWal, FormatError, PersistError, PmwalError, WalLocked

COMMANDS = (
    *("demo", "create", "write", "logs", "cat", "tail", "stat", "info", "verify", "repair", "truncate", "prune", "copy", "resize"),
    *("consumers", "archive", "ship", "restore", "export", "import", "serve", "stress", "crashsim", "bench", "completion"),
)
"""All commands, in the order of the help. Each is a module of ``pmwal.cli.commands``, imported when it is needed."""

_DESCRIPTION = "A write-ahead log on persistent memory, disk or tmpfs."
_EPILOG = """\
Exit status:
  0    success; for verify: clean, or recovered with nothing torn
  1    failure; for verify: something is torn; for repair: records were lost;
       for demo: the log was wrong after a kill, or nothing was proved;
       for stress: a violation
  2    corrupt: acknowledged records are damaged, missing or in doubt
  3    cannot be opened: not a pmwal log, or an operating system error
  4    another process has the log open for writing
  64   usage error
  74   standard input, output or error failed, or is missing
  130  interrupted
  141  the reader of the output has gone (broken pipe)

Examples:
  pmwal demo                              kill a writer, lose nothing
  pmwal create app.wal --size 64MiB
  tail -F app.log | pmwal write app.wal   make each line a durable record
  pmwal tail -f app.wal                   print the last ten, then new ones
  pmwal logs -f -p warning /var/log/shop  read the logs of a service
  pmwal verify app.wal && echo sound

'pmwal COMMAND --help' describes the options of a command, with examples.
Set PMWAL_TRACEBACK=1 to see where an error came from.
"""


def load(arguments: Sequence[str]) -> None:
    """Import the commands that ``main`` will need for these arguments."""
    for name in _needed(arguments):
        _module(name)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; raise nothing."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        with standard_streams() as streams, _short_warnings():
            return streams.finish(_run(arguments))
    except KeyboardInterrupt:  # before the command began, or once more as it ended
        return INTERRUPTED


def _run(arguments: list[str]) -> int:
    args: argparse.Namespace | None = None
    try:
        args, unknown = _parser(_needed(arguments)).parse_known_args(join_relative(arguments))
        if unknown and hasattr(args, "paths") and not any(word.startswith("-") for word in unknown):
            args.paths += unknown  # argparse takes no positional arguments after an option that came after others
        elif unknown:
            args.parser.unknown(unknown)
        _refuse_counts(args)
        status: int = args.run(args)
    except SystemExit as stop:  # argparse ends --help, --version and wrong usage like this
        status = stop.code if isinstance(stop.code, int) else FAILED
    except StreamError:  # the stream keeps it and gives the status at the end
        status = OK
    except BrokenPipeError:
        status = BROKEN_PIPE
    except KeyboardInterrupt:
        status = INTERRUPTED
    except Exception as error:
        if os.environ.get("PMWAL_TRACEBACK"):
            import traceback  # noqa: PLC0415 - on request only

            traceback.print_exc()
        path = getattr(args, "path", None)
        status = _explain(error, path if isinstance(path, str) else None)
    return status


def _refuse_counts(args: argparse.Namespace) -> None:
    """A usage error for ``tail -3`` and ``tail app.wal 3``: a number that names no file is how many records to print."""
    for word in args.paths if hasattr(args, "lines") else ():
        if re.fullmatch("-?[0-9]+", word) and not os.path.lexists(word):
            number = word.lstrip("-")
            args.parser.error(f"{word} is neither an option nor a log; for the last {number} records give -n {number}")


def _needed(arguments: Sequence[str]) -> Sequence[str]:
    """The commands that a parser for these arguments must know. Help, usage errors and completion need all."""
    if arguments == ["--version"]:
        return ()
    return arguments[:1] if arguments and arguments[0] in COMMANDS and arguments[0] != "completion" else COMMANDS


def _module(name: str) -> Any:
    return import_module(f"pmwal.cli.commands.{'import_' if name == 'import' else name}")


def _parser(names: Sequence[str] = COMMANDS) -> Parser:
    parser = Parser(prog="pmwal", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=HelpFormatter)
    parser.add_argument("--version", action="version", version=f"pmwal {__version__}")
    parser.set_defaults(run=_no_command, root=parser, parser=parser)
    commands = parser.add_subparsers(metavar="COMMAND", title="commands", parser_class=Parser, prog="pmwal")
    for name in names:
        _module(name).add(commands)
    return parser


def _no_command(args: argparse.Namespace) -> int:
    args.root.print_help(sys.stderr)
    return USAGE


def _explain(error: Exception, path: str | None) -> int:
    """Report an error in one line (two for damage), and return the exit status."""
    if isinstance(error, CorruptWal):
        say(_corrupt_in_words(error, path))
        return UNREADABLE if isinstance(error, FormatError) else CORRUPT
    text = str(error)
    if isinstance(error, WalLocked):
        status = LOCKED
    elif isinstance(error, FormatError):
        status = UNREADABLE
    elif isinstance(error, OSError):
        status, text = UNREADABLE, _os_error_in_words(error, path)
    elif isinstance(error, PmwalError | ValueError) or (isinstance(error, ImportError) and error.name is None):
        status = FAILED  # an ImportError without a name is pmwal's own, and says what to install
    else:
        status, text = FAILED, f"unexpected {type(error).__name__}: {text} (set PMWAL_TRACEBACK=1 to see where)"
    say(for_command_line(error, text))
    return status


def _corrupt_in_words(error: CorruptWal, path: str | None) -> str:
    from pmwal.cli.wording import lost_in_words  # noqa: PLC0415 - for errors only

    words = [f"{path or 'the log'}: corrupt: {error.reason or error}"]
    if error.first_seq is not None:
        words.append(f"{lost_in_words(error.first_seq, error.last_seq)} lost")
    if error.start is not None:
        words.append(f"file offsets {error.start} to {error.end}")
    name = path or "PATH"
    advice = f"\n       Nothing was changed. To read what is whole: pmwal cat --salvage {name}; to repair it: pmwal repair {name}"
    return "; ".join(words) + advice


def _os_error_in_words(error: OSError, path: str | None) -> str:
    reason = error.strerror or str(error)
    if isinstance(error, PersistError):
        return reason if path is None or reason.startswith(f"{path}: ") else f"{path}: {reason}"
    name = error.filename
    if not isinstance(name, str) or name.startswith("/proc/self/fd/"):
        name = path
    return reason if name is None or reason.startswith(f"{name}: ") else f"{name}: {reason}"


@contextlib.contextmanager
def _short_warnings() -> Iterator[None]:
    """Print each warning as one line, without its position in the source."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        say(f"warning: {for_command_line(Warning(message), str(message))}")

    with warnings.catch_warnings():
        warnings.simplefilter("always", RuntimeWarning)
        warnings.showwarning = show
        yield
