"""Logs for logging libraries: the sink, LogHandler, JSON."""
