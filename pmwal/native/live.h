/* The bounds on the live page: how a writer stores them, so that another process can tell a whole line from a torn one.
 *
 * Invariants
 * - version_begin, then the fields, then version_end: a line whose versions are equal, before and after it was read, is whole.
 * - The second copy is stored while the first is whole, and the first while the second is: one of them always is, wherever the
 *   writer is stopped.
 * - Plain stores would not do: the compiler combines and reorders them. Words are stored by relaxed atomic stores with release
 *   fences between; x86 needs no instruction for a fence, aarch64 a DMB.
 */
#ifndef PMWAL_LIVE_H
#define PMWAL_LIVE_H

#include "format.h"

static inline void live_fence(void)
{
    __atomic_thread_fence(__ATOMIC_RELEASE);
}

static inline void live_put(uint64_t *word, uint64_t value)
{
    __atomic_store_n(word, value, __ATOMIC_RELAXED);
}

static inline struct live_bounds *live_first(unsigned char *file)
{
    return (struct live_bounds *)(file + PMWAL_LIVE_OFFSET);
}

static inline struct live_bounds *live_second(unsigned char *file)
{
    return (struct live_bounds *)(file + PMWAL_LIVE_SECOND_OFFSET);
}

/* Stores a whole line. What was stored before is visible before it, and it before what is stored afterwards. */
static inline void live_store(struct live_bounds *line, const struct live_bounds *bounds)
{
    live_fence();
    live_put(&line->version_begin, bounds->version_begin);
    live_fence();
    live_put(&line->tail_position, bounds->tail_position);
    live_put(&line->tail_seq, bounds->tail_seq);
    live_put(&line->durable_position, bounds->durable_position);
    live_put(&line->durable_seq, bounds->durable_seq);
    live_put(&line->epoch, bounds->epoch);
    live_put(&line->epoch_first_seq, bounds->epoch_first_seq);
    live_fence();
    live_put(&line->version_end, bounds->version_end);
    live_fence();
}

/* The same for a line in which only the durable end changes. */
static inline void live_store_durable(struct live_bounds *line, uint64_t version, uint64_t position, uint64_t seq)
{
    live_fence();
    live_put(&line->version_begin, version);
    live_fence();
    live_put(&line->durable_position, position);
    live_put(&line->durable_seq, seq);
    live_fence();
    live_put(&line->version_end, version);
}

#endif
