"""``pmwal bench``: floors in C, the modes of a log, and the ratios between them. Private."""
