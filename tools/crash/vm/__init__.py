"""Power cuts of a virtual machine that writes logs."""
