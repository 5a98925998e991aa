/* Turns a fault inside a mapping (SIGBUS: the file was shortened, the medium failed, a copy-on-write file system is full) into an
 * error return.
 *
 * Only faults of a thread inside fault_run(), at an address inside its range, are caught. All others go to the handlers that were
 * installed before. A thread that blocks SIGBUS dies of a fault, whatever handlers there are.
 *
 * A fault abandons the body in the middle, so the body must be plain C on the mapping, without Python, allocation, locks or another
 * fault_run().
 */
#ifndef PMWAL_FAULT_H
#define PMWAL_FAULT_H

#include <stdbool.h>
#include <stddef.h>

/* Installs the handler, again if another one has replaced it. The first fault_run() of a process does it, too. 0, or an errno. */
int fault_setup(void);

/* Runs `body(context)`; false when an access to [base, base + size) faulted. */
bool fault_run(const void *base, size_t size, void (*body)(void *context), void *context);

/* Whether this thread is inside a body. Only builds with checks have it. */
bool fault_inside(void);

/* Inside a body, before a store that may wait for the disk. The first access to a page that is not mapped yet keeps the address space
 * locked, so if the store were that access, every thread that maps memory would wait with it. */
static inline void map_pages(const void *start, size_t length)
{
    const volatile char *at = start, *end = at + length;
    for (; at < end; at += 4096)
        (void)*at;
    (void)end[-1];
}

/* memcpy() where either side may fault. */
bool fault_copy(const void *base, size_t size, void *to, const void *from, size_t length);

#endif
