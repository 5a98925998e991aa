"""The command line as ``python -m pmwal``."""

import sys

from pmwal_command import main

if __name__ == "__main__":
    sys.exit(main())
