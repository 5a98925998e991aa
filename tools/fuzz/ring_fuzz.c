/* Fuzzes pmwal/native/ring.c: arbitrary bytes as a ring, looked at in buffers of exactly the length that the window states.
 *
 * With clang it is a libFuzzer target; standalone.c is a main() for other compilers. tools/fuzz/run.py builds and runs either.
 */
#include "model.h"

#define NOTES 64
#define LOOKS 512

/* -- record_at */

static void look_at(const struct ring *ring, const struct window *part, uint64_t position)
{
    const struct geometry *g = &ring->g;
    struct window whole = {ring->bytes, 0, g->capacity};
    union header header = {0}, again = {0};
    enum standing standing = record_at(g, &whole, position, &header);
    CHECK(standing != OUTSIDE);
    CHECK((standing == WHOLE) == is_whole(ring, position));

    uint64_t offset = position % g->capacity, room = g->capacity - offset;
    enum standing there = record_at(g, part, position, &again);
    bool holds_header = room >= PMWAL_HEADER && offset >= part->start && offset + PMWAL_HEADER <= part->start + part->length;
    if (room < PMWAL_HEADER)
        CHECK(there == NOT_WHOLE);
    else if (!holds_header)
        CHECK(there == OUTSIDE);
    else {
        memcpy(&header, ring->bytes + offset, sizeof header);
        bool possible = header_possible(g, &header.record, position, room);
        bool holds_all = offset + PMWAL_HEADER + header.record.length <= part->start + part->length;
        CHECK(there == (possible && !holds_all ? OUTSIDE : standing));
        CHECK(!memcmp(&again, &header, sizeof header));
    }
}

static void look_everywhere(const struct ring *ring, const struct parameters *p, uint64_t position)
{
    const struct geometry *g = &ring->g;
    struct window part = window_of(ring, p->window_start, p->window_length);
    /* Not everywhere in a large ring: the runs below look at the records there anyway. */
    uint64_t step = g->alignment * (1 + g->capacity / g->alignment / LOOKS) - (p->mode & ODD ? g->alignment / 2 + 1 : 0);
    for (uint64_t at = 0; at < g->capacity; at += step)
        look_at(ring, &part, position + at);
    for (uint64_t back = 1; back <= PMWAL_HEADER + 1 && back <= g->capacity; back++)
        look_at(ring, &part, position / g->capacity * g->capacity + g->capacity - back); /* the ring's end */
    free((void *)part.bytes);
}

/* -- run_on */

struct notes {
    uint64_t position[NOTES], seq[NOTES];
    size_t count, room;
};

static int note(void *context, uint64_t position, uint64_t seq)
{
    struct notes *notes = context;
    if (notes->count == notes->room)
        return 1;
    notes->position[notes->count] = position;
    notes->seq[notes->count++] = seq;
    return 0;
}

static void forget_past(struct notes *notes, uint64_t position)
{
    while (notes->count && notes->position[notes->count - 1] >= position)
        notes->count--;
}

/* A run that began at `from` took what the rules take, and stopped where they say. */
static void check_run(const struct ring *ring, const struct run_rules *rules, const struct run *from, const struct run *run,
                      const struct notes *notes, bool reached_end)
{
    uint64_t position = from->position, seq = from->seq, mark = from->mark, noted = from->index_last;
    uint32_t epoch = from->epoch_min, batch_index = 0, batch_count = 1;
    bool any = from->index_any;
    size_t at = 0;
    struct record header;
    CHECK(run->position >= from->position && run->seq >= from->seq);
    while (seq < run->seq) {
        CHECK(may_take(ring, rules, position, seq, epoch, &header));
        if (rules->batches) {
            if (batch_index == 0)
                batch_count = header.batch_count;
            CHECK(header.batch_index == batch_index && header.batch_count == batch_count);
            batch_index = batch_index + 1 == batch_count ? 0 : batch_index + 1;
        }
        if (!any || position - noted >= PMWAL_INDEX_STEP) {
            CHECK(at < notes->count && notes->position[at] == position && notes->seq[at] == seq);
            noted = position;
            any = true;
            at++;
        }
        epoch = header.epoch;
        mark = header.durable > mark ? header.durable : mark;
        position += record_size(&ring->g, header.length);
        seq++;
    }
    CHECK(run->position == position && run->seq == seq && run->epoch_min == epoch && run->mark == mark);
    CHECK(batch_index == 0 && at == notes->count && run->index_any == any && (!any || run->index_last == noted));
    CHECK(seq == from->seq || (position <= rules->limit && seq <= rules->stop_seq));
    CHECK(run->mark == from->mark || run->mark <= position);
    if (!reached_end)
        return;
    /* Next is a record that the rules do not take, or an incomplete batch. */
    while (may_take(ring, rules, position, seq, epoch, &header) && rules->batches) {
        if (batch_index == 0)
            batch_count = header.batch_count;
        if (header.batch_index != batch_index || header.batch_count != batch_count)
            return;
        CHECK(batch_index + 1 < batch_count);
        batch_index++;
        epoch = header.epoch;
        position += record_size(&ring->g, header.length);
        seq++;
    }
    CHECK(rules->batches || !may_take(ring, rules, position, seq, epoch, &header));
}

