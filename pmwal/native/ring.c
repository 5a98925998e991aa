#include "ring.h"

#include <string.h>

#include "crc32c.h"

#define AHEAD 1024 /* bytes that are prefetched ahead */
#define GUESS_MAX (UINT64_C(1) << 22) /* bytes that find_start() may checksum */

bool geometry_possible(uint64_t capacity, uint64_t alignment, uint64_t payload_max)
{
    return alignment >= 8 && alignment <= PMWAL_ALIGN_MAX && !(alignment & (alignment - 1)) && capacity % alignment == 0 &&
           capacity <= PMWAL_POSITION_MAX / 4 && payload_max <= UINT32_MAX &&
           record_size(&(struct geometry){.alignment = alignment}, payload_max) <= capacity;
}

uint32_t seed_crc(uint32_t uuid_crc, uint64_t place)
{
    return crc32c(uuid_crc, &place, sizeof place);
}

uint32_t record_crc(uint32_t uuid_crc, uint64_t position, const union header *header, const void *payload)
{
    return crc32c_record(uuid_crc, (struct crc32c_header){position, header->words}, payload, header->record.length);
}

bool header_possible(const struct geometry *g, const struct record *header, uint64_t position, uint64_t room)
{
    return header->seq >= 1 && header->seq <= PMWAL_SEQ_MAX && header->epoch >= 1 && header->flags == 0 &&
           header->batch_index < header->batch_count && header->durable <= position && header->length <= g->payload_max &&
           record_size(g, header->length) <= room;
}

/* The hardware prefetcher stops at the end of a page. */
static inline void prefetch(const unsigned char *stored)
{
    __builtin_prefetch(stored + AHEAD);
    __builtin_prefetch(stored + AHEAD + 64);
}

/* record_at() of a position whose ring offset is known. */
static inline enum standing record_in(const struct geometry *g, const struct window *window, uint64_t position, uint64_t offset,
                                      union header *header)
{
    uint64_t room = g->capacity - offset;
    if (room < PMWAL_HEADER)
        return NOT_WHOLE;
    if (offset < window->start || offset - window->start + PMWAL_HEADER > window->length)
        return OUTSIDE;
    const unsigned char *stored = window->bytes + (offset - window->start);
    prefetch(stored);
    memcpy(header, stored, sizeof *header);
    if (!header_possible(g, &header->record, position, room))
        return NOT_WHOLE;
    if (header->record.length > PMWAL_LARGE_RECORD)
        return OUTSIDE;
    if (offset - window->start + PMWAL_HEADER + header->record.length > window->length)
        return OUTSIDE;
    PMWAL_CHECK(offset - window->start + PMWAL_HEADER + header->record.length <= window->length);
    PMWAL_CHECK(record_size(g, header->record.length) <= room && header->record.durable <= position);
    /* Over the copy of the header, so that the checksum covers the very bytes that were found possible. */
    return record_crc(g->uuid_crc, position, header, stored + PMWAL_HEADER) == header->record.crc ? WHOLE : NOT_WHOLE;
}

enum standing record_at(const struct geometry *g, const struct window *window, uint64_t position, union header *header)
{
    return record_in(g, window, position, position % g->capacity, header);
}

enum advance next_record_in(const struct geometry *g, const struct window *window, const struct run_rules *rules,
                            uint64_t position, uint64_t seq, size_t *passed, uint64_t size_max, union header *header,
                            uint64_t *size)
{
    uint64_t offset = position % g->capacity;
    if ((seq == rules->lap_seq && g->capacity - offset < g->size_max) || offset < window->start ||
        offset - window->start + PMWAL_HEADER > window->length)
        return STOPS;
    memcpy(header, window->bytes + (offset - window->start), sizeof *header);
    *size = record_size(g, header->record.length); /* as it claims */
    if (*size > size_max)
        return TOO_LONG;
    bool fits = record_at(g, window, position, header) == WHOLE && header->record.seq == seq &&
                position + *size <= rules->limit && epoch_fits(&rules->epochs, seq, header->record.epoch, passed);
    return fits ? ADVANCES : STOPS;
}

