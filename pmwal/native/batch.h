/* Storing one batch at the head of the log. */
#ifndef PMWAL_BATCH_H
#define PMWAL_BATCH_H

#include "disk.h"
#include "interpreter.h"

/* Before a batch whose numbers nobody has been told: lets it store without waiting for the disk. It may release the interpreter, so
 * the caller relies on nothing that it read before. */
void core_prepare(Core *core, const struct piece *pieces, size_t count);

/* Stores a batch and publishes it. There must be room for it. 0, or -1 with an exception set; with `defers` also 1, with nothing
 * stored, when upkeep is due or another thread holds a lock that it needs. */
int core_store(struct batch *batch);

/* The same for a thread that holds `writing`, and would have to wait for `guard` until the barrier of another thread ends. Those that
 * wait for `writing` would wait for both, one after another, and no two of them would share a barrier again. It may release the
 * interpreter first. 0, -1 with an exception set, or 1 with nothing stored when it cannot be done now. */
int core_store_beside(struct batch *batch);

#endif