/* Continues from window to window, a few bytes at a time, until nothing moves; the result is that of one window. */
static struct run run_in_parts(const struct ring *ring, const struct run_rules *rules, const struct parameters *p, struct run run,
                               struct notes *notes)
{
    const struct geometry *g = &ring->g;
    struct run_rules short_rules = *rules;
    uint64_t length = p->window_length % g->capacity + 1;
    short_rules.bytes_max = p->bytes_max % g->capacity;
    bool everything = false;
    for (;;) {
        uint64_t before = run.position;
        struct window part = everything ? window_of(ring, 0, g->capacity) : window_of(ring, run.position, length);
        run.outside = false;
        run_on(g, &part, &short_rules, &run, note, notes);
        free((void *)part.bytes);
        forget_past(notes, run.position);
        CHECK(!run.outside || !everything);
        if (run.position != before)
            everything = false;
        else if (!everything) {
            everything = length >= g->capacity;
            length *= 2;
            short_rules.bytes_max = short_rules.bytes_max * 2 + 1;
        } else if (short_rules.bytes_max <= g->capacity)
            short_rules.bytes_max = rules->bytes_max;
        else
            return run;
    }
}

/* A run and a second one from a later start, joined: the one run over both, or less. */
static void check_joined(const struct ring *ring, uint64_t first, const struct run_rules *rules, const struct run *from,
                         const struct run *whole)
{
    const struct geometry *g = &ring->g;
    struct window all = {ring->bytes, 0, g->capacity};
    uint64_t until = first + g->capacity;
    struct run start = *from;
    if (!find_start(g, &all, rules, first, until, &start) || start.position <= from->position ||
        start.position - from->position >= rules->bytes_max)
        return;
    union header header;
    CHECK(start.position >= first && start.position < until && start.position % g->alignment == 0);
    CHECK(record_at(g, &all, start.position, &header) == WHOLE && header.record.seq == start.seq);
    CHECK(start.seq > from->seq && start.seq < rules->stop_seq && !(rules->batches && header.record.batch_index));
    struct notes notes = {.room = NOTES}, more = {.room = NOTES};
    struct run_rules here = *rules, there = *rules;
    struct run run = *from, behind = start;
    here.bytes_max = start.position - from->position;
    there.bytes_max = rules->bytes_max - here.bytes_max;
    run_on(g, &all, &here, &run, note, &notes);
    run_on(g, &all, &there, &behind, note, &more);
    CHECK(run.position <= whole->position && run.seq <= whole->seq);
    if (join_run(&run, &start, &behind))
        CHECK(run.position == whole->position && run.seq == whole->seq && run.mark == whole->mark &&
              run.epoch_min == whole->epoch_min && !run.outside);
}

/* -- take_rows */

/* The rows that were taken are adjacent records that the rules take, and the next record is none. */
static void check_rows(const struct ring *ring, const struct window *window, struct run_rules rules, const struct run *from)
{
    const struct geometry *g = &ring->g;
    uint64_t position = from->position, seq = from->seq, offset = position % g->capacity;
    struct record header;
    if (g->capacity - offset < PMWAL_HEADER)
        return;
    memcpy(&header, ring->bytes + offset, sizeof header);
    uint64_t length = header.length, size = record_size(g, length);
    struct row_rules row_rules = {rules.limit, rules.epochs, rules.lap_seq, length};
    uint64_t count = rows_within(g, window, &row_rules, position, seq, g->capacity);
    if (!count)
        return;
    CHECK(offset >= window->start && offset + count * size <= window->start + window->length);
    unsigned char *rows = exactly(count * length);
    uint64_t taken = take_rows(g, window, &row_rules, position, seq, count, rows);
    CHECK(taken <= count);
    rules.stop_seq = UINT64_MAX;
    for (uint64_t i = 0; i < taken; i++) {
        CHECK(may_take(ring, &rules, position, seq, 0, &header) && header.length == length);
        CHECK(!memcmp(rows + i * length, ring->bytes + position % g->capacity + PMWAL_HEADER, length));
        position += size;
        seq++;
    }
    CHECK(taken == count || !may_take(ring, &rules, position, seq, 0, &header) || header.length != length);
    free(rows);
}

/* -- pack_frame and next_entry */

/* What was packed are records that the rules take, one after another, and it stopped at the next one that they do not take, or for
 * which there is no room. */
