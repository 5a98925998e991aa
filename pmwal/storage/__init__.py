"""Where the bytes are stored: seam, medium, mapping, live page, lock, creation, read-ahead."""
