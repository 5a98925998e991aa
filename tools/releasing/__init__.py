"""Builds and tests of what is released: wheels, sdists, other versions of Python, other processors and C libraries."""
