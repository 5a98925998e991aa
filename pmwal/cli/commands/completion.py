"""``pmwal completion``: print a script that completes commands, options and file names in a shell."""

from __future__ import annotations

import argparse

from pmwal.cli.exit_status import OK
from pmwal.cli.parser import Commands, add_command

_SHELLS = ("bash", "zsh", "fish")
_FILES = ("path", "paths", "backup", "cursor_file", "file", "html", "compare")  # arguments that take file names
_EPILOG = """\
Requires shtab: pip install 'pmwal[cli]'

Examples:
  pmwal completion bash > ~/.local/share/bash-completion/completions/pmwal
  pmwal completion zsh > ~/.zfunc/_pmwal     if ~/.zfunc is in fpath
  pmwal completion fish > ~/.config/fish/completions/pmwal.fish
"""


def add(commands: Commands) -> None:
    """Describe the command."""
    parser = add_command(
        commands,
        "completion",
        run,
        "print a completion script for a shell",
        "Print a script that completes pmwal's arguments in a shell.",
        _EPILOG,
    )
    parser.add_argument("shell", choices=_SHELLS, help="the shell that runs the script")


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    try:
        import shtab  # noqa: PLC0415 - an extra: everything else works without it
    except ImportError:
        raise ValueError("completion requires shtab, which is not installed: pip install 'pmwal[cli]'") from None
    if args.shell not in shtab.SUPPORTED_SHELLS:
        raise ValueError(f"this version of shtab knows no {args.shell}; upgrade it: pip install -U 'pmwal[cli]'")
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
