#include "search.h"

#include <stdlib.h>
#include <string.h>

#include "crc32c.h"
#include "fault.h"

#define HOLE_SHIFT 31 /* a hole is divided into pieces below LINEAR_MAX, whose ends fit into an entry */
#define GROUP 512     /* candidates that are joined at once */
#define CHUNK 255     /* candidates in a chunk of a bucket: with its link, a page */
#define BLOCK 16      /* words that are summed, then searched: few enough that the processor does both at once */
#define AHEAD 1024    /* bytes of the next chunk that are prefetched */
#define COVERED (PMWAL_HEADER - 4) /* bytes of a header that its checksum covers */

static_assert(COVERED + PMWAL_LENGTH_MAX < LINEAR_MAX, "a record's checksum is joined in one shift");
static_assert((UINT64_C(1) << HOLE_SHIFT) < LINEAR_MAX && HOLE_SHIFT < 32, "a hole's pieces are passed in one shift");

struct search_chunk {
    struct search_chunk *next;
    struct linear_end ends[CHUNK];
};

static inline uint64_t load64(const unsigned char *at)
{
    uint64_t word;
    memcpy(&word, at, 8);
    return word;
}

enum search_end search_begin(struct search *search, struct search_span *spans, size_t count)
{
    search->spans = spans;
    search->span_count = count;
    for (size_t i = 0; i < count; i++) {
        struct search_span *span = &spans[i];
        span->shift = span->data ? search->piece_shift : HOLE_SHIFT;
        span->bucket = search->bucket_count;
        search->bucket_count += ((span->end - span->start - 1) >> span->shift) + 1;
    }
    search->at = spans[0].start;
    search->buckets = calloc(search->bucket_count, sizeof *search->buckets);
    search->registers = malloc(((UINT64_C(1) << search->piece_shift) / 8 + 1) * sizeof *search->registers);
    return search->buckets && search->registers ? SEARCH_OK : SEARCH_NO_MEMORY;
}

static void free_chunks(struct search_chunk *chunk)
{
    while (chunk) {
        struct search_chunk *next = chunk->next;
        free(chunk);
        chunk = next;
    }
}

void search_free(struct search *search)
{
    for (size_t i = 0; search->buckets && i < search->bucket_count; i++)
        free_chunks(search->buckets[i].first);
    free_chunks(search->unused);
    free(search->buckets);
    free(search->registers);
    free(search->spans);
    free(search->hits);
}

const struct search_span *search_span_at(const struct search *search, uint64_t offset)
{
    size_t low = 0, high = search->span_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (search->spans[middle].end <= offset)
            low = middle + 1;
        else
            high = middle;
    }
    return low < search->span_count ? &search->spans[low] : NULL;
}

static struct search_bucket *bucket_at(const struct search *search, const struct search_span *span, uint64_t offset)
{
    return &search->buckets[span->bucket + ((offset - span->start) >> span->shift)];
}

/* Puts an empty chunk first; false when there is no memory. */
static bool grow(struct search *search, struct search_bucket *bucket)
{
    struct search_chunk *chunk = search->unused;
    if (chunk)
        search->unused = chunk->next;
    else if (!(chunk = malloc(sizeof *chunk)))
        return false;
    chunk->next = bucket->first;
    *bucket = (struct search_bucket){chunk, 0};
    return true;
}

/* -- One piece. What runs under a fault guard allocates nothing. */

struct piece {
    struct search *search;
    const unsigned char *bytes;
    uint64_t offset, length, held; /* ring offset of the piece, its bytes, and those that can be read */
    uint64_t from, until;          /* headers are looked for from the one on, to the other: bytes of the piece */
    bool sums;                     /* its registers are needed */
    uint64_t summed;               /* they are known so far */
    size_t count, matching;        /* of what the last guarded call found */
    struct linear_join joins[GROUP];
    uint64_t starts[GROUP];
    struct search_chunk *chunk;    /* to be matched */
};

/* Makes the registers of the first `to` bytes known. */
static void sum(struct piece *piece, uint64_t to)
{
    struct search *search = piece->search;
    uint32_t *registers = search->registers + piece->summed / 8;
    uint64_t end = (to + 7) / 8 * 8;
    if (!piece->sums)
        registers[0] = search->reg;
    piece->sums = true;
    if (end > piece->summed)
        search->linear->registers(registers[0], piece->bytes + piece->summed, (end - piece->summed) / 8, registers);
    piece->summed = end > piece->summed ? end : piece->summed;
}

