/* The ring: where records stand, what a whole one is, and runs of them. Plain C: no Python, no I/O, nothing global.
 *
 * Invariants
 * - Nothing that a header says is believed before header_possible(), which bounds the record by the ring's end, and the checksum
 *   is taken before a record counts.
 * - What is judged is the caller's: a private copy, or a mapping that nobody else writes.
 */
#ifndef PMWAL_RING_H
#define PMWAL_RING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "check.h"
#include "format.h"

struct geometry {
    uint64_t capacity, alignment, payload_max, size_max;
    uint32_t uuid_crc; /* the checksum of the log's uuid */
};

/* Bytes of the ring: `length` of them from ring offset `start` on. */
struct window {
    const unsigned char *bytes;
    uint64_t start, length;
};

static inline uint64_t record_size(const struct geometry *g, uint64_t length)
{
    return (PMWAL_HEADER + length + g->alignment - 1) & ~(g->alignment - 1);
}

/* A place in the log, and where in the ring it lies: `offset` is position % capacity, kept beside it because it is asked for at
 * every step and a division takes longer than all of them. */
struct place {
    uint64_t position, offset;
};

/* Where a record of this size starts in a log that ends at `end`: here, or at the next lap's start. */
static inline struct place place_record(const struct geometry *g, struct place end, uint64_t size)
{
    PMWAL_CHECK(end.offset < g->capacity);
    uint64_t room = g->capacity - end.offset;
    return size <= room ? end : (struct place){end.position + room, 0};
}

/* Where a record of this size ends. */
static inline struct place end_record(const struct geometry *g, struct place start, uint64_t size)
{
    uint64_t offset = start.offset + size;
    return (struct place){start.position + size, offset == g->capacity ? 0 : offset};
}

uint32_t seed_crc(uint32_t uuid_crc, uint64_t place);

/* A header, and a slot, by its fields and by its words. Words are what it is built of and checked by: a wide load of what narrow stores have
 * just written waits until those have reached the cache, and behind a fence that takes as long as the fence. */
union header {
    struct record record;
    uint64_t words[6];
};

union commit_slot {
    struct slot slot;
    uint64_t words[8];
};

static_assert(sizeof(union commit_slot) == sizeof(struct slot), "a slot is eight words");
static_assert(sizeof(union header) == PMWAL_HEADER, "a header is six words");
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the format is little-endian, and so is this code");

/* What the checksum of a record at this position must be. */
uint32_t record_crc(uint32_t uuid_crc, uint64_t position, const union header *header, const void *payload);

/* Whether a record can have this header at this position, with `room` bytes to the ring's end. No checksum is looked at. */
bool header_possible(const struct geometry *g, const struct record *header, uint64_t position, uint64_t room);

enum standing { WHOLE, NOT_WHOLE, OUTSIDE };

/* What stands at this position. OUTSIDE when the window does not hold enough of it to say. */
enum standing record_at(const struct geometry *g, const struct window *window, uint64_t position, union header *header);

/* Which records a run takes. */
struct run_rules {
    uint64_t stop_seq;        /* up to, not including */
    uint64_t limit;           /* none ends behind it */
    uint32_t epoch;           /* the epoch of the records from epoch_first_seq on; earlier ones have an older one */
    uint64_t epoch_first_seq;
    uint64_t lap_seq;         /* the number of the header at the ring's start; the run stops before a record of that number */
    bool batches;             /* a batch counts whole or not at all; the caller begins at or behind epoch_first_seq */
    uint64_t bytes_max;       /* stop after so many, to let the caller report progress; far below 2^63 */
};

/* Where a run stands. The caller sets position, seq, epoch_min, mark and epoch_met; the rest starts at zero. */
struct run {
    uint64_t position, seq; /* the end of what was taken, and the number of the record after it */
    uint32_t epoch_min;     /* epochs never fall */
    uint64_t mark;          /* the greatest `durable` taken */
    bool outside;           /* it stopped because the window ends */
    uint64_t index_last;    /* position of the newest index entry; 0 and index_any false for none */
    bool index_any;
};

typedef int (*note_start)(void *context, uint64_t position, uint64_t seq);

/* Follows whole records from run->position on as long as the rules take them. `note` gets a start every PMWAL_INDEX_STEP bytes;
 * a return other than 0 ends the run. */
void run_on(const struct geometry *g, const struct window *window, const struct run_rules *rules, struct run *run,
            note_start note, void *context);

/* A place between `from` and `until` from which a run under these rules, if it ever gets there, goes on: a whole record that begins
 * a batch. `start` comes with the run that looks for it, and becomes a run that begins there. */
bool find_start(const struct geometry *g, const struct window *window, const struct run_rules *rules, uint64_t from, uint64_t until,
                struct run *start);

/* Records of one length, side by side: their payloads are the rows of an array. */
struct row_rules {
    uint64_t limit;           /* none ends behind it */
    uint32_t epoch;           /* as in run_rules */
    uint64_t epoch_first_seq;
    uint64_t lap_seq;
    uint64_t length;          /* of each payload */
};

/* At most how many of `count` records from this position on, numbered from `seq` on, the window holds side by side. */
uint64_t rows_within(const struct geometry *g, const struct window *window, const struct row_rules *rules, uint64_t position,
                     uint64_t seq, uint64_t count);

/* Copies the payloads of `count` records to `rows`, and takes each checksum over the copy; the number of those that are whole and
 * what the rules ask for, up to the first that is not. `count` is at most what rows_within() says. */
uint64_t take_rows(const struct geometry *g, const struct window *window, const struct row_rules *rules, uint64_t position,
                   uint64_t seq, uint64_t count, unsigned char *rows);

/* Whether `run` ended exactly where another one began; if so, it becomes what one run over both would have been. */
bool join_run(struct run *run, const struct run *began, const struct run *ended);

#endif