static void check_frame(const struct ring *ring, const struct window *window, const struct run_rules *rules, const struct run *from,
                        uint64_t room)
{
    const struct geometry *g = &ring->g;
    unsigned char *body = exactly(room);
    struct framing framing = {.position = from->position, .seq = from->seq, .body = body, .room = room};
    uint64_t position = from->position, seq = from->seq, at = 0;
    struct frame_entry entry;
    struct record header;
    pack_frame(g, window, rules, &framing);
    CHECK(framing.used + framing.room == room && framing.body == body + framing.used);
    while (at < framing.used) {
        CHECK(may_take(ring, rules, position, seq, 0, &header));
        CHECK(framing.used - at != header.length + PMWAL_FRAME_ENTRY ||
              (framing.entry == at && framing.last == position && framing.crc == header.crc));
        CHECK(next_entry(body, framing.used, &at, &entry));
        CHECK(entry.length == header.length && entry.kind == header.kind && entry.time_ns == header.time_ns);
        CHECK(!memcmp(entry.payload, ring->bytes + position % g->capacity + PMWAL_HEADER, header.length));
        position += record_size(g, header.length);
        seq++;
    }
    CHECK(at == framing.used && position == framing.position && seq == framing.seq);
    bool takes = may_take(ring, rules, position, seq, 0, &header);
    uint64_t offset = position % g->capacity;
    bool held = takes && offset >= window->start && offset + PMWAL_HEADER + header.length <= window->start + window->length;
    if (held)
        CHECK(framing.full && header.length + PMWAL_FRAME_ENTRY > framing.room);
    free(body);
}

/* Arbitrary bytes as a body: no entry leaves it, and they follow one another until one would. */
static void check_entries(const unsigned char *bytes, uint64_t length)
{
    unsigned char *body = exactly(length);
    uint64_t at = 0, before = 0;
    struct frame_entry entry;
    memcpy(body, bytes, length);
    while (next_entry(body, length, &at, &entry)) {
        CHECK(at <= length && at == before + PMWAL_FRAME_ENTRY + entry.length && entry.payload == body + at - entry.length);
        before = at;
    }
    uint32_t claimed = 0;
    memcpy(&claimed, body + at, length - at < sizeof claimed ? length - at : sizeof claimed);
    CHECK(at == before && (length - at < PMWAL_FRAME_ENTRY || claimed > length - at - PMWAL_FRAME_ENTRY));
    free(body);
}

static void run_all(const struct ring *ring, const struct parameters *p, struct run_rules rules, struct run from)
{
    const struct geometry *g = &ring->g;
    struct window whole = {ring->bytes, 0, g->capacity};
    struct run ends[2];
    for (int batches = 0; batches < 2; batches++) {
        struct notes notes = {.room = NOTES}, few = {.room = p->window_length % 3};
        struct run run = from;
        rules.batches = batches;
        run_on(g, &whole, &rules, &run, note, &notes);
        forget_past(&notes, run.position);
        CHECK(!run.outside);
        check_run(ring, &rules, &from, &run, &notes, true);
        ends[batches] = run;
        check_joined(ring, from.position + p->window_start % g->capacity, &rules, &from, &run);
        check_joined(ring, run.position, &rules, &from, &run); /* where something stopped it */

        struct notes pieced = {.room = NOTES};
        struct run parts = run_in_parts(ring, &rules, p, from, &pieced);
        CHECK(parts.position == run.position && parts.seq == run.seq && parts.mark == run.mark);
        CHECK(parts.epoch_min == run.epoch_min && pieced.count == notes.count);
        check_run(ring, &rules, &from, &parts, &pieced, true);

        /* Without room for more notes the run ends, and says where. */
        struct run cut = from;
        run_on(g, &whole, &rules, &cut, note, &few);
        forget_past(&few, cut.position);
        check_run(ring, &rules, &from, &cut, &few, false);

        /* One window, somewhere: the run stops inside of it, or where it ends. */
        struct notes some = {.room = NOTES};
        struct window part = window_of(ring, p->window_start, p->window_length);
        struct run inside = from;
        run_on(g, &part, &rules, &inside, note, &some);
        free((void *)part.bytes);
        forget_past(&some, inside.position);
        check_run(ring, &rules, &from, &inside, &some, !inside.outside);
        CHECK(inside.position <= run.position);
        for (uint64_t at = from.position; at < inside.position;) {
            struct record header;
            uint64_t offset = at % g->capacity;
            CHECK(offset >= part.start);
            memcpy(&header, ring->bytes + offset, sizeof header);
            CHECK(offset + PMWAL_HEADER + header.length <= part.start + part.length);
            at += record_size(g, header.length);
        }
    }
    CHECK(ends[1].position <= ends[0].position);
    struct window part = window_of(ring, p->window_start, p->window_length);
    check_rows(ring, &whole, rules, &from);
    check_rows(ring, &part, rules, &from);
    check_frame(ring, &whole, &rules, &from, p->bytes_max % (2 * g->capacity));
    check_frame(ring, &part, &rules, &from, p->bytes_max % (g->capacity / 4));
    free((void *)part.bytes);
}