static void sum_rest(void *context)
{
    struct piece *piece = context;
    sum(piece, piece->length);
}

/* Without registers inside the piece. */
static void sum_bytes(void *context)
{
    struct piece *piece = context;
    piece->search->reg = ~crc32c(~piece->search->reg, piece->bytes, piece->length);
}

/* The position of a header at this ring offset. */
static inline uint64_t position_of(const struct search *search, uint64_t offset, uint64_t durable)
{
    uint64_t capacity = search->geometry.capacity;
    return search->limits.placed ? search->limits.base + offset : durable + (offset + (capacity - durable % capacity)) % capacity;
}

/* The next candidates. */
static void collect(void *context)
{
    struct piece *piece = context;
    const struct search *search = piece->search;
    const struct geometry *g = &search->geometry;
    const struct search_limits *limits = &search->limits;
    uint64_t seq_least = limits->seq_min < limits->newer_seq_min ? limits->seq_min : limits->newer_seq_min;
    uint64_t first_place = limits->base + piece->offset, room = g->capacity - piece->offset, at = piece->from;
    size_t count = 0;
    while (at < piece->until && count < GROUP) {
        uint64_t stop = piece->until - at < 8 * BLOCK ? piece->until : at + 8 * BLOCK;
        if (piece->sums)
            sum(piece, stop);
        for (; at < stop && count < GROUP; at += g->alignment) {
            const unsigned char *stored = piece->bytes + at;
            uint64_t seq = load64(stored + 8), durable = load64(stored + 16);
            if (seq < seq_least || durable > (limits->placed ? first_place + at : PMWAL_POSITION_MAX / 2))
                continue; /* nearly all bytes, zeros among them */
            uint64_t first = load64(stored), marks = load64(stored + 32), batch = load64(stored + 40), length = first >> 32;
            uint32_t epoch = (uint32_t)marks;
            if (seq > PMWAL_SEQ_MAX || !epoch || marks >> 48 || (uint32_t)batch >= batch >> 32 || length > g->payload_max ||
                record_size(g, length) > room - at)
                continue;
            if (epoch == limits->epoch ? seq < limits->seq_min : epoch < limits->epoch || seq < limits->newer_seq_min)
                continue;
            if (!piece->sums) /* the first one: only now checksums are needed at all */
                sum(piece, stop);
            uint64_t position = position_of(search, piece->offset + at, durable);
            piece->joins[count] = (struct linear_join){position, COVERED + length, search->registers[at / 8], (uint32_t)first};
            piece->starts[count++] = piece->offset + at;
        }
    }
    piece->from = at;
    piece->count = count;
}

/* Each candidate into the bucket of the piece where its record ends. */
static bool put(struct search *search, struct piece *piece)
{
    const struct search_span *span = search_span_at(search, piece->offset);
    uint32_t wanted[GROUP];
    search->linear->join(~search->geometry.uuid_crc, piece->joins, piece->count, wanted);
    for (size_t i = 0; i < piece->count; i++) {
        uint64_t last = piece->starts[i] + PMWAL_HEADER - COVERED + piece->joins[i].length - 1;
        if (last >= span->end || last < span->start)
            span = search_span_at(search, last);
        struct search_bucket *bucket = bucket_at(search, span, last);
        if ((!bucket->first || bucket->count == CHUNK) && !grow(search, bucket))
            return false;
        uint32_t end = (uint32_t)((last - span->start) & ((UINT64_C(1) << span->shift) - 1)) + 1;
        struct linear_end *entry = &bucket->first->ends[bucket->count++];
        *entry = (struct linear_end){piece->starts[i], end, wanted[i]};
        __builtin_prefetch(entry + 64 / sizeof *entry, 1);
    }
    search->pending += piece->count;
    search->candidates += piece->count;
    return true;
}

static void match(void *context)
{
    struct piece *piece = context;
    const struct search *search = piece->search;
    piece->matching = search->linear->match(search->registers, piece->bytes, piece->chunk->ends, piece->count);
}

/* Those of a hole's piece, where the register after n bytes is shifted by n. */
static void match_hole(struct search *search, struct piece *piece)
{
    struct linear_end *ends = piece->chunk->ends;
    piece->matching = 0;
    for (size_t i = 0; i < piece->count; i++)
        if (search->linear->shift(search->reg, ends[i].end) == ends[i].wanted)
            ends[piece->matching++] = ends[i];
}

