"""How ``pmwal logs`` reads, selects and shows entries."""
