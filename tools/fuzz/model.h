/* A ring made from an input, and the oracle: what a whole record is and which ones rules take, computed without ring.c's code.
 *
 * What is asserted comes from the comments in ring.h. The oracle takes checksums with the table only.
 */
#ifndef FUZZ_MODEL_H
#define FUZZ_MODEL_H

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "crc32c.h"
#include "input.h"
#include "ring.h"

static inline void failed(const char *what, const char *file, int line)
{
    fprintf(stderr, "%s:%d: not true: %s\n", file, line, what);
    abort();
}

#define CHECK(condition) ((condition) ? (void)0 : failed(#condition, __FILE__, __LINE__))

struct ring {
    struct geometry g;
    unsigned char *bytes; /* capacity of them, in a buffer of exactly that length */
};

static void *exactly(uint64_t length)
{
    void *buffer = malloc(length ? length : 1);
    CHECK(buffer != NULL);
    return buffer;
}

static uint64_t pick_payload_max(uint8_t choice, const struct geometry *g)
{
    uint64_t half = g->capacity / 2 / g->alignment * g->alignment;
    switch (choice % 4) {
    case 0:
        return half > PMWAL_HEADER ? half - PMWAL_HEADER : 1;
    case 1:
        return g->capacity;
    case 2:
        return PMWAL_LENGTH_MAX; /* only the room bounds a record then */
    default:
        return 100;
    }
}

static struct ring make_ring(const struct parameters *p, const uint8_t *data, size_t size)
{
    static const uint64_t capacities[] = {4096, 8192, 16384, 3 * 32768};
    struct ring ring = {.g = {.alignment = UINT64_C(8) << p->alignment % 10, .uuid_crc = p->uuid_crc}};
    /* Small ones too: runs meet their ends more often. */
    ring.g.capacity = p->capacity % 8 < 4 ? capacities[p->capacity % 8]
                                          : (2 + (uint64_t)(p->capacity >> 3)) * ring.g.alignment;
    ring.g.payload_max = pick_payload_max(p->payload, &ring.g);
    ring.g.size_max = record_size(&ring.g, ring.g.payload_max);
    ring.bytes = exactly(ring.g.capacity);
    memset(ring.bytes, 0, ring.g.capacity);
    memcpy(ring.bytes, data, size < ring.g.capacity ? size : ring.g.capacity);
    return ring;
}

static uint32_t checksum(const struct geometry *g, uint64_t position, const unsigned char *stored, uint64_t length)
{
    uint32_t crc = crc32c_table(g->uuid_crc, &position, sizeof position);
    return crc32c_table(crc, stored + 4, PMWAL_HEADER - 4 + length);
}

/* Gives right checksums to the possible headers of one lap from `start` on. Later ones may invalidate earlier ones. */
static void seal(struct ring *ring, uint64_t start)
{
    for (uint64_t at = 0; at < ring->g.capacity; at += ring->g.alignment) {
        uint64_t position = start + at, offset = position % ring->g.capacity, room = ring->g.capacity - offset;
        struct record header;
        if (room < PMWAL_HEADER)
            continue;
        memcpy(&header, ring->bytes + offset, sizeof header);
        if (!header_possible(&ring->g, &header, position, room) || header.length > room - PMWAL_HEADER)
            continue;
        header.crc = checksum(&ring->g, position, ring->bytes + offset, header.length);
        memcpy(ring->bytes + offset, &header, sizeof header);
    }
}

