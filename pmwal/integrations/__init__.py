"""Adapters for libraries that pmwal does not need. One module each."""
