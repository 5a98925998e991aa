/* Batches of records: building them, storing them in memory, making them part of the log. */
#ifndef PMWAL_STORE_H
#define PMWAL_STORE_H

#include "core.h"

struct piece {
    const unsigned char *bytes;
    uint64_t length;
    uint16_t kind;
    bool constant; /* nobody changes the bytes meanwhile, so they may be read twice: exact bytes objects, or a private copy */
};

#define STREAM_MIN 1024 /* where lines are written back, records from this size on bypass the cache; smaller ones are faster so */

/* A batch on its way into the ring. */
struct batch {
    Core *core;
    const struct piece *pieces;
    size_t count;
    bool rows;   /* there is one piece, the first row of an array; the others follow it in memory */
    bool defers; /* to upkeep that is due: nothing is stored then */
    struct place end;       /* where it ends in the ring */
    uint64_t size;          /* bytes that it takes there, without a gap */
    uint64_t payload_bytes;
    size_t starts;          /* entries that it put down in the index, which count once it is stored */
    int64_t time_ns;
    bool names;             /* of a durable one: its commit wrote a slot */
    union commit_slot slot;
};

/* The record at this place in a batch. */
static inline struct piece piece_at(const struct batch *batch, size_t place)
{
    if (!batch->rows)
        return batch->pieces[place];
    struct piece piece = *batch->pieces;
    piece.bytes += place * piece.length;
    return piece;
}

/* Where the records of a batch go at the head: computes its end, and puts down its entries of the index. */
static inline void place_batch(struct batch *batch)
{
    const struct geometry *g = &batch->core->geometry;
    Index *index = batch->core->index;
    struct place end = core_head(batch->core);
    uint64_t next = index->next, seq = batch->core->state.head.seq;
    batch->defers = false;
    batch->payload_bytes = batch->size = batch->starts = 0;
    for (size_t i = 0; i < batch->count; i++) {
        uint64_t length = piece_at(batch, i).length, size = record_size(g, length);
        struct place start = place_record(g, end, size);
        if (start.position >= next) {
            index_put(index, batch->starts++, (struct bound){start.position, seq + i});
            next = start.position + PMWAL_INDEX_STEP;
        }
        batch->payload_bytes += length;
        batch->size += size;
        end = end_record(g, start, size);
    }
    batch->end = end;
}

/* A batch of these pieces, which are not longer than a payload may be. No other is begun until this one is stored or given up. */
static inline void batch_of(struct batch *batch, Core *core, const struct piece *pieces, size_t count)
{
    batch->core = core;
    batch->pieces = pieces;
    batch->count = count;
    batch->rows = false;
    place_batch(batch);
}

/* A batch of rows of an array, of which `first` is the first. */
static inline void batch_of_rows(struct batch *batch, Core *core, const struct piece *first, size_t count)
{
    batch->core = core;
    batch->pieces = first;
    batch->count = count;
    batch->rows = true;
    place_batch(batch);
}

/* Where its first record goes. */
static inline struct place batch_start(const struct batch *batch)
{
    const struct geometry *g = &batch->core->geometry;
    return place_record(g, core_head(batch->core), record_size(g, batch->pieces->length));
}

/* Whether no gap and no end of the ring lies between its records. */
static inline bool is_contiguous(const struct batch *batch)
{
    return batch_start(batch).offset + batch->size <= batch->core->geometry.capacity;
}

/* Whether it fits at the head without freeing space, and no number comes near its limit. */
static inline bool batch_fits(const struct batch *batch)
{
    const struct log_state *state = &batch->core->state;
    uint64_t capacity = batch->core->geometry.capacity, used = batch->end.position - state->tail.position;
    if (state->head.position > PMWAL_POSITION_MAX - 2 * capacity || state->head.seq > PMWAL_SEQ_MAX - batch->count)
        return false;
    return used <= capacity && batch->core->headroom <= capacity - used;
}

/* Notes which thread uses the log, for the commits. */
void note_thread(Core *core);

/* Checks where a record is about to be stored. */
void check_start(const Core *core, struct place start, uint64_t size);

/* Fills the header of the record with this place in the batch, except for its checksum. */
void fill_header(const struct batch *batch, union header *header, const struct piece *piece, size_t place);

/* Stores a record at `to`: payload and padding first, then the header, with the checksum over both. */
void build(const Core *core, unsigned char *to, union header *header, const struct piece *piece, uint64_t position, uint64_t size);

/* Stores the records of a batch straight into the mapping. Under a fault guard. */
void store_records(const struct batch *batch);

/* Does so, and shows on the live page how far the log is stored. False when an access faulted. */
bool store_mapped(struct batch *batch);

/* Stores them through the seam, one step for each record. 0, or -1 with an exception set, like the next one. */
int store_recorded(const struct batch *batch);

/* Shows through put() how far the log is stored, once the head has moved. -1 also if the seam has raised at a seek point. */
int publish_recorded(Core *core);

/* Makes a stored batch part of the log: its entries of the index count, and the head moves past it. */
void take_in(const struct batch *batch);

#endif
