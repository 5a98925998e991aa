/* Storing batches of records at the head of the log. */
#ifndef PMWAL_STORE_H
#define PMWAL_STORE_H

#include "core.h"

struct piece {
    const unsigned char *bytes;
    uint64_t length;
    uint16_t kind;
};

/* Stores one batch at the head and publishes it. There must be room for it. 0, or -1 with an exception set; with `defers` also 1,
 * with nothing stored, when upkeep is due. */
int core_store(Core *core, const struct piece *pieces, size_t count, bool defers);

/* Does so for rows of an array, of which `first` is the first. */
int core_store_rows(Core *core, const struct piece *first, size_t count);

/* -- for commit.c, which stores and makes durable in one step */

/* A batch on its way into the ring. */
struct batch {
    Core *core;
    const struct piece *pieces;
    size_t count;
    bool defers; /* to upkeep that is due: nothing is stored then */
    bool rows; /* there is one piece, the first row of an array; the others follow it in memory */
    int64_t time_ns;
    struct place end; /* where it ends, once it is stored */
    bool names;       /* of a durable one: its commit wrote a slot */
    union commit_slot slot;
};

static inline void batch_of(struct batch *batch, Core *core, const struct piece *pieces, size_t count)
{
    batch->core = core;
    batch->pieces = pieces;
    batch->count = count;
    batch->defers = batch->rows = false;
}

/* The record at this place in a batch. */
static inline struct piece piece_at(const struct batch *batch, size_t place)
{
    if (!batch->rows)
        return batch->pieces[place];
    struct piece piece = *batch->pieces;
    piece.bytes += place * piece.length;
    return piece;
}

/* Notes which thread uses the log, for the commits. */
void note_thread(Core *core);

/* Requests read-ahead of the pages that the writer reaches next. */
void prefetch(Core *core);

/* Stores the records of a batch straight into the mapping, and notes in it where they end. Under a fault guard. */
void store_records(struct batch *batch);

/* Stores the only record of a batch into the page cache and waits until it is on the disk, in one pwritev2(2). `staged` has room
 * for the record. 0; an errno, which is final; -1 when the call was refused, with nothing stored; -2 when it was cut short. */
int store_synced(struct batch *batch, unsigned char *staged);

/* Makes a stored batch part of the log: notes in the index where its records start, and moves the head past it. */
void take_in(const struct batch *batch);

#endif
