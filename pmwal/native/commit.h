/* Making records durable: barriers, slots, the live page. */
#ifndef PMWAL_COMMIT_H
#define PMWAL_COMMIT_H

#include "store.h"

/* Whether a barrier here is no system call, and the next one has nothing older to carry. */
static inline bool core_commits_at_once(const Core *core)
{
    return core->barrier != BARRIER_MSYNC && core->guard->count == 0 &&
           core->state.head.position == core->state.durable.position && core->generation < PMWAL_GENERATION_MAX;
}

/* Stores one batch and makes it durable; only where core_commits_at_once(). 0; -1 with an exception set; 1, with nothing stored,
 * when upkeep is due. */
int core_store_durable(struct batch *batch);

#define SYNCED_MAX (128 * 1024)

/* Whether a record of this length is stored and made durable by one system call: on a disk, when one thread commits alone and has
 * nothing older to carry. */
static inline bool core_syncs_at_once(const Core *core, uint64_t length)
{
    return core->synced_writes && core->pipelined && core->guard->count == 0 &&
           (core->alone >= CORE_ALONE || core->hold) && core->state.head.position == core->state.durable.position &&
           record_size(&core->geometry, length) <= SYNCED_MAX;
}

/* Does so; only where core_syncs_at_once(). 0; -1 with an exception set; 1 if it turns out impossible, with nothing stored, or with
 * `stray_records` set. */
int core_store_synced(Core *core, const struct piece *piece);

/* Makes everything up to this number durable, together with other threads. 0; -1 with an exception set; 1 when the caller must
 * take the slow path, because the Python side holds the locks. */
int core_commit_through(Core *core, uint64_t seq);

/* -- the caller holds `guard` */

/* Shows the bounds on the live page: for readers in other processes. 0, or -1 with an exception set, like all the next. */
int core_show(Core *core);

/* Barrier over all that is published and not yet durable. */
int core_flush(Core *core);

/* Makes all that is published durable, and wakes the threads that wait for it. */
int core_commit(Core *core);

/* Stores the next slot, which states `state`, and waits for its barrier. */
int core_write_slot(Core *core, const struct log_state *state, uint32_t flags);

#endif
