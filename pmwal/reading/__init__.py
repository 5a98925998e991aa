"""Reading records: the walk over a view, the reader, following, arrays."""