void run_on(const struct geometry *g, const struct window *window, const struct run_rules *rules, struct run *run,
            note_start note, void *context)
{
    uint64_t position = run->position, seq = run->seq, mark = run->mark, stop = run->position + rules->bytes_max;
    uint64_t index_last = run->index_last, offset = position % g->capacity;
    uint32_t epoch_min = run->epoch_min, batch_count = 1, batch_index = 0;
    bool index_any = run->index_any;
    size_t passed = 0;
    union header copied;

    while (seq < rules->stop_seq && (batch_index || position < stop)) {
        uint64_t room = g->capacity - offset;
        if (seq == rules->lap_seq && room < g->size_max)
            return; /* two records may have this number, here and at the next lap's start: the caller decides */
        enum standing standing = record_in(g, window, position, offset, &copied);
        const struct record header = copied.record;
        if (standing == OUTSIDE)
            run->outside = true;
        if (standing != WHOLE || header.seq != seq)
            return;
        uint64_t end = position + record_size(g, header.length);
        if (end > rules->limit || header.epoch < epoch_min)
            return;
        if (!epoch_fits(&rules->epochs, seq, header.epoch, &passed))
            return;
        if (rules->batches) {
            if (batch_index == 0)
                batch_count = header.batch_count;
            if (header.batch_index != batch_index || header.batch_count != batch_count)
                return;
            batch_index = batch_index + 1 < batch_count ? batch_index + 1 : 0;
        }
        if (!index_any || position - index_last >= PMWAL_INDEX_STEP) {
            if (note(context, position, seq))
                return;
            index_last = position;
            index_any = true;
        }
        epoch_min = header.epoch;
        if (header.durable > mark)
            mark = header.durable;
        offset = end_record(g, (struct place){position, offset}, end - position).offset;
        position = end;
        PMWAL_CHECK(position <= rules->limit);
        seq++;
        if (batch_index == 0) {
            run->position = position;
            run->seq = seq;
            run->mark = mark;
            run->epoch_min = epoch_min;
            run->index_last = index_last;
            run->index_any = index_any;
        }
    }
}

bool find_start(const struct geometry *g, const struct window *window, const struct run_rules *rules, uint64_t from, uint64_t until,
                struct run *start)
{
    union header header;
    uint64_t step = g->alignment, left = GUESS_MAX;
    for (uint64_t at = (from + step - 1) & ~(step - 1); at < until; at += step) {
        uint64_t offset = at % g->capacity;
        if (offset < window->start || offset - window->start + PMWAL_HEADER > window->length)
            return false;
        memcpy(&header, window->bytes + (offset - window->start), sizeof header);
        if (header.record.seq <= start->seq || header.record.seq >= rules->stop_seq || (rules->batches && header.record.batch_index) ||
            header.record.epoch < start->epoch_min || header.record.length > left)
            continue;
        left -= header.record.length; /* headers may overlap, and declare any length */
        if (record_at(g, window, at, &header) != WHOLE)
            continue;
        *start = (struct run){.position = at, .seq = header.record.seq, .epoch_min = header.record.epoch};
        return true;
    }
    return false;
}

uint64_t rows_within(const struct geometry *g, const struct window *window, const struct row_rules *rules, uint64_t position,
                     uint64_t seq, uint64_t count)
{
    uint64_t offset = position % g->capacity, room = g->capacity - offset, size = record_size(g, rules->length);
    if (rules->length > g->payload_max || offset < window->start || offset - window->start > window->length ||
        position > rules->limit)
        return 0;
    uint64_t held = window->length - (offset - window->start), bytes = held < room ? held : room;
    if (bytes > rules->limit - position)
        bytes = rules->limit - position;
    if (count > bytes / size)
        count = bytes / size;
    /* Two records may have this number, here and at the next lap's start: the caller decides. */
    if (rules->lap_seq >= seq && rules->lap_seq - seq < count && room - (rules->lap_seq - seq) * size < g->size_max)
        count = rules->lap_seq - seq;
    PMWAL_CHECK(count * size <= room && count * size <= held);
    return count;
}

uint64_t take_rows(const struct geometry *g, const struct window *window, const struct row_rules *rules, uint64_t position,
                   uint64_t seq, uint64_t count, unsigned char *rows)
{
    uint64_t size = record_size(g, rules->length), room = g->capacity - position % g->capacity;
    const unsigned char *stored = window->bytes + (position % g->capacity - window->start);
    size_t passed = 0;
    for (uint64_t taken = 0; taken < count; taken++) {
        union header copied;
        const struct record *header = &copied.record;
        prefetch(stored);
        memcpy(&copied, stored, sizeof copied);
        if (header->length != rules->length || header->seq != seq || !header_possible(g, header, position, room))
            return taken;
        if (!epoch_fits(&rules->epochs, seq, header->epoch, &passed))
            return taken;
        memcpy(rows, stored + PMWAL_HEADER, rules->length);
        if (record_crc(g->uuid_crc, position, &copied, rows) != header->crc)
            return taken;
        rows += rules->length;
        stored += size;
        position += size;
        room -= size;
        seq++;
    }
    return count;
}

