"""The controls without a sync: a library, preloaded into the program under test, that replaces its barriers.

Both engines make their barriers through msync(2) or pwritev2(2) of the C library, so the code under test is the shipped one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#define PAGES 4095UL

static struct { uintptr_t start; size_t length; int fd; } mapped[64]; /* mappings of logs, each with a descriptor of its file */
static unsigned count;

/* mmap(2), under the name that Python uses */
void *mmap64(void *at, size_t length, int protection, int flags, int fd, off_t offset)
{
    static void *(*next)(void *, size_t, int, int, int, off_t);
    if (!next)
        next = (void *(*)(void *, size_t, int, int, int, off_t))dlsym(RTLD_NEXT, "mmap64");
    void *start = next(at, length, protection, flags, fd, offset);
    if (start != MAP_FAILED && fd >= 0 && (flags & MAP_SHARED) && (protection & PROT_WRITE)) {
        mapped[count % 64].start = (uintptr_t)start;
        mapped[count % 64].length = length;
        mapped[count++ % 64].fd = dup(fd);
    }
    return start;
}

/* At most writes the data out; never flushes the disk's cache. */
static int write_out(int fd, off_t start, size_t length)
{
#ifdef NO_SYNC
    (void)fd, (void)start, (void)length;
    return 0;
#else
    return sync_file_range(fd, start, (off_t)length,
                           SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
#endif
}

int msync(void *start, size_t length, int flags)
{
    (void)flags;
    for (unsigned i = count; i-- > 0 && i + 64 >= count;) {
        uintptr_t offset = (uintptr_t)start - mapped[i % 64].start;
        if (offset < mapped[i % 64].length)
            return write_out(mapped[i % 64].fd, (off_t)offset, length);
    }
    return 0;
}

ssize_t pwritev2(int fd, const struct iovec *pieces, int number, off_t offset, int flags)
{
    (void)flags;
    ssize_t written = pwritev(fd, pieces, number, offset);
    off_t first = offset & ~(off_t)PAGES;
    if (written > 0 && write_out(fd, first, (size_t)((offset + written + (off_t)PAGES) & ~(off_t)PAGES) - (size_t)first))
        return -1;
    return written;
}
"""


def build(control: str, directory: Path) -> Path:
    """Compile the library for the control "no-sync" or "sync-file-range"."""
    compiler = os.environ.get("CC") or shutil.which("cc") or "gcc"
    library = directory / f"{control}.so"
    defines = ["-DNO_SYNC"] if control == "no-sync" else []
    flags = ["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", *defines]
    subprocess.run([compiler, *flags, "-x", "c", "-", "-o", str(library), "-ldl"], input=SOURCE, text=True, check=True)
    return library
