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

static inline uint64_t place_record(const struct geometry *g, uint64_t position, uint64_t size)
{
    uint64_t room = g->capacity - position % g->capacity;
    return size <= room ? position : position + room;
}

uint32_t seed_crc(uint32_t uuid_crc, uint64_t place);

/* Whether a record can have this header at this position, with `room` bytes to the ring's end. No checksum is looked at. */
bool header_possible(const struct geometry *g, const struct record *header, uint64_t position, uint64_t room);

enum standing { WHOLE, NOT_WHOLE, OUTSIDE };

/* What stands at this position. OUTSIDE when the window does not hold enough of it to say. */
enum standing record_at(const struct geometry *g, const struct window *window, uint64_t position, struct record *header);

/* Which records a run takes. */
struct run_rules {
    uint64_t stop_seq;        /* up to, not including */
    uint64_t limit;           /* none ends behind it */
    uint32_t epoch;           /* the epoch of the records from epoch_first_seq on; earlier ones have an older one */
    uint64_t epoch_first_seq;
    uint64_t lap_seq;         /* the number of the header at the ring's start; the run stops before a record of that number */
    bool batches;             /* a batch counts whole or not at all, and all of it is of one epoch */
    uint64_t bytes_max;       /* stop after so many, to let the caller report progress */
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

#endif
