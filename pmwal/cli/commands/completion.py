"""``pmwal completion``: a script that makes a shell complete commands, options and file names."""

from __future__ import annotations

import argparse

from pmwal.cli.common import OK, Commands, add_command

_SHELLS = ("bash", "zsh")
_FILES = ("path", "paths", "backup", "cursor_file", "file")  # arguments that are names of files
_EPILOG = """\
It needs shtab: pip install 'pmwal[cli]'

Examples:
  pmwal completion bash > ~/.local/share/bash-completion/completions/pmwal
  pmwal completion zsh > ~/.zfunc/_pmwal     with ~/.zfunc in fpath
"""


def add(commands: Commands) -> None:
    """Describe the command."""
    parser = add_command(
        commands, "completion", run, "print a script for the shell", "Print a script that completes pmwal's arguments.", _EPILOG
    )
    parser.add_argument("shell", choices=_SHELLS)


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    try:
        import shtab  # noqa: PLC0415 - an extra: everything else works without it
    except ImportError:
        raise ValueError("completion needs shtab, which is not installed: pip install 'pmwal[cli]'") from None
    _complete_files(args.root, shtab.FILE)
    print(shtab.complete(args.root, shell=args.shell))
    return OK


def _complete_files(parser: argparse.ArgumentParser, how: object) -> None:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _complete_files(command, how)
        elif action.dest in _FILES:
            action.complete = how  # type: ignore[attr-defined]  # where shtab looks
