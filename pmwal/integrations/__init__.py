"""Adapters for libraries that pmwal does not need."""
