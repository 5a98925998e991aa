"""The bytes of a log: their meaning, what a whole record is, which slot is the newest. No I/O."""
