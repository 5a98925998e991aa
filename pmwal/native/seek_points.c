#include <string.h>

#include "seek_points.h"

#include "outside.h"

#include "crc32c.h"
#include "fault.h"

/* As seek_step() of pmwal/format/layout.py. */
static uint64_t seek_step(const Core *core)
{
    uint64_t even = (core->geometry.capacity + PMWAL_SEEK_POINTS - 1) / PMWAL_SEEK_POINTS;
    uint64_t step = (even + PMWAL_LINE - 1) / PMWAL_LINE * PMWAL_LINE;
    return step > PMWAL_SEEK_STEP_MIN ? step : PMWAL_SEEK_STEP_MIN;
}

/* No record that ends before this position has a seek point, if the log ends at `end`. A record that starts a lap has one. */
static uint64_t next_due(const Core *core, struct place end, uint64_t step)
{
    uint64_t capacity = core->geometry.capacity, boundary = (end.offset / step + 1) * step;
    return end.offset ? end.position - end.offset + (boundary < capacity ? boundary : capacity) : end.position;
}

struct seek_point {
    const Core *core;
    uint64_t index;
    struct live_seek_point stored;
};

static uint64_t offset_of(const struct seek_point *point)
{
    return PMWAL_LIVE_SEEK_OFFSET + point->index * sizeof point->stored;
}

/* Makes a point one of the open that the page names, which is this one, and stores it: whole or not at all, for its checksum. */
static void point_body(void *context)
{
    struct seek_point *point = context;
    unsigned char *base = point->core->base;
    const unsigned char *body = (const unsigned char *)&point->stored + sizeof point->stored.crc;
    uint32_t crc = seed_crc(point->core->geometry.uuid_crc, point->index);
    crc = crc32c(crc, base + PMWAL_LIVE_OPEN_OFFSET + offsetof(struct live_open, id), sizeof((struct live_open *)0)->id);
    point->stored.crc = crc32c(crc, body, sizeof point->stored - sizeof point->stored.crc);
    if (!point->core->seam)
        memcpy(base + offset_of(point), &point->stored, sizeof point->stored);
}

static void store_point(Core *core, uint64_t index, uint64_t position, uint64_t seq)
{
    struct seek_point point = {core, index, {0, 0, position, seq}};
    if (fault_run(core->base, core->size, point_body, &point) && core->seam && !PyErr_Occurred())
        put(core, offset_of(&point), &point.stored, sizeof point.stored);
}

void note_seek_points(const struct batch *batch)
{
    Core *core = batch->core;
    const struct geometry *g = &core->geometry;
    uint64_t step = seek_step(core);
    struct place end = core_head(core);
    PMWAL_CHECK(core->stray_records);
    for (size_t i = 0; i < batch->count; i++) {
        uint64_t size = record_size(g, piece_at(batch, i).length);
        struct place start = place_record(g, end, size);
        end = end_record(g, start, size);
        if (end.position < core->seek_next)
            continue;
        uint64_t index = start.offset ? (start.offset + size) / step : 0;
        if (!start.offset || (index > start.offset / step && index < PMWAL_SEEK_POINTS))
            store_point(core, index, start.position, core->state.head.seq + i);
        core->seek_next = next_due(core, end, step);
    }
}