static bool note_hits(struct search *search, const struct linear_end *ends, size_t count)
{
    if (search->hit_count + count > search->hit_room) {
        size_t room = 2 * search->hit_room + CHUNK;
        uint64_t *hits = realloc(search->hits, room * sizeof *hits);
        if (!hits)
            return false;
        search->hits = hits;
        search->hit_room = room;
    }
    for (size_t i = 0; i < count; i++)
        search->hits[search->hit_count++] = ends[i].start;
    return true;
}

/* Empties the bucket of this piece. Without `bytes` the piece is one of a hole. */
static enum search_end settle(struct search *search, struct piece *piece, struct search_bucket *bucket)
{
    while (bucket->first) {
        piece->chunk = bucket->first;
        piece->count = bucket->count;
        for (size_t line = 0; piece->chunk->next && line < AHEAD; line += 64) /* no prefetcher follows it there */
            __builtin_prefetch((const char *)piece->chunk->next + line);
        if (!piece->bytes)
            match_hole(search, piece);
        else if (!fault_run(piece->bytes, piece->held, match, piece))
            return SEARCH_FAULT;
        if (!note_hits(search, piece->chunk->ends, piece->matching))
            return SEARCH_NO_MEMORY;
        search->pending -= piece->count;
        *bucket = (struct search_bucket){piece->chunk->next, CHUNK};
        piece->chunk->next = search->unused;
        search->unused = piece->chunk;
    }
    return SEARCH_OK;
}

static enum search_end search_piece(struct search *search, struct piece *piece, struct search_bucket *bucket)
{
    piece->sums = false;
    piece->summed = 0;
    if (search->pending && (piece->from < piece->until || bucket->first))
        sum(piece, 0);
    else if (search->pending && !fault_run(piece->bytes, piece->held, sum_bytes, piece))
        return SEARCH_FAULT;
    while (piece->from < piece->until) {
        if (!fault_run(piece->bytes, piece->held, collect, piece))
            return SEARCH_FAULT;
        if (piece->count && !put(search, piece))
            return SEARCH_NO_MEMORY;
    }
    if (piece->sums && !fault_run(piece->bytes, piece->held, sum_rest, piece))
        return SEARCH_FAULT;
    if (piece->sums)
        search->reg = search->registers[piece->length / 8];
    search->summed += piece->summed;
    return settle(search, piece, bucket);
}

enum search_end search_bytes(struct search *search, const unsigned char *bytes, uint64_t length, uint64_t starts, uint64_t held)
{
    const struct search_span *span = search_span_at(search, search->at);
    uint64_t step = UINT64_C(1) << search->piece_shift, align = search->geometry.alignment;
    uint64_t middle = (step / 2 + align - 1) & ~(align - 1);
    uint64_t until = held < PMWAL_HEADER ? 0 : held - PMWAL_HEADER + 1 < starts ? held - PMWAL_HEADER + 1 : starts;
    struct piece piece;
    piece.search = search;
    for (uint64_t at = 0; at < length; at += step) {
        piece.bytes = bytes + at;
        piece.offset = search->at;
        piece.length = length - at < step ? length - at : step;
        piece.held = held - at;
        piece.until = until <= at ? 0 : until - at < piece.length ? until - at : piece.length;
        piece.from = search->share == SECOND_HALVES ? middle : 0;
        piece.until = search->share == FIRST_HALVES && middle < piece.until ? middle : piece.until;
        enum search_end end = search_piece(search, &piece, bucket_at(search, span, search->at));
        if (end != SEARCH_OK)
            return end;
        search->at += piece.length;
    }
    return SEARCH_OK;
}

enum search_end search_hole(struct search *search, const struct search_span *span)
{
    uint64_t step = UINT64_C(1) << HOLE_SHIFT;
    struct piece piece;
    piece.bytes = NULL;
    while (search->at < span->end) {
        uint64_t length = span->end - search->at < step ? span->end - search->at : step;
        enum search_end end = settle(search, &piece, bucket_at(search, span, search->at));
        if (end != SEARCH_OK)
            return end;
        search->reg = search->linear->shift(search->reg, length);
        search->at += length;
    }
    return SEARCH_OK;
}
