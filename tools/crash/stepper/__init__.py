"""The C engine single-stepped, and what persistent memory may hold after each instruction."""
