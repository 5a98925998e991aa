"""The parts of tools/soak.py: one writer that appends at a steady rate, its readers, freezes of its disk, and the verdict."""
