"""The bytes of a log: what each one means, what a whole record is, which slot is the newest. No I/O."""
