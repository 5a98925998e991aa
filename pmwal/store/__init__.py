"""State machines whose changes are durable: the log, its replay, and checkpoints."""