/* -- places */

/* The next record of a log that ends at `position`: it is in one piece, and position and offset agree. */
static void check_places(const struct ring *ring, uint64_t position, uint64_t length)
{
    const struct geometry *g = &ring->g;
    struct place end = {position, position % g->capacity};
    uint64_t size = record_size(g, length % (g->payload_max < g->capacity / 2 ? g->payload_max + 1 : g->capacity / 2));
    CHECK(size >= PMWAL_HEADER && size % g->alignment == 0);
    if (size > g->capacity)
        return;
    struct place start = place_record(g, end, size), after = end_record(g, start, size);
    CHECK(start.position >= position && start.offset == start.position % g->capacity);
    CHECK(start.offset + size <= g->capacity);
    CHECK(start.position == position || start.offset == 0);
    CHECK(after.position == start.position + size && after.offset == after.position % g->capacity);
}

/* -- checksums */

static void check_checksums(const struct ring *ring, const struct parameters *p)
{
    uint64_t start = p->window_start % ring->g.capacity, length = p->window_length % (ring->g.capacity - start + 1);
    uint32_t seed = seed_crc(p->uuid_crc, p->position);
    unsigned char *copy = exactly(length);
    memcpy(copy, ring->bytes + start, length);
    CHECK(seed == crc32c_table(p->uuid_crc, &p->position, sizeof p->position));
    if (length >= PMWAL_HEADER) {
        union header header;
        memcpy(&header, copy, sizeof header);
        unsigned char *fields = (unsigned char *)&header + sizeof header.record.crc;
        header.record.length = (uint32_t)(length - PMWAL_HEADER);
        uint32_t expected = crc32c_table(seed, fields, sizeof header - sizeof header.record.crc);
        expected = crc32c_table(expected, copy + PMWAL_HEADER, length - PMWAL_HEADER);
        CHECK(record_crc(p->uuid_crc, p->position, &header, copy + PMWAL_HEADER) == expected);
    }
    CHECK(crc32c(seed, copy, length) == crc32c_table(seed, copy, length));
    CHECK(crc32c(crc32c(seed, copy, length / 3), copy + length / 3, length - length / 3) == crc32c(seed, copy, length));
    free(copy);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static bool ready;
    struct parameters p;
    if (!ready) {
        crc32c_setup();
        ready = true;
    }
    if (size < sizeof p)
        return 0;
    memcpy(&p, data, sizeof p);
    struct ring ring = make_ring(&p, data + sizeof p, size - sizeof p);
    const struct geometry *g = &ring.g;

    uint64_t position = p.position & PMWAL_POSITION_MAX >> 1;
    if (!(p.mode & ODD))
        position -= position % g->alignment;
    if (!(p.mode & RAW)) {
        p.seq = 1 + p.seq % 1000;
        p.stop_seq = p.seq + p.stop_seq % 300;
        p.epoch_first_seq = p.seq + p.epoch_first_seq % 16;
        p.epoch = 2 + p.epoch % 3;
        p.epoch_min = 1;
        p.limit = position + p.limit % (g->capacity + 2 * g->alignment);
        p.lap_seq = p.lap_seq % 4 ? 0 : p.seq + p.lap_seq / 4 % 64;
        p.mark = p.mark % (position + 1);
    }
    if (p.mode & CHAIN)
        chain(&ring, &p, position);
    if (p.mode & SEAL)
        seal(&ring, position);

    struct epoch_start starts[2] = {{p.seq + p.mark % 32, 1 + p.window_start % 2}, {0, 2 + p.window_start / 2 % 2}};
    starts[1].first_seq = starts[0].first_seq + 1 + p.mark / 32 % 32;
    struct epochs epochs = {p.epoch, p.epoch_first_seq, (const unsigned char *)starts, p.window_start / 4 % 3};
    struct run_rules rules = {.stop_seq = p.stop_seq, .limit = p.limit, .epochs = epochs, .lap_seq = p.lap_seq,
                              .bytes_max = UINT64_C(1) << 40};
    struct run from = {.position = position, .seq = p.seq, .epoch_min = p.epoch_min, .mark = p.mark};
    if (p.mode & BATCHES && p.index_last <= position) {
        from.index_any = true;
        from.index_last = p.index_last;
    }
    check_checksums(&ring, &p);
    check_places(&ring, position, p.window_length);
    look_everywhere(&ring, &p, position);
    run_all(&ring, &p, rules, from);
    check_entries(ring.bytes, p.window_length % (g->capacity + 1));
    free(ring.bytes);
    return 0;
}
