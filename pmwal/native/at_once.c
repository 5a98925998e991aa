/* A batch stored and made durable in one step, by a thread that commits alone. */
#include "at_once.h"

#include "barrier.h"
#include "disk.h"
#include "live_page.h"
#include "outside.h"

#include "fault.h"

/* A batch and its commit under one fault guard: a whole durable append where a barrier is a fence. Stores after a fence queue in
 * the store buffer until it completes, and the buffer is small, so there are as few as possible. */
static void durable_body(void *context)
{
    struct batch *batch = context;
    Core *core = batch->core;
    store_records(batch);
    uint64_t position = batch->end.position, seq = core->state.head.seq + batch->count;
    batch->names = !core->pipelined || position - core->pointer > PMWAL_POINTER_LAG_MAX;
    struct slot_store store = {core, 0, &batch->slot};
    if (batch->names)
        store.offset = build_slot(core, &batch->slot, &core->state, (struct bound){position, seq}, 0);
    order_stores(core);
    if (batch->names) {
        slot_body(&store);
        order_stores(core);
    }
    struct live_page *page = (struct live_page *)(core->base + PMWAL_LIVE_OFFSET);
    PMWAL_CHECK(page->bounds.version_end == core->live_version);
    live_store_durable(live_first(core->base), core->live_version + 1, position, seq - 1);
    live_store_durable(live_second(core->base), core->live_version + 1, position, seq - 1);
    page->writer.heartbeat_ns = batch->time_ns;
    page->writer.published_position = position;
    page->writer.published_seq = seq - 1;
    wake_followers(page);
}

int core_store_durable(Core *core, const struct piece *pieces, size_t count)
{
    struct batch batch;
    batch_of(&batch, core, pieces, count);
    PMWAL_CHECK(core_is_free(core));
    PMWAL_CHECK(core_commits_at_once(core));
    if (now_ns(core, &batch.time_ns))
        return -1;
    if (upkeep_is_due(core, batch.time_ns))
        return 1;
    bool timed = is_timed(core);
    int64_t start = timed ? monotonic_ns() : 0;
    core->stray_records = true;
    if (!fault_run(core->base, core->size, durable_body, &batch))
        return raise_fault(core);
    int64_t took = timed ? monotonic_ns() - start : 0;
    take_in(&batch);
    PMWAL_CHECK(core->state.head.position == batch.end.position);
    core->live_version++;
    core->state.durable = core->state.head;
    core->commits++;
    core->barriers++;
    if (batch.names) {
        core->generation++;
        core->pointer = core->state.head.position;
        core->slots_written++;
        core->barriers++;
    }
    check_core(core);
    return timed ? note_latency(core, took) : 0;
}

int core_store_synced(Core *core, const struct piece *piece)
{
    struct batch batch;
    batch_of(&batch, core, piece, 1);
    PMWAL_CHECK(core_syncs_at_once(core, piece->length));
    note_thread(core);
    uint64_t size = record_size(&core->geometry, piece->length);
    /* A write past the end of a shortened file would extend it, and succeed. */
    if ((core->alone < CORE_ALONE && !core->hold) || check_size(core) ||
        core->state.head.position + 2 * size - core->pointer > PMWAL_POINTER_LAG_MAX)
        return 1;
    if (now_ns(core, &batch.time_ns))
        return -1;
    if (upkeep_is_due(core, batch.time_ns))
        return 1;
    unsigned char few[PMWAL_PAGE], *staged = size > sizeof few ? PyMem_Malloc(size) : few;
    if (!staged)
        return 1;
    prefetch(core);
    int64_t start = monotonic_ns();
    core->stray_records = true;
    int status = store_synced(&batch, staged);
    if (staged != few)
        PyMem_Free(staged);
    if (status < 0) {
        core->synced_writes = false;
        core->stray_records = status == -2; /* the part that was stored may be a whole record */
        return 1;
    }
    core->barriers++;
    if (core->hold)
        core->hold--;
    if (status)
        return settle_flush(core, status);
    int64_t took = monotonic_ns() - start;
    take_in(&batch);
    core->state.durable = core->state.head;
    core->commits++;
    check_core(core);
    return core_show(core) ? -1 : note_latency(core, took);
}
