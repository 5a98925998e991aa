/* The ring: where records are, what a whole one is, and runs of them. Plain C: no Python, no I/O, no globals.
 *
 * Invariants
 * - No field of a header is trusted before header_possible(), which bounds the record by the ring's end. No record counts before
 *   its checksum is verified.
 * - The bytes do not change meanwhile: they are the caller's private copy, or a mapping that nobody else writes.
 */
#ifndef PMWAL_RING_H
#define PMWAL_RING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

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

/* Whether a ring can be like this: with it, no record that header_possible() accepts leaves the ring, and no size overflows. */
bool geometry_possible(uint64_t capacity, uint64_t alignment, uint64_t payload_max);

static inline uint64_t record_size(const struct geometry *g, uint64_t length)
{
    return (PMWAL_HEADER + length + g->alignment - 1) & ~(g->alignment - 1);
}

/* A position in the log with its ring offset, position % capacity: kept, because every step needs it and a division would cost more
 * than the rest of the step. */
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

/* A header, and a slot, as fields and as words. They are built and checked as words: a wide load of bytes just written by narrow
 * stores cannot be forwarded, and waits until those reach the cache, which after a fence takes as long as the fence. */
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

/* The right checksum of a record at this position. */
uint32_t record_crc(uint32_t uuid_crc, uint64_t position, const union header *header, const void *payload);

/* Whether a record can have this header at this position, with `room` bytes to the ring's end. It verifies no checksum. */
bool header_possible(const struct geometry *g, const struct record *header, uint64_t position, uint64_t room);

enum standing { WHOLE, NOT_WHOLE, OUTSIDE };

/* What is at this position. OUTSIDE if the window is too short to tell, and for a record of more than PMWAL_LARGE_RECORD bytes. */
enum standing record_at(const struct geometry *g, const struct window *window, uint64_t position, union header *header);

/* The number with which an epoch begins: see pmwal/format/epochs.py. */
struct epoch_start {
    uint64_t first_seq, epoch;
};

/* Which epoch a record of a number can have. `starts` are `count` of struct epoch_start, of any alignment, in ascending order. */
struct epochs {
    uint32_t newest; /* of the records from newest_first_seq on; earlier ones have an older one */
    uint64_t newest_first_seq;
    const unsigned char *starts;
    size_t count;
};

/* Whether a record of this number can have this epoch. `passed` is the caller's, zero at first, for numbers that only grow: how many
 * of the starts are at or before the last one. */
static inline bool epoch_fits(const struct epochs *epochs, uint64_t seq, uint32_t epoch, size_t *passed)
{
    struct epoch_start start = {0};
    if (seq >= epochs->newest_first_seq)
        return epoch == epochs->newest;
    for (; *passed < epochs->count; (*passed)++) {
        memcpy(&start, epochs->starts + *passed * sizeof start, sizeof start);
        if (start.first_seq > seq)
            break;
    }
    if (*passed)
        memcpy(&start, epochs->starts + (*passed - 1) * sizeof start, sizeof start);
    return epoch < epochs->newest && (!*passed || epoch >= start.epoch);
}

/* Which records a run takes. */
struct run_rules {
    uint64_t stop_seq;  /* exclusive */
    uint64_t limit;     /* no record ends after it */
    struct epochs epochs;
    uint64_t lap_seq;   /* the number of the header at the ring's start; the run stops before a record of that number */
    bool batches;       /* a batch counts whole or not at all; the caller begins at or after the newest epoch's first number */
    uint64_t bytes_max; /* stop after that many, so that the caller can report progress; far below 2^63 */
};

/* What a walk does at a record. */
enum advance { STOPS, ADVANCES, TOO_LONG };

/* Whether a walk advances over the record of this position and number: the window contains it, it is whole, and the rules take it.
 * Its header is copied and its size noted. One that claims more than `size_max` bytes is TOO_LONG, and not looked at. `passed`: as
 * for epoch_fits(). */
enum advance next_record_in(const struct geometry *g, const struct window *window, const struct run_rules *rules,
                            uint64_t position, uint64_t seq, size_t *passed, uint64_t size_max, union header *header,
                            uint64_t *size);

