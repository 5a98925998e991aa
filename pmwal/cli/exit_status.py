"""Exit statuses; ``pmwal --help`` lists them."""

OK = 0
FAILED = 1  # something is torn, lost or refused, and no other status fits
CORRUPT = 2
UNREADABLE = 3
LOCKED = 4
USAGE = 64  # EX_USAGE of sysexits(3); argparse's own 2 would read as "corrupt"
STREAM = 74  # EX_IOERR of sysexits(3): standard input, output or error; one of its own, because verify answers by its status
INTERRUPTED = 130
BROKEN_PIPE = 141
