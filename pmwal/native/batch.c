/* Storing one batch, in the way that suits the medium and its size. */
#include "batch.h"

#include "disk.h"
#include "outside.h"

#define LARGE_STORE (32 * 1024) /* a larger batch goes into the page cache by pwrite(2), which takes no fault for each page */

static int store_batch(struct batch *batch)
{
    Core *core = batch->core;
    uint64_t total = 0;
    PMWAL_CHECK(lock_admits(core->writing));
    PMWAL_CHECK(lock_admits(core->guard) || core->flushing);
    PMWAL_CHECK(!core->stray_records && !core->stray_slot);
    if (check_mapped(core) || check_failed(core) || now_ns(core, &batch->time_ns))
        return -1;
    if (batch->defers && upkeep_is_due(core, batch->time_ns))
        return 1;
    if (core->barrier == BARRIER_MSYNC) {
        note_thread(core);
        prefetch(core);
        for (size_t i = 0; i < batch->count; i++)
            total += record_size(&core->geometry, piece_at(batch, i).length);
    }
    core->stray_records = true;
    int status = 1;
    if (core->seam)
        status = store_recorded(batch);
    else if (total >= LARGE_STORE && core->cached_writes) {
        status = store_written(batch, total);
        core->cached_writes = status <= 0;
    }
    bool mapped = status > 0;
    if (mapped)
        status = store_mapped(batch);
    if (status)
        return -1;
    take_in(batch);
    return mapped ? 0 : publish_recorded(core);
}

int core_store(Core *core, const struct piece *pieces, size_t count, bool defers)
{
    struct batch batch;
    batch_of(&batch, core, pieces, count);
    batch.defers = defers;
    return store_batch(&batch);
}

int core_store_rows(Core *core, const struct piece *first, size_t count)
{
    struct batch batch;
    batch_of(&batch, core, first, count);
    batch.rows = true;
    return store_batch(&batch);
}
