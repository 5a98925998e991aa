"""Adapters for libraries that pmwal does not require, one module each."""
