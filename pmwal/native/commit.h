/* Making durable what is stored. */
#ifndef PMWAL_COMMIT_H
#define PMWAL_COMMIT_H

#include "core.h"

/* Makes everything up to this number durable, together with other threads. 0; -1 with an exception set; 1 when the caller must
 * take the slow path, because the Python side holds the locks. */
int core_commit_through(Core *core, uint64_t seq);

/* -- the caller holds `guard` */

/* Barrier over all that is published and not yet durable. 0, or -1 with an exception set, like the next two. */
int core_flush(Core *core);

/* Makes all that is published durable, and wakes the threads that wait for it. */
int core_commit(Core *core);

/* Stores the next slot, which states `state`, and waits for its barrier. */
int core_write_slot(Core *core, const struct log_state *state, uint32_t flags);

#endif
