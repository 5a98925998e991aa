"""The command line: ``pmwal COMMAND`` or ``python -m pmwal COMMAND``; ``main`` runs it.

One module for each command; each has ``add``, which describes its options, and ``run``, which returns the exit status.
"""

from pmwal.cli.command import main

__all__ = ["main"]
