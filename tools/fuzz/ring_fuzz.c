/* Fuzzes pmwal/native/ring.c: arbitrary bytes as a ring, looked at in buffers of exactly the length that the window says.
 *
 * With clang it is a libFuzzer target; with -DSTANDALONE it has a main() of its own, which replays files and then mutates them.
 * tools/fuzz/run.py builds and runs either.
 *
 * An input is a struct parameters and then the ring's bytes (zeros where they end early). Random bytes never have a right
 * checksum, so two bits of the mode put some in: SEAL gives one to every header that is possible, CHAIN makes the bytes at each
 * record's place into a header that mostly follows from the one before.
 *
 * What is asserted comes from the comments in ring.h. The oracle is in this file, and takes checksums with the table only.
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "crc32c.h"
#include "ring.h"

enum mode {
    SEAL = 1,
    CHAIN = 2,
    RAW = 4,     /* the rules are taken as they are; without it they are near what a log would ask for */
    ODD = 8,     /* positions need not be aligned */
    BATCHES = 16,
};

struct parameters {
    uint8_t alignment, capacity, payload, mode;
    uint32_t uuid_crc;
    uint64_t position, seq, stop_seq, limit, epoch_first_seq, lap_seq, bytes_max, mark, index_last, window_start, window_length;
    uint32_t epoch, epoch_min;
};

static_assert(sizeof(struct parameters) == 104, "tools/fuzz/make_corpus.py writes it");

#define NOTES 64
#define LOOKS 512

/* -- the input under test, for whoever reports a failure */

static const uint8_t *current;
static size_t current_size;
static const char *keep = "ring-fuzz-crash";

#ifdef STANDALONE
static void save(void)
{
    FILE *file = fopen(keep, "wb");
    if (!file || fwrite(current, 1, current_size, file) != current_size)
        perror(keep);
    if (file)
        fclose(file);
    fprintf(stderr, "the input is kept as %s\n", keep);
}
#endif

static void failed(const char *what, int line)
{
    fprintf(stderr, "ring_fuzz.c:%d: not true: %s\n", line, what);
#ifdef STANDALONE
    save();
#else
    (void)current, (void)current_size, (void)keep;
#endif
    abort();
}

#define CHECK(condition) ((condition) ? (void)0 : failed(#condition, __LINE__))

/* -- a ring made from an input */

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
    /* Small ones, too: their ends are met more often. */
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

/* The headers of one lap from `start` on get right checksums where they are possible. Later ones may spoil earlier ones. */
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

/* Records from `position` on, mostly as a log would have them; what they are is drawn from the bytes that stand there. */
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

/* -- record_at */

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
    /* Not everywhere in a large ring: what a run meets there is looked at anyway. */
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

static bool may_take(const struct ring *ring, const struct run_rules *rules, uint64_t position, uint64_t seq, uint32_t epoch_min,
                     struct record *header)
{
    const struct geometry *g = &ring->g;
    uint64_t offset = position % g->capacity;
    if (seq >= rules->stop_seq || (seq == rules->lap_seq && g->capacity - offset < g->size_max) || !is_whole(ring, position))
        return false;
    memcpy(header, ring->bytes + offset, sizeof *header);
    return header->seq == seq && position + record_size(g, header->length) <= rules->limit && header->epoch >= epoch_min &&
           (seq >= rules->epoch_first_seq ? header->epoch == rules->epoch : header->epoch < rules->epoch);
}

/* That a run which began at `from` took what the rules take, and stopped where they say. */
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
    /* What is next is a record that the rules do not take, or a batch that is not all there. */
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

/* Goes on from window to window, and a few bytes at a time, until nothing moves; what comes out is as with one window. */
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

/* A run from where it begins and one from somewhere behind, put together: what one run over both is, or less. */
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
    CHECK(start.seq > from->seq && start.seq < rules->stop_seq && header.record.batch_index == 0);
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

