"""The HTTP face of ``pmwal serve``: reading only, for people and programs on this machine."""
