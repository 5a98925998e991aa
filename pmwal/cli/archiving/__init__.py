"""``pmwal archive``: moves the records of logs into archive files."""