/* That the rows which were taken are what the rules take, side by side, and the next record is none of them. */
static void check_rows(const struct ring *ring, const struct window *window, struct run_rules rules, const struct run *from)
{
    const struct geometry *g = &ring->g;
    uint64_t position = from->position, seq = from->seq, offset = position % g->capacity;
    struct record header;
    if (g->capacity - offset < PMWAL_HEADER)
        return;
    memcpy(&header, ring->bytes + offset, sizeof header);
    uint64_t length = header.length, size = record_size(g, length);
    struct row_rules row_rules = {rules.limit, rules.epoch, rules.epoch_first_seq, rules.lap_seq, length};
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

        /* Where there is no room for more notes the run ends, and says where. */
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
    free((void *)part.bytes);
}

/* -- places */

/* A log that ends at `position` goes on with a record of this length: it stays in one piece, and both bounds stay in step. */
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
    current = data;
    current_size = size;
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

    struct run_rules rules = {.stop_seq = p.stop_seq, .limit = p.limit, .epoch = p.epoch, .epoch_first_seq = p.epoch_first_seq,
                              .lap_seq = p.lap_seq, .bytes_max = UINT64_C(1) << 40};
    struct run from = {.position = position, .seq = p.seq, .epoch_min = p.epoch_min, .mark = p.mark};
    if (p.mode & BATCHES && p.index_last <= position) {
        from.index_any = true;
        from.index_last = p.index_last;
    }
    check_checksums(&ring, &p);
    check_places(&ring, position, p.window_length);
    look_everywhere(&ring, &p, position);
    run_all(&ring, &p, rules, from);
    free(ring.bytes);
    return 0;
}

#ifdef STANDALONE
#include <dirent.h>
#include <time.h>

#define INPUT_MAX (sizeof(struct parameters) + 16384)
#define POOL 256

extern void __sanitizer_set_death_callback(void (*callback)(void)) __attribute__((weak));

struct input {
    uint8_t bytes[INPUT_MAX];
    size_t size;
};

static struct input pool[POOL], trial;
static size_t pool_size;
static uint64_t random_state;

/* xorshift64*; libc's differs from machine to machine, and a seed has to give the same inputs everywhere. */
static uint64_t draw(uint64_t below)
{
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return below ? (random_state * UINT64_C(2685821657736338717) >> 11) % below : 0;
}

static void mutate_once(struct input *input)
{
    static const uint64_t words[] = {0, 1, 2, 8, 47, 48, 49, 64, 4095, 4096, UINT32_MAX, INT64_MAX, UINT64_MAX - 1, UINT64_MAX};
    size_t at = draw(draw(3) ? input->size : sizeof(struct parameters)); /* the parameters more often than the rest */
    uint64_t word;
    switch (draw(8)) {
    case 0:
        input->bytes[at] ^= (uint8_t)(1u << draw(8));
        break;
    case 1:
        input->bytes[at] = (uint8_t)draw(256);
        break;
    case 2:
        word = words[draw(sizeof words / sizeof *words)];
        at -= at % 8;
        memcpy(input->bytes + at, &word, sizeof word);
        break;
    case 3:
        at -= at % 8;
        memcpy(&word, input->bytes + at, sizeof word);
        word += draw(2) ? draw(70) : -draw(70);
        memcpy(input->bytes + at, &word, sizeof word);
        break;
    case 4: {
        const struct input *other = &pool[draw(pool_size)];
        size_t from = draw(other->size), length = draw(200);
        if (length > other->size - from)
            length = other->size - from;
        if (length > input->size - at)
            length = input->size - at;
        memcpy(input->bytes + at, other->bytes + from, length);
        break;
    }
    case 5: {
        size_t length = draw(300), grown = input->size + length < INPUT_MAX ? input->size + length : INPUT_MAX;
        while (input->size < grown)
            input->bytes[input->size++] = (uint8_t)draw(256);
        break;
    }
    case 6:
        if (input->size > sizeof(struct parameters))
            input->size -= draw(input->size - sizeof(struct parameters));
        break;
    default:
        input->bytes[3] = (uint8_t)draw(32);
    }
}

