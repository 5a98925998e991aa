"""The file-system rig: on each file system, every acknowledgement waited for a sync."""
