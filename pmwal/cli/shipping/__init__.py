"""``pmwal ship``: sends the records of logs to a stream."""