/* Whole records are rare in mutated bytes; one input in four has its ring drawn afresh, for CHAIN to make some. */
static void draw_ring(struct input *input)
{
    input->size = sizeof(struct parameters) + draw(8) * draw(512);
    for (size_t at = sizeof(struct parameters); at < input->size; at++)
        input->bytes[at] = (uint8_t)draw(256);
    input->bytes[0] = (uint8_t)draw(10);
    input->bytes[1] = (uint8_t)draw(256);
    input->bytes[3] = (uint8_t)(CHAIN | (draw(4) ? 0 : draw(32) & ~(unsigned)RAW));
    for (size_t at = 8; at < sizeof(struct parameters); at++)
        input->bytes[at] = (uint8_t)(draw(3) ? 0 : draw(256));
}

static void take(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (!file) {
        perror(path);
        exit(2);
    }
    struct input *input = &pool[pool_size < POOL ? pool_size++ : POOL - 1];
    input->size = fread(input->bytes, 1, INPUT_MAX, file);
    fclose(file);
    LLVMFuzzerTestOneInput(input->bytes, input->size);
    if (input->size < sizeof(struct parameters))
        pool_size--;
}

static int by_name(const void *one, const void *two)
{
    return strcmp(*(char *const *)one, *(char *const *)two);
}

/* In the order of their names, whatever the file system's is: the seed's inputs depend on it. */
static void take_directory(const char *path)
{
    char *names[POOL], full[4096];
    size_t count = 0;
    DIR *directory = opendir(path);
    for (struct dirent *entry; directory && count < POOL && (entry = readdir(directory));)
        if (entry->d_name[0] != '.')
            names[count++] = strdup(entry->d_name);
    if (directory)
        closedir(directory);
    qsort(names, count, sizeof *names, by_name);
    for (size_t i = 0; i < count; i++) {
        snprintf(full, sizeof full, "%s/%s", path, names[i]);
        take(full);
        free(names[i]);
    }
}

int main(int argc, char **argv)
{
    double seconds = 0;
    uint64_t runs = 0, seed = (uint64_t)time(NULL), done = 0;
    struct timespec start, now;
    int option;
    while ((option = getopt(argc, argv, "s:n:r:k:")) != -1)
        if (option == 's')
            seconds = atof(optarg);
        else if (option == 'n')
            runs = strtoull(optarg, NULL, 10);
        else if (option == 'r')
            seed = strtoull(optarg, NULL, 10);
        else if (option == 'k')
            keep = optarg;
        else
            return fprintf(stderr, "ring_fuzz [-s SECONDS | -n RUNS] [-r SEED] [-k FILE] FILE_OR_DIRECTORY ...\n"), 2;
    if (__sanitizer_set_death_callback)
        __sanitizer_set_death_callback(save);
    printf("seed %" PRIu64 "\n", seed);
    fflush(stdout);
    random_state = seed * 2 + 1;
    for (; optind < argc; optind++) {
        DIR *directory = opendir(argv[optind]);
        if (directory) {
            closedir(directory);
            take_directory(argv[optind]);
        } else
            take(argv[optind]);
    }
    if (!pool_size)
        pool[pool_size++].size = sizeof(struct parameters);
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (;; done++) {
        clock_gettime(CLOCK_MONOTONIC, &now);
        double passed = (double)(now.tv_sec - start.tv_sec) + (double)(now.tv_nsec - start.tv_nsec) / 1e9;
        if (runs ? done >= runs : passed >= seconds)
            break;
        trial = pool[draw(pool_size)];
        if (!draw(4))
            draw_ring(&trial);
        for (uint64_t left = draw(6); left; left--)
            mutate_once(&trial);
        LLVMFuzzerTestOneInput(trial.bytes, trial.size);
        if (!draw(64))
            pool[pool_size < POOL ? pool_size++ : draw(POOL)] = trial;
    }
    printf("%" PRIu64 " executions\n", done);
    return 0;
}
#endif
