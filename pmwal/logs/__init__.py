"""Logs of logging libraries: ``LogHandler``, the sink that it shares with ``pmwal.integrations``, JSON; slots and ``LogSet``."""
