/* A batch stored and made durable in one step. */
#ifndef PMWAL_AT_ONCE_H
#define PMWAL_AT_ONCE_H

#include "disk.h"

/* Whether a barrier here is no system call, and the next one has nothing older to carry. */
static inline bool core_commits_at_once(const Core *core)
{
    return core->barrier != BARRIER_MSYNC && core->guard->count == 0 &&
           core->state.head.position == core->state.durable.position && core->generation < PMWAL_GENERATION_MAX;
}

/* Stores one batch and makes it durable; only where core_commits_at_once(). 0; -1 with an exception set; 1, with nothing stored,
 * when upkeep is due. */
int core_store_durable(struct batch *batch);

/* Whether a batch of this size is stored and made durable by one system call: on a disk, when one thread commits alone and has
 * nothing older to carry. */
static inline bool core_syncs_at_once(const Core *core, uint64_t size)
{
    return core->synced_writes && core->pipelined && core->guard->count == 0 && (core->alone >= CORE_ALONE || core->hold_until_ns) &&
           core->state.head.position == core->state.durable.position && size <= SYNCED_MAX &&
           core->generation < PMWAL_GENERATION_MAX;
}

/* Does so; only where core_syncs_at_once(). 0; -1 with an exception set; 1 if only the slow path can do it, with nothing stored, or
 * with `stray_records` set. */
int core_store_synced(struct batch *batch);

#endif
