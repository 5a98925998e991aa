"""Where the bytes are stored: seam, descriptors, medium, mapping, name, live page, lock, creation, read-ahead."""
