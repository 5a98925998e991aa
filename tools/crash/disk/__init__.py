"""Power cuts of a logged disk: one of a single log file (filelog), one with a file system on it (hostlog)."""
