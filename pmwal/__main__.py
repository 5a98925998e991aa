"""``python -m pmwal``: the command line."""

import sys

from pmwal.cli import main

if __name__ == "__main__":
    sys.exit(main())
