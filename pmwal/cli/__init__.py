"""The command line: ``pmwal COMMAND`` or ``python -m pmwal COMMAND``; ``main`` runs it.

``commands`` has one module for each command, ``formats`` the forms in which they read and write records, and ``demo`` what
``pmwal demo`` runs. The modules beside them are shared by the commands.
"""

from pmwal.cli.entry import main

__all__ = ["main"]
