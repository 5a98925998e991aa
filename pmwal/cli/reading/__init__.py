"""Reads the records of one log or several for the commands, in either order, and keeps cursors in files."""
