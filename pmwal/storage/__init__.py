"""Where the bytes lie: the medium, its mapping and barrier, the lock, new files, the live page, the seam."""
