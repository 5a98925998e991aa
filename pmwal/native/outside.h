/* How a Core reaches what is around it: errors, the clock, the file, a test's seam. */
#ifndef PMWAL_OUTSIDE_H
#define PMWAL_OUTSIDE_H

#include "core.h"

/* The wall clock. 0, or -1 with an exception set when a test's clock raised. */
int now_ns(Core *core, int64_t *time_ns);

/* A monotonic clock, for durations. As now_ns(). */
int ticks_ns(Core *core, int64_t *ns);

/* Such a clock where no test needs to set it. */
int64_t monotonic_ns(void);

/* Set an OSError; always -1. The last two are final: every later call gets the error too, even before the handle is poisoned. */
int raise_errno(int number);
int raise_final(Core *core, int number);
int raise_fault(Core *core);

/* Sets the final OSError for an errno of the disk, or of a guarded access to the mapping; always -1. */
int raise_disk(Core *core, int number);

/* 0, or -1 with an exception set when the medium has failed before. */
int check_failed(Core *core);

/* 0, or -1 with an exception set when the mapping is closed. */
int check_mapped(Core *core);

/* 0, or the errno that says what is wrong with the file. */
int check_size(Core *core);

/* Calls a method of the seam. 0, or -1 with an exception set. */
int call_seam(Core *core, const char *method, const char *format, ...);

/* Stores plain bytes; with a seam, through it. 0, or -1 with an exception set. */
int put(Core *core, uint64_t offset, const void *data, size_t length);

/* Stores a slot through the seam, so that the next fence makes it durable where lines are flushed. As put(). */
int put_slot(Core *core, uint64_t offset, const union commit_slot *slot);

#endif
