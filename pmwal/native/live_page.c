/* The live page: what a running writer shows to readers in other processes. live.h says how the bounds are stored. */
#include <string.h>

#include "live_page.h"

#include "outside.h"

#include "fault.h"

static void fill_live_page(const Core *core, struct live_page *page)
{
    const struct log_state *state = &core->state;
    page->bounds.version_begin = core->live_version;
    page->bounds.tail_position = state->tail.position;
    page->bounds.tail_seq = state->tail.seq;
    page->bounds.durable_position = state->durable.position;
    page->bounds.durable_seq = state->durable.seq - 1;
    page->bounds.epoch = state->epoch;
    page->bounds.epoch_first_seq = state->epoch_first_seq;
    page->bounds.version_end = core->live_version;
    page->writer.pid = core->writer.pid;
    page->writer.start_time = core->writer.start_time;
    memcpy(page->writer.boot_id, core->writer.boot_id, sizeof page->writer.boot_id);
    page->writer.heartbeat_ns = core->writer.heartbeat_ns;
    page->writer.published_position = state->head.position;
    page->writer.published_seq = state->head.seq - 1;
    page->writer.inode = core->writer.inode;
}

/* The bounds first, so that they are this writer's when the page names it. */
static void show_body(void *context)
{
    const Core *core = context;
    struct live_page page, *shown = (struct live_page *)(core->base + PMWAL_LIVE_OFFSET);
    fill_live_page(core, &page);
    live_store(live_first(core->base), &page.bounds);
    live_store(live_second(core->base), &page.bounds);
    memcpy(&shown->writer, &page.writer, sizeof page.writer);
    wake_followers(shown);
}

/* The same through the seam: a step for each group of words that a reader must see in order. */
static int show_recorded(Core *core)
{
    const size_t fields = offsetof(struct live_bounds, tail_position), end = offsetof(struct live_bounds, version_end);
    struct live_page page;
    fill_live_page(core, &page);
    const unsigned char *bounds = (const unsigned char *)&page.bounds;
    if (put(core, PMWAL_LIVE_OFFSET, bounds, fields) || put(core, PMWAL_LIVE_OFFSET + fields, bounds + fields, end - fields) ||
        put(core, PMWAL_LIVE_OFFSET + end, bounds + end, sizeof page.bounds - end) ||
        put(core, PMWAL_LIVE_SECOND_OFFSET, bounds, sizeof page.bounds))
        return -1;
    return put(core, PMWAL_LIVE_WRITER_OFFSET, &page.writer, sizeof page.writer);
}

int core_show(Core *core)
{
    core->live_version++;
    if (core->seam)
        return show_recorded(core);
    return fault_run(core->base, core->size, show_body, core) ? 0 : raise_fault(core);
}

int note_latency(Core *core, int64_t duration_ns)
{
    uint64_t counter = latency_add(&core->latency, duration_ns);
    const uint32_t *count = &core->latency.live_counters[counter];
    uint64_t counters = PMWAL_LIVE_LATENCY_OFFSET + offsetof(struct live_latency, counters);
    return put(core, counters + counter * sizeof *count, count, sizeof *count);
}
