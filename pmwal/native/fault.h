/* Turns a fault inside a mapping (SIGBUS: the file was shortened, the medium failed to load) into an error return.
 *
 * Only faults of the thread that is inside fault_run(), at an address inside its range, are caught. All others go to the handler
 * that was there before. The body is left in the middle: it must be plain C on the mapping, without Python, allocation or lock,
 * and without another fault_run().
 */
#ifndef PMWAL_FAULT_H
#define PMWAL_FAULT_H

#include <stdbool.h>
#include <stddef.h>

/* Installs the handler, or installs it again when somebody has put another one in its place. 0, or an errno. */
int fault_setup(void);

/* Runs `body(context)`; false when an access to [base, base + size) faulted. */
bool fault_run(const void *base, size_t size, void (*body)(void *context), void *context);

/* Whether this thread is inside a body. Only builds with checks have it. */
bool fault_inside(void);

/* memcpy() where either side may fault. */
bool fault_copy(const void *base, size_t size, void *to, const void *from, size_t length);

#endif