/* The state of a run. The caller sets position, seq, epoch_min and mark; the rest starts at zero. */
struct run {
    uint64_t position, seq; /* the end of what was taken, and the number of the record after it */
    uint32_t epoch_min;     /* epochs never fall */
    uint64_t mark;          /* the greatest `durable` taken */
    bool outside;           /* it stopped because the window ends */
    uint64_t index_last;    /* position of the newest index entry; 0 and index_any false for none */
    bool index_any;
};

typedef int (*note_start)(void *context, uint64_t position, uint64_t seq);

/* Advances over whole records from run->position while the rules take them. `note` gets a start every PMWAL_INDEX_STEP bytes; if it
 * returns other than 0, the run ends. */
void run_on(const struct geometry *g, const struct window *window, const struct run_rules *rules, struct run *run,
            note_start note, void *context);

/* Finds a position between `from` and `until` at which a run under these rules would continue if it got there: a whole record that
 * begins a batch if batches count whole or not at all. `start` is the run that searches, and becomes one that begins there. It is a
 * guess, so it may give up. */
bool find_start(const struct geometry *g, const struct window *window, const struct run_rules *rules, uint64_t from, uint64_t until,
                struct run *start);

/* Adjacent records of one length, whose payloads are the rows of an array. */
struct row_rules {
    uint64_t limit; /* no record ends after it */
    struct epochs epochs;
    uint64_t lap_seq;
    uint64_t length; /* of each payload */
};

/* How many of `count` records, from this position and number on, can be adjacent in the window. */
uint64_t rows_within(const struct geometry *g, const struct window *window, const struct row_rules *rules, uint64_t position,
                     uint64_t seq, uint64_t count);

/* Copies the payloads of `count` records to `rows`, and verifies each checksum over the copy. Returns how many are whole and taken
 * by the rules, up to the first that is not. `count` is at most what rows_within() returned. */
uint64_t take_rows(const struct geometry *g, const struct window *window, const struct row_rules *rules, uint64_t position,
                   uint64_t seq, uint64_t count, unsigned char *rows);

/* Records laid anew in another ring: see pmwal/format/relocation.py. */
struct relocation {
    uint64_t position, seq; /* of the next record, in its own ring */
    uint64_t to, batch;     /* where it goes in the other, and where its batch begins there */
    uint64_t longest;       /* payload so far */
    unsigned char *bytes;   /* of the other ring, from `to` on: there is room for that many */
    uint64_t room;
    bool full; /* it stopped because there is no room for the next record */
};

/* Copies whole records that the rules take from a window to another ring, as far as there is room. */
void relocate(const struct geometry *g, const struct window *window, const struct run_rules *rules, const struct geometry *other,
              struct relocation *relocation);

/* Records packed into the body of a frame: see pmwal/format/frame.py. */
struct framing {
    uint64_t position, seq;   /* of the next record */
    unsigned char *body;      /* of the frame, from its next entry on: there is room for that many bytes */
    uint64_t used, room;      /* bytes packed, and bytes that are left */
    uint64_t last, entry;     /* where the last record that was packed is in the ring, and its entry among the bytes packed */
    uint32_t crc;             /* and its checksum */
    bool full;                /* it stopped because there is no room for the next record */
};

/* Packs whole records that the rules take, as far as there is room. It takes each checksum over its own copy, so the window's bytes
 * may change meanwhile. */
void pack_frame(const struct geometry *g, const struct window *window, const struct run_rules *rules, struct framing *framing);

/* A record in the body of a frame. */
struct frame_entry {
    uint32_t length;
    uint16_t kind;
    int64_t time_ns;
    const unsigned char *payload;
};

/* The entry at `at`, below `length`, of a body, and moves `at` past it; false if the body ends inside it. */
bool next_entry(const unsigned char *body, uint64_t length, uint64_t *at, struct frame_entry *entry);

/* Whether `run` ended exactly where another one began; if so, it becomes the run over both. */
bool join_run(struct run *run, const struct run *began, const struct run *ended);

#endif
