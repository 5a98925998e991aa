/* How a Core reaches what is around it: errors, the clock, the file, a test's seam. */
#ifndef PMWAL_OUTSIDE_H
#define PMWAL_OUTSIDE_H

#include <time.h>

#include "core.h"

/* What a test's clock says. 0, or -1 with an exception set when it raised. */
int seam_ns(Core *core, const char *method, int64_t *time_ns);

static inline int64_t clock_ns(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* The wall clock. As seam_ns(). */
static inline int now_ns(Core *core, int64_t *time_ns)
{
    if (core->seam)
        return seam_ns(core, "now_ns", time_ns);
    *time_ns = clock_ns(CLOCK_REALTIME);
    return 0;
}

/* A monotonic clock where no test needs to set it: for durations. */
static inline int64_t monotonic_ns(void)
{
    return clock_ns(CLOCK_MONOTONIC);
}

/* Such a clock, or that of a test. As seam_ns(). */
static inline int ticks_ns(Core *core, int64_t *ns)
{
    if (core->seam)
        return seam_ns(core, "monotonic_ns", ns);
    *ns = monotonic_ns();
    return 0;
}

/* Set an OSError; always -1. The last two are final: every later call gets the error too, even before the handle is poisoned. */
int raise_errno(int number);
int raise_final(Core *core, int number);
int raise_fault(Core *core);

/* Sets the final OSError for an errno of the disk, or of a guarded access to the mapping; always -1. */
int raise_disk(Core *core, int number);

/* 0, or -1 with an exception set when the medium has failed before. */
static inline int check_failed(const Core *core)
{
    return core->failed ? raise_errno(core->failed) : 0;
}

int raise_closed(void);

/* 0, or -1 with an exception set when the mapping is closed. */
static inline int check_mapped(const Core *core)
{
    return core->base ? 0 : raise_closed();
}

/* 0, or the errno that says what is wrong with the file. */
int check_size(Core *core);

/* Calls a method of the seam. 0, or -1 with an exception set. */
int call_seam(Core *core, const char *method, const char *format, ...);

/* Stores plain bytes; with a seam, through it. 0, or -1 with an exception set. */
int put(Core *core, uint64_t offset, const void *data, size_t length);

/* Stores a slot through the seam, so that the next fence makes it durable where lines are flushed. As put(). */
int put_slot(Core *core, uint64_t offset, const union commit_slot *slot);

#endif
