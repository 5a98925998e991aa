/* Whole records wherever they start in a part of the ring, in time linear in its bytes. Plain C: no Python, no I/O.
 *
 * Invariants
 * - A position costs the same whatever length its header declares: its checksum is joined from two registers (linear.h). A header
 *   that may start a record waits, with the register that the bytes before its end must have, in the bucket of the piece where it
 *   ends, until that piece is read. So no number of headers, and no lengths in them, make a search give up or slow.
 * - Only what no record of the log can have is ruled out by a header's fields alone: see search_limits.
 * - A search reads each byte at most once as a header's and once as a checksum's, and no field is used but from one copy. So bytes that
 *   change meanwhile give wrong records at worst, never an access outside.
 */
#ifndef PMWAL_SEARCH_H
#define PMWAL_SEARCH_H

#include "linear.h"
#include "ring.h"

/* Which records are searched for, beside header_possible(). */
struct search_limits {
    bool placed;            /* the lap is known: the position is `base` + ring offset. Otherwise it is the first from `durable` on */
    uint64_t base;
    uint32_t epoch;         /* of this epoch and at least seq_min, or of a greater one and at least newer_seq_min */
    uint64_t seq_min, newer_seq_min; /* at least 1 */
};

/* A part of the ring, [start, end), and whether it has data; a hole reads as zeros, and is not read. */
struct search_span {
    uint64_t start, end;
    bool data;
    unsigned shift;  /* set by search_begin(), as is `bucket` */
    size_t bucket;
};

/* Which headers a search looks for. Two searches over the same bytes share the work: each takes one half of each piece, and knows
 * nothing of the other. */
enum search_share { WHOLE_PIECES, FIRST_HALVES, SECOND_HALVES };

struct search_chunk;

/* The candidates that end in one piece. */
struct search_bucket {
    struct search_chunk *first;
    size_t count; /* in the first chunk; the others are full */
};

struct search {
    struct geometry geometry;
    struct search_limits limits;
    const struct linear *linear;
    struct search_span *spans;
    size_t span_count, bucket_count;
    struct search_bucket *buckets;
    struct search_chunk *unused;
    unsigned piece_shift;
    enum search_share share;
    uint32_t *registers;     /* of the current piece */
    uint64_t at;             /* ring offset of the next byte */
    uint32_t reg;            /* before it */
    uint64_t pending;        /* entries in all buckets */
    uint64_t *hits;          /* ring offsets of whole records, in the order of their ends */
    size_t hit_count, hit_room;
    uint64_t candidates, summed; /* headers that were joined, bytes that were checksummed */
};

enum search_end { SEARCH_OK, SEARCH_NO_MEMORY, SEARCH_FAULT };

/* Takes over `spans` (adjacent, in order), which search_free() frees. The search begins at the first one's start. */
enum search_end search_begin(struct search *search, struct search_span *spans, size_t count);
void search_free(struct search *search);

/* The span that contains this offset; NULL after the last. */
const struct search_span *search_span_at(const struct search *search, uint64_t offset);

/* Searches the next `length` bytes, whole pieces of a span with data, or its rest. Headers start in the first `starts` of them; there
 * are `held` bytes, so that a header near the end is whole. */
enum search_end search_bytes(struct search *search, const unsigned char *bytes, uint64_t length, uint64_t starts, uint64_t held);

/* Passes over the rest of a hole. */
enum search_end search_hole(struct search *search, const struct search_span *span);

#endif