void relocate(const struct geometry *g, const struct window *window, const struct run_rules *rules, const struct geometry *other,
              struct relocation *relocation)
{
    struct relocation at = *relocation;
    uint64_t offset = at.position % g->capacity;
    size_t passed = 0;
    while (at.seq < rules->stop_seq) {
        union header header;
        if (at.seq == rules->lap_seq && g->capacity - offset < g->size_max)
            break; /* two records may have this number: see run_on() */
        if (record_in(g, window, at.position, offset, &header) != WHOLE || header.record.seq != at.seq)
            break;
        uint64_t length = header.record.length, size = record_size(g, length), needed = record_size(other, length);
        if (at.position + size > rules->limit || !epoch_fits(&rules->epochs, at.seq, header.record.epoch, &passed))
            break;
        at.full = needed > at.room;
        if (at.full)
            break;
        unsigned char *payload = at.bytes + PMWAL_HEADER;
        memcpy(payload, window->bytes + (offset - window->start) + PMWAL_HEADER, length);
        memset(payload + length, 0, needed - PMWAL_HEADER - length);
        if (header.record.batch_index == 0)
            at.batch = at.to;
        header.record.durable = at.batch;
        header.record.crc = record_crc(other->uuid_crc, at.to, &header, payload);
        memcpy(at.bytes, &header, PMWAL_HEADER);
        at.longest = length > at.longest ? length : at.longest;
        at.bytes += needed;
        at.room -= needed;
        at.to += needed;
        offset = end_record(g, (struct place){at.position, offset}, size).offset;
        at.position += size;
        at.seq++;
    }
    *relocation = at;
}

void pack_frame(const struct geometry *g, const struct window *window, const struct run_rules *rules, struct framing *framing)
{
    struct framing at = *framing;
    uint64_t offset = at.position % g->capacity;
    size_t passed = 0;
    while (at.seq < rules->stop_seq) {
        union header copied;
        const struct record *header = &copied.record;
        uint64_t room = g->capacity - offset, begin = offset - window->start;
        if (at.seq == rules->lap_seq && room < g->size_max)
            break; /* two records may have this number: see run_on() */
        if (room < PMWAL_HEADER || offset < window->start || begin + PMWAL_HEADER > window->length)
            break;
        const unsigned char *stored = window->bytes + begin;
        prefetch(stored);
        memcpy(&copied, stored, sizeof copied);
        if (header->seq != at.seq || !header_possible(g, header, at.position, room) || header->length > PMWAL_LARGE_RECORD ||
            begin + PMWAL_HEADER + header->length > window->length)
            break;
        uint64_t size = record_size(g, header->length), needed = PMWAL_FRAME_ENTRY + header->length;
        if (at.position + size > rules->limit || !epoch_fits(&rules->epochs, at.seq, header->epoch, &passed))
            break;
        at.full = needed > at.room;
        if (at.full)
            break;
        unsigned char *payload = at.body + PMWAL_FRAME_ENTRY;
        PMWAL_CHECK(at.used + needed <= framing->used + framing->room);
        memcpy(payload, stored + PMWAL_HEADER, header->length);
        if (record_crc(g->uuid_crc, at.position, &copied, payload) != header->crc)
            break;
        memcpy(at.body, &header->length, sizeof header->length);
        memcpy(at.body + PMWAL_FRAME_KIND_OFFSET, &header->kind, sizeof header->kind);
        memcpy(at.body + PMWAL_FRAME_TIME_OFFSET, &header->time_ns, sizeof header->time_ns);
        at.last = at.position;
        at.entry = at.used;
        at.crc = header->crc;
        at.body += needed;
        at.used += needed;
        at.room -= needed;
        offset = end_record(g, (struct place){at.position, offset}, size).offset;
        at.position += size;
        at.seq++;
    }
    *framing = at;
}

bool next_entry(const unsigned char *body, uint64_t length, uint64_t *at, struct frame_entry *entry)
{
    const unsigned char *stored = body + *at;
    uint64_t left = length - *at;
    if (left < PMWAL_FRAME_ENTRY)
        return false;
    memcpy(&entry->length, stored, sizeof entry->length);
    if (left - PMWAL_FRAME_ENTRY < entry->length)
        return false;
    memcpy(&entry->kind, stored + PMWAL_FRAME_KIND_OFFSET, sizeof entry->kind);
    memcpy(&entry->time_ns, stored + PMWAL_FRAME_TIME_OFFSET, sizeof entry->time_ns);
    entry->payload = stored + PMWAL_FRAME_ENTRY;
    *at += PMWAL_FRAME_ENTRY + entry->length;
    return true;
}

bool join_run(struct run *run, const struct run *began, const struct run *ended)
{
    if (run->position != began->position || run->seq != began->seq || run->epoch_min > began->epoch_min)
        return false;
    uint64_t mark = run->mark > ended->mark ? run->mark : ended->mark;
    struct run both = *ended;
    both.mark = mark;
    if (ended->position == began->position) { /* it took nothing */
        both.epoch_min = run->epoch_min;
        both.index_any = run->index_any;
        both.index_last = run->index_last;
    }
    *run = both;
    return true;
}
