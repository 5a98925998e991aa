/* A batch stored and made durable in one step, by a thread that commits alone. */
#include "at_once.h"

#include "barrier.h"
#include "interpreter.h"
#include "live_page.h"
#include "outside.h"

#include "fault.h"

/* Requests the lines to which a batch of this size would be stored next: stores after a fence wait for it, and only then for their
 * lines. What is stored past the cache is better left outside of it. */
static inline void fetch_next(const struct batch *batch)
{
    const Core *core = batch->core;
    const unsigned char *next = core->base + core->ring_offset + batch->end.offset;
    if (core->barrier != BARRIER_LINES || batch->size >= STREAM_MIN || batch->size >= core->stream_min ||
        batch->end.offset + batch->size > core->geometry.capacity)
        return;
    for (uint64_t line = 0; line < batch->size; line += PMWAL_LINE)
        __builtin_prefetch(next + line, 1);
}

/* A batch and its commit under one fault guard: a whole durable append where a barrier is a fence. Stores after a fence queue in
 * the store buffer until it completes, and the buffer is small, so there are as few as possible. */
static void durable_body(void *context)
{
    struct batch *batch = context;
    Core *core = batch->core;
    store_records(batch);
    uint64_t position = batch->end.position, seq = core->state.head.seq + batch->count;
    batch->names = !core->pipelined || position - core->pointer > PMWAL_POINTER_LAG_MAX;
    bool streams = core->streams || batch->size >= core->stream_min;
    struct slot_store store = {core, 0, &batch->slot, streams};
    if (batch->names)
        store.offset = build_slot(core, &batch->slot, &core->state, (struct bound){position, seq}, 0);
    fetch_next(batch);
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

int core_store_durable(struct batch *batch)
{
    Core *core = batch->core;
    PMWAL_CHECK(core_is_free(core));
    PMWAL_CHECK(core_commits_at_once(core));
    if (now_ns(core, &batch->time_ns))
        return -1;
    if (upkeep_is_due(core, batch->time_ns))
        return 1;
    bool timed = is_timed(core);
    int64_t start = timed ? monotonic_ns() : 0;
    core->stray_records = true;
    if (!fault_run(core->base, core->size, durable_body, batch))
        return raise_fault(core);
    int64_t took = timed ? monotonic_ns() - start : 0;
    take_in(batch);
    core->live_version++;
    core->state.durable.position = batch->end.position; /* a copy of `head` in one load would wait for the fence */
    core->state.durable.seq = core->state.head.seq;
    core->commits++;
    core->barriers++;
    if (batch->names) {
        core->generation++;
        core->pointer = core->state.head.position;
        core->slots_written++;
        core->barriers++;
    }
    check_core(core);
    return timed ? note_latency(core, took) : 0;
}

/* Without the interpreter: stores the batch, waits for its barrier, and for that of a slot if one is due. As store_synced(). */
static int sync_batch(struct batch *batch)
{
    Core *core = batch->core;
    struct bound through = {batch->end.position, core->state.head.seq + batch->count};
    batch->names = through.position - core->pointer > PMWAL_POINTER_LAG_MAX;
    int status = store_synced(batch);
    if (status || !batch->names)
        return status;
    uint64_t offset = build_slot(core, &batch->slot, &core->state, through, 0);
    return persist_slot(core, &batch->slot, offset);
}

/* With `writing` and `guard` held. */
static int commit_synced(struct batch *batch)
{
    Core *core = batch->core;
    struct absence absence;
    core->stray_records = true;
    leave_for_barrier(core, &absence);
    int status = sync_batch(batch);
    come_back(core, &absence);
    if (status < 0) {
        core->synced_writes = false;
        core->stray_records = status == -2; /* the part that was stored may be a whole record */
        return 1;
    }
    core->barriers += 1 + (batch->names && !status);
    if (status)
        return settle_flush(core, status);
    take_in(batch);
    core->state.durable = core->state.head;
    core->commits++;
    if (batch->names) {
        core->generation++;
        core->pointer = core->state.head.position;
        core->slots_written++;
    }
    check_core(core);
    return core_show(core) ? -1 : note_latency(core, absence.done_ns - absence.begun_ns);
}

int core_store_synced(struct batch *batch)
{
    Core *core = batch->core;
    PMWAL_CHECK(core_syncs_at_once(core, batch->size));
    note_thread(core);
    /* A write past the end of a shortened file would extend it, and succeed. */
    if ((core->alone < CORE_ALONE && !core->hold_until_ns) || !is_contiguous(batch) || check_size(core))
        return 1;
    if (now_ns(core, &batch->time_ns))
        return -1;
    if (upkeep_is_due(core, batch->time_ns))
        return 1;
    if (!make_stage(core, batch->size < PIECE ? PIECE : batch->size) || !take_both(core))
        return 1;
    Py_INCREF(core);
    int status = commit_synced(batch);
    release_both(core);
    Py_DECREF(core);
    return status;
}
