/* Storing batches of records at the head of the log. */
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

/* Where these pieces go at the head: computes the end of the batch, and puts down its entries of the index. The pieces are not longer
 * than a payload may be. No other batch is begun until this one is stored or given up. */
void batch_of(struct batch *batch, Core *core, const struct piece *pieces, size_t count);

/* Does so for rows of an array, of which `first` is the first. */
void batch_of_rows(struct batch *batch, Core *core, const struct piece *first, size_t count);

/* Whether it fits at the head without freeing space, and no number comes near its limit. */
static inline bool batch_fits(const struct batch *batch)
{
    const struct log_state *state = &batch->core->state;
    uint64_t capacity = batch->core->geometry.capacity, used = batch->end.position - state->tail.position;
    if (state->head.position > PMWAL_POSITION_MAX - 2 * capacity || state->head.seq > PMWAL_SEQ_MAX - batch->count)
        return false;
    return used <= capacity && batch->core->headroom <= capacity - used;
}

/* Stores a batch and publishes it. There must be room for it. 0, or -1 with an exception set; with `defers` also 1, with nothing
 * stored, when upkeep is due. */
int core_store(struct batch *batch);

/* -- for commit.c, which stores and makes durable in one step */

/* Notes which thread uses the log, for the commits. */
void note_thread(Core *core);

/* Requests read-ahead of the pages that the writer reaches next. */
void prefetch(Core *core);

/* Stores the records of a batch straight into the mapping. Under a fault guard. */
void store_records(const struct batch *batch);

/* Stores the only record of a batch into the page cache and waits until it is on the disk, in one pwritev2(2). `staged` has room
 * for the record. 0; an errno, which is final; -1 when the call was refused, with nothing stored; -2 when it was cut short. */
int store_synced(struct batch *batch, unsigned char *staged);

/* Makes a stored batch part of the log: its entries of the index count, and the head moves past it. */
void take_in(const struct batch *batch);

#endif
