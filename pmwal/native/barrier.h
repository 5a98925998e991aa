/* Barriers and commit slots. */
#ifndef PMWAL_BARRIER_H
#define PMWAL_BARRIER_H

#include "core.h"

#include "persist.h"

struct range {
    uint64_t offset, length;
};

/* Orders earlier stores before later ones; where lines are flushed, it also makes the earlier ones durable. */
static inline void order_stores(const Core *core)
{
    if (core->barrier == BARRIER_LINES)
        fence();
    else
        __atomic_thread_fence(__ATOMIC_RELEASE);
}

/* The barrier of this medium; cache lines were written back or streamed when they were stored. 0, an errno, or, with a seam only,
 * -1 with an exception set. */
int barrier_over(Core *core, const struct range *ranges, size_t count);

/* The parts of the file between two positions; how many there are. */
size_t ranges_between(const Core *core, uint64_t start, uint64_t end, struct range ranges[2]);

/* Builds the slot of the next generation: `state`, except for what is durable. Returns its offset in the file. */
uint64_t build_slot(const Core *core, union commit_slot *slot, const struct log_state *state, struct bound durable, uint32_t flags);

struct slot_store {
    const Core *core;
    uint64_t offset;
    const union commit_slot *slot;
    bool streams; /* past the cache */
};

/* Stores a slot. Under a fault guard. */
void slot_body(void *context);

/* Stores a slot and waits for its barrier. As barrier_over(). */
int persist_slot(Core *core, const union commit_slot *slot, uint64_t offset);

/* Takes the result of a barrier: 0; an errno, raised here and final; or -1 with an exception already set. */
int settle_flush(Core *core, int status);

#endif
