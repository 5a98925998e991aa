/* Storing one batch, in the way that suits the medium and its size. */
#include <errno.h>

#include "batch.h"

#include "outside.h"

static bool by_mapping_of_a_disk(const Core *core)
{
    return core->on_disk && core->barrier == BARRIER_MSYNC && !core->seam;
}

/* Waits until the pages for a batch of `size` bytes at the head, whose first record takes `first`, take stores; without the
 * interpreter. */
static void make_ready(Core *core, uint64_t first, uint64_t size)
{
    struct readying readying;
    struct absence absence;
    Py_buffer kept;
    if (core->hold_until_ns || size >= LARGE_STORE || size > core->geometry.capacity ||
        pages_are_ready(core, first, size, &readying))
        return;
    if (!keep_mapping(core, &kept)) {
        PyErr_Clear();
        return;
    }
    Py_INCREF(core);
    leave(&absence);
    ready_pages(&readying);
    come_back(core, &absence);
    let_mapping_go(&kept);
    core->ready = readying.pages;
    core->ready_tick = readying.tick;
    Py_DECREF(core);
}

static void prepare(Core *core, uint64_t first, uint64_t size)
{
    if (size < LARGE_STORE)
        prefetch(core); /* first: a large folio that took a store is dirty, and stays */
    make_ready(core, first, size);
}

void core_prepare(Core *core, const struct piece *pieces, size_t count)
{
    const struct geometry *g = &core->geometry;
    uint64_t size = 0;
    if (!by_mapping_of_a_disk(core) || !core_is_free(core))
        return;
    for (size_t i = 0; i < count && size < LARGE_STORE; i++)
        size += record_size(g, pieces[i].length);
    prepare(core, record_size(g, pieces->length), size);
}

int core_store_beside(struct batch *batch)
{
    Core *core = batch->core;
    batch->defers = true;
    if (core_accepts(core) && by_mapping_of_a_disk(core))
        prepare(core, record_size(&core->geometry, batch->pieces->length), batch->size);
    return core_accepts(core) && !core->failed && batch_fits(batch) ? core_store(batch) : 1;
}

/* 0, or an errno, which is final. `by_write` is cleared where write(2) is refused. */
static int store_directly(struct batch *batch, bool *by_write)
{
    if (*by_write) {
        int status = store_written(batch);
        if (status >= 0)
            return status;
        *by_write = false;
    }
    return store_mapped(batch) ? 0 : EIO;
}

/* `leaves`: without the interpreter, because this thread holds `writing` and `guard`. */
static int store_any(struct batch *batch, bool by_write, bool leaves)
{
    Core *core = batch->core;
    struct absence absence;
    bool wanted = by_write;
    core->stray_records = true;
    if (core->seam && store_recorded(batch))
        return -1;
    if (!core->seam) {
        if (leaves)
            leave(&absence);
        int status = store_directly(batch, &by_write);
        if (leaves)
            come_back(core, &absence);
        if (wanted && !by_write)
            core->cached_writes = false;
        if (status)
            return raise_disk(core, status);
    }
    take_in(batch);
    return core->seam || by_write ? publish_recorded(core) : 0;
}

int core_store(struct batch *batch)
{
    Core *core = batch->core;
    PMWAL_CHECK(lock_admits(core->writing));
    PMWAL_CHECK(lock_admits(core->guard) || core->flushing);
    PMWAL_CHECK(!core->stray_records && !core->stray_slot);
    if (check_mapped(core) || check_failed(core) || now_ns(core, &batch->time_ns))
        return -1;
    if (batch->defers && upkeep_is_due(core, batch->time_ns))
        return 1;
    bool by_write = batch->size >= LARGE_STORE && core->barrier == BARRIER_MSYNC && core->cached_writes && !core->seam;
    bool leaves = (by_write || batch->size > HELD_MAX) && !core->seam, taken = false;
    bool held = (leaves || by_mapping_of_a_disk(core)) && lock_is_mine(core->writing) && lock_is_mine(core->guard);
    if (leaves && !held) {
        taken = take_both(core);
        if (!taken && batch->defers)
            return 1;
    }
    if (core->barrier == BARRIER_MSYNC) {
        note_thread(core);
        if (!by_write)
            prefetch(core);
        if (held && by_mapping_of_a_disk(core))
            make_ready(core, record_size(&core->geometry, batch->pieces->length), batch->size);
    }
    int status = store_any(batch, by_write && make_stage(core, PIECE), leaves && (held || taken));
    if (taken)
        release_both(core);
    return status;
}
