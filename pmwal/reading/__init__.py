"""Handing out records: the walk, the reader, following, arrays."""
