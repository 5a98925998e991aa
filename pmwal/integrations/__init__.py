"""Logging libraries other than the standard one, which ``pmwal.LogHandler`` serves. One module each; none imports the library."""
