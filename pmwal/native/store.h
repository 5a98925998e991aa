/* Batches of records: building them, storing them in memory, making them part of the log. */
#ifndef PMWAL_STORE_H
#define PMWAL_STORE_H

#include "core.h"

struct piece {
    const unsigned char *bytes;
    uint64_t length;
    uint16_t kind;
};

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

static inline struct piece piece_at(const struct batch *batch, size_t place)
{
    if (!batch->rows)
        return batch->pieces[place];
    struct piece piece = *batch->pieces;
    piece.bytes += place * piece.length;
    return piece;
}

/* Bytes of the ring that a batch takes without gaps; counting stops above `enough`. */
static inline uint64_t batch_size(const struct batch *batch, uint64_t enough)
{
    const struct geometry *g = &batch->core->geometry;
    if (batch->rows)
        return batch->count * record_size(g, batch->pieces->length);
    uint64_t size = 0;
    for (size_t i = 0; i < batch->count && size <= enough; i++)
        size += record_size(g, batch->pieces[i].length);
    return size;
}

/* Notes which thread uses the log, for the commits. */
void note_thread(Core *core);

/* Checks where a record is about to be stored. */
void check_start(const Core *core, struct place start, uint64_t size);

/* Fills the header of the record with this place in the batch, except for its checksum. */
void fill_header(const struct batch *batch, union header *header, const struct piece *piece, size_t place);

/* Stores a record at `to`: payload and padding first, the checksum over them as they were stored, the header last. */
void build(const Core *core, unsigned char *to, union header *header, const struct piece *piece, uint64_t position, uint64_t size);

/* Stores the records of a batch straight into the mapping, and notes in it where they end. Under a fault guard. */
void store_records(struct batch *batch);

/* Does so, and shows on the live page how far the log is stored. False when an access faulted. */
bool store_mapped(struct batch *batch);

/* Stores them through the seam, one step for each record. 0, or -1 with an exception set, like the next one. */
int store_recorded(const struct batch *batch);

/* Shows through put() how far the log is stored, once the head has moved. */
int publish_recorded(Core *core);

/* Makes a stored batch part of the log: notes in the index where its records start, and moves the head past it. */
void take_in(const struct batch *batch);

#endif
