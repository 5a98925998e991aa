"""``pmwal stress``: processes that share a log, kills, a journal of acknowledgements, and the check against it. Private."""