/* Makes records from `position` on, mostly as in a real log; the bytes already there serve as random numbers. */
static void chain(struct ring *ring, const struct parameters *p, uint64_t position)
{
    const struct geometry *g = &ring->g;
    uint64_t seq = p->seq, end = position + g->capacity;
    uint32_t batch_index = 0, batch_count = 1, epoch = p->epoch_min;
    while (position < end) {
        uint64_t offset = position % g->capacity, room = g->capacity - offset;
        struct record header;
        if (room < PMWAL_HEADER)
            return;
        memcpy(&header, ring->bytes + offset, sizeof header);
        unsigned draw = header.crc & 0xff, oddity = header.crc >> 8 & 0x7f;
        uint64_t most = room - PMWAL_HEADER < g->payload_max ? room - PMWAL_HEADER : g->payload_max;
        if (position + PMWAL_HEADER + most > end)
            return;
        if (oddity != 1)
            header.seq = seq;
        if (oddity != 2)
            header.length = (uint32_t)(draw < 16 ? most : header.length % (draw < 200 ? 128 : most + 1));
        if (oddity != 3)
            header.durable %= position + 1;
        if (oddity != 4)
            header.flags = 0;
        if (oddity != 5)
            header.epoch = seq >= p->epoch_first_seq ? p->epoch : draw % 8 ? epoch + (draw % 8 == 1 && epoch + 1 < p->epoch) : 1;
        if (batch_index == 0)
            batch_count = draw & 1 ? 1 : 1 + header.batch_count % 5;
        if (oddity != 6)
            header.batch_count = batch_count + (oddity >= 10 && oddity < 14);
        if (oddity != 7)
            header.batch_index = batch_index;
        if (header.length > most) {
            memcpy(ring->bytes + offset, &header, sizeof header);
            return;
        }
        memcpy(ring->bytes + offset, &header, sizeof header);
        header.crc = checksum(g, position, ring->bytes + offset, header.length) ^ (oddity == 8);
        memcpy(ring->bytes + offset, &header, sizeof header);
        batch_index = batch_index + 1 < batch_count ? batch_index + 1 : 0;
        epoch = header.epoch;
        position += record_size(g, header.length);
        seq++;
        if (oddity == 9)
            return;
    }
}

static bool is_whole(const struct ring *ring, uint64_t position)
{
    const struct geometry *g = &ring->g;
    uint64_t offset = position % g->capacity, room = g->capacity - offset;
    struct record h;
    if (room < PMWAL_HEADER)
        return false;
    memcpy(&h, ring->bytes + offset, sizeof h);
    if (h.seq == 0 || h.seq > PMWAL_SEQ_MAX || h.epoch == 0 || h.flags || h.batch_index >= h.batch_count || h.durable > position)
        return false;
    uint64_t size = (PMWAL_HEADER + (uint64_t)h.length + g->alignment - 1) / g->alignment * g->alignment;
    if (h.length > g->payload_max || size > room)
        return false;
    return checksum(g, position, ring->bytes + offset, h.length) == h.crc;
}

static struct window window_of(const struct ring *ring, uint64_t start, uint64_t length)
{
    start %= ring->g.capacity;
    if (length > ring->g.capacity - start)
        length = ring->g.capacity - start;
    unsigned char *bytes = exactly(length);
    memcpy(bytes, ring->bytes + start, length);
    return (struct window){bytes, start, length};
}

static bool may_take(const struct ring *ring, const struct run_rules *rules, uint64_t position, uint64_t seq, uint32_t epoch_min,
                     struct record *header)
{
    const struct geometry *g = &ring->g;
    uint64_t offset = position % g->capacity;
    if (seq >= rules->stop_seq || (seq == rules->lap_seq && g->capacity - offset < g->size_max) || !is_whole(ring, position))
        return false;
    memcpy(header, ring->bytes + offset, sizeof *header);
    const struct epochs *epochs = &rules->epochs;
    const struct epoch_start *starts = (const struct epoch_start *)epochs->starts;
    for (size_t i = 0; i < epochs->count && seq < epochs->newest_first_seq; i++)
        if (seq >= starts[i].first_seq && header->epoch < starts[i].epoch)
            return false;
    return header->seq == seq && position + record_size(g, header->length) <= rules->limit && header->epoch >= epoch_min &&
           (seq >= epochs->newest_first_seq ? header->epoch == epochs->newest : header->epoch < epochs->newest);
}

#endif
